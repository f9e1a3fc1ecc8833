"""The core among routers that die, agents that die, and a network that reorders, repeats and drops messages.

Agents keep what the real ones keep: their run and the outcomes that are not acknowledged. Routers are made anew from
committed rows only. When the world calms down, every accepted task has ended exactly once.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet.errors import FleetError
from fleet.lifecycle import (
    AGENT_TRANSITIONS,
    RUN_TRANSITIONS,
    TASK_TRANSITIONS,
    AgentState,
    RunState,
    TaskState,
    step_agent,
    step_run,
    step_task,
)
from fleet.models import AgentReport, Outcome, RunOrder, Task, TaskSpec
from fleet.reasons import Reason
from fleet.router.core import RouterCore
from fleet.router.effects import Acknowledge, CancelRun, Dispatch, Effects, LaunchAgent, StopAgent
from tests.unit.core_world import START, Rows, make_config, make_node, make_role, outcome_of

REASONS = [None, None, None, Reason.API_ERROR, Reason.INVALID_REQUEST, Reason.RATE_LIMITED]
STATES: dict[str, Any] = {"task": TaskState, "run": RunState, "agent": AgentState}
EXAMPLES = int(os.environ.get("FLEET_STATEFUL_EXAMPLES", "25"))
GUARD_S = 2.0
"""A dead agent's run has ended by then: below the delay after a loss."""


@dataclass
class Actor:
    """One life of an agent."""

    id: str
    incarnation: int
    node: str
    alive: bool = True
    epoch: int = 0
    order: RunOrder | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    stopped: bool = False


@dataclass
class Message:
    """Something under way to an agent, or from it to the router of an epoch."""

    what: str
    epoch: int
    agent_id: str
    incarnation: int
    body: Any = None
    more: Any = None


