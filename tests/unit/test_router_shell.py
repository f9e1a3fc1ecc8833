"""The router's shell over the store in memory and agents in this process: commits first, orders then, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from fleet.errors import AgentGone, Conflict, NotFound, StaleEpoch, StorageFull, Unavailable
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import (
    Activity,
    AgentInfo,
    AgentReport,
    Approval,
    Batch,
    NodeInfo,
    Outcome,
    Role,
    RunOrder,
    Task,
    TaskSpec,
)
from fleet.reasons import Reason
from fleet.router import deployment, retry
from fleet.router.deployment import Router
from fleet.store.memory import MemoryStore
from tests.unit.core_world import make_config, make_node, make_role, outcome_of

SPEC = TaskSpec(role="dev", prompt="Work.")
PATIENCE_S = 20.0


async def until(is_so: Callable[[], Any], what: str) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.005)
    assert is_so(), what


class TwinAgent:
    """An agent that keeps its run and its outcomes as the real one does; a test says how its run ends."""

    def __init__(self, place: Place, agent: AgentInfo) -> None:
        self.place, self.agent = place, agent
        self.epoch = 0
        self.order: RunOrder | None = None
        self.ended: asyncio.Future[Outcome] | None = None
        self.outcomes: dict[str, Outcome] = {}
        self.messages: list[str] = []
        self.decisions: list[Approval] = []
        self.orders: list[RunOrder] = []
        self.stopped = False

    def fence(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise StaleEpoch("An older router.", epoch=epoch, current=self.epoch)
        self.epoch = epoch

    async def hello(self, epoch: int) -> AgentReport:
        self.fence(epoch)
        return AgentReport(
            agent_id=self.agent.id,
            incarnation=self.agent.incarnation,
            node=self.agent.node or "id-n1",
            pid=1,
            run_id=self.order.run.id if self.order else None,
            outcomes=tuple(self.outcomes.values()),
        )

    async def run(self, order: RunOrder, acknowledge: str | None = None) -> Outcome:
        self.fence(order.epoch)
        if acknowledge:
            await self.acknowledge(acknowledge)
        if order.run.id in self.outcomes or (self.order is not None and self.order.run.id == order.run.id):
            return await self.wait(order.run.id)
        if self.order is not None or self.stopped:
            raise Conflict("It is busy.", state="busy")
        self.order = order
        self.orders.append(order)
        self.ended = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self.ended)

    async def wait(self, run_id: str) -> Outcome:
        if run_id in self.outcomes:
            return self.outcomes[run_id]
        if self.order is not None and self.order.run.id == run_id and self.ended is not None:
            return await asyncio.shield(self.ended)
        raise NotFound("No such run.", what="run", id=run_id)

    async def acknowledge(self, run_id: str) -> None:
        self.outcomes.pop(run_id, None)

    async def cancel(self, run_id: str, reason: str, detail: str = "") -> bool:
        if self.order is None or self.order.run.id != run_id:
            return False
        self.end(Reason(reason), status=RunState.CANCELLED)
        return True

    async def message(self, text: str, run_id: str | None = None) -> bool:
        if self.order is None:
            return False
        self.messages.append(text)
        return True

    async def decide(self, approval: Approval) -> bool:
        self.decisions.append(approval)
        return True

    async def stop(self, grace_s: float = 3.0) -> None:
        self.stopped = True
        if self.order is not None:
            self.end(Reason.AGENT_STOPPED, status=RunState.LOST)

    def end(self, reason: Reason | None = None, **more: Any) -> Outcome:
        """Let its run end."""
        assert self.order is not None and self.ended is not None
        outcome = outcome_of(self.order.run, 0.0, reason, **more)
        self.outcomes[outcome.run_id] = outcome
        self.order = None
        if not self.ended.done():
            self.ended.set_result(outcome)
        return outcome

    def die(self) -> None:
        """Its process is gone."""
        self.place.agents.pop(self.agent.id, None)
        if self.ended is not None and not self.ended.done():
            self.ended.set_exception(AgentGone("It died.", agent=self.agent.id, state="lost"))
            self.ended.exception()


class TwinHandle:
    """Calls whatever life of an agent there is; calls and answers can be cut."""

    def __init__(self, place: Place, agent_id: str) -> None:
        self.place, self.agent_id = place, agent_id

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            if self.agent_id in self.place.cut:
                raise Unavailable("Cut off.", part="agent")
            agent = self.place.agents.get(self.agent_id)
            if agent is None:
                raise AgentGone("No such agent.", agent=self.agent_id, state="lost")
            answer = await getattr(agent, name)(*args, **kwargs)
            if name in self.place.lost_answers:
                self.place.lost_answers.remove(name)
                raise Unavailable("The answer was lost.", part="agent")
            return answer

        return call


class Place:
    """Where the agents of a test live: a `Launcher` that outlives routers."""

    def __init__(self) -> None:
        self.agents: dict[str, TwinAgent] = {}
        self.cut: set[str] = set()
        self.cut_off: set[str] = set()
        self.lost_answers: list[str] = []
        self.node_infos: list[NodeInfo] = [make_node()]
        self.killed: list[str] = []
        self.failing: list[Exception] = []

    def launch(self, config: Any, role: Role, agent: AgentInfo, node: str | None) -> None:
        if self.failing:
            raise self.failing.pop()
        if agent.id in self.agents:
            raise ValueError("The name is taken.")
        self.agents[agent.id] = TwinAgent(self, agent)

    def kill(self, agent_id: str) -> None:
        self.killed.append(agent_id)
        self.agents.pop(agent_id, None)

    def handle(self, agent_id: str) -> Any:
        return TwinHandle(self, agent_id)

    def nodes(self, activities: Sequence[Any]) -> list[NodeInfo]:
        return self.node_infos

    def answers(self, node: NodeInfo) -> bool:
        return node.id not in self.cut_off

    def request_nodes(self, bundles: Sequence[Any], labels: Sequence[Any]) -> None:
        pass


class Store(MemoryStore):
    """The store in memory, with errors at will."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: list[Exception] = []
        self.results_written: list[str] = []
        self.held: asyncio.Event | None = None

    async def commit(self, epoch: int, batch: Batch) -> None:
        await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        if self.failing:
            raise self.failing.pop(0)
        await super().commit(epoch, batch)
        self.results_written += [result.task_id for result in batch.results]


