"""The agents that may be given a run, kept so that the best one is found without looking at all of them. Pure.

The best is on the node with the fewest busy agents, then with the most free memory (by GiB), and has done the fewest
runs. Keys of a node change with every run; the heap holds old keys, which are only ever too low, and puts them right
when they come up. A key that falls is pushed anew.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

Key = tuple[int, int, int, str, str]
"""Busy agents of the node, minus its free GiB, runs of its best idle agent, that agent, the node."""


@dataclass(slots=True)
class _Role:
    members: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Agent → its node and runs."""
    nodes: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Node → a heap of its idle agents: runs and id; those that left are skipped."""
    order: list[Key] = field(default_factory=list)
    newest: dict[str, Key] = field(default_factory=dict)
    """Node → the entry of `order` that counts; others of the node are old."""


class IdleAgents:
    """Idle agents by role."""

    def __init__(self) -> None:
        self._roles: dict[str, _Role] = defaultdict(_Role)
        self._role_of: dict[str, str] = {}
        self._free: dict[str, int] = {}
        self.busy: dict[str, int] = defaultdict(int)
        """Node → how many of its agents are busy."""

    def __contains__(self, agent_id: str) -> bool:
        return agent_id in self._role_of

    def count(self, role: str) -> int:
        """Return how many agents of a role are idle."""
        return len(self._roles[role].members) if role in self._roles else 0

    def put(self, role: str, agent_id: str, node: str, runs: int) -> None:
        """Count an agent among the idle."""
        kept = self._roles[role]
        if kept.members.get(agent_id) == (node, runs):
            return
        self.discard(agent_id)
        self._role_of[agent_id] = role
        kept.members[agent_id] = (node, runs)
        heapq.heappush(kept.nodes.setdefault(node, []), (runs, agent_id))
        self._push(kept, node)

    def discard(self, agent_id: str) -> None:
        """Take an agent out, if it is there."""
        role = self._role_of.pop(agent_id, None)
        if role is not None:
            del self._roles[role].members[agent_id]

    def set_busy(self, node: str, change: int) -> None:
        """Count busy agents of a node."""
        self.busy[node] += change
        if change < 0:
            self._fell(node)

    def set_free(self, free_mb: Mapping[str, float]) -> None:
        """Take the free memory of the nodes."""
        for node, free in free_mb.items():
            gib = round(free / 1024)
            old, self._free[node] = self._free.get(node, 0), gib
            if gib > old:
                self._fell(node)

    def best(self, role: str) -> str | None:
        """Return the id of the best idle agent of a role, None when there is none."""
        kept = self._roles.get(role)
        if kept is None or not kept.members:
            return None
        while kept.order:
            top = kept.order[0]
            node = top[-1]
            key = self._key(kept, node) if kept.newest.get(node) is top else None
            if key is None:
                heapq.heappop(kept.order)
                if kept.newest.get(node) is top:
                    del kept.newest[node]
            elif key == top:
                return key[3]
            else:
                kept.newest[node] = key
                heapq.heapreplace(kept.order, key)
        return None

    def _key(self, kept: _Role, node: str) -> Key | None:
        heap = kept.nodes.get(node, [])
        while heap:
            runs, agent_id = heap[0]
            if kept.members.get(agent_id) == (node, runs):
                return self.busy[node], -self._free.get(node, 0), runs, agent_id, node
            heapq.heappop(heap)
        kept.nodes.pop(node, None)
        return None

    def _push(self, kept: _Role, node: str) -> None:
        key = self._key(kept, node)
        if key is None:
            return
        kept.newest[node] = key
        heapq.heappush(kept.order, key)
        if len(kept.order) > 4 * len(kept.nodes) + 64:
            kept.order = [entry for entry in kept.order if kept.newest.get(entry[-1]) is entry]
            heapq.heapify(kept.order)

    def _fell(self, node: str) -> None:
        for kept in self._roles.values():
            if node in kept.nodes:
                self._push(kept, node)
