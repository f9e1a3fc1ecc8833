"""Makes a report by asking the store's views; the asking itself is the caller's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any

from fleet.lifecycle import TaskState
from fleet.models import Instant, Model, QueryResult
from fleet.reasons import RULES, Reason

DAY_S = 86_400.0
HISTORY_DAYS = 7
SHOWN = 10
"""Rows of each list that may be long."""
EXAMPLES = 3
FLAKY_SHARE, FLAKY_TASKS = 0.1, 3
"""A role is flaky when at least this share of at least this many ended tasks failed or needed more than one run."""
LOW_COST, HIGH_COST = 0.5, 1.5
"""Cost per day against the median: what is said to be unusual."""


class RoleLine(Model):
    """What one role did. Tasks count when they ended, or are open, in the span; costs and runs when the run ended."""

    role: str
    succeeded: int
    failed: int
    dead: int
    cancelled: int
    open: int
    runs: int
    cost_usd: float
    tokens: int
    median_wait_s: float | None
    median_run_s: float | None


class Failure(Model):
    """Tasks that did not succeed, for one reason.

    Attributes:
        final: tasks that ended so.
        retried: runs that ended so and were tried again.
        examples: ids of the newest tasks.
        detail: what the newest one said.
    """

    role: str
    reason: str
    sentence: str
    remedy: str
    final: int
    retried: int
    examples: tuple[str, ...]
    detail: str


class Cost(Model):
    """What the span cost.

    Attributes:
        per_day_usd: the cost brought to 24 hours.
        median_usd: the median day of the 7 days before the span; None without such days.
        days: cost of each of them, oldest first; days before the first run are left out.
        verdict: one sentence.
    """

    usd: float
    per_day_usd: float
    median_usd: float | None
    days: tuple[float, ...]
    verdict: str


class Wait(Model):
    """A task that waited long for its agent; `waiting` when it still does."""

    task: str
    role: str
    priority: int
    wait_s: float
    waiting: bool
    why: str


class Flaky(Model):
    """How often a role's tasks went wrong.

    Attributes:
        unsteady: ended tasks that failed or needed more than one run.
        low: lower end of the 95 % interval of the share (Wilson).
        high: its upper end.
        reasons: the most frequent reasons of its failed runs.
    """

    role: str
    tasks: int
    unsteady: int
    share: float
    low: float
    high: float
    reasons: tuple[str, ...]


class ToolLine(Model):
    """A tool whose calls failed."""

    role: str
    tool: str
    calls: int
    failed: int


class Report(Model):
    """What happened from `since` to `until`."""

    since: Instant
    until: Instant
    roles: tuple[RoleLine, ...]
    failures: tuple[Failure, ...]
    cost: Cost
    waits: tuple[Wait, ...]
    flaky: tuple[Flaky, ...]
    tools: tuple[ToolLine, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing ran and nothing waits."""
        return not self.roles


Query = Callable[[str], QueryResult]

SPAN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*$")
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


def parse_span(text: str) -> float:
    """Return the seconds of `90s`, `30m`, `24h`, `7d` or `2w`. Raises ValueError."""
    found = SPAN.match(text)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"expected a span such as 30m, 24h, 7d or 2w, got {text!r}")
    return float(found[1]) * UNITS_S[found[2]]


def build_report(query: Query, since_s: float, now: float) -> Report:
    """Return the report of the last `since_s` seconds.

    Args:
        query: runs one SELECT; `Fleet.sql` and `Store.sql` do.
        since_s: the length of the span in seconds.
        now: its end, seconds since the epoch.
    """
    since = now - since_s
    reasons = _run_failures(query, since)
    return Report(
        since=since,
        until=now,
        roles=_roles(query, since),
        failures=_failures(query, since, reasons),
        cost=_cost(query, since, now),
        waits=_waits(query, since, now),
        flaky=_flaky(query, since, reasons),
        tools=_tools(query, since),
    )


