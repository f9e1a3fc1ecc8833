"""Fleets for tests: the real command in a home of its own, and the proof that nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from fleet.cluster import processes

if TYPE_CHECKING:
    from fleet.client.sync import Fleet

T = TypeVar("T")

UP_S = 300
SLOW_S = 180.0
"""How long a test waits for what takes seconds on a quiet machine: CI has two slow, shared cores."""

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "PYTHONPATH")


def until(what: Callable[[], T], said: str, timeout_s: float = SLOW_S, every_s: float = 0.1) -> T:
    """Return what `what` returns as soon as that is true; fail with `said` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := what():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {said}; last {found!r}")
        time.sleep(every_s)


@dataclass
class Home:
    """A home, with an empty HOME beside it, and the command that works in it."""

    folder: Path
    settings: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The fleet's home."""
        return self.folder / "fleet"

    @property
    def work(self) -> Path:
        """A folder under the roots."""
        return self.folder / "work"

    def prepare(self) -> Home:
        """Make the folders and the settings."""
        for folder in (self.home, self.work, self.folder / "user"):
            folder.mkdir(parents=True, exist_ok=True)
        roots = json.dumps([str(self.work), str(self.home)])
        (self.work / "fleet.toml").write_text(f"roots = {roots}\nport = 0\ndashboard_port = 0\n{self.settings}")
        return self

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of a user with nothing of this machine's."""
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        env |= {"HOME": str(self.folder / "user"), "FLEET_HOME": str(self.home), "NO_COLOR": "1", "TERM": "dumb"}
        return env | self.extra | more

    def fleet(
        self, *arguments: str, code: int | None = 0, timeout_s: float = UP_S, given: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command and check its exit code (None: any)."""
        done = subprocess.run(
            [sys.executable, "-c", "from fleet.cli import main; main()", *arguments],
            cwd=self.work,
            env=self.environ(**more),
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, (
                f"fleet {' '.join(arguments)}: exit code {done.returncode}, expected {code}\n"
                f"{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done

    def json(self, *arguments: str, **more: Any) -> Any:
        """Run the command with `--json` and return what it said."""
        return json.loads(self.fleet(*arguments, "--json", **more).stdout)

    def up(self, *arguments: str) -> Home:
        """Start the fleet in rehearsal and wait until it answers."""
        self.fleet("up", "-d", "--rehearsal", *arguments)
        return self

    def connect(self) -> Fleet:
        """Return a client."""
        from fleet.client.sync import Fleet

        record = self.record()
        return Fleet.connect(record["url"], (self.home / "token").read_text().strip())

    def record(self) -> dict[str, Any]:
        """Return `run.json`."""
        found: dict[str, Any] = json.loads((self.home / "run.json").read_text())
        return found

    def processes(self) -> list[psutil.Process]:
        """Return every process that knows this home, by environment or arguments."""
        mark = str(self.folder)
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or not processes.running(process):
                    continue
                if any(mark in value for value in process.environ().values()) or mark in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def left(self) -> list[str]:
        """Return what is left of the fleet, described."""
        found = []
        for process in self.processes():
            try:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:150]}")
            except psutil.Error:
                continue
        return found

    def down(self) -> None:
        """End the fleet; nothing of it may be left."""
        self.fleet("down")
        until(lambda: not self.left(), f"no process of the fleet is left, but: {self.left()}", 30)

    def logs(self) -> str:
        """Return the ends of the fleet's logs, for a failing test."""
        parts = []
        for path in sorted((self.home / "logs").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-25:]
            parts.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(parts)


@contextmanager
def temporary_home(settings: str = "", **extra: str) -> Iterator[Home]:
    """Yield a home; at the end nothing of it may run. The folder is kept when the test failed."""
    folder = Path(tempfile.mkdtemp(prefix=f"fl{os.getpid()}-", dir="/tmp"))
    home = Home(folder, settings, extra).prepare()
    count = 0
    try:
        yield home
        home.down()
    except BaseException:
        # The next test needs the machine.
        home.fleet("down", code=None)
        raise
    finally:
        count = processes.kill_until_none(home.processes)
    assert count == 0, f"{count} processes had to be killed"
    shutil.rmtree(folder, ignore_errors=True)
