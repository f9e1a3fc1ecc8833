"""The pure parts of the store: messages out of frames, figures, the feed, words, rows, guarded SQL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleet.lifecycle import TaskState
from fleet.models import Batch, Event, EventKind, Task
from fleet.store import rows
from fleet.store.counts import Counts
from fleet.store.database import migrations
from fleet.store.feed import Feed
from fleet.store.messages import OPEN_CALLS_LIMIT, TEXT_LIMIT, Calls, join_entries, messages_of, session_of
from fleet.store.words import snippet, split_words

NOW = 1_800_000_000.0


def frame(type: str, payload: Any, at: float = NOW) -> Event:
    return Event(run_id="r", task_id="t", agent_id="a", seq=0, at=at, kind=EventKind.FRAME, type=type, payload=payload)


def test_a_call_and_its_answer_are_joined() -> None:
    calls = Calls()
    call = {"type": "tool_use", "id": "u", "name": "Edit", "input": {"file_path": "/a.py", "new_string": "x"}}
    [asked] = messages_of(frame("assistant", {"message": {"content": [call]}}), calls)
    assert (asked.tool, asked.path, asked.kind) == ("Edit", "/a.py", "tool_use")
    assert json.loads(asked.text) == call["input"]
    answer = {"type": "tool_result", "tool_use_id": "u", "content": "done", "is_error": True}
    [told] = messages_of(frame("user", {"message": {"content": [answer]}}, NOW + 2), calls)
    assert (told.tool, told.path, told.text, told.failed, told.seconds) == ("Edit", "/a.py", "done", True, 2.0)
    assert not calls.open


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"message": None},
        {"message": []},
        {"message": {"content": None}},
        {"message": {"content": 7}},
        {"message": {"content": [None, 1, "x", {}, {"type": "unknown"}]}},
        {"message": {"content": [{"type": "text"}, {"type": "tool_use"}, {"type": "tool_result", "content": [1]}]}},
    ],
)
@pytest.mark.parametrize("type", ["assistant", "user", "result", "system", "stream_event"])
def test_a_frame_of_any_shape_never_raises(type: str, payload: dict[str, Any]) -> None:
    assert all(isinstance(item.text, str) for item in messages_of(frame(type, payload), Calls()))


def test_long_texts_are_cut_and_open_calls_are_bounded() -> None:
    calls = Calls()
    block = {"type": "text", "text": "x" * 100_000}
    [item] = messages_of(frame("assistant", {"message": {"content": [block]}}), calls)
    assert len(item.text) == TEXT_LIMIT
    for number in range(OPEN_CALLS_LIMIT * 2):
        call = {"type": "tool_use", "id": f"u{number}", "name": "Read", "input": {}}
        list(messages_of(frame("assistant", {"message": {"content": [call]}}), calls))
    assert len(calls.open) == OPEN_CALLS_LIMIT


@pytest.mark.parametrize(
    ("payload", "session"),
    [
        ({"file": "/h/projects/p/s-1.jsonl", "entries": []}, "s-1"),
        ({"file": "C:\\h\\projects\\p\\s-1.jsonl"}, "s-1"),
        ({"file": "/h/projects/p/s-1/subagents/agent-2.jsonl"}, None),
        ({"file": "/h/projects/p/agent-2.jsonl"}, None),
        ({"entries": [{"uuid": "a"}, {"sessionId": "s-2"}]}, "s-2"),
        ({"entries": [{"sessionId": "s-2", "isSidechain": True}]}, None),
        ({"entries": "x"}, None),
        ({}, None),
    ],
)
def test_only_the_main_transcript_belongs_to_a_session(payload: dict[str, Any], session: str | None) -> None:
    assert session_of(payload) == session


def test_entries_are_joined_in_order_each_once() -> None:
    first = {"entries": [{"uuid": "a", "n": 1}, {"type": "summary"}, None]}
    second = {"entries": [{"uuid": "a", "n": 2}, {"type": "summary"}, {"uuid": "b"}]}
    joined = join_entries(iter([first, second, {"entries": None}]))
    assert joined == [{"uuid": "a", "n": 1}, {"type": "summary"}, {"uuid": "b"}]


def test_words_in_quotes_stay_together() -> None:
    assert split_words('Fix the "Login  Page" now "') == ["fix", "the", "login  page", "now"]
    assert split_words("  ") == []


def test_a_snippet_surrounds_the_first_word_on_one_line() -> None:
    text = "a " * 500 + "needle\nin hay " + "b " * 500
    cut = snippet(text, ["hay", "needle"])
    assert "needle in hay" in cut
    assert cut.startswith("…")
    assert cut.endswith("…")
    assert snippet("short", []) == "short"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": float("nan"), "b": [float("inf")]}, '{"a":null,"b":[null]}'),
        ({"a": "\ud800 é"}, '{"a":"? é"}'),
        ({"a": "\0"}, '{"a":"\\u0000"}'),
        ((1, None, True), "[1,null,true]"),
    ],
)
def test_json_is_always_such_as_duckdb_takes(value: Any, text: str) -> None:
    assert rows.to_json(value) == text


def test_times_survive_to_the_microsecond() -> None:
    for at in (0.0, NOW, 1_795_911_171.719684, 1.5):
        assert rows.seconds_of(rows.stamp(at)) == pytest.approx(at, abs=1e-6)


def test_figures_of_a_million_commits_stay_those_of_the_last_state() -> None:
    counts = Counts()
    for state in (TaskState.QUEUED, TaskState.RUNNING, TaskState.QUEUED, TaskState.SUCCEEDED):
        finished = NOW if state.final else None
        task = Task(
            id="t", role="r", prompt="p", state=state, created_at=0, queued_at=5, finished_at=finished, updated_at=0
        )
        counts.apply(Batch(tasks=(task,)))
    found = counts.snapshot(NOW)
    assert found["states"] == {"succeeded": 1}
    assert (found["queued_by_priority"], found["oldest_queued_at"], found["done_today"]) == ({}, None, 1)
    assert counts.snapshot(NOW + 90_000)["done_today"] == 0


async def test_the_feed_is_bounded_in_items_and_bytes() -> None:
    feed = Feed(start=100, items=3)
    for number in range(5):
        feed.push("task", number)
    gap, *items = await feed.follow(100, 0.01, 10)
    assert (gap.item, gap.position) == ({"gap": True}, 102)
    assert [(item.position, item.item) for item in items] == [(103, 2), (104, 3), (105, 4)]
    assert [item.item for item in await feed.follow(104, 0.01, 10)] == [4]
    assert [item.item for item in await feed.follow(102, 0.01, 1)] == [2]
    small = Feed(start=0, size=1000)
    small.push("task", "a", 600)
    small.push("task", "b", 600)
    assert [item.item for item in await small.follow(1, 0.01, 10)] == ["b"]


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [int(name.split("_")[0]) for name, _ in migrations()] == list(range(1, len(migrations()) + 1))
