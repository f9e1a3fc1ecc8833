"""Every operation of the API as a `Call`: the one place that knows paths and shapes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from fleet.client._base import ARROW, WAIT_S, Call, new_key
from fleet.client.rows import Rows
from fleet.errors import InvalidInput
from fleet.models import AgentInfo, Approval, Event, Limits, NodeInfo, Result, RoleState, Run, Task, TaskSpec, Workspace

BATCH = 500
"""Tasks of one request: `map` sends more in parts."""
IDS = 10_000
"""Ids of one request."""
LIMIT_FIELDS = frozenset(Limits.model_fields)
SLOW_S = 330.0
BACKUP_S = 3600.0


def _q(text: str) -> str:
    return quote(text, safe="")


def _task(data: Any) -> Task:
    return Task.model_validate({key: value for key, value in data.items() if key in Task.model_fields})


def _agent(data: Any) -> AgentInfo:
    return AgentInfo.model_validate({key: value for key, value in data.items() if key in AgentInfo.model_fields})


def _tasks(data: Any) -> list[Task]:
    return [_task(item) for item in data["items"]]


def _agents(data: Any) -> list[AgentInfo]:
    return [_agent(item) for item in data["items"]]


def _items(data: Any) -> list[dict[str, Any]]:
    return list(data["items"])


def _page(data: Any) -> tuple[list[Task], str | None]:
    return _tasks(data), data["next"]


def _same(data: Any) -> Any:
    return data


def _nothing(data: Any) -> None:
    return None


def _done(data: Any) -> bool:
    return bool(data["done"])


def _names(value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def make_spec(role: str, prompt: str, options: Mapping[str, Any]) -> TaskSpec:
    """Build a task from keyword arguments.

    `workspace` may be a path, its short form or a `Workspace`; limits may be given by their own names
    (`max_turns=5`); an idempotency key is made when there is none.
    """
    values = dict(options)
    workspace = values.pop("workspace", None)
    if isinstance(workspace, str | Path):
        workspace = Workspace.parse(_absolute(str(workspace)))
    limits = values.pop("limits", None)
    loose = {name: values.pop(name) for name in LIMIT_FIELDS & set(values)}
    if isinstance(limits, Limits):
        limits = limits.model_dump(exclude_none=True)
    values["limits"] = {**(limits or {}), **loose}
    values.setdefault("idempotency_key", None)
    values["idempotency_key"] = values["idempotency_key"] or new_key()
    try:
        return TaskSpec.model_validate({"role": role, "prompt": prompt, "workspace": workspace, **values})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        known = sorted((set(TaskSpec.model_fields) - {"role", "prompt"}) | LIMIT_FIELDS)
        what = "no such option; there are " + ", ".join(known) if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidInput(f"{name}: {what}.", field=name) from None


def make_specs(role: str, prompts: Iterable[str], options: Mapping[str, Any]) -> list[TaskSpec]:
    """Build one task for each prompt; a given idempotency key is numbered, else all would be one task."""
    key = options.get("idempotency_key")
    return [
        make_spec(role, prompt, {**options, "idempotency_key": f"{key}-{number}" if key else None})
        for number, prompt in enumerate(prompts)
    ]


def _absolute(text: str) -> str:
    """Paths of a driver are relative to where it runs, not to where the gateway runs."""
    kind, sep, rest = text.partition(":")
    if sep and kind in ("worktree", "directory") and not rest.startswith("/"):
        return f"{kind}:{Path(rest).expanduser().absolute()}"
    if text == "scratch" or (sep and kind in ("git", "worktree", "directory")):
        return text
    return str(Path(text).expanduser().absolute())


def submit(specs: Sequence[TaskSpec]) -> Call[list[Task]]:
    """Submit tasks, all or none; each has an idempotency key, so that the call may be repeated."""
    body = [
        {**spec.model_dump(mode="json", exclude_defaults=True), "idempotency_key": spec.idempotency_key or new_key()}
        for spec in specs
    ]
    return Call("POST", "/api/tasks:batch", _tasks, body=body)


def task(task_id: str) -> Call[Task]:
    """Return a task."""
    return Call("GET", f"/api/tasks/{_q(task_id)}", _task)


def detail(task_id: str) -> Call[dict[str, Any]]:
    """Return a task with its runs, result and remedy, as JSON."""
    return Call("GET", f"/api/tasks/{_q(task_id)}", _same)


def tasks(
    state: str | Iterable[str] | None = None,
    role: str | Iterable[str] | None = None,
    agent: str | None = None,
    text: str | None = None,
    labels: Mapping[str, str] | None = None,
    priority: int | None = None,
    since: float | None = None,
    before: str | None = None,
    limit: int = 100,
) -> Call[tuple[list[Task], str | None]]:
    """Return a page of tasks, newest first, and the cursor of the next."""
    params = {
        "state": _names(state),
        "role": _names(role),
        "agent": agent,
        "text": text,
        "label": tuple(f"{name}={value}" for name, value in (labels or {}).items()) or None,
        "priority": priority,
        "since": since,
        "before": before,
        "limit": min(limit, 1000),
    }
    return Call("GET", "/api/tasks", _page, params)


def runs(task_id: str) -> Call[list[Run]]:
    """Return the runs of a task, oldest first."""
    return Call(
        "GET", f"/api/tasks/{_q(task_id)}/runs", lambda data: [Run.model_validate(item) for item in data["items"]]
    )


def result(task_id: str) -> Call[Result]:
    """Return what a task left."""
    return Call("GET", f"/api/tasks/{_q(task_id)}/result", Result.model_validate)


def diff(task_id: str) -> Call[str]:
    """Return what a task changed."""
    return Call(
        "GET", f"/api/tasks/{_q(task_id)}/diff", lambda data: data.decode("utf-8", "replace"), accept="text/x-diff"
    )


def transitions(what: str, id: str) -> Call[list[dict[str, Any]]]:
    """Return changes of state."""
    return Call("GET", f"/api/transitions/{_q(what)}/{_q(id)}", _items)


def wait(ids: Sequence[str], timeout_s: float = WAIT_S) -> Call[list[Task]]:
    """Return those of the tasks that are final, as soon as there is one."""
    body = {"ids": list(ids), "timeout_s": timeout_s}
    return Call("POST", "/api/tasks:wait", _tasks, body=body, timeout_s=timeout_s + 30)


def cancel(ids: Sequence[str], detail: str = "") -> Call[list[Task]]:
    """Cancel tasks."""
    return Call("POST", "/api/tasks:cancel", _tasks, body={"ids": list(ids), "detail": detail})


def retry(ids: Sequence[str]) -> Call[list[Task]]:
    """Queue tasks again."""
    return Call("POST", "/api/tasks:retry", _tasks, body={"ids": list(ids)}, safe=False)


def prioritize(ids: Sequence[str], priority: int) -> Call[list[Task]]:
    """Change priorities."""
    return Call("POST", "/api/tasks:priority", _tasks, body={"ids": list(ids), "priority": priority})


def go_on(task_id: str, prompt: str, options: Mapping[str, Any]) -> Call[Task]:
    """Go on with a finished task's conversation."""
    spec = make_spec("any", prompt, options).model_dump(mode="json", exclude_defaults=True)
    wanted = ("priority", "workspace", "limits", "labels", "idempotency_key")
    body = {"prompt": prompt, **{key: spec[key] for key in wanted if key in spec}}
    return Call("POST", f"/api/tasks/{_q(task_id)}/continue", _task, body=body)


