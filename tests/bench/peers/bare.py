"""Bare Ray: actors that wrap the echo executable, and nothing else."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import ray

ARGUMENTS = ["--output-format=stream-json", "--input-format=stream-json"]


class Echo:
    """Keeps one echo process, or starts one for each task."""

    def __init__(self, executable: str, fresh: bool) -> None:
        self._executable = executable
        self._fresh = fresh
        self._process = None if fresh else self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [self._executable, *ARGUMENTS]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, prompt: str) -> str:
        """Write the prompt as one line and return the result of the answer."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        frame = {"type": "user", "message": {"role": "user", "content": prompt}}
        process.stdin.write(json.dumps(frame).encode() + b"\n")
        process.stdin.flush()
        result = ""
        while (frame := json.loads(process.stdout.readline())).get("state") != "idle":
            if frame["type"] == "result":
                result = frame["result"]
        if self._fresh:
            process.stdin.close()
            process.wait()
            process.stdout.close()
        return result


class BareRay:
    """A pool of actors in the Ray that this process is connected to."""

    def __init__(self, executable: str, agents: int, *, fresh: bool = False) -> None:
        cls = ray.remote(Echo).options(num_cpus=0.01)
        self.actors: list[Any] = [cls.remote(executable, fresh) for _ in range(agents)]
        ray.get([actor.run.remote("warm") for actor in self.actors])

    def round_trips(self, count: int) -> list[float]:
        """Return the seconds of each of so many tasks, one after the other."""
        found = []
        for number in range(count):
            began = time.perf_counter()
            prompt = f"task {number}"
            assert ray.get(self.actors[number % len(self.actors)].run.remote(prompt)) == prompt
            found.append(time.perf_counter() - began)
        return found

    def drain(self, count: int) -> float:
        """Return tasks a second of a queue in the driver: each actor has one task and one ahead."""
        began = time.perf_counter()
        waiting: dict[Any, Any] = {}
        left = count
        for actor in self.actors * 2:
            if left:
                waiting[actor.run.remote("x")] = actor
                left -= 1
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                actor = waiting.pop(reference)
                if left:
                    waiting[actor.run.remote("x")] = actor
                    left -= 1
        return count / (time.perf_counter() - began)

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)
