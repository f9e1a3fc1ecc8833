"""Server-Sent Events: the bytes, and the route's answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable

from starlette.responses import StreamingResponse

from fleet.errors import FleetError, InvalidInput
from fleet.gateway.parts import Parts
from fleet.gateway.streams import Chunk, Wish, watch
from fleet.gateway.views import brief, card_of
from fleet.models import AgentInfo, EventKind, Task

RECONNECT_MS = 1000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
KINDS = frozenset(kind.value for kind in EventKind)


def last_id(header: str | None, after: int) -> int:
    """Return where to begin: the `Last-Event-ID` a client comes back with wins over the query."""
    if header is None or not header.strip():
        return after
    try:
        number = int(header)
    except ValueError:
        number = -1
    if number < 0:
        raise InvalidInput(
            f"Last-Event-ID: expected the id of an event (a number), but got {header[:80]!r}.", field="Last-Event-ID"
        )
    return number


def kinds_of(text: str | None) -> frozenset[str]:
    """Read `frame,state` and refuse kinds that do not exist."""
    wanted = frozenset(part.strip() for part in (text or "").split(",") if part.strip())
    if unknown := sorted(wanted - KINDS):
        raise InvalidInput(
            f"kinds: expected some of {', '.join(sorted(KINDS))}, but got {unknown[0][:80]!r}.", field="kinds"
        )
    return wanted


def message(event: str, data: object, id: int | None = None) -> bytes:
    """Return one message. JSON has no raw newline, so one `data` line is enough."""
    return _message(event, json.dumps(data, ensure_ascii=False, separators=(",", ":")), id)


def _message(event: str, data: str, id: int | None) -> bytes:
    head = f"id: {id}\n" if id is not None else ""
    # JSON may hold U+2028 and other separators; SSE ends lines at CR and LF only, which JSON escapes.
    return f"{head}event: {event}\ndata: {data}\n\n".encode("utf-8", "replace")


async def respond(parts: Parts, wish: Wish) -> StreamingResponse:
    """Answer with a stream; what is wrong before its first byte (no such task) is an ordinary error."""
    stream = watch(parts, wish)
    first = await anext(stream)
    return StreamingResponse(_bytes(parts, first, stream), media_type="text/event-stream", headers=HEADERS)


async def _bytes(parts: Parts, first: Chunk, rest: AsyncIterator[Chunk]) -> AsyncIterator[bytes]:
    yield f"retry: {RECONNECT_MS}\n\n".encode()
    shown: object = None
    try:
        for part in _encode(parts, first):
            yield part
        shown = _state(first.row)
        async for chunk in rest:
            # A busy task's row changes with every turn; here only a change of its state is news.
            if chunk.row is not None and not chunk.ended and _state(chunk.row) == shown:
                chunk = Chunk(chunk.events)
                if not chunk.events:
                    continue
            shown = _state(chunk.row) if chunk.row is not None else shown
            for part in _encode(parts, chunk):
                yield part
    except FleetError as error:
        yield message("error", error.to_dict())


def _state(row: Task | AgentInfo | None) -> object:
    if row is None:
        return None
    return (row.state, row.run_id, row.why, row.task_id if isinstance(row, AgentInfo) else None)


def _encode(parts: Parts, chunk: Chunk) -> Iterable[bytes]:
    if chunk == Chunk():
        yield b": alive\n\n"
    for event in chunk.events:
        yield _message(event.kind.value, event.model_dump_json(), event.id)
    if chunk.row is not None:
        name = "task" if isinstance(chunk.row, Task) else "agent"
        data = brief(chunk.row) if isinstance(chunk.row, Task) else card_of(parts.broadcaster.overview, chunk.row)
        yield message("end" if chunk.ended else name, data)
