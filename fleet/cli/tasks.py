"""Tasks: submit, list, show, change, follow."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fleet.cli import state
from fleet.cli.follow import show_event
from fleet.cli.output import Json, ago, line_of, money, out, show_json, state_text, table, tokens
from fleet.errors import FleetError, InvalidInput, NotFound, TaskFailed

if TYPE_CHECKING:
    from fleet.cli.api import Api

FINAL = frozenset({"succeeded", "failed", "cancelled", "dead"})


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, tasks, task, cancel, retry, prioritize, logs):
        app.command()(command)


Ids = Annotated[list[str], typer.Argument(help="Ids of tasks, or the start of one.")]


def submit(
    role: Annotated[str | None, typer.Argument(help="The role that does it.")] = None,
    prompt: Annotated[str | None, typer.Argument(help="What to do; `-` reads stdin.")] = None,
    priority: Annotated[int, typer.Option("--priority", "-p", help="0 to 9, higher first.")] = 5,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="scratch, DIRECTORY, worktree:REPOSITORY[@REF], git:URL[@REF]."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when it has ended; exit code 8 unless it succeeded.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="As --wait, and show its events.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="Tasks as JSON (one, or a list) or JSON lines; `-` reads stdin.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, several times.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option("--depends-on", help="A task that must succeed first.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="A repeated submit returns the first task.")
    ] = None,
    json: Json = False,
) -> None:
    """Submit a task, or with --file many."""
    common = {"priority": priority, "depends_on": depends_on or [], "labels": labels_of(label or [])}
    if workspace is not None:
        common["workspace"] = short_workspace(workspace)
    if file is not None:
        specs = [{**common, **spec} for spec in read_specs(file)]
    else:
        if role is None or prompt is None:
            raise InvalidInput("Expected ROLE and PROMPT, or --file.", field="role" if role is None else "prompt")
        text = sys.stdin.read() if prompt == "-" else prompt
        specs = [{**common, "role": role, "prompt": text, "idempotency_key": idempotency_key}]
    with state.connect() as api:
        made = api.submit(specs)
        if not json and not follow:
            for task in made:
                print(task["id"])
        if follow:
            for task in made:
                follow_task(api, task["id"], quiet=json)
        if wait or follow:
            made = [api.wait(task["id"]) for task in made]
        if json:
            show_json(made if file is not None else made[0])
        elif wait or follow:
            for task in made:
                show_end(api, task)
    if wait or follow:
        check_succeeded(made)


def short_workspace(text: str) -> dict[str, Any]:
    """Read the short form of a workspace; a path is taken from here."""
    from fleet.models import Workspace, WorkspaceKind

    workspace = Workspace.parse(text)
    path = workspace.path
    if path is not None and not (workspace.kind is WorkspaceKind.GIT and (":" in path)):
        path = str(Path(path).expanduser().absolute())
    return {**workspace.model_dump(mode="json"), "path": path}


def labels_of(given: list[str]) -> dict[str, str]:
    """Read `KEY=VALUE`s."""
    found = {}
    for text in given:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise InvalidInput(f"--label: expected KEY=VALUE, but got {text!r}.", field="labels")
        found[key] = value
    return found


def read_specs(file: Path) -> list[dict[str, Any]]:
    """Read tasks of a file: a JSON object, a list of them, or one object a line."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--file: expected a readable UTF-8 file, but {error}.", field="file") from error
    try:
        data = jsonlib.loads(text)
    except ValueError:
        data = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                data.append(jsonlib.loads(line))
            except ValueError as error:
                raise InvalidInput(f"{file}:{number}: expected JSON, but {error}.", field="file") from error
    specs = data if isinstance(data, list) else [data]
    if not specs or not all(isinstance(spec, dict) for spec in specs):
        raise InvalidInput(f"{file}: expected objects with role and prompt, but got none or others.", field="file")
    return specs


def check_succeeded(ended: list[dict[str, Any]]) -> None:
    """Raise for the first task that did not succeed."""
    bad = [task for task in ended if task["state"] != "succeeded"]
    if bad:
        first = bad[0]
        raise TaskFailed(
            f"{len(bad)} of {len(ended)} tasks did not succeed; {first['id']} is {first['state']}: "
            f"{first.get('sentence') or first.get('reason') or ''} {first.get('detail') or ''}".rstrip(),
            task=first["id"],
            state=first["state"],
            reason=first.get("reason"),
            remedy=first.get("remedy") or "",
        )


def show_end(api: Api, task: dict[str, Any]) -> None:
    """Print how a task ended."""
    out.print(Text(f"{task['id']} ") + state_text(task["state"]) + Text(f" {money(task.get('cost_usd'))}"))
    if task["state"] == "succeeded" and (result := api.result(task["id"])):
        print(result.get("text", ""))


def follow_task(api: Api, task_id: str, *, quiet: bool = False) -> None:
    """Show the events of a task until it has ended."""
    for event in api.task_events(task_id, follow=True):
        if not quiet:
            show_event(event)


