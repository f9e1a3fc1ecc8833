"""Settings: one frozen object, built-in < `fleet.toml` < `FLEET_*` < arguments; read once at start and passed down.

Pure but for reading the file. Unknown keys and bad values raise `ConfigError` with file, line, key and what was
expected.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fleet.errors import ConfigError
from fleet.models import Model, Role, Workspace

BUILTIN_ROLES: dict[str, dict[str, Any]] = {
    "code_reviewer": {
        "prompt": "You are a senior code reviewer focused on code quality, security, and best practices.",
        "tools": ["Read", "Bash(git *)"],
        "max_turns": 10,
    },
    "api_developer": {
        "prompt": "You are an experienced API developer specializing in RESTful services and microservices "
        "architecture.",
        "tools": ["Read", "Write", "Edit", "Bash"],
        "max_turns": 15,
    },
    "qa_tester": {
        "prompt": "You are a QA engineer focused on test automation, edge cases, and ensuring code reliability.",
        "tools": [
            "Read",
            "Write",
            "Bash(pytest *)",
            "Bash(python -m pytest *)",
            "Bash(python -m unittest *)",
            "Bash(python3 -m unittest *)",
        ],
        "max_turns": 15,
    },
}

FILE_NAME = "fleet.toml"


class FleetConfig(Model):
    """Every setting of a fleet. The same names are keys of `fleet.toml` and, in capitals after `FLEET_`, variables.

    Attributes:
        home: folder of the database, the token, the logs and the record of the running fleet.
        host: the address the gateway listens on.
        port: its port; 0 takes a free one.
        dashboard_port: the Ray dashboard's; 0 takes a free one.
        roots: folders under which working directories must lie.
        rehearsal: the model is the scripted one on loopback.
        claude_path: the Claude Code executable; None takes the one of claude-agent-sdk.
        queue_limit: how many tasks may wait; more are answered with 429.
        lease_s: how long an agent goes on without reaching the store before it ends its run.
        node_floor_mb: free memory below which a node takes no agent.
        event_retention_days: how long events are kept; None keeps them for ever.
        export_url: where `fleet export` writes on its schedule; None is never.
        cgroups: put each agent's processes into a cgroup of their own where that is writable.
        rehearsal_faults: the rehearsal model's faults, for tests.
        allowed_hosts: names beside loopback that the gateway answers to.
    """

    home: Path = Path("~/.fleet")
    host: str = "127.0.0.1"
    port: int = Field(8800, ge=0, le=65535)
    dashboard_port: int = Field(8265, ge=0, le=65535)
    roots: tuple[Path, ...] = ()
    rehearsal: bool = False
    claude_path: Path | None = None
    queue_limit: int = Field(1_000_000, ge=1)
    lease_s: float = Field(15.0, gt=0)
    node_floor_mb: int = Field(1024, ge=0)
    event_retention_days: float | None = Field(None, gt=0)
    export_url: str | None = None
    export_every_s: float = Field(3600.0, gt=0)
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    cgroups: bool = True
    rehearsal_faults: str = ""
    allowed_hosts: tuple[str, ...] = ()
    roles: dict[str, Role] = Field(default_factory=dict)

    @property
    def store_path(self) -> Path:
        """The DuckDB file."""
        return self.home / "fleet.duckdb"

    @property
    def token_path(self) -> Path:
        """The file of the access token, mode 0600."""
        return self.home / "token"

    @property
    def record_path(self) -> Path:
        """The file that says where the running fleet is (`url`, `ray_address`, `pid`, …)."""
        return self.home / "run.json"

    @property
    def work_path(self) -> Path:
        """The folder of scratch workspaces, worktrees, clones and Claude's own folders."""
        return self.home / "work"


