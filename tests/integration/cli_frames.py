"""Runs a Claude Code executable (the real one or a stand-in) and collects its frames."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
SETTINGS = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_MAX_RETRIES": "4",
}


@dataclass
class Cli:
    """A running executable."""

    process: asyncio.subprocess.Process
    frames: list[dict[str, Any]] = field(default_factory=list)

    def send(self, frame: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(frame).encode() + b"\n")

    def say(self, text: str) -> str:
        """Send a user message; return its uuid."""
        mark = str(uuid.uuid4())
        message = {"role": "user", "content": text}
        self.send({"type": "user", "uuid": mark, "message": message, "parent_tool_use_id": None})
        return mark

    async def until(self, type: str, **values: Any) -> dict[str, Any]:
        """Read on until a frame of this type and values comes; return it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stdout.readline():
                frame = json.loads(line)
                self.frames.append(frame)
                if frame["type"] == type and all(frame.get(key) == value for key, value in values.items()):
                    return dict(frame)
        raise AssertionError(f"the process ended before {type} {values}: {self.frames[-3:]}")

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a control request and return the answer."""
        mark = uuid.uuid4().hex
        self.send({"type": "control_request", "request_id": mark, "request": request})
        while True:
            response = (await self.until("control_response"))["response"]
            if response["request_id"] == mark:
                return dict(response)

    def of(self, type: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == type]

    def blocks(self, type: str) -> list[dict[str, Any]]:
        """Return the content blocks of this type, of all messages."""
        contents = [frame["message"]["content"] for frame in self.frames if frame["type"] in ("assistant", "user")]
        return [
            block for content in contents if isinstance(content, list) for block in content if block["type"] == type
        ]


@asynccontextmanager
async def claude(
    executable: Path,
    folder: Path,
    cwd: Path,
    base_url: str = "",
    *,
    tools: str = "Read,Write,Edit,Bash",
    allowed: str = "Read,Write,Edit,Bash",
    arguments: Sequence[str] = (),
) -> AsyncIterator[Cli]:
    """Start an executable with nothing of this machine but PATH; `folder` is its home."""
    argv = [str(executable), "--output-format", "stream-json", "--verbose", "--input-format", "stream-json"]
    argv += ["--include-partial-messages", "--setting-sources=", "--strict-mcp-config", "--tools", tools]
    argv += ["--allowed-tools", allowed, "--permission-mode", "default", "--permission-prompt-tool", "stdio"]
    argv += ["--session-mirror", "--max-turns", "20"]
    if not any(argument.startswith(("--resume", "--session-id")) for argument in arguments):
        argv.append(f"--session-id={uuid.uuid4()}")
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", **SETTINGS}
    env |= {"CLAUDE_CONFIG_DIR": str(folder / "config")}
    if base_url:
        env |= {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": "rehearsal-no-key"}
    process = await asyncio.create_subprocess_exec(
        *argv,
        *arguments,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )
    try:
        cli = Cli(process)
        yield cli
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()
        # The transport's own end comes with the end of the pipes.
        await asyncio.sleep(0)
