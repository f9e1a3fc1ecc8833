"""A stage: the real gateway, page and store in this process, over a router that a test directs.

For what a rehearsal fleet cannot be brought to quickly: 200 agents, a transcript of 10,000 events, hostile words in
every field, a server that goes away. Everything else is walked on a running fleet.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from fleet.config import FleetConfig
from fleet.gateway.app import build_asgi
from fleet.models import Activity, Approval, Event, EventKind, Run, Usage, new_id
from fleet.store.actor import StoreActor
from tests.unit.twins import TwinRouter, make_config

T = TypeVar("T")
WAIT_S = 60.0


class Stage:
    """A control room with nothing behind it but a store and a router's twin; a context manager."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.config: FleetConfig = make_config(home, **settings)
        self.store = StoreActor(str(home / "fleet.duckdb"))
        self.router = TwinRouter(self.config, self.store)  # type: ignore[arg-type]
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stage", daemon=True)
        self._server: uvicorn.Server | None = None
        self._serving: Any = None
        self._seqs: dict[str, int] = {}

    def __enter__(self) -> Stage:
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.shut()
        self.do(self.store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the server runs, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def open(self) -> None:
        """Serve, at the same port as before."""
        app = build_asgi(self.config, self.store, self.router)  # type: ignore[arg-type]
        settings = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=self.port,
            log_level="warning",
            ws="websockets-sansio",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(settings)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]

        async def serve() -> None:
            assert self._server is not None
            await self._server.serve()

        self._serving = asyncio.run_coroutine_threadsafe(serve(), self._loop)
        deadline = time.monotonic() + WAIT_S
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            assert time.monotonic() < deadline, "the stage did not open"
            time.sleep(0.02)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Stop serving; the store stays."""
        if self._server is not None:
            self._server.should_exit = True
            self._serving.result(WAIT_S)
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> str:
        """The address that logs a browser in."""
        return f"{self.url}/login?token={self.config.token_path.read_text().strip()}"

    # What is played

    async def frames(self, run: Run, frames: list[dict[str, Any]], kind: EventKind = EventKind.FRAME) -> None:
        """Let a run write frames."""
        at = time.time()
        first = self._seqs.get(run.id, 0)
        self._seqs[run.id] = first + len(frames)
        events = [
            Event(
                run_id=run.id,
                task_id=run.task_id,
                agent_id=run.agent_id,
                seq=first + number,
                at=frame.pop("at", at),
                kind=kind,
                type=str(frame.get("type", "")),
                payload=frame,
            )
            for number, frame in enumerate(frames)
        ]
        for start in range(0, len(events), 2000):
            await self.store.append_events(events[start : start + 2000])

    async def beat(self, run: Run, **fields: Any) -> None:
        """Let an agent say what it does."""
        now = time.time()
        values: dict[str, Any] = {
            "tool": "Bash: pytest -q",
            "turns": 3,
            "usage": Usage(input_tokens=1200, output_tokens=340, cache_read_tokens=8000),
            "context_tokens": 42_000,
            "cost_usd": 0.0312,
            "rss_mb": 212.0,
            "processes": 3,
            "node": "node",
            "last_event_at": now,
        }
        await self.store.beat(
            Activity(agent_id=run.agent_id, run_id=run.id, task_id=run.task_id, at=now, **{**values, **fields})
        )

    async def ask(self, run: Run, tool: str, given: dict[str, Any], description: str = "") -> Approval:
        """Let a tool call of a run wait for a person."""
        now = time.time()
        approval = Approval(
            id=new_id("p"),
            task_id=run.task_id,
            run_id=run.id,
            agent_id=run.agent_id,
            role=run.role,
            tool=tool,
            input=given,
            description=description,
            created_at=now,
            expires_at=now + 600,
        )
        await self.router.ask(approval)
        return approval


def text(words: str, parent: str | None = None) -> dict[str, Any]:
    """Return the frame of an agent's words."""
    content = [{"type": "text", "text": words}]
    return {"type": "assistant", "parent_tool_use_id": parent, "message": {"role": "assistant", "content": content}}


def call(tool_id: str, name: str, given: dict[str, Any], parent: str | None = None) -> dict[str, Any]:
    """Return the frame of a tool call."""
    content = [{"type": "tool_use", "id": tool_id, "name": name, "input": given}]
    return {"type": "assistant", "parent_tool_use_id": parent, "message": {"role": "assistant", "content": content}}


def answer(tool_id: str, output: str, failed: bool = False, parent: str | None = None) -> dict[str, Any]:
    """Return the frame of a tool's answer."""
    content = [{"type": "tool_result", "tool_use_id": tool_id, "content": output, "is_error": failed}]
    return {"type": "user", "parent_tool_use_id": parent, "message": {"role": "user", "content": content}}
