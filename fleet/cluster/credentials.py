"""Hands the credentials over to the agents: by a file of mode 0600, never by environment or argument."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fleet.cluster.record import write_private
from fleet.config import FleetConfig

FILE_NAME = "credentials.json"


def hand_over(config: FleetConfig, env: Mapping[str, str]) -> list[str]:
    """Write the credentials of the environment where only agents read them; return the names of all such variables.

    In rehearsal nothing is handed over, and an old file is removed.

    Raises:
        CredentialsMissing: there are none.
    """
    from fleet.claude import credentials

    path = config.home / FILE_NAME
    if config.rehearsal:
        path.unlink(missing_ok=True)
    else:
        found = credentials.find_credentials(env, _user_home(env))
        write_private(path, json.dumps(dict(found.environ)) + "\n")
    return sorted(credentials.NAMES)


def found_names(config: FleetConfig) -> list[str]:
    """Return the kind of the credentials and the names of their variables, or the folder of a login; never a value.

    Raises:
        CredentialsMissing: there are none.
    """
    from fleet.claude import credentials

    found = credentials.find_credentials(os.environ, _user_home(os.environ))
    where = [str(found.config_dir)] if found.config_dir else []
    return [found.kind, *sorted(found.environ), *where]


def _user_home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or "~").expanduser()
