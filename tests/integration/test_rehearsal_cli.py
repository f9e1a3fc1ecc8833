"""The real Claude Code CLI with its real tools, against the rehearsal model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from fleet.agent.session import MOVED
from fleet.claude.locate import bundled_claude
from fleet.config import BUILTIN_ROLES
from fleet.rehearsal.demo import backlog, make_repository
from fleet.rehearsal.server import RehearsalServer
from tests.integration.agent_world import until
from tests.integration.cli_frames import claude

CLAUDE = bundled_claude() or Path("claude")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = RehearsalServer()
    yield await server.start()
    await server.stop()


def run_tests(repository: Path) -> tuple[int, str]:
    """Run the repository's tests by hand."""
    command = [sys.executable, "-m", "unittest", "discover", "-s", "tests", "-t", "."]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


async def test_the_backlog_of_the_demo_mends_the_repository(url: str, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    assert run_tests(repository)[0] != 0
    said = {}
    for name, spec, _ in backlog(repository):
        rules = BUILTIN_ROLES[spec.role]["tools"]
        tools = ",".join(sorted({rule.partition("(")[0] for rule in rules}))
        async with claude(CLAUDE, tmp_path, repository, url, tools=tools, allowed=",".join(rules)) as cli:
            cli.say(spec.prompt)
            result = await cli.until("result")
        assert (result["subtype"], result["is_error"], result["permission_denials"]) == ("success", False, []), result
        assert result["total_cost_usd"] > 0
        assert result["usage"]["output_tokens"] > 0
        said[name] = result["result"]
    code, output = run_tests(repository)
    assert code == 0, output
    assert "1 - discount" in (repository / "orders/totals.py").read_text()
    assert "def with_tax" in (repository / "orders/totals.py").read_text()
    log = subprocess.run(["git", "log", "--oneline"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert len(log.splitlines()) == 2
    assert "all passed" in said["develop"]
    assert log.split()[0][:7] in said["review"]
    ran = output.split("Ran ")[1].split()[0]
    assert f"{ran} run, all passed" in said["test"]
    assert int(ran) > 2


async def test_faults_are_met_and_the_work_goes_on(url: str, tmp_path: Path) -> None:
    prompt = (
        "fault: 429 retry-after=1\nrun: echo x >> x.txt\nfault: cut\nwrite: y.txt\n<<<\nhello\n>>>\n"
        "fault: malformed\nedit: y.txt | hello | bye\nfault: max_tokens\nsay: done"
    )
    async with claude(CLAUDE, tmp_path, tmp_path, url) as cli:
        cli.say(prompt)
        result = await cli.until("result")
    assert not result["is_error"], result
    assert "done" in result["result"]
    assert (tmp_path / "x.txt").read_text() == "x\n"
    assert (tmp_path / "y.txt").read_text() == "bye\n"
    retries = [frame for frame in cli.of("system") if frame["subtype"] == "api_retry"]
    assert "rate_limit" in [frame["error"] for frame in retries]


async def test_a_message_in_mid_turn_is_acknowledged(url: str, tmp_path: Path) -> None:
    async with claude(CLAUDE, tmp_path, tmp_path, url) as cli:
        cli.say("run: echo one\nsleep: 1\nrun: echo two\nsleep: 1\nrun: echo three")
        await cli.until("user")
        cli.say("Mind the gap.")
        result = await cli.until("result")
    texts = [block["text"].strip() for block in cli.blocks("text")]
    assert "You said: Mind the gap." in texts
    assert "three" in result["result"]


async def test_a_conversation_that_was_cut_off_goes_on_elsewhere_and_writes_nothing_twice(
    url: str, tmp_path: Path
) -> None:
    work, there = tmp_path / "work", tmp_path / "there"
    work.mkdir()
    session = str(uuid.uuid4())
    prompt = "write: one.txt\n<<<\n1\n>>>\nrun: echo two >> two.txt; sleep 60\nrun: echo three >> three.txt\nsay: end"
    async with claude(CLAUDE, tmp_path, work, url, arguments=[f"--session-id={session}"]) as cli:
        cli.say(prompt)
        while len(cli.blocks("tool_use")) < 2:
            await cli.until("assistant")
        await until(lambda: (work / "two.txt").exists(), "the second call took effect")
        for process in reversed(psutil.Process(cli.process.pid).children(recursive=True)):
            process.kill()
        cli.process.kill()
        await cli.process.wait()
    entries = [entry for frame in cli.of("transcript_mirror") for entry in frame["entries"]]
    written = (work / "one.txt").stat().st_mtime_ns
    shutil.move(work, there)
    key = "".join(letter if letter.isalnum() else "-" for letter in str(there))
    transcript = tmp_path / "other" / "config" / "projects" / key / f"{session}.jsonl"
    transcript.parent.mkdir(parents=True)
    transcript.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    async with claude(CLAUDE, tmp_path / "other", there, url, arguments=[f"--resume={session}"]) as cli:
        cli.say(MOVED)
        result = await cli.until("result")
    assert result["session_id"] == session
    assert "end" in result["result"]
    assert (there / "one.txt").stat().st_mtime_ns == written
    assert (there / "two.txt").read_text() == "two\n"
    assert (there / "three.txt").read_text() == "three\n"
