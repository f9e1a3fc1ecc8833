"""`fleet demo`: a fleet in rehearsal, a small repository, a backlog, and what came of it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fleet.cli import state
from fleet.cli.fleet_commands import Home, Port, now, show_where
from fleet.cli.output import line_of, money, out, state_text, tokens
from fleet.cli.tasks import FINAL, check_succeeded

if TYPE_CHECKING:
    from fleet.cli.api import Api
    from fleet.cluster.up import Started
    from fleet.config import FleetConfig

WAIT_S = 600.0
POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    exit: Annotated[bool, typer.Option("--exit", help="End when the tasks have ended.")] = False,
    home: Home = None,
    port: Port = None,
) -> None:
    """Show the whole path: three agents do a small backlog with the scripted model; no key, no account, no network."""
    from fleet.cluster.ports import port_free
    from fleet.cluster.up import up
    from fleet.rehearsal.demo import make_repository

    begun = time.monotonic()
    folder = home.expanduser().absolute() if home else Path(tempfile.mkdtemp(prefix="fleet-demo-")).resolve()
    settings = state.settings(home=folder, port=port, rehearsal=True)
    if port is None and not port_free(settings.host, settings.port):
        settings = settings.model_copy(update={"port": 0})
    settings = settings.model_copy(update={"roots": (*settings.roots, folder)})
    with out.status("checking") as shown:
        started = up(settings, attached=True, progress=lambda text: shown.update(text))
        try:
            shown.update("waiting for the first agent")
            repository = make_repository(new_folder(folder))
            with _connect(settings, started) as api:
                wait_for_agent(api)
        except BaseException:
            started.stop()
            raise
    try:
        out.print(Text(f"up after {time.monotonic() - begun:.0f} s", style="dim"))
        show_where(started.record, settings)
        out.print(Text("repository    ", style="bold") + Text(str(repository)), soft_wrap=True)
        with _connect(settings, started) as api:
            ended = work(api, repository)
            results(api, ended)
        show_where(started.record, settings)
        out.print(
            Text(f"query         fleet --home {folder} sql 'select id, role, state, cost_usd from task'"),
            soft_wrap=True,
        )
        check_succeeded(ended)
        if not exit:
            out.print("The fleet stays up. Ctrl-C ends it.")
            started.wait()
    except KeyboardInterrupt:
        if exit:
            raise
    finally:
        with out.status("ending the fleet"):
            started.stop()
        out.print(Text(f"The fleet has ended; its database and the repository stay in {folder}"), soft_wrap=True)


def new_folder(home: Path) -> Path:
    """Return a path for the repository that does not exist yet: a demo may be repeated in its home."""
    for number in range(1, 10_000):
        folder = home / ("repository" if number == 1 else f"repository-{number}")
        if not folder.exists():
            return folder
    raise AssertionError("10,000 demos in one home")


def _connect(settings: FleetConfig, started: Started) -> Api:
    from fleet.cli.api import Api

    return Api.connect(started.record.url, settings.home)


def wait_for_agent(api: Api, timeout_s: float = 120.0) -> None:
    """Wait until an agent can work."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(agent["state"] in ("idle", "busy") for agent in api.agents()):
            return
        time.sleep(0.2)


def work(api: Api, repository: Path) -> list[dict[str, Any]]:
    """Submit the backlog and show its progress until all of it has ended; return the tasks."""
    from fleet.rehearsal.demo import backlog

    named: dict[str, str] = {}
    for name, spec, after in backlog(repository):
        waiting = spec.model_copy(update={"depends_on": tuple(named[earlier] for earlier in after)})
        named[name] = api.submit([waiting.model_dump(mode="json")])[0]["id"]
    ids = list(named.values())
    deadline = time.monotonic() + WAIT_S
    if not out.is_terminal:
        return _work_quietly(api, ids, deadline)
    with Live(console=out, refresh_per_second=4, transient=True) as live:
        while True:
            found = [api.task(id) for id in ids]
            live.update(progress(found, api.agents()))
            if all(task["state"] in FINAL for task in found) or time.monotonic() > deadline:
                return found
            time.sleep(POLL_S)


def _work_quietly(api: Api, ids: list[str], deadline: float) -> list[dict[str, Any]]:
    """As `work`, for a pipe: a line for each change of state."""
    seen: dict[str, str] = {}
    while True:
        found = [api.task(id) for id in ids]
        for task in found:
            if seen.get(task["id"]) != task["state"]:
                seen[task["id"]] = task["state"]
                print(f"{task['id']} {task['role']} {task['state']} {money(task.get('cost_usd'))}", flush=True)
        if all(task["state"] in FINAL for task in found) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def progress(found: list[dict[str, Any]], agents: list[dict[str, Any]]) -> Panel:
    """Return the picture of the work as it is."""
    doing = {agent.get("task_id"): agent for agent in agents}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "role", "state", "now", "turns", "tokens", "cost"):
        table.add_column(column, justify="right" if column in ("turns", "tokens", "cost") else "left")
    cost = 0.0
    for task in found:
        agent = doing.get(task["id"])
        live = (agent or {}).get("activity") or {}
        current = task["state"] not in FINAL and live.get("task_id") == task["id"]
        figures = live if current else task
        cost += float(figures.get("cost_usd") or 0)
        table.add_row(
            Text(line_of(task.get("title") or task["prompt"], 40)),
            task["role"],
            state_text(task["state"]),
            Text(now(agent)[:44] if agent else task.get("why", "")[:44] if task["state"] not in FINAL else ""),
            str(figures.get("turns", 0)),
            tokens(figures.get("usage")),
            money(figures.get("cost_usd")),
        )
    done = sum(task["state"] in FINAL for task in found)
    return Panel(table, title="rehearsal", subtitle=f"{done} of {len(found)} done, {money(cost)}")


def results(api: Api, ended: list[dict[str, Any]]) -> None:
    """Print what came of the tasks: a table, and the answers below it."""
    table = Table(title="Results (rehearsal)", title_justify="left", header_style="bold")
    for column in ("agent", "state", "turns", "tokens", "cost", "task"):
        right = column in ("turns", "tokens", "cost")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for task in ended:
        table.add_row(
            task.get("agent_id") or task["role"],
            state_text(task["state"]),
            str(task.get("turns", 0)),
            tokens(task.get("usage")),
            money(task.get("cost_usd")),
            # The other columns take 66.
            Text(line_of(task.get("title") or task["prompt"], max(out.width - 68, 12))),
        )
    out.print(table)
    for task in ended:
        result = api.result(task["id"]) or {}
        answer = result.get("text") or task.get("detail") or ""
        out.print(Text(f"{task.get('agent_id') or task['role']}: ", style="bold") + Text(str(answer).strip()))
