"""An agent without Ray over the stand-in: the SDK, the guard and the journal take it for Claude Code."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.claude.processes import tagged
from fleet.lifecycle import RunState
from fleet.models import Limits, RunOrder
from fleet.reasons import Reason
from fleet.rehearsal import standin
from tests.integration.agent_world import ROLE, ScriptedModel, World, until

PROMPT = (
    "write: one.txt\n<<<\n1\n>>>\nrun: echo two >> two.txt; sleep {seconds}\nrun: echo three >> three.txt\nsay: end"
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, await ScriptedModel([]).start())
    yield made
    await made.close()


def command(world: World) -> Path:
    return standin.install(world.folder / "bin")


async def gone(order: RunOrder) -> None:
    await until(lambda: not tagged(f"FLEET_RUN_ID={order.run.id}"), "all processes of the run are gone", 10)


async def test_a_run_succeeds_with_cost_and_events(world: World) -> None:
    agent = world.agent(claude_path=command(world))
    order = world.order(PROMPT.format(seconds=0), role=ROLE)
    outcome = await agent.run(order)
    assert (outcome.status, outcome.reason) == (RunState.SUCCEEDED, None), outcome
    assert outcome.result is not None
    assert outcome.result.text.startswith("end\n")
    assert (outcome.turns, outcome.cost_usd > 0, outcome.usage.output_tokens > 0) == (4, True, True)
    assert [block["name"] for frame in world.store.frames("assistant") for block in frame["message"]["content"]
            if block["type"] == "tool_use"] == ["Write", "Bash", "Bash"]  # fmt: skip
    assert not world.model.requests
    await gone(order)


async def test_messages_and_ends_reach_it(world: World) -> None:
    agent = world.agent(claude_path=command(world))
    order = world.order("run: echo one; sleep 1\nrun: echo two\nsay: end")
    running = asyncio.create_task(agent.run(order))
    await until(lambda: any(a.tool for a in world.store.activities), "the tool runs")
    assert await agent.message("Mind the gap.", order.run.id)
    outcome = await running
    assert outcome.status is RunState.SUCCEEDED, outcome
    said = [block["text"] for frame in world.store.frames("assistant") for block in frame["message"]["content"]
            if block["type"] == "text"]  # fmt: skip
    assert any("You said: Mind the gap." in text for text in said)
    order = world.order("run: setsid nohup sleep 300 & sleep 301")
    running = asyncio.create_task(agent.run(order))
    await until(lambda: any(a.tool for a in world.store.activities if a.run_id == order.run.id), "the tool runs")
    assert await agent.cancel(order.run.id, Reason.CANCELLED, "by hand")
    assert (await running).status is RunState.CANCELLED
    await gone(order)
    order = world.order("run: sleep 300", task={"limits": Limits(time_limit_s=2)})
    assert (await agent.run(order)).reason is Reason.TIME_LIMIT
    await gone(order)


async def test_a_killed_one_is_resumed_and_does_nothing_twice(world: World) -> None:
    agent = world.agent(claude_path=command(world))
    order = world.order(PROMPT.format(seconds=60))
    running = asyncio.create_task(agent.run(order))
    folder = world.folder / "fleet" / "work"
    two = await until(lambda: next(folder.rglob("two.txt"), None), "the second step took effect")
    one = (two.parent / "one.txt").stat().st_mtime_ns
    claude = next(pid for pid in tagged(f"FLEET_RUN_ID={order.run.id}") if _is_standin(pid))
    os.kill(claude, signal.SIGKILL)
    outcome = await running
    assert (outcome.status, outcome.reason) == (RunState.LOST, Reason.AGENT_LOST), outcome
    await gone(order)
    again = world.order(
        before=order, task={"session_id": outcome.session_id}, resume=True, moved=True, agent_id="tester-2"
    )
    outcome = await world.agent("tester-2", claude_path=command(world)).run(again)
    assert outcome.status is RunState.SUCCEEDED, outcome
    assert outcome.result is not None
    assert outcome.result.text.startswith("end")
    assert two.read_text() == "two\n"
    assert (two.parent / "one.txt").stat().st_mtime_ns == one
    assert (two.parent / "three.txt").read_text() == "three\n"


def _is_standin(pid: int) -> bool:
    line = Path(f"/proc/{pid}/cmdline").read_text()
    return "from standin import main" in line and "guard.py" not in line


async def test_twenty_thousand_pieces_of_text_all_arrive(world: World) -> None:
    agent = world.agent(claude_path=command(world))
    outcome = await agent.run(world.order("emit: 20000 0\nsay: end"))
    assert outcome.status is RunState.SUCCEEDED
    # The journal puts pieces together; none is lost.
    deltas = [frame["event"].get("delta", {}).get("text", "") for frame in world.store.frames("stream_event")]
    assert "".join(deltas).split()[:20000] == [str(number) for number in range(1, 20001)]