def wilson(successes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a share: sound for few tries and shares near 0 or 1."""
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def _at(seconds: float) -> str:
    """Return a time as a literal: columns are compared with it as they are, so that old parts are skipped."""
    return f"TIMESTAMP '{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S.%f}'"


def _rows(query: Query, sql: str) -> list[dict[str, Any]]:
    answer = query(" ".join(sql.split()))
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


FINAL = "('" + "', '".join(sorted(state.value for state in TaskState if state.final)) + "')"


def _roles(query: Query, since: float) -> tuple[RoleLine, ...]:
    tasks = _rows(
        query,
        f"""
        SELECT role,
            count(*) FILTER (state = 'succeeded') AS succeeded,
            count(*) FILTER (state = 'failed') AS failed,
            count(*) FILTER (state = 'dead') AS dead,
            count(*) FILTER (state = 'cancelled') AS cancelled,
            count(*) FILTER (state NOT IN {FINAL}) AS still_open,
            median(wait_s) FILTER (wait_s IS NOT NULL) AS median_wait_s,
            median(run_s) FILTER (run_s IS NOT NULL) AS median_run_s
        FROM tasks WHERE state NOT IN {FINAL} OR finished_at >= {_at(since)}
        GROUP BY role
        """,
    )
    costs = _rows(
        query,
        f"""
        SELECT role, count(*) AS runs, sum(cost_usd) AS cost_usd,
            sum(input_tokens + output_tokens + cache_read_tokens + cache_write_tokens) AS tokens
        FROM runs WHERE finished_at >= {_at(since)} GROUP BY role
        """,
    )
    by_role = {row["role"]: row for row in tasks}
    spent = {row["role"]: row for row in costs}
    return tuple(
        RoleLine(
            role=role,
            **{
                name: int(by_role.get(role, {}).get(name) or 0) for name in ("succeeded", "failed", "dead", "cancelled")
            },
            open=int(by_role.get(role, {}).get("still_open") or 0),
            runs=int(spent.get(role, {}).get("runs") or 0),
            cost_usd=float(spent.get(role, {}).get("cost_usd") or 0.0),
            tokens=int(spent.get(role, {}).get("tokens") or 0),
            median_wait_s=by_role.get(role, {}).get("median_wait_s"),
            median_run_s=by_role.get(role, {}).get("median_run_s"),
        )
        for role in sorted({*by_role, *spent})
    )


def _run_failures(query: Query, since: float) -> list[dict[str, Any]]:
    return _rows(
        query,
        f"""
        SELECT role, coalesce(reason, 'unknown') AS reason, count(*) AS runs
        FROM runs WHERE finished_at >= {_at(since)} AND state IN ('failed', 'lost')
        GROUP BY ALL ORDER BY runs DESC, role, reason
        """,
    )


def _failures(query: Query, since: float, runs: list[dict[str, Any]]) -> tuple[Failure, ...]:
    tasks = _rows(
        query,
        f"""
        SELECT role, coalesce(reason, 'unknown') AS reason, count(*) AS tasks,
            array_to_string(list(id ORDER BY finished_at DESC)[1:{EXAMPLES}], ' ') AS examples,
            arg_max(detail, finished_at) AS detail
        FROM tasks WHERE finished_at >= {_at(since)} AND state IN ('failed', 'dead') GROUP BY ALL
        """,
    )
    ended = {(row["role"], row["reason"]): row for row in tasks}
    tried = {(row["role"], row["reason"]): int(row["runs"]) for row in runs}
    found = []
    for role, reason in {**tried, **ended}:
        row = ended.get((role, reason), {})
        rule = RULES[Reason(reason)] if reason in set(Reason) else None
        final = int(row.get("tasks", 0))
        found.append(
            Failure(
                role=role,
                reason=reason,
                sentence=rule.sentence if rule else "It ended for a reason that was not recorded.",
                remedy=rule.remedy if rule else "Look at the run's last events.",
                final=final,
                retried=max(0, tried.get((role, reason), 0) - final),
                examples=tuple(str(row.get("examples") or "").split()),
                detail=str(row.get("detail") or ""),
            )
        )
    return tuple(sorted(found, key=lambda one: (-one.final, -one.retried, one.role, one.reason)))


def _cost(query: Query, since: float, now: float) -> Cost:
    first = since - HISTORY_DAYS * DAY_S
    rows = _rows(
        query,
        f"""
        SELECT CAST(floor((epoch(finished_at) - {first!r}) / {DAY_S}) AS INTEGER) AS day, sum(cost_usd) AS usd
        FROM runs WHERE finished_at >= {_at(first)} AND finished_at < {_at(since)} GROUP BY day ORDER BY day
        """,
    )
    spent = _rows(query, f"SELECT coalesce(sum(cost_usd), 0) AS usd FROM runs WHERE finished_at >= {_at(since)}")
    usd = float(spent[0]["usd"]) if spent else 0.0
    by_day = {int(row["day"]): float(row["usd"] or 0.0) for row in rows}
    # A day without runs cost nothing and counts; days before the fleet's first run in these 7 do not.
    days = tuple(by_day.get(day, 0.0) for day in range(min(by_day), HISTORY_DAYS)) if by_day else ()
    per_day = usd / ((now - since) / DAY_S)
    usual = median(days) if days else None
    return Cost(usd=usd, per_day_usd=per_day, median_usd=usual, days=days, verdict=_verdict(per_day, usual, len(days)))


def _verdict(per_day: float, usual: float | None, days: int) -> str:
    if usual is None:
        return "There are no earlier days to compare with."
    span = f"the median of the {days} day{'s' if days != 1 else ''} before"
    if usual == 0:
        return f"{span[0].upper()}{span[1:]} cost nothing." if per_day else f"Nothing, as {span}."
    ratio = per_day / usual
    if ratio > HIGH_COST:
        return f"{ratio:.1f} times {span}: unusually much."
    if ratio < LOW_COST:
        return f"{ratio:.1f} times {span}: unusually little."
    return f"{ratio:.1f} times {span}: as usual."


def _waits(query: Query, since: float, now: float) -> tuple[Wait, ...]:
    rows = _rows(
        query,
        f"""
        SELECT id, role, priority, why, state = 'queued' AS waiting,
            CASE WHEN state = 'queued' THEN {now!r} - epoch(queued_at) ELSE wait_s END AS seconds
        FROM tasks WHERE (state = 'queued' OR started_at >= {_at(since)}) AND queued_at IS NOT NULL
        ORDER BY seconds DESC NULLS LAST LIMIT {SHOWN}
        """,
    )
    return tuple(
        Wait(
            task=row["id"],
            role=row["role"],
            priority=row["priority"],
            wait_s=max(0.0, float(row["seconds"])),
            waiting=bool(row["waiting"]),
            why=row["why"] or "",
        )
        for row in rows
        if row["seconds"] is not None and float(row["seconds"]) >= 1.0
    )


def _flaky(query: Query, since: float, runs: list[dict[str, Any]]) -> tuple[Flaky, ...]:
    rows = _rows(
        query,
        f"""
        SELECT role, count(*) AS ended,
            count(*) FILTER (state <> 'succeeded' OR retries_used + losses > 0) AS unsteady
        FROM tasks WHERE finished_at >= {_at(since)} AND state IN ('succeeded', 'failed', 'dead') GROUP BY role
        """,
    )
    found = []
    for row in rows:
        tasks, unsteady = int(row["ended"]), int(row["unsteady"])
        if tasks < FLAKY_TASKS or unsteady / tasks < FLAKY_SHARE:
            continue
        low, high = wilson(unsteady, tasks)
        reasons = tuple(one["reason"] for one in runs if one["role"] == row["role"])[:EXAMPLES]
        found.append(
            Flaky(
                role=row["role"],
                tasks=tasks,
                unsteady=unsteady,
                share=unsteady / tasks,
                low=low,
                high=high,
                reasons=reasons,
            )
        )
    return tuple(sorted(found, key=lambda one: (-one.share, one.role)))


def _tools(query: Query, since: float) -> tuple[ToolLine, ...]:
    rows = _rows(
        query,
        f"""
        SELECT role, tool, count(*) AS calls, count(*) FILTER (failed) AS failures
        FROM tool_calls WHERE time >= {_at(since)} GROUP BY ALL HAVING failures > 0
        ORDER BY failures DESC, role, tool LIMIT {SHOWN}
        """,
    )
    return tuple(
        ToolLine(role=row["role"] or "", tool=row["tool"] or "", calls=int(row["calls"]), failed=int(row["failures"]))
        for row in rows
    )
