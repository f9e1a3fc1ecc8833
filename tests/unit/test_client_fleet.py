from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet import AsyncFleet, Busy, Fleet, InvalidInput, NotFound, Reason, Rows, TaskFailed, TaskState, Timeout
from fleet.client import _base, aio, sync
from fleet.client._base import Target
from fleet.client.sync import as_completed
from fleet.errors import Unauthorized, Unavailable
from fleet.models import Run
from tests.unit.asgi import Loop, StreamingTransport, SyncTransport
from tests.unit.gateway_world import BASE, World, gateway_world


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "FIRST_DELAY_S", 0.001)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with gateway_world(tmp_path) as made:
        yield made


@pytest.fixture
async def fleet(world: World) -> AsyncIterator[AsyncFleet]:
    async with AsyncFleet(Target(BASE, world.token), transport=StreamingTransport(world.app)) as made:
        yield made


def transport_of(fleet: AsyncFleet) -> StreamingTransport:
    found = fleet._http._transport
    assert isinstance(found, StreamingTransport)
    return found


async def run_of(world: World, task_id: str) -> Run:
    agents = await world.router.spawn("qa_tester")
    return await world.router.begin(task_id, agents[0].id)


class TestAsync:
    async def test_a_task_is_submitted_waited_for_and_its_result_read(self, world: World, fleet: AsyncFleet) -> None:
        task = await fleet.submit("qa_tester", "test it", priority=7, max_turns=3)
        assert (task.state, task.task.limits.max_turns, task.done) == (TaskState.QUEUED, 3, False)
        run = await run_of(world, task.id)
        waiting = asyncio.create_task(task.wait(60))
        await world.router.finish(run, text="green")
        assert (await asyncio.wait_for(waiting, 10)).state is TaskState.SUCCEEDED
        assert (await task.result).text == "green"
        assert (await task.diff).startswith("--- a/x")
        assert [found.id for found in await task.runs()] == [run.id]

    async def test_a_failed_task_raises_its_reason_and_remedy(self, world: World, fleet: AsyncFleet) -> None:
        task = await fleet.submit("qa_tester", "test it")
        await world.router.finish(await run_of(world, task.id), TaskState.FAILED, Reason.TURN_LIMIT)
        with pytest.raises(TaskFailed, match=r"used all its turns.*Raise max_turns"):
            await task.result
        assert task.reason is Reason.TURN_LIMIT

    async def test_a_wait_that_is_over_raises_and_the_task_goes_on(self, fleet: AsyncFleet) -> None:
        task = await fleet.submit("qa_tester", "test it")
        with pytest.raises(Timeout, match=r"1 tasks were not final after 0\.01 s"):
            await task.wait(0.01)
        assert (await task.refresh()).state is TaskState.QUEUED

    async def test_many_are_mapped_and_come_as_they_end_each_once(self, world: World, fleet: AsyncFleet) -> None:
        tasks = await fleet.map([f"n{n}" for n in range(4)], role="qa_tester")
        runs = [await run_of(world, task.id) for task in tasks]
        seen = []

        async def watch() -> None:
            async for task in fleet.as_completed([*tasks, tasks[0]], timeout=60):
                seen.append(task.prompt)

        watching = asyncio.create_task(watch())
        for number in (2, 0, 3, 1):
            await world.router.finish(runs[number])
            async with asyncio.timeout(10):
                while len(seen) < (2, 0, 3, 1).index(number) + 1:
                    await asyncio.sleep(0.001)
        await asyncio.wait_for(watching, 10)
        assert seen == ["n2", "n0", "n3", "n1"]

    async def test_events_come_until_the_end_over_connections_that_break(self, world: World, fleet: AsyncFleet) -> None:
        task = await fleet.submit("qa_tester", "test it")
        run = await run_of(world, task.id)
        ids = await world.router.speak(run, *"abcdef")
        transport = transport_of(fleet)
        transport.cuts = [2, 1]
        seen = []
        async for event in task.events():
            seen.append(event.id)
            if len(seen) == 4:
                ids += await world.router.speak(run, "g")
                await world.router.finish(run)
        assert seen == ids
        streams = [request for request in transport.requests if request.url.path.endswith("/events")]
        assert [request.headers.get("last-event-id") for request in streams] == [None, str(ids[1]), str(ids[2])]
        assert task.state is TaskState.SUCCEEDED

    async def test_logs_of_an_agent_end_with_it(self, world: World, fleet: AsyncFleet) -> None:
        task = await fleet.submit("qa_tester", "test it")
        run = await run_of(world, task.id)
        ids = await world.router.speak(run, *"abc")
        await world.router.finish(run)
        await fleet.stop("qa_tester-1")
        assert [event.id async for event in fleet.logs("qa_tester-1", tail=2)] == ids[1:]

    async def test_a_refused_connection_is_tried_again(self, fleet: AsyncFleet) -> None:
        transport_of(fleet).failures = [httpx.ConnectError("refused")] * 3
        assert (await fleet.spawn("qa_tester"))[0].id == "qa_tester-1"

    async def test_a_submit_cut_off_is_sent_again_and_makes_one_task(self, world: World, fleet: AsyncFleet) -> None:
        transport = transport_of(fleet)
        real = transport.handle_async_request
        calls = 0

        async def cut(request: httpx.Request) -> httpx.Response:
            nonlocal calls
            calls += 1
            answer = await real(request)
            if calls == 1:
                await answer.aread()
                raise httpx.ReadError("cut after it arrived")
            return answer

        transport.handle_async_request = cut  # type: ignore[method-assign]
        task = await fleet.submit("qa_tester", "once")
        assert calls == 2
        assert [found.id for found in await fleet.tasks()] == [task.id]

    async def test_a_spawn_that_may_have_arrived_is_not_sent_again(self, fleet: AsyncFleet) -> None:
        transport_of(fleet).failures = [httpx.ReadError("cut")]
        with pytest.raises(Unavailable, match="does not answer"):
            await fleet.spawn("qa_tester")

    async def test_a_full_queue_is_waited_for_as_long_as_it_says(self, world: World, fleet: AsyncFleet) -> None:
        world.router.failing = [Busy("full", retry_after_s=1)]
        slept = []

        async def sleep(delay: float) -> None:
            slept.append(delay)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aio.asyncio, "sleep", sleep)
            await fleet.submit("qa_tester", "x")
        assert slept == [1.0]
        world.router.failing = [Busy("full")] * 100
        impatient = AsyncFleet(fleet.target, retry_for_s=0, transport=transport_of(fleet))
        with pytest.raises(Busy):
            await impatient.submit("qa_tester", "x")

    async def test_errors_come_back_as_themselves(self, world: World, fleet: AsyncFleet) -> None:
        with pytest.raises(InvalidInput, match="expected one of api_developer") as unknown:
            await fleet.submit("poet", "x")
        assert unknown.value.fields["role"] == "poet"
        with pytest.raises(NotFound):
            await fleet.task("t-none")
        stranger = AsyncFleet(Target(BASE, "wrong"), transport=StreamingTransport(world.app))
        with pytest.raises(Unauthorized):
            await stranger.status()

    async def test_everything_else_a_fleet_can_do(self, world: World, fleet: AsyncFleet) -> None:
        await fleet.spawn("qa_tester")
        assert [agent.id for agent in await fleet.agents(all=True)] == ["qa_tester-1"]
        assert (await fleet.cards(all=True))[0]["activity"] is None
        assert (await fleet.agent("qa_tester-1"))["history"] == []
        assert (await fleet.send("qa_tester-1", "hello"))["delivered"] is False
        assert await fleet.interrupt("qa_tester-1") is False
        assert len(await fleet.roles()) == 3
        assert (await fleet.scale("qa_tester", 2)).agents == 2
        await fleet.pause("qa_tester")
        await fleet.pause()
        await fleet.resume()
        assert world.router.paused == {"qa_tester": True, None: False}
        assert (await fleet.nodes())[0].id == "node"
        assert (await fleet.drain_node("node")).draining
        assert await fleet.approvals() == []
        assert (await fleet.status())["epoch"] == 1
        assert (await fleet.health())["status"] == "ok"
        assert (await fleet.store_info())["path"] == ":memory:"
        assert await fleet.prune(older_than_s=3600) == 0
        await fleet.put_setting("templates", [1])
        assert await fleet.setting("templates") == [1]
        first, second = await fleet.tasks(), await fleet.map(["a", "b"], role="qa_tester", labels={"x": "y"})
        ids = [task.id for task in second]
        assert {task.id for task in await fleet.tasks(labels={"x": "y"}, state=["queued"])} == set(ids)
        assert first[0].id not in ids
        assert {task.priority for task in await fleet.prioritize(ids, 1)} == {1}
        assert {task.state for task in await fleet.cancel(ids)} == {TaskState.CANCELLED}
        assert {task.state for task in await fleet.retry(ids)} == {TaskState.QUEUED}
        assert (await second[0].prioritize(8)).task.priority == 8
        assert (await second[0].cancel("no")).done
        assert not (await second[0].retry()).done
        assert (await fleet.transitions("task", ids[0]))[0]["new"] == "queued"
        assert (await fleet.detail(ids[0]))["title"] == "a"
        run = await run_of(world, ids[1])
        await world.router.speak(run, "needle")
        assert (await fleet.search("needle"))[0]["task_id"] == ids[1]
        assert len(await fleet.events(task=ids[1])) == 1
        await world.router.finish(run)
        more = await (await second[1].refresh()).continue_("more", max_turns=2)
        assert (more.task.continue_from, more.task.limits.max_turns) == (ids[1], 2)

    async def test_tasks_are_read_over_pages(self, fleet: AsyncFleet) -> None:
        made = await fleet.map([str(n) for n in range(1005)], role="qa_tester")
        found = [task.id for task in await fleet.tasks(limit=1004)]
        assert len(found) == len(set(found)) == 1004
        assert set(found) < {task.id for task in made}


