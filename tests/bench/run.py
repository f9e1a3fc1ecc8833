"""`fleet bench`: fleet beside bare Ray, the original plan's architecture and the CLI by itself, in one run.

    fleet bench [--rounds 5] [--only KEY,…] [--json FILE] [--quick]
    python -m tests.bench.run …

All sides are up at once and are measured in turns, so that what else the machine does meets all of them; ratios are the
medians of the rounds' ratios. What cannot be run is said. The other sides are set up as `peers/README.md` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import table
from tests.bench.fleet_side import ROLE, FleetSide
from tests.bench.peers import claude, empty, plan
from tests.bench.table import Row, interleaved, quantile

AGENTS = 4
FRESH = "fresh process"
BARE = "bare Ray"
PLAN = "original plan"
PROCESS = (
    "fleet starts a guard and a Claude Code process for every run, the other side keeps one echo process for all: "
    "{floor}."
)


class Bench:
    """The sides, and what is measured with them."""

    def __init__(self, folder: Path, rounds: int, quick: bool, say: Callable[[str], None]) -> None:
        self.folder, self.rounds, self.quick, self.say = folder, rounds, quick, say
        self.fleet: FleetSide | None = None
        self.bare: Any = None
        self.fresh: Any = None
        self.plan: plan.Plan | None = None
        self.notes: list[str] = []

    def start(self) -> None:
        """Start fleet and, beside it, the sides that are installed."""
        self.say("starting fleet")
        self.fleet = FleetSide(AGENTS)
        self.fleet.connect()
        from tests.bench.peers.bare import BareRay

        self.say("starting the other sides")
        self.bare = BareRay(str(self.fleet.executable), AGENTS)
        self.fresh = BareRay(str(self.fleet.executable), AGENTS, fresh=True)
        if why := plan.why_not():
            self.notes.append(f"{PLAN}: not run: {why}")
        else:
            self.plan = plan.Plan(self.folder / "plan", self.fleet.executable, AGENTS)
            self.plan.round_trips(20)
        self.fleet.round_trips(AGENTS * 2)

    def close(self) -> None:
        """End all sides."""
        for side in (self.bare, self.fresh, self.plan, self.fleet):
            if side is not None:
                side.close()

    def _fleet(self) -> FleetSide:
        if self.fleet is None:
            self.start()
        assert self.fleet is not None
        return self.fleet

    # Rows. Each returns its rows; the order is that of the table.

    def round_trip(self) -> list[Row]:
        """A task from a driver in the cluster, and one over HTTP."""
        fleet = self._fleet()
        few, many = (8, 100) if self.quick else (20, 300)
        tails: dict[str, list[float]] = {}

        def p50(name: str, measure: Callable[[int], list[float]], count: int) -> Callable[[], float]:
            def one() -> float:
                times = measure(count)
                tails.setdefault(name, []).append(1000 * quantile(times, 0.99))
                return 1000 * statistics.median(times)

            return one

        sides = {"fleet": p50("fleet", fleet.round_trips, few), BARE: p50(BARE, self.bare.round_trips, many)}
        sides[FRESH] = p50(FRESH, self.fresh.round_trips, few)
        sides["fleet HTTP"] = p50("fleet HTTP", fleet.round_trips_http, few)
        if self.plan is not None:
            sides[PLAN] = p50(PLAN, self.plan.round_trips, many)
        found = interleaved(sides, self.rounds, self.say)
        floor = statistics.median(found[FRESH])
        note = PROCESS.format(floor=f"bare Ray with a fresh echo process for every task takes {floor:.3g} ms")
        rows = [
            table.compared("driver_p50", "round trip, driver in the cluster, p50", "ms", found, BARE, 2.5, note=note),
            table.compared(
                "driver_fresh_p50", "the same, beside bare Ray with a fresh process a task", "ms", found, FRESH, 2.5
            ),
        ]
        if self.plan is not None:
            more = {"fleet": "fleet HTTP"}
            rows.append(table.compared("http_p50", "round trip over HTTP, p50", "ms", found, PLAN, 1.0, **more))
            rows.append(table.compared("http_p99", "round trip over HTTP, p99", "ms", tails, PLAN, 1.0, **more))
        return rows

    def batch(self) -> list[Row]:
        """How fast a batch is accepted, and how fast a queue empties."""
        fleet = self._fleet()
        count = 500 if self.quick else 1000
        mine, theirs = (40, 500) if self.quick else (150, 3000)
        rows = []
        if self.plan is not None:
            fleet.pause()
            self.plan.pause()
            sides = {"fleet": lambda: fleet.accept(count), PLAN: lambda: self.plan.accept(count)}  # type: ignore[union-attr]
            found = interleaved(sides, self.rounds, self.say)
            what = f"batch accept over HTTP ({count} tasks)"
            rows.append(table.compared("accept", what, "tasks/s", found, PLAN, 1.0, more_is_better=True))
            self.plan.drain()
            fleet.forget()
        drains: dict[str, Callable[[], float]] = {"fleet": lambda: fleet.drain(mine)}
        drains[FRESH] = lambda: self.fresh.drain(mine)
        drains[BARE] = lambda: self.bare.drain(theirs)
        if self.plan is not None:
            drains[PLAN] = lambda: self.plan.drain(theirs)  # type: ignore[union-attr]
        found = interleaved(drains, self.rounds, self.say)
        floor = f"bare Ray with a fresh echo process for every task drains {statistics.median(found[FRESH]):.3g}/s"
        what = f"drain over {AGENTS} agents ({mine} queued tasks, the other side {theirs})"
        other = PLAN if self.plan is not None else BARE
        note = PROCESS.format(floor=floor)
        rows.append(table.compared("drain", what, "tasks/s", found, other, 1.0, more_is_better=True, note=note))
        what = "the same, beside bare Ray with a fresh process a task"
        rows.append(table.compared("drain_fresh", what, "tasks/s", found, FRESH, 1.0, more_is_better=True))
        return rows

    def real_cli(self) -> list[Row]:
        """fleet's own time around a task, with the real CLI where there is one."""
        fleet = self._fleet()
        own = [1000 * a for a, _ in fleet.own_times("hello", 5 if self.quick else 20)]
        note = f"around the echo executable it is {statistics.median(own):.3g} ms"
        real = claude.find()
        what = "real CLI, one task: fleet's own time, p50"
        if real is None:
            return [table.absolute("own_time", what + " (echo)", "ms", own, 25, note="no Claude Code is installed")]
        from fleet.models import Role

        role = Role(name="echo", prompt="You echo.")
        alone = claude.ClaudeAlone(real, self.folder / "alone", role)
        fleet.use(real)
        owns: list[float] = []
        count = 1 if self.quick else 3

        def through() -> float:
            times = fleet.own_times("say: hello", count)
            owns.append(statistics.median(1000 * a for a, _ in times))
            return statistics.median(b for _, b in times)

        try:
            through()
            owns.clear()
            alone.round_trip("say: hello")
            sides = {"fleet": through}
            sides["CLI alone"] = lambda: statistics.median(alone.round_trip("say: hello") for _ in range(count))
            found = interleaved(sides, self.rounds, self.say)
        finally:
            alone.close()
            fleet.use(fleet.executable)
        row = table.compared("cli_task", "real CLI, one task, whole", "s", found, "CLI alone", 1.25)
        row.goal, row.met = "", None
        row.note = "for comparison; no goal"
        return [table.absolute("own_time", what, "ms", owns, 25, note=note), row]

    def events(self) -> list[Row]:
        """Live events to SSE clients, and events on disk."""
        from tests.bench.store_write import measure

        fleet = self._fleet()
        agents, rate = (4, 25.0) if self.quick else (20, 50.0)
        fleet.scale(agents)
        fleet.event_latencies(20, rate)
        p99, p50 = [], []
        for _ in range(self.rounds):
            times = fleet.event_latencies(int(rate * 5), rate)
            p99.append(1000 * quantile(times, 0.99))
            p50.append(1000 * quantile(times, 0.5))
            self.say(f"  event latency p50 {p50[-1]:.1f} ms, p99 {p99[-1]:.1f} ms of {len(times)}")
        note = f"p50 {statistics.median(p50):.3g} ms; echo processes, fleet and clients share {os.cpu_count()} cores"
        what = f"event, process's stdout to SSE client, {agents} agents × {rate:g}/s, p99"
        rows = [table.absolute("event_latency", what, "ms", p99, 50, note=note)]
        fleet.scale(AGENTS)
        written = []
        for number in range(self.rounds):
            path = self.folder / f"events{number}.duckdb"
            written.append(asyncio.run(measure(path, 8, 200, 20 if self.quick else 100))["events_per_s"])
            self.say(f"  events persisted {written[-1]}/s")
        what = "events persisted, 8 producers, durable"
        rows.append(table.absolute("persisted", what, "events/s", written, 30_000, more_is_better=True))
        return rows

    def idle(self) -> list[Row]:
        """What an idle fleet costs."""
        fleet = self._fleet()
        fleet.scale(10)
        seconds = 5.0 if self.quick else 20.0
        time.sleep(5.0)
        shares, kinds = [], {}
        for _ in range(self.rounds):
            share, kinds = fleet.cpu_share(seconds)
            shares.append(share)
            self.say(f"  idle CPU {share:.2f} %: { {name: round(value, 2) for name, value in kinds.items()} }")
        memory = fleet.agent_memory_mb()
        parts = ", ".join(f"{name} {value:.2g} %" for name, value in sorted(kinds.items()))
        fleet.scale(AGENTS)
        return [
            table.absolute("agent_memory", "memory of an idle agent (USS)", "MB", memory, 60),
            table.absolute("idle_cpu", "idle fleet of 10 agents, CPU of a core", "%", shares, 3, note=parts),
        ]

    def start_up(self) -> list[Row]:
        """From nothing to the first accepted task, beside Ray and an empty Serve application."""
        number = iter(range(1000))

        def fleet() -> float:
            from tests.integration.support import temporary_home

            settings = f'claude_path = "{shutil.which("true")}"\n'
            with temporary_home(settings) as home:
                began = time.perf_counter()
                home.up()
                record = home.record()
                token = (home.home / "token").read_text().strip()
                port = int(record["url"].rpartition(":")[2])
                http = plan.Http(port, {"Authorization": f"Bearer {token}"})
                http.ask("POST", "/api/tasks", {"role": "qa_tester", "prompt": "x"})
                took = time.perf_counter() - began
                http.close()
                return took

        def ray() -> float:
            folder = Path(f"/tmp/flr{os.getpid()}{next(number)}")
            try:
                return empty.start(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        found = interleaved({"fleet": fleet, "Ray + empty Serve": ray}, min(self.rounds, 5), self.say)
        what = "`fleet up` to the first accepted task"
        return [table.compared("up", what, "s", found, "Ray + empty Serve", 1.5)]

    def router(self) -> list[Row]:
        """The router's core, and its start with a full queue."""
        from tests.bench import router_start

        try:
            from tests.bench import router_core
        except ImportError as error:
            rows = [table.missing("placement", "placement decision", str(error))]
        else:
            rows = list(getattr(router_core, "rows", lambda **_: [])(quick=self.quick))
        return rows + router_start.rows(self.folder, 50_000 if self.quick else 1_000_000, self.say)


PARTS = ("start_up", "router", "round_trip", "batch", "real_cli", "events", "idle")


def measure(only: list[str], rounds: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the parts; return `{"rows", "notes", "machine", …}`. A part that fails is said and the rest goes on."""
    folder = Path(tempfile.mkdtemp(prefix="flbench", dir="/tmp"))
    bench = Bench(folder, rounds, quick, say)
    rows: list[Row] = []
    try:
        for name in only or PARTS:
            say(f"{name}: {getattr(Bench, name).__doc__}")
            try:
                rows += getattr(bench, name)()
            except Exception as error:
                say(f"  failed: {type(error).__name__}: {error}")
                rows.append(table.missing(name, name, f"{type(error).__name__}: {str(error)[:300]}"))
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "rows": table.plain(rows),
        "markdown": table.markdown(rows),
        "notes": bench.notes,
        "rounds": rounds,
        "quick": quick,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="fleet bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="some of: " + ", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--quick", action="store_true", help="small counts: to see that it runs")
    given = parser.parse_args(arguments)
    only = [name for name in given.only.split(",") if name]
    if unknown := [name for name in only if name not in PARTS]:
        parser.error(f"--only: expected some of {', '.join(PARTS)}, but got {unknown[0]}")
    random.seed(1)
    found = measure(only, given.rounds, given.quick, lambda text: print(text, file=sys.stderr, flush=True))
    print(found["markdown"])
    for note in found["notes"]:
        print(f"- {note}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


__all__ = ["ROLE", "main", "measure"]

if __name__ == "__main__":
    main()
