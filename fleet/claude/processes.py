"""Looks at the processes of runs from the agent's side: what they use, and what must not be left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from fleet.claude import guard

PROC = Path("/proc")
MIB = 1024 * 1024


def tagged(tag: str) -> list[int]:
    """Return the pids whose environment holds `NAME=VALUE`, this process never among them; zombies have none."""
    found = []
    if not PROC.is_dir():
        return _tagged_without_proc(tag)
    wanted, me = tag.encode(), os.getpid()
    for entry in os.scandir(PROC):
        if entry.name.isdigit() and int(entry.name) != me:
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:  # noqa: PTH123
                if wanted in file.read().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _tagged_without_proc(tag: str) -> list[int]:
    name, _, value = tag.partition("=")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process.pid)
    return found


async def sweep(tag: str, *, cgroup: str = "", timeout_s: float = 3.0) -> int:
    """SIGKILL everything that carries the tag, or is in the cgroup, until nothing does; return how many were killed.

    The guard has done this already; it is for the case that the guard itself was killed.
    """
    killed: set[int] = set()
    _clear_cgroup(cgroup)
    deadline = time.monotonic() + timeout_s
    while left := tagged(tag):
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(0.02)
    return len(killed)


def _clear_cgroup(name: str) -> None:
    with contextlib.suppress(OSError, StopIteration):
        folder = Path(guard.cgroup_path(name)) if name else None
        if folder is not None and folder.is_dir():
            (folder / "cgroup.kill").write_text("1", encoding="ascii")
            folder.rmdir()


def tree(root: int) -> list[int]:
    """Return a process and everything below it."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        children = _children(pid)
        if children is None:
            continue
        found.append(pid)
        todo += children
    return found


def _children(pid: int) -> list[int] | None:
    """Return the children of a process, None when it is gone."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - a hot loop
        return [
            int(child)
            for thread in threads
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split()
        ]
    except OSError:
        pass
    try:
        return [process.pid for process in psutil.Process(pid).children()]
    except psutil.Error:
        return None


def tree_usage(root: int) -> tuple[float, int]:
    """Return (resident MiB, number of processes) of a process and everything below it."""
    total, count = 0, 0
    for pid in tree(root):
        with contextlib.suppress(psutil.Error, OSError):
            total += psutil.Process(pid).memory_info().rss
            count += 1
    return total / MIB, count


def node_free_mb() -> float:
    """Return the memory that this node could still give, in MiB."""
    return float(psutil.virtual_memory().available) / MIB
