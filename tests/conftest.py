"""For all tests: nothing of the surroundings gets in, and no process of a fleet is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything of Ray is imported: it reads these once.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

NOT_OURS = ("FLEET_", "ANTHROPIC_", "CLAUDE_", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take settings and credentials of whoever runs the tests out of the environment."""
    for name in list(os.environ):
        if name.startswith(NOT_OURS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the session when processes of a fleet that this session started outlive it."""
    from fleet.cluster import processes

    before = {process.pid for process, _ in processes.tagged()}
    yield
    # Fleets of other sessions on this machine have homes of other temporary folders.
    mine = str(os.getpid())
    left = [
        (process, mark)
        for process, mark in processes.tagged()
        if process.pid not in before and f"/fl{mine}-" in mark and processes.running(process)
    ]
    described = [f"{process.pid} {mark} {' '.join(process.cmdline())[:120]}" for process, mark in left]
    processes.kill(process for process, _ in left)
    assert not described, "left behind:\n" + "\n".join(described)
