"""A fleet in a home of its own, its driver inside the cluster, and its HTTP client."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.bench import echo
from tests.bench.peers.plan import Http
from tests.integration.support import Home, temporary_home, until

T = TypeVar("T")

ROLE = "echo"
SETTINGS = """
claude_path = "{claude}"
node_floor_mb = 0
[roles.echo]
prompt = "You echo."
agents = {agents}
cpus = 0.01
memory_mb = 64
[roles.code_reviewer]
agents = 0
[roles.api_developer]
agents = 0
[roles.qa_tester]
agents = 0
"""
BENCH_AT = re.compile(rb'"bench_at": ?([0-9.]+)')


class FleetSide:
    """A running fleet in rehearsal whose Claude Code is the echo executable, or the real one after `use`."""

    def __init__(self, agents: int, *, settings: str = "") -> None:
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self.folder = Path(f"/tmp/flb{os.getpid()}-{time.monotonic_ns() % 100_000}")
        self.folder.mkdir()
        self.executable = echo.install(self.folder)
        self.claude = self.folder / "claude"
        self.claude.symlink_to(self.executable)
        text = SETTINGS.format(claude=self.claude, agents=agents) + settings
        try:
            # The echo may be slower to start than to answer: compiled files are wanted, as in a real installation.
            self.home: Home = self._stack.enter_context(temporary_home(text))
            self.home.up()
        except BaseException:
            self.close()
            raise
        self.agents = agents
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._final: dict[str, tuple[float, Any]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._follower: asyncio.Task[None] | None = None

    def connect(self) -> None:
        """Join the fleet's Ray as a driver. Ray reads its variables when it is first imported: before that."""
        record = self.home.record()
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.home.home / "ray_token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        import ray

        ray.init(address=record["ray_address"], namespace="fleet", log_to_driver=False, logging_level="ERROR")
        from fleet.cluster.handles import RouterHandle, StoreHandle

        self.router, self.store = RouterHandle(), StoreHandle()
        self.do(self._begin())
        token = (self.home.home / "token").read_text().strip()
        self.port = int(record["url"].rstrip("/").rpartition(":")[2])
        self.headers = {"Authorization": f"Bearer {token}"}
        self.http = Http(self.port, self.headers)
        self.wait_for_agents(self.agents)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the driver's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(1800)

    async def _begin(self) -> None:
        position = (await self.store.follow(None))[-1].position
        self._follower = asyncio.create_task(self._follow(position))

    async def _follow(self, position: int) -> None:
        while True:
            for item in await self.store.follow(position, 10.0):
                position = item.position
                if item.kind == "task" and item.item.state.final:
                    self._final[item.item.id] = (time.time(), item.item)
                    if (future := self._waiting.pop(item.item.id, None)) is not None and not future.done():
                        future.set_result(None)

    async def run(self, prompt: str) -> tuple[float, Any]:
        """Submit a task from inside the cluster and wait for its end; return when that was heard, and the task."""
        from fleet.models import TaskSpec

        task = (await self.router.submit([TaskSpec(role=ROLE, prompt=prompt)]))[0]
        if task.id not in self._final:
            future = self._waiting[task.id] = self._loop.create_future()
            await future
        heard_at, final = self._final.pop(task.id)
        assert final.state.value == "succeeded", f"{final.id} {final.state.value} {final.reason} {final.detail}"
        return heard_at, final

    def round_trips(self, count: int) -> list[float]:
        """Return the seconds of each of so many tasks from the driver, one after the other."""

        async def work() -> list[float]:
            found = []
            for number in range(count):
                began = time.perf_counter()
                await self.run(f"task {number}")
                found.append(time.perf_counter() - began)
            return found

        return self.do(work())

    def round_trips_http(self, count: int) -> list[float]:
        """Return the seconds of each of so many tasks over HTTP: submit, then wait."""
        found = []
        for number in range(count):
            began = time.perf_counter()
            task = self.http.ask("POST", "/api/tasks", {"role": ROLE, "prompt": f"task {number}"})
            while not task.get("finished_at"):
                task = self.http.ask("GET", f"/api/tasks/{task['id']}/wait?timeout_s=60")
            assert task["state"] == "succeeded", task
            found.append(time.perf_counter() - began)
        return found

    def accept(self, count: int) -> float:
        """Return tasks a second of one batch over HTTP that is only queued."""
        batch = [{"role": ROLE, "prompt": f"task {number}"} for number in range(count)]
        began = time.perf_counter()
        assert len(self.http.ask("POST", "/api/tasks", batch)["items"]) == count
        return count / (time.perf_counter() - began)

    def pause(self) -> None:
        """Hand nothing out."""
        self.do(self.router.pause(ROLE, True))

    def waiting(self) -> int:
        """Return how many tasks are not final."""
        states = self.do(self.store.counts())["states"]
        return sum(states.get(state, 0) for state in ("queued", "running", "scheduled", "blocked"))

    def drain(self, count: int | None = None) -> float:
        """Return tasks a second from the queue's release to the last result."""
        if count is not None:
            self.pause()
            self.accept(count)
        waiting = self.waiting()
        began = time.perf_counter()
        self.do(self.router.pause(ROLE, False))
        while self.waiting():
            time.sleep(0.02)
        return waiting / (time.perf_counter() - began)

    def forget(self) -> None:
        """Cancel what waits."""
        ids = [task.id for task in self.do(self.store.tasks(states=["queued"], limit=10_000))]
        for start in range(0, len(ids), 1000):
            self.do(self.router.cancel(ids[start : start + 1000]))
        self.do(self.router.pause(ROLE, False))

    def use(self, executable: Path) -> None:
        """Let the following runs start another executable."""
        fresh = self.claude.with_name("next")
        fresh.symlink_to(executable)
        fresh.replace(self.claude)

    def scale(self, agents: int) -> None:
        """Have so many agents, and wait until they are there."""
        self.do(self.router.scale(ROLE, agents))
        self.wait_for_agents(agents)
        self.agents = agents

    def wait_for_agents(self, count: int) -> None:
        """Wait until so many agents are idle, and no other is left."""

        def there() -> bool:
            role = next(found for found in self.do(self.router.roles()) if found["role"].name == ROLE)
            return bool(role["idle"] == count == role["agents"])

        until(there, f"{count} idle agents", 600)

    def events_of(self, task_id: str) -> list[Any]:
        """Return the events of a task."""
        return self.do(self.store.events(task_id=task_id))

    def own_times(self, prompt: str, count: int) -> list[tuple[float, float]]:
        """Return for each of so many tasks: seconds in fleet's own hands, and those from queue to committed result.

        Its own are those from the queue to the first byte on the process's stdin, and from the last byte of its result
        until the driver heard of the commit.
        """
        found = []
        for _ in range(count):
            heard_at, task = self.do(self.run(prompt))
            events = self.events_of(task.id)
            ended = next(event for event in events if event.kind.value == "state" and event.type == "ended")
            result_at = max(event.at for event in events if event.kind.value == "frame" and event.type == "result")
            before = ended.payload["stdin_at"] - task.created_at
            found.append((before + heard_at - result_at, heard_at - task.created_at))
        return found

    def event_latencies(self, events: int, rate: float) -> list[float]:
        """Let every agent write so many events at a rate; return how long each took to an SSE client."""

        async def work() -> list[float]:
            from fleet.models import TaskSpec

            specs = [TaskSpec(role=ROLE, prompt=f"emit: {events} {rate}") for _ in range(self.agents)]
            tasks = await self.router.submit(specs)
            found = await asyncio.gather(*(self._listen(task.id) for task in tasks))
            return [latency for one in found for latency in one]

        return self.do(work())

    async def _listen(self, task_id: str) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        path = f"/api/tasks/{task_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{head}\r\n".encode())
        found: list[float] = []
        seen: set[bytes] = set()
        # The server keeps the connection: the last chunk of the answer is empty.
        while (line := await reader.readline()) not in (b"", b"0\r\n"):
            at = BENCH_AT.search(line)
            if at is not None and at[1] not in seen:
                seen.add(at[1])
                found.append(time.time() - float(at[1]))
        writer.close()
        return found

    def parts(self) -> list[psutil.Process]:
        """Return fleet's own processes: keeper, store, router, gateway and agents; not Ray's."""
        found = []
        for process in self.home.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            ours = ("fleet.cluster.keeper", "ray::_Router", "ray::_Gateway", "ray::Store", "ray::store", "ray::Fleet")
            if any(word in line for word in ours) or re.search(r"ray::\w+-\d+ \[|ray::ServeReplica", line):
                found.append(process)
        return found

    def agent_memory_mb(self) -> list[float]:
        """Return the unique memory of each idle agent's process, in MiB."""
        agents = [agent for agent in self.do(self.store.agents()) if agent.pid]
        return [psutil.Process(agent.pid).memory_full_info().uss / 2**20 for agent in agents]

    def cpu_share(self, seconds: float) -> tuple[float, dict[str, float]]:
        """Return the percentage of a core that fleet's own processes use, and that of each kind."""
        before = {process: sum(process.cpu_times()[:2]) for process in self.parts()}
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        kinds: dict[str, float] = {}
        for process, start in before.items():
            try:
                used = sum(process.cpu_times()[:2]) - start
                name = " ".join(process.cmdline())
            except psutil.Error:
                continue
            kind = next((word for word in ("keeper", "Router", "Gateway", "tore") if word in name), "agents")
            kinds[kind.replace("tore", "store").lower()] = kinds.get(kind, 0.0) + 100 * used / took
        return sum(kinds.values()), kinds

    def close(self) -> None:
        """End the fleet; nothing of it is left."""
        if self._loop.is_running():
            if "ray" in __import__("sys").modules:
                import ray

                ray.shutdown()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)
