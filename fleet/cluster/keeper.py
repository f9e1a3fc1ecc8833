"""The keeper: the process that starts a fleet, holds it up and ends all of it. `python -m fleet.cluster.keeper`.

It never connects to Ray (Ray ends a process that is connected to a head that died). Its orders come as JSON on stdin;
it tells of its progress in lines of JSON on stdout until the fleet is up. SIGTERM ends the fleet.

Steps: lock of the home → leftovers of a killed predecessor → Ray's head → store, router, gateway → `run.json` → watch.
A head that dies is started again and everything deployed anew; the work resumes from the store.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from fleet.cluster import processes
from fleet.cluster.beacon import PORT_AFTER_RAY, Beacon
from fleet.cluster.head import HEAD_AWAY_S, ClusterHead, Head, fresh_temp_dir, gcs_folder, plan_head, start_head
from fleet.cluster.record import RunRecord, take_lock, write_record
from fleet.cluster.serve_file import serve_file, write_serve_file
from fleet.config import FleetConfig
from fleet.errors import FleetError, StartFailed, from_dict
from fleet.observability.files import lay_out
from fleet.revision import revision

log = logging.getLogger("fleet.cluster")

DEPLOY_TIMEOUT_S = 240.0
UNDEPLOY_TIMEOUT_S = 25.0
HEAD_GRACE_S = 8.0
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""A head that lived this long starts the backoff anew."""


RAYLET_GRACE_S = 10.0
"""After so long without its raylet a head counts as dead."""


class _Stop(BaseException):
    """Raised by the signal handler: the fleet is to end."""


