"""How many agents a role should have, between its bounds: grows soon, shrinks late, one step at a time. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.models import Role

GROW_EVERY_S = 2.0
SHRINK_AFTER_S = 30.0
"""How long agents must be idle in excess before one is given back."""
FIRST_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a role has to do."""

    queued: int
    oldest_wait_s: float
    agents: int
    idle: int


@dataclass(slots=True)
class Scaler:
    """One role's scaler.

    Attributes:
        why: one sentence on what it wants.
    """

    changed_at: float = 0.0
    idle_since: float | None = None
    why: str = ""

    def want(self, role: Role, demand: Demand, now: float) -> int:
        """Return how many agents the role should have now."""
        low, high = role.min_agents or 0, role.max_agents or role.agents
        have = min(max(demand.agents, low), high)
        if demand.queued and demand.idle == 0:
            self.idle_since = None
            late = demand.oldest_wait_s >= role.target_wait_s
            crowded = demand.queued > role.target_queue_per_agent * max(have, 1)
            none = have == 0
            if (late or crowded or none) and have < high and now - self.changed_at >= GROW_EVERY_S:
                # Doubling reaches any size in few steps without starting more than the queue can use.
                grown = min(high, max(have + 1, min(2 * have, demand.queued)))
                self.changed_at = now
                reason = "nobody there" if none else f"{demand.queued} queued, oldest {demand.oldest_wait_s:.0f} s"
                self.why = f"grows from {have} to {grown} of at most {high}: {reason}"
                return grown
            return have
        if demand.idle and not demand.queued and have > low:
            if self.idle_since is None:
                self.idle_since = now
            elif now - self.idle_since >= SHRINK_AFTER_S and now - self.changed_at >= GROW_EVERY_S:
                self.changed_at = now
                self.why = f"shrinks from {have} to {have - 1}, at least {low}: {demand.idle} idle, nothing queued"
                return have - 1
        else:
            self.idle_since = None
        return have
