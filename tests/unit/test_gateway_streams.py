from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.client._base import Message, StreamReader
from fleet.errors import Unavailable
from fleet.gateway import broadcaster as broadcasting
from fleet.gateway import streams
from fleet.gateway.broadcaster import ALL, Broadcaster, of_agent, of_task
from fleet.lifecycle import TaskState
from fleet.models import Activity, EventKind, Run
from fleet.reasons import Reason
from fleet.store.memory import MemoryStore
from tests.unit.gateway_world import World, gateway_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with gateway_world(tmp_path) as made:
        yield made


class Reader:
    """An open SSE stream."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._reader = StreamReader()
        self._waiting: list[Message] = []

    async def next(self) -> Message | None:
        while not self._waiting:
            try:
                chunk = await asyncio.wait_for(anext(self._chunks), 10)
            except StopAsyncIteration:
                return None
            self._waiting += self._reader.feed(chunk)
        return self._waiting.pop(0)

    async def ids(self, count: int) -> list[int]:
        """The ids of the next `count` events; other messages are passed over."""
        found: list[int] = []
        while len(found) < count:
            message = await self.next()
            assert message is not None
            if message.id is not None:
                found.append(message.id)
        return found

    async def rest(self) -> list[Message]:
        found = []
        while (message := await self.next()) is not None:
            found.append(message)
        return found


@asynccontextmanager
async def stream(world: World, path: str, last: int | None = None, **params: Any) -> AsyncIterator[Reader]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(last)} if last is not None else {})}
    async with world.http.stream("GET", path, params=params, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Reader(answer.aiter_bytes())


async def running(world: World) -> Run:
    task = await world.submit()
    await world.router.spawn("qa_tester")
    return await world.router.begin(task["id"], "qa_tester-1")


async def test_history_then_live_then_the_end(world: World) -> None:
    run = await running(world)
    first = await world.router.speak(run, "one", "two")
    async with stream(world, f"/api/tasks/{run.task_id}/events") as reader:
        assert await reader.ids(2) == first
        second = await world.router.speak(run, "three")
        assert await reader.ids(1) == second
        last = await world.router.speak(run, "four")
        await world.router.finish(run)
        rest = await reader.rest()
    assert [message.id for message in rest if message.id is not None] == last
    assert (rest[-1].event, rest[-1].data["state"], rest[-1].id) == ("end", "succeeded", None)


async def test_a_finished_task_gives_its_events_and_ends(world: World) -> None:
    run = await running(world)
    ids = await world.router.speak(run, *"abcde")
    await world.router.finish(run, TaskState.FAILED, Reason.TURN_LIMIT)
    async with stream(world, f"/api/tasks/{run.task_id}/events") as reader:
        messages = await reader.rest()
    assert [message.id for message in messages if message.id is not None] == ids
    assert messages[0].event == "task"
    assert messages[-1].data["reason"] == "turn_limit"


async def test_a_resume_begins_after_the_last_id_without_hole_or_repeat(world: World) -> None:
    run = await running(world)
    ids = await world.router.speak(run, *"abcdefgh")
    path = f"/api/tasks/{run.task_id}/events"
    async with stream(world, path) as reader:
        seen = await reader.ids(3)
    more = await world.router.speak(run, *"ij")
    await world.router.finish(run)
    async with stream(world, path, last=seen[-1]) as reader:
        rest = [message.id for message in await reader.rest() if message.id is not None]
    assert seen + rest == ids + more
    async with stream(world, path, last=more[-1], after=0) as reader:
        assert [message.event for message in await reader.rest()] == ["task", "end"]


async def test_more_than_one_page_of_history_comes_complete(world: World) -> None:
    run = await running(world)
    ids = await world.router.speak(run, *(str(n) for n in range(streams.PAGE * 2 + 5)))
    await world.router.finish(run)
    async with stream(world, f"/api/tasks/{run.task_id}/events") as reader:
        assert [message.id for message in await reader.rest() if message.id is not None] == ids


async def test_a_reader_too_slow_for_the_queue_still_gets_every_event_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await running(world)
    parts = world.app.state.parts
    monkeypatch.setattr(broadcasting.Broadcaster.subscribe, "__kwdefaults__", {"limit": 5})
    watching = streams.watch(parts, streams.Wish(task_id=run.task_id))
    seen: list[int] = []
    chunk = await anext(watching)  # It reads on only after 50 more events went by.
    ids = await world.router.speak(run, "first")
    seen += [event.id or 0 for event in (await anext(watching)).events]
    for n in range(50):
        ids += await world.router.speak(run, str(n))
        await asyncio.sleep(0)
    await world.router.finish(run)
    async for chunk in watching:
        seen += [event.id or 0 for event in chunk.events]
    assert seen == ids
    assert chunk.ended


async def test_kinds_narrow_and_transcripts_are_hidden_unless_asked_for(world: World) -> None:
    run = await running(world)
    frames = await world.router.speak(run, "a", "b")
    stderr = await world.router.speak(run, "c", kind=EventKind.STDERR)
    kept = await world.router.speak(run, "d", kind=EventKind.TRANSCRIPT)
    await world.router.finish(run)
    path = f"/api/tasks/{run.task_id}/events"

    async def ids(**params: Any) -> list[int]:
        async with stream(world, path, **params) as reader:
            return [message.id for message in await reader.rest() if message.id is not None]

    assert await ids() == frames + stderr
    assert await ids(kinds="stderr") == stderr
    assert await ids(kinds="frame,transcript") == frames + kept
    assert (await world.get(path, 422, kinds="frames"))["field"] == "kinds"


async def test_wrong_ids_and_tasks_are_ordinary_errors(world: World) -> None:
    assert (await world.get("/api/tasks/t-none/events", 404))["error"] == "not_found"
    assert (await world.get("/api/agents/nobody/logs", 404))["error"] == "not_found"
    task = await world.submit()
    answer = await world.http.get(f"/api/tasks/{task['id']}/events", headers={"Last-Event-ID": "x"})
    assert (answer.status_code, answer.json()["field"]) == (422, "Last-Event-ID")


async def test_following_goes_on_over_the_end_and_a_retry(world: World) -> None:
    run = await running(world)
    async with stream(world, f"/api/tasks/{run.task_id}/events", follow="true") as reader:
        await world.router.finish(run, TaskState.DEAD, Reason.API_ERROR)
        await world.router.retry([run.task_id])
        again = await world.router.begin(run.task_id, "qa_tester-1")
        ids = await world.router.speak(again, "again")
        assert await reader.ids(1) == ids


async def test_an_agents_log_spans_its_runs_begins_with_the_newest_and_ends_with_the_agent(world: World) -> None:
    run = await running(world)
    ids = await world.router.speak(run, *"abcd")
    await world.router.finish(run)
    second = await world.router.begin((await world.submit())["id"], "qa_tester-1")
    async with stream(world, "/api/agents/qa_tester-1/logs", tail=2) as reader:
        assert await reader.ids(2) == ids[-2:]
        more = await world.router.speak(second, "e")
        assert await reader.ids(1) == more
        await world.router.finish(second)
        await world.post("/api/agents/qa_tester-1/stop")
        rest = await reader.rest()
    assert rest[-1].event == "end" and rest[-1].data["state"] == "stopped"
    async with stream(world, "/api/agents/qa_tester-1/logs", follow="false", last=ids[0]) as reader:
        assert [m.id for m in await reader.rest() if m.id is not None] == ids[1:] + more


async def test_a_stream_outlives_a_store_that_is_away_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STORE_RETRY_S", 0.01)
    monkeypatch.setattr(broadcasting, "RETRY_S", 0.01)
    run = await running(world)
    ids = await world.router.speak(run, "a")
    away = {"events": 2, "follow": 2}
    for name in away:
        monkeypatch.setattr(world.store, name, _failing(getattr(world.store, name), name, away))
    async with stream(world, f"/api/tasks/{run.task_id}/events") as reader:
        assert await reader.ids(1) == ids
        ids = await world.router.speak(run, "b")
        assert await reader.ids(1) == ids
    assert away == {"events": 0, "follow": 0}


def _failing(real: Any, name: str, left: dict[str, int]) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if left[name]:
            left[name] -= 1
            raise Unavailable("away", part="store")
        return await real(*args, **kwargs)

    return call


async def test_hostile_text_stays_one_message(world: World) -> None:
    run = await running(world)
    words = "a\n\nid: 999\nevent: end\ndata: x\r\n\u2028\u2029\x85 ${HOME} <img onerror=1> \x00"
    await world.router.speak(run, words)
    await world.router.finish(run)
    async with stream(world, f"/api/tasks/{run.task_id}/events") as reader:
        messages = await reader.rest()
    assert [message.event for message in messages] == ["task", "frame", "end"]
    assert messages[1].data["payload"]["message"]["content"][0]["text"] == words


async def test_a_gateway_that_goes_away_ends_its_streams_without_an_end(world: World) -> None:
    run = await running(world)
    async with stream(world, f"/api/tasks/{run.task_id}/events") as reader:
        assert (await reader.next()) is not None
        await world.app.state.broadcaster.stop()
        assert all(message.event != "end" for message in await reader.rest())


class TestSockets:
    async def test_the_overview_begins_with_a_snapshot_and_goes_on_with_changes(self, world: World) -> None:
        await world.router.spawn("qa_tester")
        socket = world.socket("/api/ws")
        snapshot = message = await socket.read("snapshot")
        while not message.get("agents"):
            message = await socket.read("changes")
        assert [agent["id"] for agent in message["agents"]] == ["qa_tester-1"]
        assert snapshot["rehearsal"] is False
        assert snapshot["status"]["epoch"] == 1
        run = await world.router.begin((await world.submit(prompt="Find the bug"))["id"], "qa_tester-1")
        await world.store.beat(Activity(agent_id="qa_tester-1", run_id=run.id, tool="Bash: pytest -q", at=1.0))
        card: dict[str, Any] = {}
        while card.get("state") != "busy" or not card.get("activity"):
            message = await socket.read("changes")
            card = {agent["id"]: agent for agent in message.get("agents", [])}.get("qa_tester-1", card)
        assert card["task_title"] == "Find the bug"
        assert card["activity"]["tool"] == "Bash: pytest -q"
        await world.post("/api/agents/qa_tester-1/stop")
        while "gone" not in (message := await socket.read("changes")):
            pass
        assert message["gone"] == ["qa_tester-1"]
        await socket.leave()

    async def test_counts_come_with_the_changes(self, world: World) -> None:
        socket = world.socket("/api/ws")
        await socket.read("snapshot")
        await world.submit()
        while message := await socket.read("changes"):
            if message.get("counts", {}).get("states", {}).get("queued") == 1:
                break
        await socket.leave()

    async def test_a_task_is_read_along_with_its_history(self, world: World) -> None:
        run = await running(world)
        ids = await world.router.speak(run, "a", "b")
        socket = world.socket(f"/api/ws?task={run.task_id[:-1]}")
        assert (await socket.read("task"))["id"] == run.task_id
        assert [event["id"] for event in (await socket.read("events"))["events"]] == ids
        more = await world.router.speak(run, "c")
        assert [event["id"] for event in (await socket.read("events"))["events"]] == more
        await socket.leave()

    async def test_attached_one_watches_and_talks(self, world: World) -> None:
        run = await running(world)
        socket = world.socket("/api/agents/qa_tester-1/attach")
        assert (await socket.read("agent"))["state"] == "busy"
        await socket.send({"type": "send", "text": "look at the log"})
        assert await socket.read("sent") == {"type": "sent", "delivered": True, "task_id": run.task_id}
        assert world.router.said == [("qa_tester-1", "look at the log")]
        ids = await world.router.speak(run, "I see")
        assert [event["id"] for event in (await socket.read("events"))["events"]] == ids
        for wrong in ({"type": "shout"}, {"type": "send", "text": ""}, [1], {"type": "send", "text": 3}):
            await socket.send(wrong)
            assert (await socket.read("error"))["error"] == "invalid_input"
        await socket.send({"type": "interrupt"})
        assert (await socket.read("interrupted"))["done"] is True
        await world.post("/api/agents/qa_tester-1/stop")
        assert (await socket.read("end"))["state"] == "stopped"
        assert (await socket.closed())["code"] == 1000

    async def test_attaching_to_an_agent_that_never_was_says_so(self, world: World) -> None:
        socket = world.socket("/api/agents/nobody-1/attach")
        assert (await socket.read("error"))["error"] == "not_found"
        assert (await socket.closed())["code"] == 4404

    async def test_a_gateway_that_goes_away_closes_its_sockets_with_restart(self, world: World) -> None:
        run = await running(world)
        sockets = [world.socket(path) for path in ("/api/ws", f"/api/ws?task={run.task_id}")]
        for socket in sockets:
            await socket.read("snapshot", "task")
        context = world.app.router.lifespan_context
        assert context is not None
        await world.app.state.hub.stop()
        await world.app.state.broadcaster.stop()
        assert [(await socket.closed())["code"] for socket in sockets] == [1012, 1012]


class TestBroadcaster:
    async def test_topics_get_their_own_and_each_change_once(self) -> None:
        store = MemoryStore()
        async with following(store) as caster:
            subscriptions = [caster.subscribe(topic, ALL) for topic in (of_task("t-1"), of_agent("a-1"))]
            only = caster.subscribe(of_task("t-2"))
            await store.append_events([_event("t-1", "a-1", 0)])
            for subscription in subscriptions:
                assert len((await subscription.next(10)).items) == 1
            assert (await only.next(0.01)).items == ()

    async def test_a_full_queue_is_emptied_and_says_how_much_was_lost(self) -> None:
        store = MemoryStore()
        async with following(store) as caster:
            with caster.subscribe(ALL, limit=3) as slow, caster.subscribe(ALL) as fast:
                await store.append_events([_event("t-1", "a-1", n) for n in range(5)])
                got = 0
                while got < 5:
                    got += len((await fast.next(10)).items)
                delivery = await slow.next(10)
                assert delivery.missed + len(delivery.items) == 5
                assert [item.item.seq for item in delivery.items][-1] == 4
            assert caster.subscriptions() == set()

    async def test_a_lost_feed_tells_every_subscriber_to_read_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(broadcasting, "RETRY_S", 0.01)
        store = MemoryStore()
        async with following(store) as caster:
            subscription = caster.subscribe(ALL)
            left = {"follow": 1}
            monkeypatch.setattr(store, "follow", _failing(store.follow, "follow", left))
            await store.append_events([_event("t-1", "a-1", 0)])
            while True:
                delivery = await subscription.next(10)
                if delivery.missed == -1:
                    break
            assert caster.overview.fresh

    async def test_stopping_ends_every_wait(self) -> None:
        store = MemoryStore()
        async with following(store) as caster:
            waiting = asyncio.create_task(caster.subscribe(ALL).next())
            await asyncio.sleep(0)
            await caster.stop()
            assert (await asyncio.wait_for(waiting, 10)).closed
            assert (await caster.subscribe(ALL).next()).closed


@asynccontextmanager
async def following(store: MemoryStore) -> AsyncIterator[Broadcaster]:
    caster = Broadcaster(store, wait_s=0.2)
    await caster.start()
    try:
        assert await caster.ready()
        yield caster
    finally:
        await caster.stop()


def _event(task: str, agent: str, seq: int) -> Any:
    from fleet.models import Event

    return Event(run_id="r-1", task_id=task, agent_id=agent, seq=seq, at=1.0, kind=EventKind.FRAME, payload={"n": seq})


def test_a_message_is_read_however_it_is_cut() -> None:
    text = json.dumps({"text": "grün \u2028 x"}, ensure_ascii=False)
    raw = f": alive\n\nretry: 1\n\nid: 7\nevent: frame\ndata: {text}\n\nevent: end\ndata: {{}}\n\n".encode()
    for size in (1, 2, 3, 7, len(raw)):
        reader = StreamReader()
        found = [m for start in range(0, len(raw), size) for m in reader.feed(raw[start : start + size])]
        assert [(message.event, message.id) for message in found] == [("frame", 7), ("end", None)]
        assert found[0].data == json.loads(text)
        assert reader.last_id == 7
