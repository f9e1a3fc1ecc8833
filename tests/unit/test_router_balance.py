"""Nodes that join later get their share of the agents: late, one at a time, and never back."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.lifecycle import AgentState, TaskState
from fleet.models import NodeInfo, Role, TaskSpec
from fleet.router.balance import UNEVEN_S, Balance
from fleet.router.effects import StopAgent
from fleet.router.placement import NodeLoad, place
from tests.unit.core_world import World, make_node, make_role

N1, N2 = make_node("n1"), make_node("n2")
SPEC = TaskSpec(role="dev", prompt="Work.")


class Joined(World):
    """A world in which nodes come and go."""

    def pass_time(self, seconds: float, *nodes: NodeInfo) -> None:
        """Let time pass in steps, as the router reads the nodes; agents start and stop as they are told."""
        self.nodes = nodes or self.nodes
        end = self.now + seconds
        while self.now < end:
            self.do(self.core.set_nodes(self.nodes, self.now))
            self.go(2)
            self.obey()

    def obey(self) -> None:
        """Stop what is ordered to stop, and start what is to start."""
        for action in [action for action in self.actions if isinstance(action, StopAgent)]:
            self.do(self.core.agent_stopped(action.agent_id, action.incarnation, self.now, 0.5))
        self.start_agents()

    def spread(self) -> dict[str, int]:
        """Return how many agents that are wanted each node has, by its id."""
        return dict(Counter(agent.node for agent in self.core.agents.values() if agent.wanted and agent.node))


def test_an_idle_agent_moves_to_a_node_that_joined_later_but_not_at_once() -> None:
    world = Joined(make_role(agents=2), nodes=(N1,))
    world.pass_time(UNEVEN_S - 4, N1, N2)
    assert world.spread() == {"id-n1": 2} and not world.stops()
    world.pass_time(10)
    assert world.spread() == {"id-n1": 1, "id-n2": 1}
    assert world.stops() == ["dev-2"]
    why = [step.why for step in world.rows.transitions if step.id == "dev-2" and step.new == AgentState.DRAINING.value]
    assert why == ["moves: n1 has 2 of its role, n2 has room and 0"]
    world.pass_time(200)
    assert world.stops() == ["dev-2"], "even is even"


def test_a_node_that_goes_again_takes_nobody_with_it() -> None:
    world = Joined(make_role(agents=4), nodes=(N1,))
    for _ in range(5):
        world.pass_time(UNEVEN_S - 6, N1, N2)
        world.pass_time(4, N1)
    assert not world.stops()


def test_agents_that_work_stay_when_nothing_waits() -> None:
    world = Joined(make_role(agents=2), nodes=(N1,))
    tasks = world.submit_all(*[SPEC for _ in range(2)])
    world.go()
    world.pass_time(100, N1, N2)
    assert not world.stops() and world.spread() == {"id-n1": 2}
    world.end(tasks[1])
    world.pass_time(40)
    assert world.spread() == {"id-n1": 1, "id-n2": 1}
    assert world.task(tasks[0]).state is TaskState.RUNNING and world.task(tasks[0]).number_of_runs == 1


def test_under_load_a_busy_agent_ends_its_run_first_and_nothing_is_lost() -> None:
    world = Joined(make_role(agents=2), nodes=(N1,))
    tasks = world.submit_all(*[SPEC for _ in range(6)])
    world.go()
    world.pass_time(40, N1, N2)
    (leaving,) = [agent for agent in world.core.agents.values() if agent.state is AgentState.DRAINING]
    assert not world.stops() and world.spread() == {"id-n1": 1, "id-n2": 1}
    while any(world.task(task).state is not TaskState.SUCCEEDED for task in tasks):
        for task in tasks:
            if world.task(task).state is TaskState.RUNNING:
                world.end(task)
        world.obey()
    assert world.stops() == [leaving.id]
    assert all(world.task(task).number_of_runs == 1 for task in tasks)


@pytest.mark.parametrize(
    "role",
    [make_role(agents=4, spread=False), make_role(min_agents=4, max_agents=6), make_role(agents=4, labels={"a": "b"})],
    ids=["packs", "scales", "may not"],
)
def test_who_packs_or_scales_or_may_not_live_there_does_not_move(role: Role) -> None:
    world = Joined(role, nodes=(make_node("n1", labels={"a": "b"}),))
    world.pass_time(200, make_node("n1", labels={"a": "b"}), N2)
    assert not world.stops()


def test_an_agent_that_a_task_waits_for_stays() -> None:
    world = Joined(make_role(agents=2), nodes=(N1,))
    world.do(world.core.pause("dev", True))
    world.submit(agent="dev-2")
    world.pass_time(40, N1, N2)
    assert world.stops() == ["dev-1"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 12), min_size=2, max_size=12),
    cpus=st.lists(st.sampled_from([1.0, 2.0, 64.0]), min_size=12, max_size=12),
)
def test_moves_end_and_leave_no_two_nodes_with_room_uneven(counts: list[int], cpus: list[float]) -> None:
    role = make_role(cpus=0.5)
    loads = [
        NodeLoad(make_node(f"n{number}", cpus=max(cpus[number], count * 0.5))) for number, count in enumerate(counts)
    ]
    for load, count in zip(loads, counts, strict=True):
        load.take(role, count)
    balance, now, moves = Balance(), 0.0, 0

    def held() -> dict[str, int]:
        return {load.info.id: load.count for load in loads}

    quiet = 0
    while quiet < 3:
        crowd = balance.look(role, held(), loads, 0.0, now)
        now += UNEVEN_S
        quiet += 1
        if crowd is not None:
            quiet, moves = 0, moves + 1
            next(load for load in loads if load.info.id == crowd.node).take(role, -1)
            where = place(role, loads, 0.0).node
            assert where is not None and where != crowd.node
            next(load for load in loads if load.info.id == where).take(role)
        assert moves <= sum(counts)
    room = [load for load in loads if load.cpus + 0.5 <= load.info.cpus]
    assert all(max(held().values()) - load.count <= 1 for load in room)
