"""A router's core without a router: time that is set by hand, agents that answer at once, a store of committed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet.config import FleetConfig
from fleet.lifecycle import AgentState, RunState
from fleet.models import (
    AgentInfo,
    AgentReport,
    Approval,
    NodeInfo,
    Outcome,
    Result,
    Role,
    RouterState,
    Run,
    RunOrder,
    Task,
    TaskSpec,
    Usage,
)
from fleet.reasons import Reason
from fleet.router.core import RouterCore
from fleet.router.effects import Dispatch, Effects, LaunchAgent, StopAgent

START = 1_800_000_000.0


def make_role(name: str = "dev", **more: Any) -> Role:
    """Return a small role."""
    return Role(**{"name": name, "prompt": "Do it.", "agents": 1, "cpus": 0.25, "memory_mb": 256, **more})


def make_config(*roles: Role, **more: Any) -> FleetConfig:
    """Return settings with these roles only."""
    return FleetConfig(home=Path("home"), roles={role.name: role for role in roles or (make_role(),)}, **more)


def make_node(name: str = "n1", **more: Any) -> NodeInfo:
    """Return a roomy node."""
    values = {"cpus": 64.0, "memory_mb": 64_000.0, "memory_free_mb": 60_000.0, **more}
    return NodeInfo(id=f"id-{name}", name=name, address="127.0.0.1", alive=True, **values)


def result_of(run: Run, at: float) -> Result:
    """Return a result of a run."""
    return Result(task_id=run.task_id, run_id=run.id, role=run.role, text=f"by {run.id}", finished_at=at)


def outcome_of(
    run: Run, at: float, reason: Reason | None = None, status: RunState | None = None, **more: Any
) -> Outcome:
    """Return how a run ended: well without a reason."""
    status = status or (RunState.SUCCEEDED if reason is None else RunState.FAILED)
    values: dict[str, Any] = {
        "result": result_of(run, at) if status is RunState.SUCCEEDED else None,
        "session_id": f"s-{run.task_id}",
        "cost_usd": 0.5,
        "usage": Usage(input_tokens=10),
        "turns": 2,
        **more,
    }
    return Outcome(
        run_id=run.id,
        task_id=run.task_id,
        agent_id=run.agent_id,
        epoch=run.epoch,
        status=status,
        reason=reason,
        finished_at=at,
        **values,
    )


class Rows:
    """What a store would have: the last committed row of each id."""

    def __init__(self) -> None:
        self.epoch = 0
        self.tasks: dict[str, Task] = {}
        self.runs: dict[str, Run] = {}
        self.agents: dict[str, AgentInfo] = {}
        self.results: dict[str, list[Result]] = {}
        self.approvals: dict[str, Approval] = {}
        self.roles: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.transitions: list[Any] = []
        self.refusals: list[Any] = []

    def commit(self, effects: Effects) -> None:
        """Apply a batch."""
        batch = effects.batch()
        self.tasks |= {task.id: task for task in batch.tasks}
        self.runs |= {run.id: run for run in batch.runs}
        self.agents |= {agent.id: agent for agent in batch.agents}
        for result in batch.results:
            self.results.setdefault(result.task_id, []).append(result)
        self.approvals |= {approval.id: approval for approval in batch.approvals}
        self.roles |= {role.role: role for role in batch.roles}
        self.settings |= batch.settings
        self.transitions += batch.transitions
        self.refusals += batch.refusals

    def open(self) -> RouterState:
        """Return what a new router starts with."""
        self.epoch += 1
        return RouterState(
            epoch=self.epoch,
            tasks=tuple(sorted((t for t in self.tasks.values() if not t.state.final), key=lambda t: t.id)),
            runs=tuple(run for run in self.runs.values() if run.state is RunState.RUNNING),
            agents=tuple(agent for agent in self.agents.values() if agent.wanted),
            approvals=tuple(a for a in self.approvals.values() if a.state == "waiting"),
            roles=tuple(self.roles.values()),
            idempotency={t.idempotency_key: t.id for t in self.tasks.values() if t.idempotency_key is not None},
            settings=dict(self.settings),
        )

    def past(self, state: RouterState) -> dict[str, Any]:
        """Return what else `restore` takes."""
        awaited = {other for task in state.tasks for other in task.depends_on}
        return {
            "draining": [a for a in self.agents.values() if a.state is AgentState.DRAINING and not a.wanted],
            "decided": [a for a in self.approvals.values() if a.state != "waiting"],
            "ended": {id: self.tasks[id].state for id in awaited if self.tasks[id].state.final},
        }


class World:
    """A core whose rows are committed at once; its actions are kept for the test to look at.

    Args:
        *roles: of the fleet; one agent of `dev` without any.
        up: start all agents.
        nodes: those of the cluster.
        **config: other settings.
    """

    def __init__(self, *roles: Role, up: bool = True, nodes: tuple[NodeInfo, ...] = (), **config: Any) -> None:
        self.config = make_config(*roles, **config)
        self.now = START
        self.rows = Rows()
        self.actions: list[Any] = []
        self.nodes = nodes or (make_node(),)
        self.core = RouterCore(self.config)
        self.restart()
        if up:
            self.start_agents()

    def restart(self) -> None:
        """A new router begins with what was committed."""
        self.core = RouterCore(self.config)
        state = self.rows.open()
        self.do(self.core.restore(state, self.now, **self.rows.past(state)))
        self.do(self.core.set_nodes(self.nodes, self.now))
        self.go()

    def do(self, effects: Effects) -> Effects:
        """Commit effects and keep their actions."""
        self.rows.commit(effects)
        self.actions += effects.actions
        return effects

    def go(self, seconds: float = 0.0) -> list[Any]:
        """Let time pass and the core do what is due; returns the new actions."""
        self.now += seconds
        before = len(self.actions)
        self.do(self.core.schedule(self.now))
        return self.actions[before:]

    def start_agents(self) -> None:
        """Answer all launches until there is none."""
        answered = 0
        self.go()
        while answered < len(self.actions):
            action = self.actions[answered]
            answered += 1
            if isinstance(action, LaunchAgent) and self.agent(action.agent.id).state is AgentState.STARTING:
                self.up(action.agent.id)
                self.go()

    def up(self, agent_id: str, run_id: str | None = None, outcomes: tuple[Outcome, ...] = ()) -> None:
        """An agent says that it is there."""
        agent = self.core.agents[agent_id]
        report = AgentReport(
            agent_id=agent_id,
            incarnation=agent.incarnation,
            node=agent.node or self.nodes[0].id,
            pid=1,
            run_id=run_id,
            outcomes=outcomes,
        )
        self.do(self.core.agent_up(report, self.now))

    def submit(self, role: str = "dev", **more: Any) -> str:
        """Accept a task and return its id."""
        return self.submit_all(TaskSpec(role=role, prompt="Work.", **more))[0]

    def submit_all(self, *specs: TaskSpec) -> list[str]:
        """Accept tasks and return their ids."""
        planned = self.core.plan_submit(specs, self.rows.tasks, self.now)
        fresh = [task for task in planned if isinstance(task, Task)]
        self.do(Effects(tasks={task.id: task for task in fresh}))
        self.do(self.core.accept(fresh, self.now))
        return [task if isinstance(task, str) else task.id for task in planned]

    def task(self, task_id: str) -> Task:
        """Return a task as committed."""
        return self.rows.tasks[task_id]

    def agent(self, agent_id: str) -> AgentInfo:
        """Return an agent as committed."""
        return self.rows.agents[agent_id]

    def run_of(self, task_id: str) -> Run:
        """Return a task's newest run."""
        return self.rows.runs[self.task(task_id).run_id or ""]

    def end(self, task_id: str, reason: Reason | None = None, chance: float = 0.5, **more: Any) -> Outcome:
        """Let a task's run end, and the core go on."""
        outcome = outcome_of(self.run_of(task_id), self.now, reason, **more)
        self.do(self.core.outcome(outcome, self.now, chance))
        self.go()
        return outcome

    def lose(self, agent_id: str, node_lost: bool = False) -> None:
        """An agent's actor is gone."""
        agent = self.core.agents[agent_id]
        self.do(self.core.agent_lost(agent_id, agent.incarnation, self.now, 0.5, node_lost=node_lost))
        self.go()

    def orders(self) -> list[RunOrder]:
        """Return all orders given so far."""
        return [action.order for action in self.actions if isinstance(action, Dispatch)]

    def order_of(self, task_id: str) -> RunOrder:
        """Return the last order for a task."""
        return [order for order in self.orders() if order.task.id == task_id][-1]

    def stops(self) -> list[str]:
        """Return the agents that were ordered to stop."""
        return [action.agent_id for action in self.actions if isinstance(action, StopAgent)]
