"""Follows the store and feeds a recorder of metrics: the loop between `meter` and Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from fleet.contracts import Store
from fleet.errors import FleetError
from fleet.lifecycle import TaskState
from fleet.models import FeedItem
from fleet.observability.definitions import Sample
from fleet.observability.meter import Meter

log = logging.getLogger("fleet.observability")

GAUGES_EVERY_S = 5.0
"""Ray exports every 10 s, and drops a gauge that was not renewed."""
RETRY_S = 1.0


class Recorder(Protocol):
    """Where samples go."""

    def record(self, samples: Iterable[Sample]) -> None:
        """Take samples; must not raise for what the network does."""
        ...


class MetricsPump:
    """Feeds the metrics of a fleet; one per fleet, beside whoever lives as long as the fleet does.

    Args:
        store: the store, or its proxy.
        recorder: where the samples go.
        changes: waits for the next changes and returns them, for a process that follows the store anyway (an answer of
            None says that some went by); without it the pump follows by itself.
        gauges_every_s: how often the gauges are renewed.
        retry_s: how long to wait for a store that does not answer.
        watchers: take each change too.
    """

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        *,
        changes: Callable[[], Awaitable[Sequence[FeedItem] | None]] | None = None,
        gauges_every_s: float = GAUGES_EVERY_S,
        retry_s: float = RETRY_S,
        watchers: Sequence[Callable[[FeedItem], None]] = (),
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._changes = changes
        self._every_s = gauges_every_s
        self._retry_s = retry_s
        self._watchers = tuple(watchers)
        self._position: int | None = None
        self.meter = Meter()

    async def run(self) -> None:
        """Feed until cancelled. A store that does not answer is waited for."""
        gauges = asyncio.create_task(self._gauges(), name="metrics-gauges")
        try:
            await self._follow()
        finally:
            gauges.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gauges

    async def _follow(self) -> None:
        began = False
        while True:
            try:
                if not began:
                    await self._begin()
                    began = True
                items = await self._next()
                if items is None:
                    began = False
                    continue
                now = time.time()
                self._recorder.record([sample for item in items for sample in self.meter.take(item, now)])
                for watcher in self._watchers:
                    for item in items:
                        watcher(item)
            except FleetError:
                # Whoever follows for a living says so in the log.
                began = False
                await asyncio.sleep(self._retry_s)
            except Exception:
                log.exception("metrics failed")
                began = False
                await asyncio.sleep(self._retry_s)

    async def _begin(self) -> None:
        if self._changes is None:
            first = await self._store.follow(None, timeout_s=1.0)
            self._position = first[-1].position if first else 0
        agents, approvals, tasks, activities = await asyncio.gather(
            self._store.agents(),
            self._store.approvals(waiting=True),
            self._store.tasks(states=[state.value for state in TaskState if not state.final], limit=10_000),
            self._store.activities(),
        )
        self.meter.begin(agents, approvals, tasks, activities)

    async def _next(self) -> Sequence[FeedItem] | None:
        if self._changes is not None:
            return await self._changes()
        items = await self._store.follow(self._position)
        if any(item.kind == "setting" and isinstance(item.item, dict) and item.item.get("gap") for item in items):
            return None
        if items:
            self._position = items[-1].position
        return items

    async def _gauges(self) -> None:
        while True:
            try:
                counts, info = await asyncio.gather(self._store.counts(), self._store.info())
                self._recorder.record(self.meter.gauges(counts, info, time.time()))
            except FleetError:
                pass
            except Exception:
                log.exception("gauges failed")
            await asyncio.sleep(self._every_s)
