"""Drives an ASGI app in this process, as a server would: streams that can be cut, sockets, a sync client's bridge.

httpx's own `ASGITransport` gives nothing before the app has answered completely, which an open stream never does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._exchange.chunks():
            yield chunk

    async def aclose(self) -> None:
        await self._exchange.disconnect()


class _Exchange:
    """One request to the app and its answer as it comes."""

    def __init__(self, app: Any, scope: dict[str, Any], body: bytes, cut_after: int | None) -> None:
        self._sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._body: bytes | None = body
        self._cut_after = cut_after
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: Any, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._sent.put)
        finally:
            await self._sent.put(None)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def start(self) -> dict[str, Any]:
        message = await self._sent.get()
        if message is None:
            await self.task
            raise httpx.RemoteProtocolError("no answer")
        return message

    async def chunks(self) -> AsyncIterator[bytes]:
        seen = 0
        while (message := await self._sent.get()) is not None:
            if message.get("body"):
                seen += message["body"].count(b"\nid: ") + message["body"].startswith(b"id: ")
                yield message["body"]
                if self._cut_after is not None and seen >= self._cut_after:
                    raise httpx.ReadError("the connection was cut")
            if not message.get("more_body"):
                return

    async def disconnect(self) -> None:
        self._gone.set()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self.task


class StreamingTransport(httpx.AsyncBaseTransport):
    """Gives an app's answer as it comes.

    Attributes:
        cuts: how many events each of the next streams may give before its connection breaks.
        failures: exceptions that the next requests raise instead of being sent.
        requests: all that were sent.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cuts: list[int] = []
        self.failures: list[Exception] = []
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.failures:
            raise self.failures.pop(0)
        self.requests.append(request)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 1),
        }
        streams = "text/event-stream" in request.headers.get("accept", "")
        cut = self.cuts.pop(0) if self.cuts and streams else None
        exchange = _Exchange(self.app, scope, await request.aread(), cut)
        start = await exchange.start()
        return httpx.Response(start["status"], headers=start["headers"], stream=_Body(exchange), request=request)


class Socket:
    """A WebSocket to the app."""

    def __init__(self, app: Any, path: str, headers: dict[str, str]) -> None:
        target, _, query = path.partition("?")
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": [],
            "server": ("127.0.0.1", 8800),
            "client": ("127.0.0.1", 1),
        }
        self._in.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(app(scope, self._in.get, self._out.put))

    async def event(self, timeout: float = 10.0) -> dict[str, Any]:
        return await asyncio.wait_for(self._out.get(), timeout)

    async def read(self, *types: str, timeout: float = 10.0) -> dict[str, Any]:
        """Return the next message of one of the types (any, when none is named)."""
        while True:
            event = await self.event(timeout)
            if event["type"] == "websocket.send":
                message: dict[str, Any] = json.loads(event["text"])
                if not types or message["type"] in types:
                    return message
            elif event["type"] == "websocket.close":
                raise AssertionError(f"closed: {event}")

    async def send(self, message: Any) -> None:
        await self._in.put({"type": "websocket.receive", "text": json.dumps(message)})

    async def closed(self) -> dict[str, Any]:
        while (event := await self.event())["type"] != "websocket.close":
            pass
        return event

    async def leave(self) -> None:
        await self._in.put({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self._task, 10)


class Loop:
    """An event loop in a thread, for a sync client's test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class _SyncBody(httpx.SyncByteStream):
    def __init__(self, loop: Loop, stream: Any) -> None:
        self._loop = loop
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        iterator = self._stream.__aiter__()
        while True:
            try:
                yield self._loop.run(iterator.__anext__())
            except StopAsyncIteration:
                return

    def close(self) -> None:
        self._loop.run(self._stream.aclose())


class SyncTransport(httpx.BaseTransport):
    """The streaming transport for a sync client."""

    def __init__(self, loop: Loop, inner: StreamingTransport) -> None:
        self._loop = loop
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()

        async def ask() -> httpx.Response:
            again = httpx.Request(
                request.method, request.url, headers=request.headers, content=request.content, extensions={}
            )
            return await self.inner.handle_async_request(again)

        answer = self._loop.run(ask())
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=_SyncBody(self._loop, answer.stream), request=request
        )