class Network(RuleBasedStateMachine):
    """The machine that hypothesis drives."""

    def __init__(self) -> None:
        super().__init__()
        self.config = make_config(make_role("dev", agents=2, retries=1), make_role("qa", agents=1, retries=0))
        self.rows, self.now = Rows(), START
        self.actors: dict[str, Actor] = {}
        self.bag: list[Message] = []
        self.accepted: list[str] = []
        self.executed: dict[str, list[tuple[str, int]]] = {}
        self.dice = random.Random(1)
        self.killed_at: dict[str, float] = {}
        self.core = RouterCore(self.config)
        self.new_router()

    # The router's shell, without time.

    def commit(self, effects: Effects) -> None:
        self.rows.commit(effects)
        for action in effects.actions:
            self.act(action)

    def act(self, action: Any) -> None:
        epoch = self.core.epoch
        match action:
            case Dispatch():
                run = action.order.run
                self.send("run", action.agent_id, run.incarnation, action.order, action.acknowledge)
            case CancelRun():
                self.send("cancel", action.agent_id, self.life(action.agent_id), action.run_id)
            case Acknowledge():
                self.send("acknowledge", action.agent_id, self.life(action.agent_id), action.run_id)
            case LaunchAgent():
                self.send("launch", action.agent.id, action.agent.incarnation, action.node)
            case StopAgent():
                self.send("stop", action.agent_id, action.incarnation)
        assert epoch == self.core.epoch

    def send(self, what: str, agent_id: str, incarnation: int, body: Any = None, more: Any = None) -> None:
        self.bag.append(Message(what, self.core.epoch, agent_id, incarnation, body, more))

    def life(self, agent_id: str) -> int:
        agent = self.core.agents.get(agent_id)
        return agent.incarnation if agent is not None else 0

    def new_router(self) -> None:
        self.core = RouterCore(self.config)
        state = self.rows.open()
        self.commit(self.core.restore(state, self.now, **self.rows.past(state)))
        self.commit(self.core.set_nodes([make_node()], self.now))
        for agent in self.core.unattached():
            self.ask(agent.id, agent.incarnation)
        self.schedule()

    def schedule(self) -> None:
        self.commit(self.core.schedule(self.now))

    def ask(self, agent_id: str, incarnation: int) -> None:
        """Ask an agent what it has; the answer comes later, or its loss is seen."""
        actor = self.actors.get(agent_id)
        if actor is None or not actor.alive or actor.incarnation != incarnation:
            self.send("lost", agent_id, incarnation)
            return
        actor.epoch = max(actor.epoch, self.core.epoch)
        report = AgentReport(
            agent_id=agent_id,
            incarnation=incarnation,
            node=actor.node,
            pid=1,
            run_id=actor.order.run.id if actor.order else None,
            outcomes=tuple(actor.outcomes.values()),
        )
        self.send("report", agent_id, incarnation, report, self.core.run_of.get(agent_id, ""))

    # What messages do where they arrive.

    def deliver(self, message: Message) -> None:
        to_router = message.what in ("outcome", "report", "lost", "stopped", "failed")
        if to_router:
            if message.epoch == self.core.epoch:
                self.at_router(message)
            return
        if message.what == "launch":
            self.launch(message)
            return
        actor = self.actors.get(message.agent_id)
        if actor is None or not actor.alive or actor.incarnation != message.incarnation:
            if message.what == "run":
                self.reply("lost", message)
            elif message.what == "stop":
                self.reply("stopped", message)
            return
        if message.what in ("run", "stop") and message.epoch < actor.epoch:
            return
        self.at_actor(actor, message)

    def reply(self, what: str, to: Message, body: Any = None, more: Any = None) -> None:
        self.bag.append(Message(what, to.epoch, to.agent_id, to.incarnation, body, more))

    def at_actor(self, actor: Actor, message: Message) -> None:
        match message.what:
            case "run":
                self.start_run(actor, message)
            case "acknowledge":
                if actor.outcomes.pop(message.body, None) is not None:
                    actor.acknowledged.add(message.body)
            case "cancel":
                if actor.order is not None and actor.order.run.id == message.body:
                    self.end_run(actor, Reason.CANCELLED, RunState.CANCELLED)
            case "stop":
                actor.stopped = True
                if actor.order is not None:
                    self.end_run(actor, Reason.AGENT_STOPPED, RunState.LOST)
                self.kill(actor)
                self.reply("stopped", message)

    def start_run(self, actor: Actor, message: Message) -> None:
        order: RunOrder = message.body
        actor.epoch = max(actor.epoch, message.epoch)
        if message.more is not None and actor.outcomes.pop(message.more, None) is not None:
            actor.acknowledged.add(message.more)
        if order.run.id in actor.outcomes:
            self.reply("outcome", message, actor.outcomes[order.run.id])
        elif actor.order is None and not actor.stopped and order.run.id not in actor.acknowledged:
            # The shell does not call an agent for a run that is not current any more.
            if message.epoch == self.core.epoch and order.run.id not in self.core.runs:
                return
            self.check_alone(order)
            actor.order = order
            self.executed.setdefault(order.task.id, []).append((order.run.id, order.run.number))

    def check_alone(self, order: RunOrder) -> None:
        for other in self.actors.values():
            if other.order is None or other.order.task.id != order.task.id or other.order.run.id == order.run.id:
                continue
            assert not other.alive, f"two agents execute {order.task.id}"
        last = self.killed_at.get(order.task.id)
        assert last is None or self.now - last >= GUARD_S, "it began before the guard had ended the run before"

    def end_run(self, actor: Actor, reason: Reason | None, status: RunState | None = None) -> None:
        assert actor.order is not None
        run = actor.order.run
        outcome = outcome_of(run, self.now, reason, status)
        actor.outcomes[run.id] = outcome
        actor.order = None
        self.bag.append(Message("outcome", self.core.epoch, actor.id, actor.incarnation, outcome))

    def kill(self, actor: Actor) -> None:
        actor.alive = False
        if actor.order is not None:
            self.killed_at[actor.order.task.id] = self.now
            actor.order = None

    def launch(self, message: Message) -> None:
        old = self.actors.get(message.agent_id)
        if old is not None and old.alive:
            if old.incarnation < message.incarnation:
                self.kill(old)
            self.reply("failed", message)
            return
        if message.epoch < self.core.epoch:
            # A router that was replaced still starts an actor: the newer one finds it under its name.
            return
        self.actors[message.agent_id] = Actor(message.agent_id, message.incarnation, message.body, epoch=message.epoch)
        self.ask(message.agent_id, message.incarnation)

    def at_router(self, message: Message) -> None:
        chance = self.dice.random()
        match message.what:
            case "outcome":
                self.commit(self.core.outcome(message.body, self.now, chance))
            case "report":
                for outcome in message.body.outcomes:
                    self.commit(self.core.outcome(outcome, self.now, chance))
                report = message.body.model_copy(update={"outcomes": ()})
                self.commit(self.core.agent_up(report, self.now, message.more))
            case "lost":
                actor = self.actors.get(message.agent_id)
                if actor is None or not actor.alive or actor.incarnation != message.incarnation:
                    self.commit(self.core.agent_lost(message.agent_id, message.incarnation, self.now, chance))
            case "stopped":
                self.commit(self.core.agent_stopped(message.agent_id, message.incarnation, self.now, chance))
            case "failed":
                agent = self.core.agents.get(message.agent_id)
                if agent is not None and agent.state is AgentState.STARTING:
                    self.commit(self.core.launch_failed(message.agent_id, message.incarnation, "taken", self.now))
        self.schedule()

    # Rules.

    @rule(role=st.sampled_from(["dev", "qa"]), after=st.booleans(), later=st.booleans(), key=st.integers(0, 3))
    def submit(self, role: str, after: bool, later: bool, key: int) -> None:
        depends = (self.dice.choice(self.accepted),) if after and self.accepted else ()
        spec = TaskSpec(
            role=role,
            prompt="Work.",
            priority=self.dice.randint(0, 9),
            depends_on=depends,
            not_before=self.now + 5 if later else None,
            idempotency_key=f"k{key}" if key else None,
        )
        planned = self.core.plan_submit([spec], self.rows.tasks, self.now)
        fresh = [task for task in planned if isinstance(task, Task)]
        self.commit(Effects(tasks={task.id: task for task in fresh}))
        self.commit(self.core.accept(fresh, self.now))
        self.accepted += [task.id for task in fresh]
        self.schedule()

    @precondition(lambda self: self.bag)
    @rule(where=st.integers(0, 10**6))
    def deliver_one(self, where: int) -> None:
        self.deliver(self.bag.pop(where % len(self.bag)))

    @precondition(lambda self: self.bag)
    @rule(where=st.integers(0, 10**6))
    def deliver_twice(self, where: int) -> None:
        message = self.bag[where % len(self.bag)]
        # A stop and a launch are calls that their shell makes once.
        if message.what not in ("launch", "stop"):
            self.deliver(message)

    @precondition(lambda self: self.bag)
    @rule(where=st.integers(0, 10**6))
    def drop(self, where: int) -> None:
        message = self.bag.pop(where % len(self.bag))
        # What a shell waits for it notices; it asks again.
        if message.epoch == self.core.epoch and message.what in (
            "report",
            "launch",
            "stop",
            "lost",
            "stopped",
            "failed",
        ):
            self.bag.append(message)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.schedule()

    @rule(which=st.integers(0, 9), reason=st.sampled_from(REASONS))
    def finish(self, which: int, reason: Reason | None) -> None:
        busy = [actor for actor in self.actors.values() if actor.alive and actor.order is not None]
        if busy:
            self.end_run(busy[which % len(busy)], reason)

    @rule(which=st.integers(0, 9))
    def die(self, which: int) -> None:
        alive = [actor for actor in self.actors.values() if actor.alive]
        if alive:
            actor = alive[which % len(alive)]
            self.kill(actor)
            self.send("lost", actor.id, actor.incarnation)

    @rule()
    def router_dies(self) -> None:
        self.new_router()

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if self.accepted:
            self.commit(self.core.cancel([self.accepted[which % len(self.accepted)]], "no", self.now))

    @rule(which=st.integers(0, 9))
    def retry(self, which: int) -> None:
        ended = [id for id in self.accepted if self.rows.tasks[id].state in (TaskState.FAILED, TaskState.DEAD)]
        if ended:
            self.commit(self.core.retry([self.rows.tasks[ended[which % len(ended)]]], self.now))

    @rule(which=st.integers(0, 9), drain=st.booleans())
    def stop_agent(self, which: int, drain: bool) -> None:
        agents = [agent for agent in self.core.agents.values() if agent.wanted]
        if len(agents) > 1:
            self.commit(self.core.stop_agent(agents[which % len(agents)].id, drain, self.now))

    @rule(role=st.sampled_from(["dev", "qa"]), count=st.integers(1, 3))
    def scale(self, role: str, count: int) -> None:
        self.commit(self.core.scale(role, count, self.now))
        self.schedule()

    # What always holds.

    @invariant()
    def each_task_has_one_current_run(self) -> None:
        by_task: dict[str, str] = {}
        for run in self.core.runs.values():
            assert run.task_id not in by_task, f"{run.task_id} has two runs"
            by_task[run.task_id] = run.id
            assert self.core.tasks[run.task_id].run_id == run.id
        for task in self.core.tasks.values():
            assert (task.state is TaskState.RUNNING) == (task.id in by_task)

    @invariant()
    def nobody_executes_what_another_does(self) -> None:
        executing = [a.order.task.id for a in self.actors.values() if a.alive and a.order is not None]
        assert len(executing) == len(set(executing)), "two living agents execute one task"

    @invariant()
    def each_task_has_at_most_one_result(self) -> None:
        for task_id, results in self.rows.results.items():
            assert len(results) == 1, f"{task_id} has {len(results)} results"
            assert self.rows.tasks[task_id].state is TaskState.SUCCEEDED

    @invariant()
    def memory_is_what_was_committed(self) -> None:
        open_tasks = {id: task for id, task in self.rows.tasks.items() if not task.state.final}
        assert self.core.tasks == open_tasks
        assert self.core.runs == {id: run for id, run in self.rows.runs.items() if run.state is RunState.RUNNING}
        for agent_id, agent in self.core.agents.items():
            kept = self.rows.agents[agent_id]
            assert (kept.state, kept.wanted, kept.run_id) == (agent.state, agent.wanted, agent.run_id)

    @invariant()
    def the_indexes_are_right(self) -> None:
        core = self.core
        assert core.run_of == {run.agent_id: run.id for run in core.runs.values()}
        for agent in core.agents.values():
            takes = agent.state is AgentState.IDLE and agent.wanted and agent.id not in core._unattached
            assert (agent.id in core.idle) == takes
        waiting = sum(task.state is TaskState.QUEUED for task in core.tasks.values())
        assert waiting == sum(core.queue_length(role) for role in core.roles)

    def teardown(self) -> None:
        """Let the world calm down: everything arrives, every run succeeds."""
        for role in self.core.roles:
            self.commit(self.core.scale(role, 2, self.now))
        for _ in range(100):
            while self.bag:
                self.deliver(self.bag.pop(0))
            for living in list(self.actors.values()):
                if living.alive and living.order is not None:
                    self.end_run(living, None)
            for agent in list(self.core.agents.values()):
                # The shell's watch: whoever is gone is noticed, and a busy one that nobody waits for is asked.
                actor = self.actors.get(agent.id)
                if agent.state is not AgentState.STARTING and not any(m.agent_id == agent.id for m in self.bag):
                    gone = actor is None or not actor.alive or actor.incarnation != agent.incarnation
                    if gone or agent.state is AgentState.BUSY:
                        self.ask(agent.id, agent.incarnation)
            self.now += 5.0
            self.schedule()
            if not self.core.tasks and not self.bag:
                break
        left = {id: (task.state, task.why) for id, task in self.core.tasks.items()}
        assert not left, f"never ended: {left}"
        for task_id in self.accepted:
            state = self.rows.tasks[task_id].state
            assert state.final
            assert (state is TaskState.SUCCEEDED) == (task_id in self.rows.results)
        self.check_transitions()

    def check_transitions(self) -> None:
        tables: dict[str, Any] = {"task": TASK_TRANSITIONS, "run": RUN_TRANSITIONS, "agent": AGENT_TRANSITIONS}
        for step in self.rows.transitions:
            if step.old is not None:
                state = STATES[step.what]
                assert state(step.new) in tables[step.what][state(step.old)]


