"""The control room under load: 200 agents that each write 10 events a second, 20 browsers' sockets and one real page.

    python -m tests.bench.control_room [--agents 200] [--rate 10] [--sockets 20] [--seconds 20]

The store, router, gateway and page are those of a running fleet. The agents are simulated at the store's seam: 200 Ray
actors of 100 MB do not fit a machine of two cores, so this process writes for all of them what their journals would
(each event in a batch of its own, as it comes, and a beat a second). A browser is two sockets: one on the overview and
one on an agent's transcript. The page is Chromium: clicks and events are timed inside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from fleet.lifecycle import AgentState, TaskState
from fleet.models import Activity, AgentInfo, Batch, Event, EventKind, Run, Task, new_id
from tests.bench import table
from tests.bench.fleet_side import FleetSide

AT = re.compile(r"at=([0-9.]+)")
CLICK_MS, PAGE_MS = 300, 500
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

WATCH = r"""
() => {
  window.benchSeen = [];
  const known = new Set();
  const look = text => {
    for (const found of (text || "").matchAll(/at=([0-9.]+)/g)) {
      if (known.has(found[1])) continue;
      known.add(found[1]);
      window.benchSeen.push(Date.now() - 1000 * Number(found[1]));
    }
  };
  new MutationObserver(changes => {
    for (const change of changes) {
      if (change.type === "characterData") look(change.target.data);
      for (const node of change.addedNodes) look(node.textContent);
    }
  }).observe(document.querySelector(".f-drawer"), {childList: true, subtree: true, characterData: true});
}
"""
CLICK = """
async number => {
  const cards = document.querySelectorAll(".f-card");
  const card = cards[number % cards.length];
  const name = card.querySelector(".f-card-name").textContent.trim();
  const began = performance.now();
  (card.querySelector("button, a") || card).click();
  while (true) {
    const drawer = document.querySelector(".f-drawer");
    if (drawer && drawer.textContent.includes(name) && drawer.querySelector(".f-tr-item")) break;
    if (performance.now() - began > 30000) throw new Error("no transcript of " + name);
    await new Promise(done => requestAnimationFrame(done));
  }
  return performance.now() - began;
}
"""


class Crowd:
    """Agents that are only rows, events and beats."""

    def __init__(self, side: FleetSide, count: int, rate: float) -> None:
        self.side, self.count, self.rate = side, count, rate
        self.writing: asyncio.Task[Any] | None = None
        self.written = 0
        self.acknowledged: list[float] = []
        now = time.time()
        self.runs = [
            Run(
                id=new_id("r"),
                task_id=new_id("t"),
                number=1,
                role="qa_tester",
                agent_id=f"qa_tester-{number + 1}",
                incarnation=1,
                epoch=1,
                started_at=now,
            )
            for number in range(count)
        ]

    async def appear(self) -> None:
        """Commit the agents, their tasks and runs."""
        epoch = (await self.side.router.status())["epoch"]
        now = time.time()
        tasks, agents = [], []
        for run in self.runs:
            ids = {"run_id": run.id, "created_at": now, "started_at": now, "updated_at": now}
            task = Task(id=run.task_id, role=run.role, prompt="Work.", state=TaskState.RUNNING, **ids)
            tasks.append(task.model_copy(update={"agent_id": run.agent_id}))
            about = {"task_id": run.task_id, "run_id": run.id, "started_at": now, "updated_at": now}
            agents.append(AgentInfo(id=run.agent_id, role=run.role, state=AgentState.BUSY, **about))
        batch = Batch(tasks=tuple(tasks), runs=tuple(self.runs), agents=tuple(agents))
        await self.side.store.commit(epoch, batch)

    async def write(self) -> None:
        """Write until cancelled."""
        await asyncio.gather(*(self._agent(number, run) for number, run in enumerate(self.runs)))

    async def _agent(self, number: int, run: Run) -> None:
        begin = time.monotonic() + number / self.count / self.rate
        seq = 0
        while True:
            await asyncio.sleep(max(0.0, begin + seq / self.rate - time.monotonic()))
            now = time.time()
            text = {"type": "text", "text": f"I am at step {seq} at={now:.4f}"}
            message = {"id": f"m{seq}", "role": "assistant", "model": "bench", "content": [text]}
            about = {"run_id": run.id, "task_id": run.task_id, "agent_id": run.agent_id, "seq": seq, "at": now}
            frame = {"type": "assistant", "message": message, "uuid": f"{number}-{seq}", "parent_tool_use_id": None}
            event = Event(**about, kind=EventKind.FRAME, type="assistant", payload=frame)
            if seq % max(1, int(self.rate)) == 0:
                about = {"run_id": run.id, "task_id": run.task_id, "agent_id": run.agent_id, "at": now}
                await self.side.store.beat(Activity(**about, text=text["text"], turns=seq, last_event_at=now))
            await self.side.store.append_events([event])
            self.acknowledged.append(time.time() - now)
            self.written += 1
            seq += 1


class Sockets:
    """The sockets of so many browsers, in a thread and loop of their own."""

    def __init__(self, side: FleetSide, runs: list[Run]) -> None:
        self._side, self._runs = side, runs
        self.latencies: list[float] = []
        self.bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def open(self) -> None:
        """Open all."""
        self._thread.start()
        for number, run in enumerate(self._runs):
            for path in ("/api/ws", f"/api/ws?task={run.task_id}&history=0"):
                asyncio.run_coroutine_threadsafe(self._read(path), self._loop)
            del number

    async def _read(self, path: str) -> None:
        import websockets

        address = f"ws://127.0.0.1:{self._side.port}{path}"
        async with websockets.connect(address, additional_headers=self._side.headers, max_size=None) as socket:
            async for text in socket:
                self.bytes += len(text)
                if "task=" in path:
                    now = time.time()
                    self.latencies += [now - float(at) for at in AT.findall(str(text))]

    def close(self) -> None:
        """Close all."""

        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Page:
    """One real page."""

    def __init__(self, side: FleetSide) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        path = shutil.which("chromium") or "/usr/bin/chromium"
        self._browser = self._playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        self.page = self._browser.new_page()
        token = side.headers["Authorization"].partition(" ")[2]
        self.page.set_default_timeout(120_000)
        self.page.goto(f"http://127.0.0.1:{side.port}/login?token={token}")
        self.page.wait_for_selector(".f-card")

    def clicks(self, count: int) -> list[float]:
        """Open so many agents; return the milliseconds from each click to the transcript."""
        found = []
        for number in range(count):
            found.append(float(self.page.evaluate(CLICK, number * 7)))
            self.page.keyboard.press("Escape")
            self.page.wait_for_selector(".f-drawer", state="detached")
        return found

    def events(self, seconds: float) -> list[float]:
        """Look at one agent; return the milliseconds from each event's writing to its being in the page."""
        self.page.evaluate(CLICK, 3)
        self.page.evaluate(WATCH)
        time.sleep(seconds)
        found: list[float] = self.page.evaluate("() => window.benchSeen")
        # What the page already had when the watch began is no measurement.
        return [value for value in found if value < 1000 * seconds]

    def close(self) -> None:
        """Close the browser."""
        self._browser.close()
        self._playwright.stop()


