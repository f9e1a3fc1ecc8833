"""The gateway on a real server over the real store: what only sockets show."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI

from fleet import AsyncFleet, Fleet
from fleet.client._base import Target
from fleet.gateway.app import build_asgi
from fleet.store.actor import StoreActor
from tests.unit.twins import TwinRouter, make_config


class Server:
    """A gateway that can go away and come back on its port, with its store and router staying."""

    def __init__(self, home: Path) -> None:
        self.config = make_config(home)
        self.store = StoreActor(str(self.config.store_path))
        self.router = TwinRouter(self.config, self.store)  # type: ignore[arg-type]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.app: FastAPI | None = None
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return self.config.token_path.read_text().strip()

    def fleet(self) -> AsyncFleet:
        return AsyncFleet(Target(self.url, self.token))

    async def up(self) -> None:
        self.app = build_asgi(self.config, self.store, self.router, ui=False)
        settings = uvicorn.Config(
            self.app,
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            timeout_graceful_shutdown=1,
            ws="websockets-sansio",
        )
        self._server = uvicorn.Server(settings)
        self._task = asyncio.create_task(self._server._serve())
        await until(lambda: self._server is not None and self._server.started)

    async def down(self) -> None:
        assert self._server is not None and self._task is not None
        self._server.should_exit = True
        await asyncio.wait_for(self._task, 60)


async def until(what: Callable[[], Any], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[Server]:
    server = Server(home)
    await server.up()
    try:
        yield server
    finally:
        await server.down()
        await server.store.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as made:
        yield made


async def test_events_survive_a_gateway_that_restarts_each_once(server: Server) -> None:
    async with server.fleet() as fleet:
        task = await fleet.submit("qa_tester", "test it")
        await server.router.spawn("qa_tester")
        run = await server.router.begin(task.id, "qa_tester-1")
        ids = await server.router.speak(run, *"abc")
        seen: list[int | None] = []

        async def read() -> None:
            async for event in task.events():
                seen.append(event.id)

        reading = asyncio.create_task(read())
        await until(lambda: len(seen) == 3)
        await server.down()
        ids += await server.router.speak(run, *"de")
        await server.up()
        ids += await server.router.speak(run, "f")
        await server.router.finish(run)
        await asyncio.wait_for(reading, 60)
        assert seen == ids
        assert (await task.result).text == "done"


async def test_a_reader_that_leaves_leaves_nothing_behind(server: Server) -> None:
    assert server.app is not None
    broadcaster = server.app.state.broadcaster
    async with server.fleet() as fleet:
        task = await fleet.submit("qa_tester", "test it")
        await server.router.spawn("qa_tester")
        run = await server.router.begin(task.id, "qa_tester-1")
        await server.router.speak(run, "a")
        async with fleet._http.stream("GET", f"/api/tasks/{task.id}/events") as answer:
            async for _ in answer.aiter_bytes():
                break
            await until(lambda: len(broadcaster.subscriptions()) == 1)
        await until(lambda: not broadcaster.subscriptions())


async def test_sockets_are_refused_without_the_token_and_talk_with_it(server: Server) -> None:
    url = f"ws://127.0.0.1:{server.port}"
    await server.router.spawn("qa_tester")
    good = {"Authorization": f"Bearer {server.token}"}
    for headers in ({}, {"Authorization": "Bearer x"}, {**good, "Origin": "http://evil.example"}):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            await websockets.connect(f"{url}/api/ws", additional_headers=headers)
        assert refused.value.response.status_code == 403
    async with websockets.connect(f"{url}/api/ws", additional_headers=good) as overview:
        assert json.loads(await overview.recv())["type"] == "snapshot"
    async with websockets.connect(f"{url}/api/agents/qa_tester-1/attach", additional_headers=good) as attached:
        await attached.send('{"type": "send", "text": "hello"}')
        while (message := json.loads(await attached.recv()))["type"] != "sent":
            pass
        assert message["delivered"] is False
    async with server.fleet() as fleet:
        assert (await fleet.tasks())[0].prompt == "hello"


async def test_a_login_in_a_browser_opens_the_socket_by_its_cookie(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.get("/login", params={"token": server.token})
        cookie = answer.headers["set-cookie"].partition(";")[0]
    headers = {"Cookie": cookie, "Origin": server.url}
    async with websockets.connect(f"ws://127.0.0.1:{server.port}/api/ws", additional_headers=headers) as overview:
        assert json.loads(await overview.recv())["type"] == "snapshot"


async def test_sql_gives_arrow_pandas_and_rows_and_refuses_what_is_no_select(server: Server) -> None:
    def ask() -> None:
        with Fleet.connect(server.url, server.token) as fleet:
            made = fleet.map([f"n{n}" for n in range(3)], role="qa_tester", priority=8)
            rows = fleet.sql("select id, priority from task order by id")
            assert rows.columns == ("id", "priority")
            assert sorted(rows.rows) == sorted((task.id, 8) for task in made)
            assert rows.pandas()["priority"].sum() == 24
            with pytest.raises(Exception, match="SELECT"):
                fleet.sql("drop table task")
            answer = fleet._http.post(
                "/api/sql", json={"query": "select now() t, 'NaN'::double n, 1.5::decimal(4,2) d"}
            )
            assert answer.json()["columns"] == ["t", "n", "d"]

    await asyncio.to_thread(ask)


async def test_many_tasks_are_waited_for_with_few_requests(server: Server) -> None:
    async with server.fleet() as fleet:
        tasks = await fleet.map([str(n) for n in range(200)], role="qa_tester")
        seen = []

        async def watch() -> None:
            async for task in fleet.as_completed(tasks, timeout=120):
                seen.append(task.id)

        watching = asyncio.create_task(watch())
        for start in range(0, 200, 20):
            await fleet.cancel([task.id for task in tasks[start : start + 20]])
        await asyncio.wait_for(watching, 120)
        assert sorted(seen) == sorted(task.id for task in tasks)
