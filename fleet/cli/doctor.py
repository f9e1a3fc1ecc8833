"""`fleet doctor`: what is installed, what is missing, what runs, what was left behind."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from fleet.cli import state
from fleet.cli.output import Json, out, show_json
from fleet.errors import FleetError

if TYPE_CHECKING:
    from fleet.config import FleetConfig


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `bad` makes the exit code 1."""

    name: str
    state: Literal["good", "note", "bad"]
    said: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="End processes that a killed fleet left.")] = False,
    json: Json = False,
) -> None:
    """Look for what keeps a fleet from working; exit code 1 when something does."""
    settings = state.settings()
    checks = [
        *versions(),
        claude(settings),
        home(settings),
        credentials(settings),
        *running(settings),
        orphans(settings, fix),
    ]
    if json:
        show_json([asdict(check) for check in checks])
    else:
        marks = {"good": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}
        for check in checks:
            mark, style = marks[check.state]
            out.print(
                Text(f"{mark} ", style=style) + Text(f"{check.name:<13}", style="bold") + Text(check.said),
                soft_wrap=True,
            )
    if any(check.state == "bad" for check in checks):
        raise typer.Exit(1)


def versions() -> list[Check]:
    """Look at Python and the packages."""
    from fleet.cli.fleet_commands import installed

    found = installed()
    python = "good" if sys.version_info >= (3, 11) else "bad"
    checks = [Check("python", python, f"{found.pop('python')} on {platform.system()} {platform.machine()}")]  # type: ignore[arg-type]
    missing = [name for name, version in found.items() if version == "not installed"]
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    checks.append(Check("packages", "bad" if missing else "good", said))
    git = shutil.which("git")
    checks.append(Check("git", "good" if git else "note", git or "not found: worktree workspaces need it"))
    if platform.system() != "Linux":
        checks.append(Check("platform", "note", "measured on Linux; elsewhere leftovers of a kill may stay"))
    return checks


def claude(settings: FleetConfig) -> Check:
    """Look for Claude Code."""
    from fleet.claude.locate import find_claude

    try:
        path = find_claude(settings)
    except FleetError as error:
        return Check("claude code", "bad", error.message)
    return Check("claude code", "good", str(path))


def home(settings: FleetConfig) -> Check:
    """Look whether the home can be written."""
    from fleet.cluster.up import check_home

    try:
        check_home(settings.home)
    except FleetError as error:
        return Check("home", "bad", error.message)
    free = shutil.disk_usage(settings.home).free / 1e9
    return Check("home", "good" if free > 1 else "note", f"{settings.home}, {free:.1f} GB free")


def credentials(settings: FleetConfig) -> Check:
    """Look for credentials; names only, never values."""
    from fleet.cluster.credentials import found_names

    try:
        names = found_names(settings)
    except FleetError as error:
        # Rehearsal works without.
        return Check("credentials", "note", error.message)
    return Check("credentials", "good", ", ".join(names))


def running(settings: FleetConfig) -> list[Check]:
    """Look at the running fleet, or at what would stop one from starting."""
    from fleet.cluster.ports import port_free
    from fleet.cluster.record import find_keeper, read_record

    keeper = find_keeper(settings.home)
    record = read_record(settings.record_path)
    if keeper is None or record is None:
        if settings.port and not port_free(settings.host, settings.port):
            return [
                Check("fleet", "note", "not running"),
                Check("port", "bad", f"{settings.port} is taken; --port chooses another"),
            ]
        return [Check("fleet", "note", "not running")]
    checks = [Check("fleet", "good", f"{record.url}, pid {record.pid}" + (", rehearsal" if record.rehearsal else ""))]
    try:
        with state.connect() as api:
            health: dict[str, Any] = api.health()
            agents = api.agents()
    except FleetError as error:
        return [*checks, Check("health", "bad", error.message)]
    well = health.get("status") in (None, "ok") or health.get("ok") is True
    checks.append(Check("health", "good" if well else "bad", ", ".join(f"{k} {v}" for k, v in health.items())[:300]))
    failed = [agent["id"] for agent in agents if agent["state"] == "failed"]
    said = f"{len(agents)} alive" if not failed else f"failed: {', '.join(failed)}"
    checks.append(Check("agents", "bad" if failed else "good", said))
    return checks


def orphans(settings: FleetConfig, fix: bool) -> Check:
    """Look for processes of fleets that are gone."""
    from fleet.cluster import processes
    from fleet.cluster.down import orphans as find

    left = find()
    if not left:
        return Check("orphans", "good", "0")
    if fix:
        count = processes.kill_until_none(lambda: [process for process, _ in find()])
        return Check("orphans", "good", f"ended {count}")
    said = ", ".join(f"{process.pid} of {Path(home)}" for process, home in left[:5])
    return Check("orphans", "bad", f"{len(left)}: {said}. `fleet doctor --fix` ends them")
