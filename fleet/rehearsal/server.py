"""The Messages API on loopback, answered by scripts: what stands in for the model in rehearsal.

Only what Claude Code asks for: streamed and whole messages, token counts, errors as the service words them. It may
break its answers on purpose: with the chances of `faults`, or where a prompt's `fault:` line says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import uuid
from collections import Counter
from typing import Any

from aiohttp import web

from fleet.rehearsal import model
from fleet.rehearsal.scripts import directives
from fleet.rehearsal.scripts.steps import Fault, Say

STATUS = {
    "400": (400, "invalid_request_error", "The request is not valid."),
    "401": (401, "authentication_error", "invalid x-api-key"),
    "404": (404, "not_found_error", "model: none"),
    "429": (429, "rate_limit_error", "This request would exceed your rate limit."),
    "500": (500, "api_error", "Internal server error"),
    "529": (529, "overloaded_error", "Overloaded"),
}
STREAM_FAULTS = ("cut", "stall", "malformed")
STALL_S = 30.0
CHUNK = 2000


def parse_faults(text: str) -> tuple[dict[str, float], int]:
    """Read `429:0.1,cut:0.05,seed=7`: the chance of each fault, and the seed. Raises ValueError."""
    chances: dict[str, float] = {}
    seed = 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.startswith("seed="):
            seed = int(part[5:])
            continue
        name, sep, chance = part.partition(":")
        if not sep or name not in (*STATUS, *STREAM_FAULTS):
            known = ", ".join((*STATUS, *STREAM_FAULTS))
            raise ValueError(f"expected FAULT:CHANCE with a fault of {known}, or seed=N; got {part!r}")
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
        fault = self._ordered_fault(talk.order, session, talk.next_step) or self._chance()
        if isinstance(step, Fault):
            fault, step = step, Say("")
        if fault is not None and fault.what in STATUS:
            return _error(fault)
        if step.delay_s:
            await asyncio.sleep(step.delay_s)
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
        return await self._stream(request, message, fault)

    def _ordered_fault(self, order: str, session: str, step: int) -> Fault | None:
        """Return the fault that a `fault:` line orders for the request whose next step is the one after the line."""
        for number, directive in enumerate(directives.parse(order)):
            if directive.verb != "fault" or number > step:
                continue
            what, *options = directive.argument.split()
            values = dict(option.partition("=")[::2] for option in options)
            key = f"{session} {number} {order[:80]}"
            if self._given[key] < int(values.get("times", "1")):
                self._given[key] += 1
                after = values.get("retry-after")
                return Fault(what, float(after) if after else None)
        return None

    def _chance(self) -> Fault | None:
        drawn = self._random.random()
        for what, chance in self._chances.items():
            if drawn < chance:
                return Fault(what)
            drawn -= chance
        return None

    async def _stream(self, request: web.Request, message: dict[str, Any], fault: Fault | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        events = list(_events(message))
        broken_at = len(events) // 2 if fault else None
        with contextlib.suppress(ConnectionError):
            for number, event in enumerate(events):
                if fault is not None and number == broken_at:
                    if fault.what == "stall":
                        await asyncio.sleep(STALL_S)
                    elif fault.what == "malformed":
                        await response.write(b"event: content_block_delta\ndata: {not json\n\n")
                    if request.transport is not None:
                        request.transport.close()
                    return response
                await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            await response.write_eof()
        return response


def _error(fault: Fault) -> web.Response:
    status, kind, text = STATUS[fault.what]
    headers = {} if fault.retry_after_s is None else {"retry-after": f"{fault.retry_after_s:g}"}
    return web.json_response(
        {"type": "error", "error": {"type": kind, "message": text}}, status=status, headers=headers
    )


def _events(message: dict[str, Any]) -> Any:
    usage = message["usage"]
    start = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
            for part in _parts(block["text"]):
                yield {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": part}}
        else:
            empty = {**block, "input": {}}
            yield {"type": "content_block_start", "index": index, "content_block": empty}
            for part in _parts(json.dumps(block["input"])):
                delta = {"type": "input_json_delta", "partial_json": part}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": usage}
    yield {"type": "message_stop"}


def _parts(text: str) -> list[str]:
    return re.findall(rf"(?s).{{1,{CHUNK}}}", text) or [""]
