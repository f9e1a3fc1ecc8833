"""The overview pushed to browsers: one snapshot each, then changes, coalesced and encoded once for all of them.

Messages:
    {"type": "snapshot", "at", "rehearsal", "fresh", "agents": [card], "tasks": [brief, newest last],
     "approvals": [waiting], "counts": {...}, "status": {...}}
    {"type": "changes", "at", "fresh", …only what changed of: "agents": [card], "gone": [agent id], "tasks": [brief],
     "approvals": [all that wait], "counts", "status"}
    {"type": "ping"} when nothing changed for a while.

What changed is found by comparing the rows' identities with those of the last tick: rows are frozen, so a new object is
a change, and 700 comparisons four times a second cost nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from typing import Any

from fleet.errors import FleetError
from fleet.gateway.parts import Parts, dump
from fleet.gateway.views import brief, card_of, figures
from fleet.gateway.waiting import end, wait_event
from fleet.models import iso

log = logging.getLogger("fleet.gateway")

TICK_S = 0.25
STATUS_EVERY_S = 2.0
PING_EVERY_S = 15.0
BEHIND_LIMIT = 8
"""Messages a socket may be behind (2 s) before it gets a new snapshot instead."""
SHOWN_TASKS = 50


class Viewer:
    """One socket's queue of encoded messages."""

    def __init__(self) -> None:
        self._queue: deque[str] = deque()
        self._wake = asyncio.Event()
        self.stale = True
        """It needs a snapshot first."""
        self.closed = False

    def offer(self, text: str) -> None:
        """Put a message in; one too many empties the queue and asks for a snapshot."""
        if self.stale:
            return
        if len(self._queue) >= BEHIND_LIMIT:
            self._queue.clear()
            self.stale = True
        else:
            self._queue.append(text)
        self._wake.set()

    def close(self) -> None:
        """Wake the socket for the last time."""
        self.closed = True
        self._wake.set()

    async def next(self, timeout_s: float) -> str | None:
        """Return the next message, None when there is none or a snapshot is due."""
        if not self._queue and not self.stale and not self.closed:
            await wait_event(self._wake, timeout_s)
        self._wake.clear()
        return self._queue.popleft() if self._queue and not self.stale else None


class Hub:
    """Makes the messages while anybody looks."""

    def __init__(self, parts: Parts, tick_s: float = TICK_S) -> None:
        self._parts = parts
        self._tick_s = tick_s
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[str, Any] = {}
        self._status: dict[str, Any] = {}
        self._status_at = 0.0

    def join(self) -> Viewer:
        """Add a viewer; the hub begins to tick with the first."""
        viewer = Viewer()
        self._viewers.add(viewer)
        if self._task is None or self._task.done():
            self._seen = self._look()
            self._task = asyncio.create_task(self._run(), name="hub")
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer."""
        self._viewers.discard(viewer)

    async def stop(self) -> None:
        """Close every viewer and end."""
        for viewer in list(self._viewers):
            viewer.close()
        await end(self._task)
        self._task = None

    async def snapshot(self) -> str:
        """Return the message that begins a socket."""
        if not self._status:
            await self._ask_status()
        view = self._parts.broadcaster.overview
        return _encode(
            {
                "type": "snapshot",
                "at": iso(time.time()),
                "rehearsal": self._parts.config.rehearsal,
                "fresh": view.fresh,
                "agents": [card_of(view, agent) for agent in view.agents.values()],
                "tasks": [brief(task) for task in list(view.tasks.values())[-SHOWN_TASKS:]],
                "approvals": [dump(approval) for approval in view.approvals.values()],
                "counts": figures(view.counts),
                "status": self._status,
            }
        )

    async def _run(self) -> None:
        while self._viewers:
            began = time.monotonic()
            try:
                if began - self._status_at > STATUS_EVERY_S:
                    await self._ask_status()
                changes = self._changes()
                if changes:
                    text = _encode({"type": "changes", "at": iso(time.time()), **changes})
                    for viewer in list(self._viewers):
                        viewer.offer(text)
            except Exception:
                log.exception("hub failed")
            await asyncio.sleep(max(0.01, self._tick_s - (time.monotonic() - began)))

    async def _ask_status(self) -> None:
        self._status_at = time.monotonic()
        try:
            self._status = await self._parts.router.status()
        except FleetError as error:
            # Not the old figures: a router that does not answer must look like one.
            self._status = error.to_dict()

    def _look(self) -> dict[str, Any]:
        view = self._parts.broadcaster.overview
        return {
            "agents": dict(view.agents),
            "activities": dict(view.activities),
            "tasks": dict(view.tasks),
            "approvals": dict(view.approvals),
            "counts": view.counts,
            "status": self._status,
            "fresh": view.fresh,
        }

    def _changes(self) -> dict[str, Any]:
        before, now = self._seen, self._look()
        self._seen = now
        view = self._parts.broadcaster.overview
        changes: dict[str, Any] = {}
        moved = [
            agent
            for agent in now["agents"].values()
            if before["agents"].get(agent.id) is not agent
            or before["activities"].get(agent.id) is not now["activities"].get(agent.id)
        ]
        if moved:
            changes["agents"] = [card_of(view, agent) for agent in moved]
        if gone := [agent_id for agent_id in before["agents"] if agent_id not in now["agents"]]:
            changes["gone"] = gone
        if tasks := [task for task in now["tasks"].values() if before["tasks"].get(task.id) is not task]:
            changes["tasks"] = [brief(task) for task in tasks]
        if before["approvals"] != now["approvals"]:
            changes["approvals"] = [dump(approval) for approval in now["approvals"].values()]
        if before["counts"] != now["counts"]:
            changes["counts"] = figures(now["counts"])
        if before["status"] != now["status"]:
            changes["status"] = now["status"]
        if changes or before["fresh"] != now["fresh"]:
            changes["fresh"] = now["fresh"]
        return changes


def _encode(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str)