class Stage:
    """A store, a place for agents, and routers over them."""

    def __init__(self, *roles: Role) -> None:
        self.config = make_config(*(roles or (make_role(),)), lease_s=0.3)
        self.store, self.place = Store(), Place()
        self.routers: list[Router] = []

    async def router(self) -> Router:
        """Start a router."""
        router = Router(self.config, store=self.store, launcher=self.place, seed=1)
        self.routers.append(router)
        await router.check_health()
        return router

    async def beat(self) -> None:
        """Give signs of life of all agents."""
        count = 0
        while True:
            count += 1
            for agent_id in set(self.place.agents) - self.place.cut:
                await self.store.beat(Activity(agent_id=agent_id, node="id-n1", node_free_mb=1e4, at=float(count)))
            await asyncio.sleep(0.02)

    async def task(self, task_id: str, state: TaskState) -> Task:
        """Wait until a task is in a state, as committed."""
        async with asyncio.timeout(PATIENCE_S):
            while (task := await self.store.task(task_id)).state is not state:
                await asyncio.sleep(0.005)
        return task

    async def running(self, agent_id: str = "dev-1") -> TwinAgent:
        """Wait until an agent has a run."""
        await until(lambda: agent_id in self.place.agents and self.place.agents[agent_id].order, f"{agent_id} runs")
        return self.place.agents[agent_id]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    for module, name, value in [
        (deployment, "WATCH_S", 0.05),
        (deployment, "NODES_S", 0.1),
        (deployment, "NODE_CHECK_S", 0.01),
        (deployment, "CALL_AGAIN_S", 0.02),
        (deployment, "UNWATCHED_S", 0.2),
        (retry, "LOSS_DELAY_S", 0.05),
        (retry, "LEASE_MARGIN_S", 0.05),
    ]:
        monkeypatch.setattr(module, name, value)
    stage = Stage()
    beats = asyncio.create_task(stage.beat())
    yield stage
    beats.cancel()
    for router in stage.routers:
        await router.close()


