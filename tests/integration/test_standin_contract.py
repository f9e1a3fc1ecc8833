"""The stand-in says what the real Claude Code says: the same prompts to both, their frames compared."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet.agent.session import MOVED
from fleet.claude.frames import RunFacts, classify
from fleet.claude.locate import bundled_claude
from fleet.lifecycle import RunState
from fleet.rehearsal import standin
from fleet.rehearsal.server import RehearsalServer
from tests.integration.agent_world import until
from tests.integration.cli_frames import Cli, claude

REAL = bundled_claude() or Path("claude")
BOTH = pytest.mark.parametrize("which", ["real", "standin"])


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = RehearsalServer()
    yield await server.start()
    await server.stop()


def executable(which: str, folder: Path) -> Path:
    return REAL if which == "real" else standin.install(folder / "bin")


async def everything(cli: Cli) -> None:
    """A conversation with all that the fleet uses."""
    first = await cli.ask({"subtype": "initialize", "hooks": None})
    assert first["subtype"] == "success", first
    # A call that must be asked for, one that is allowed, one that fails.
    mark = cli.say("run: touch a.txt\nwrite: b.txt\n<<<\nx\n>>>\nrun: ls nothing-here\nsay: done")
    asked = await cli.until("control_request")
    answer = {"behavior": "allow", "updatedInput": asked["request"]["input"]}
    response = {"subtype": "success", "request_id": asked["request_id"], "response": answer}
    cli.send({"type": "control_response", "response": response})
    result = await cli.until("result")
    assert mark in result["user_message_uuids"]
    await cli.until("system", subtype="session_state_changed", state="idle")
    # A refusal, and an interrupt while a command runs.
    cli.say("run: touch c.txt\nrun: echo begun; sleep 60\nsay: done")
    asked = await cli.until("control_request")
    answer = {"behavior": "deny", "message": "not that file"}
    response = {"subtype": "success", "request_id": asked["request_id"], "response": answer}
    cli.send({"type": "control_response", "response": response})
    while not any("sleep 60" in str(block["input"]) for block in cli.blocks("tool_use")):
        await cli.until("assistant")
    await asyncio.sleep(0.3)
    assert (await cli.ask({"subtype": "interrupt"}))["subtype"] == "success"
    if not any(frame["subtype"] != "success" for frame in cli.of("result")):
        await cli.until("result")
    await cli.until("system", subtype="session_state_changed", state="idle")
    refused = await cli.ask({"subtype": "nonsense"})
    assert (refused["subtype"], refused["error_code"]) == ("error", "unsupported_request")


def keys(value: Any, depth: int = 3) -> set[str]:
    """Return the paths of keys of a frame."""
    if depth == 0 or not isinstance(value, dict):
        return set()
    return set(value) | {f"{key}.{inner}" for key, part in value.items() for inner in keys(part, depth - 1)}


def shape(cli: Cli) -> dict[str, set[str]]:
    """Return type and subtype → keys, of all frames."""
    found: dict[str, set[str]] = {}
    for frame in cli.frames:
        name = frame["type"] + ":" + str(frame.get("subtype") or (frame.get("request") or {}).get("subtype") or "")
        if frame["type"] == "stream_event":
            name += frame["event"]["type"]
        part = {
            key: value for key, value in frame.items() if key not in ("modelUsage", "model_usage_since_last_result")
        }
        found[name] = found.get(name, set()) | keys(part)
    return found


FREE = ("response.response.", "request.input.", "tool_use_result.", "entries")


async def test_its_frames_are_those_of_the_real_one(url: str, tmp_path: Path) -> None:
    shapes = {}
    for which in ("real", "standin"):
        folder = tmp_path / which
        folder.mkdir()
        async with claude(executable(which, folder), folder, folder, url, allowed="Read,Write,Bash(echo *)") as cli:
            await everything(cli)
        assert cli.process.returncode in (0, 1)
        shapes[which] = shape(cli)
        facts = RunFacts()
        for frame in cli.frames:
            facts.take(frame)
        endings = [classify(frame) for frame in cli.of("result")]
        assert [ending.status for ending in endings] == [RunState.SUCCEEDED, RunState.FAILED]
        assert facts.cost_usd > 0
        assert facts.usage.output_tokens > 0
        assert (facts.turns, facts.idle, facts.tool) == (8, True, None), which
        texts = [block["content"] for block in cli.blocks("tool_result")]
        assert [text.split("\n")[0][:30] for text in texts if "created" not in text] == [
            "(Bash completed with no output",
            "Exit code 2",
            "not that file",
            "The user doesn't want to proce",
        ]
        assert cli.of("result")[1]["terminal_reason"] == "aborted_tools"
        assert [denial["tool_name"] for denial in cli.of("result")[1]["permission_denials"]] == ["Bash"]
        assert (folder / "a.txt").exists()
        assert not (folder / "c.txt").exists()
    real, ours = shapes["real"], shapes["standin"]
    assert set(ours) == set(real)
    for name, found in ours.items():
        made_up = {key for key in found - real[name] if not key.startswith(FREE)}
        assert not made_up, f"{name} has keys that the real one has not: {sorted(made_up)}"
    for name in (
        "assistant:",
        "user:",
        "transcript_mirror:",
        "control_response:success",
        "system:session_state_changed",
    ):
        top = {key for key in real[name] - ours[name] if "." not in key} if name in real else set()
        assert not top - {"user_message_uuid", "user_message_uuids", "tool_result_meta", "tool_use_result"}, name


@BOTH
async def test_a_message_in_mid_turn_is_acknowledged(which: str, url: str, tmp_path: Path) -> None:
    async with claude(executable(which, tmp_path), tmp_path, tmp_path, url) as cli:
        cli.say("run: echo one\nsleep: 1\nrun: echo two\nsleep: 1\nrun: echo three")
        await cli.until("user")
        mark = cli.say("Mind the gap.")
        result = await cli.until("result")
    assert "You said: Mind the gap." in [block["text"].strip() for block in cli.blocks("text")]
    assert mark in result["user_message_uuids"]


@BOTH
async def test_a_session_that_was_cut_off_is_resumed(which: str, url: str, tmp_path: Path) -> None:
    session = str(uuid.uuid4())
    command = executable(which, tmp_path)
    prompt = "write: one.txt\n<<<\n1\n>>>\nrun: echo two >> two.txt; sleep 60\nsay: end"
    async with claude(command, tmp_path, tmp_path, url, arguments=[f"--session-id={session}"]) as cli:
        cli.say(prompt)
        while len(cli.blocks("tool_use")) < 2:
            await cli.until("assistant")
        await until(lambda: (tmp_path / "two.txt").exists(), "the command took effect")
        cli.process.kill()
    written = (tmp_path / "one.txt").stat().st_mtime_ns
    async with claude(command, tmp_path, tmp_path, url, arguments=[f"--resume={session}"]) as cli:
        cli.say(MOVED)
        result = await cli.until("result")
    assert result["session_id"] == session
    assert "end" in result["result"]
    assert (tmp_path / "two.txt").read_text() == "two\n"
    assert (tmp_path / "one.txt").stat().st_mtime_ns == written


@BOTH
async def test_a_session_that_does_not_exist_is_an_error(which: str, url: str, tmp_path: Path) -> None:
    session = str(uuid.uuid4())
    async with claude(executable(which, tmp_path), tmp_path, tmp_path, url, arguments=[f"--resume={session}"]) as cli:
        cli.say("say: never")
        result = await cli.until("result")
    assert result["subtype"] == "error_during_execution"
    assert "No conversation found" in json.dumps(result["errors"])
    assert cli.process.returncode == 1


@BOTH
async def test_a_service_that_refuses_is_an_api_error(which: str, url: str, tmp_path: Path) -> None:
    async with claude(executable(which, tmp_path), tmp_path, tmp_path, url) as cli:
        cli.say("fault: 400 times=20\nsay: never")
        result = await cli.until("result")
    assert (result["subtype"], result["is_error"], result["terminal_reason"]) == ("success", True, "api_error")
    assert result["api_error_status"] == 400
    assert classify(result).status is RunState.FAILED


@BOTH
async def test_an_output_schema_is_filled(which: str, url: str, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    arguments = [f"--json-schema={json.dumps(schema)}"]
    async with claude(executable(which, tmp_path), tmp_path, tmp_path, url, arguments=arguments) as cli:
        cli.say("say: fine")
        result = await cli.until("result")
    assert result["structured_output"] == {"ok": True}


async def test_it_echoes_at_once_and_emits_at_a_rate(tmp_path: Path) -> None:
    async with claude(executable("standin", tmp_path), tmp_path, tmp_path) as cli:
        cli.say("Hello.")
        assert (await cli.until("result"))["result"] == "You said: Hello."
        cli.say("emit: 500 1000\nsay: end")
        assert (await cli.until("result"))["result"].startswith("end")
    deltas = [frame for frame in cli.of("stream_event") if frame["event"]["type"] == "content_block_delta"]
    assert len(deltas) == 502
    assert cli.process.returncode == 0
