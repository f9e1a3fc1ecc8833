"""A worker node's keeper: `python -m fleet.cluster.join`, started by `fleet join HEAD:PORT`.

It starts Ray's worker and holds it up: a raylet that dies is started again, a head that is away is waited for, and a
head that says the fleet is over ends it, with everything that runs below. SIGTERM (`fleet leave`) does the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from fleet.cluster import processes
from fleet.cluster.beacon import PORT_AFTER_RAY, Listener
from fleet.cluster.head import AWAY, OBJECT_STORE_BYTES, fresh_temp_dir, labels_argument
from fleet.cluster.ray_env import ray_environment
from fleet.errors import Conflict, InvalidInput, StartFailed
from fleet.revision import revision

log = logging.getLogger("fleet.cluster")

MODULE = "fleet.cluster.join"
FIRST_WAIT_S = 180.0
"""How long a worker waits for its head at first: `ray up` starts both at once."""
AWAY_LIMIT_S = 600.0
"""A head that has been away for so long does not come back."""
BACKOFF_S = (1.0, 2.0, 5.0, 10.0)


def parse_address(text: str) -> tuple[str, int]:
    """Read `HOST:PORT` of a head's Ray. Raises InvalidInput."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"Expected HOST:PORT of the head's Ray, e.g. 10.0.0.1:6379; got {text!r}.", field="address")
    return host, int(port)


def join(
    address: str,
    home: Path,
    *,
    labels: Mapping[str, str] | None = None,
    cpus: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> subprocess.Popen[bytes]:
    """Make this machine a worker of the fleet whose head's Ray is at `address`; returns when the node has joined.

    Raises:
        InvalidInput: the address is not HOST:PORT.
        Conflict: this machine is a worker already.
        StartFailed: the head does not answer, has another revision of fleet, or Ray did not start.
    """
    parse_address(address)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (running := find_node(home)) is not None:
        raise Conflict(f"This machine is a node of a fleet already (pid {running.pid}). `fleet leave` ends it.")
    instance = f"{home}#{secrets.token_hex(6)}"
    token = Path.home() / ".ray" / "auth_token"
    if not token.is_file():
        raise StartFailed(f"Expected the cluster's token at {token}: copy it from the head (file_mounts does).")
    env = ray_environment(os.environ, instance=instance, ray_token_path=token, loopback=False) | AWAY
    orders = {"address": address, "home": str(home), "labels": dict(labels or {}), "cpus": cpus}
    (home / "logs").mkdir(exist_ok=True)
    with (home / "logs" / "node.log").open("ab") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            cwd="/",
        )
    assert keeper.stdin is not None and keeper.stdout is not None
    keeper.stdin.write(json.dumps(orders).encode() + b"\n")
    keeper.stdin.close()
    with keeper.stdout as lines:
        for raw in lines:
            line = json.loads(raw)
            if "error" in line:
                keeper.wait(60)
                raise StartFailed(line["error"])
            if "ready" in line:
                return keeper
            progress(line.get("progress", ""))
    raise StartFailed(f"The node's keeper ended with code {keeper.wait()}; see {home / 'logs' / 'node.log'}.")


def find_node(home: Path) -> psutil.Process | None:
    """Return the living keeper of this machine's node, None when there is none."""
    for process, mark in processes.tagged(home):
        try:
            if MODULE in process.cmdline() and mark and processes.running(process):
                return process
        except psutil.Error:
            continue
    return None


def leave(home: Path, timeout_s: float = 60.0) -> bool:
    """End this machine's node and everything on it; False when it is none."""
    keeper = find_node(home)
    if keeper is None:
        return False
    keeper.send_signal(signal.SIGTERM)
    if not processes.wait_ended(keeper, timeout_s):
        processes.kill([*processes.descendants(keeper.pid), keeper])
    return True


class _Stop(BaseException):
    """Raised by the signal handler: the node is to end."""


