"""The CLI by itself: a Claude Code process against the rehearsal model, as fleet would start it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import uuid
from pathlib import Path

from fleet.claude.argv import claude_argv
from fleet.claude.credentials import rehearsal_credentials
from fleet.claude.environment import claude_environment
from fleet.config import FleetConfig
from fleet.models import Role
from fleet.rehearsal.server import RehearsalServer


def find() -> Path | None:
    """Return the real executable, None when there is none."""
    from fleet.claude.locate import find_claude
    from fleet.errors import ClaudeNotFound

    try:
        return find_claude(FleetConfig())
    except ClaudeNotFound:
        return None


class ClaudeAlone:
    """A rehearsal model in a thread, and a process for each task."""

    def __init__(self, executable: Path, folder: Path, role: Role) -> None:
        self._executable, self._folder, self._role = executable, folder, role
        folder.mkdir(parents=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = RehearsalServer()
        self._url = asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(60)

    def round_trip(self, prompt: str) -> float:
        """Return the seconds from the start of the process to its result."""
        return asyncio.run_coroutine_threadsafe(self._round_trip(prompt), self._loop).result(300)

    async def _round_trip(self, prompt: str) -> float:
        session = str(uuid.uuid4())
        config_dir = self._folder / session
        config_dir.mkdir()
        credentials = rehearsal_credentials(self._url)
        env = claude_environment(
            os.environ, credentials, config_dir=config_dir, run_id=session, agent_id="alone", owner="alone"
        )
        env |= {"HOME": str(self._folder), **dict(credentials.visible)}
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *claude_argv(self._executable, self._role, session_id=session),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=env,
            cwd=config_dir,
            limit=2**26,
        )
        assert process.stdin is not None and process.stdout is not None
        message = {"type": "user", "message": {"role": "user", "content": prompt}, "parent_tool_use_id": None}
        process.stdin.write(json.dumps(message).encode() + b"\n")
        seconds = 0.0
        async for line in process.stdout:
            if json.loads(line).get("type") == "result":
                seconds = time.perf_counter() - began
                break
        process.stdin.close()
        await process.wait()
        assert seconds, "Claude Code ended without a result"
        return seconds

    def close(self) -> None:
        """End the model."""
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
