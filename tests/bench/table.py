"""Rows of the bench: sides measured one after the other in each round, medians over the rounds, ratios, the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One line of the table.

    Attributes:
        key: short name, also in the JSON.
        what: what was measured.
        unit: of the values.
        fleet: fleet's median.
        goal: what it should be, as text.
        other: the other side's median; None where the goal is absolute.
        other_name: which side.
        ratio: fleet / other in the sense of the goal; the median over the rounds.
        spread: smallest and largest ratio (or value) of the rounds.
        met: None where it was not measured.
        note: what stops it, or how it was measured.
        sides: the medians of all sides.
    """

    key: str
    what: str
    unit: str
    fleet: float | None
    goal: str
    other: float | None = None
    other_name: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    met: bool | None = None
    note: str = ""
    sides: dict[str, float] = field(default_factory=dict)


Rounds = dict[str, list[float]]


def interleaved(sides: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None]) -> Rounds:
    """Measure all sides in turn, round after round; every second round backwards, so that no side is always first."""
    found: Rounds = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            found[name].append(sides[name]())
        say("  round %d: %s" % (number + 1, ", ".join(f"{name} {found[name][-1]:.4g}" for name in sides)))  # noqa: UP031
    return found


def compared(
    key: str,
    what: str,
    unit: str,
    rounds: Rounds,
    other: str,
    limit: float,
    *,
    more_is_better: bool = False,
    note: str = "",
    fleet: str = "fleet",
) -> Row:
    """Return the row of fleet against another side: the goal is a ratio of at most (or at least) `limit`."""
    ratios = [mine / theirs for mine, theirs in zip(rounds[fleet], rounds[other], strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        key=key,
        what=what,
        unit=unit,
        fleet=statistics.median(rounds[fleet]),
        other=statistics.median(rounds[other]),
        other_name=other,
        goal=f"{'≥' if more_is_better else '≤'} {limit:g} × {other}",
        ratio=ratio,
        spread=(min(ratios), max(ratios)),
        met=ratio >= limit if more_is_better else ratio <= limit,
        note=note,
        sides={name: statistics.median(values) for name, values in rounds.items()},
    )


def absolute(
    key: str,
    what: str,
    unit: str,
    values: Sequence[float],
    limit: float,
    *,
    more_is_better: bool = False,
    note: str = "",
    sides: Mapping[str, float] | None = None,
) -> Row:
    """Return a row whose goal is a value."""
    value = statistics.median(values)
    return Row(
        key=key,
        what=what,
        unit=unit,
        fleet=value,
        goal=f"{'≥' if more_is_better else '≤'} {limit:,.10g} {unit}".strip(),
        spread=(min(values), max(values)),
        met=value >= limit if more_is_better else value <= limit,
        note=note,
        sides=dict(sides or {}),
    )


def missing(key: str, what: str, why: str) -> Row:
    """Return the row of something that could not be measured."""
    return Row(key=key, what=what, unit="", fleet=None, goal="", note=f"not measured: {why}")


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile: 0.5 is the median."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def number(value: float | None) -> str:
    """Return a number with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    lines = ["| what | fleet | other side | ratio (spread) | goal | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        other = f"{number(row.other)} {row.unit} ({row.other_name})" if row.other is not None else ""
        spread = f"{number(row.spread[0])} to {number(row.spread[1])}" if row.spread else ""
        ratio = f"{number(row.ratio)} ({spread})" if row.ratio is not None else spread
        met = {True: "yes", False: "no", None: "not measured"}[row.met]
        mine = f"{number(row.fleet)} {row.unit}" if row.fleet is not None else ""
        lines.append(f"| {row.what} | {mine} | {other} | {ratio} | {row.goal} | {met} |")
    notes = [f"- {row.what}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes])


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON values."""
    return [asdict(row) for row in rows]
