"""The figures of the overview, kept up to date by each commit. Pure: time comes in as an argument."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from fleet.models import Batch

DAY_S = 86_400


class TaskMark(NamedTuple):
    """What the figures need of a task."""

    state: str
    priority: int
    queued_at: float | None
    finished_at: float | None


class Counts:
    """Figures of tasks by state, of the queue by priority, and of today (UTC)."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskMark] = {}
        self._states: Counter[str] = Counter()
        self._queued: Counter[int] = Counter()
        self._oldest: list[tuple[float, str]] = []
        self._ended: dict[int, Counter[str]] = {}
        """Day → state → tasks that ended then."""
        self._costs: dict[str, tuple[int, float]] = {}
        """Run → (day, US dollars), of the newest day only."""
        self._day = 0

    def load(self, tasks: Iterable[tuple[str, TaskMark]], costs: Iterable[tuple[str, float, float]]) -> None:
        """Take all tasks, and runs as (id, when, cost)."""
        for task_id, mark in tasks:
            self._put(task_id, mark)
        for run_id, at, cost in costs:
            self._cost(run_id, at, cost)

    def apply(self, batch: Batch) -> None:
        """Take a committed batch."""
        for task in batch.tasks:
            self._put(task.id, TaskMark(task.state.value, task.priority, task.queued_at, task.finished_at))
        for run in batch.runs:
            self._cost(run.id, run.started_at if run.finished_at is None else run.finished_at, run.cost_usd)

    def _put(self, task_id: str, mark: TaskMark) -> None:
        old = self._tasks.get(task_id)
        if old is not None:
            self._states[old.state] -= 1
            if old.state == "queued":
                self._queued[old.priority] -= 1
            if old.finished_at is not None:
                self._ended.setdefault(int(old.finished_at // DAY_S), Counter())[old.state] -= 1
        self._tasks[task_id] = mark
        self._states[mark.state] += 1
        if mark.state == "queued":
            self._queued[mark.priority] += 1
            if mark.queued_at is not None and (old is None or old.state != "queued" or old.queued_at != mark.queued_at):
                heapq.heappush(self._oldest, (mark.queued_at, task_id))
        if mark.finished_at is not None:
            self._ended.setdefault(int(mark.finished_at // DAY_S), Counter())[mark.state] += 1

    def _cost(self, run_id: str, at: float, cost: float) -> None:
        day = int(at // DAY_S)
        if day > self._day:
            self._day = day
            self._costs.clear()
        if day == self._day:
            self._costs[run_id] = (day, cost)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return the figures as `contracts.Store.counts` has them."""
        while self._oldest:
            queued_at, task_id = self._oldest[0]
            mark = self._tasks[task_id]
            if mark.state == "queued" and mark.queued_at == queued_at:
                break
            heapq.heappop(self._oldest)
        today = int(now // DAY_S)
        ended = self._ended.get(today, Counter())
        return {
            "states": {state: n for state, n in sorted(self._states.items()) if n},
            "queued_by_priority": {priority: n for priority, n in sorted(self._queued.items()) if n},
            "done_today": ended["succeeded"],
            "failed_today": ended["failed"] + ended["dead"],
            "cost_today": round(sum(cost for day, cost in self._costs.values() if day == today), 6),
            "oldest_queued_at": self._oldest[0][0] if self._oldest else None,
        }
