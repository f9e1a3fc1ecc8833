"""`top` and `attach`: the control room for those who live in a terminal."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fleet.cli import state
from fleet.cli.fleet_commands import now
from fleet.cli.output import Json, ago, err, money, out, show_json, state_text, tokens
from fleet.errors import FleetError

if TYPE_CHECKING:
    from fleet.cli.api import Api

TROUBLE = {"failed": 0, "starting": 1, "draining": 2, "busy": 3, "idle": 4, "stopped": 5}
"""What is wrong stands first."""
HELP = "Type a line to say it to the agent. /interrupt ends its turn, /quit (or Ctrl-C) leaves; the agent goes on."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(top)
    app.command()(attach)


def top(
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    json: Json = False,
) -> None:
    """Watch the fleet: figures, and each agent with what it does; Ctrl-C ends it."""
    with state.connect() as api:
        if json:
            show_json({"status": api.status(), "agents": _sorted(api.agents())})
            return
        if once or not out.is_terminal:
            out.print(picture(api.status(), api.agents()))
            return
        with Live(picture(api.status(), api.agents()), console=out, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                try:
                    live.update(picture(api.status(), api.agents()), refresh=True)
                except FleetError as error:
                    # The next look may find it again.
                    live.update(Text(error.message, style="red"), refresh=True)


def picture(status: dict[str, Any], agents: list[dict[str, Any]]) -> Group:
    """Return the screen."""
    counts = (status.get("counts") or {}).get("states") or {}
    figures = status.get("counts") or {}
    head = Text()
    if status.get("rehearsal"):
        head.append("rehearsal ", style="bold yellow")
    if status.get("paused"):
        head.append("paused ", style="bold yellow")
    busy = sum(agent["state"] == "busy" for agent in agents)
    for name, value in (
        ("busy", f"{busy}/{len(agents)}"),
        ("queued", counts.get("queued", 0)),
        ("waiting", counts.get("blocked", 0) + counts.get("scheduled", 0)),
        ("done today", figures.get("done_today", 0)),
        ("failed today", figures.get("failed_today", 0)),
        ("cost today", money(figures.get("cost_today"))),
    ):
        head.append(f"{name} ", style="dim")
        head.append(f"{value}   ", style="bold")
    parts: list[Any] = [head]
    parts += [Text(f"{role}: {why}", style="yellow") for role, why in (status.get("why") or {}).items() if why]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for column in ("agent", "state", "task", "turns", "tokens", "cost", "MiB", "said", "now"):
        right = column in ("turns", "tokens", "cost", "MiB")
        table.add_column(
            column, justify="right" if right else "left", no_wrap=True, ratio=1 if column == "now" else None
        )
    for agent in _sorted(agents):
        live = agent.get("activity") or {}
        table.add_row(
            agent["id"],
            state_text(agent["state"]),
            agent.get("task_id") or "",
            str(live.get("turns") or ""),
            tokens(live.get("usage") or {}),
            money(live.get("cost_usd") or agent.get("cost_usd")),
            f"{live.get('rss_mb') or 0:.0f}",
            ago(live["last_event_at"]) if live.get("last_event_at") else "",
            Text(now(agent)),
        )
    if not agents:
        parts.append(Text("No agents yet: fleet spawn ROLE", style="dim"))
    return Group(*parts, table)


def _sorted(agents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(agents, key=lambda agent: (TROUBLE.get(agent["state"], 9), agent["id"]))


def attach(agent: Annotated[str, typer.Argument(help="The agent.")]) -> None:
    """Watch an agent and talk to it."""
    with state.connect() as api:
        api.agent(agent)
        err.print(Text(HELP, style="dim"))
        threading.Thread(target=_show, args=(agent,), name="attach", daemon=True).start()
        for line in sys.stdin:
            text = line.strip()
            if text == "/quit":
                return
            if text:
                _say(api, agent, text)
        if not sys.stdin.isatty():
            # `echo … | fleet attach AGENT`: what was said is on its way; the answer is in `fleet logs`.
            return


def _show(agent: str) -> None:
    from fleet.cli.follow import show_event

    try:
        with state.connect() as api:
            for event in api.agent_events(agent, follow=True):
                show_event(event)
    except FleetError as error:
        err.print(Text(error.message, style="red"))


def _say(api: Api, agent: str, text: str) -> None:
    try:
        if text == "/interrupt":
            done = api.interrupt(agent)
            err.print(Text("interrupted" if done else "it runs nothing now", style="dim"))
            return
        reply = api.send(agent, text)
    except FleetError as error:
        err.print(Text(error.message, style="red"))
        return
    if not reply.get("delivered"):
        err.print(Text(f"it was idle: this is task {reply.get('task_id')} now", style="dim"))
