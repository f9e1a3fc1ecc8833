"""Processes of a fleet on this machine: who is whose, and how they end.

Every process of a fleet carries `FLEET_INSTANCE=HOME#NONCE` in its environment, so that what a killed keeper left can
be told from everything else; the keeper is a subreaper, so that what runs away from its parent is still found.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

INSTANCE = "FLEET_INSTANCE"
"""The variable that marks a process of a fleet."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def become_subreaper() -> None:
    """Let descendants that lose their parent become children of this process (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when its parent ends (Linux). `parent` is the pid expected."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        # It ended before the kernel was told to watch it.
        os.kill(os.getpid(), number)


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Return all processes below this one."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def instance_of(process: psutil.Process) -> str | None:
    """Return the instance mark of a process, None when it has none or may not be read."""
    try:
        mark: str | None = process.environ().get(INSTANCE)
    except (psutil.Error, OSError):
        return None
    return mark


def tagged(home: Path | None = None) -> list[tuple[psutil.Process, str]]:
    """Return the processes of fleets with their instance; with `home` only those of that home. Never this one."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        mark = instance_of(process)
        if mark and (home is None or mark.rpartition("#")[0] == str(home)):
            found.append((process, mark))
    return found


def running(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_ended(process: psutil.Process, timeout_s: float) -> bool:
    """Wait until a process does not run any more; False when it still does after the timeout.

    Not psutil's wait: where nobody reaps (a container's first process), a process that ended stays as a zombie.
    """
    deadline = time.monotonic() + timeout_s
    while running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def kill(processes: Iterable[psutil.Process]) -> int:
    """SIGKILL processes; return how many there were."""
    count = 0
    for process in processes:
        try:
            if running(process):
                process.kill()
                count += 1
        except psutil.Error:
            continue
    return count


def kill_until_none(find: Callable[[], list[psutil.Process]], timeout_s: float = 15.0) -> int:
    """SIGKILL what `find` returns until it returns nothing that runs; return how many were killed."""
    deadline, count = time.monotonic() + timeout_s, 0
    while time.monotonic() < deadline:
        left = [process for process in find() if running(process)]
        if not left:
            break
        count += kill(left)
        psutil.wait_procs(left, timeout=0.5)
    return count
