"""The queue of one role, or of one agent: higher priority first, first come first served, nothing starves. Pure.

Ageing costs nothing: a task that waits gains one priority level every `AGEING_S`, so of two tasks the one with the
smaller `queued_at - priority × AGEING_S` stays ahead for ever, and the heap's keys never change.
"""

from __future__ import annotations

import heapq

AGEING_S = 600.0
"""How long a task waits for one more level of priority."""


class TaskQueue:
    """A heap of task ids; a task that left the queue by another way is skipped when its entry comes up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._entry: dict[str, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entry

    def push(self, task_id: str, priority: int, queued_at: float) -> None:
        """Put a task in, or move it to the place of its new priority."""
        self._next += 1
        self._entry[task_id] = self._next
        heapq.heappush(self._heap, (queued_at - priority * AGEING_S, self._next, task_id))
        self._tidy()

    def remove(self, task_id: str) -> None:
        """Take a task out, wherever it is."""
        if self._entry.pop(task_id, None) is not None:
            self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._entry) + 64:
            self._heap = [entry for entry in self._heap if self._entry.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def head(self) -> tuple[float, str] | None:
        """Return the key and id of the task that is next, None when the queue is empty."""
        while self._heap:
            key, number, task_id = self._heap[0]
            if self._entry.get(task_id) == number:
                return key, task_id
            heapq.heappop(self._heap)
        return None

    def ids(self) -> list[str]:
        """Return the ids in no order."""
        return list(self._entry)
