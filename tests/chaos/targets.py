"""Finds the processes of a running fleet by what each is, and kills or freezes them."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from fleet.cluster import processes
from tests.chaos.node import SecondNode
from tests.integration.support import Home

RUN = "FLEET_RUN_ID"
GONE_S = 20.0
"""How long what belonged to a killed run is waited for; how long it took is in the report."""

WEIGHTS = {
    "claude": 26,
    "agent": 18,
    "guard": 12,
    "frozen": 10,
    "router": 8,
    "gateway": 6,
    "controller": 4,
    "store": 8,
    "raylet": 5,
    "head": 3,
}
"""Target → how often, in parts of the sum."""

SLOW = {"head": 5.0, "raylet": 6.0, "store": 3.0, "router": 3.0, "gateway": 2.0, "controller": 2.0}
"""Target → how long the next kill waits at least, in seconds; the others wait by chance."""


@dataclass
class Tally:
    """What was done.

    Attributes:
        kills: target → count.
        gone_s: how long the processes of killed runs lived on, worst first.
    """

    kills: dict[str, int] = field(default_factory=dict)
    gone_s: list[float] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.kills.values())


def title(process: psutil.Process) -> str:
    """Return the command line of a process, "" when it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def run_of(process: psutil.Process) -> str | None:
    """Return the run a process belongs to."""
    try:
        found = process.environ().get(RUN)
    except (psutil.Error, OSError):
        return None
    return str(found) if found else None


def of_run(run_id: str) -> list[psutil.Process]:
    """Return the processes of a run that are still running."""
    found = []
    for process in psutil.process_iter():
        if run_of(process) == run_id and processes.running(process):
            found.append(process)
    return found


IS: dict[str, Callable[[str], bool]] = {
    "claude": lambda line: "--session-mirror" in line and "guard.py" not in line,
    "guard": lambda line: "guard.py" in line,
    "agent": lambda line: re.match(r"ray::(\w+-\d+ \[|FleetAgent|Agent)", line) is not None,
    "router": lambda line: line.startswith("ray::ServeReplica:fleet:Router"),
    "gateway": lambda line: line.startswith("ray::ServeReplica:fleet:Gateway"),
    "controller": lambda line: line.startswith("ray::ServeController"),
    "store": lambda line: re.match(r"ray::(Store|fleet-store)", line) is not None,
}


class Injector:
    """Does harm, by chance, to one fleet."""

    def __init__(self, home: Home, node: SecondNode | None, chance: random.Random) -> None:
        self.home = home
        self.node = node
        self.chance = chance
        self.tally = Tally()
        self.frozen: list[tuple[float, psutil.Process]] = []
        self.watched: dict[str, float] = {}
        self.down_since: float | None = None

    def find(self, target: str) -> list[psutil.Process]:
        """Return the processes that are this target."""
        mark = str(self.home.home)
        found = []
        for process, instance in processes.tagged():
            if instance.rpartition("#")[0] == mark and IS[target](title(process)):
                found.append(process)
        # The tools of a run carry its variables; only the outermost of a kind counts.
        return sorted(found, key=lambda process: process.pid)

    @property
    def down(self) -> bool:
        """Whether the head that was killed last has not come back yet."""
        if self.down_since is None:
            return False
        with contextlib.suppress(OSError, ValueError):
            if self.home.record()["started_at"] != self.down_since:
                self.down_since = None
        return self.down_since is not None

    def strike(self) -> str | None:
        """Harm one target; return which, None when there was none of the one chosen."""
        if self.down:
            return None
        target = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if target == "head":
            return self._head()
        if target == "raylet":
            return self._raylet()
        if target == "frozen":
            return self._freeze()
        found = self.find(target)
        if not found:
            return None
        victim = self.chance.choice(found)
        self._watch(victim, target)
        with contextlib.suppress(psutil.Error):
            victim.kill()
            return self._count(target)
        return None

    def _count(self, target: str) -> str:
        self.tally.kills[target] = self.tally.kills.get(target, 0) + 1
        return target

    def _watch(self, victim: psutil.Process, target: str) -> None:
        """Remember the runs that end with a victim: everything of them must be gone soon."""
        if target in ("claude", "guard") and (run := run_of(victim)):
            self.watched.setdefault(run, time.monotonic())
        elif target == "agent":
            with contextlib.suppress(psutil.Error):
                for child in victim.children(recursive=True):
                    if run := run_of(child):
                        self.watched.setdefault(run, time.monotonic())

    def look(self) -> None:
        """See which of the killed runs are gone, and thaw what was frozen long enough."""
        now = time.monotonic()
        alive = {run for process, _ in processes.tagged() if (run := run_of(process)) and processes.running(process)}
        for run, since in list(self.watched.items()):
            if run not in alive:
                self.tally.gone_s.append(now - since)
                del self.watched[run]
            elif now - since > GONE_S:
                self.tally.left.append(f"{run}: {[title(process)[:120] for process in of_run(run)]}")
                del self.watched[run]
        for until, process in list(self.frozen):
            if now >= until:
                self.frozen.remove((until, process))
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)

    def thaw(self) -> None:
        """Let everything go on that is frozen."""
        for _, process in self.frozen:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        self.frozen.clear()

    def _freeze(self) -> str | None:
        found = self.find(self.chance.choice(("claude", "agent", "router", "store", "guard")))
        seconds = self.chance.uniform(1.0, 12.0)
        if not found:
            return None
        victim = self.chance.choice(found)
        with contextlib.suppress(psutil.Error):
            victim.send_signal(signal.SIGSTOP)
            self.frozen.append((time.monotonic() + seconds, victim))
            return self._count("frozen")
        return None

    def _raylet(self) -> str | None:
        if self.node is None or not self.node.kill():
            return None
        return self._count("raylet")

    def _head(self) -> str | None:
        """Kill the whole head at once: everything below the keeper, but not the keeper."""
        try:
            keeper = psutil.Process(self.home.record()["pid"])
            victims = keeper.children(recursive=True)
            self.down_since = self.home.record()["started_at"]
        except (psutil.Error, OSError, ValueError):
            return None
        self.thaw()
        processes.kill(victims)
        return self._count("head")