class Keeper:
    """One fleet on this machine.

    Args:
        config: its settings, with the port chosen.
        instance: the mark of its processes.
        address: a Ray cluster to join; None starts our own.
        env: the environment of everything it starts.
        tell: takes a word of progress for whoever started it.
        cluster: set when other machines join our Ray.
    """

    def __init__(
        self,
        config: FleetConfig,
        instance: str,
        address: str | None,
        env: dict[str, str],
        tell: Callable[[str], None],
        cluster: ClusterHead | None = None,
    ) -> None:
        self.config = config
        self.instance = instance
        self.joined = address
        self.env = env
        self.tell = tell
        self.cluster = cluster
        self.beacon: Beacon | None = None
        self.ray_stopped = False
        """Somebody ended Ray in order: nothing can be asked of it."""
        self.head: Head | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.logs = config.home / "logs"
        short = hashlib.sha256(str(config.home).encode()).hexdigest()[:10]
        # Short, because Ray's Unix sockets lie below it and a socket's path holds 107 bytes.
        self.temp_dir = Path("/tmp") / f"fleet-{short}"

    @property
    def address(self) -> str:
        """Where Ray is."""
        return self.joined or (self.head.address if self.head else "")

    def start(self) -> None:
        """Bring everything up, once. Raises StartFailed."""
        if self.joined is None:
            self.tell("starting Ray")
            fresh_temp_dir(self.temp_dir)
            self.env |= lay_out(self.config.home, self.temp_dir)
            self.head = plan_head(str(self.temp_dir), self.config.dashboard_port, self.cluster)
            if self.cluster is not None and self.beacon is None:
                self._forget_old_cluster()
                port = self.cluster.ray_port + PORT_AFTER_RAY
                self.beacon = Beacon(self.cluster.ip, port, {"revision": revision()})
            log.info("head start address=%s dashboard=%s", self.head.address, self.head.dashboard_port)
            self.process = start_head(self.head, self.env, self.logs / "ray.log")
        self.tell("starting store, router and gateway")
        orders = {"config": self.config.model_dump(mode="json"), "address": self.address}
        done = self._deploy("up", orders, DEPLOY_TIMEOUT_S)
        self.config = self.config.model_copy(update={"port": done.get("port", self.config.port)})
        self._wait_for_gateway(60.0)
        self._record()
        log.info("fleet up url=%s", self.url)

    def start_patiently(self) -> None:
        """Bring everything up; once more when Ray ended: it gives its raylet 30 s, too little for a busy machine.

        Raises StartFailed.
        """
        try:
            self.start()
        except StartFailed as error:
            if self.process is None or self.process.poll() is None:
                raise
            log.warning("ray ended while it started, trying once more: %s", error.message)
            self._clear()
            self.start()

    def _forget_old_cluster(self) -> None:
        """Remove what a GCS left on disk long ago: workers wait for a lost head for a while only."""
        folder = gcs_folder(self.config.home)
        if folder.exists():
            newest = max((file.stat().st_mtime for file in folder.rglob("*")), default=0.0)
            if time.time() - newest > HEAD_AWAY_S:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where the gateway is."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.config.host, self.config.host)
        return f"http://{host}:{self.config.port}"

    def watch(self) -> None:
        """Hold the fleet up until a signal, or until the cluster was taken down."""
        failures, up_since = 0, time.monotonic()
        raylet, gone_since = self._raylet(), None
        while True:
            time.sleep(0.5)
            self._reap_adopted()
            if self.process is None:
                continue
            if alive := self.process.poll() is None:
                raylet = raylet or self._raylet()
                if raylet is None or processes.running(raylet):
                    continue
                # `ray start --block` says nothing of a raylet that was asked to end.
                gone_since = gone_since or time.monotonic()
            if self.cluster is not None and ray_stop_runs():
                # `ray down` is `ray stop` on the head: the fleet is over. On one machine it was meant for another's
                # Ray, and ours comes back.
                log.info("ray was stopped in order, the fleet ends")
                self.ray_stopped = True
                return
            if alive and gone_since is not None and time.monotonic() - gone_since < RAYLET_GRACE_S:
                continue
            if time.monotonic() - up_since > STEADY_S:
                failures = 0
            delay = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            log.error("head died code=%s restart_in_s=%s", self.process.returncode, delay)
            self._clear()
            time.sleep(delay)
            failures += 1
            try:
                self.start()
            except (FleetError, OSError) as error:
                log.error("head restart failed error=%s", error)
                self._clear()
            up_since = time.monotonic()
            raylet, gone_since = self._raylet(), None

    def _raylet(self) -> psutil.Process | None:
        """Return the head's raylet, None while there is none."""
        if self.process is None:
            return None
        for child in processes.descendants(self.process.pid):
            try:
                if child.name() == "raylet":
                    return child
            except psutil.Error:
                continue
        return None

    def stop(self) -> None:
        """End everything this keeper started."""
        if self.beacon is not None:
            self.beacon.bye()
        alive = self.process is None or self.process.poll() is None
        if self.address and alive and not self.ray_stopped:
            log.info("fleet stop")
            orders = {"address": self.address, "whole": self.joined is None}
            try:
                self._deploy("down", orders, UNDEPLOY_TIMEOUT_S)
            except FleetError as error:
                log.warning("undeploy failed error=%s", error)
        self._clear()
        self.config.record_path.unlink(missing_ok=True)
        serve_file(self.config).unlink(missing_ok=True)
        if self.joined is None:
            shutil.rmtree(self.temp_dir, ignore_errors=True)
            shutil.rmtree(gcs_folder(self.config.home), ignore_errors=True)
        log.info("fleet down")

    def _clear(self) -> None:
        """End Ray and whatever is left below this process."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(HEAD_GRACE_S)
            except subprocess.TimeoutExpired:
                log.warning("head does not end, killing it")
        count = processes.kill_until_none(processes.descendants)
        if count:
            log.info("killed leftovers count=%d", count)
        self._reap_adopted()

    def _reap_adopted(self) -> None:
        for child in psutil.Process().children():
            if self.process is not None and child.pid == self.process.pid:
                continue
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)
            except (psutil.Error, ChildProcessError):
                continue

    def _deploy(self, action: str, orders: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        keeper = os.getpid()
        with (self.logs / "deploy.log").open("ab") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "fleet.cluster.deploy", action],
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                preexec_fn=lambda: processes.end_with_parent(keeper, signal.SIGKILL),
            )
            assert worker.stdin is not None and worker.stdout is not None
            try:
                worker.stdin.write(json.dumps(orders).encode())
                worker.stdin.close()
                worker.stdin = None
                deadline = time.monotonic() + timeout_s
                while worker.poll() is None:
                    if action == "up" and self.process is not None and self.process.poll() is not None:
                        raise StartFailed(f"Ray ended while it started: {_tail(self.logs / 'ray.log')}")
                    if time.monotonic() > deadline:
                        raise StartFailed(
                            f"The parts were not {action} within {timeout_s:.0f} s; see {self.logs / 'deploy.log'}."
                        )
                    time.sleep(0.05)
                said = worker.stdout.read().decode(errors="replace").strip()
            finally:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
                worker.stdout.close()
        try:
            reply: dict[str, Any] = json.loads(said.splitlines()[-1])
        except (ValueError, IndexError):
            reply = {
                "error": StartFailed.code,
                "message": f"The parts did not come {action} (exit code {worker.returncode}): "
                f"{_tail(self.logs / 'deploy.log')}",
            }
        if worker.returncode != 0 or "error" in reply:
            raise from_dict(reply)
        return reply

    def _wait_for_gateway(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
            try:
                connection.request("GET", "/api/health")
                # 401 is an answer of the gateway too; 404 and 503 are the proxy's before it knows the route.
                if connection.getresponse().status in (200, 401, 403):
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        raise StartFailed(f"The gateway did not answer at {self.url} within {timeout_s:.0f} s; see {self.logs}.")

    def _record(self) -> None:
        dashboard = f"http://127.0.0.1:{self.head.dashboard_port}" if self.head else ""
        write_serve_file(self.config, dashboard or "URL_OF_THE_DASHBOARD", self.env.get("RAY_AUTH_TOKEN_PATH", "FILE"))
        write_record(
            self.config.record_path,
            RunRecord(
                url=self.url,
                ray_address=self.address,
                dashboard_url=dashboard,
                pid=os.getpid(),
                home=self.config.home,
                instance=self.instance,
                started_at=time.time(),
                rehearsal=self.config.rehearsal,
                ours=self.joined is None,
                temp_dir=str(self.temp_dir) if self.joined is None else "",
            ),
        )


def ray_stop_runs() -> bool:
    """Return whether a `ray stop` is at work on this machine."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "stop" in words and Path(words[max(words.index("stop") - 1, 0)]).name == "ray":
            return True
    return False


