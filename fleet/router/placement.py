"""Where an agent goes: a decision as a value that explains itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fleet.models import NodeInfo, Role

SILENT = "is silent: none of its agents is heard, it may be cut off"
"""Ray takes up to a minute to say so; what was started there meanwhile would be lost."""


@dataclass(slots=True)
class NodeLoad:
    """A node with what our agents hold of it.

    Attributes:
        info: as Ray and the agents tell it.
        cpus: reserved by our agents.
        memory_mb: reserved by our agents.
        resources: custom ones reserved by our agents.
        agents: how many of ours are there, by role.
        count: how many of ours are there.
        silent: none of ours there is heard: the node may be cut off.
    """

    info: NodeInfo
    cpus: float = 0.0
    memory_mb: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    agents: dict[str, int] = field(default_factory=dict)
    count: int = 0
    silent: bool = False

    def take(self, role: Role, count: int = 1) -> None:
        """Count agents more."""
        self.cpus += count * role.cpus
        self.memory_mb += count * role.memory_mb
        for name, amount in role.resources.items():
            self.resources[name] = self.resources.get(name, 0.0) + count * amount
        self.agents[role.name] = self.agents.get(role.name, 0) + count
        self.count += count


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an agent goes.

    Attributes:
        node: the node's id; None when none takes it.
        why: one sentence: why this node, or why each refused.
    """

    node: str | None
    why: str


def label_fits(value: str | None, wanted: str) -> bool:
    """Return whether a node's label fits what Ray's label selectors can say: `a`, `!a`, `in(a,b)`, `!in(a,b)`."""
    if wanted.startswith("!"):
        return not label_fits(value, wanted[1:])
    if wanted.startswith("in(") and wanted.endswith(")"):
        return value in {one.strip() for one in wanted[3:-1].split(",")}
    return value == wanted


def refusal(role: Role, load: NodeLoad, floor_mb: float) -> str:
    """Return why a node takes no agent of a role now, "" when it does."""
    info = load.info
    if not info.alive:
        return "is away"
    if info.draining:
        return "drains"
    if load.silent:
        return SILENT
    if role.labels and (wrong := [f"{k}={v}" for k, v in role.labels.items() if not label_fits(info.labels.get(k), v)]):
        return f"lacks label {', '.join(wrong)}"
    for name, amount in role.resources.items():
        free = info.resources.get(name, 0.0) - load.resources.get(name, 0.0)
        if free + 1e-9 < amount:
            return f"{free:g} {name} free, needs {amount:g}"
    if load.cpus + role.cpus > info.cpus + 1e-9:
        return f"{info.cpus - load.cpus:g} of {info.cpus:g} CPUs free, needs {role.cpus:g}"
    if info.memory_mb and load.memory_mb + role.memory_mb > info.memory_mb:
        return f"{_gib(info.memory_mb - load.memory_mb)} GiB unreserved, needs {_gib(role.memory_mb)}"
    needed = role.memory_mb + floor_mb
    if info.memory_free_mb and info.memory_free_mb < needed:
        return f"{_gib(info.memory_free_mb)} GiB free, needs {_gib(needed)}"
    return ""


def place(role: Role, loads: Iterable[NodeLoad], floor_mb: float) -> Placement:
    """Choose the node for an agent of a role: the emptiest when it spreads, the fullest that has room when it packs."""
    fitting: list[NodeLoad] = []
    refusals: list[str] = []
    for load in loads:
        if why := refusal(role, load, floor_mb):
            refusals.append(f"{load.info.name} refused: {why}")
        else:
            fitting.append(load)
    if not fitting:
        return Placement(None, "; ".join(refusals[:5]) or "there is no node")

    def rank(load: NodeLoad) -> tuple[float, ...]:
        same, busy = load.agents.get(role.name, 0), load.cpus / max(load.info.cpus, 0.001)
        return (same, load.count, busy) if role.spread else (-load.count, -busy)

    best = min(fitting, key=rank)
    if role.spread:
        same = best.agents.get(role.name, 0)
        why = f"{best.info.name} has the fewest agents of its role ({same}) of {len(fitting)} nodes"
    else:
        why = f"{best.info.name} is the fullest node with room ({best.count} agents)"
    return Placement(best.info.id, why)


def _gib(mb: float) -> str:
    return f"{mb / 1024:.1f}"
