"""Puts a backup in the place of the database of a fleet that is down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet.cluster.record import find_keeper
from fleet.config import FleetConfig
from fleet.errors import Conflict


def restore(config: FleetConfig, folder: Path, *, force: bool = False) -> dict[str, Any]:
    """Put the database of a backup in place and say what was done.

    Args:
        config: whose home.
        folder: what `fleet backup` made.
        force: put a database that is there aside.

    Raises:
        NotFound: the folder holds no finished backup.
        Conflict: the fleet runs, or there is a database and no `force`.
    """
    from fleet.store import backup

    if find_keeper(config.home) is not None:
        raise Conflict(f"A fleet is running in {config.home}. End it first: fleet down.", state="running")
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return backup.restore(folder, config.store_path, replace=force)
