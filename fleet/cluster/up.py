"""Starts a fleet: checks what can be checked at once, hands the credentials over, starts the keeper and follows it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from fleet.cluster import processes
from fleet.cluster.credentials import hand_over
from fleet.cluster.head import ClusterHead
from fleet.cluster.ports import free_ports, port_free
from fleet.cluster.ray_env import ensure_token, joined_environment, ray_environment
from fleet.cluster.record import RunRecord, find_keeper, read_record
from fleet.config import FleetConfig
from fleet.errors import Conflict, StartFailed, from_dict

STOP_TIMEOUT_S = 60.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Started:
    """A fleet that was started by this process.

    Attributes:
        record: where it is.
    """

    def __init__(self, record: RunRecord, keeper: subprocess.Popen[bytes]) -> None:
        self.record = record
        self._keeper = keeper

    @property
    def alive(self) -> bool:
        """Whether its keeper runs."""
        return self._keeper.poll() is None

    def wait(self) -> int:
        """Wait until the fleet ends; return its keeper's exit code."""
        return self._keeper.wait()

    def stop(self) -> None:
        """End the fleet and wait for it."""
        _stop(self._keeper)


def up(
    config: FleetConfig,
    *,
    attached: bool = False,
    address: str | None = None,
    cluster: ClusterHead | None = None,
    environ: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Started:
    """Start a fleet and return when it answers.

    Args:
        config: the settings.
        attached: the fleet ends with this process.
        address: a Ray cluster to join; None starts our own.
        cluster: other machines join our own Ray.
        environ: the environment; None takes the process's.
        progress: takes a word on each step.

    Raises:
        Conflict: a fleet runs in this home; field `url`.
        StartFailed: the home cannot be written, the port is taken, Ray or a part did not start.
        CredentialsMissing: nothing to authenticate to the model with.
        ClaudeNotFound: no Claude Code executable.
    """
    env = dict(os.environ if environ is None else environ)
    check_home(config.home)
    _check_not_running(config)
    config = _with_port(config)
    names = hand_over(config, env)
    _find_claude(config)
    ensure_token(config.token_path)
    instance = f"{config.home}#{secrets.token_hex(6)}"
    if address is None:
        # Every machine of a cluster holds the same token, where `file_mounts` of cluster.yaml puts it.
        ray_token = Path.home() / ".ray" / "auth_token" if cluster else config.home / "ray_token"
        ray_token.parent.mkdir(mode=0o700, exist_ok=True)
        ensure_token(ray_token)
        metrics = free_ports(2)
        child_env = ray_environment(
            env,
            instance=instance,
            ray_token_path=ray_token,
            loopback=cluster is None and config.host in LOOPBACK,
            credential_names=names,
            metric_ports=(metrics[0], metrics[1]),
        )
        if cluster is not None:
            child_env |= cluster.environment(config.home)
    else:
        child_env = joined_environment(env, instance=instance, credential_names=names)
    keeper = _start_keeper(config, child_env, address, attached, cluster)
    try:
        _follow(keeper, progress)
    except BaseException:
        _stop(keeper)
        raise
    record = read_record(config.record_path)
    if record is None:
        _stop(keeper)
        raise StartFailed(f"The fleet started, but wrote no {config.record_path}.")
    return Started(record, keeper)


def check_home(home: Path) -> None:
    """Make the home where it is missing; raise StartFailed when it cannot be written."""
    probe = home / f".probe-{os.getpid()}"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StartFailed(
            f"Expected a home that can be written, but {home}: {error.strerror or error}. "
            "Choose another with --home or FLEET_HOME.",
            home=str(home),
        ) from error


def _check_not_running(config: FleetConfig) -> None:
    keeper = find_keeper(config.home)
    if keeper is None:
        return
    record = read_record(config.record_path)
    where = f"at {record.url}" if record else "and still starting"
    raise Conflict(
        f"A fleet is running in {config.home} {where} (pid {keeper.pid}). `fleet down` ends it.",
        state="running",
        url=record.url if record else None,
        pid=keeper.pid,
    )


def _with_port(config: FleetConfig) -> FleetConfig:
    if config.port == 0:
        return config.model_copy(update={"port": free_ports(1, config.host)[0]})
    if not port_free(config.host, config.port):
        raise StartFailed(
            f"Expected port {config.port} of {config.host} to be free, but something listens there. "
            "Choose another with --port (0 takes a free one).",
            port=config.port,
        )
    return config


def _find_claude(config: FleetConfig) -> None:
    from fleet.claude.locate import find_claude

    find_claude(config)


def _start_keeper(
    config: FleetConfig,
    env: dict[str, str],
    address: str | None,
    attached: bool,
    cluster: ClusterHead | None,
) -> subprocess.Popen[bytes]:
    logs = config.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "keeper.log").open("ab") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "fleet.cluster.keeper"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # Ctrl-C in the terminal reaches the command, which tells the keeper.
            start_new_session=True,
        )
    orders = {
        "config": config.model_dump(mode="json"),
        "address": address,
        "attached": attached,
        "cluster": cluster.model_dump(mode="json") if cluster else None,
        "parent": os.getpid(),
    }
    assert keeper.stdin is not None
    keeper.stdin.write(json.dumps(orders).encode() + b"\n")
    keeper.stdin.close()
    keeper.stdin = None
    return keeper


def _follow(keeper: subprocess.Popen[bytes], progress: Callable[[str], None]) -> None:
    assert keeper.stdout is not None
    with keeper.stdout as lines:
        for raw in lines:
            line = json.loads(raw)
            if "progress" in line:
                progress(line["progress"])
            elif "error" in line:
                keeper.wait(STOP_TIMEOUT_S)
                raise from_dict(line["error"])
            elif "ready" in line:
                return
    raise StartFailed(f"The keeper ended with code {keeper.wait()} before the fleet was up; see its log.")


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    if keeper.poll() is None:
        keeper.send_signal(signal.SIGTERM)
        try:
            keeper.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            processes.kill(processes.descendants(keeper.pid))
            keeper.kill()
            keeper.wait()
