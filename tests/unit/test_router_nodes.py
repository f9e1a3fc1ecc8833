"""Nodes with custom resources and label rules, and nodes that Ray itself drains."""

from __future__ import annotations

import pytest

from fleet.lifecycle import AgentState, TaskState
from fleet.router.placement import NodeLoad, label_fits, place
from tests.unit.core_world import World, make_node, make_role


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [
        ("a", "a", True),
        ("b", "a", False),
        (None, "a", False),
        ("b", "!a", True),
        (None, "!a", True),
        ("a", "!a", False),
        ("b", "in(a, b)", True),
        ("c", "in(a,b)", False),
        (None, "in(a,b)", False),
        ("c", "!in(a,b)", True),
        ("a", "!in(a,b)", False),
    ],
)
def test_labels_are_read_as_ray_reads_them(value: str | None, wanted: str, fits: bool) -> None:
    assert label_fits(value, wanted) is fits


def test_a_role_with_a_custom_resource_goes_where_it_is_and_no_further_than_it_lasts() -> None:
    role = make_role(resources={"license": 1.0})
    loads = [NodeLoad(make_node("plain")), NodeLoad(make_node("licensed", resources={"license": 2.0}))]
    for _ in range(2):
        where = place(role, loads, 0.0)
        assert where.node == "id-licensed"
        loads[1].take(role)
    where = place(role, loads, 0.0)
    assert where.node is None
    assert "plain refused: 0 license free, needs 1" in where.why
    assert "licensed refused: 0 license free, needs 1" in where.why


def test_agents_of_other_roles_leave_the_resource_alone() -> None:
    load = NodeLoad(make_node(resources={"license": 1.0}))
    load.take(make_role("other"), 5)
    assert place(make_role(resources={"license": 1.0}), [load], 0.0).node == "id-n1"


def test_a_node_that_ray_drains_gets_nothing_and_its_runs_move_before_it_goes() -> None:
    nodes = (make_node("n1"), make_node("n2"))
    world = World(nodes=nodes)
    task = world.submit()
    world.go()
    gone = next(node for node in nodes if node.id == world.task(task).node)
    noticed = [node if node is not gone else node.model_copy(update={"draining": True}) for node in nodes]
    notice = [
        node if node.id != gone.id else node.model_copy(update={"drain_deadline": world.now + 60}) for node in noticed
    ]
    world.do(world.core.set_nodes(notice, world.now))
    world.start_agents()
    assert world.agent("dev-1").state is AgentState.DRAINING and not world.stops()
    assert world.agent("dev-2").node != gone.id
    world.do(world.core.set_nodes(notice, world.now + 49))
    assert not world.stops()
    world.do(world.core.set_nodes(notice, world.now + 51))
    assert world.stops() == ["dev-1"]
    world.do(world.core.agent_stopped("dev-1", 1, world.now + 52, 0.5))
    world.go(60)
    assert world.task(task).state is TaskState.RUNNING and world.task(task).agent_id == "dev-2"


def test_without_a_deadline_ray_waits_until_the_runs_have_ended() -> None:
    world = World(nodes=(make_node("n1"), make_node("n2")))
    task = world.submit()
    world.go()
    drains = [make_node(node.name, draining=node.id == world.task(task).node) for node in world.nodes]
    for later in (0, 1000):
        world.do(world.core.set_nodes(drains, world.now + later))
        assert not world.stops()
    world.end(task)
    assert world.stops() == ["dev-1"]


def test_draining_another_node_ourselves_does_not_end_rays_own_drain() -> None:
    world = World(nodes=(make_node("n1"), make_node("n2")))
    world.do(world.core.set_nodes([make_node("n1", draining=True), make_node("n2")], world.now))
    world.do(world.core.drain_node("n2", None, False, world.now))
    world.do(world.core.drain_node("n2", None, True, world.now))
    assert world.core.nodes["id-n1"].draining and not world.core.nodes["id-n2"].draining


def two_nodes_of_two(**more: object) -> World:
    """Four agents on a head and a worker; dev-2 and dev-4 are on the worker."""
    world = World(make_role(agents=4), nodes=(make_node("n1", head=True), make_node("n2")), **more)
    assert [world.agent(f"dev-{number}").node for number in (1, 2, 3, 4)] == ["id-n1", "id-n2"] * 2
    return world


def test_a_node_whose_agents_are_all_silent_gets_no_agent_and_says_why() -> None:
    world = two_nodes_of_two()
    world.core.set_away({"dev-2", "dev-4"}, world.now)
    for agent_id in ("dev-2", "dev-4"):
        world.lose(agent_id, node_lost=True)
    world.go(5)
    # They were given up, and Ray still says that the node lives: only what is known of it keeps it from getting more.
    world.core.set_away((), world.now)
    world.do(world.core.set_nodes(world.nodes, world.now))
    assert {world.agent(agent_id).node for agent_id in ("dev-2", "dev-4")} == {"id-n1"}
    refuses = {node.name: node.refuses for node in world.core.node_list()}
    assert refuses["n1"] == "" and refuses["n2"].startswith("is silent: none of its agents is heard")


def test_one_agent_that_is_heard_is_enough_for_its_node() -> None:
    world = two_nodes_of_two()
    world.core.set_away({"dev-2"}, world.now)
    world.lose("dev-2")
    assert world.agent("dev-2").node == "id-n2"
    world.core.set_away({"dev-4"}, world.now)
    assert world.core.silent
    world.core.set_away((), world.now + 1)
    assert not world.core.silent


def test_the_routers_own_node_is_never_taken_for_cut_off() -> None:
    world = two_nodes_of_two()
    world.core.set_away({"dev-1", "dev-3"}, world.now)
    assert not world.core.silent


@pytest.mark.parametrize("how", ["answers", "time", "dead"])
def test_a_silent_node_that_lost_its_agents_is_forgiven(how: str) -> None:
    world = two_nodes_of_two()
    world.core.set_away({"dev-2", "dev-4"}, world.now)
    assert world.core.silent and not world.core.deserted(), "its agents may be heard yet"
    world.lose("dev-2", node_lost=True)
    world.lose("dev-4", node_lost=True)
    assert world.core.deserted() == ["id-n2"]
    nodes = world.nodes
    match how:
        case "answers":
            world.core.node_answers("id-n2")
        case "time":
            world.now += 76
        case "dead":
            nodes = (make_node("n1", head=True),)
    world.do(world.core.set_nodes(nodes, world.now))
    assert not world.core.silent
    assert all(node.refuses == "" for node in world.core.node_list())


def test_when_all_workers_are_silent_the_refusals_say_so() -> None:
    role = make_role(agents=1, labels={"zone": "far"})
    world = World(role, nodes=(make_node("n1", head=True), make_node("n2", labels={"zone": "far"})))
    world.core.set_away({"dev-1"}, world.now)
    world.lose("dev-1", node_lost=True)
    world.go(1)
    assert world.agent("dev-1").state is AgentState.STARTING and world.agent("dev-1").node is None
    assert "n2 refused: is silent" in world.agent("dev-1").why
