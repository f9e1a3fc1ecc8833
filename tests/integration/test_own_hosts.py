"""Clusters of real hosts, each a network namespace with an address and an sshd of its own; needs root."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import lab

REASON = lab.missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"hosts cannot be made here: {REASON}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: Unix sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="flh-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def play(scenario: str, folder: Path, timeout_s: float) -> None:
    done = lab.enter(f"tests.hosts.{scenario}", folder, timeout_s)
    logs = [
        f"--- {path.relative_to(folder)}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
        for path in sorted(folder.glob("node*/.fleet/logs/*.log"))
    ]
    assert done.returncode == 0 and "SCENARIO OK" in done.stdout, f"{done.stdout[-6000:]}\n" + "\n".join(logs)


@pytest.mark.timeout(420)
def test_ray_up_brings_work_to_three_hosts_and_ray_down_leaves_nothing(folder: Path) -> None:
    play("ray_up", folder, 400)


@pytest.mark.timeout(420)
def test_sixty_tasks_survive_the_loss_of_a_node_a_cut_link_and_a_drain(folder: Path) -> None:
    play("node_loss", folder, 400)