class TestSync:
    @pytest.fixture
    def loop(self) -> Iterator[Loop]:
        loop = Loop()
        yield loop
        loop.close()

    @pytest.fixture
    def world(self, loop: Loop, tmp_path: Path) -> Iterator[World]:
        stack = AsyncExitStack()

        async def enter() -> World:
            return await stack.enter_async_context(gateway_world(tmp_path))

        yield loop.run(enter())
        loop.run(stack.aclose())

    @pytest.fixture
    def fleet(self, loop: Loop, world: World) -> Iterator[Fleet]:
        transport = SyncTransport(loop, StreamingTransport(world.app))
        with Fleet(Target(BASE, world.token), transport=transport) as made:
            yield made

    def test_a_task_from_submit_to_result(self, loop: Loop, world: World, fleet: Fleet) -> None:
        task = fleet.submit("qa_tester", "test it")
        run = loop.run(run_of(world, task.id))
        ids = loop.run(world.router.speak(run, *"abc"))
        fleet._http._transport.inner.cuts = [2]  # type: ignore[attr-defined]
        seen = []
        for event in task.events():
            seen.append(event.id)
            if len(seen) == 3:
                loop.run(world.router.finish(run, text="green"))
        assert seen == ids
        assert task.result.text == "green"
        assert task.diff.startswith("--- a/x")
        assert task == fleet.task(task.id) and len({task, fleet.task(task.id)}) == 1
        assert repr(task) == f"<TaskHandle {task.id} qa_tester succeeded>"

    def test_many_come_as_they_end(self, loop: Loop, world: World, fleet: Fleet) -> None:
        tasks = fleet.map(["a", "b"], role="qa_tester")
        run = loop.run(run_of(world, tasks[1].id))
        loop.run(world.router.finish(run, TaskState.DEAD, Reason.API_ERROR))
        waiting = as_completed(tasks, timeout=60)
        assert next(waiting) == tasks[1]
        tasks[0].cancel()
        assert [task.state for task in waiting] == [TaskState.CANCELLED]
        with pytest.raises(TaskFailed, match="cancelled"):
            _ = tasks[0].result
        assert list(as_completed([])) == []
        with pytest.raises(Timeout):
            fleet.submit("qa_tester", "x").wait(0.01)

    def test_rows_of_a_query_in_all_their_forms(
        self, world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pyarrow as pa

        table = pa.table({"role": ["a", "b"], "n": [1, 2]})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

        async def sql_arrow(query: str, **bounds: Any) -> bytes:
            return bytes(sink.getvalue())

        monkeypatch.setattr(world.store, "sql_arrow", sql_arrow)
        rows = fleet.sql("select role, n from x")
        assert isinstance(rows, Rows)
        assert rows.arrow().equals(table)
        assert rows.columns == ("role", "n")
        assert rows.rows == [("a", 1), ("b", 2)]
        assert list(rows) == [{"role": "a", "n": 1}, {"role": "b", "n": 2}]
        assert list(rows.pandas()["n"]) == [1, 2]
        assert len(rows) == 2

    def test_connecting_to_nothing_fails_soon_and_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: httpx.Client, **arguments: Any) -> httpx.Response:
            raise httpx.ConnectError("refused")

        slept: list[float] = []
        monkeypatch.setattr(httpx.Client, "request", refuse)
        monkeypatch.setattr(sync.time, "sleep", slept.append)
        with pytest.raises(Unavailable, match=r"fleet at http://127.0.0.1:1 \(from arguments\).*`fleet up` starts it"):
            Fleet.connect("http://127.0.0.1:1", "t")
        assert sum(slept) <= 3.0