class Node:
    """The node that this process holds up."""

    def __init__(self, orders: dict[str, Any], tell: Callable[..., None]) -> None:
        self.head, self.port = parse_address(orders["address"])
        self.home = Path(orders["home"])
        self.labels: dict[str, str] = orders["labels"]
        self.cpus: float | None = orders["cpus"]
        self.tell = tell
        self.listener: Listener | None = None
        self.ray: subprocess.Popen[bytes] | None = None
        self.address = ""
        # Of its own, as the head's is: short for Ray's Unix sockets, and removed at the end.
        self.temp_dir = Path("/tmp") / f"fleetn-{hashlib.sha256(str(self.home).encode()).hexdigest()[:10]}"

    def start(self) -> None:
        """Meet the head and start Ray. Raises StartFailed."""
        self.tell(progress=f"waiting for the head at {self.head}:{self.port}")
        self.listener = self._meet(FIRST_WAIT_S)
        theirs, ours = str(self.listener.greeting.get("revision")), revision()
        if theirs != ours:
            raise StartFailed(
                f"Expected the head's revision of fleet, {theirs}; this machine has {ours}. Install the same on both."
            )
        self.address = self.listener.own_address
        self._start_ray()
        self._wait_joined(90.0)

    def _meet(self, timeout_s: float) -> Listener:
        end, error = time.monotonic() + timeout_s, ""
        while time.monotonic() < end:
            try:
                return Listener(self.head, self.port + PORT_AFTER_RAY, timeout_s=5.0)
            except (OSError, ValueError) as failure:
                error = str(failure)
                time.sleep(0.5)
        raise StartFailed(
            f"The head at {self.head}:{self.port + PORT_AFTER_RAY} did not answer in {timeout_s:.0f} s: {error}"
        )

    def _start_ray(self) -> None:
        arguments = [
            "start",
            f"--address={self.head}:{self.port}",
            f"--node-ip-address={self.address}",
            "--block",
            "--disable-usage-stats",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.temp_dir}",
        ]
        if self.cpus is not None:
            arguments.append(f"--num-cpus={self.cpus:g}")
        # The host's name is how people know a node, also after it came back with another Ray id.
        arguments.append(labels_argument(self.labels))
        keeper = os.getpid()
        fresh_temp_dir(self.temp_dir)
        with (self.home / "logs" / "ray-node.log").open("ab") as output:
            self.ray = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                preexec_fn=lambda: processes.end_with_parent(keeper),
            )
        log.info("node start head=%s:%s address=%s", self.head, self.port, self.address)

    def _wait_joined(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.ray is not None and self.ray.poll() is not None:
                raise StartFailed(
                    f"Ray ended with code {self.ray.returncode}; see {self.home / 'logs' / 'ray-node.log'}."
                )
            if any("raylet" in (child.name() or "") for child in processes.descendants()):
                return
            time.sleep(0.2)
        raise StartFailed(f"Ray did not start in {timeout_s:.0f} s; see {self.home / 'logs' / 'ray-node.log'}.")

    def watch(self) -> None:
        """Hold the node up; returns when the fleet is over."""
        failures, away_since = 0, None
        while True:
            time.sleep(0.5)
            if self.listener is not None:
                try:
                    if self.listener.said_bye():
                        log.info("node told the fleet is over")
                        return
                    away_since = None
                except ConnectionError:
                    self.listener.close()
                    self.listener = None
                    away_since = time.monotonic()
                    log.warning("node lost the head head=%s", self.head)
            else:
                try:
                    self.listener = Listener(self.head, self.port + PORT_AFTER_RAY, timeout_s=2.0)
                    log.info("node found the head again head=%s", self.head)
                except (OSError, ValueError):
                    if away_since is not None and time.monotonic() - away_since > AWAY_LIMIT_S:
                        log.error("node gives up, the head is away for good head=%s", self.head)
                        return
            if self.ray is not None and self.ray.poll() is not None and self.listener is not None:
                delay = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                log.error("raylet ended code=%s restart_in_s=%s", self.ray.returncode, delay)
                self.clear()
                time.sleep(delay)
                failures += 1
                self._start_ray()

    def clear(self) -> None:
        """End Ray and everything below this process."""
        if self.ray is not None and self.ray.poll() is None:
            self.ray.terminate()
            try:
                self.ray.wait(8.0)
            except subprocess.TimeoutExpired:
                log.warning("raylet does not end, killing it")
        processes.kill_until_none(processes.descendants)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


def _raise_stop(number: int, frame: FrameType | None) -> NoReturn:
    for known in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(known, signal.SIG_IGN)
    raise _Stop


def main() -> int:
    """Run a node's keeper by the orders on stdin."""
    orders = json.loads(sys.stdin.readline())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    processes.become_subreaper()

    def tell(**line: Any) -> None:
        try:
            print(json.dumps(line), flush=True)
        except OSError:
            log.debug("nobody listens")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_stop)
    node = Node(orders, tell)
    try:
        node.start()
        tell(ready=True)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        node.watch()
    except _Stop:
        log.info("node asked to leave")
    except StartFailed as error:
        node.clear()
        tell(error=error.message)
        return 10
    finally:
        node.clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
