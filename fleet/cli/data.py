"""What the store knows: SQL, search, approvals, backup, restore, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fleet.cli import state
from fleet.cli.output import Json, ago, err, line_of, out, show_json, state_text, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (sql, search, approvals, approve, deny, backup, restore, export):
        app.command()(command)


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many rows.")] = 1000,
    json: Json = False,
) -> None:
    """Ask the store with one SELECT, on a snapshot."""
    with state.connect() as api:
        answer = api.sql(query, limit)
    if json:
        show_json([dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]])
    else:
        table(answer["columns"], [["" if cell is None else cell for cell in row] for row in answer["rows"]])
    if answer.get("truncated"):
        err.print(f"only the first {len(answer['rows'])} rows; --limit takes more", markup=False)


def search(
    words: Annotated[str, typer.Argument(help="Words of a transcript.")] = "",
    tool: Annotated[str | None, typer.Option(help="Only calls of this tool.")] = None,
    path: Annotated[str | None, typer.Option(help="Only what touches this path.")] = None,
    role: Annotated[str | None, typer.Option(help="Only this role.")] = None,
    state_: Annotated[str | None, typer.Option("--state", help="Only tasks in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 50,
    json: Json = False,
) -> None:
    """Search all transcripts."""
    with state.connect() as api:
        found = api.search(words, tool=tool, path=path, role=role, state=state_, limit=limit)
    if json:
        show_json(found)
        return
    table(
        ("task", "role", "state", "age", "found"),
        [
            (
                hit["task_id"],
                hit.get("role") or "",
                state_text(hit.get("state") or ""),
                ago(hit.get("at")),
                line_of(str(hit.get("snippet") or ""), 120),
            )
            for hit in found
        ],
    )


def approvals(
    all: Annotated[bool, typer.Option("--all", "-a", help="Also those that were decided.")] = False,
    json: Json = False,
) -> None:
    """List the tool calls that wait for a person."""
    with state.connect() as api:
        found = api.approvals(waiting=not all)
    if json:
        show_json(found)
        return
    table(
        ("id", "agent", "tool", "state", "age", "call"),
        [
            (
                approval["id"],
                approval["agent_id"],
                approval["tool"],
                state_text(approval["state"]),
                ago(approval["created_at"]),
                line_of(_call(approval), 100),
            )
            for approval in found
        ],
    )


def _call(approval: dict[str, Any]) -> str:
    given = approval.get("input") or {}
    return str(given.get("command") or given.get("file_path") or approval.get("description") or given)


Id = Annotated[str, typer.Argument(help="The approval's id.")]
Message = Annotated[str, typer.Option("--message", "-m", help="What the agent is told.")]


def approve(
    id: Id,
    scope: Annotated[
        Literal["once", "task", "role"], typer.Option(help="What it covers: this call, its task, or its role.")
    ] = "once",
    message: Message = "",
    json: Json = False,
) -> None:
    """Allow a tool call."""
    _decide(id, True, scope, message, json)


def deny(id: Id, message: Message = "", json: Json = False) -> None:
    """Deny a tool call."""
    _decide(id, False, "once", message, json)


def _decide(id: str, allow: bool, scope: str, message: str, json: bool) -> None:
    with state.connect() as api:
        decided = api.decide(id, allow=allow, scope=scope, message=message)
    if json:
        show_json(decided)
    else:
        out.print(f"{decided['id']} is {decided['state']}", markup=False)


def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")], json: Json = False
) -> None:
    """Copy the database, and all tables as Parquet, while the fleet runs."""
    with state.connect() as api:
        made = api.backup(str(folder.expanduser().absolute()))
    if json:
        show_json(made)
    else:
        out.print(f"backup in {folder}", markup=False)


def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `fleet backup` made.")],
    force: Annotated[bool, typer.Option("--force", help="Put the present database aside.")] = False,
) -> None:
    """Put a backup in the place of the database of a fleet that is down."""
    from fleet.cluster.restore import restore as put_back

    settings = state.settings()
    told = put_back(settings, folder.expanduser().absolute(), force=force)
    if told.get("kept"):
        out.print(f"the database that was there is kept as {told['kept']}", markup=False, soft_wrap=True)
    out.print(f"{settings.store_path} is that of {folder}; start the fleet: fleet up", markup=False, soft_wrap=True)


def export(
    url: Annotated[
        str, typer.Argument(metavar="FOLDER|URL", help="A folder of the store's machine, or an fsspec URL.")
    ],
    json: Json = False,
) -> None:
    """Write what is new since the last export as Parquet, by day and role."""
    with state.connect() as api:
        made = api.export(url)
    if json:
        show_json(made)
    else:
        out.print(f"exported to {url}", markup=False)
