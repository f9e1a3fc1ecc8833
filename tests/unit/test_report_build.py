"""The report, over the real schema: rows written by the store's core, asked through its guard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.lifecycle import RunState, TaskState
from fleet.models import Batch, Event, EventKind, QueryResult, Run, Task, Usage
from fleet.reasons import RULES, Reason
from fleet.report import render
from fleet.report.build import DAY_S, Report, build_report, parse_span, wilson
from fleet.store.database import CommitOp, Database, EventsOp
from fleet.store.queries import Queries

NOW = 1_800_000_000.0


class History:
    """A store with what the tests say happened."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.queries = Queries(self.database)
        self.number = 0

    def query(self, sql: str) -> QueryResult:
        return self.queries.rows(sql, 10_000, 30.0)

    def task(self, state: TaskState = TaskState.SUCCEEDED, *, ago: float = 600.0, **changes: Any) -> Task:
        """Write a task with its last run, that ended `ago` seconds before now."""
        self.number += 1
        ended = NOW - ago
        role, cost = changes.pop("role", "qa"), changes.pop("cost_usd", 0.0)
        values = {
            "id": f"t-{self.number:03}",
            "role": role,
            "prompt": "p",
            "state": state,
            "created_at": ended - 100,
            "queued_at": ended - 90,
            "started_at": ended - 60,
            "finished_at": ended if state.final else None,
            "updated_at": ended,
            "run_id": f"r-{self.number:03}",
            **changes,
        }
        task = Task(**values)
        runs = []
        if task.started_at is not None:
            runs.append(
                Run(
                    id=f"r-{self.number:03}",
                    task_id=task.id,
                    number=1,
                    role=role,
                    agent_id=f"{role}-1",
                    incarnation=1,
                    epoch=0,
                    state={TaskState.SUCCEEDED: RunState.SUCCEEDED, TaskState.RUNNING: RunState.RUNNING}.get(
                        state, RunState.FAILED
                    ),
                    reason=task.reason,
                    cost_usd=cost,
                    usage=Usage(input_tokens=10, output_tokens=5),
                    started_at=task.started_at,
                    finished_at=task.finished_at,
                )
            )
        self.write(Batch(tasks=(task,), runs=tuple(runs)))
        return task

    def write(self, batch: Batch) -> None:
        assert self.database.write([CommitOp(0, batch)]) == [None]

    def report(self, since_s: float = DAY_S) -> Report:
        return build_report(self.query, since_s, NOW)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "fleet.duckdb")
    yield made
    made.database.close()


def test_an_empty_fleet_has_an_empty_report(history: History) -> None:
    report = history.report()
    assert report.empty and not report.failures and not report.waits and not report.flaky
    assert report.cost.usd == 0 and report.cost.median_usd is None
    text = render.to_text(report)
    assert "Nothing ran" in text and "Nothing failed." in text
    assert "Nothing ran" in render.to_html(report)


def test_roles_are_counted_in_the_span_only(history: History) -> None:
    history.task(cost_usd=0.5)
    history.task(TaskState.DEAD, reason=Reason.OVERLOADED, cost_usd=0.25)
    history.task(TaskState.RUNNING, finished_at=None)
    history.task(ago=2 * DAY_S, cost_usd=9.0)
    history.task(role="dev")
    dev, qa = history.report().roles
    assert (dev.role, dev.succeeded, dev.runs) == ("dev", 1, 1)
    assert (qa.succeeded, qa.dead, qa.failed, qa.open, qa.runs) == (1, 1, 0, 1, 2)
    assert qa.cost_usd == 0.75 and qa.tokens == 30
    assert qa.median_run_s == pytest.approx(60.0) and qa.median_wait_s == pytest.approx(30.0)


def test_failures_come_with_their_remedy_and_newest_tasks(history: History) -> None:
    old = history.task(TaskState.FAILED, reason=Reason.BAD_WORKSPACE, detail="no such folder", ago=900)
    new = history.task(TaskState.FAILED, reason=Reason.BAD_WORKSPACE, detail="not a repository", ago=300)
    (failure,) = history.report().failures
    assert (failure.final, failure.retried) == (2, 0)
    assert failure.examples == (new.id, old.id)
    assert failure.detail == "not a repository"
    assert failure.remedy == RULES[Reason.BAD_WORKSPACE].remedy
    text = render.to_text(history.report())
    assert failure.remedy in text and new.id in text


