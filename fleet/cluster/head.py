"""Our own Ray head: `ray start --head --block` with ports of its own, so that several fleets live side by side."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from fleet.cluster.ports import free_ports, port_free
from fleet.cluster.processes import end_with_parent
from fleet.contracts import HOST_LABEL
from fleet.errors import StartFailed
from fleet.models import Model

OBJECT_STORE_BYTES = 200_000_000
"""Messages are kilobytes; the default is 30 % of the memory."""

HEAD_AWAY_S = 300
"""How long workers hold on while the head is away."""
AWAY = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_AWAY_S)}
"""Variables of every node of a cluster: Ray's own patience is 60 s, too short for a machine that boots."""


def gcs_folder(home: Path) -> Path:
    """Return where a cluster's GCS keeps its state."""
    return home / "gcs"


@dataclass(frozen=True, slots=True)
class Head:
    """What a head is started with.

    Attributes:
        ip: where its services listen.
        port: of the GCS.
        dashboard_port: of the dashboard.
        others: the ports that nobody outside needs to know, in the order of `arguments`.
        extra: more arguments of `ray start`.
    """

    ip: str
    port: int
    dashboard_port: int
    others: tuple[int, ...]
    temp_dir: str
    extra: tuple[str, ...] = field(default=())

    @property
    def address(self) -> str:
        """The address that drivers and nodes join."""
        return f"{self.ip}:{self.port}"

    def arguments(self) -> list[str]:
        """Return the arguments of `ray start`."""
        manager, objects, agent, agent_grpc, runtime_env, metrics, client = self.others[:7]
        return [
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={self.ip}",
            f"--port={self.port}",
            f"--node-manager-port={manager}",
            f"--object-manager-port={objects}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime_env}",
            f"--metrics-export-port={metrics}",
            f"--ray-client-server-port={client}",
            # 0: each worker takes any free port; fixed ranges of two clusters would meet.
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.temp_dir}",
            *self.extra,
        ]


class ClusterHead(Model):
    """What makes a head one that other machines join.

    Attributes:
        ip: this machine's address in the cluster's network.
        ray_port: of the GCS; the port after it is the beacon's.
        autoscaling_config: what `ray up` left for Ray's autoscaler; None starts no nodes.
        labels: of the head's node.
    """

    ip: str
    ray_port: int = 6379
    autoscaling_config: Path | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    def arguments(self) -> tuple[str, ...]:
        """Return the arguments of `ray start` beside the usual ones."""
        found = [labels_argument(self.labels)]
        if self.autoscaling_config is not None:
            found.append(f"--autoscaling-config={self.autoscaling_config.expanduser()}")
        return tuple(found)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables of a cluster's head.

        The GCS keeps its state on disk, so that the workers' actors outlive a head that is killed and started again.
        Autoscaler v2 starts one worker too few with provider `local` (measured on Ray 2.60), so it is v1 there; on
        clouds it is v2, which knows the labels that roles ask for.
        """
        local = _provider(self.autoscaling_config).get("type", "local") == "local"
        return {
            # A dead raylet refuses its connection, which is seen after 5 s. One that was cut off has 55 s to be heard;
            # what it ran has moved by then. After a cut of 30 s that was a little too short, and the node joined anew
            # (measured: the kernel tries again 51 s after the cut began).
            "RAY_health_check_failure_threshold": "10",
            # A worker's own keeper starts its raylet again; the autoscaler only steps in when that has not helped.
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "120",
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(gcs_folder(home)),
            "RAY_enable_autoscaler_v2": "0" if local else "1",
            **AWAY,
        }


def labels_argument(labels: Mapping[str, str]) -> str:
    """Return the argument of `ray start` that labels this node: its host's name, and what is given."""
    return "--labels=" + ",".join(
        f"{key}={value}" for key, value in {HOST_LABEL: socket.gethostname(), **labels}.items()
    )


def own_address(autoscaling_config: Path | None = None) -> str:
    """Return this machine's address in its network: the one in Ray's bootstrap file, else the one of the default route.

    Raises:
        StartFailed: there is none but loopback.
    """
    if head_ip := _provider(autoscaling_config).get("head_ip"):
        return str(head_ip)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only asks the kernel for the route.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError as error:
            raise StartFailed("This machine has no address in a network: give it with --node-ip.") from error


def _provider(autoscaling_config: Path | None) -> dict[str, Any]:
    """Return the block `provider` of Ray's bootstrap file, empty without one. Raises StartFailed."""
    if autoscaling_config is None:
        return {}
    import yaml

    try:
        return dict(yaml.safe_load(autoscaling_config.expanduser().read_text(encoding="utf-8"))["provider"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise StartFailed(f"Expected what `ray up` left at {autoscaling_config}, but: {error}.") from error


def plan_head(temp_dir: str, dashboard_port: int, cluster: ClusterHead | None = None) -> Head:
    """Choose the ports of a head; the dashboard's is the one wanted if it is free, else another."""
    port, dashboard, *others = free_ports(11)
    if dashboard_port and port_free("127.0.0.1", dashboard_port):
        dashboard = dashboard_port
    ip = "127.0.0.1"
    extra: tuple[str, ...] = ()
    if cluster is not None:
        ip, port, extra = cluster.ip, cluster.ray_port, cluster.arguments()
    return Head(ip=ip, port=port, dashboard_port=dashboard, others=tuple(others), temp_dir=temp_dir, extra=extra)


def start_head(head: Head, env: dict[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start the head as a child that ends with this process."""
    keeper = os.getpid()
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *head.arguments()],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            preexec_fn=lambda: end_with_parent(keeper),
        )


def fresh_temp_dir(path: Path) -> None:
    """Make Ray's folder anew, mode 0700; refuse one that belongs to somebody else."""
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.getuid()):
        raise PermissionError(f"{path} belongs to somebody else")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, exist_ok=True)
