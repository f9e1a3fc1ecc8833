"""Writes a run's events to the store: in order, in batches, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fleet.contracts import Store
from fleet.errors import FleetError
from fleet.models import Event, EventKind

log = logging.getLogger("fleet.agent")

FLUSH_EVERY_S = 0.02
BATCH_EVENTS = 200
BATCH_BYTES = 4 * 1024 * 1024
STRING_LIMIT = 256 * 1024
"""Characters of one string of a payload that are kept."""
PENDING_EVENTS = 5_000
PENDING_BYTES = 64 * 1024 * 1024
RETRY_S = (0.1, 0.2, 0.5, 1.0)


def cut(value: Any, limit: int = STRING_LIMIT) -> Any:
    """Return a JSON value with long strings cut, and a mark that says how much is missing."""
    if isinstance(value, str):
        if len(value) <= limit:
            return value
        return f"{value[:limit]}… [cut: {len(value) - limit} more characters]"
    if isinstance(value, list):
        return [cut(item, limit) for item in value]
    if isinstance(value, dict):
        return {key: cut(item, limit) for key, item in value.items()}
    return value


def size_of(value: Any) -> int:
    """Return about how many bytes a JSON value takes."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, list):
        return 2 + sum(size_of(item) + 1 for item in value)
    if isinstance(value, dict):
        return 2 + sum(len(key) + 4 + size_of(item) for key, item in value.items())
    return 8


DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def merge_deltas(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Put a streamed piece of text to the one before it, where both belong to the same block."""
    first, second = old.get("event"), new.get("event")
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return False
    if first.get("type") != "content_block_delta" or second.get("type") != "content_block_delta":
        return False
    a, b = first.get("delta"), second.get("delta")
    if not (isinstance(a, dict) and isinstance(b, dict)) or first.get("index") != second.get("index"):
        return False
    key = DELTAS.get(str(a.get("type")))
    if key is None or a.get("type") != b.get("type") or len(str(a.get(key))) > STRING_LIMIT // 8:
        return False
    a[key] = f"{a.get(key, '')}{b.get(key, '')}"
    old["merged"] = old.get("merged", 1) + 1
    return True


class Journal:
    """The events of one run on their way to the store.

    Events of a batch that the store did not take stay in front and are sent again; the store leaves out what it has.
    Under pressure streamed pieces and lines of stderr are left out first, then other frames; a GAP event stands where
    they would be. States, messages, results and the transcript always go through.

    Attributes:
        contact_at: when the store last took a batch (monotonic clock).
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        task_id: str,
        agent_id: str,
        clock: Callable[[], float] = time.time,
        on_contact: Callable[[], None] = lambda: None,
        pending_events: int = PENDING_EVENTS,
        pending_bytes: int = PENDING_BYTES,
    ) -> None:
        self._store = store
        self._ids = {"run_id": run_id, "task_id": task_id, "agent_id": agent_id}
        self._clock = clock
        self._on_contact = on_contact
        self._limit_events, self._limit_bytes = pending_events, pending_bytes
        self._pending: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._seq = 0
        self._left_out = 0
        self._sending = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._last = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._write(), name="journal")

    def add(self, kind: EventKind, type: str = "", payload: dict[str, Any] | None = None) -> None:
        """Add an event; never waits."""
        payload = payload or {}
        if kind is not EventKind.TRANSCRIPT:
            payload = cut(payload)
        size = size_of(payload)
        if self._over(kind, type):
            self._left_out += 1
            return
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._put(EventKind.GAP, "gap", {"count": count}, 32)
        if kind is EventKind.FRAME and type == "stream_event" and len(self._pending) > self._sending:
            last, last_size = self._pending[-1]
            if last.kind is EventKind.FRAME and last.type == type and merge_deltas(last.payload, payload):
                self._pending[-1] = (last, last_size + size // 2)
                self._bytes += size // 2
                return
        self._put(kind, type, payload, size)

    def _over(self, kind: EventKind, type: str) -> bool:
        """Return whether an event is left out, by what waits: the less it matters the sooner."""
        if kind in (EventKind.TRANSCRIPT, EventKind.STATE, EventKind.MESSAGE) or type == "result":
            return False
        share = 0.5 if type == "stream_event" or kind is EventKind.STDERR else 1.0
        return len(self._pending) > self._limit_events * share or self._bytes > self._limit_bytes * share

    def _put(self, kind: EventKind, type: str, payload: dict[str, Any], size: int) -> None:
        event = Event(**self._ids, seq=self._seq, at=self._clock(), kind=kind, type=type, payload=payload)
        self._seq += 1
        self._pending.append((event, size))
        self._bytes += size
        self._wake.set()

    async def _write(self) -> None:
        failures = 0
        while True:
            if not self._pending:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                if not self._closing:
                    # More may come within a moment, unless the run is over.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(FLUSH_EVERY_S):
                            await self._last.wait()
                continue
            batch, size = self._batch()
            self._sending = len(batch)
            try:
                await self._store.append_events(batch)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if failures % 20 == 0:
                    level = logging.WARNING if isinstance(error, FleetError) else logging.ERROR
                    log.log(level, "events wait: the store did not take them run=%s: %s", self._ids["run_id"], error)
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
                continue
            finally:
                self._sending = 0
            failures = 0
            self._on_contact()
            for _ in batch:
                self._pending.popleft()
            self._bytes = max(0, self._bytes - size) if self._pending else 0

    def _batch(self) -> tuple[list[Event], int]:
        batch: list[Event] = []
        total = 0
        for event, size in self._pending:
            if batch and (len(batch) >= BATCH_EVENTS or total + size > BATCH_BYTES):
                break
            batch.append(event)
            total += size
        return batch, total

    async def close(self, timeout_s: float) -> bool:
        """Write what is left; False when the store did not take it in time."""
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._put(EventKind.GAP, "gap", {"count": count}, 32)
        self._closing = True
        self._wake.set()
        self._last.set()
        if self._task is None:
            return not self._pending
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._task, timeout_s)
        return not self._pending
