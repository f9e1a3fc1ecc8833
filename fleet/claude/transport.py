"""Runs Claude Code under the guard and speaks NDJSON with it: our `Transport` for claude-agent-sdk.

The SDK sees the control protocol only (initialize, permissions, interrupt); every other frame goes straight to
`on_frame`. So nothing that the SDK does not know is lost, and a slow reader cannot block its control requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from claude_agent_sdk import CLIConnectionError, Transport

from fleet.claude import guard

log = logging.getLogger("fleet.claude")

LINE_LIMIT_BYTES = 64 * 1024 * 1024
"""The SDK's own limit of 1 MiB ends the stream for good at one image or long text."""
READ_BYTES = 256 * 1024
CONTROL = frozenset({"control_request", "control_response", "control_cancel_request"})
REDACTED = b"[redacted]"


class LineSplitter:
    """Puts chunks together to lines; a line over the limit is dropped and counted."""

    def __init__(self, limit: int = LINE_LIMIT_BYTES) -> None:
        self.limit = limit
        self.dropped = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False

    def push(self, chunk: bytes) -> list[bytes]:
        """Add a chunk; return the lines it completes, without their ends."""
        *complete, rest = chunk.split(b"\n")
        lines = []
        for part in complete:
            self._add(part)
            if not self._skipping:
                lines.append(b"".join(self._parts))
            self._parts, self._size, self._skipping = [], 0, False
        self._add(rest)
        return lines

    def _add(self, part: bytes) -> None:
        if self._skipping or not part:
            return
        self._parts.append(part)
        self._size += len(part)
        if self._size > self.limit:
            self.dropped += 1
            self._parts, self._size, self._skipping = [], 0, True

    def rest(self) -> bytes:
        """Return what came after the last line end."""
        rest = b"".join(self._parts)
        self._parts, self._size = [], 0
        return rest


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the frame of a line; None when it is none. Invalid UTF-8 becomes the replacement character."""
    text = line.decode("utf-8", errors="replace").strip()
    if not text.startswith("{"):
        return None
    try:
        frame = json.loads(text)
    except ValueError:
        return None
    return frame if isinstance(frame, dict) else None


class GuardedTransport(Transport):  # type: ignore[misc]
    """One Claude Code process under its guard.

    Args:
        argv: the command line of Claude Code.
        env: its whole environment.
        cwd: where it works.
        secrets_by_descriptor: variable that is to name a file descriptor → what is to be read from it.
        redact: values that are taken out of everything it says.
        tag: `NAME=VALUE` of its environment, by which the guard finds what ran away.
        cgroup: name of a cgroup to make for it, where that is possible.
        grace_s: how long Claude Code has to end after SIGTERM.
        lease_s: after so long without a call of `alive` the guard ends it; 0 is never.
        on_frame: called with every frame that is not of the control protocol.
        on_stderr: called with every line of stderr.

    Attributes:
        stdin_at: when the first byte was written to it, in seconds since the epoch.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        secrets_by_descriptor: Mapping[str, str] | None = None,
        redact: Sequence[str] = (),
        tag: str = "",
        cgroup: str = "",
        grace_s: float = 2.0,
        lease_s: float = 0.0,
        on_frame: Callable[[dict[str, Any]], None],
        on_stderr: Callable[[str], None],
    ) -> None:
        self.argv = list(argv)
        self.env = dict(env)
        self.cwd = cwd
        self.grace_s, self.lease_s = grace_s, lease_s
        self.exit_code: int | None = None
        self.exited = asyncio.Event()
        self.stdin_at: float | None = None
        self._secrets = dict(secrets_by_descriptor or {})
        self._redact = [value.encode() for value in redact]
        self._tag = tag
        self._cgroup = cgroup
        self._on_frame = on_frame
        self._on_stderr = on_stderr
        self._alive: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        """The pid of the stub, the root of the run's processes."""
        return self._process.pid if self._process is not None else None

    async def connect(self) -> None:
        """Start the guard and Claude Code. Must be called in the thread that lives as long as the agent: the kernel
        takes the end of the thread that forked for the end of the parent."""
        command = [sys.executable, "-I", "-S", guard.__file__, "--grace", str(self.grace_s)]
        if self._tag:
            command += ["--tag", self._tag]
        if self._cgroup:
            command += ["--cgroup", self._cgroup]
        env, descriptors = dict(self.env), []
        try:
            for name, secret in self._secrets.items():
                descriptor = _readable(secret)
                descriptors.append(descriptor)
                env[name] = str(descriptor)
            if self.lease_s:
                reading, self._alive = os.pipe()
                os.set_blocking(self._alive, False)
                descriptors.append(reading)
                command += ["--alive", str(reading), "--lease", str(self.lease_s)]
            self._process = await asyncio.create_subprocess_exec(
                *command,
                "--",
                *self.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.cwd,
                env=env,
                pass_fds=descriptors,
            )
        except OSError as error:
            raise CLIConnectionError(f"Claude Code could not be started: {error.strerror or error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._tasks = [asyncio.create_task(self._read_stderr()), asyncio.create_task(self._wait())]

    async def write(self, data: str) -> None:
        """Send lines to Claude Code. Raises CLIConnectionError when it is gone."""
        if self._process is None or self._process.stdin is None or self.exited.is_set():
            raise CLIConnectionError("Claude Code has ended.")
        self.stdin_at = self.stdin_at or time.time()
        try:
            self._process.stdin.write(data.encode("utf-8", errors="replace"))
            await self._process.stdin.drain()
        except (OSError, RuntimeError) as error:
            raise CLIConnectionError("Claude Code no longer reads what it is told.") from error

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Read all frames: those of the control protocol are yielded, all others go to `on_frame`."""
        assert self._process is not None and self._process.stdout is not None
        splitter, dropped = LineSplitter(), 0
        while chunk := await self._process.stdout.read(READ_BYTES):
            for line in splitter.push(chunk):
                if (frame := self._frame(line)) is not None:
                    yield frame
            if splitter.dropped > dropped:
                dropped = splitter.dropped
                self._on_stderr(f"fleet: a frame over {LINE_LIMIT_BYTES // 2**20} MiB was left out")
        if (frame := self._frame(splitter.rest())) is not None:
            yield frame

    def _frame(self, line: bytes) -> dict[str, Any] | None:
        for secret in self._redact:
            if secret in line:
                line = line.replace(secret, REDACTED)
        frame = parse_line(line)
        if frame is None:
            if line.strip():
                self._on_stderr("stdout: " + line[:2000].decode("utf-8", errors="replace"))
            return None
        if frame.get("type") in CONTROL:
            return frame
        self._on_frame(frame)
        return None

    async def _read_stderr(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        splitter = LineSplitter(limit=1024 * 1024)
        while chunk := await self._process.stderr.read(READ_BYTES):
            for line in splitter.push(chunk):
                self._stderr_line(line)
        self._stderr_line(splitter.rest())

    def _stderr_line(self, line: bytes) -> None:
        for secret in self._redact:
            line = line.replace(secret, REDACTED)
        if line.strip():
            self._on_stderr(line.decode("utf-8", errors="replace").rstrip())

    async def _wait(self) -> None:
        assert self._process is not None
        self.exit_code = await self._process.wait()
        self.exited.set()

    async def end_input(self) -> None:
        """Close stdin: an idle Claude Code ends."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.close()

    def alive(self) -> None:
        """Tell the guard that the agent is in contact with its fleet."""
        if self._alive is not None:
            with contextlib.suppress(OSError):
                os.write(self._alive, b".")

    def signal(self, number: int) -> None:
        """Send a signal to the stub, which hands TERM, INT and HUP on."""
        if self._process is not None and not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ended(self, seconds: float) -> bool:
        """Wait for the end of the process and its whole tree; False when it did not come in time."""
        try:
            await asyncio.wait_for(self.exited.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End the process: end of input, SIGTERM (the guard kills after its grace), SIGKILL; every wait is bounded."""
        if self._process is not None:
            await self._close(self._process)
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    async def _close(self, process: asyncio.subprocess.Process) -> None:
        await self.end_input()
        if not await self.ended(0.5):
            self.signal(signal.SIGTERM)
            if not await self.ended(self.grace_s + 3.0):
                log.warning("guard killed: it did not end in time pid=%s", process.pid)
                self.signal(signal.SIGKILL)
                await self.ended(3.0)
        for task in self._tasks:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(task), 1.0)
            task.cancel()

    def is_ready(self) -> bool:
        """Whether it runs and can be written to."""
        return self._process is not None and not self.exited.is_set()


def _readable(secret: str) -> int:
    """Return a descriptor from which a secret can be read once; the pipe's buffer holds it (64 KiB)."""
    reading, writing = os.pipe()
    os.write(writing, secret.encode())
    os.close(writing)
    return reading
