"""A second Ray node of a fleet, on the same machine: what `fleet join` would start on another one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

from fleet.cluster import processes
from tests.integration.support import Home

CPUS = 2
RAY_START = """
from ray.scripts import scripts
real = scripts.ray_constants
# `ray start` refuses a second node of a Ray that keeps to loopback as on a desktop; with the variable that allows it,
# Ray would leave loopback. So only this one check sees it allowed.
scripts.ray_constants = type("", (), {
    "ENABLE_RAY_CLUSTER": True, "__getattr__": lambda self, name: getattr(real, name)
})()
scripts.main()
"""


class SecondNode:
    """Starts a worker raylet beside the head's, and again when it or the head died."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None
        self.started_for = 0.0

    def keep(self) -> None:
        """Start it where it is not running, or belongs to an earlier head."""
        try:
            record = self.home.record()
        except (OSError, ValueError):
            return
        here = self.process is not None and self.process.poll() is None
        if here and record["started_at"] == self.started_for:
            return
        self.stop()
        environ = self._environ()
        if environ is None:
            return
        command = [sys.executable, "-c", RAY_START, "start", f"--address={record['ray_address']}"]
        command += ["--node-ip-address=127.0.0.1", "--block", "--disable-usage-stats", f"--num-cpus={CPUS}"]
        command += ["--object-store-memory=80000000", "--labels=fleet/host=second"]
        with (self.home.home / "logs" / "second-node.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.started_for = record["started_at"]

    def _environ(self) -> dict[str, str] | None:
        """Return the environment of the head's raylet: Ray's settings, its token, the fleet's mark."""
        for process, instance in processes.tagged():
            if instance.rpartition("#")[0] != str(self.home.home):
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if Path(process.exe()).name == "raylet":
                    return dict(process.environ())
        return None

    def kill(self) -> bool:
        """SIGKILL its raylet; False when there is none."""
        if self.process is None:
            return False
        for child in processes.descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                if child.name() == "raylet":
                    child.kill()
                    return True
        return False

    def stop(self) -> None:
        """End it and everything below it."""
        if self.process is None:
            return
        below = processes.descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        processes.kill_until_none(lambda: [process for process in below if processes.running(process)])
        self.process = None
