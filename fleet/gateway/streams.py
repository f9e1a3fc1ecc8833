"""Events from a point on, without a hole and without a repeat: history from the store, then what the feed brings.

A reader that is too slow is sent back to the store for what it missed, so nothing is lost and nothing is kept for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fleet.errors import Unavailable
from fleet.gateway.broadcaster import Subscription, of_agent, of_task
from fleet.gateway.parts import Parts
from fleet.lifecycle import AgentState
from fleet.models import AgentInfo, Event, EventKind, Task

PAGE = 1000
HEARTBEAT_S = 15.0
"""A silent stream says that it lives: proxies and clients give up on silent ones after 30 to 60 s."""
STORE_RETRY_S = 1.0

Row = Task | AgentInfo


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a stream.

    Attributes:
        events: in the order of their ids.
        row: the task or agent, when it changed.
        ended: nothing more comes: the task is final or the agent stopped.
        closing: the gateway goes away; come again with the last id.

    An empty chunk is a heartbeat.
    """

    events: tuple[Event, ...] = ()
    row: Row | None = None
    ended: bool = False
    closing: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to see.

    Attributes:
        task_id, agent_id: one of them.
        after: the id of the last event seen.
        tail: begin with so many of the newest events; wins over `after` when that is 0.
        kinds: only these kinds; empty for all but TRANSCRIPT.
        follow: go on after the task's final state.
        live: False ends after the history.
    """

    task_id: str | None = None
    agent_id: str | None = None
    after: int = 0
    tail: int | None = None
    kinds: frozenset[str] = frozenset()
    follow: bool = False
    live: bool = True

    @property
    def topic(self) -> str:
        """The broadcaster's topic."""
        return of_task(self.task_id) if self.task_id is not None else of_agent(self.agent_id or "")

    def wants(self, event: Event) -> bool:
        """Whether an event is of a kind that is wanted."""
        return event.kind.value in self.kinds if self.kinds else event.kind is not EventKind.TRANSCRIPT


async def watch(parts: Parts, wish: Wish, heartbeat_s: float = HEARTBEAT_S) -> AsyncIterator[Chunk]:
    """Yield chunks until the end; the first one has the row."""
    with parts.broadcaster.subscribe(wish.topic) as subscription:
        async for chunk in _Watch(parts, wish, subscription, heartbeat_s).chunks():
            yield chunk


class _Watch:
    def __init__(self, parts: Parts, wish: Wish, subscription: Subscription, heartbeat_s: float) -> None:
        self._parts = parts
        self._wish = wish
        self._subscription = subscription
        self._heartbeat_s = heartbeat_s
        self._last = wish.after
        self._row: Row | None = None
        self._tail = wish.tail if not wish.after else None

    async def chunks(self) -> AsyncIterator[Chunk]:
        self._row = await self._read_row()
        yield Chunk(row=self._row)
        async for chunk in self._catch_up():
            yield chunk
        while self._wish.live:
            if self._over():
                # Events are durable before the row is final, so one more look at the store sees all of them.
                async for chunk in self._catch_up():
                    yield chunk
                break
            delivery = await self._subscription.next(self._heartbeat_s)
            if delivery.closed:
                yield Chunk(closing=True)
                return
            if delivery.missed:
                row = await self._settled(self._read_row)
                if row != self._row:
                    self._row = row
                    yield Chunk(row=row)
                async for chunk in self._catch_up():
                    yield chunk
                continue
            events: list[Event] = []
            row_changed = False
            for item in delivery.items:
                if item.kind == "event":
                    events += self._new([item.item])
                elif self._is_row(item.kind, item.item) and item.item != self._row:
                    self._row, row_changed = item.item, True
            if events or row_changed or not delivery.items:
                yield Chunk(tuple(events), self._row if row_changed else None)
        yield Chunk(row=self._row, ended=True)

    def _is_row(self, kind: str, row: Any) -> bool:
        if self._wish.task_id is not None:
            return kind == "task"
        return kind == "agent" and row.id == self._wish.agent_id

    def _over(self) -> bool:
        if self._wish.follow:
            return False
        if isinstance(self._row, Task):
            return self._row.state.final
        return isinstance(self._row, AgentInfo) and self._row.state is AgentState.STOPPED

    def _new(self, events: list[Event]) -> list[Event]:
        """Keep those not seen yet and wanted, and remember the last id."""
        fresh: list[Event] = []
        for event in events:
            if event.id is None or event.id <= self._last:
                continue
            self._last = event.id
            if self._wish.wants(event):
                fresh.append(event)
        return fresh

    async def _catch_up(self) -> AsyncIterator[Chunk]:
        transcript = EventKind.TRANSCRIPT.value in self._wish.kinds
        while True:
            tail, self._tail = self._tail, None
            page: list[Event] = await self._settled(
                self._parts.store.events,
                task_id=self._wish.task_id,
                agent_id=self._wish.agent_id,
                after=self._last,
                limit=min(tail, PAGE) if tail is not None else PAGE,
                newest=tail is not None,
                transcript=transcript,
            )
            fresh = self._new(page)
            if fresh:
                yield Chunk(tuple(fresh))
            if len(page) < PAGE or tail is not None:
                return

    async def _read_row(self) -> Row:
        if self._wish.task_id is not None:
            return await self._parts.store.task(self._wish.task_id)
        return await self._parts.agent(self._wish.agent_id or "")

    async def _settled(self, question: Any, **arguments: Any) -> Any:
        """Ask until the store answers: it restarts by itself, and a stream outlives that."""
        while True:
            try:
                return await question(**arguments)
            except Unavailable:
                if self._parts.broadcaster.closed:
                    raise
                await asyncio.sleep(STORE_RETRY_S)
