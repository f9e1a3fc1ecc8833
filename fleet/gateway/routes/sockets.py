"""WebSockets: the overview for browsers, the transcript of an agent or a task, and attaching to an agent.

Messages of a transcript: `{"type": "events", "events": [...]}`, `{"type": "agent" | "task", …row}`,
`{"type": "ping"}`, `{"type": "end", …row}`. An attached client sends `{"type": "send", "text": …}` or
`{"type": "interrupt"}` and is answered with `{"type": "sent", "delivered": …, "task_id": …}`,
`{"type": "interrupted", "done": …}` or `{"type": "error", "error": code, "message": …}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect

from fleet.errors import FleetError, InvalidInput
from fleet.gateway.hub import PING_EVERY_S, Hub
from fleet.gateway.parts import Parts, dump
from fleet.gateway.streams import Chunk, Wish, watch
from fleet.gateway.validate import check_prompt
from fleet.gateway.views import brief, card_of
from fleet.gateway.waiting import end
from fleet.models import AgentInfo, Task

CLOSE_NORMAL = 1000
CLOSE_RESTART = 1012
CLOSE_NOT_FOUND = 4404
CLOSE_ERROR = 4500
HISTORY = 200
MESSAGE_LIMIT_BYTES = 1_100_000

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]


def routes(parts: Parts, hub: Hub) -> APIRouter:
    """Return the sockets."""
    router = APIRouter()

    @router.websocket("/api/ws")
    async def overview(
        socket: WebSocket,
        agent: str | None = None,
        task: str | None = None,
        after: int = 0,
        history: int = Query(HISTORY, ge=0, le=1000),
    ) -> None:
        await socket.accept()
        if agent is not None or task is not None:
            wish = Wish(task_id=task, agent_id=agent if task is None else None, after=after, tail=history, follow=True)
            await _both(socket, parts, wish, _ignore)
        else:
            await _overview(socket, parts, hub)

    @router.websocket("/api/agents/{agent_id}/attach")
    async def attach(
        socket: WebSocket, agent_id: str, after: int = 0, history: int = Query(HISTORY, ge=0, le=1000)
    ) -> None:
        await socket.accept()

        async def answer(said: dict[str, Any]) -> dict[str, Any]:
            if said.get("type") == "interrupt":
                return {"type": "interrupted", "done": await parts.router.interrupt(agent_id)}
            if said.get("type") != "send" or not isinstance(said.get("text"), str):
                raise InvalidInput(
                    'Expected {"type": "send", "text": …} or {"type": "interrupt"}, '
                    f"but got type {str(said.get('type'))[:40]!r}.",
                    field="type",
                )
            check_prompt(said["text"], "text")
            await parts.living_agent(agent_id)
            return {"type": "sent", **await parts.router.send(agent_id, said["text"])}

        await _both(socket, parts, Wish(agent_id=agent_id, after=after, tail=history), answer)

    return router


async def _ignore(said: dict[str, Any]) -> None:
    return None


async def _overview(socket: WebSocket, parts: Parts, hub: Hub) -> None:
    await parts.broadcaster.ready()
    viewer = hub.join()

    async def write() -> None:
        while not viewer.closed:
            if viewer.stale:
                viewer.stale = False
                await socket.send_text(await hub.snapshot())
            text = await viewer.next(PING_EVERY_S)
            if text is not None:
                await socket.send_text(text)
            elif not viewer.stale and not viewer.closed:
                await socket.send_text('{"type":"ping"}')
        await socket.close(CLOSE_RESTART, "the gateway restarts")

    try:
        await _until_gone(socket, write, _ignore)
    finally:
        hub.leave(viewer)


async def _both(socket: WebSocket, parts: Parts, wish: Wish, answer: Answer) -> None:
    async def write() -> None:
        try:
            wanted = wish
            if wish.task_id is not None:
                wanted = replace(wish, task_id=(await parts.store.task(wish.task_id)).id)
            async for chunk in watch(parts, wanted):
                for message in _messages(parts, chunk):
                    await socket.send_text(json.dumps(message, ensure_ascii=False))
                if chunk.closing:
                    await socket.close(CLOSE_RESTART, "the gateway restarts")
                    return
            await socket.close(CLOSE_NORMAL)
        except FleetError as error:
            await socket.send_json({"type": "error", **error.to_dict()})
            await socket.close(CLOSE_NOT_FOUND if error.code == "not_found" else CLOSE_ERROR, error.message[:120])

    await _until_gone(socket, write, answer)


async def _until_gone(socket: WebSocket, write: Callable[[], Awaitable[None]], answer: Answer) -> None:
    """Write and read at once, until either side is done; a closed socket is the ordinary end."""

    async def writing() -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await write()

    async def reading() -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                reply = await _answered(await socket.receive_text(), answer)
                if reply is not None:
                    await socket.send_text(json.dumps(reply, ensure_ascii=False))

    tasks = [asyncio.create_task(writing()), asyncio.create_task(reading())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*tasks)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _answered(text: str, answer: Answer) -> dict[str, Any] | None:
    try:
        if len(text) > MESSAGE_LIMIT_BYTES:
            raise InvalidInput(f"Expected at most {MESSAGE_LIMIT_BYTES} bytes, but got {len(text)}.", field="text")
        try:
            said = json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"Expected a message of JSON, but {error}.") from None
        if not isinstance(said, dict):
            raise InvalidInput(f"Expected a JSON object, but got {type(said).__name__}.")
        return await answer(said)
    except FleetError as error:
        return {"type": "error", **error.to_dict()}


def _messages(parts: Parts, chunk: Chunk) -> list[dict[str, Any]]:
    if chunk == Chunk():
        return [{"type": "ping"}]
    messages: list[dict[str, Any]] = []
    if chunk.events:
        messages.append({"type": "events", "events": [dump(event) for event in chunk.events]})
    if chunk.row is not None:
        kind = "end" if chunk.ended else "task" if isinstance(chunk.row, Task) else "agent"
        messages.append({**_row(parts, chunk.row), "type": kind})
    return messages


def _row(parts: Parts, row: Task | AgentInfo) -> dict[str, Any]:
    if isinstance(row, Task):
        return brief(row)
    return card_of(parts.broadcaster.overview, row)
