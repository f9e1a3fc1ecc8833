"""`run.json`, the record of the running fleet of a home, and `keeper.lock`, which only one keeper can hold."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, TextIO

import psutil

from fleet.cluster import processes
from fleet.models import Instant, Model

LOCK_NAME = "keeper.lock"
KEEPER_MODULE = "fleet.cluster.keeper"


class RunRecord(Model):
    """Where the running fleet is.

    Attributes:
        url: of the gateway.
        ray_address: of Ray's GCS.
        dashboard_url: of the Ray dashboard; "" when it is not ours.
        pid: the keeper's.
        ours: whether the keeper started Ray itself (else it joined a cluster).
    """

    url: str
    ray_address: str
    dashboard_url: str = ""
    pid: int
    home: Path
    instance: str
    started_at: Instant
    rehearsal: bool = False
    ours: bool = True
    temp_dir: str = ""


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def write_record(path: Path, record: RunRecord) -> None:
    """Write the record atomically."""
    write_private(path, record.model_dump_json(indent=2) + "\n")


def read_record(path: Path) -> RunRecord | None:
    """Return the record, None when there is none or it is not one."""
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def take_lock(home: Path, instance: str) -> TextIO | None:
    """Take the home's lock for this process's life; None when another keeper has it."""
    file = (home / LOCK_NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(json.dumps({"pid": os.getpid(), "instance": instance}))
    file.flush()
    return file


def find_keeper(home: Path) -> psutil.Process | None:
    """Return the living keeper of a home, starting or started; None when there is none.

    The pid of the lock file counts only if that process is a keeper and carries this home's mark: a pid is used again.
    """
    try:
        held: Any = json.loads((home / LOCK_NAME).read_text(encoding="utf-8"))
        process = psutil.Process(int(held["pid"]))
        if not processes.running(process) or KEEPER_MODULE not in process.cmdline():
            return None
        mark = processes.instance_of(process)
        return process if mark == held["instance"] and str(mark).rpartition("#")[0] == str(home) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
