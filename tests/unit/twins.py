"""Twins for tests of the gateway and the client: a router in this process over the store's in-memory twin.

It keeps the contract of `contracts.Router`, but gives tasks to nobody: a test says what happens to them (`begin`,
`speak`, `finish`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.config import FleetConfig, load_config
from fleet.errors import AgentGone, Conflict, FleetError, NotFound
from fleet.lifecycle import AgentState, RunState, TaskState, step_task
from fleet.models import (
    AgentInfo,
    Approval,
    ApprovalState,
    Batch,
    Event,
    EventKind,
    NodeInfo,
    Result,
    RoleState,
    Run,
    Task,
    TaskSpec,
    Transition,
    new_id,
)
from fleet.reasons import Reason
from fleet.store.memory import MemoryStore


def make_config(home: Path, **more: Any) -> FleetConfig:
    """Settings with `home` as the only root."""
    return load_config(environ={}, home=str(home), roots=[str(home)], **more)


class TwinRouter:
    """`contracts.Router` in memory."""

    def __init__(self, config: FleetConfig, store: MemoryStore) -> None:
        self.config = config
        self.store = store
        self.epoch = 0
        self.paused: dict[str | None, bool] = {}
        self.said: list[tuple[str, str]] = []
        self.submits = 0
        self.failing: list[FleetError] = []
        """Errors that the next calls of `submit` raise."""
        self._keys: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._seqs: dict[str, int] = {}

    async def _commit(self, **rows: Any) -> None:
        if not self.epoch:
            self.epoch = (await self.store.open_epoch("twin")).epoch
        await self.store.commit(self.epoch, Batch(**rows))

    # What the gateway asks

    async def submit(self, specs: Sequence[TaskSpec]) -> list[Task]:
        self.submits += 1
        if self.failing:
            raise self.failing.pop(0)
        now = time.time()
        tasks = []
        for spec in specs:
            if spec.idempotency_key in self._keys:
                tasks.append(await self.store.task(self._keys[spec.idempotency_key or ""]))
                continue
            fields = {name: getattr(spec, name) for name in TaskSpec.model_fields}
            task = Task(**fields, id=new_id("t"), state=TaskState.QUEUED, created_at=now, queued_at=now, updated_at=now)
            if spec.idempotency_key is not None:
                self._keys[spec.idempotency_key] = task.id
            await self._commit(tasks=(task,), transitions=(_step(task, None),))
            tasks.append(task)
        return tasks

    async def _change(self, task: Task, state: TaskState, **fields: Any) -> Task:
        step_task(task.id, task.state, state)
        new = task.model_copy(update={"state": state, "updated_at": time.time(), **fields})
        await self._commit(tasks=(new,), transitions=(_step(new, task.state.value),))
        return new

    async def cancel(self, task_ids: Sequence[str], detail: str = "") -> list[Task]:
        tasks = [await self.store.task(task_id) for task_id in task_ids]
        return [
            task
            if task.state.final
            else await self._change(
                task, TaskState.CANCELLED, reason=Reason.CANCELLED, detail=detail, finished_at=time.time()
            )
            for task in tasks
        ]

    async def retry(self, task_ids: Sequence[str]) -> list[Task]:
        tasks = [await self.store.task(task_id) for task_id in task_ids]
        for task in tasks:
            if not task.state.final or task.state is TaskState.SUCCEEDED:
                raise Conflict(f"Task {task.id} is {task.state.value}.", state=task.state.value)
        return [await self._change(task, TaskState.QUEUED, reason=None, finished_at=None) for task in tasks]

    async def prioritize(self, task_ids: Sequence[str], priority: int) -> list[Task]:
        changed = []
        for task_id in task_ids:
            task = (await self.store.task(task_id)).model_copy(update={"priority": priority, "updated_at": time.time()})
            await self._commit(tasks=(task,))
            changed.append(task)
        return changed

    async def spawn(self, role: str, count: int = 1) -> list[AgentInfo]:
        made = []
        for _ in range(count):
            number = self._numbers[role] = self._numbers.get(role, 0) + 1
            now = time.time()
            agent = AgentInfo(
                id=f"{role}-{number}", role=role, state=AgentState.IDLE, node="node", started_at=now, updated_at=now
            )
            await self._commit(agents=(agent,))
            made.append(agent)
        return made

    async def _agent(self, agent_id: str) -> AgentInfo:
        for agent in await self.store.agents(all=True):
            if agent.id == agent_id:
                return agent
        raise NotFound(f"There is no agent {agent_id}.", what="agent", id=agent_id)

    async def stop_agent(self, agent_id: str, *, drain: bool = True) -> AgentInfo:
        agent = await self._agent(agent_id)
        stopped = agent.model_copy(update={"state": AgentState.STOPPED, "wanted": False, "updated_at": time.time()})
        await self._commit(agents=(stopped,))
        return stopped

    async def send(self, agent_id: str, text: str) -> dict[str, Any]:
        agent = await self._agent(agent_id)
        if not agent.wanted:
            raise AgentGone(f"Agent {agent_id} is gone.", agent=agent_id, state=agent.state.value)
        self.said.append((agent_id, text))
        if agent.run_id is not None:
            return {"delivered": True, "task_id": agent.task_id}
        task = (await self.submit([TaskSpec(role=agent.role, prompt=text, agent=agent_id)]))[0]
        return {"delivered": False, "task_id": task.id}

    async def interrupt(self, agent_id: str) -> bool:
        agent = await self._agent(agent_id)
        if agent.task_id is None:
            return False
        await self.cancel([agent.task_id], "interrupted")
        return True

    async def decide(
        self,
        approval_id: str,
        *,
        allow: bool,
        scope: str = "once",
        message: str = "",
        changed_input: dict[str, Any] | None = None,
        by: str = "",
    ) -> Approval:
        for approval in await self.store.approvals(waiting=False):
            if approval.id == approval_id:
                break
        else:
            raise NotFound(f"There is no approval {approval_id}.", what="approval", id=approval_id)
        if approval.state is not ApprovalState.WAITING:
            raise Conflict(f"Approval {approval_id} is {approval.state.value}.", state=approval.state.value)
        decided = approval.model_copy(
            update={
                "state": ApprovalState.ALLOWED if allow else ApprovalState.DENIED,
                "scope": scope,
                "message": message,
                "changed_input": changed_input,
                "decided_by": by,
                "decided_at": time.time(),
            }
        )
        await self._commit(approvals=(decided,))
        return decided

    async def ask(self, approval: Approval) -> None:
        await self._commit(approvals=(approval,))

    async def withdraw(self, approval_id: str) -> None:
        raise NotImplementedError

    async def pause(self, role: str | None, paused: bool) -> None:
        self.paused[role] = paused

    async def scale(self, role: str, agents: int) -> RoleState:
        state = RoleState(role=role, agents=agents)
        await self._commit(roles=(state,))
        return state

    async def drain_node(self, node: str, deadline_s: float | None = None, undo: bool = False) -> NodeInfo:
        found = await self.nodes()
        if node != found[0].id:
            raise NotFound(f"There is no node {node}.", what="node", id=node)
        return found[0].model_copy(update={"draining": not undo})

    async def nodes(self) -> list[NodeInfo]:
        return [NodeInfo(id="node", name="head", address="127.0.0.1", alive=True, head=True, cpus=2.0)]

    async def roles(self) -> list[dict[str, Any]]:
        return [
            {
                "role": role,
                "agents_wanted": role.agents,
                "agents": 0,
                "idle": 0,
                "queued": 0,
                "paused": self.paused.get(role.name, False),
                "oldest_queued_at": 1000.0,
                "why": "",
            }
            for role in self.config.roles.values()
        ]

    async def status(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "paused": self.paused.get(None, False), "since": 1000.0, "queued": 0, "why": {}}

    # What happens to a task

    async def begin(self, task_id: str, agent_id: str) -> Run:
        """An agent begins a run of the task."""
        task, agent, now = await self.store.task(task_id), await self._agent(agent_id), time.time()
        run = Run(
            id=new_id("r"),
            task_id=task_id,
            number=task.number_of_runs + 1,
            role=task.role,
            agent_id=agent_id,
            incarnation=1,
            epoch=self.epoch,
            started_at=now,
        )
        await self._change(
            task, TaskState.RUNNING, run_id=run.id, agent_id=agent_id, number_of_runs=run.number, started_at=now
        )
        busy = agent.model_copy(update={"state": AgentState.BUSY, "task_id": task_id, "run_id": run.id})
        await self._commit(runs=(run,), agents=(busy,))
        return run

    async def speak(self, run: Run, *words: str, kind: EventKind = EventKind.FRAME) -> list[int]:
        """The run says something; returns the ids of the events."""
        events = []
        for word in words:
            seq = self._seqs[run.id] = self._seqs.get(run.id, -1) + 1
            payload = {"type": "assistant", "message": {"content": [{"type": "text", "text": word}]}}
            events.append(
                Event(
                    run_id=run.id,
                    task_id=run.task_id,
                    agent_id=run.agent_id,
                    seq=seq,
                    at=time.time(),
                    kind=kind,
                    type="assistant",
                    payload=payload,
                )
            )
        await self.store.append_events(events)
        stored = await self.store.events(run_id=run.id, limit=100_000, transcript=True)
        return [event.id or 0 for event in stored[-len(words) :]]

    async def finish(
        self, run: Run, state: TaskState = TaskState.SUCCEEDED, reason: Reason | None = None, text: str = "done"
    ) -> Task:
        """The run ends, and its task with it."""
        task, agent, now = await self.store.task(run.task_id), await self._agent(run.agent_id), time.time()
        ended = run.model_copy(
            update={
                "state": RunState.SUCCEEDED if state is TaskState.SUCCEEDED else RunState.FAILED,
                "finished_at": now,
                "reason": reason,
            }
        )
        results: tuple[Result, ...] = ()
        if state is TaskState.SUCCEEDED:
            diff = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\n+new\n"
            results = (Result(task_id=task.id, run_id=run.id, role=task.role, text=text, diff=diff, finished_at=now),)
        idle = agent.model_copy(update={"state": AgentState.IDLE, "task_id": None, "run_id": None})
        await self._commit(runs=(ended,), results=results, agents=(idle,))
        return await self._change(task, state, reason=reason, session_id="session", finished_at=now)


def _step(task: Task, old: str | None) -> Transition:
    return Transition(at=time.time(), what="task", id=task.id, old=old, new=task.state.value)
