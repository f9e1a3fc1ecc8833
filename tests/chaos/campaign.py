"""One chaos run: a fleet of its own, a driver, an injector, and at the end the checker."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.claude.locate import bundled_claude
from fleet.rehearsal import standin
from tests.chaos import checker
from tests.chaos.driver import Away, Driver, Rest
from tests.chaos.jobs import Ledger
from tests.chaos.node import SecondNode
from tests.chaos.targets import SLOW, Injector
from tests.integration.support import Home, temporary_home

UNFINISHED = 10
END_S = 600.0
"""How long the last tasks may take after the last kill."""
MEAN_PAUSE_S = 1.2

SETTINGS = """
lease_s = 8
node_floor_mb = 0
rehearsal_faults = "429:0.02,500:0.02,529:0.02,cut:0.03,malformed:0.01,seed={seed}"
[roles.code_reviewer]
agents = 0
[roles.api_developer]
agents = 0
[roles.qa_tester]
agents = 0
[roles.quick]
prompt = "You are quick."
tools = ["Bash", "Read", "Write", "Edit"]
agents = 3
retries = 50
cpus = 0.1
memory_mb = 200
silence_limit_s = 60
[roles.real]
prompt = "You are real."
tools = ["Bash", "Read", "Write", "Edit"]
agents = 1
retries = 50
cpus = 0.1
memory_mb = 400
silence_limit_s = 60
"""


@dataclass
class Report:
    """What came of it."""

    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def text(self) -> str:
        """Return it for people."""
        lines = [f"seed {self.seed}: {self.total} kills"]
        lines += [f"  {name:12} {count}" for name, count in sorted(self.kills.items(), key=lambda item: -item[1])]
        lines += [f"  {name}: {json.dumps(value)}" for name, value in self.figures.items()]
        lines.append(f"{len(self.broken)} broken promises")
        return "\n".join([*lines, *(f"  {line}" for line in self.broken)])


def executables(folder: Path) -> Path:
    """Write the `claude` of this run: the real one for agents of the role `real`, else the stand-in."""
    quick = standin.install(folder / "standin")
    real = bundled_claude()
    path = folder / "claude"
    path.write_text(
        f'#!/bin/sh\ncase "$FLEET_AGENT_ID" in real-*) exec "{real}" "$@";; *) exec "{quick}" "$@";; esac\n'
    )
    path.chmod(0o755)
    return path


def run(kills: int, seed: int, *, second_node: bool = False, say: Callable[[str], None] = print) -> Report:
    """Do so many kills and return what came of it."""
    report = Report(seed)
    with temporary_home(SETTINGS.format(seed=seed)) as home:
        with (home.work / "fleet.toml").open("r+") as file:
            text = file.read()
            file.seek(0)
            file.write(f'claude_path = "{executables(home.folder)}"\n{text}')
        home.up()
        node = SecondNode(home) if second_node else None
        try:
            _campaign(home, node, kills, seed, report, say)
        finally:
            if node is not None:
                node.stop()
        if report.broken:
            kept = Path(tempfile.mkdtemp(prefix="fleet-chaos-"))
            shutil.copytree(home.folder, kept, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            say(f"kept in {kept}")
        # Also checks that no process is left.
        home.down()
    return report


def _campaign(
    home: Home, node: SecondNode | None, kills: int, seed: int, report: Report, say: Callable[[str], None]
) -> None:
    chance = random.Random(f"injector {seed}")
    folder = home.work / "effects"
    folder.mkdir()
    rest = Rest(home)
    ledger = Ledger(home.folder / "ledger.jsonl")
    driver = Driver(rest, ledger, folder, seed, UNFINISHED)
    injector = Injector(home, node, chance)
    started = time.monotonic()
    driver.start()
    next_at = time.monotonic() + 5.0
    while injector.tally.total < kills:
        if driver.error is not None:
            raise driver.error
        injector.look()
        if node is not None:
            node.keep()
        if time.monotonic() >= next_at:
            target = injector.strike()
            if target is not None:
                total = injector.tally.total
                say(f"{time.monotonic() - started:6.1f} s  {total:3}/{kills} {target}  acknowledged={len(ledger.ids)}")
            next_at = time.monotonic() + SLOW.get(target or "", 0.0) + chance.expovariate(1 / MEAN_PAUSE_S)
        time.sleep(0.1)
    say("the last kill is done; waiting for the tasks")
    driver.enough.set()
    driver.join(120)
    harmed_s = time.monotonic() - started
    _settle(rest, injector, node, ledger, say)
    report.kills = injector.tally.kills
    verdict = _check(rest, ledger, folder)
    report.broken += ledger.faults + verdict.broken
    report.broken += [f"processes of a killed run lived on: {left}" for left in injector.tally.left]
    gone = sorted(injector.tally.gone_s, reverse=True)
    report.figures = {
        **verdict.figures,
        "seconds": round(harmed_s, 1),
        "outages": len(driver.outages),
        "longest_outage_s": round(max(driver.outages, default=0.0), 1),
        "killed_runs_watched": len(gone),
        "gone_after_s": {"worst": round(gone[0], 1), "median": round(gone[len(gone) // 2], 1)} if gone else {},
    }


def _settle(
    rest: Rest, injector: Injector, node: SecondNode | None, ledger: Ledger, say: Callable[[str], None]
) -> None:
    """Wait until nothing is left to do."""
    deadline, last = time.monotonic() + END_S, -1
    query = (
        "select state, count(*) as n from task where state not in ('succeeded','failed','cancelled','dead') group by 1"
    )
    while time.monotonic() < deadline:
        injector.look()
        if node is not None:
            node.keep()
        try:
            left = {row["state"]: row["n"] for row in rest.rows(query)}
        except Away:
            left = {"away": -1}
        if not left and not injector.watched and not injector.frozen:
            return
        if sum(left.values()) != last:
            last = sum(left.values())
            say(f"left: {left}")
        time.sleep(0.5)
    ledger.faults.append(f"not all tasks ended within {END_S:.0f} s of the last kill: {left}")


def _check(rest: Rest, ledger: Ledger, folder: Path) -> checker.Verdict:
    deadline = time.monotonic() + 120
    while True:
        try:
            tasks, runs = rest.rows(checker.TASKS), rest.rows(checker.RUNS)
            results, restarted = rest.rows(checker.RESULTS), rest.rows(checker.RESTARTED)
            break
        except Away:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    effects = {file.name: file.read_text().split() for file in folder.iterdir() if file.is_file()}
    return checker.check(
        ledger.jobs, ledger.ids, ledger.cancelled, tasks, runs, results, {row["run_id"] for row in restarted}, effects
    )
