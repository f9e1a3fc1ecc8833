"""An agent without Ray, with the real Claude Code, against a scripted model on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fleet.agent.git import git
from fleet.claude.processes import tagged
from fleet.errors import Conflict, NotFound, StaleEpoch
from fleet.lifecycle import RunState
from fleet.models import Approvals, ApprovalState, EventKind, Limits, Outcome, RunOrder, Workspace, WorkspaceKind
from fleet.reasons import Reason
from tests.integration.agent_world import ROLE, ScriptedModel, World, call, say, until

Make = Callable[..., Awaitable[World]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    worlds: list[World] = []

    async def world(*steps: dict[str, Any]) -> World:
        folder = tmp_path / f"w{len(worlds)}"
        folder.mkdir()
        worlds.append(World(folder, await ScriptedModel(steps).start()))
        return worlds[-1]

    yield world
    for each in worlds:
        await each.close()


def start(agent: Any, order: RunOrder) -> asyncio.Task[Outcome]:
    return asyncio.create_task(agent.run(order))


def processes_of(order: RunOrder) -> list[int]:
    return tagged(f"FLEET_RUN_ID={order.run.id}")


def claude_pid(order: RunOrder) -> int:
    """The pid of Claude Code itself: neither stub nor guard nor tool."""
    for pid in processes_of(order):
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.Error:
            continue
        if command and command[0].endswith("claude") and "--session-mirror" in command:
            return pid
    return 0


async def none_left(order: RunOrder) -> None:
    await until(lambda: not processes_of(order), "all processes of the run gone", 10)


async def test_a_task_is_done_with_real_tools_and_its_outcome_is_kept_until_it_is_acknowledged(make: Make) -> None:
    world = await make(
        call("Write", file_path="note.txt", content="hello\n"),
        call("Bash", command="cat note.txt; echo key=$ANTHROPIC_API_KEY", description="look"),
        say("Done."),
    )
    world.model.steps[0]["input"]["file_path"] = str(world.folder / "note.txt")
    agent = world.agent()
    order = world.order(workspace=Workspace(kind=WorkspaceKind.DIRECTORY, path=str(world.folder)))
    outcome = await agent.run(order)
    assert (outcome.status, outcome.reason) == (RunState.SUCCEEDED, None)
    assert outcome.result is not None
    assert outcome.result.text == "#2 Done."
    assert (outcome.turns, outcome.usage.output_tokens) == (3, 60)
    assert outcome.cost_usd > 0
    assert (world.folder / "note.txt").read_text() == "hello\n"
    # The key came by file descriptor: the model saw it, the tool did not, and no event holds it.
    assert set(world.model.keys) == {"dummy-key-of-a-test"}
    journal = "\n".join(event.model_dump_json() for event in world.store.events)
    assert "dummy-key" not in journal
    assert "key=" in journal
    assert [event.seq for event in world.store.events] == list(range(len(world.store.events)))
    assert world.store.states() == ["started", "workspace", "ended"]
    await none_left(order)
    # Kept, given again, and forgotten once it is committed.
    assert (await agent.hello(1)).outcomes == (outcome,)
    assert await agent.run(order) == outcome
    await agent.acknowledge(order.run.id)
    assert (await agent.hello(1)).outcomes == ()
    with pytest.raises(NotFound):
        await agent.wait(order.run.id)
    assert world.store.activities[-1].node_free_mb > 0
    with pytest.raises(StaleEpoch):
        await agent.hello(0)


async def repository(folder: Path) -> Path:
    repo = folder / "repo"
    repo.mkdir()
    (repo / "code.py").write_text("x = 1\n")
    await git(repo, "init", "-q", "-b", "main")
    await git(repo, "add", ".")
    await git(repo, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "First.")
    return repo


async def test_a_worktree_keeps_the_repository_clean_and_its_diff_has_commits_and_new_files(make: Make) -> None:
    world = await make(
        call(
            "Bash", command="echo 'x = 2' > code.py && git commit -qam Second && echo new > extra.txt", description="d"
        ),
        say("Done."),
    )
    repo = await repository(world.folder)
    agent = world.agent()
    order = world.order(workspace=Workspace(kind=WorkspaceKind.WORKTREE, path=str(repo)))
    outcome = await agent.run(order)
    assert outcome.result is not None, outcome
    result = outcome.result
    assert result.files_changed == ("code.py", "extra.txt")
    assert "-x = 1" in result.diff
    assert "+new" in result.diff
    assert result.branch == f"fleet/{order.task.id}"
    assert (repo / "code.py").read_text() == "x = 1\n"
    # Removed only after what was not committed is saved; the branch stays.
    await agent.acknowledge(order.run.id)
    workspaces = agent._workspaces
    assert await workspaces.prune(keep=0)
    assert not Path(result.workspace_path or "").exists()
    patch = next((world.folder / "fleet" / "patches").iterdir()).read_text()
    assert "+new" in patch
    assert "x = 2" in await git(repo, "show", f"{result.branch}:code.py")


async def test_a_cancel_in_mid_turn_ends_the_turn_and_everything_it_started(make: Make) -> None:
    world = await make(call("Bash", command="sleep 300 & setsid nohup sleep 301 & sleep 302", description="wait"))
    agent = world.agent()
    order = world.order()
    running = start(agent, order)
    await until(lambda: world.store.activities and world.store.activities[-1].tool, "the tool runs")
    with pytest.raises(Conflict):
        await agent.run(world.order())
    assert not await agent.cancel("another", Reason.CANCELLED)
    began = time.monotonic()
    assert await agent.cancel(order.run.id, Reason.CANCELLED, "by hand")
    outcome = await running
    assert (outcome.status, outcome.reason, outcome.detail) == (RunState.CANCELLED, Reason.CANCELLED, "by hand")
    assert time.monotonic() - began < 20
    await none_left(order)
    assert outcome.usage.output_tokens > 0


async def test_time_and_silence_have_limits(make: Make) -> None:
    world = await make({"hold": asyncio.Event(), "text": "never"})
    agent = world.agent()
    order = world.order(task={"limits": Limits(time_limit_s=3)})
    outcome = await agent.run(order)
    assert (outcome.status, outcome.reason) == (RunState.FAILED, Reason.TIME_LIMIT)
    order = world.order(task={"limits": Limits(silence_limit_s=2)})
    outcome = await agent.run(order)
    assert (outcome.status, outcome.reason) == (RunState.FAILED, Reason.SILENT)
    await none_left(order)


async def test_a_frozen_claude_is_killed(make: Make) -> None:
    world = await make(call("Bash", command="sleep 300", description="wait"))
    agent = world.agent()
    order = world.order()
    running = start(agent, order)
    await until(lambda: world.store.activities and world.store.activities[-1].tool, "the tool runs")
    os.kill(claude_pid(order), signal.SIGSTOP)
    await agent.cancel(order.run.id, Reason.SILENT, "frozen")
    assert (await running).reason is Reason.SILENT
    await none_left(order)


async def test_a_message_reaches_the_running_conversation(make: Make) -> None:
    hold = asyncio.Event()
    world = await make({**call("Bash", command="echo one", description="d"), "hold": hold}, say("Heard."))
    agent = world.agent()
    assert not await agent.message("Is anybody there?")
    order = world.order()
    running = start(agent, order)
    await until(lambda: world.model.requests, "the first request")
    assert await agent.message("Also look at the colour blue.", order.run.id)
    hold.set()
    outcome = await running
    assert outcome.status is RunState.SUCCEEDED
    assert "colour blue" in str(world.model.requests[-1]["messages"])
    assert [e.payload["text"] for e in world.store.events if e.kind is EventKind.MESSAGE] == [
        "Also look at the colour blue."
    ]


async def test_a_claude_that_was_killed_is_a_loss_and_another_agent_goes_on_with_its_session(make: Make) -> None:
    world = await make(
        call("Bash", command="echo once >> count.txt", description="first"),
        call("Bash", command="sleep 300 & setsid nohup sleep 301 & sleep 302", description="second"),
        say("Done after the move."),
    )
    order = world.order()
    running = start(world.agent(), order)
    await until(lambda: len(world.model.requests) >= 2 and claude_pid(order), "the second turn")
    await until(lambda: "sleep 302" in str(world.store.frames("assistant")), "the second tool call is journalled")
    await until(lambda: "toolu_s_1" in str([e.payload for e in world.store.events if e.type == "mirror"]), "its entry")
    os.kill(claude_pid(order), signal.SIGKILL)
    lost = await running
    assert (lost.status, lost.reason) == (RunState.LOST, Reason.AGENT_LOST)
    assert lost.usage.output_tokens >= 40
    await none_left(order)

    other = world.agent("tester-2")
    # The router does not know the session of a run whose agent was lost: it follows from the task.
    again = world.order(before=order, agent_id="tester-2", resume=True, moved=True)
    outcome = await other.run(again)
    assert outcome.status is RunState.SUCCEEDED, outcome
    assert outcome.result is not None
    assert outcome.result.text == "#2 Done after the move."
    assert outcome.session_id == lost.session_id
    folder = Path(outcome.result.workspace_path or "")
    assert (folder / "count.txt").read_text() == "once\n"
    said = str(world.model.requests[-1]["messages"])
    assert "You were moved" in said
    assert "Do what the script says." in said
    assert "resumed" in world.store.states(again.run.id)


async def test_a_resume_without_a_transcript_starts_from_the_prompt_and_says_so(make: Make) -> None:
    world = await make(say("From the start."))
    order = world.order(task={"session_id": "7b0c2a52-0000-4000-8000-000000000000"}, resume=True, moved=True)
    outcome = await world.agent().run(order)
    assert outcome.status is RunState.SUCCEEDED
    assert "restarted" in world.store.states()
    assert "You were moved" not in str(world.model.requests)


@pytest.mark.parametrize("victim", ["guard", "stub"])
async def test_nothing_is_left_when_the_guard_itself_is_killed(make: Make, victim: str) -> None:
    world = await make(call("Bash", command="setsid nohup sleep 301 & sleep 302", description="wait"))
    order = world.order()
    running = start(world.agent(), order)
    await until(lambda: world.store.activities and world.store.activities[-1].tool, "the tool runs")
    parent = psutil.Process(claude_pid(order)).parent()
    assert parent is not None
    target = parent if victim == "guard" else parent.parent()
    assert target is not None
    assert "guard.py" in " ".join(target.cmdline())
    os.kill(target.pid, signal.SIGKILL)
    outcome = await running
    assert outcome.reason is Reason.AGENT_LOST
    await none_left(order)


@pytest.mark.parametrize("allow", [True, False])
async def test_a_person_decides_a_call_outside_the_rules(make: Make, allow: bool) -> None:
    world = await make(call("Bash", command="touch made.txt", description="make a file"), say("Done."))
    agent = world.agent()
    role = ROLE.model_copy(update={"tools": ("Read", "Bash(git *)"), "approvals": Approvals.ASK})
    order = world.order(role=role)
    running = start(agent, order)
    await until(lambda: world.store.asked, "the question")
    asked = world.store.asked[0]
    assert (asked.tool, asked.input["command"]) == ("Bash", "touch made.txt")
    state = ApprovalState.ALLOWED if allow else ApprovalState.DENIED
    assert await agent.decide(asked.model_copy(update={"state": state, "message": "use make"}))
    outcome = await running
    assert outcome.result is not None, outcome
    assert (Path(outcome.result.workspace_path or "") / "made.txt").exists() is allow
    assert bool(outcome.result.denials) is not allow
    assert ("use make" in str(world.model.requests[-1]["messages"])) is not allow


async def test_a_long_wait_for_a_person_frees_the_process_and_the_run_goes_on_after_the_decision(make: Make) -> None:
    command = {"command": "touch made.txt", "description": "make a file"}
    world = await make(call("Bash", **command), call("Bash", **command), say("Done."))
    role = ROLE.model_copy(
        update={"tools": ("Read", "Bash(git *)"), "approvals": Approvals.ASK, "approval_hold_s": 0.5}
    )
    order = world.order(role=role)
    parked = await world.agent().run(order)
    assert parked.status is RunState.PARKED, parked
    assert parked.approval_id == world.store.asked[0].id
    await none_left(order)
    # What the router does when somebody has allowed it: another run of the same session, with the rule.
    words = "A person allowed your Bash call that waited. Make it now and go on."
    task = {"session_id": parked.session_id}
    rules = ("Bash(touch made.txt)",)
    again = world.order(role=role, before=order, task=task, resume=True, message=words, rules=rules)
    outcome = await world.agent().run(again)
    assert outcome.result is not None, outcome
    assert (Path(outcome.result.workspace_path or "") / "made.txt").exists()
    assert words in str(world.model.requests[-1]["messages"])
    assert len(world.store.asked) == 1


async def test_failures_of_the_model_have_their_reasons(make: Make) -> None:
    world = await make({"status": 404})
    agent = world.agent()
    for status, reason in ((404, Reason.INVALID_REQUEST), (429, Reason.RATE_LIMITED), (529, Reason.OVERLOADED)):
        world.model.steps[0] = {"status": status}
        outcome = await agent.run(world.order())
        assert (outcome.status, outcome.reason) == (RunState.FAILED, reason), outcome


async def test_turns_are_limited_and_bad_folders_refused(make: Make) -> None:
    world = await make(call("Bash", command="echo 1", description="d"), call("Bash", command="echo 2", description="d"))
    agent = world.agent()
    outcome = await agent.run(world.order(task={"limits": Limits(max_turns=1)}))
    assert (outcome.status, outcome.reason) == (RunState.FAILED, Reason.TURN_LIMIT)
    outcome = await agent.run(world.order(workspace=Workspace(kind=WorkspaceKind.DIRECTORY, path="/etc")))
    assert (outcome.status, outcome.reason) == (RunState.FAILED, Reason.BAD_WORKSPACE)
    outcome = await world.agent(claude_path=world.folder / "none").run(world.order())
    assert (outcome.status, outcome.reason) == (RunState.FAILED, Reason.CLAUDE_NOT_FOUND)


async def test_an_agent_that_cannot_reach_the_store_ends_its_run(make: Make) -> None:
    world = await make(call("Bash", command="sleep 300", description="wait"))
    agent = world.agent(lease_s=2.0)
    order = world.order()
    running = start(agent, order)
    await until(lambda: world.store.activities and world.store.activities[-1].tool, "the tool runs")
    world.store.away = True
    outcome = await running
    assert (outcome.status, outcome.reason) == (RunState.LOST, Reason.NODE_LOST)
    await none_left(order)


async def test_a_stopped_agent_leaves_nothing_and_takes_nothing(make: Make) -> None:
    world = await make(call("Bash", command="sleep 300", description="wait"))
    agent = world.agent()
    order = world.order()
    running = start(agent, order)
    await until(lambda: world.store.activities and world.store.activities[-1].tool, "the tool runs")
    await agent.stop()
    assert (await running).reason is Reason.AGENT_STOPPED
    await none_left(order)
    with pytest.raises(Conflict):
        await agent.run(world.order())


async def test_in_rehearsal_the_agent_brings_its_own_model_and_needs_no_key(make: Make) -> None:
    world = await make()
    agent = world.agent(rehearsal=True)
    outcome = await agent.run(world.order("Say hello."))
    assert outcome.status is RunState.SUCCEEDED, outcome
    assert world.model.requests == []
