"""A report as plain text, as one HTML file that needs nothing else, or as a dict. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from fleet.models import iso
from fleet.report.build import Report

DETAIL_LIMIT = 160
NUMBER = re.compile(r"|–|\$?[\d,.]+%?( (s|min|h|d)( \d+ (s|min|h))?| to \d+%)?")
"""A cell that stands on the right: a count, money, a share, a duration, an interval, or nothing."""
WHOLE = frozenset({"task", "newest tasks"})
"""Columns whose cells are not broken: ids."""


def duration(seconds: float | None) -> str:
    """Return a duration as people say it: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, small, small_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def money(usd: float) -> str:
    """Return US dollars, with enough digits for what a small run costs."""
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON shows it."""
    return report.model_dump(mode="json")


def _sections(report: Report) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """Return title, sentence, headings and rows of each section, alike for text and HTML."""
    roles = [
        [
            one.role,
            *map(str, (one.succeeded, one.failed, one.dead, one.cancelled, one.open, one.runs)),
            money(one.cost_usd),
            f"{one.tokens:,}",
            duration(one.median_wait_s),
            duration(one.median_run_s),
        ]
        for one in report.roles
    ]
    if len(roles) > 1:
        total = [
            sum(getattr(one, name) for one in report.roles)
            for name in ("succeeded", "failed", "dead", "cancelled", "open", "runs")
        ]
        roles.append(
            [
                "all",
                *map(str, total),
                money(sum(one.cost_usd for one in report.roles)),
                f"{sum(one.tokens for one in report.roles):,}",
                "",
                "",
            ]
        )
    failures = [
        [
            one.role,
            one.reason,
            str(one.final),
            str(one.retried),
            one.sentence,
            one.remedy,
            "\n".join(one.examples),
            _cut(one.detail),
        ]
        for one in report.failures
    ]
    cost = report.cost
    usual = money(cost.median_usd) if cost.median_usd is not None else "–"
    return [
        (
            "What ran",
            "" if roles else "Nothing ran and nothing waits.",
            [
                "role",
                "succeeded",
                "failed",
                "dead",
                "cancelled",
                "open",
                "runs",
                "cost",
                "tokens",
                "median wait",
                "median run",
            ],
            roles,
        ),
        (
            "What failed, and what to do",
            "" if failures else "Nothing failed.",
            ["role", "reason", "tasks", "runs tried again", "what happened", "what to do", "newest tasks", "it said"],
            failures,
        ),
        (
            "Cost",
            f"{money(cost.usd)} in all, {money(cost.per_day_usd)} per day; median day {usual}. {cost.verdict}",
            [],
            [],
        ),
        (
            "Slowest waits",
            "" if report.waits else "No task waited for a second.",
            ["task", "role", "priority", "wait", "", "why"],
            [
                [one.task, one.role, str(one.priority), duration(one.wait_s), "waits" if one.waiting else "", one.why]
                for one in report.waits
            ],
        ),
        (
            "Flaky roles",
            "" if report.flaky else "None: fewer than a tenth of each role's tasks failed or needed a second run.",
            ["role", "tasks", "failed or rerun", "share", "95 % interval", "mostly"],
            [
                [
                    one.role,
                    str(one.tasks),
                    str(one.unsteady),
                    f"{one.share:.0%}",
                    f"{one.low:.0%} to {one.high:.0%}",
                    ", ".join(one.reasons),
                ]
                for one in report.flaky
            ],
        ),
        (
            "Tools that failed",
            "" if report.tools else "None.",
            ["role", "tool", "calls", "failed"],
            [[one.role, one.tool, str(one.calls), str(one.failed)] for one in report.tools],
        ),
    ]


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= DETAIL_LIMIT else line[: DETAIL_LIMIT - 1] + "…"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _title(report: Report) -> str:
    span = duration(report.until - report.since)
    return f"fleet report: {iso(report.since)[:16]}Z to {iso(report.until)[:16]}Z ({span})"


def to_text(report: Report) -> str:
    """Return the report as plain text; long cells are lines of their own, so that a terminal shows all."""
    out = [_title(report)]
    for title, sentence, headings, rows in _sections(report):
        out += ["", title]
        if sentence:
            out.append(f"  {sentence}")
        if title.startswith("What failed"):
            for one in report.failures:
                counts = [_count(one.final, "task")] if one.final else []
                counts += [f"{_count(one.retried, 'run')} tried again"] if one.retried else []
                out.append(f"  {one.role}: {one.reason} ({', '.join(counts)})")
                out.append(f"    {one.sentence} {one.remedy}")
                if one.detail:
                    out.append(f"    it said: {_cut(one.detail)}")
                if one.examples:
                    out.append(f"    {' '.join(one.examples)}")
        elif rows:
            out += _table(headings, rows)
    return "\n".join(out) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[n]) for row in (headings, *rows)) for n in range(len(headings))]
    numbers = [all(_number(row[n]) for row in rows) for n in range(len(headings))]
    lines = []
    for row in (headings, *rows):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None


STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --bar: #4c78a8; --now: #e45756; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
th.n { text-align: right; } td.id { white-space: pre; } p { margin: .3rem 0; } .soft { color: var(--soft); }
svg text { fill: currentColor; font-size: 11px; }
"""


def to_html(report: Report) -> str:
    """Return the report as one HTML file; everything of the tasks is escaped."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(_title(report))}</title><style>{STYLE}</style></head><body>",
        "<h1>fleet report</h1>",
        f'<p class="soft">{escape(_title(report).partition(": ")[2])}</p>',
    ]
    for title, sentence, headings, rows in _sections(report):
        parts.append(f"<h2>{escape(title)}</h2>")
        if sentence:
            parts.append(f"<p>{escape(sentence)}</p>")
        if title == "Cost" and report.cost.days:
            parts.append(_bars(report))
        if rows:
            parts.append(_html_table(headings, rows))
    return "\n".join([*parts, "</body></html>", ""])


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = [
        ' class="n"' if all(_number(row[n]) for row in rows) else ' class="id"' if heading in WHOLE else ""
        for n, heading in enumerate(headings)
    ]
    head = "".join(f"<th{mark}>{escape(cell)}</th>" for cell, mark in zip(headings, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{escape(cell)}</td>" for cell, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bars(report: Report) -> str:
    """Return the cost of the days before and of the span, brought to a day, as bars."""
    cost = report.cost
    values = [*cost.days, cost.per_day_usd]
    top = max(values) or 1.0
    width, height, step = 64 * len(values) + 16, 130, 64
    bars = []
    for n, value in enumerate(values):
        tall = 80 * value / top
        days = len(cost.days) - n
        name = "now" if days == 0 else f"−{days} d"
        fill = "var(--now)" if days == 0 else "var(--bar)"
        x = 8 + n * step
        bars.append(
            f'<rect x="{x}" y="{100 - tall:.1f}" width="44" height="{tall:.1f}" fill="{fill}"/>'
            f'<text x="{x + 22}" y="{94 - tall:.1f}" text-anchor="middle">{escape(money(value))}</text>'
            f'<text x="{x + 22}" y="118" text-anchor="middle">{name}</text>'
        )
    return (
        f'<svg role="img" aria-label="Cost per day" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(bars)}</svg>'
    )
