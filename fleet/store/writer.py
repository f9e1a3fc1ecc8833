"""Group commit: an asyncio inbox, one thread, one transaction for all that waits, acknowledged after COMMIT.

A commit costs one fsync whatever its size, so while one is on its way the next group gathers: batches are as
large as the load makes them, without a timer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.errors import Busy, FleetError, Unavailable
from fleet.store.database import CHECKPOINT_BYTES, Database, Fatal, Op

log = logging.getLogger("fleet.store")

INBOX_ROWS = 200_000
INBOX_BYTES = 256 * 2**20
GROUP_ROWS = 20_000
"""Rows of one transaction: keeps a commit, and with it everybody's wait, short under load."""
GROUP_BYTES = 64 * 2**20
IDLE_S = 2.0
"""Silence after which the WAL is moved into the file."""
IDLE_CHECKPOINT_BYTES = 4 * 2**20
"""Less than this is not worth a checkpoint: it replays in milliseconds."""

CHECKPOINT_RETRY_S = 10.0
"""How long a checkpoint that found no room on the disk waits for the next try."""


@dataclass(slots=True)
class _Item:
    """What waits in the inbox: an operation of a group, or a call that runs alone."""

    future: asyncio.Future[Any]
    op: Op | None
    call: Callable[[], Any] | None
    rows: int
    bytes: int
    at: float


def _die(why: str) -> None:
    """End the process at once: Ray starts the actor again, which opens the file anew."""
    log.critical("store exits: the database instance is lost: %s", why)
    logging.shutdown()
    os._exit(1)


class Writer:
    """The only caller of `Database.write`.

    Args:
        database: the open file.
        committed: called in the event loop after each commit, before the callers are told, with what was written.
        die: what to do when the database instance is lost.
    """

    def __init__(
        self,
        database: Database,
        committed: Callable[[Sequence[tuple[Op, Any]]], None],
        die: Callable[[str], None] = _die,
    ) -> None:
        self._database = database
        self._committed = committed
        self._die = die
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[_Item] = deque()
        self._wake = threading.Condition()
        self._rows = 0
        self._bytes = 0
        self._no_checkpoint_before = 0.0
        self._closing = False
        self.commits = 0
        self.rows_written = 0
        self.latencies: deque[float] = deque(maxlen=2000)
        """Seconds from a request's arrival to its COMMIT, of the slowest of each group."""
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait to be written."""
        return self._rows

    async def submit(self, op: Op, rows: int, size: int) -> Any:
        """Write an operation; return its outcome once it is durable.

        Raises:
            Busy: too much waits already.
            StorageFull, StaleEpoch, InvalidInput: as the operation met them; nothing of it was written.
        """
        if self._rows and (self._rows + rows > INBOX_ROWS or self._bytes + size > INBOX_BYTES):
            raise Busy(
                f"The store has {self._rows} rows to write already. Try again in a second.",
                retry_after_s=1.0,
                part="store",
            )
        return await self._put(op, None, rows, size)

    async def call(self, work: Callable[[], Any]) -> Any:
        """Run something in the writer's thread, between two groups, after all that waits now."""
        return await self._put(None, work, 0, 0)

    async def _put(self, op: Op | None, work: Callable[[], Any] | None, rows: int, size: int) -> Any:
        if self._closing:
            raise Unavailable("The store is closing. Try again.", part="store", retry_after_s=1.0)
        item = _Item(self._loop.create_future(), op, work, rows, size, time.monotonic())
        self._rows += rows
        self._bytes += size
        with self._wake:
            self._inbox.append(item)
            self._wake.notify()
        # A caller that is cancelled does not undo what was accepted.
        return await asyncio.shield(item.future)

    async def close(self) -> None:
        """Write what waits, then end the thread."""
        self._closing = True
        with self._wake:
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            group = self._take()
            if group is None:
                return
            if not group:
                self._idle()
                continue
            try:
                outcomes = self._run(group)
            except Fatal as error:
                self._die(str(error))
                return
            except BaseException as error:
                # A bug, or memory that ran out: the callers are told; the transaction was never committed.
                log.exception("group failed ops=%d", len(group))
                outcomes = [error if isinstance(error, FleetError) else Unavailable(str(error), part="store")] * len(
                    group
                )
            now = time.monotonic()
            if group[0].op is not None:
                self.commits += 1
                self.latencies.append(now - group[0].at)
            self._loop.call_soon_threadsafe(self._deliver, group, outcomes)
            if self._database.wal_bytes > CHECKPOINT_BYTES:
                self._checkpoint()

    def _take(self) -> list[_Item] | None:
        """Return the next group; an empty one after some silence, None at the end."""
        with self._wake:
            if not self._inbox:
                if self._closing:
                    return None
                self._wake.wait(IDLE_S)
                if not self._inbox:
                    return None if self._closing else []
            if self._inbox[0].call is not None:
                return [self._inbox.popleft()]
            group: list[_Item] = []
            rows = size = 0
            while self._inbox and self._inbox[0].call is None and rows < GROUP_ROWS and size < GROUP_BYTES:
                item = self._inbox.popleft()
                rows += item.rows
                size += item.bytes
                group.append(item)
            return group

    def _run(self, group: list[_Item]) -> list[Any]:
        if (call := group[0].call) is not None:
            try:
                return [call()]
            except Fatal:
                raise
            except Exception as error:
                return [error]
        return self._database.write([item.op for item in group if item.op is not None])

    def _idle(self) -> None:
        if self._database.wal_bytes > IDLE_CHECKPOINT_BYTES:
            self._checkpoint()

    def _checkpoint(self) -> None:
        if time.monotonic() < self._no_checkpoint_before:
            return
        try:
            done = self._database.checkpoint()
        except Fatal as error:
            self._die(str(error))
            return
        except Exception as error:
            log.warning("checkpoint failed error=%s", error)
            done = False
        if not done:
            self._no_checkpoint_before = time.monotonic() + CHECKPOINT_RETRY_S

    # ------------------------------------------------------------------ the event loop

    def _deliver(self, group: list[_Item], outcomes: list[Any]) -> None:
        written = [
            (item.op, outcome)
            for item, outcome in zip(group, outcomes, strict=True)
            if item.op is not None and not isinstance(outcome, BaseException)
        ]
        for item in group:
            self._rows -= item.rows
            self._bytes -= item.bytes
            self.rows_written += item.rows
        try:
            if written:
                self._committed(written)
        except Exception:
            log.exception("feed failed ops=%d", len(written))
        for item, outcome in zip(group, outcomes, strict=True):
            if item.future.done():
                continue
            if isinstance(outcome, BaseException):
                item.future.set_exception(outcome)
                item.future.exception()  # Seen: a caller that went away leaves no "never retrieved" behind.
            else:
                item.future.set_result(outcome)