def _tail(path: Path, lines: int = 12) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"see {path}"
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _tell(**line: Any) -> None:
    try:
        print(json.dumps(line), flush=True)
    except OSError:
        # Whoever started this has gone; the fleet has not.
        log.debug("nobody listens")


def _raise_stop(number: int, frame: FrameType | None) -> NoReturn:
    # Once is enough: a second signal would cut the ending short and leave processes.
    _ignore_signals()
    raise _Stop


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _quiet() -> None:
    """Let go of the pipe to whoever started this."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> int:
    """Run a keeper by the orders on stdin; return its exit code."""
    orders = json.loads(sys.stdin.readline())
    config = FleetConfig.model_validate(orders["config"])
    (config.home / "logs").mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=config.log_level,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        filename=config.home / "logs" / "keeper.log",
    )
    processes.become_subreaper()
    instance = os.environ[processes.INSTANCE]
    lock = take_lock(config.home, instance)
    if lock is None:
        _tell(error=StartFailed(f"Another fleet is starting or running in {config.home}.").to_dict())
        return 10
    left = processes.kill_until_none(lambda: _others_of(config.home))
    if left:
        log.warning("killed leftovers of an earlier fleet count=%d", left)
    config.record_path.unlink(missing_ok=True)
    cluster = ClusterHead.model_validate(orders["cluster"]) if orders.get("cluster") else None
    tell = lambda text: _tell(progress=text)  # noqa: E731
    keeper = Keeper(config, instance, orders["address"], dict(os.environ), tell, cluster)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_stop)
    code = 0
    try:
        if orders["attached"]:
            processes.end_with_parent(int(orders["parent"]))
        keeper.start_patiently()
        _tell(ready=True)
        _quiet()
        keeper.watch()
    except _Stop:
        log.info("asked to stop")
    except (FleetError, OSError) as error:
        log.exception("start failed")
        failure = error if isinstance(error, FleetError) else StartFailed(f"The fleet did not start: {error}")
        _ignore_signals()
        keeper.stop()
        _tell(error=failure.to_dict())
        return 10
    except BaseException:
        log.exception("keeper failed")
        code = 1
    _ignore_signals()
    keeper.stop()
    lock.close()
    return code


def _others_of(home: Path) -> list[psutil.Process]:
    """Return the processes of this home's earlier fleets; whoever started this one carries its own mark, or none."""
    mine = os.environ[processes.INSTANCE]
    return [process for process, mark in processes.tagged(home) if mark != mine]


if __name__ == "__main__":
    sys.exit(main())
