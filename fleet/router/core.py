"""The router's mind: tasks, queues, agents, nodes, and what follows from each message. Pure.

No Ray, asyncio, disk, clock or randomness: times and chances come in. Every method returns `Effects`: rows that the
shell commits first, then actions that it does. Memory is ahead of the store by what is being committed.
"""

from __future__ import annotations

import heapq
from collections import ChainMap, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet.config import FleetConfig
from fleet.errors import AgentGone, Busy, Conflict, InvalidInput, NotFound, UnknownRole
from fleet.lifecycle import AgentState, RunState, TaskState, step_agent, step_run, step_task
from fleet.models import (
    Activity,
    AgentInfo,
    AgentReport,
    Approval,
    ApprovalState,
    NodeInfo,
    Outcome,
    Refusal,
    Role,
    RoleState,
    RouterState,
    Run,
    RunOrder,
    Task,
    TaskSpec,
    Transition,
    new_id,
)
from fleet.reasons import RULES, Reason
from fleet.router import retry as retry_rules
from fleet.router.admission import check_priority, check_spec
from fleet.router.balance import Balance
from fleet.router.effects import (
    Acknowledge,
    CancelRun,
    DeliverDecision,
    Dispatch,
    Effects,
    LaunchAgent,
    RequestNodes,
    StopAgent,
)
from fleet.router.idle import IdleAgents
from fleet.router.placement import SILENT, NodeLoad, Placement, place
from fleet.router.queue import TaskQueue
from fleet.router.scaler import Demand, Scaler
from fleet.router.task_table import TaskTable

MAX_LAUNCHING = 4
"""Actors that start at once: more would only wait for each other's imports."""
LAUNCH_BACKOFF_S = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0)
MOVE_BEFORE_S = 10.0
"""How long before a node goes its runs are moved, when they have not ended by themselves."""
SILENT_KEPT_S = 75.0
"""How long a node from which nothing is heard gets no agent: by then Ray has said that it is dead, or it is not."""
STEADY_S = 60.0
"""An agent that lived for so long starts its backoff anew."""
ENDED_KEPT = 10_000
PRESENT = frozenset({AgentState.IDLE, AgentState.BUSY, AgentState.DRAINING})
"""The states of agents that can be heard."""
PAUSED_ALL = "paused"
DRAINED_NODES = "drained_nodes"