def rows(agents: int, rate: float, sockets: int, seconds: float) -> list[table.Row]:
    """Return the rows."""
    side = FleetSide(0)
    crowd: Crowd | None = None
    opened: Sockets | None = None
    page: Page | None = None
    try:
        side.connect()
        crowd = Crowd(side, agents, rate)
        side.do(crowd.appear())
        writing = asyncio.run_coroutine_threadsafe(crowd.write(), side._loop)
        opened = Sockets(side, crowd.runs[:sockets])
        opened.open()
        page = Page(side)
        page.clicks(2)
        gateway = next(process for process in side.parts() if "Gateway" in " ".join(process.cmdline()))
        before, began, events = sum(gateway.cpu_times()[:2]), time.monotonic(), crowd.written
        opened.latencies.clear()
        crowd.acknowledged.clear()
        clicks = page.clicks(20)
        shown = page.events(seconds)
        took = time.monotonic() - began
        cores = (sum(gateway.cpu_times()[:2]) - before) / took
        per_s = (crowd.written - events) / took
        seen = list(opened.latencies)
        memory = psutil.Process(gateway.pid).memory_info().rss / 2**20
        writing.cancel()
    finally:
        for part in (page, opened, side):
            if part is not None:
                part.close()
    note = f"{per_s:.0f} of {agents * rate:.0f} events/s were written; acknowledged in p50 "
    note += f"{1000 * statistics.median(crowd.acknowledged):.0f} ms; gateway's memory {memory:.0f} MB"
    socket_ms = [1000 * value for value in seen]
    return [
        table.absolute("click", f"a click answers, {agents} agents, {sockets} browsers", "ms", clicks, CLICK_MS),
        table.absolute("on_page", "an event is on the page", "ms", shown, PAGE_MS, note=f"{len(shown)} events"),
        table.absolute("on_socket", "an event is in a browser's socket", "ms", socket_ms, PAGE_MS),
        table.absolute("gateway_cpu", "gateway's CPU", "cores", [cores], 1.0, note=note),
    ]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--sockets", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = rows(given.agents, given.rate, given.sockets, given.seconds)
    print(table.markdown(found))
    if given.json:
        given.json.write_text(json.dumps(table.plain(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
