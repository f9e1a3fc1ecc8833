"""The guard by itself: whatever is killed, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fleet.claude import guard
from fleet.claude.processes import tagged, tree_usage

SCRIPT = """
setsid nohup sleep 301 >/dev/null 2>&1 &
(env -i setsid sleep 302 >/dev/null 2>&1 &)
trap 'exit 9' TERM
echo ready
while read line; do echo "got $line"; [ "$line" = end ] && exit 7; done
sleep 303 & wait
"""


class Guarded:
    """A shell under the guard, with a tagged and an untagged child that run away."""

    def __init__(self, tag: str, *options: str, script: str = SCRIPT, descriptors: tuple[int, ...] = ()) -> None:
        self.tag = f"FLEET_RUN_ID={tag}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, "--tag", self.tag, *options, "--", "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "FLEET_RUN_ID": tag},
            pass_fds=descriptors,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        stub = psutil.Process(self.process.pid)
        wait_for(lambda: sum("sleep" in each.name() for each in stub.children(recursive=True)) >= 2)
        self.below = stub.children(recursive=True)

    @property
    def guard(self) -> int:
        return psutil.Process(self.process.pid).children()[0].pid

    def left(self) -> list[psutil.Process]:
        return [each for each in self.below if running(each)]

    def close(self) -> None:
        for each in self.left():
            each.kill()
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def tag(tmp_path: Path) -> str:
    return f"r-test-{os.getpid()}-{tmp_path.name}"


def test_an_end_of_its_own_takes_everything_along_and_keeps_the_exit_code(tag: str) -> None:
    shell = Guarded(tag)
    try:
        assert tree_usage(shell.process.pid)[1] >= 5
        assert len(tagged(shell.tag)) >= 4
        shell.process.communicate(b"end\n", timeout=20)
        assert shell.process.returncode == 7
        wait_for(lambda: not shell.left())
    finally:
        shell.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on(tag: str, number: int) -> None:
    shell = Guarded(tag)
    try:
        shell.process.send_signal(number)
        assert shell.process.wait(20) == 9
        wait_for(lambda: not shell.left())
    finally:
        shell.close()


def test_what_ignores_the_signal_is_killed_after_the_grace(tag: str) -> None:
    shell = Guarded(tag, "--grace", "0.3", script=SCRIPT.replace("'exit 9'", "''"))
    try:
        shell.process.send_signal(signal.SIGTERM)
        assert shell.process.wait(20) == 128 + signal.SIGKILL
        wait_for(lambda: not shell.left())
    finally:
        shell.close()


@pytest.mark.parametrize("victim", ["stub", "guard"])
def test_a_kill_of_the_guard_or_its_stub_leaves_nothing(tag: str, victim: str) -> None:
    shell = Guarded(tag)
    try:
        os.kill(shell.process.pid if victim == "stub" else shell.guard, signal.SIGKILL)
        wait_for(lambda: not shell.left())
        assert shell.process.wait(20) == (-signal.SIGKILL if victim == "stub" else 128 + signal.SIGKILL)
    finally:
        shell.close()


def test_an_agent_that_gives_no_sign_loses_its_claude(tag: str) -> None:
    reading, writing = os.pipe()
    shell = Guarded(tag, "--alive", str(reading), "--lease", "1.5", descriptors=(reading,))
    try:
        os.close(reading)
        started = time.monotonic()
        while time.monotonic() - started < 3:
            os.write(writing, b".")
            assert shell.process.poll() is None
            time.sleep(0.2)
        assert shell.process.wait(20) == 9
        wait_for(lambda: not shell.left())
    finally:
        os.close(writing)
        shell.close()


def test_a_command_that_does_not_exist_ends_with_127(tag: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", guard.__file__, "--tag", f"X={tag}", "--", "/none/such"],
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 127
    assert b"cannot execute /none/such" in done.stderr
