"""Runs git: in its own environment, with a time limit, never asking anything."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from fleet.errors import WorkspaceRefused

TIMEOUT_S = 120.0
CLONE_TIMEOUT_S = 1800.0
INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "SSH_AUTH_SOCK",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "TMPDIR",
)
PROTOCOLS = "file:git:http:https:ssh"
"""`ext::` would run any command."""
SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0")
"""A repository's own hooks are not run by us."""


class GitFailed(Exception):
    """A git command failed; the message is its own last words."""


def git_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of our git processes: no GIT_* of anybody, no prompt."""
    source = os.environ if environ is None else environ
    env = {name: source[name] for name in INHERITED if source.get(name)}
    env.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": PROTOCOLS, "GIT_ASKPASS": "/bin/false"}
    env.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    return env


async def git(
    folder: Path,
    *arguments: str,
    timeout_s: float = TIMEOUT_S,
    limit_bytes: int | None = None,
    errors: str = "replace",
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run git in a folder and return what it printed.

    Args:
        folder: where.
        arguments: the command; values that others gave must stand behind `--` or `--end-of-options`.
        timeout_s: after which it is killed.
        limit_bytes: more output than this is left out.
        errors: what becomes of bytes that are not UTF-8.
        environ: what its environment is chosen from; None takes this process's.

    Raises:
        GitFailed: it failed, took too long or there is no git.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *SAFE,
            *arguments,
            cwd=folder,
            env=git_environment(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Not `process_group=0`: the loop of a Ray actor is uvloop, which does not know it.
            start_new_session=True,
        )
    except OSError as error:
        raise GitFailed(f"git could not be started: {error.strerror or error}") from error
    try:
        out, said = await asyncio.wait_for(_output(process, limit_bytes), timeout_s)
    except TimeoutError:
        raise GitFailed(f"git {arguments[0]} took longer than {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0 and not (limit_bytes is not None and len(out) >= limit_bytes):
        words = said.decode("utf-8", errors="replace").strip().splitlines()
        raise GitFailed(words[-1] if words else f"git {arguments[0]} ended with {process.returncode}")
    return out.decode("utf-8", errors=errors)


async def _output(process: asyncio.subprocess.Process, limit: int | None) -> tuple[bytes, bytes]:
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    parts, size = [], 0
    while chunk := await process.stdout.read(256 * 1024):
        if limit is None or size < limit:
            parts.append(chunk)
            size += len(chunk)
        elif size >= limit:
            break
    if limit is not None and size >= limit:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    return b"".join(parts), await errors


@contextlib.asynccontextmanager
async def locked(path: Path, timeout_s: float = CLONE_TIMEOUT_S) -> AsyncIterator[None]:
    """Hold a lock file against the other agents of this node: git's own locks fail instead of waiting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = asyncio.get_running_loop().time() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise WorkspaceRefused(
                        f"Expected the repository to be free within {timeout_s:.0f} s, but another agent still "
                        "prepares a worktree of it. Try again later.",
                        path=str(path),
                        roots=[],
                    ) from None
                await asyncio.sleep(0.05)
        yield