TestNetwork = Network.TestCase
TestNetwork.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=60,
    deadline=None,
    derandomize="FLEET_STATEFUL_EXAMPLES" not in os.environ,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Tables(RuleBasedStateMachine):
    """Walks through the tables: what they allow is done, what they do not is refused and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, Any] = {
            "task": TaskState.QUEUED,
            "run": RunState.RUNNING,
            "agent": AgentState.STARTING,
        }

    @rule(what=st.sampled_from(["task", "run", "agent"]), pick=st.integers(0, 99))
    def step(self, what: str, pick: int) -> None:
        do: Any = {"task": step_task, "run": step_run, "agent": step_agent}[what]
        table: Any = {"task": TASK_TRANSITIONS, "run": RUN_TRANSITIONS, "agent": AGENT_TRANSITIONS}[what]
        old = self.states[what]
        every: list[Any] = list(STATES[what])
        new = every[pick % len(every)]
        if new in table[old]:
            self.states[what] = do("x", old, new)
            assert self.states[what] is new
        else:
            with pytest.raises(FleetError, match="may become"):
                do("x", old, new)

    @invariant()
    def what_ended_well_stays_so(self) -> None:
        if self.states["task"] is TaskState.SUCCEEDED:
            assert not TASK_TRANSITIONS[TaskState.SUCCEEDED]
        if self.states["run"].final:
            assert not RUN_TRANSITIONS[self.states["run"]]


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=50, stateful_step_count=40, deadline=None, derandomize=True)
