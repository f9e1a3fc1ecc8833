"""Which agent moves to a node that came later: a decision with hysteresis. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleet.models import Role
from fleet.router.placement import NodeLoad, refusal

UNEVEN_S = 30.0
"""How long a role's agents must be spread unevenly before one moves: a node that just came may go again, and one whose
agents are being started anew is not crowded for long."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """A node with too many agents of a role, beside one that would take some.

    Attributes:
        node: the id of the fullest.
        why: one sentence.
    """

    node: str
    why: str


@dataclass(slots=True)
class Balance:
    """One role's balance over the nodes.

    Attributes:
        uneven_since: since when one agent fewer on the fullest node would make the spread more even.
    """

    uneven_since: float | None = None

    def look(
        self, role: Role, held: dict[str, int], loads: Iterable[NodeLoad], floor_mb: float, now: float
    ) -> Crowd | None:
        """Return the node that an agent is to leave now, None when all is even or has not been uneven for long.

        Args:
            role: whose agents.
            held: how many each node holds, by its id; nodes without any may be missing.
            loads: all nodes.
            floor_mb: free memory that a node keeps.
            now: seconds since the epoch.
        """
        everyone = list(loads)
        fullest = max(everyone, key=lambda load: held.get(load.info.id, 0), default=None)
        most = held.get(fullest.info.id, 0) if fullest is not None else 0
        # A difference of one is even: moving one would only turn it round.
        room = [
            load for load in everyone if most - held.get(load.info.id, 0) >= 2 and not refusal(role, load, floor_mb)
        ]
        if fullest is None or not room:
            self.uneven_since = None
            return None
        if self.uneven_since is None:
            self.uneven_since = now
        if now - self.uneven_since < UNEVEN_S:
            return None
        self.uneven_since = None
        to = min(room, key=lambda load: held.get(load.info.id, 0))
        fewest = held.get(to.info.id, 0)
        return Crowd(
            fullest.info.id, f"moves: {fullest.info.name} has {most} of its role, {to.info.name} has room and {fewest}"
        )