async def test_a_task_is_committed_given_and_its_result_kept(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    assert (await stage.store.task(task.id)).id == task.id
    agent = await stage.running()
    agent.end()
    await stage.task(task.id, TaskState.SUCCEEDED)
    result = await stage.store.result(task.id)
    assert result is not None and stage.store.results_written == [task.id]


async def test_an_outcome_is_acknowledged_only_after_its_commit(stage: Stage) -> None:
    router = await stage.router()
    first, second = await router.submit([SPEC, SPEC])
    agent = await stage.running()
    stage.store.held = asyncio.Event()
    outcome = agent.end()
    await asyncio.sleep(0.1)
    assert outcome.run_id in agent.outcomes and (await stage.store.task(first.id)).state is TaskState.RUNNING
    stage.store.held.set()
    await until(lambda: agent.order, "the second task runs")
    assert outcome.run_id not in agent.outcomes and agent.order.task.id == second.id  # type: ignore[union-attr]
    assert (await stage.store.task(first.id)).state is TaskState.SUCCEEDED


async def test_a_run_whose_agent_dies_goes_on_in_its_next_life(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    first = await stage.running()
    first.die()
    await until(lambda: stage.place.agents.get("dev-1") not in (None, first), "it is started again")
    second = await stage.running()
    assert second.orders[0].moved and second.orders[0].run.number == 2 and second.agent.incarnation == 2
    second.end()
    assert (await stage.task(task.id, TaskState.SUCCEEDED)).losses == 1


async def test_a_lost_answer_is_asked_for_again_and_nothing_runs_twice(stage: Stage) -> None:
    router = await stage.router()
    stage.place.lost_answers.append("run")
    (task,) = await router.submit([SPEC])
    agent = await stage.running()
    agent.end()
    await stage.task(task.id, TaskState.SUCCEEDED)
    assert len(agent.orders) == 1 and stage.store.results_written == [task.id]


async def test_an_agent_finishes_while_no_router_is_there(stage: Stage) -> None:
    first = await stage.router()
    (task,) = await first.submit([SPEC])
    agent = await stage.running()
    await first.close()
    agent.end()
    assert (await stage.store.task(task.id)).state is TaskState.RUNNING
    await stage.router()
    done = await stage.task(task.id, TaskState.SUCCEEDED)
    assert done.number_of_runs == 1 and stage.store.results_written == [task.id]


async def test_a_run_goes_on_under_the_next_router(stage: Stage) -> None:
    first = await stage.router()
    (task,) = await first.submit([SPEC])
    agent = await stage.running()
    await first.close()
    await stage.router()
    await until(lambda: agent.epoch == 2, "the new router has asked it")
    agent.end()
    assert (await stage.task(task.id, TaskState.SUCCEEDED)).number_of_runs == 1
    assert len(agent.orders) == 1


async def test_agents_that_went_with_the_router_are_started_again_and_their_runs_go_on(stage: Stage) -> None:
    first = await stage.router()
    (task,) = await first.submit([SPEC])
    old = await stage.running()
    await first.close()
    old.die()
    await stage.router()
    new = await stage.running()
    assert new is not old and new.orders[0].moved
    new.end()
    await stage.task(task.id, TaskState.SUCCEEDED)


async def test_of_two_routers_the_older_one_ends(stage: Stage) -> None:
    old = await stage.router()
    await stage.router()
    with pytest.raises(StaleEpoch):
        await old.submit([SPEC])
    for call in (old.check_health, old.status):
        with pytest.raises(StaleEpoch):
            await call()
    assert not await stage.store.tasks()


async def test_an_older_router_learns_of_its_end_from_an_agent(stage: Stage) -> None:
    old = await stage.router()
    await until(lambda: old.core.idle.count("dev"), "the agent is up")
    stage.place.agents["dev-1"].epoch = 9
    await old.submit([SPEC])
    await until(lambda: old._failed_by is not None, "the old router has ended")
    with pytest.raises(StaleEpoch):
        await old.check_health()


async def test_a_store_that_is_away_for_a_while_loses_nothing(stage: Stage) -> None:
    router = await stage.router()
    stage.store.failing = [Unavailable("Away.", part="store")] * 3
    (task,) = await router.submit([SPEC])
    agent = await stage.running()
    stage.store.failing = [Unavailable("Away.", part="store")] * 3
    agent.end()
    await stage.task(task.id, TaskState.SUCCEEDED)
    assert stage.store.results_written == [task.id]


async def test_a_full_disk_leaves_nothing_of_a_submit(stage: Stage) -> None:
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "the agent is up")
    stage.store.failing = [StorageFull("Full.")]
    spec = SPEC.model_copy(update={"idempotency_key": "k"})
    with pytest.raises(StorageFull):
        await router.submit([spec])
    assert not router.core.tasks and not await stage.store.tasks()
    (task,) = await router.submit([spec])
    assert [known.id for known in await stage.store.tasks()] == [task.id]


async def test_a_caller_that_goes_away_in_mid_commit_leaves_a_task_that_runs(stage: Stage) -> None:
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "the agent is up")
    stage.store.held = asyncio.Event()
    call = asyncio.create_task(router.submit([SPEC.model_copy(update={"idempotency_key": "k"})]))
    await until(lambda: router._accepting, "it is being committed")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    stage.store.held.set()
    agent = await stage.running()
    assert agent.order is not None and agent.order.task.idempotency_key == "k"


