"""`up`, `down`, `status`, `url`, `config check`, `version`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from rich.text import Text

from fleet.cli import state
from fleet.cli.output import Json, ago, err, money, out, show_json, state_text, table
from fleet.errors import Conflict, NotFound

if TYPE_CHECKING:
    from fleet.cluster.record import RunRecord
    from fleet.config import FleetConfig


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(url)
    app.command()(version)
    config = typer.Typer(help="Look at the settings.", no_args_is_help=True)
    config.command("check")(config_check)
    app.add_typer(config, name="config")


Home = Annotated[Path | None, typer.Option(help="The fleet's folder.")]
Config = Annotated[Path | None, typer.Option(help="The settings file.")]
Port = Annotated[int | None, typer.Option(help="The gateway's port; 0 takes a free one.")]


def login_url(url: str, config: FleetConfig) -> str:
    """Return the address that logs a browser in, as far as the token is here."""
    try:
        token = config.token_path.read_text(encoding="utf-8").strip()
    except OSError:
        return f"{url}/ui"
    return f"{url}/login?token={quote(token)}"


def show_where(record: RunRecord, config: FleetConfig) -> None:
    """Print the addresses of a fleet."""
    if record.rehearsal:
        out.print(Text("rehearsal: the model is the scripted one on this machine", style="bold yellow"))
    rows = [("control room", login_url(record.url, config)), ("API docs", f"{record.url}/docs")]
    if record.dashboard_url:
        rows.append(("Ray dashboard", f"{record.dashboard_url}  (its token: {config.home / 'ray_token'})"))
    rows.append(("home", str(config.home)))
    for name, value in rows:
        out.print(Text(f"{name:<14}", style="bold") + Text(value), soft_wrap=True)


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the fleet is up.")] = False,
    rehearsal: Annotated[bool, typer.Option(help="The model is the scripted one on this machine.")] = False,
    port: Port = None,
    home: Home = None,
    config: Config = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster to join in place of starting one.")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Let other machines join: `fleet join`.")] = False,
    node_ip: Annotated[str | None, typer.Option(help="This machine's address in the cluster; with --cluster.")] = None,
    ray_port: Annotated[int, typer.Option(help="Ray's port, and the one after it for us; with --cluster.")] = 6379,
    autoscaling_config: Annotated[
        Path | None, typer.Option(help="What `ray up` left for Ray's autoscaler; with --cluster.")
    ] = None,
    json: Json = False,
) -> None:
    """Start the fleet; Ctrl-C, or `fleet down`, ends it."""
    from fleet.cluster.head import ClusterHead, own_address
    from fleet.cluster.up import up as start

    settings = state.settings(home=home, config=config, port=port, rehearsal=True if rehearsal else None)
    head = None
    if cluster:
        ip = node_ip or own_address(autoscaling_config)
        head = ClusterHead(ip=ip, ray_port=ray_port, autoscaling_config=autoscaling_config)
    try:
        with out.status("checking") if not json else _Silent() as shown:
            started = start(
                settings,
                attached=not detach,
                address=address,
                cluster=head,
                progress=lambda text: shown.update(text),
            )
    except Conflict as running:
        if not running.fields.get("url"):
            raise
        if json:
            show_json({"url": running.fields["url"], "pid": running.fields["pid"], "started": False})
        else:
            out.print(Text(running.message))
        return
    if json:
        show_json({**started.record.model_dump(mode="json"), "started": True})
    else:
        show_where(started.record, settings)
    if detach:
        return
    out.print("Ctrl-C ends the fleet.")
    try:
        raise typer.Exit(started.wait())
    except KeyboardInterrupt:
        with out.status("ending the fleet"):
            started.stop()
        out.print("The fleet has ended.")


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, text: str) -> None:
        """Say nothing."""


def down(home: Home = None, json: Json = False) -> None:
    """End the fleet and everything it started."""
    from fleet.cluster.down import down as end

    settings = settings_to_end(home)
    ended = end(settings)
    if json:
        show_json({"ran": ended.ran, "killed": ended.killed})
    elif ended.ran:
        out.print("The fleet has ended.")
    elif ended.killed:
        out.print(f"No fleet was running in {settings.home}; {ended.killed} leftover processes were ended.")
    else:
        out.print(f"No fleet is running in {settings.home}.")


def settings_to_end(home: Path | None) -> FleetConfig:
    """Return the settings; a file that became wrong meanwhile must not keep a fleet from ending."""
    from fleet.config import load_config
    from fleet.errors import ConfigError

    try:
        return state.settings(home=home)
    except ConfigError as error:
        err.print(Text(f"{error.message}\nThe home is taken from --home, FLEET_HOME or the default."))
        return load_config(os.devnull, home=home or state.given.home)


def status(json: Json = False) -> None:
    """Show the fleet at a glance."""
    with state.connect() as api:
        overview = api.status()
        agents = api.agents()
    if json:
        show_json({**overview, "agents": agents})
        return
    if overview.get("rehearsal"):
        out.print(Text("rehearsal: the model is the scripted one", style="bold yellow"))
    figures = overview.get("counts") or {}
    counts = figures.get("states") or {}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    out.print(Text("tasks  ", style="bold") + Text(", ".join(parts) or "none yet"))
    if figures.get("cost_today") is not None:
        out.print(
            Text("today  ", style="bold") + Text(f"{figures.get('done_today', 0)} done, {money(figures['cost_today'])}")
        )
    for role, why in (overview.get("why") or {}).items():
        if why:
            out.print(Text(f"{role}: {why}", style="yellow"))
    for role, why in (overview.get("scaler") or {}).items():
        out.print(f"{role} {why}")
    table(
        ("agent", "state", "task", "now", "since"),
        [
            (agent["id"], state_text(agent["state"]), agent.get("task_id") or "", now(agent), ago(agent["updated_at"]))
            for agent in agents
        ],
    )


def now(agent: dict[str, object]) -> str:
    """Return what an agent does right now."""
    activity = agent.get("activity")
    if isinstance(activity, dict) and (said := activity.get("tool") or activity.get("text")):
        return str(said)[:80]
    return str(agent.get("task_title") or agent.get("why") or "")[:80]


def url(json: Json = False) -> None:
    """Print the address that logs a browser in."""
    from fleet.cluster.record import read_record

    settings = state.settings()
    record = read_record(settings.record_path)
    if record is None:
        raise NotFound(
            f"No fleet is running in {settings.home}. Start one: fleet up.", what="fleet", id=str(settings.home)
        )
    address = login_url(record.url, settings)
    if json:
        show_json({"url": record.url, "login_url": address, "dashboard_url": record.dashboard_url})
    else:
        print(address)


def version(json: Json = False) -> None:
    """Print the versions of the parts."""
    versions = installed()
    if json:
        show_json(versions)
    else:
        for name, value in versions.items():
            print(f"{name} {value}")


def installed() -> dict[str, str]:
    """Return the versions of fleet and what it stands on."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("fleet", "ray", "claude-agent-sdk", "duckdb", "gradio"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"fleet": found.pop("fleet"), **found}


def config_check(
    path: Annotated[Path | None, typer.Argument(help="The file; else as for the other commands.")] = None,
    json: Json = False,
) -> None:
    """Check the settings and show them."""
    settings = state.settings(config=path)
    if json:
        show_json(settings.model_dump(mode="json"))
        return
    for name, value in settings.model_dump(mode="json", exclude={"roles"}).items():
        print(f"{name} = {value}")
    table(
        ("role", "agents", "model", "turns", "tools", "workspace"),
        [
            (role.name, role.agents, role.model or "", role.max_turns, ", ".join(role.tools), role.workspace)
            for role in settings.roles.values()
        ],
    )
    print("The settings are good.")
