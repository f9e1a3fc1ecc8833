"""`join`, `leave`, `cluster check`, `cluster connect`: more machines than one."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from fleet.cli import state
from fleet.cli.output import Json, out, show_json
from fleet.errors import ConfigError, InvalidInput, StartFailed

TOKEN_FILE = Path("~/.ray/auth_token")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(join)
    app.command()(leave)
    cluster = typer.Typer(help="A fleet on many machines.", no_args_is_help=True)
    cluster.command("check")(check)
    cluster.command("connect")(connect)
    app.add_typer(cluster, name="cluster")


def join(
    address: Annotated[str, typer.Argument(help="HOST:PORT of the head's Ray, e.g. 10.0.0.1:6379.")],
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the node has joined.")] = False,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE that roles can ask for; repeatable.")] = None,
    cpus: Annotated[float | None, typer.Option(help="How many CPUs the node offers; all of them by default.")] = None,
) -> None:
    """Make this machine a node of a fleet; `fleet leave`, or the end of the fleet, ends it."""
    from fleet.cluster.join import join as start

    labels = {}
    for text in label or []:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise InvalidInput(f"Expected KEY=VALUE; got {text!r}.", field="label")
        labels[key] = value
    with out.status("joining") as shown:
        keeper = start(
            address, state.settings().home, labels=labels, cpus=cpus, progress=lambda text: shown.update(text)
        )
    out.print(f"This machine is a node of the fleet at {address} (pid {keeper.pid}).")
    if detach:
        return
    try:
        raise typer.Exit(keeper.wait())
    except KeyboardInterrupt:
        leave()


def leave() -> None:
    """End this machine's node and everything that runs on it."""
    from fleet.cluster.join import leave as end

    out.print("The node has left." if end(state.settings().home) else "This machine is no node of a fleet.")


def check(
    file: Annotated[Path, typer.Argument(help="The cluster file.")] = Path("cluster.yaml"),
    fix: Annotated[bool, typer.Option("--fix", help="Make the token where it is missing.")] = False,
    json: Json = False,
) -> None:
    """Say what is wrong with a cluster file, before any machine is touched."""
    from fleet.cluster.file_check import check_file
    from fleet.cluster.ray_env import ensure_token

    if fix:
        TOKEN_FILE.expanduser().parent.mkdir(mode=0o700, exist_ok=True)
        ensure_token(TOKEN_FILE.expanduser())
    try:
        findings = check_file(file)
    except OSError as error:
        raise ConfigError(f"{file}: expected a readable cluster file, but {error.strerror}.", file=str(file)) from error
    if json:
        show_json([{"level": found.level, "where": found.where, "message": found.message} for found in findings])
    else:
        for found in findings:
            style = "bold red" if found.level == "error" else "bold yellow"
            out.print(Text(f"{found.level:<8}", style=style) + Text(f"{found.where}: {found.message}"), soft_wrap=True)
        if not findings:
            out.print(f"{file} is fine: `ray up {file}` can launch it.")
    if any(found.level == "error" for found in findings):
        raise typer.Exit(2)


def connect(
    file: Annotated[Path, typer.Argument(help="The cluster file.")] = Path("cluster.yaml"),
    port: Annotated[int, typer.Option(help="The local port of the control room and API.")] = 8800,
    dashboard_port: Annotated[int, typer.Option(help="The local port of the Ray dashboard and job submission.")] = 8265,
    json: Json = False,
) -> None:
    """Open the cluster's control room, API and Ray dashboard on this computer, through ssh, until Ctrl-C."""
    head, login, tunnel = _tunnel(file, port, dashboard_port)
    try:
        _wait_for(port, tunnel)
        token = subprocess.run([*login, "cat ~/.fleet/token"], capture_output=True, text=True, timeout=60, check=False)
        if token.returncode != 0:
            raise StartFailed(f"Expected a fleet on {head}, but it has no ~/.fleet/token: run `ray up {file}` first.")
        secret = token.stdout.strip()
        url = f"http://127.0.0.1:{port}"
        rows = {
            "control room": f"{url}/login?token={secret}",
            "API docs": f"{url}/docs",
            "Ray dashboard": f"http://127.0.0.1:{dashboard_port}",
            "CLI, drivers": f"export FLEET_URL={url} FLEET_TOKEN={secret}",
            "Ray jobs": f"export RAY_AUTH_MODE=token; ray job submit --address http://127.0.0.1:{dashboard_port} -- …",
        }
        if json:
            show_json({"url": url, "token": secret, "dashboard_url": rows["Ray dashboard"]})
        else:
            for name, value in rows.items():
                out.print(Text(f"{name:<14}", style="bold") + Text(value), soft_wrap=True)
            out.print("Ctrl-C closes the connection; the fleet goes on.")
        tunnel.wait()
        raise StartFailed(f"The connection to {head} ended; run the command again.")
    except KeyboardInterrupt:
        out.print("Closed; the fleet goes on.")
    finally:
        tunnel.terminate()
        tunnel.wait(10)


def _tunnel(file: Path, port: int, dashboard_port: int) -> tuple[str, list[str], subprocess.Popen[bytes]]:
    import yaml

    try:
        config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        auth = config["auth"]
        head = config["provider"].get("head_ip") or _ask_ray(file)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: expected a cluster file; run `fleet cluster check {file}`. ({error})") from error
    options = ["-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=15", "-o", "BatchMode=yes"]
    if key := auth.get("ssh_private_key"):
        options += ["-i", str(Path(key).expanduser())]
    login = ["ssh", *options, f"{auth['ssh_user']}@{head}"]
    forwards = ["-L", f"127.0.0.1:{port}:127.0.0.1:8800", "-L", f"127.0.0.1:{dashboard_port}:127.0.0.1:8265"]
    keep = ["-N", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
    return head, login, subprocess.Popen(["ssh", *options, *keep, *forwards, login[-1]], stdin=subprocess.DEVNULL)


def _ask_ray(file: Path) -> str:
    done = subprocess.run(["ray", "get-head-ip", str(file)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise StartFailed(f"Ray does not know the head of {file}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip().splitlines()[-1]


def _wait_for(port: int, tunnel: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if tunnel.poll() is not None:
            raise StartFailed("ssh ended before the connection stood; its words are above.")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise StartFailed(f"The connection did not stand within {timeout_s:.0f} s.")
