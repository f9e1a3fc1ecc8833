"""Our own Ray head: `ray start --head --block` with ports of its own, so that several fleets live side by side."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fleet.cluster.ports import free_ports, port_free
from fleet.cluster.processes import end_with_parent

OBJECT_STORE_BYTES = 200_000_000
"""Messages are kilobytes; the default is 30 % of the memory."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a head is started with.

    Attributes:
        ip: where its services listen.
        port: of the GCS.
        dashboard_port: of the dashboard.
        others: the ports that nobody outside needs to know, in the order of `arguments`.
    """

    ip: str
    port: int
    dashboard_port: int
    others: tuple[int, ...]
    temp_dir: str

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
        ]


def plan_head(temp_dir: str, dashboard_port: int, ip: str = "127.0.0.1") -> Head:
    """Choose the ports of a head; the dashboard's is the one wanted if it is free, else another."""
    port, dashboard, *others = free_ports(11)
    if dashboard_port and port_free("127.0.0.1", dashboard_port):
        dashboard = dashboard_port
    return Head(ip=ip, port=port, dashboard_port=dashboard, others=tuple(others), temp_dir=temp_dir)


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