def test_runs_that_were_tried_again_are_told_apart(history: History) -> None:
    task = history.task(retries_used=1)
    lost = Run(
        id="r-lost",
        task_id=task.id,
        number=1,
        role="qa",
        agent_id="qa-1",
        incarnation=1,
        epoch=0,
        state=RunState.LOST,
        reason=Reason.AGENT_LOST,
        started_at=NOW - 500,
        finished_at=NOW - 400,
    )
    history.write(Batch(runs=(lost,)))
    (failure,) = history.report().failures
    assert (failure.reason, failure.final, failure.retried, failure.examples) == ("agent_lost", 0, 1, ())


def test_cost_is_set_against_the_median_of_the_seven_days_before(history: History) -> None:
    for day, usd in ((1.5, 1.0), (2.5, 2.0), (4.5, 3.0), (30.0, 100.0)):
        history.task(ago=day * DAY_S, cost_usd=usd)
    history.task(ago=60, cost_usd=6.0)
    cost = history.report().cost
    # Days since the first run of the week: 3.0, none, 2.0, 1.0.
    assert cost.days == (3.0, 0.0, 2.0, 1.0)
    assert cost.median_usd == 1.5
    assert cost.usd == 6.0 and cost.per_day_usd == 6.0
    assert "4.0 times" in cost.verdict and "unusually much" in cost.verdict
    assert history.report(since_s=DAY_S / 2).cost.per_day_usd == 12.0


def test_slowest_waits_include_those_that_still_wait(history: History) -> None:
    history.task(queued_at=NOW - 660 - 300)
    waiting = history.task(
        TaskState.QUEUED, queued_at=NOW - 5000, started_at=None, why="No idle agent of qa.", priority=9
    )
    history.task(queued_at=NOW - 660.1)
    first, second = history.report().waits
    assert (first.task, first.waiting, first.priority) == (waiting.id, True, 9)
    assert first.wait_s == pytest.approx(5000.0) and first.why == "No idle agent of qa."
    assert second.wait_s == pytest.approx(300.0) and not second.waiting


def test_a_flaky_role_is_named_with_its_interval(history: History) -> None:
    for _ in range(3):
        history.task()
    history.task(TaskState.FAILED, reason=Reason.TIME_LIMIT)
    for _ in range(10):
        history.task(role="steady")
    for _ in range(2):
        history.task(TaskState.DEAD, role="rare", reason=Reason.SILENT)
    (flaky,) = history.report().flaky
    assert (flaky.role, flaky.tasks, flaky.unsteady, flaky.reasons) == ("qa", 4, 1, ("time_limit",))
    assert flaky.low < flaky.share == 0.25 < flaky.high


def test_tools_that_failed_are_counted(history: History) -> None:
    history.task()
    call = {"message": {"content": [{"type": "tool_use", "id": "u1", "name": "Bash", "input": {"command": "false"}}]}}
    answer = {"message": {"content": [{"type": "tool_result", "tool_use_id": "u1", "content": "x", "is_error": True}]}}
    events = [
        Event(
            run_id="r-001",
            task_id="t-001",
            agent_id="qa-1",
            seq=seq,
            at=NOW - 100,
            kind=EventKind.FRAME,
            type=kind,
            payload={"type": kind, **payload},
        )
        for seq, (kind, payload) in enumerate((("assistant", call), ("user", answer)))
    ]
    import json

    history.database.write([EventsOp(events, [json.dumps(event.payload) for event in events])])
    (tool,) = history.report().tools
    assert (tool.role, tool.tool, tool.calls, tool.failed) == ("qa", "Bash", 1, 1)


def test_html_escapes_what_tasks_say_and_needs_nothing_else(history: History) -> None:
    history.task(TaskState.FAILED, reason=Reason.CLAUDE_ERROR, detail="<script>alert(1)</script>", ago=60, cost_usd=1)
    history.task(ago=3 * DAY_S, cost_usd=1)
    html = render.to_html(history.report())
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "src=" not in html and "href=" not in html and "<svg" in html


def test_the_dict_is_json(history: History) -> None:
    import json

    history.task(TaskState.FAILED, reason=Reason.CLAUDE_ERROR)
    data = json.loads(json.dumps(render.to_dict(history.report())))
    assert data["roles"][0]["failed"] == 1 and data["since"].endswith("Z")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("24h", DAY_S), ("7d", 7 * DAY_S), ("1.5h", 5400), ("2w", 14 * DAY_S)]
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0h", "1y", "24h; DROP"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a span"):
        parse_span(text)


def test_wilson_interval() -> None:
    low, high = wilson(5, 10)
    assert (round(low, 3), round(high, 3)) == (0.237, 0.763)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (DAY_S, "1 d"), (None, "–")],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text