def tasks(
    state_: Annotated[list[str] | None, typer.Option("--state", "-s", help="Only these states.")] = None,
    role: Annotated[list[str] | None, typer.Option("--role", "-r", help="Only these roles.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only those of an agent.")] = None,
    text: Annotated[str | None, typer.Option(help="Only those whose prompt has these words.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Only those with KEY=VALUE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")] = 50,
    before: Annotated[str | None, typer.Option(help="Only those older than this task: the next page.")] = None,
    json: Json = False,
) -> None:
    """List tasks, newest first."""
    with state.connect() as api:
        found = api.tasks(
            state=state_,
            role=role,
            agent=agent,
            text=text,
            labels=labels_of(label or []),
            limit=limit,
            before=before,
        )
    if json:
        show_json(found)
        return
    show_tasks(found)


def show_tasks(found: list[dict[str, Any]], title: str | None = None) -> None:
    """Print tasks as a table."""
    table(
        ("id", "role", "state", "prio", "agent", "runs", "cost", "tokens", "age", "task "),
        [
            (
                task["id"],
                task["role"],
                state_text(task["state"]),
                task["priority"],
                task.get("agent_id") or "",
                task.get("number_of_runs", 0),
                money(task.get("cost_usd")),
                tokens(task.get("usage")),
                ago(task["created_at"]),
                line_of(task.get("title") or task.get("prompt") or "", 60),
            )
            for task in found
        ],
        title=title,
    )


def task(
    id: Annotated[str, typer.Argument(help="The task's id, or the start of it.")],
    diff: Annotated[bool, typer.Option("--diff", help="Print the diff alone.")] = False,
    json: Json = False,
) -> None:
    """Show a task, its runs and its result."""
    with state.connect() as api:
        found = api.task(id)
        result = api.result(found["id"]) if found["state"] == "succeeded" else None
    runs = found.pop("runs", [])
    if json:
        show_json({**found, "runs": runs, "result": result})
        return
    if diff:
        print((result or {}).get("diff", ""), end="")
        return
    out.print(Text(f"{found['id']} ", style="bold") + state_text(found["state"]) + Text(f" {found['role']}"))
    for name, value in (
        ("prompt", line_of(found["prompt"], 200)),
        ("why", found.get("why")),
        ("reason", found.get("reason")),
        ("what happened", found.get("sentence")),
        ("detail", found.get("detail")),
        ("remedy", found.get("remedy")),
        ("agent", found.get("agent_id")),
        ("session", found.get("session_id")),
        ("cost", f"{money(found.get('cost_usd'))}, tokens {tokens(found.get('usage'))}"),
    ):
        if value:
            out.print(Text(f"{name:<14}", style="bold") + Text(str(value)), soft_wrap=True)
    if runs:
        table(
            ("run", "agent", "state", "reason", "turns", "cost", "why"),
            [
                (
                    run["number"],
                    run["agent_id"],
                    state_text(run["state"]),
                    run.get("reason") or "",
                    run.get("turns", 0),
                    money(run.get("cost_usd")),
                    run.get("why") or "",
                )
                for run in runs
            ],
        )
    if result:
        out.print(Text("result", style="bold"))
        print(result.get("text", ""))
        if result.get("files_changed"):
            print("changed: " + ", ".join(result["files_changed"]))


def _show_changed(changed: list[dict[str, Any]], json: bool) -> None:
    if json:
        show_json(changed)
        return
    for item in changed:
        out.print(Text(f"{item['id']} ") + state_text(item["state"]) + Text(f" priority {item['priority']}"))


def cancel(ids: Ids, json: Json = False) -> None:
    """Cancel tasks; what runs is interrupted."""
    with state.connect() as api:
        changed = api.cancel(ids)
    _show_changed(changed, json)


def retry(ids: Ids, json: Json = False) -> None:
    """Queue failed, cancelled or dead tasks again."""
    with state.connect() as api:
        changed = api.retry(ids)
    _show_changed(changed, json)


def prioritize(
    ids: Ids,
    priority: Annotated[int, typer.Option("--priority", "-p", help="0 to 9, higher first.")],
    json: Json = False,
) -> None:
    """Change the priority of waiting tasks."""
    with state.connect() as api:
        changed = api.prioritize(ids, priority)
    _show_changed(changed, json)


def logs(
    what: Annotated[str, typer.Argument(metavar="AGENT|TASK", help="An agent's or a task's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it happens.")] = False,
    json: Json = False,
) -> None:
    """Show the events of an agent or a task; with --json one event a line."""
    with state.connect() as api:
        events = _events_of(api, what, follow)
        try:
            for event in events:
                if json:
                    sys.stdout.write(jsonlib.dumps(event, ensure_ascii=False) + "\n")
                    sys.stdout.flush()
                else:
                    show_event(event)
        except KeyboardInterrupt:
            if not follow:
                raise


def _events_of(api: Api, what: str, follow: bool) -> Any:
    try:
        agent = api.agent(what)
    except NotFound:
        agent = None
    if agent is not None:
        return api.agent_events(agent["id"], follow=follow)
    try:
        task = api.task(what)
    except FleetError as error:
        if isinstance(error, NotFound):
            raise NotFound(f"Neither an agent nor a task is called {what!r}.", what="agent or task", id=what) from None
        raise
    return api.task_events(task["id"], follow=follow)
