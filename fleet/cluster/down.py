"""Ends the fleet of a home: all that it started, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from fleet.cluster import processes
from fleet.cluster.record import find_keeper, read_record
from fleet.config import FleetConfig

KEEPER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What `down` found.

    Attributes:
        ran: whether a fleet was running.
        killed: how many processes had to be killed.
    """

    ran: bool
    killed: int


def down(config: FleetConfig) -> Ended:
    """End the fleet of `config.home` and wait for it; with none there, end what one left behind."""
    keeper = find_keeper(config.home)
    record = read_record(config.record_path)
    if keeper is not None:
        keeper.terminate()
        if not processes.wait_ended(keeper, KEEPER_TIMEOUT_S):
            processes.kill([keeper])
    killed = processes.kill_until_none(lambda: [process for process, _ in processes.tagged(config.home)])
    config.record_path.unlink(missing_ok=True)
    if record is not None and record.temp_dir.startswith("/tmp/fleet-"):
        shutil.rmtree(Path(record.temp_dir), ignore_errors=True)
    return Ended(ran=keeper is not None, killed=killed)


def orphans(home: Path | None = None) -> list[tuple[psutil.Process, str]]:
    """Return processes of fleets whose keeper is gone: (process, home)."""
    living: dict[str, bool] = {}
    found = []
    for process, mark in processes.tagged(home):
        its_home = mark.rpartition("#")[0]
        if mark not in living:
            keeper = find_keeper(Path(its_home))
            living[mark] = keeper is not None and processes.instance_of(keeper) == mark
        if not living[mark]:
            found.append((process, its_home))
    return found
