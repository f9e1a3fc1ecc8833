"""The live feed: the last changes in memory, with positions, for whoever follows. Pure but for asyncio's waiting."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from typing import Any

from fleet.models import FeedItem

RING_ITEMS = 20_000
RING_BYTES = 64 * 2**20


class Feed:
    """A bounded ring of changes.

    Positions grow by one with each change and begin at the time of the start in microseconds: after a restart they are
    above all that were given before, so that an old one is seen to be too old.
    """

    def __init__(self, start: int | None = None, items: int = RING_ITEMS, size: int = RING_BYTES) -> None:
        self.position = int(time.time() * 1e6) if start is None else start
        self._ring: deque[tuple[str, Any, int]] = deque()
        self._items = items
        self._size = size
        self._bytes = 0
        self._changed = asyncio.Event()

    def push(self, kind: str, item: Any, size: int = 500) -> None:
        """Add a change; `publish` tells those who wait.

        An event may come as `(event, id)`: the copy that carries the id is only made for who reads it.
        """
        self._ring.append((kind, item, size))
        self._bytes += size
        self.position += 1
        while len(self._ring) > self._items or (self._bytes > self._size and len(self._ring) > 1):
            self._bytes -= self._ring.popleft()[2]

    def publish(self) -> None:
        """Wake those who wait."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, position: int | None, timeout_s: float, limit: int) -> list[FeedItem]:
        """Return the changes after `position`, waiting for the first (see `contracts.Store.follow`)."""
        if position is None:
            return [self._note({})]
        first = self.position - len(self._ring)
        if position < first or position > self.position:
            return [
                FeedItem.model_construct(position=first, kind="setting", item={"gap": True}),
                *self._slice(first, limit),
            ]
        if position == self.position:
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), timeout_s)
            except TimeoutError:
                return []
            first = self.position - len(self._ring)
            if position < first:
                return [
                    FeedItem.model_construct(position=first, kind="setting", item={"gap": True}),
                    *self._slice(first, limit),
                ]
        return self._slice(position, limit)

    def _note(self, item: dict[str, Any]) -> FeedItem:
        return FeedItem.model_construct(position=self.position, kind="setting", item=item)

    def _slice(self, position: int, limit: int) -> list[FeedItem]:
        first = self.position - len(self._ring)
        skip = position - first
        found = itertools.islice(self._ring, skip, skip + limit)
        return [
            FeedItem.model_construct(position=position + number, kind=kind, item=_finished(item))  # type: ignore[arg-type]
            for number, (kind, item, _) in enumerate(found, start=1)
        ]


def _finished(item: Any) -> Any:
    return item[0].model_copy(update={"id": item[1]}) if isinstance(item, tuple) else item