class RouterCore:
    """The state of a router and what follows from messages.

    Args:
        config: the fleet's settings.
    """

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.roles: dict[str, Role] = dict(config.roles)
        self.epoch = 0
        self.tasks = TaskTable()
        """Those that are not final."""
        self.runs: dict[str, Run] = {}
        """Those that are running, by id."""
        self.agents: dict[str, AgentInfo] = {}
        """Those that are wanted or still end."""
        self.role_states: dict[str, RoleState] = {}
        self.approvals: dict[str, Approval] = {}
        self.nodes: dict[str, NodeInfo] = {}
        self.activities: dict[str, Activity] = {}
        self.paused = False
        self.drained: dict[str, float | None] = {}
        """Names of drained nodes, with the time at which what still runs there is moved."""
        self.keys: dict[str, str] = {}
        """Idempotency keys of all tasks, and those being committed."""
        self._queues: dict[str, TaskQueue] = defaultdict(TaskQueue)
        self._pinned: dict[str, TaskQueue] = defaultdict(TaskQueue)
        self._due: list[tuple[float, str]] = []
        self._waiting_for: dict[str, set[str]] = defaultdict(set)
        """Task → those blocked by it."""
        self._missing: dict[str, set[str]] = {}
        """Blocked task → those it still waits for."""
        self._ready: list[str] = []
        """Blocked tasks that wait for no other any more."""
        self._acks: dict[str, str] = {}
        self._moving: set[str] = set()
        """Tasks whose next run is told that it was moved."""
        self._drained_by_ray: set[str] = set()
        self._launch_at: dict[str, float] = {}
        self._launch_due: list[tuple[float, int, str]] = []
        """A heap of the agents to start; entries that differ from `_launch_at` are old."""
        self._launch_number = 0
        self._failures: dict[str, int] = defaultdict(int)
        self._launching: set[str] = set()
        self._cancelling: dict[str, tuple[str, str]] = {}
        """Run → reason and words of the cancel that was asked for."""
        self._stopping: set[str] = set()
        self._scalers: dict[str, Scaler] = defaultdict(Scaler)
        self._balances: dict[str, Balance] = defaultdict(Balance)
        self._homeless: set[str] = set()
        """Agents that no node takes."""
        self._wishes: tuple[Role, ...] = ()
        self._lives: dict[str, int] = {}
        """Stopped agents' last incarnations: another of the same name must not be taken for it."""
        self._task_rules: dict[str, tuple[str, ...]] = {}
        self._held_approvals: dict[str, Approval] = {}
        self._ended: dict[str, TaskState] = {}
        """The last tasks that ended, for those whose rows were being committed just then."""
        self._unattached: set[str] = set()
        """Agents of a former router that have not said yet what they have."""
        self.away: frozenset[str] = frozenset()
        """Agents that have not been heard for a while: they get nothing to do."""
        self.silent: dict[str, float] = {}
        """Nodes of which no agent is heard, with the time since when; also after those agents were given up."""
        self.run_of: dict[str, str] = {}
        """Agent → the run it has."""
        self.idle = IdleAgents()
        self._wanted_of: dict[str, dict[str, None]] = defaultdict(dict)
        """Role → its wanted agents."""
        self._on_node: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        """Node → role → how many agents it holds."""
        self._approvals_of: dict[str, set[str]] = defaultdict(set)
        """Task → its approvals that wait."""
        self._parked: set[str] = set()
        """Approvals that wait while their run does not."""
        self._delivered: dict[str, dict[str, Approval]] = defaultdict(dict)
        """Run that goes on → its decisions: they may not have reached it yet."""
        self.since = 0.0

    # The start.

    def restore(
        self,
        state: RouterState,
        now: float,
        *,
        draining: Sequence[AgentInfo] = (),
        decided: Sequence[Approval] = (),
        ended: Mapping[str, TaskState] | None = None,
    ) -> Effects:
        """Take over from the store. Every agent is expected to say what it has before it gets anything.

        Args:
            state: what is wanted and has not ended.
            now: seconds since the epoch.
            draining: agents that are not wanted any more, but had not stopped.
            decided: approvals that were decided lately.
            ended: the states of ended tasks that blocked ones wait for.
        """
        effects = Effects()
        self.epoch, self.since = state.epoch, now
        self.keys = dict(state.idempotency)
        self.role_states = {role.role: role for role in state.roles}
        self.paused = bool(state.settings.get(PAUSED_ALL))
        self.drained = dict(state.settings.get(DRAINED_NODES) or {})
        self.runs = {run.id: run for run in state.runs}
        self.run_of = {run.agent_id: run.id for run in state.runs}
        for task in state.tasks:
            self.tasks[task.id] = task
        for approval in state.approvals:
            self._keep_approval(approval)
            if approval.run_id not in self.runs:
                self._parked.add(approval.id)
        self._restore_agents([*state.agents, *draining], now)
        self._restore_decisions(decided)
        self._ended.update(ended or {})
        for task in state.tasks:
            if task.state is TaskState.QUEUED:
                self._enqueue(task)
            elif task.state is TaskState.SCHEDULED:
                heapq.heappush(self._due, (task.not_before or now, task.id))
            elif task.state is TaskState.BLOCKED and task.id not in self._approvals_of:
                self._await_others(task, effects, now)
        for run in state.runs:
            owner = self.tasks.get(run.task_id)
            if owner is None or owner.run_id != run.id or owner.state is not TaskState.RUNNING:
                self._end_run(run, RunState.LOST, effects, now)
        for task in state.tasks:
            if task.state is TaskState.RUNNING and task.run_id not in self.runs:
                # Its run row did not survive: as if it had been lost.
                self._requeue_lost(task, None, Reason.AGENT_LOST, effects, now, 0.5)
        return effects

    def _restore_agents(self, agents: Sequence[AgentInfo], now: float) -> None:
        for agent in agents:
            self._unattached.add(agent.id)
            self._keep(agent)
        for run in self.runs.values():
            if run.agent_id not in self.agents:
                # It drained, and its row is not known: it ends its run, then stops.
                self._unattached.add(run.agent_id)
                self._keep(
                    AgentInfo(
                        id=run.agent_id,
                        role=run.role,
                        state=AgentState.DRAINING,
                        wanted=False,
                        incarnation=run.incarnation,
                        node=run.node,
                        task_id=run.task_id,
                        run_id=run.id,
                        started_at=run.started_at,
                        updated_at=now,
                    )
                )

    def _restore_decisions(self, decided: Sequence[Approval]) -> None:
        for approval in sorted(decided, key=lambda approval: approval.decided_at or 0.0):
            task = self.tasks.get(approval.task_id)
            if task is None or approval.state not in (ApprovalState.ALLOWED, ApprovalState.DENIED):
                continue
            if approval.scope == "task" and approval.state is ApprovalState.ALLOWED:
                self._task_rules[task.id] = (*self._task_rules.get(task.id, ()), rule_for(approval))
            if approval.run_id in self.runs:
                self._delivered[approval.run_id][approval.id] = approval
            elif approval.run_id == task.run_id:
                self._held_approvals[task.id] = approval

    def unattached(self) -> list[AgentInfo]:
        """Return the agents of a former router that must be asked what they have."""
        return [self.agents[agent_id] for agent_id in sorted(self._unattached) if agent_id in self.agents]

    # Tasks.

    def plan_submit(self, specs: Sequence[TaskSpec], known: dict[str, Task], now: float) -> list[Task | str]:
        """Check tasks and return their rows; a known idempotency key gives the id of its task.

        Nothing is accepted yet: the caller commits the rows, then calls `accept`, or `forget_keys` if it could not.

        Raises:
            InvalidInput, UnknownRole, PromptTooLarge: nothing is kept.
            Busy: the queue is full.
        """
        everyone: Mapping[str, Task] = ChainMap(self.tasks, known)
        fresh = [spec for spec in specs if spec.idempotency_key is None or spec.idempotency_key not in self.keys]
        for spec in fresh:
            check_spec(spec, self.roles, everyone)
            if spec.agent is not None and self._agent(spec.agent).role != spec.role:
                role = self._agent(spec.agent).role
                raise InvalidInput(f"agent: {spec.agent} is a {role}; expected an agent of {spec.role}.", field="agent")
        waiting = len(self.tasks) + len(fresh)
        if fresh and waiting > self.config.queue_limit:
            raise Busy(
                f"Expected at most {self.config.queue_limit} tasks that wait, and these would be {waiting}. Try later.",
                retry_after_s=5.0,
                limit=self.config.queue_limit,
            )
        planned: list[Task | str] = []
        for spec in specs:
            if spec.idempotency_key is not None and spec.idempotency_key in self.keys:
                planned.append(self.keys[spec.idempotency_key])
                continue
            task = self._new_task(spec, everyone, now)
            if spec.idempotency_key is not None:
                self.keys[spec.idempotency_key] = task.id
            planned.append(task)
        return planned

    def _new_task(self, spec: TaskSpec, everyone: Mapping[str, Task], now: float) -> Task:
        fields = {name: getattr(spec, name) for name in TaskSpec.model_fields}
        role = self.roles[spec.role]
        session = None
        workspace = spec.workspace or role.workspace
        if spec.continue_from is not None:
            earlier = everyone[spec.continue_from]
            session, workspace = earlier.session_id, spec.workspace or earlier.workspace or role.workspace
        fields["workspace"] = workspace
        open_ = [other for other in spec.depends_on if not everyone[other].state.final]
        broken = [other for other in spec.depends_on if everyone[other].state.final and not _succeeded(everyone[other])]
        state, reason, why, queued_at = TaskState.QUEUED, None, "", now
        if broken:
            state, reason = TaskState.FAILED, Reason.DEPENDENCY_FAILED
            why = f"{broken[0]} is {everyone[broken[0]].state.value}. {RULES[reason].remedy}"
        elif open_:
            state, why = TaskState.BLOCKED, f"waits for {', '.join(open_[:3])}"
        elif spec.not_before is not None and spec.not_before > now:
            state, why = TaskState.SCHEDULED, "waits for its time"
        return Task(
            **fields,
            id=new_id("t"),
            state=state,
            reason=reason,
            why=why,
            session_id=session,
            created_at=now,
            queued_at=queued_at if state is TaskState.QUEUED else None,
            finished_at=now if state.final else None,
            updated_at=now,
        )

    def forget_keys(self, planned: Sequence[Task | str]) -> None:
        """Undo `plan_submit`: its rows could not be committed."""
        for task in planned:
            if isinstance(task, Task) and task.idempotency_key is not None:
                self.keys.pop(task.idempotency_key, None)

    def accept(self, tasks: Sequence[Task], now: float) -> Effects:
        """Take committed tasks into the queue."""
        effects = Effects()
        for task in tasks:
            if task.state.final:
                continue
            self.tasks[task.id] = task
            if task.state is TaskState.QUEUED:
                self._enqueue(task)
            elif task.state is TaskState.SCHEDULED:
                heapq.heappush(self._due, (task.not_before or now, task.id))
            else:
                self._await_others(task, effects, now)
        return effects

    def _await_others(self, task: Task, effects: Effects, now: float) -> None:
        """Block a task until others have ended; they may have done so while its row was committed."""
        broken = [other for other in task.depends_on if self._ended.get(other, _OK) is not _OK]
        if broken:
            why = f"{broken[0]} did not succeed. {RULES[Reason.DEPENDENCY_FAILED].remedy}"
            self._finish(task, TaskState.FAILED, Reason.DEPENDENCY_FAILED, why, effects, now, why=why)
        else:
            self._block(task, [other for other in task.depends_on if other in self.tasks])

    def cancel(self, task_ids: Sequence[str], detail: str, now: float) -> Effects:
        """Cancel tasks: those that wait at once, those that run when their agent has interrupted them."""
        effects = Effects()
        # A task is younger than what it waits for. The youngest goes first, so that it is cancelled as was asked, and
        # does not fail because what it waits for was cancelled a moment before.
        for task_id in sorted(set(task_ids), reverse=True):
            task = self.tasks.get(task_id)
            if task is None:
                continue
            if task.state is TaskState.RUNNING and task.run_id in self.runs:
                run = self.runs[task.run_id]
                self._cancelling[run.id] = (Reason.CANCELLED, detail)
                effects.actions.append(CancelRun(run.agent_id, run.id, Reason.CANCELLED, detail))
            else:
                self._finish(task, TaskState.CANCELLED, Reason.CANCELLED, detail, effects, now)
        return effects

    def retry(self, tasks: Sequence[Task], now: float) -> Effects:
        """Queue ended tasks again, with their retries renewed. Raises Conflict for one that cannot be."""
        effects = Effects()
        for task in tasks:
            if task.id in self.tasks or not task.state.final or task.state is TaskState.SUCCEEDED:
                state = self.tasks.get(task.id, task).state.value
                raise Conflict(
                    f"Task {task.id} is {state}; only failed, cancelled and dead tasks can be retried."
                    + (" Continue it with a new task instead." if state == "succeeded" else ""),
                    state=state,
                    task=task.id,
                )
        for task in {task.id: task for task in tasks}.values():
            self._ended.pop(task.id, None)
            fresh = self._move(
                task,
                TaskState.QUEUED,
                effects,
                now,
                reason=None,
                detail="",
                why="",
                retries_used=0,
                losses=0,
                queued_at=now,
                finished_at=None,
            )
            self._enqueue(fresh)
        return effects

    def prioritize(self, task_ids: Sequence[str], priority: int, now: float) -> Effects:
        """Change the priority of tasks that have not ended."""
        check_priority(priority)
        effects = Effects()
        for task_id in dict.fromkeys(task_ids):
            task = self.tasks[task_id].model_copy(update={"priority": priority, "updated_at": now})
            self.tasks[task_id] = effects.tasks[task_id] = task
            if task.state is TaskState.QUEUED:
                self._enqueue(task)
        return effects

    # Runs.

    def outcome(self, outcome: Outcome, now: float, chance: float) -> Effects:
        """An agent says how a run ended. One that is not current is refused, recorded and acknowledged."""
        effects = Effects()
        run = self.runs.get(outcome.run_id)
        task = self.tasks.get(outcome.task_id)
        if run is None or task is None or task.run_id != outcome.run_id or task.state is not TaskState.RUNNING:
            effects.refusals.append(
                Refusal(
                    at=now,
                    what="outcome",
                    run_id=outcome.run_id,
                    task_id=outcome.task_id,
                    agent_id=outcome.agent_id,
                    epoch=outcome.epoch,
                    detail=f"{outcome.status.value}: the run is not the current one of its task",
                )
            )
            effects.actions.append(Acknowledge(outcome.agent_id, outcome.run_id))
            self._free(outcome.agent_id, outcome.run_id, effects, now, failed=False)
            return effects
        spent = {
            "cost_usd": task.cost_usd + outcome.cost_usd,
            "usage": task.usage + outcome.usage,
            "turns": task.turns + outcome.turns,
        }
        delivered = self._delivered.get(run.id, {})
        self._end_run(run, outcome.status, effects, now, outcome)
        asked = self._cancelling.pop(run.id, None)
        self._withdraw_of(run.id, effects, now)
        session = outcome.session_id or task.session_id
        if outcome.status is RunState.SUCCEEDED and outcome.result is not None:
            effects.results[task.id] = outcome.result
            self._finish(task, TaskState.SUCCEEDED, None, "", effects, now, session_id=session, **spent)
        elif outcome.status is RunState.PARKED and asked is None:
            self._park(task, outcome, delivered, effects, now, spent, session)
        else:
            reason = outcome.reason or Reason.CLAUDE_ERROR
            if asked is not None:
                reason = Reason(asked[0])
            more = {"session_id": session, "detail": outcome.detail, **spent}
            self._after_failure(task, reason, outcome.retry_at, effects, now, chance, more)
        failed = outcome.status is RunState.FAILED
        self._free(outcome.agent_id, outcome.run_id, effects, now, failed=failed, cost=outcome.cost_usd)
        self._acks[outcome.agent_id] = outcome.run_id
        return effects

    def _after_failure(
        self,
        task: Task,
        reason: Reason,
        retry_at: float | None,
        effects: Effects,
        now: float,
        chance: float,
        more: dict[str, Any],
        *,
        said: bool = True,
    ) -> None:
        retries = task.limits.retries if task.limits.retries is not None else self._role(task).retries
        decision = retry_rules.decide(task, reason, retries, now, chance, retry_at, self.config.lease_s, said=said)
        more = {**more, "retries_used": decision.retries_used, "losses": decision.losses}
        if decision.state.final:
            detail = more.pop("detail", "")
            self._finish(task, decision.state, reason, detail, effects, now, why=decision.why, **more)
            return
        if RULES[reason].loss:
            self._moving.add(task.id)
        if decision.state is TaskState.QUEUED:
            fresh = self._move(
                task, TaskState.QUEUED, effects, now, reason=reason, why=decision.why, queued_at=now, **more
            )
            self._enqueue(fresh)
        else:
            at = decision.at or now
            self._move(task, TaskState.SCHEDULED, effects, now, reason=reason, why=decision.why, not_before=at, **more)
            heapq.heappush(self._due, (at, task.id))

    def _requeue_lost(
        self, task: Task, run: Run | None, reason: Reason, effects: Effects, now: float, chance: float
    ) -> None:
        if run is not None and (asked := self._cancelling.pop(run.id, None)) is not None:
            reason = Reason(asked[0])
        detail = f"agent {run.agent_id}" if run is not None else ""
        self._after_failure(task, reason, None, effects, now, chance, {"detail": detail}, said=False)

    def _park(
        self,
        task: Task,
        outcome: Outcome,
        delivered: Mapping[str, Approval],
        effects: Effects,
        now: float,
        spent: dict[str, Any],
        session: str | None,
    ) -> None:
        why = "waits for a person's decision; its process was ended and resumes then"
        self._move(task, TaskState.BLOCKED, effects, now, why=why, session_id=session, **spent)
        waiting = {id for id in self._approvals_of.get(task.id, ()) if self.approvals[id].run_id == outcome.run_id}
        if outcome.approval_id in waiting:
            self._parked |= waiting
            return
        # It was decided while the run was being parked.
        if (decided := delivered.get(outcome.approval_id or "")) is not None:
            self._held_approvals[task.id] = decided
        self._withdraw_all(waiting, effects, now)
        self._wake(self.tasks[task.id], effects, now, "was decided")

    def _end_run(self, run: Run, state: RunState, effects: Effects, now: float, outcome: Outcome | None = None) -> None:
        step_run(run.id, run.state, state)
        update: dict[str, Any] = {"state": state, "finished_at": now}
        if outcome is not None:
            update |= {
                "reason": outcome.reason,
                "detail": outcome.detail,
                "session_id": outcome.session_id or run.session_id,
                "cost_usd": outcome.cost_usd,
                "usage": outcome.usage,
                "turns": outcome.turns,
            }
        effects.runs[run.id] = run.model_copy(update=update)
        reason = str(update.get("reason") or "")
        effects.transitions.append(
            Transition(at=now, what="run", id=run.id, old=run.state.value, new=state.value, reason=reason)
        )
        self.runs.pop(run.id, None)
        self._delivered.pop(run.id, None)
        if self.run_of.get(run.agent_id) == run.id:
            del self.run_of[run.agent_id]

    # Agents.

    def agent_up(self, report: AgentReport, now: float, asked: str | None = None) -> Effects:
        """An agent says that it is there, and what it has.

        Args:
            report: what it says.
            now: seconds since the epoch.
            asked: the run that the agent had for the router when it was asked: one that was given to it since then
                is missing in the report for no reason. None asks for whatever it has now.
        """
        effects = Effects()
        agent = self.agents.get(report.agent_id)
        if agent is None or report.incarnation != agent.incarnation:
            return effects
        self._launching.discard(agent.id)
        self._unattached.discard(agent.id)
        agent = agent.model_copy(update={"node": report.node, "pid": report.pid})
        self._keep(agent)
        has = {outcome.run_id for outcome in report.outcomes} | ({report.run_id} if report.run_id else set())
        run_id = self.run_of.get(agent.id)
        if run_id is not None and run_id not in has and asked in (None, run_id):
            # It was dispatched, but never arrived, or an earlier life of the agent had it.
            self._lose_run(self.runs[run_id], Reason.AGENT_LOST, effects, now, 0.5)
            agent = self.agents[agent.id]
        current = self.run_of.get(agent.id)
        if report.run_id is not None and report.run_id != current:
            effects.actions.append(CancelRun(agent.id, report.run_id, Reason.CANCELLED, "The run is not current."))
        for decided in self._delivered.get(report.run_id or "", {}).values():
            effects.actions.append(DeliverDecision(agent.id, decided))
        if not agent.wanted or agent.state is AgentState.DRAINING:
            if current is None and not report.outcomes:
                return self._stop_now(agent, effects)
            self._keep(agent, effects)
            return effects
        holds = report.run_id or current or (report.outcomes[0].run_id if report.outcomes else None)
        self._set_agent(
            agent,
            AgentState.BUSY if holds else AgentState.IDLE,
            effects,
            now,
            run_id=holds,
            task_id=self.runs[holds].task_id if holds in self.runs else None,
            why="",
        )
        return effects

    def agent_lost(
        self, agent_id: str, incarnation: int, now: float, chance: float, *, node_lost: bool = False
    ) -> Effects:
        """An agent's actor is gone: its run is lost, and it is started again if it is wanted."""
        effects = Effects()
        agent = self.agents.get(agent_id)
        if agent is None or agent.incarnation != incarnation:
            return effects
        reason = Reason.NODE_LOST if node_lost else Reason.AGENT_LOST
        if agent_id in self._stopping:
            reason = Reason.AGENT_STOPPED
        self._launching.discard(agent_id)
        self._unattached.discard(agent_id)
        self._acks.pop(agent_id, None)
        self._lose_run_of(agent_id, reason, effects, now, chance)
        agent = self.agents[agent_id]
        if not agent.wanted or agent.state is AgentState.DRAINING:
            self._gone(agent, effects, now)
            return effects
        failures = 0 if now - agent.started_at > STEADY_S else self._failures[agent_id]
        self._failures[agent_id] = failures + 1
        self._launch_later(agent_id, now + LAUNCH_BACKOFF_S[min(failures, len(LAUNCH_BACKOFF_S) - 1)])
        self._set_agent(
            agent,
            AgentState.STARTING,
            effects,
            now,
            incarnation=agent.incarnation + 1,
            restarts=agent.restarts + 1,
            node=None,
            pid=None,
            run_id=None,
            task_id=None,
            why="its node went away" if node_lost else "its process ended; it is started again",
        )
        return effects

    def agent_away(self, agent_id: str, now: float, chance: float) -> Effects:
        """An agent is silent for longer than its lease: its run has ended by itself, and its task goes on elsewhere.

        The agent may be heard again, on a node that was cut off; what it brings of that run is refused then.
        """
        effects = Effects()
        if self._lose_run_of(agent_id, Reason.NODE_LOST, effects, now, chance) and agent_id in self.agents:
            why = "it cannot be reached; its task goes on elsewhere"
            self._keep(self.agents[agent_id].model_copy(update={"why": why, "updated_at": now}), effects)
        return effects

    def launch_failed(self, agent_id: str, incarnation: int, why: str, now: float) -> Effects:
        """An agent's actor could not be started; it is tried again later."""
        effects = Effects()
        agent = self.agents.get(agent_id)
        if agent is None or agent.incarnation != incarnation:
            return effects
        self._launching.discard(agent_id)
        if not agent.wanted:
            self._gone(agent, effects, now)
            return effects
        failures = self._failures[agent_id] = self._failures[agent_id] + 1
        self._launch_later(agent_id, now + LAUNCH_BACKOFF_S[min(failures, len(LAUNCH_BACKOFF_S) - 1)])
        update = {"why": why[:500], "node": None, "incarnation": agent.incarnation + 1, "updated_at": now}
        self._keep(agent.model_copy(update=update), effects)
        return effects

    def spawn(self, role: str, count: int, now: float) -> tuple[list[str], Effects]:
        """Add agents to a role; returns their ids."""
        self._known_role(role)
        if not 1 <= count <= 1000:
            raise InvalidInput(f"count: expected 1 to 1000, got {count}.", field="count")
        before = set(self.agents)
        effects = self.scale(role, len(self._wanted(role)) + count, now)
        effects.merge(self._reconcile(now))
        return sorted(set(self.agents) - before, key=_number), effects

    def scale(self, role: str, agents: int, now: float) -> Effects:
        """Say how many agents a role has."""
        self._known_role(role)
        if not 0 <= agents <= 1000:
            raise InvalidInput(f"agents: expected 0 to 1000, got {agents}.", field="agents")
        effects = Effects()
        state = self._role_state(role).model_copy(update={"agents": agents})
        self.role_states[role] = effects.roles[role] = state
        return effects

    def stop_agent(self, agent_id: str, drain: bool, now: float) -> Effects:
        """Stop an agent: after its run, or now (its task goes on elsewhere). The role has one less from then on."""
        effects = Effects()
        agent = self._agent(agent_id)
        if agent.wanted:
            effects.merge(self.scale(agent.role, max(len(self._wanted(agent.role)) - 1, 0), now))
        self._retire(agent, drain, effects, now)
        return effects

    def _retire(self, agent: AgentInfo, drain: bool, effects: Effects, now: float, why: str = "") -> None:
        agent = self.agents[agent.id]
        busy = agent.id in self.run_of
        if agent.state is not AgentState.DRAINING:
            why = why or ("ends its run, then stops" if drain and busy else "is being stopped")
            agent = self._set_agent(agent, AgentState.DRAINING, effects, now, wanted=False, why=why)
        if not (drain and busy):
            self._stop_now(agent, effects)

    def _stop_now(self, agent: AgentInfo, effects: Effects) -> Effects:
        if agent.id not in self._stopping:
            self._stopping.add(agent.id)
            effects.actions.append(StopAgent(agent.id, agent.incarnation))
        return effects

    def agent_stopped(self, agent_id: str, incarnation: int, now: float, chance: float) -> Effects:
        """A stop that was ordered has been done."""
        effects = Effects()
        agent = self.agents.get(agent_id)
        if agent is None or agent.incarnation != incarnation:
            return effects
        self._lose_run_of(agent_id, Reason.AGENT_STOPPED, effects, now, chance)
        self._gone(self.agents[agent_id], effects, now)
        return effects

    def _gone(self, agent: AgentInfo, effects: Effects, now: float) -> None:
        for task_id in self._pinned.pop(agent.id, TaskQueue()).ids():
            task = self.tasks.get(task_id)
            if task is not None:
                # Only this agent might have run it; any agent of the role is better than none for ever.
                task = self.tasks[task_id] = effects.tasks[task_id] = task.model_copy(update={"agent": None})
                self._enqueue(task)
        agent = self._set_agent(
            agent, AgentState.STOPPED, effects, now, wanted=False, run_id=None, task_id=None, why=""
        )
        del self.agents[agent.id]
        if agent.node:
            self._on_node[agent.node][agent.role] -= 1
        self._lives[agent.id] = agent.incarnation
        self.activities.pop(agent.id, None)
        self._stopping.discard(agent.id)
        self._launching.discard(agent.id)
        self._unattached.discard(agent.id)
        self._launch_at.pop(agent.id, None)
        self._homeless.discard(agent.id)
        self._acks.pop(agent.id, None)
        self._failures.pop(agent.id, None)

    def _lose_run_of(self, agent_id: str, reason: Reason, effects: Effects, now: float, chance: float) -> bool:
        run_id = self.run_of.get(agent_id)
        if run_id is None:
            return False
        self._lose_run(self.runs[run_id], reason, effects, now, chance)
        return True

    def _lose_run(self, run: Run, reason: Reason, effects: Effects, now: float, chance: float) -> None:
        # The agent died with what it knew; what it last beat is the best that is known of the cost.
        seen = self.activities.get(run.agent_id)
        known = seen if seen is not None and seen.run_id == run.id else None
        outcome = Outcome(
            run_id=run.id,
            task_id=run.task_id,
            agent_id=run.agent_id,
            epoch=run.epoch,
            status=RunState.LOST,
            reason=reason,
            detail=RULES[reason].sentence,
            session_id=run.session_id,
            cost_usd=known.cost_usd if known else 0.0,
            usage=known.usage if known else run.usage,
            turns=known.turns if known else 0,
            finished_at=now,
        )
        self._end_run(run, RunState.LOST, effects, now, outcome)
        self._withdraw_of(run.id, effects, now)
        task = self.tasks.get(run.task_id)
        if task is not None and task.run_id == run.id and task.state is TaskState.RUNNING:
            spent = {
                "cost_usd": task.cost_usd + outcome.cost_usd,
                "usage": task.usage + outcome.usage,
                "turns": task.turns + outcome.turns,
            }
            task = self.tasks[task.id] = task.model_copy(update=spent)
            self._requeue_lost(task, run, reason, effects, now, chance)

    def _free(
        self, agent_id: str, run_id: str, effects: Effects, now: float, *, failed: bool, cost: float = 0.0
    ) -> None:
        agent = self.agents.get(agent_id)
        if agent is None or agent.run_id != run_id:
            return
        update = {
            "runs": agent.runs + 1,
            "failures": agent.failures + failed,
            "cost_usd": agent.cost_usd + cost,
            "run_id": None,
            "task_id": None,
        }
        if agent.state is AgentState.BUSY:
            self._set_agent(agent, AgentState.IDLE, effects, now, **update)
        else:
            agent = self._keep(agent.model_copy(update=update), effects)
            if agent.state is AgentState.DRAINING:
                self._stop_now(agent, effects)

    # Approvals.

    def ask(self, approval: Approval, now: float) -> Effects:
        """A tool call waits for a person."""
        effects = Effects()
        if approval.run_id not in self.runs:
            raise Conflict(f"Run {approval.run_id} is not current; nobody will be asked.", state="ended")
        if (decided := self._delivered.get(approval.run_id, {}).get(approval.id)) is not None:
            # It asks again: it has not heard that the question is answered.
            effects.actions.append(DeliverDecision(approval.agent_id, decided))
            return effects
        effects.approvals[approval.id] = approval
        self._keep_approval(approval)
        return effects

    def _keep_approval(self, approval: Approval) -> None:
        self.approvals[approval.id] = approval
        self._approvals_of[approval.task_id].add(approval.id)

    def _drop_approval(self, approval_id: str) -> Approval | None:
        approval = self.approvals.pop(approval_id, None)
        if approval is not None:
            self._parked.discard(approval_id)
            self._approvals_of[approval.task_id].discard(approval_id)
            if not self._approvals_of[approval.task_id]:
                del self._approvals_of[approval.task_id]
        return approval

    def decide(
        self,
        approval_id: str,
        allow: bool,
        scope: str,
        message: str,
        changed_input: dict[str, Any] | None,
        by: str,
        now: float,
    ) -> tuple[Approval, Effects]:
        """A person decides. Raises NotFound, Conflict (decided already), InvalidInput."""
        approval = self.approvals.get(approval_id)
        if approval is None:
            raise NotFound(f"No approval {approval_id} waits.", what="approval", id=approval_id)
        if approval.state is not ApprovalState.WAITING:
            raise Conflict(f"Approval {approval_id} is {approval.state.value} already.", state=approval.state.value)
        if scope not in ("once", "task", "role"):
            raise InvalidInput(f"scope: expected once, task or role; got {scope!r}.", field="scope")
        effects = Effects()
        decided = approval.model_copy(
            update={
                "state": ApprovalState.ALLOWED if allow else ApprovalState.DENIED,
                "scope": scope,
                "message": message,
                "changed_input": changed_input,
                "decided_by": by,
                "decided_at": now,
            }
        )
        effects.approvals[approval_id] = decided
        self._drop_approval(approval_id)
        if allow and scope == "role":
            state = self._role_state(approval.role)
            rule = rule_for(approval)
            if rule not in state.rules:
                state = state.model_copy(update={"rules": (*state.rules, rule)})
                self.role_states[approval.role] = effects.roles[approval.role] = state
        if allow and scope == "task":
            self._task_rules[approval.task_id] = (*self._task_rules.get(approval.task_id, ()), rule_for(approval))
        if approval.run_id in self.runs:
            self._delivered[approval.run_id][approval_id] = decided
            effects.actions.append(DeliverDecision(approval.agent_id, decided))
        else:
            self._held_approvals[approval.task_id] = decided
            # The conversation goes on, and makes its other calls again.
            self._withdraw_all(self._approvals_of.get(approval.task_id, ()), effects, now)
            if (task := self.tasks.get(approval.task_id)) is not None and task.state is TaskState.BLOCKED:
                self._wake(task, effects, now, "was decided")
        return decided, effects

    def withdraw(self, approval_id: str, now: float) -> Effects:
        """An agent no longer waits for a decision: it took the role's default."""
        effects = Effects()
        approval = self._drop_approval(approval_id)
        if approval is not None:
            state = ApprovalState.EXPIRED if now >= approval.expires_at - 1.0 else ApprovalState.WITHDRAWN
            effects.approvals[approval_id] = approval.model_copy(update={"state": state, "decided_at": now})
        return effects

    def _expire_approvals(self, effects: Effects, now: float) -> None:
        """Decide for nobody what parked tasks have waited for in vain; an agent that holds its call decides itself."""
        for approval_id in [id for id in sorted(self._parked) if self.approvals[id].expires_at <= now]:
            if (approval := self.approvals.get(approval_id)) is None:
                continue
            allow = self._role_of(approval.role).approval_default == "allow"
            words = "" if allow else "Nobody answered in time, so the call is not made."
            effects.merge(self.decide(approval_id, allow, "once", words, None, "timeout", now)[1])

    def _withdraw_of(self, run_id: str, effects: Effects, now: float) -> None:
        run = effects.runs.get(run_id)
        if run is None or run.state is RunState.PARKED:
            return
        mine = [id for id in self._approvals_of.get(run.task_id, ()) if self.approvals[id].run_id == run_id]
        self._withdraw_all(mine, effects, now)

    def _withdraw_all(self, approval_ids: Iterable[str], effects: Effects, now: float) -> None:
        for approval_id in sorted(approval_ids):
            effects.merge(self.withdraw(approval_id, now))

    # The fleet.

    def pause(self, role: str | None, paused: bool) -> Effects:
        """Let a role's queue, or the whole fleet's, wait or go on."""
        effects = Effects()
        if role is None:
            self.paused = paused
            effects.settings[PAUSED_ALL] = paused
        else:
            self._known_role(role)
            state = self._role_state(role).model_copy(update={"paused": paused})
            self.role_states[role] = effects.roles[role] = state
        return effects

    def set_nodes(self, nodes: Sequence[NodeInfo], now: float) -> Effects:
        """Take the nodes as Ray tells them; one that we drain is known by its name and stays drained if it returns."""
        effects = Effects()
        self.nodes = {
            node.id: node.model_copy(update={"draining": node.draining or node.name in self.drained})
            for node in nodes
            if node.alive
        }
        self._drained_by_ray = {node.id for node in nodes if node.draining}
        gone = [id for id, since in self.silent.items() if id not in self.nodes or now - since > SILENT_KEPT_S]
        for node_id in gone:
            del self.silent[node_id]
        for node in [node for node in self.nodes.values() if node.draining and self._on_node.get(node.id)]:
            ours, rays = self.drained.get(node.name), node.drain_deadline
            ends = [at for at in (ours, None if rays is None else rays - MOVE_BEFORE_S) if at is not None]
            deadline = min(ends, default=None)
            for agent in [agent for agent in self.agents.values() if agent.node == node.id]:
                self._leave_node(agent, effects, now, at_once=deadline is not None and now >= deadline)
        self._balance(effects, now)
        return effects

    def _balance(self, effects: Effects, now: float) -> None:
        """Let an agent leave a crowded node when another has room, so that nodes which join later get their share.

        It drains as for a drained node, and its role gets another where the fewest are. One at a time, and only while
        all agents of the role are up. A role that scales with its queue moves nobody while nothing is queued: spreading
        what is idle would keep nodes that Ray could give back.
        """
        for role in self.roles.values():
            agents = [self.agents[id] for id in self._wanted_of[role.name] if id not in self.away]
            queued = self.queue_length(role.name)
            held = {node_id: counts.get(role.name, 0) for node_id, counts in self._on_node.items()}
            settled = len(agents) == self._target(role) == sum(held.values())
            settled = settled and all(agent.state in PRESENT for agent in agents)
            if not role.spread or not settled or (role.max_agents is not None and not queued):
                self._balances.pop(role.name, None)
                continue
            crowd = self._balances[role.name].look(role, held, self.loads().values(), self.config.node_floor_mb, now)
            if crowd is None:
                continue
            # One that is idle; a busy one ends its run first, which is worth it only when others wait.
            free = [agent for agent in agents if agent.node == crowd.node and agent.id not in self._pinned]
            idle = [agent for agent in free if agent.state is AgentState.IDLE]
            for agent in sorted(idle or (free if queued else []), key=lambda agent: -_number(agent.id))[:1]:
                self._retire(agent, True, effects, now, crowd.why)

    def _leave_node(self, agent: AgentInfo, effects: Effects, now: float, at_once: bool) -> None:
        """Let an agent go from a node that drains; its role gets another elsewhere."""
        if agent.state is AgentState.DRAINING and not at_once:
            return
        self._retire(agent, not at_once, effects, now)

    def drain_node(self, name: str, deadline: float | None, undo: bool, now: float) -> Effects:
        """Let a node's runs end and give it none, or move them at the deadline; `undo` takes it back."""
        if all(name not in (node.name, node.id) for node in self.nodes.values()):
            known = ", ".join(sorted(node.name for node in self.nodes.values()))
            raise NotFound(f"No node {name}; there are: {known}.", what="node", id=name)
        name = next(node.name for node in self.nodes.values() if name in (node.name, node.id))
        if undo:
            self.drained.pop(name, None)
        else:
            self.drained[name] = deadline
        effects = Effects(settings={DRAINED_NODES: dict(self.drained)})
        by_ray = self._drained_by_ray
        nodes = [node.model_copy(update={"draining": node.id in by_ray}) for node in self.nodes.values()]
        effects.merge(self.set_nodes(nodes, now))
        return effects

    def set_activities(self, activities: Sequence[Activity]) -> None:
        """Take what the agents do now; it moves no state."""
        self.activities = {activity.agent_id: activity for activity in activities if activity.agent_id in self.agents}
        self.idle.set_free({seen.node: seen.node_free_mb for seen in activities if seen.node and seen.node_free_mb})

    def set_away(self, away: Iterable[str], now: float) -> None:
        """Take who has not been heard for a while; a node of which nobody is heard is silent."""
        changed, self.away = self.away ^ (now_away := frozenset(away)), now_away
        for agent_id in changed & self.agents.keys():
            self._keep(self.agents[agent_id])
        heard: dict[str, bool] = {}
        for agent in self.agents.values():
            if agent.node and agent.state in PRESENT:
                heard[agent.node] = heard.get(agent.node, False) or agent.id not in self.away
        for node_id, anybody in heard.items():
            node = self.nodes.get(node_id)
            if anybody:
                self.silent.pop(node_id, None)
            elif node is not None and not node.head:
                # The router lives on the head: that it is not cut off is sure.
                self.silent.setdefault(node_id, now)

    def deserted(self) -> list[str]:
        """Return the silent nodes from which no agent can be heard any more: another way must show that they answer."""
        held = {agent.node for agent in self.agents.values() if agent.state in PRESENT}
        return [node_id for node_id in self.silent if node_id not in held]

    def node_answers(self, node_id: str) -> None:
        """A silent node was reached."""
        self.silent.pop(node_id, None)

    # The loop.

    def schedule(self, now: float) -> Effects:
        """Do what is due: tasks whose time has come, agents to start or give back, runs to dispatch."""
        effects = Effects()
        self._wake_due(effects, now)
        self._expire_approvals(effects, now)
        self._unblock(effects, now)
        self._scale(effects, now)
        effects.merge(self._reconcile(now))
        self._dispatch(effects, now)
        return effects

    def next_due(self, now: float) -> float | None:
        """Return when `schedule` has something to do by itself, None when only a message can bring it."""
        times = [at for at, _ in self._due[:1]]
        self._drop_old_launches()
        if self._launch_due and self.nodes and len(self._launching) < MAX_LAUNCHING:
            times.append(self._launch_due[0][0])
        times += [self.approvals[approval_id].expires_at for approval_id in self._parked]
        times += [at for at in self.drained.values() if at is not None and at > now]
        if any(role.max_agents is not None for role in self.roles.values()):
            times.append(now + 1.0)
        return min(times) if times else None

    def _wake_due(self, effects: Effects, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            at, task_id = heapq.heappop(self._due)
            task = self.tasks.get(task_id)
            if task is not None and task.state is TaskState.SCHEDULED and (task.not_before or 0) <= at:
                self._wake(task, effects, now, "")

    def _wake(self, task: Task, effects: Effects, now: float, why: str) -> None:
        # What was cut off or parked had its turn already: it keeps its place.
        keeps = task.state is TaskState.BLOCKED or (task.reason is not None and RULES[task.reason].loss)
        queued_at = task.queued_at if keeps and task.queued_at is not None else now
        self._enqueue(self._move(task, TaskState.QUEUED, effects, now, why=why, queued_at=queued_at))

    def _block(self, task: Task, others: Sequence[str]) -> None:
        self._missing[task.id] = set(others)
        for other in others:
            self._waiting_for[other].add(task.id)
        if not others:
            self._ready.append(task.id)

    def _unblock(self, effects: Effects, now: float) -> None:
        ready, self._ready = self._ready, []
        for task_id in ready:
            self._missing.pop(task_id, None)
            task = self.tasks.get(task_id)
            if task is None or task.state is not TaskState.BLOCKED:
                continue
            if task.not_before is not None and task.not_before > now:
                self._move(task, TaskState.SCHEDULED, effects, now, why="waits for its time")
                heapq.heappush(self._due, (task.not_before, task_id))
            else:
                self._wake(task, effects, now, "")

    def _scale(self, effects: Effects, now: float) -> None:
        for role in self.roles.values():
            if role.min_agents is None or role.max_agents is None:
                continue
            queue = self._queues[role.name]
            oldest = self.waits_since(role.name)
            demand = Demand(
                queued=len(queue),
                oldest_wait_s=now - oldest if oldest is not None else 0.0,
                agents=self._target(role),
                idle=self.idle.count(role.name),
            )
            want = self._scalers[role.name].want(role, demand, now)
            if want != self._role_state(role.name).agents:
                effects.merge(self.scale(role.name, want, now))

    def _target(self, role: Role) -> int:
        asked = self._role_state(role.name).agents
        if asked is None:
            return (
                role.agents if role.max_agents is None else max(role.min_agents or 0, min(role.agents, role.max_agents))
            )
        return asked

    def _reconcile(self, now: float) -> Effects:
        """Make the agents what is wanted: new ones, surplus ones, those to start."""
        effects = Effects()
        for role in self.roles.values():
            missing = self._target(role) - len(self._wanted_of[role.name])
            for _ in range(missing):
                self._add_agent(role, effects, now)
            if missing < 0:
                wanted = self._wanted(role.name)
                surplus = sorted(wanted, key=lambda agent: (agent.state is AgentState.BUSY, -_number(agent.id)))
                for agent in surplus[:-missing]:
                    self._retire(agent, True, effects, now)
        for name in [name for name, ids in self._wanted_of.items() if ids and name not in self.roles]:
            for agent in self._wanted(name):
                self._retire(agent, True, effects, now)
        self._launch(effects, now)
        return effects

    def _add_agent(self, role: Role, effects: Effects, now: float) -> None:
        number = 1
        while f"{role.name}-{number}" in self.agents:
            number += 1
        agent_id = f"{role.name}-{number}"
        agent = AgentInfo(
            id=agent_id,
            role=role.name,
            state=AgentState.STARTING,
            incarnation=self._lives.get(agent_id, 0) + 1,
            started_at=now,
            updated_at=now,
        )
        self._keep(agent, effects)
        self._launch_later(agent_id, now)
        effects.transitions.append(Transition(at=now, what="agent", id=agent.id, old=None, new=agent.state.value))

    def _launch_later(self, agent_id: str, at: float) -> None:
        self._launch_at[agent_id] = at
        self._launch_number += 1
        heapq.heappush(self._launch_due, (at, self._launch_number, agent_id))

    def _drop_old_launches(self) -> None:
        while self._launch_due:
            at, _, agent_id = self._launch_due[0]
            agent = self.agents.get(agent_id)
            starts = agent is not None and agent.state is AgentState.STARTING and agent.wanted
            if starts and agent_id not in self._launching and self._launch_at.get(agent_id) == at:
                return
            heapq.heappop(self._launch_due)

    def _launch(self, effects: Effects, now: float) -> None:
        """Start the agents that are due, some at once; those that no node takes become a wish for nodes."""
        loads: dict[str, NodeLoad] | None = None
        refused: dict[str, Placement] = {}
        while self.nodes and len(self._launching) < MAX_LAUNCHING:
            self._drop_old_launches()
            if not self._launch_due or self._launch_due[0][0] > now:
                break
            agent = self.agents[heapq.heappop(self._launch_due)[2]]
            role = self.roles[agent.role]
            loads = self.loads() if loads is None else loads
            where = refused.get(role.name) or place(role, loads.values(), self.config.node_floor_mb)
            if where.node is None:
                refused[role.name] = where
                self._homeless.add(agent.id)
                if agent.why != where.why:
                    self._keep(agent.model_copy(update={"why": where.why, "updated_at": now}), effects)
                self._launch_later(agent.id, now + 1.0)
                continue
            self._launch_at.pop(agent.id, None)
            self._homeless.discard(agent.id)
            self._launching.add(agent.id)
            loads[where.node].take(role)
            agent = agent.model_copy(
                update={"node": where.node, "why": where.why, "updated_at": now, "started_at": now}
            )
            self._keep(agent, effects)
            effects.actions.append(LaunchAgent(agent, role, where.node))
        if self._homeless or self._wishes:
            self._request_nodes(effects)

    def _request_nodes(self, effects: Effects) -> None:
        """Tell Ray's autoscaler what all agents need together: it compares a request with the whole cluster's size."""
        self._homeless = {id for id in self._homeless if self.agents[id].wanted and self.agents[id].node is None}
        counts = {self.agents[id].role: 0 for id in self._homeless}
        for id in self._homeless:
            counts[self.agents[id].role] += 1
        for node_id in self.nodes:
            for name, count in self._on_node.get(node_id, {}).items():
                counts[name] = counts.get(name, 0) + count
        roles = [self.roles[name] for name in sorted(counts) if name in self.roles for _ in range(counts[name])]
        wishes = tuple(roles) if self._homeless else ()
        if wishes != self._wishes:
            self._wishes = wishes
            bundles = [{"CPU": r.cpus, "memory": r.memory_mb * 1024.0 * 1024.0, **r.resources} for r in wishes]
            effects.actions.append(RequestNodes(tuple(bundles), tuple(dict(r.labels) for r in wishes)))

    def loads(self) -> dict[str, NodeLoad]:
        """Return each node with what our agents hold of it."""
        loads = {node.id: NodeLoad(node, silent=node.id in self.silent) for node in self.nodes.values()}
        for node_id, load in loads.items():
            for name, count in self._on_node.get(node_id, {}).items():
                if count and (role := self.roles.get(name)) is not None:
                    load.take(role, count)
        return loads

    def _dispatch(self, effects: Effects, now: float) -> None:
        if self.paused:
            return
        for agent_id in [agent_id for agent_id in self._pinned if agent_id in self.idle]:
            # What only this agent may do competes with the role's queue by the same key.
            agent = self.agents[agent_id]
            own, common = self._pinned[agent_id].head(), self._queues[agent.role].head()
            if own is None:
                del self._pinned[agent_id]
            elif self._gives(agent.role) and (common is None or own < common):
                self._begin(self.tasks[own[1]], agent, "only this agent may run it", effects, now)
        for name, queue in self._queues.items():
            if not self._gives(name):
                continue
            while (head := queue.head()) is not None and (chosen := self.idle.best(name)) is not None:
                agent = self.agents[chosen]
                self._begin(self.tasks[head[1]], agent, self._why_chosen(agent), effects, now)

    def _gives(self, role: str) -> bool:
        return role in self.roles and not self._role_state(role).paused

    def _why_chosen(self, agent: AgentInfo) -> str:
        node = self.nodes.get(agent.node or "")
        where = node.name if node is not None else (agent.node or "its node")[:8]
        return f"idle on {where} ({self.idle.busy.get(agent.node or '', 0)} busy there), {agent.runs} runs before"

    def _draining(self, agent: AgentInfo) -> bool:
        node = self.nodes.get(agent.node or "")
        return node is not None and node.draining

    def _begin(self, task: Task, agent: AgentInfo, why: str, effects: Effects, now: float) -> None:
        role = self.roles[task.role]
        moved = task.id in self._moving or task.losses > 0
        self._moving.discard(task.id)
        run = Run(
            id=new_id("r"),
            task_id=task.id,
            number=task.number_of_runs + 1,
            role=task.role,
            agent_id=agent.id,
            incarnation=agent.incarnation,
            node=agent.node,
            epoch=self.epoch,
            session_id=task.session_id,
            resumed_from=task.run_id if task.session_id else None,
            why=why,
            started_at=now,
        )
        self.runs[run.id] = effects.runs[run.id] = run
        self.run_of[agent.id] = run.id
        effects.transitions.append(Transition(at=now, what="run", id=run.id, old=None, new=run.state.value, why=why))
        resume = task.session_id is not None or task.number_of_runs > 0
        task = self._move(
            task,
            TaskState.RUNNING,
            effects,
            now,
            run_id=run.id,
            number_of_runs=run.number,
            agent_id=agent.id,
            node=agent.node,
            why=why,
            reason=None,
            started_at=task.started_at or now,
        )
        self._set_agent(agent, AgentState.BUSY, effects, now, run_id=run.id, task_id=task.id, why="")
        decided = self._held_approvals.pop(task.id, None)
        message = decision_message(decided) if decided is not None else None
        rules = self._role_state(task.role).rules + self._task_rules.get(task.id, ())
        if decided is not None and decided.state is ApprovalState.ALLOWED:
            rules = (*rules, rule_for(decided))
        order = RunOrder(
            epoch=self.epoch,
            run=run,
            task=task,
            role=role,
            resume=resume,
            moved=moved and run.number > 1,
            message=message,
            rules=rules,
        )
        effects.actions.append(Dispatch(agent.id, order, self._acks.pop(agent.id, None)))

    # Small parts.

    def _move(self, task: Task, state: TaskState, effects: Effects, now: float, **changes: Any) -> Task:
        step_task(task.id, task.state, state)
        effects.transitions.append(
            Transition(
                at=now,
                what="task",
                id=task.id,
                old=task.state.value,
                new=state.value,
                reason=str(changes.get("reason") or ""),
                why=str(changes.get("why") or ""),
            )
        )
        if task.state is TaskState.QUEUED:
            self._queues[task.role].remove(task.id)
            if task.agent is not None and task.agent in self._pinned:
                self._pinned[task.agent].remove(task.id)
        fresh = task.model_copy(update={**changes, "state": state, "updated_at": now})
        effects.tasks[task.id] = fresh
        if state.final:
            self.tasks.pop(task.id, None)
        else:
            self.tasks[task.id] = fresh
        return fresh

    def _finish(
        self,
        task: Task,
        state: TaskState,
        reason: Reason | None,
        detail: str,
        effects: Effects,
        now: float,
        **changes: Any,
    ) -> None:
        """End a task, and what follows for those that wait for it, however long the chain is."""
        self._end_task(task, state, reason, detail, effects, now, **changes)
        ended = [(task.id, state)]
        while ended:
            task_id, its_state = ended.pop()
            for waiting_id in sorted(self._waiting_for.pop(task_id, ())):
                waiting = self.tasks.get(waiting_id)
                if waiting is None or waiting.state is not TaskState.BLOCKED:
                    continue
                if its_state is TaskState.SUCCEEDED:
                    self._one_less(waiting, task_id, effects)
                    continue
                why = f"{task_id} is {its_state.value}. {RULES[Reason.DEPENDENCY_FAILED].remedy}"
                self._end_task(waiting, TaskState.FAILED, Reason.DEPENDENCY_FAILED, why, effects, now, why=why)
                ended.append((waiting_id, TaskState.FAILED))

    def _one_less(self, waiting: Task, task_id: str, effects: Effects) -> None:
        left = self._missing.get(waiting.id)
        if left is None:
            return
        left.discard(task_id)
        if not left:
            self._ready.append(waiting.id)
            return
        why = f"waits for {', '.join(sorted(left)[:3])}"
        self.tasks[waiting.id] = effects.tasks[waiting.id] = waiting.model_copy(update={"why": why})

    def _end_task(
        self,
        task: Task,
        state: TaskState,
        reason: Reason | None,
        detail: str,
        effects: Effects,
        now: float,
        **changes: Any,
    ) -> None:
        changes = {"why": "", **changes, "reason": reason, "detail": detail, "finished_at": now}
        self._move(task, state, effects, now, **changes)
        self._ended[task.id] = state
        if len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        self._moving.discard(task.id)
        self._task_rules.pop(task.id, None)
        self._held_approvals.pop(task.id, None)
        self._missing.pop(task.id, None)
        self._withdraw_all(self._approvals_of.get(task.id, ()), effects, now)

    def _set_agent(
        self, agent: AgentInfo, state: AgentState, effects: Effects, now: float, **changes: Any
    ) -> AgentInfo:
        if agent.state is not state:
            step_agent(agent.id, agent.state, state)
            effects.transitions.append(
                Transition(
                    at=now,
                    what="agent",
                    id=agent.id,
                    old=agent.state.value,
                    new=state.value,
                    why=str(changes.get("why") or ""),
                )
            )
        return self._keep(agent.model_copy(update={**changes, "state": state, "updated_at": now}), effects)

    def _keep(self, agent: AgentInfo, effects: Effects | None = None) -> AgentInfo:
        """Take the new values of an agent into memory and all indexes, and with `effects` into the store."""
        old = self.agents.get(agent.id)
        self.agents[agent.id] = agent
        if effects is not None:
            effects.agents[agent.id] = agent
        node, old_node = agent.node or "", (old.node or "") if old is not None else ""
        if old is None or node != old_node:
            if old_node:
                self._on_node[old_node][agent.role] -= 1
            if node:
                self._on_node[node][agent.role] += 1
        busy, was_busy = agent.state is AgentState.BUSY, old is not None and old.state is AgentState.BUSY
        if was_busy and not (busy and node == old_node):
            self.idle.set_busy(old_node, -1)
        if busy and not (was_busy and node == old_node):
            self.idle.set_busy(node, 1)
        if agent.wanted:
            self._wanted_of[agent.role][agent.id] = None
        else:
            self._wanted_of[agent.role].pop(agent.id, None)
        takes = agent.state is AgentState.IDLE and agent.wanted and agent.id not in self.away
        if takes and agent.id not in self._unattached and not self._draining(agent):
            self.idle.put(agent.role, agent.id, node, agent.runs)
        else:
            self.idle.discard(agent.id)
        return agent

    def _enqueue(self, task: Task) -> None:
        queue = self._queues[task.role]
        if task.agent is not None and task.agent in self.agents:
            queue = self._pinned[task.agent]
        queue.push(task.id, task.priority, task.queued_at or task.created_at)

    def _role(self, task: Task) -> Role:
        return self._role_of(task.role)

    def _role_of(self, name: str) -> Role:
        # A role may have left the settings while its tasks ran.
        return self.roles.get(name) or Role(name=name, prompt="gone")

    def _role_state(self, role: str) -> RoleState:
        return self.role_states.get(role) or RoleState(role=role)

    def _wanted(self, role: str) -> list[AgentInfo]:
        return [self.agents[agent_id] for agent_id in self._wanted_of.get(role, ())]

    def _known_role(self, role: str) -> None:
        if role not in self.roles:
            raise UnknownRole(
                f"role: expected one of {', '.join(sorted(self.roles))}; got {role!r}.",
                role=role,
                known=sorted(self.roles),
                field="role",
            )

    def _agent(self, agent_id: str) -> AgentInfo:
        agent = self.agents.get(agent_id)
        if agent is None:
            known = ", ".join(sorted(self.agents)) or "none"
            raise AgentGone(
                f"There is no agent {agent_id} now (it was stopped or never was); there are: {known}.",
                agent=agent_id,
                state="gone",
            )
        return agent

    # What people ask.

    def queue_length(self, role: str) -> int:
        """Return how many tasks of a role wait for an agent."""
        agents = self.agents
        pinned = sum(len(queue) for id, queue in self._pinned.items() if id in agents and agents[id].role == role)
        return len(self._queues[role]) + pinned

    def waits_since(self, role: str) -> float | None:
        """Return since when the task that is next in a role's queue waits, None when the queue is empty."""
        head = self._queues[role].head()
        return self.tasks[head[1]].queued_at if head is not None else None

    def why_waits(self, role: str) -> str:
        """Return why a role's queue waits, "" when it is empty."""
        if not self.queue_length(role):
            return ""
        if self.paused:
            return "the whole fleet is paused"
        if self._role_state(role).paused:
            return f"{role} is paused"
        agents = self._wanted(role)
        if not agents:
            return f"{role} has no agents: fleet spawn {role}"
        busy = sum(agent.state is AgentState.BUSY for agent in agents)
        starting = [agent for agent in agents if agent.state is AgentState.STARTING]
        why = f"no idle {role}: {busy} of {len(agents)} busy"
        if starting:
            why += f", {len(starting)} starting"
            refused = next((agent.why for agent in starting if "refused" in agent.why), "")
            why += f" ({refused})" if refused else ""
        return why

    def node_list(self) -> list[NodeInfo]:
        """Return the nodes with their agents, and why each takes no agent of the largest role now."""
        loads = self.loads()
        found = []
        for node in self.nodes.values():
            load = loads[node.id]
            refuses = "drains" if node.draining else SILENT if load.silent else ""
            needed = min((role.memory_mb for role in self.roles.values()), default=0) + self.config.node_floor_mb
            if not refuses and node.memory_free_mb and node.memory_free_mb < needed:
                refuses = f"{node.memory_free_mb / 1024:.1f} GiB free, needs {needed / 1024:.1f}"
            found.append(
                node.model_copy(
                    update={"agents": load.count, "refuses": refuses, "cpus_free": max(node.cpus - load.cpus, 0.0)}
                )
            )
        return sorted(found, key=lambda node: (not node.head, node.name))


_OK = TaskState.SUCCEEDED


def _succeeded(task: Task) -> bool:
    return task.state is TaskState.SUCCEEDED


def _number(agent_id: str) -> int:
    tail = agent_id.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def rule_for(approval: Approval) -> str:
    """Return the tool rule that allows what an approval asked for: a command exactly, any other tool by its name."""
    command = (approval.changed_input or approval.input).get("command")
    if approval.tool == "Bash" and isinstance(command, str):
        return f"Bash({command})"
    return approval.tool


def decision_message(approval: Approval) -> str:
    """Return what a resumed conversation is told of a decision."""
    if approval.state is ApprovalState.ALLOWED:
        changed = f" Use this input: {approval.changed_input}." if approval.changed_input else ""
        return f"A person allowed your {approval.tool} call that waited.{changed} Make it now and go on."
    words = f" They said: {approval.message}" if approval.message else ""
    return f"A person denied your {approval.tool} call that waited.{words} Go on without it."