def events(
    task: str | None = None,
    run: str | None = None,
    agent: str | None = None,
    after: int = 0,
    before: int | None = None,
    kinds: str | None = None,
    newest: bool = False,
    limit: int = 1000,
) -> Call[list[Event]]:
    """Return a page of events."""
    params = {
        "task": task,
        "run": run,
        "agent": agent,
        "after": after,
        "before": before,
        "kinds": kinds,
        "newest": newest,
        "limit": limit,
    }
    return Call("GET", "/api/events", lambda data: [Event.model_validate(item) for item in data["items"]], params)


def agents(all: bool = False, role: str | None = None, state: str | None = None) -> Call[list[AgentInfo]]:
    """Return the agents."""
    return Call("GET", "/api/agents", _agents, {"all": all, "role": role, "state": state})


def cards(all: bool = False) -> Call[list[dict[str, Any]]]:
    """Return the agents with what each does now, as JSON."""
    return Call("GET", "/api/agents", _items, {"all": all})


def agent(agent_id: str) -> Call[dict[str, Any]]:
    """Return an agent, its task and its last runs, as JSON."""
    return Call("GET", f"/api/agents/{_q(agent_id)}", _same)


def spawn(role: str, count: int = 1) -> Call[list[AgentInfo]]:
    """Start agents."""
    return Call("POST", "/api/agents", _agents, body={"role": role, "count": count}, safe=False)


def stop(agent_id: str, drain: bool = True) -> Call[AgentInfo]:
    """Stop an agent."""
    return Call("POST", f"/api/agents/{_q(agent_id)}/stop", _agent, body={"drain": drain}, safe=False)


