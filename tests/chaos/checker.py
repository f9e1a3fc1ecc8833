"""Compares what was promised with what is there: the ledger, the final tables, the files that the jobs wrote. Pure.

It knows the words of the README (task, run, result and their states), nothing of how the fleet works.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.jobs import STEPS, Job

FINAL = {"succeeded", "failed", "cancelled", "dead"}
Row = Mapping[str, Any]

TASKS = "select id, state, reason, detail, run_id, number_of_runs, losses, idempotency_key from task"
RUNS = (
    "select id, task_id, number, agent_id, state, reason, resumed_from, epoch_us(started_at) as started, "
    "epoch_us(finished_at) as finished from run"
)
RESULTS = "select task_id, run_id from result"
RESTARTED = "select distinct run_id from event where kind = 'state' and type = 'restarted'"


@dataclass
class Verdict:
    """What the checker found.

    Attributes:
        broken: broken promises; none is the proof.
        figures: counts for the report.
    """

    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def check(
    jobs: Mapping[str, Job],
    ids: Mapping[str, str],
    cancelled: set[str],
    tasks: Sequence[Row],
    runs: Sequence[Row],
    results: Sequence[Row],
    restarted: set[str],
    effects: Mapping[str, Sequence[str]],
) -> Verdict:
    """Compare.

    Args:
        jobs: key → job, of all that was acknowledged.
        ids: key → the id that was acknowledged.
        cancelled: keys whose cancel was acknowledged.
        tasks: rows of TASKS.
        runs: rows of RUNS.
        results: rows of RESULTS.
        restarted: ids of runs that said that they began from the prompt again.
        effects: name of a file (`KEY.STEP`) → its lines, ids of runs.
    """
    verdict = Verdict()
    say = verdict.broken.append
    rows = _by(tasks, "id")
    keys = Counter(row["idempotency_key"] for row in tasks if row["idempotency_key"])
    for key, count in keys.items():
        if count > 1:
            say(f"{key}: {count} tasks were made for one idempotency key")
    results_of, runs_of = _by(results, "task_id"), _by(runs, "task_id")
    for key, id in ids.items():
        found = rows.get(id, [])
        if len(found) != 1:
            say(f"{key}: the acknowledged task {id} has {len(found)} rows")
            continue
        _check_task(key, found[0], results_of.get(id, []), runs_of.get(id, []), key in cancelled, say)
        _check_effects(key, found[0], runs_of.get(id, []), restarted, effects, say)
    known = {id for id in ids.values()}
    verdict.figures = {
        "acknowledged": len(ids),
        "states": dict(Counter(row["state"] for row in tasks if row["id"] in known)),
        "reasons": dict(Counter(row["reason"] for row in tasks if row["id"] in known and row["reason"])),
        "runs": len(runs),
        "run_states": dict(Counter(row["state"] for row in runs)),
        "runs_resumed": sum(1 for row in runs if row["resumed_from"]),
        "runs_restarted": len(restarted),
        "most_runs_of_a_task": max((len(found) for found in runs_of.values()), default=0),
        "effects": sum(len(lines) for lines in effects.values()),
    }
    return verdict


def _by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return found


def _check_task(key: str, task: Row, results: Sequence[Row], runs: Sequence[Row], cancelled: bool, say: Any) -> None:
    name = f"{key} ({task['id']})"
    if task["state"] not in FINAL:
        say(f"{name}: lost in the state {task['state']}")
    wanted = 1 if task["state"] == "succeeded" else 0
    if len(results) != wanted:
        say(f"{name}: {task['state']} with {len(results)} results")
    if task["state"] in ("failed", "dead") or (task["state"] == "cancelled" and not cancelled):
        say(f"{name}: {task['state']} for {task['reason']}: {task['detail']}")
    succeeded = [run for run in runs if run["state"] == "succeeded"]
    if len(succeeded) != wanted:
        say(f"{name}: {task['state']} with {len(succeeded)} succeeded runs")
    for result in results:
        if succeeded and result["run_id"] != succeeded[0]["id"]:
            say(f"{name}: its result is of run {result['run_id']}, its succeeded run is {succeeded[0]['id']}")
    ordered = sorted(runs, key=lambda run: run["number"])
    if [run["number"] for run in ordered] != list(range(1, len(ordered) + 1)):
        say(f"{name}: its runs have the numbers {[run['number'] for run in ordered]}")
    for run in ordered:
        if run["finished"] is None or run["state"] == "running":
            say(f"{name}: run {run['id']} did not end ({run['state']})")
    for before, after in itertools.pairwise(ordered):
        if before["finished"] is not None and after["started"] < before["finished"]:
            late = (before["finished"] - after["started"]) / 1e6
            say(f"{name}: run {after['number']} began {late:.3f} s before run {before['number']} had ended")


def _check_effects(
    key: str,
    task: Row,
    runs: Sequence[Row],
    restarted: set[str],
    effects: Mapping[str, Sequence[str]],
    say: Any,
) -> None:
    name = f"{key} ({task['id']})"
    by_id = {run["id"]: run for run in runs}
    for step in range(1, STEPS + 1):
        lines = effects.get(f"{key}.{step}", [])
        for run_id, count in Counter(lines).items():
            if run_id not in by_id:
                say(f"{name}: step {step} was done by {run_id}, which is none of its runs")
            elif count > 1:
                say(f"{name}: run {by_id[run_id]['number']} did step {step} {count} times")
        if task["state"] == "succeeded" and not lines:
            say(f"{name}: succeeded, but step {step} was never done")
        for run_id in set(lines) & set(by_id):
            for earlier in _went_on_from(run_id, by_id, restarted):
                if earlier in lines:
                    say(
                        f"{name}: run {by_id[run_id]['number']} went on from run {by_id[earlier]['number']} "
                        f"and did its step {step} again"
                    )


def _went_on_from(run_id: str, by_id: Mapping[str, Row], restarted: set[str]) -> list[str]:
    """Return the runs whose conversation a run went on with."""
    found: list[str] = []
    while run_id not in restarted and (before := by_id[run_id]["resumed_from"]) and before in by_id:
        if before in found:
            break
        found.append(before)
        run_id = before
    return found
