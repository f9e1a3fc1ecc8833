from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fleet.agent.journal import Journal, cut, merge_deltas
from fleet.errors import Unavailable
from fleet.models import Event, EventKind


class Recorder:
    """Keeps events; refuses as long as `refuses`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.refuses = 0

    async def append_events(self, events: Sequence[Event]) -> int:
        await asyncio.sleep(0)
        if self.refuses:
            self.refuses -= 1
            raise Unavailable("away", part="store")
        self.batches.append(len(events))
        self.events += [event.model_copy(deep=True) for event in events]
        return events[-1].seq


def journal(store: Recorder, **bounds: Any) -> Journal:
    made = Journal(store, run_id="r", task_id="t", agent_id="a", **bounds)  # type: ignore[arg-type]
    made.start()
    return made


def delta(text: str, index: int = 0) -> dict[str, Any]:
    return {
        "type": "stream_event",
        "event": {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}},
    }


async def test_events_arrive_in_order_and_in_batches() -> None:
    store = Recorder()
    log = journal(store)
    for number in range(450):
        log.add(EventKind.FRAME, "assistant", {"n": number})
    assert await log.close(5)
    assert [event.seq for event in store.events] == list(range(450))
    assert store.batches == [200, 200, 50]


async def test_a_refused_batch_is_sent_again() -> None:
    store = Recorder()
    store.refuses = 2
    log = journal(store)
    log.add(EventKind.STATE, "started")
    assert await log.close(5)
    assert [event.type for event in store.events] == ["started"]


async def test_a_store_that_stays_away_is_not_waited_for() -> None:
    store = Recorder()
    store.refuses = 10**9
    log = journal(store)
    log.add(EventKind.STATE, "started")
    assert not await log.close(0.05)


async def test_under_pressure_small_things_are_left_out_and_a_gap_says_so() -> None:
    store = Recorder()
    log = journal(store, pending_events=10)
    for number in range(40):
        log.add(EventKind.STDERR, "stderr", {"text": str(number)})
        log.add(EventKind.TRANSCRIPT, "mirror", {"entries": [number]})
    log.add(EventKind.STATE, "ended")
    assert await log.close(5)
    kinds = [event.kind for event in store.events]
    assert kinds.count(EventKind.TRANSCRIPT) == 40
    gaps = sum(event.payload["count"] for event in store.events if event.kind is EventKind.GAP)
    assert gaps + kinds.count(EventKind.STDERR) == 40
    assert gaps > 0
    assert store.events[-1].type == "ended"
    assert [event.seq for event in store.events] == list(range(len(store.events)))


async def test_streamed_pieces_that_wait_become_one() -> None:
    store = Recorder()
    log = journal(store)
    for word in ("a", "b", "c"):
        log.add(EventKind.FRAME, "stream_event", delta(word))
    log.add(EventKind.FRAME, "stream_event", delta("d", index=1))
    assert await log.close(5)
    texts = [event.payload["event"]["delta"]["text"] for event in store.events]
    assert texts == ["abc", "d"]


def test_pieces_of_different_kinds_stay_apart() -> None:
    other = {"event": {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "x"}}}
    assert not merge_deltas(delta("a"), other)
    assert not merge_deltas({"event": {"type": "message_start"}}, delta("a"))


def test_long_strings_are_cut_with_a_mark() -> None:
    value = cut({"a": ["x" * 20, 3]}, limit=10)
    assert value == {"a": ["x" * 10 + "… [cut: 10 more characters]", 3]}