async def test_the_same_key_at_the_same_time_gives_one_task(stage: Stage) -> None:
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "the agent is up")
    spec = SPEC.model_copy(update={"idempotency_key": "k"})
    answers = await asyncio.gather(*(router.submit([spec]) for _ in range(5)))
    assert len({answer[0].id for answer in answers}) == 1 and len(await stage.store.tasks()) == 1


async def test_a_running_task_is_cancelled_and_the_answer_says_so(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    await stage.running()
    (cancelled,) = await router.cancel([task.id], "no")
    assert cancelled.state is TaskState.CANCELLED
    (queued,) = await router.retry([task.id])
    assert queued.state in (TaskState.QUEUED, TaskState.RUNNING)
    with pytest.raises(NotFound):
        await router.cancel(["t-none"])


async def test_interrupting_an_agent_cancels_its_task_and_an_idle_one_has_none(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    await stage.running()
    assert await router.interrupt("dev-1")
    assert (await stage.store.task(task.id)).state is TaskState.CANCELLED
    await until(lambda: router.core.idle.count("dev"), "it is idle")
    assert not await router.interrupt("dev-1")
    with pytest.raises(AgentGone):
        await router.interrupt("dev-9")


async def test_words_reach_a_busy_agents_conversation_and_an_idle_one_as_a_task(stage: Stage) -> None:
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "the agent is up")
    said = await router.send("dev-1", "Begin.")
    assert said["delivered"] is False
    agent = await stage.running()
    assert agent.order is not None and agent.order.task.agent == "dev-1" and agent.order.task.prompt == "Begin."
    assert await router.send("dev-1", "Faster.") == {"delivered": True, "task_id": said["task_id"]}
    assert agent.messages == ["Faster."]
    with pytest.raises(AgentGone):
        await router.send("dev-9", "Hello.")


async def test_a_drained_stop_lets_the_run_end_and_leaves_no_actor(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    agent = await stage.running()
    assert (await router.stop_agent("dev-1")).state is AgentState.DRAINING
    agent.end()
    await stage.task(task.id, TaskState.SUCCEEDED)
    await until(lambda: not router.core.agents, "it has stopped")
    assert not stage.place.agents and await stage.store.agents() == []


async def test_an_agent_that_drained_when_the_router_ended_is_stopped_by_the_next(stage: Stage) -> None:
    first = await stage.router()
    (task,) = await first.submit([SPEC])
    agent = await stage.running()
    await first.stop_agent("dev-1")
    await first.close()
    second = await stage.router()
    agent.end()
    await stage.task(task.id, TaskState.SUCCEEDED)
    await until(lambda: not second.core.agents, "it has stopped")
    assert not stage.place.agents


async def test_a_stop_now_moves_the_run(stage: Stage) -> None:
    stage.config = make_config(make_role(agents=2), lease_s=0.3)
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev") == 2, "both are up")
    (task,) = await router.submit([SPEC.model_copy(update={"agent": "dev-1"})])
    await stage.running("dev-1")
    await router.stop_agent("dev-1", drain=False)
    other = await stage.running("dev-2")
    assert other.order is not None and other.order.moved
    other.end()
    await stage.task(task.id, TaskState.SUCCEEDED)
    await until(lambda: list(stage.place.agents) == ["dev-2"], "the first is gone")


async def test_an_agent_that_is_stopped_while_it_starts_leaves_no_actor(stage: Stage) -> None:
    router = await stage.router()
    await until(lambda: "dev-1" in router.core.agents, "it is wanted")
    await router.stop_agent("dev-1", drain=False)
    await until(lambda: not router.core.agents and not stage.place.agents, "nothing is left")


async def test_a_launch_that_fails_is_tried_again(stage: Stage) -> None:
    stage.place.failing = [RuntimeError("no such package")]
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "it is up at last")
    assert stage.place.agents["dev-1"].agent.incarnation == 2


async def test_an_agent_cut_off_for_longer_than_its_lease_loses_its_run_once(stage: Stage) -> None:
    stage.config = make_config(make_role(agents=2), lease_s=0.3)
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev") == 2, "both are up")
    stage.place.lost_answers.append("run")
    (task,) = await router.submit([SPEC.model_copy(update={"agent": "dev-1"})])
    first = await stage.running("dev-1")
    # 1: it is cut off; 2: its answer is lost; 3: it is given up after the lease; 4: its next life goes on.
    stage.place.cut.add("dev-1")
    first.end()
    await until(lambda: router.core.agents["dev-1"].incarnation > 1, "it is given up")
    stage.place.cut.clear()
    await until(lambda: any(a.order for a in stage.place.agents.values()), "the task goes on")
    next(agent for agent in stage.place.agents.values() if agent.order).end()
    assert (await stage.task(task.id, TaskState.SUCCEEDED)).number_of_runs == 2
    assert stage.store.results_written == [task.id]


async def test_a_busy_agent_whose_run_nobody_waits_for_is_asked(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    agent = await stage.running()
    # Its run is given up while the agent cannot be reached, and nobody waits for it any more.
    stage.place.cut.add("dev-1")
    router._put(router.core.agent_away("dev-1", router._clock(), 0.5))
    agent.ended.set_exception(Unavailable("Cut off.", part="agent"))  # type: ignore[union-attr]
    agent.ended = asyncio.get_running_loop().create_future()
    stage.place.cut.clear()
    await until(lambda: len(agent.orders) > 1, "it works again")
    agent.end()
    await stage.task(task.id, TaskState.SUCCEEDED)


async def test_a_draining_agent_whose_run_was_given_up_is_stopped_when_it_returns(stage: Stage) -> None:
    router = await stage.router()
    await router.submit([SPEC])
    agent = await stage.running()
    await router.stop_agent("dev-1")
    stage.place.cut.add("dev-1")
    router._put(router.core.agent_away("dev-1", router._clock(), 0.5))
    agent.ended.set_exception(Unavailable("Cut off.", part="agent"))  # type: ignore[union-attr]
    agent.order = agent.ended = None
    stage.place.cut.clear()
    await until(lambda: not router.core.agents and not stage.place.agents, "it has stopped")


async def test_an_error_in_the_core_ends_the_router_and_the_next_one_goes_on(stage: Stage) -> None:
    router = await stage.router()
    (task,) = await router.submit([SPEC])
    agent = await stage.running()
    router.core.outcome = None  # type: ignore[method-assign,assignment]
    agent.end()
    await until(lambda: router._failed_by is not None, "it has ended")
    with pytest.raises(Unavailable):
        await router.check_health()
    await stage.router()
    await stage.task(task.id, TaskState.SUCCEEDED)


async def test_a_decision_reaches_the_agent_over_a_moment_of_silence(stage: Stage) -> None:
    router = await stage.router()
    await router.submit([SPEC])
    agent = await stage.running()
    assert agent.order is not None
    run = agent.order.run
    await router.ask(
        Approval(
            id="a-1",
            task_id=run.task_id,
            run_id=run.id,
            agent_id="dev-1",
            role="dev",
            tool="Bash",
            input={},
            created_at=0.0,
            expires_at=1e12,
        )
    )
    stage.place.cut.add("dev-1")
    await router.decide("a-1", allow=True)
    await asyncio.sleep(0.05)
    stage.place.cut.clear()
    await until(lambda: agent.decisions, "it was told")
    assert await stage.store.approvals() == []


async def test_roles_status_and_nodes_say_what_is(stage: Stage) -> None:
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "the agent is up")
    await router.pause(None, True)
    await router.submit([SPEC, SPEC])
    (role,) = await router.roles()
    assert (role["agents"], role["idle"], role["queued"]) == (1, 1, 2) and role["oldest_queued_at"]
    status = await router.status()
    assert status["queued"] == 2 and "paused" in status["why"]["dev"] and status["agents"] == 1
    (node,) = await router.nodes()
    assert node.agents == 1 and not node.refuses
    drained = await router.drain_node("n1")
    assert drained.draining and drained.refuses == "drains"


async def test_a_silent_node_is_asked_until_it_can_be_reached(stage: Stage) -> None:
    stage.place.node_infos.append(make_node("n2"))
    router = await stage.router()
    router.core.silent["id-n2"] = router._clock()
    stage.place.cut_off.add("id-n2")
    await router._ask_deserted()
    assert {node.name: bool(node.refuses) for node in await router.nodes()} == {"n1": False, "n2": True}
    stage.place.cut_off.clear()
    await router._ask_deserted()
    assert not any(node.refuses for node in await router.nodes())


async def test_a_silent_agent_is_asked_whether_it_is_there(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "SILENT_S", 0.3)
    router = await stage.router()
    await until(lambda: router.core.idle.count("dev"), "the agent is up")
    stage.place.agents["dev-1"].die()
    await until(lambda: router.core.agents["dev-1"].incarnation == 2, "its loss was noticed")