def load_config(
    path: str | Path | None = None, *, environ: Mapping[str, str] | None = None, **arguments: Any
) -> FleetConfig:
    """Return the settings.

    Args:
        path: the TOML file; None takes `FLEET_CONFIG`, else `./fleet.toml` where it exists.
        environ: variables; None takes the process's.
        **arguments: settings that win over all; None values are ignored.

    Raises:
        ConfigError: a file that is missing, not TOML, or holds a key or value that is not known.
    """
    env = os.environ if environ is None else environ
    file, text = _read(path, env)
    data: dict[str, Any] = {}
    if file is not None:
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = int(found[1]) if (found := re.search(r"line (\d+)", str(error))) else None
            raise ConfigError(
                f"{file}:{line or '?'}: expected TOML, but {error}. Mend the line, then run `fleet config check`.",
                file=str(file),
                line=line,
                key=None,
            ) from None
    merged: dict[str, Any] = {key: value for key, value in data.items() if key != "roles"}
    merged |= _from_environ(env)
    merged |= {key: value for key, value in arguments.items() if value is not None}
    merged["roles"] = _roles(data.get("roles", {}), file, text)
    try:
        config = FleetConfig.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, file, text, ()) from None
    home = Path(config.home).expanduser().absolute()
    roots = tuple(Path(root).expanduser().absolute() for root in config.roots) or (Path.cwd(), home)
    return config.model_copy(update={"home": home, "roots": roots})


def _read(path: str | Path | None, env: Mapping[str, str]) -> tuple[Path | None, str]:
    wanted = path or env.get("FLEET_CONFIG")
    file = Path(wanted).expanduser() if wanted else Path(FILE_NAME)
    try:
        return file, file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if wanted is None:
            return None, ""
        raise ConfigError(
            f"{file}: expected a settings file, but there is none. Give the path of a fleet.toml.",
            file=str(file),
            line=None,
            key=None,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: expected a readable UTF-8 file, but {error}.", file=str(file), line=None, key=None
        ) from error


def _from_environ(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in FleetConfig.model_fields.items():
        value = env.get(f"FLEET_{name.upper()}")
        if value is None or name == "roles":
            continue
        several = "tuple" in str(field.annotation)
        found[name] = [part for part in value.split(os.pathsep) if part] if several else value
    return found


def _roles(given: Any, file: Path | None, text: str) -> dict[str, Role]:
    if not isinstance(given, dict):
        raise _config_error(file, text, ("roles",), "expected a table [roles.NAME]", given)
    roles: dict[str, Role] = {}
    for name in [*BUILTIN_ROLES, *(name for name in given if name not in BUILTIN_ROLES)]:
        own = given.get(name, {})
        if not isinstance(own, dict):
            raise _config_error(file, text, ("roles", name), "expected a table of the role's keys", own)
        values = {**BUILTIN_ROLES.get(name, {}), **own, "name": name}
        if isinstance(values.get("workspace"), str):
            values["workspace"] = Workspace.parse(values["workspace"])
        try:
            role = Role.model_validate(values)
        except ValidationError as error:
            raise _explain(error, file, text, ("roles", name)) from None
        if role.min_agents is not None and role.max_agents is not None and role.min_agents > role.max_agents:
            raise _config_error(
                file,
                text,
                ("roles", name, "min_agents"),
                f"expected at most max_agents = {role.max_agents}",
                role.min_agents,
            )
        roles[name] = role
    return roles


def _explain(error: ValidationError, file: Path | None, text: str, prefix: tuple[str, ...]) -> ConfigError:
    first = error.errors()[0]
    where = (*prefix, *(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        model: type[Model] = Role if where[:1] == ("roles",) and len(where) == 3 else FleetConfig
        expected = "expected one of: " + ", ".join(sorted(model.model_fields))
        return _config_error(file, text, where, f"unknown key; {expected}", first["input"])
    return _config_error(file, text, where, first["msg"][0].lower() + first["msg"][1:], first["input"])


def _config_error(file: Path | None, text: str, where: tuple[str, ...], expected: str, got: Any) -> ConfigError:
    line = _line_of(text, where)
    place = f"{file}:{line}" if file is not None and line else "settings"
    return ConfigError(
        f"{place}: {'.'.join(where)}: {expected}; got {got!r}. Change it, then run `fleet config check`.",
        file=str(file) if file is not None and line else None,
        line=line,
        key=".".join(where),
    )


def _line_of(text: str, where: tuple[str, ...]) -> int | None:
    """Return the line of the key, going by table headers; the header's line where the key is not found."""
    table: tuple[str, ...] = ()
    header: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if found := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line):
            table = tuple(part.strip().strip("\"'") for part in found[1].split("."))
            if table == where[: len(table)]:
                header = number
            continue
        if found := re.match(r"\s*([A-Za-z0-9_\"'.-]+)\s*=", line):
            full = (*table, *(part.strip("\"'") for part in found[1].split(".")))
            if full == where[: len(full)]:
                return number
    return header