def send(agent_id: str, text: str) -> Call[dict[str, Any]]:
    """Say something to an agent."""
    return Call("POST", f"/api/agents/{_q(agent_id)}/send", _same, body={"text": text}, safe=False)


def interrupt(agent_id: str) -> Call[bool]:
    """Cancel what an agent runs."""
    return Call("POST", f"/api/agents/{_q(agent_id)}/interrupt", _done, safe=False)


def roles() -> Call[list[dict[str, Any]]]:
    """Return the roles."""
    return Call("GET", "/api/roles", _items)


def scale(role: str, agents: int) -> Call[RoleState]:
    """Say how many agents a role has."""
    return Call("POST", f"/api/roles/{_q(role)}/scale", RoleState.model_validate, body={"agents": agents})


def pause(role: str | None, paused: bool) -> Call[None]:
    """Pause or resume a role's queue, or all."""
    verb = "pause" if paused else "resume"
    path = f"/api/roles/{_q(role)}/{verb}" if role is not None else f"/api/fleet/{verb}"
    return Call("POST", path, _nothing)


def nodes() -> Call[list[NodeInfo]]:
    """Return the nodes."""
    return Call("GET", "/api/nodes", lambda data: [NodeInfo.model_validate(item) for item in data["items"]])


def drain_node(node: str, deadline_s: float | None = None, undo: bool = False) -> Call[NodeInfo]:
    """Take a node out of use, or back into it."""
    body = {"deadline_s": deadline_s, "undo": undo}
    return Call("POST", f"/api/nodes/{_q(node)}/drain", NodeInfo.model_validate, body=body)


def approvals(all: bool = False) -> Call[list[Approval]]:
    """Return the tool calls that wait for a person."""
    return Call(
        "GET", "/api/approvals", lambda data: [Approval.model_validate(item) for item in data["items"]], {"all": all}
    )


def decide(
    approval_id: str,
    allow: bool,
    scope: str = "once",
    message: str = "",
    changed_input: Mapping[str, Any] | None = None,
    by: str = "",
) -> Call[Approval]:
    """Answer a tool call that waits."""
    body = {
        "allow": allow,
        "scope": scope,
        "message": message,
        "changed_input": dict(changed_input) if changed_input is not None else None,
        "by": by,
    }
    return Call("POST", f"/api/approvals/{_q(approval_id)}", Approval.model_validate, body=body)


def sql(query: str, max_rows: int | None = None, timeout_s: float = 30.0) -> Call[Rows]:
    """Run one SELECT."""
    body = {"query": query, "max_rows": max_rows, "timeout_s": timeout_s}
    return Call("POST", "/api/sql", Rows, body=body, accept=ARROW, timeout_s=min(timeout_s + 30, SLOW_S))


def search(words: str = "", **filters: Any) -> Call[list[dict[str, Any]]]:
    """Search all transcripts."""
    return Call("GET", "/api/search", _items, {"q": words, **filters})


def status() -> Call[dict[str, Any]]:
    """Return the fleet's figures."""
    return Call("GET", "/api/status", _same)


def health() -> Call[dict[str, Any]]:
    """Return whether every part answers."""
    return Call("GET", "/api/health", _same, also=frozenset({503}))


def version() -> Call[dict[str, Any]]:
    """Return which fleet it is."""
    return Call("GET", "/api/version", _same)


def store() -> Call[dict[str, Any]]:
    """Return the store's figures."""
    return Call("GET", "/api/store", _same)


def backup(folder: str) -> Call[dict[str, Any]]:
    """Write a backup."""
    return Call("POST", "/api/backup", _same, body={"folder": folder}, safe=False, timeout_s=BACKUP_S)


def export(url: str) -> Call[dict[str, Any]]:
    """Export what is new."""
    return Call("POST", "/api/export", _same, body={"url": url}, safe=False, timeout_s=BACKUP_S)


def prune(older_than_s: float | None = None, max_events: int | None = None) -> Call[int]:
    """Delete old events."""
    body = {"older_than_s": older_than_s, "max_events": max_events}
    return Call("POST", "/api/prune", lambda data: int(data["deleted"]), body=body, timeout_s=SLOW_S)


def setting(key: str) -> Call[Any]:
    """Return a kept value."""
    return Call("GET", f"/api/settings/{_q(key)}", lambda data: data["value"])


def put_setting(key: str, value: Any) -> Call[None]:
    """Keep a value."""
    return Call("PUT", f"/api/settings/{_q(key)}", _nothing, body={"value": value})
