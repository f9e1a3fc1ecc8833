"""`report`: what ran, what failed and what to do, what it cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fleet.cli import state
from fleet.cli.output import Json, out, show_json
from fleet.errors import InvalidInput
from fleet.models import QueryResult

ROWS = 10_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    since: Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d, 2w.")] = "24h",
    html: Annotated[Path | None, typer.Option(help="Write it as one HTML file.")] = None,
    json: Json = False,
) -> None:
    """Say what ran, what failed and what to do, cost against the usual, slow waits, flaky roles."""
    from fleet.report import build, render

    try:
        span_s = build.parse_span(since)
    except ValueError as error:
        raise InvalidInput(f"--since: {error}.", field="since") from None
    with state.connect() as api:

        def query(sql: str) -> QueryResult:
            answer = api.sql(sql, ROWS)
            columns = tuple(answer["columns"])
            return QueryResult(columns=columns, types=("",) * len(columns), rows=answer["rows"])

        made = build.build_report(query, span_s, time.time())
    if html is not None:
        try:
            html.write_text(render.to_html(made), encoding="utf-8")
        except OSError as error:
            raise InvalidInput(
                f"{html} cannot be written: {error.strerror}. Give another path.", field="html"
            ) from error
    if json:
        show_json(render.to_dict(made))
    elif html is not None:
        out.print(str(html), markup=False, soft_wrap=True)
    else:
        out.print(render.to_text(made), markup=False, soft_wrap=True, end="")
