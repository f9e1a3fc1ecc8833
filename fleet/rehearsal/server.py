"""The Messages API on loopback, answered by scripts: what stands in for the model in rehearsal.

Only what Claude Code asks for: streamed and whole messages, token counts, errors as the service words them. It may
break its answers on purpose: with the chances of `faults`, or where a prompt's `fault:` line says so. The faults are
the statuses 400, 401, 404, 429, 500, 529, a stream that is `cut`, a `stall` (silence, then cut), a `malformed` event,
and `max_tokens` (the answer ends before it is complete).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from fleet.rehearsal import model
from fleet.rehearsal.conversation import Conversation
from fleet.rehearsal.scripts import directives
from fleet.rehearsal.scripts.steps import Fault, Step

STATUS = {
    "400": (400, "invalid_request_error", "The request is not valid."),
    "401": (401, "authentication_error", "invalid x-api-key"),
    "404": (404, "not_found_error", "model: none"),
    "429": (429, "rate_limit_error", "This request would exceed your rate limit."),
    "500": (500, "api_error", "Internal server error"),
    "529": (529, "overloaded_error", "Overloaded"),
}
STREAM_FAULTS = ("cut", "stall", "malformed", "max_tokens")
FAULTS = (*STATUS, *STREAM_FAULTS)
STALL_S = 30.0
"""How long a stalled stream is silent before it is cut, unless its line says."""
CHUNK = 2000
"""Characters of an event; a text of a million must not come as one."""


def parse_faults(text: str) -> tuple[dict[str, float], int]:
    """Read `429:0.1,cut:0.05,seed=7`: the chance of each fault, and the seed. Raises ValueError."""
    chances: dict[str, float] = {}
    seed = 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.startswith("seed="):
            seed = int(part[5:])
            continue
        name, sep, chance = part.partition(":")
        if not sep or name not in FAULTS:
            raise ValueError(f"expected FAULT:CHANCE with a fault of {', '.join(FAULTS)}, or seed=N; got {part!r}")
        chances[name] = float(chance)
    return chances, seed


class RehearsalServer:
    """A scripted model service on 127.0.0.1.

    Args:
        faults: chances of faults, as `parse_faults` reads them; "" is none.
    """

    def __init__(self, faults: str = "") -> None:
        self._chances, seed = parse_faults(faults)
        self._random = random.Random(seed)
        self._given: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self.requests = 0

    async def start(self) -> str:
        """Listen on a free port and return the base URL."""
        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/messages/count_tokens", self._count)
        app.router.add_route("*", "/{rest:.*}", self._anything)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        server = site._server
        assert server is not None
        port = server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _anything(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _count(self, request: web.Request) -> web.Response:
        return web.json_response({"input_tokens": len(await request.text()) // model.BYTES_PER_TOKEN})

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        body = await request.json()
        session = request.headers.get("X-Claude-Code-Session-Id", "")
        talk, step = model.decide(body)
        fault = self._fault(talk, step, session)
        if fault is not None and fault.what in STATUS:
            return _error(fault)
        if step.pace.delay_s:
            await asyncio.sleep(step.pace.delay_s)
        content = model.content_of(talk, step, body)
        message = {
            "id": f"msg_{uuid.uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "rehearsal"),
            "content": content,
            "stop_reason": "tool_use" if content[-1]["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": model.usage_of(body, content),
        }
        if not body.get("stream"):
            return web.json_response(message)
        return await self._stream(request, message, step, fault)

    def _fault(self, talk: Conversation, step: Step, session: str) -> Fault | None:
        """Return the fault that the prompt orders for this request, else one by chance."""
        key = f"{session} {talk.order_number}"
        return directives.fault_due(directives.parse(talk.order), step, key, self._given) or self._chance()

    def _chance(self) -> Fault | None:
        drawn = self._random.random()
        for what, chance in self._chances.items():
            if drawn < chance:
                return Fault(what)
            drawn -= chance
        return None

    async def _stream(
        self, request: web.Request, message: dict[str, Any], step: Step, fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        pause_s = 1 / step.pace.pieces_per_s if step.pace.pieces and step.pace.pieces_per_s else 0.0
        pieces = set(model.pieces_of(step)) if pause_s else set()
        events = list(_events(message, model.pieces_of(step)))
        with contextlib.suppress(ConnectionError):
            for number, event in enumerate(events):
                if fault is not None and number == len(events) // 2:
                    await _break(request, response, fault)
                    return response
                await response.write(_line(event))
                if pieces and event.get("delta", {}).get("text") in pieces:
                    await asyncio.sleep(pause_s)
            await response.write_eof()
        return response


async def _break(request: web.Request, response: web.StreamResponse, fault: Fault) -> None:
    """End a stream in its middle, as the fault says."""
    if fault.what == "max_tokens":
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        await response.write(_line({"type": "content_block_stop", "index": 0}))
        await response.write(_line({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 10}}))
        await response.write(_line({"type": "message_stop"}))
        await response.write_eof()
        return
    if fault.what == "stall":
        await asyncio.sleep(STALL_S if fault.seconds is None else fault.seconds)
    elif fault.what == "malformed":
        await response.write(b"event: content_block_delta\ndata: {not json\n\n")
    if request.transport is not None:
        request.transport.close()


def _line(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _error(fault: Fault) -> web.Response:
    status, kind, text = STATUS[fault.what]
    headers = {} if fault.retry_after_s is None else {"retry-after": f"{fault.retry_after_s:g}"}
    return web.json_response(
        {"type": "error", "error": {"type": kind, "message": text}}, status=status, headers=headers
    )


def _events(message: dict[str, Any], pieces: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of a message; the first text comes in the given pieces, where there are any."""
    usage = message["usage"]
    start = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(message["content"]):
        empty, deltas = _deltas(block, pieces)
        if block["type"] == "text":
            pieces = []
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": usage}
    yield {"type": "message_stop"}


def _deltas(block: dict[str, Any], pieces: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block as it starts, and what is added to it."""
    match block["type"]:
        case "text":
            parts = pieces or _parts(block["text"])
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": part} for part in parts]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": part} for part in _parts(block["thinking"])]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]
        case _:
            parts = _parts(json.dumps(block["input"]))
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _parts(text: str) -> list[str]:
    return [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)] or [""]
