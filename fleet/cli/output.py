"""How the command speaks: tables and JSON on stdout, complaints on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleet.errors import FleetError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

COLOURS = {
    "succeeded": "green",
    "running": "cyan",
    "busy": "cyan",
    "idle": "green",
    "queued": "yellow",
    "scheduled": "yellow",
    "blocked": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "waiting": "yellow",
    "failed": "red",
    "dead": "red",
    "cancelled": "magenta",
    "stopped": "dim",
}


def complain(error: FleetError) -> None:
    """Say what went wrong, and what can be done."""
    err.print(Text("error: ", style="bold red") + Text(error.message))
    if remedy := error.fields.get("remedy"):
        err.print(Text(str(remedy)))


def show_json(value: Any) -> None:
    """Print JSON, for programs: no colours, no wrapping."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def state_text(state: object) -> Text:
    """Return a state in its colour."""
    return Text(str(state), style=COLOURS.get(str(state), ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows; what is no `Text` is printed as it is, without markup."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in ("cost", "tokens", "prio", "runs", "turns", "queued", "agents", "idle", "cpus", "free")
        shown.add_column(
            column, justify="right" if right else "left", overflow="fold", no_wrap=column in ("id", "task")
        )
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    # A terminal has a width; a pipe has none, and cut ids would be of no use there.
    (out if out.is_terminal else Console(highlight=False, width=240)).print(shown)


def money(value: object) -> str:
    """Return dollars, with cents and a little more."""
    return f"${float(value or 0):.4f}" if isinstance(value, int | float) or value is None else str(value)


def tokens(usage: dict[str, int] | None) -> str:
    """Return how many tokens went in and came out."""
    if not usage:
        return "0/0"
    into = usage.get("input_tokens", 0) + usage.get("cache_read_tokens", 0) + usage.get("cache_write_tokens", 0)
    return f"{short(into)}/{short(usage.get('output_tokens', 0))}"


def short(number: float) -> str:
    """Return a number with k or M."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.0f}"


def ago(at: str | None) -> str:
    """Return how long ago a time was."""
    if not at:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(at.replace("Z", "+00:00"))).total_seconds()
    for length, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds / length:.0f}{letter} ago"
    return f"{max(seconds, 0):.0f}s ago"


def line_of(text: str, limit: int = 100) -> str:
    """Return the first line that says something, cut."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first if len(first) <= limit else first[: limit - 1] + "…"
