"""The SQL desk: stock components over the store's bounded SELECT."""

from __future__ import annotations

import json
import logging
from typing import Any

import gradio as gr

from fleet.contracts import Store
from fleet.errors import FleetError
from fleet.models import QueryResult

log = logging.getLogger("fleet.ui")

ROWS = 1000
"""A table of more rows is for `fleet sql` and `Fleet.sql`, not for a page."""
CELL = 500
"""Characters of a cell that the table shows."""

EXAMPLES: dict[str, str] = {
    "Cost by day and role": """
SELECT day, role, round(sum(cost_usd), 4) AS usd, sum(output_tokens) AS tokens, count(*) AS runs
FROM costs GROUP BY day, role ORDER BY day DESC, usd DESC""",
    "Why tasks failed": """
SELECT reason, count(*) AS tasks, max(finished_at) AS last
FROM tasks WHERE reason IS NOT NULL GROUP BY reason ORDER BY tasks DESC""",
    "Longest runs": """
SELECT id, task_id, role, agent_id, state, round(run_s, 1) AS seconds
FROM runs ORDER BY run_s DESC NULLS LAST LIMIT 50""",
    "Tools: calls, failures, time": """
SELECT tool, count(*) AS calls, count(*) FILTER (failed) AS failed, round(avg(seconds), 2) AS seconds
FROM tool_calls GROUP BY tool ORDER BY calls DESC""",
    "Retries and losses": """
SELECT id, role, state, number_of_runs, retries_used, losses, why
FROM tasks WHERE number_of_runs > 1 ORDER BY created_at DESC""",
}
"""Queries to start from."""


def cell(value: Any) -> Any:
    """Return a value as the table shows it: numbers and short texts as they are, the rest as bounded text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= CELL else text[:CELL] + "…"


def table(result: QueryResult) -> dict[str, Any]:
    """Return an answer as `gr.Dataframe` takes it."""
    return {
        "headers": list(result.columns),
        "data": [[cell(value) for value in row] for row in result.rows],
        "metadata": None,
    }


def summary(result: QueryResult) -> str:
    """Return one sentence about an answer."""
    rows = f"{len(result.rows):,} row{'' if len(result.rows) == 1 else 's'} in {result.seconds:.3f} s"
    return rows + (f"; cut at {ROWS:,}: `fleet sql` gives all" if result.truncated else "")


def build(store: Store) -> None:
    """Build the desk into the current tab."""

    async def run(query: str) -> tuple[Any, str]:
        if not (query or "").strip():
            return gr.skip(), "Write a SELECT first, or take an example."
        try:
            result = await store.sql(query, max_rows=ROWS, timeout_s=20.0)
        except FleetError as error:
            return gr.skip(), f"{error.code}: {error.message}"
        return table(result), summary(result)

    def take(name: str) -> str:
        return EXAMPLES.get(name, "").strip()

    with gr.Row(elem_classes=["fleet-sql"], equal_height=False):
        with gr.Column(scale=1, min_width=320):
            example = gr.Dropdown(list(EXAMPLES), label="Examples", value=None)
            query = gr.Code(
                language="sql",
                label="One SELECT over tasks, runs, costs, tool_calls, messages, agents …",
                lines=8,
                buttons=["copy"],
            )
            button = gr.Button("Run query", variant="primary", elem_id="fleet-sql-run")
            said = gr.Textbox(label="Answer", interactive=False, lines=2, elem_id="fleet-sql-said")
        with gr.Column(scale=2, min_width=320):
            rows = gr.Dataframe(
                value={"headers": ["rows appear here"], "data": []},
                label="Rows",
                interactive=False,
                wrap=True,
                elem_id="fleet-sql-rows",
                datatype="str",
                max_height=560,
            )
    example.change(take, example, query, api_visibility="private", show_progress="hidden", queue=False)
    button.click(run, query, [rows, said], api_visibility="private", concurrency_limit=4)
