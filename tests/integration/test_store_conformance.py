"""The store and its twin in memory keep the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import Conflict, NotFound, StaleEpoch
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import (
    Activity,
    AgentInfo,
    Approval,
    ApprovalState,
    Batch,
    Event,
    EventKind,
    Refusal,
    Result,
    RoleState,
    Run,
    Task,
    Transition,
    Usage,
    Workspace,
)
from fleet.reasons import Reason
from fleet.store.actor import StoreActor
from fleet.store.memory import MemoryStore

NOW = 1_800_000_000.0


@pytest.fixture(params=["duckdb", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryStore()
        return
    actor = StoreActor(str(tmp_path / "fleet.duckdb"))
    yield actor
    await actor.close()


def task(number: int, state: str = "queued", **more: Any) -> Task:
    values: dict[str, Any] = {
        "id": f"t-{number:04d}",
        "role": "qa_tester",
        "prompt": f"do thing {number}",
        "state": TaskState(state),
        "created_at": NOW + number,
        "updated_at": NOW + number,
    }
    return Task(**(values | more))


def run(number: int, task_id: str = "t-0001", **more: Any) -> Run:
    values: dict[str, Any] = {
        "id": f"r-{number:04d}",
        "task_id": task_id,
        "number": number,
        "role": "qa_tester",
        "agent_id": "qa_tester-1",
        "incarnation": 1,
        "epoch": 1,
        "started_at": NOW + number,
    }
    return Run(**(values | more))


def event(seq: int, run_id: str = "r-0001", task_id: str = "t-0001", **more: Any) -> Event:
    values: dict[str, Any] = {
        "run_id": run_id,
        "task_id": task_id,
        "agent_id": "qa_tester-1",
        "seq": seq,
        "at": NOW + seq,
        "kind": EventKind.STATE,
        "type": "note",
        "payload": {"n": seq},
    }
    return Event(**(values | more))


def assistant(seq: int, *blocks: dict[str, Any], **more: Any) -> Event:
    payload = {"type": "assistant", "message": {"content": list(blocks)}}
    return event(seq, kind=EventKind.FRAME, type="assistant", payload=payload, **more)


async def begin(store: Any) -> int:
    return int((await store.open_epoch("test")).epoch)


async def test_a_task_comes_back_as_it_was_written(store: Any) -> None:
    full = task(
        1,
        "failed",
        prompt="naïve \u2603 \0 prompt",
        workspace=Workspace.parse("worktree:/a/repo@main"),
        depends_on=("t-0000",),
        not_before=NOW,
        idempotency_key="key",
        labels={"a.b": 'c"d'},
        output_schema={"type": "object"},
        reason=Reason.RATE_LIMITED,
        usage=Usage(input_tokens=1, output_tokens=2, cache_read_tokens=3, cache_write_tokens=4),
        cost_usd=0.25,
        finished_at=NOW + 5,
    )
    await store.commit(await begin(store), Batch(tasks=(full,)))
    assert await store.task("t-0001") == full
    assert await store.task("t-00") == full


async def test_the_last_of_equal_keys_wins_within_a_batch_and_between_batches(store: Any) -> None:
    epoch = await begin(store)
    await store.commit(epoch, Batch(tasks=(task(1), task(1, "running")), runs=(run(1), run(1, why="second"))))
    assert (await store.task("t-0001")).state is TaskState.RUNNING
    assert [item.why for item in await store.runs(task_id="t-0001")] == ["second"]
    await store.commit(epoch, Batch(tasks=(task(1, "succeeded"),), runs=(run(1, state=RunState.SUCCEEDED),)))
    assert (await store.task("t-0001")).state is TaskState.SUCCEEDED
    assert [item.state for item in await store.runs(task_id="t-0001")] == [RunState.SUCCEEDED]


async def test_an_older_epoch_is_refused(store: Any) -> None:
    first = await begin(store)
    second = await begin(store)
    assert second == first + 1
    with pytest.raises(StaleEpoch) as caught:
        await store.commit(first, Batch(tasks=(task(1),)))
    assert caught.value.fields == {"epoch": first, "current": second}
    with pytest.raises(NotFound):
        await store.task("t-0001")


async def test_a_new_router_gets_all_that_is_not_over(store: Any) -> None:
    epoch = await begin(store)
    agent = AgentInfo(id="qa_tester-1", role="qa_tester", state=AgentState.IDLE, started_at=NOW, updated_at=NOW)
    stopped = agent.model_copy(update={"id": "qa_tester-2", "wanted": False, "state": AgentState.STOPPED})
    approval = Approval(
        id="a-1",
        task_id="t-0001",
        run_id="r-0001",
        agent_id="qa_tester-1",
        role="qa_tester",
        tool="Bash",
        input={"command": "ls"},
        created_at=NOW,
        expires_at=NOW + 60,
    )
    decided = approval.model_copy(update={"id": "a-2", "state": ApprovalState.ALLOWED, "decided_at": NOW + 1})
    await store.commit(
        epoch,
        Batch(
            tasks=(task(1, "running"), task(2), task(3, "succeeded", idempotency_key="k3")),
            runs=(run(1), run(2, state=RunState.LOST)),
            agents=(agent, stopped),
            approvals=(approval, decided),
            roles=(RoleState(role="qa_tester", agents=3, rules=("Bash(ls)",)),),
            settings={"paused": True},
        ),
    )
    state = await store.open_epoch("next")
    assert state.epoch == epoch + 1
    assert [item.id for item in state.tasks] == ["t-0001", "t-0002"]
    assert [item.id for item in state.runs] == ["r-0001"]
    assert state.agents == (agent,)
    assert state.approvals == (approval,)
    assert state.roles == (RoleState(role="qa_tester", agents=3, rules=("Bash(ls)",)),)
    assert state.idempotency == {"k3": "t-0003"}
    assert state.settings == {"paused": True}
    assert [item.id for item in await store.agents(all=True)] == ["qa_tester-1", "qa_tester-2"]
    assert {item.id for item in await store.approvals(waiting=False)} == {"a-1", "a-2"}


async def test_events_written_again_are_left_out(store: Any) -> None:
    epoch = await begin(store)
    await store.commit(epoch, Batch(tasks=(task(1, "running"),), runs=(run(1),)))
    assert await store.append_events([event(0), event(1)]) == 1
    assert await store.append_events([event(0), event(1), event(2)]) == 2
    assert await store.append_events([event(1)]) == 2
    assert await store.append_events([event(0, run_id="r-other")]) == 0
    found = await store.events(run_id="r-0001")
    assert [item.seq for item in found] == [0, 1, 2]
    assert found[0].payload == {"n": 0}
    assert [item.id for item in found] == sorted(item.id for item in found)


async def test_the_same_events_sent_twice_at_once_are_written_once(store: Any) -> None:
    batch = [event(seq) for seq in range(50)]
    assert await asyncio.gather(*(store.append_events(batch) for _ in range(5))) == [49] * 5
    assert len(await store.events(run_id="r-0001")) == 50


async def test_events_are_cut_by_id_from_either_end(store: Any) -> None:
    await store.append_events([event(seq) for seq in range(10)])
    ids = [item.id for item in await store.events(task_id="t-0001")]
    assert [item.seq for item in await store.events(task_id="t-0001", after=ids[2], limit=3)] == [3, 4, 5]
    assert [item.seq for item in await store.events(task_id="t-0001", newest=True, limit=3)] == [7, 8, 9]
    assert [item.seq for item in await store.events(agent_id="qa_tester-1", before=ids[4], newest=True, limit=2)] == [
        2,
        3,
    ]
    assert await store.events(task_id="t-9999") == []


async def test_a_transcript_is_joined_over_runs_and_hidden_from_the_events(store: Any) -> None:
    def entries(seq: int, run_id: str, *uuids: str, file: str = "/x/projects/p/s-1.jsonl") -> Event:
        payload = {"file": file, "entries": [{"uuid": uuid, "sessionId": "s-1"} for uuid in uuids]}
        return event(seq, run_id=run_id, kind=EventKind.TRANSCRIPT, type="entries", payload=payload)

    await store.append_events([event(0), entries(1, "r-0001", "a", "b")])
    await store.append_events([entries(2, "r-0001", "z", file="/x/projects/p/s-1/subagents/agent-7.jsonl")])
    await store.append_events([entries(0, "r-0002", "a", "b", "c")])
    assert [item["uuid"] for item in await store.transcript("s-1")] == ["a", "b", "c"]
    assert await store.transcript("s-2") == []
    assert [item.kind for item in await store.events(task_id="t-0001")] == [EventKind.STATE]
    assert len(await store.events(task_id="t-0001", transcript=True)) == 4


async def test_tasks_are_filtered_newest_first(store: Any) -> None:
    epoch = await begin(store)
    await store.commit(
        epoch,
        Batch(
            tasks=(
                task(1, labels={"team": "a/b~c"}),
                task(2, "failed", agent_id="qa_tester-1", prompt="Fix the LOGIN page"),
                task(3, role="code_reviewer", priority=9),
            )
        ),
    )

    async def ids(**filters: Any) -> list[str]:
        return [item.id[-1] for item in await store.tasks(**filters)]

    assert await ids() == ["3", "2", "1"]
    assert await ids(limit=2) == ["3", "2"]
    assert await ids(before="t-0003") == ["2", "1"]
    assert await ids(states=["failed", "running"]) == ["2"]
    assert await ids(roles=["code_reviewer"]) == ["3"]
    assert await ids(agent="qa_tester-1") == ["2"]
    assert await ids(text="login") == ["2"]
    assert await ids(text="t-0001") == ["1"]
    assert await ids(labels={"team": "a/b~c"}) == ["1"]
    assert await ids(labels={"team": "x"}) == []
    assert await ids(priority=9) == ["3"]
    assert await ids(since=NOW + 2) == ["3", "2"]


async def test_a_task_that_is_not_one_says_so(store: Any) -> None:
    await store.commit(await begin(store), Batch(tasks=(task(1), task(2))))
    with pytest.raises(NotFound):
        await store.task("nothing")
    with pytest.raises(NotFound):
        await store.task("")
    with pytest.raises(Conflict):
        await store.task("t-")


async def test_results_come_without_their_diffs_but_one_has_it(store: Any) -> None:
    epoch = await begin(store)
    full = Result(
        task_id="t-0001",
        run_id="r-0001",
        role="qa_tester",
        text="done",
        structured={"ok": [1, None]},
        diff="--- a\n+++ b\n",
        files_changed=("b",),
        denials=({"tool": "Bash"},),
        finished_at=NOW,
    )
    other = full.model_copy(update={"task_id": "t-0002", "finished_at": NOW + 1})
    await store.commit(epoch, Batch(results=(full, other)))
    assert await store.result("t-0001") == full
    assert await store.result("t-0003") is None
    found = await store.results()
    assert [item.task_id for item in found] == ["t-0002", "t-0001"]
    assert found[1] == full.model_copy(update={"diff": ""})


async def test_runs_of_a_task_come_oldest_first_and_of_an_agent_newest_first(store: Any) -> None:
    await store.commit(await begin(store), Batch(runs=(run(2), run(1), run(3, "t-0002"))))
    assert [item.number for item in await store.runs(task_id="t-0001")] == [1, 2]
    assert [item.number for item in await store.runs(agent_id="qa_tester-1")] == [3, 2, 1]


async def test_transitions_are_kept_in_their_order(store: Any) -> None:
    changes = (
        Transition(at=NOW, what="task", id="t-0001", old=None, new="queued"),
        Transition(at=NOW, what="task", id="t-0001", old="queued", new="running", why="idle"),
        Transition(at=NOW, what="run", id="r-0001", old=None, new="running"),
    )
    await store.commit(
        await begin(store), Batch(transitions=changes, refusals=(Refusal(at=NOW, what="late result", epoch=1),))
    )
    assert await store.transitions("task", "t-0001") == [
        {"at": NOW, "what": "task", "id": "t-0001", "old": None, "new": "queued", "reason": "", "why": ""},
        {"at": NOW, "what": "task", "id": "t-0001", "old": "queued", "new": "running", "reason": "", "why": "idle"},
    ]


async def test_settings_hold_json_and_the_last_wins(store: Any) -> None:
    assert await store.setting("saved") is None
    await store.put_setting("saved", {"a": [1, 2]})
    await store.put_setting("saved", {"a": [3]})
    await store.commit(await begin(store), Batch(settings={"other": False}))
    assert await store.setting("saved") == {"a": [3]}
    assert await store.setting("other") is False


async def test_the_figures_follow_every_commit(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW + 100)
    epoch = await begin(store)
    await store.commit(
        epoch,
        Batch(
            tasks=(
                task(1, queued_at=NOW + 1),
                task(2, queued_at=NOW + 2, priority=9),
                task(3, "succeeded", finished_at=NOW),
                task(4, "dead", finished_at=NOW),
                task(5, "succeeded", finished_at=NOW - 90_000),
            ),
            runs=(run(1, cost_usd=0.5, finished_at=NOW), run(2, cost_usd=0.25)),
        ),
    )
    assert await store.counts() == {
        "states": {"dead": 1, "queued": 2, "succeeded": 2},
        "queued_by_priority": {5: 1, 9: 1},
        "done_today": 1,
        "failed_today": 1,
        "cost_today": 0.75,
        "oldest_queued_at": NOW + 1,
    }
    await store.commit(epoch, Batch(tasks=(task(1, "running", queued_at=NOW + 1), task(4, queued_at=NOW + 50))))
    counts = await store.counts()
    assert counts["states"] == {"queued": 2, "running": 1, "succeeded": 2}
    assert counts["queued_by_priority"] == {5: 1, 9: 1}
    assert counts["failed_today"] == 0
    assert counts["oldest_queued_at"] == NOW + 2


async def test_a_follower_sees_every_change_in_order(store: Any) -> None:
    epoch = await begin(store)
    [start] = await store.follow(None)
    assert start.item == {}
    waiting = asyncio.create_task(store.follow(start.position, timeout_s=30))
    await asyncio.sleep(0)
    await store.commit(epoch, Batch(tasks=(task(1),), runs=(run(1),), settings={"k": 1}))
    first = await waiting
    await store.append_events([event(0), event(1, kind=EventKind.TRANSCRIPT, payload={"entries": []})])
    await store.beat(Activity(agent_id="qa_tester-1", at=NOW, tool="Bash"))
    items = first + await store.follow(first[-1].position)
    assert [item.kind for item in items] == ["task", "run", "setting", "event", "activity"]
    assert [item.position for item in items] == list(range(start.position + 1, start.position + 6))
    assert items[0].item == task(1)
    assert items[3].item.id is not None
    assert await store.follow(items[-1].position, timeout_s=0.01) == []
    assert [item.tool for item in await store.activities()] == ["Bash"]


async def test_a_follower_that_is_too_far_behind_or_ahead_is_told_of_the_gap(store: Any) -> None:
    [start] = await store.follow(None)
    for position in (start.position - 5, start.position + 5, 0):
        gap, *_ = await store.follow(position, timeout_s=0.01)
        assert (gap.kind, gap.item) == ("setting", {"gap": True})
        assert gap.position <= start.position


async def test_transcripts_are_searched_newest_first(store: Any) -> None:
    epoch = await begin(store)
    await store.commit(epoch, Batch(tasks=(task(1, "running"), task(2, "failed")), runs=(run(1), run(2, "t-0002"))))
    await store.append_events(
        [
            assistant(0, {"type": "text", "text": "I look at the Login page"}),
            assistant(1, {"type": "tool_use", "id": "u1", "name": "Read", "input": {"file_path": "/src/Login.py"}}),
            event(
                2,
                kind=EventKind.FRAME,
                type="user",
                payload={
                    "message": {
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "u1",
                                "content": [{"type": "text", "text": "def f()"}],
                            }
                        ]
                    }
                },
            ),
        ]
    )
    await store.append_events(
        [assistant(0, {"type": "text", "text": "the login\nfails"}, run_id="r-0002", task_id="t-0002")]
    )
    found = await store.search("LOGIN the")
    assert [item["task_id"] for item in found] == ["t-0002", "t-0001"]
    assert found[0] | {"event_id": 0} == {
        "task_id": "t-0002",
        "run_id": "r-0002",
        "event_id": 0,
        "at": NOW,
        "role": "qa_tester",
        "state": "failed",
        "kind": "text",
        "tool": None,
        "path": None,
        "agent_id": "qa_tester-1",
        "snippet": "the login fails",
    }
    assert [item["task_id"] for item in await store.search('"login page"')] == ["t-0001"]
    assert [item["kind"] for item in await store.search(tool="Read")] == ["tool_result", "tool_use"]
    assert len(await store.search(path="login.py", state="running")) == 2
    assert await store.search("login", state="succeeded") == []
    assert await store.search("login", role="other") == []
    assert len(await store.search("login", since=NOW + 1)) == 1  # The path in the call's input.
    assert len(await store.search("login", limit=1)) == 1


async def test_pruning_takes_old_events_but_not_of_tasks_that_go_on(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: NOW + 1000)
    await store.commit(await begin(store), Batch(tasks=(task(1, "running"), task(2, "succeeded"))))
    await store.append_events([event(seq) for seq in range(3)])
    await store.append_events([event(seq, run_id="r-0002", task_id="t-0002") for seq in range(5)])
    await store.append_events([event(900, run_id="r-0002", task_id="t-0002")])
    assert await store.prune(older_than_s=500) == 5
    assert [item.seq for item in await store.events()] == [0, 1, 2, 900]
    await store.append_events([event(seq, run_id="r-0003", task_id="t-0002") for seq in range(5)])
    assert await store.prune(max_events=2) == 4
    assert [item.seq for item in await store.events()] == [0, 1, 2, 3, 4]
    assert await store.append_events([event(900, run_id="r-0002", task_id="t-0002")]) == 900
