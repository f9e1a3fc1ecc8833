"""The original plan's architecture: starts Redis and the server of `plan/server.mjs`, and speaks HTTP with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "plan"
START_S = 60.0
KEPT_S = 2.0


def why_not() -> str:
    """Return what is missing, "" when nothing is."""
    tools = [name for name in ("redis-server", "node") if shutil.which(name) is None]
    if tools:
        return f"{', '.join(tools)} missing (tests/bench/peers/README.md)"
    if not (FOLDER / "node_modules" / "bullmq").is_dir():
        return "its packages are missing: npm --prefix tests/bench/peers/plan install"
    return ""


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Http:
    """One kept connection; the same client for every side."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._asked_at = 0.0
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of an answer; raises on a status that is not good."""
        data = None if body is None else json.dumps(body).encode()
        if time.monotonic() - self._asked_at > KEPT_S:
            # Servers close what was silent for a while (Express after 5 s).
            self._connection.close()
        self._asked_at = time.monotonic()
        self._connection.request(method, path, data, self._headers)
        # Without it small requests wait for the acknowledgement of the ones before.
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = self._connection.getresponse()
        text = answer.read()
        self._asked_at = time.monotonic()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text) if text else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Plan:
    """A running server."""

    def __init__(self, folder: Path, executable: Path, agents: int) -> None:
        folder.mkdir(parents=True)
        self.port, redis_port = free_port(), free_port()
        redis = ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        redis += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        self._redis = subprocess.Popen(redis, stdout=subprocess.DEVNULL)
        server = ["node", str(FOLDER / "server.mjs"), str(self.port), str(redis_port), str(agents), str(executable)]
        self._server = subprocess.Popen(server, stdout=subprocess.DEVNULL, cwd=FOLDER)
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            if time.monotonic() > end:
                self.close()
                raise RuntimeError("the original plan's server did not start")
            time.sleep(0.05)
        self.http = Http(self.port)

    def round_trips(self, count: int) -> list[float]:
        """Return the seconds of each of so many tasks, one after the other."""
        found = []
        for number in range(count):
            began = time.perf_counter()
            prompt = f"task {number}"
            assert self.http.ask("POST", "/tasks/run", {"prompt": prompt})["result"] == prompt
            found.append(time.perf_counter() - began)
        return found

    def accept(self, count: int) -> float:
        """Return tasks a second of one batch that is only queued."""
        batch = [{"prompt": f"task {number}"} for number in range(count)]
        began = time.perf_counter()
        assert len(self.http.ask("POST", "/tasks/batch", batch)["ids"]) == count
        return count / (time.perf_counter() - began)

    def pause(self) -> None:
        """Hand nothing out."""
        self.http.ask("POST", "/pause", {})

    def drain(self, count: int | None = None) -> float:
        """Return tasks a second from the queue's release to the last result."""
        if count is not None:
            self.pause()
            self.accept(count)
        waiting = self._waiting()
        began = time.perf_counter()
        self.http.ask("POST", "/resume", {})
        while self._waiting():
            time.sleep(0.02)
        return waiting / (time.perf_counter() - began)

    def _waiting(self) -> int:
        counts = self.http.ask("GET", "/counts")
        return int(counts["waiting"] + counts["active"] + counts["paused"] + counts.get("prioritized", 0))

    def close(self) -> None:
        """End both processes."""
        for process in (self._server, self._redis):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
