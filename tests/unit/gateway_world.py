"""A gateway over twins, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from fleet.config import FleetConfig
from fleet.gateway.app import build_asgi
from fleet.store.memory import MemoryStore
from tests.unit.asgi import Socket, StreamingTransport
from tests.unit.twins import TwinRouter, make_config

BASE = "http://127.0.0.1:8800"


@dataclass
class World:
    app: FastAPI
    config: FleetConfig
    store: MemoryStore
    router: TwinRouter
    transport: StreamingTransport
    http: httpx.AsyncClient
    token: str

    async def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str, status: int = 200, **params: Any) -> Any:
        answer = await self.http.get(path, params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def submit(self, role: str = "qa_tester", prompt: str = "test it", **more: Any) -> dict[str, Any]:
        task: dict[str, Any] = await self.post("/api/tasks", {"role": role, "prompt": prompt, **more}, 201)
        return task

    def socket(self, path: str, **headers: str) -> Socket:
        given = {"host": "127.0.0.1:8800", "authorization": f"Bearer {self.token}", **headers}
        return Socket(self.app, path, {name: value for name, value in given.items() if value})

    def anonymous(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self.transport, base_url=BASE, headers=headers)


@asynccontextmanager
async def gateway_world(home: Path, **settings: Any) -> AsyncIterator[World]:
    config = make_config(home, **settings)
    store = MemoryStore()
    router = TwinRouter(config, store)
    app = build_asgi(config, store, router, ui=False)
    token = config.token_path.read_text().strip()
    transport = StreamingTransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=BASE, headers={"Authorization": f"Bearer {token}"}) as http,
    ):
        assert await app.state.broadcaster.ready()
        yield World(app, config, store, router, transport, http, token)
