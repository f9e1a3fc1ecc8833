"""Where agents go on many nodes, and which idle agent is chosen: held against plain definitions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.models import NodeInfo
from fleet.router.idle import IdleAgents
from fleet.router.placement import NodeLoad, place, refusal
from tests.unit.core_world import make_node, make_role

FLOOR_MB = 1024.0
ZONES = ["a", "b"]


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeInfo]:
    """Up to a thousand nodes of a few kinds."""
    kinds = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "cpus": st.sampled_from([1.0, 4.0, 16.0]),
                    "memory_mb": st.sampled_from([0.0, 2048.0, 16384.0]),
                    "memory_free_mb": st.sampled_from([0.0, 1500.0, 8192.0]),
                    "labels": st.fixed_dictionaries({"zone": st.sampled_from(ZONES)}),
                    "draining": st.booleans(),
                }
            ),
            min_size=1,
            max_size=6,
        )
    )
    count = draw(st.sampled_from([1, 7, 100, 1000]))
    return [make_node(f"n{number}", **kinds[number % len(kinds)]) for number in range(count)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    nodes=clusters(),
    cpus=st.sampled_from([0.1, 0.25, 1.0, 3.0]),
    memory_mb=st.sampled_from([256, 1024, 3000]),
    zone=st.sampled_from([None, *ZONES]),
    spread=st.booleans(),
)
def test_no_node_holds_more_than_it_has_and_rules_are_kept(
    nodes: list[NodeInfo], cpus: float, memory_mb: int, zone: str | None, spread: bool
) -> None:
    role = make_role(cpus=cpus, memory_mb=memory_mb, spread=spread, labels={"zone": zone} if zone else {})
    loads = {node.id: NodeLoad(node) for node in nodes}
    for _ in range(60):
        where = place(role, loads.values(), FLOOR_MB)
        if where.node is None:
            assert "refused" in where.why
            assert all(refusal(role, load, FLOOR_MB) for load in loads.values()), "a node with room was left out"
            break
        loads[where.node].take(role)
    for load in loads.values():
        node = load.info
        assert load.cpus <= node.cpus + 1e-6
        assert not node.memory_mb or load.memory_mb <= node.memory_mb
        if load.count:
            assert not node.draining and (zone is None or node.labels["zone"] == zone)
            assert not node.memory_free_mb or node.memory_free_mb >= memory_mb + FLOOR_MB


def test_spread_is_even_to_one_agent_on_a_thousand_nodes() -> None:
    role = make_role(spread=True)
    loads = {node.id: NodeLoad(node) for node in (make_node(f"n{number}") for number in range(1000))}
    for load in list(loads.values())[:950]:
        load.take(role)
    for _ in range(100):
        where = place(role, loads.values(), FLOOR_MB)
        assert where.node is not None
        loads[where.node].take(role)
    counts = {load.count for load in loads.values()}
    assert counts == {1, 2}


def test_packing_fills_one_node_before_the_next() -> None:
    role = make_role(spread=False, cpus=1.0)
    loads = {node.id: NodeLoad(node) for node in (make_node(f"n{number}", cpus=4.0) for number in range(100))}
    for _ in range(40):
        where = place(role, loads.values(), FLOOR_MB)
        assert where.node is not None
        loads[where.node].take(role)
    assert sorted(load.count for load in loads.values()) == [0] * 90 + [4] * 10


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "discard", "busy", "free_node", "memory", "take"]),
        st.integers(0, 11),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps)
def test_the_best_idle_agent_is_the_one_a_plain_search_finds(steps: list[tuple[str, int, int, int]]) -> None:
    idle = IdleAgents()
    agents: dict[str, tuple[str, str, int]] = {}
    busy, free = dict.fromkeys("wxyz", 0), dict.fromkeys("wxyz", 0)

    def plain(role: str) -> str | None:
        ids = [id for id, (its_role, _, _) in agents.items() if its_role == role]
        return min(ids, key=lambda id: (busy[agents[id][1]], -free[agents[id][1]], agents[id][2], id), default=None)

    for what, number, where, amount in steps:
        node, role = "wxyz"[where], f"role{number % 2}"
        match what:
            case "put":
                agents[f"a{number}"] = (role, node, amount)
                idle.put(role, f"a{number}", node, amount)
            case "discard":
                agents.pop(f"a{number}", None)
                idle.discard(f"a{number}")
            case "busy":
                busy[node] += 1
                idle.set_busy(node, 1)
            case "free_node":
                busy[node] -= 1
                idle.set_busy(node, -1)
            case "memory":
                free[node] = amount
                idle.set_free({node: amount * 1024.0})
            case "take":
                if (best := idle.best(role)) is not None:
                    agents.pop(best)
                    idle.discard(best)
        for name in ("role0", "role1"):
            assert idle.best(name) == plain(name)
            assert idle.count(name) == sum(its_role == name for its_role, _, _ in agents.values())
