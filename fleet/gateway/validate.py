"""What a submit must satisfy before the router sees it; each refusal names the field, what was expected and what came.

The agent checks its working directory again on its own node: this check is here so that a person who mistypes a path
is told at once and not by a failed task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleet.config import FleetConfig
from fleet.errors import InvalidInput, PromptTooLarge, UnknownRole, WorkspaceRefused
from fleet.gateway.errors import explain
from fleet.models import PRIORITY_MAX, PRIORITY_MIN, PROMPT_LIMIT_BYTES, TaskSpec, Workspace, WorkspaceKind

GIT_URL = re.compile(r"^(https?://|ssh://|git://|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:(?!/?$))")
"""Other transports of git, `ext::` above all, run commands."""
BATCH_LIMIT = 10_000
"""Tasks of one request: more would keep the router's commit busy for seconds."""


def parse_specs(body: bytes) -> tuple[list[TaskSpec], bool]:
    """Read the body of a submit: one task, a list of tasks, or `{"tasks": [...]}`.

    `workspace` may be its short form (`scratch`, `/a/dir`, `worktree:/a/repo@ref`).

    Returns:
        The tasks, and whether they came as a list.
    """
    try:
        data = json.loads(body)
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidInput(f"Expected a body of JSON, but {error}. See /docs for the fields.", field=None) from None
    if b"\\ud" in body.lower():
        check_text(json.dumps(data, ensure_ascii=False), "body")
    if isinstance(data, dict) and set(data) == {"tasks"}:
        data = data["tasks"]
    several = isinstance(data, list)
    items = data if several else [data]
    if len(items) > BATCH_LIMIT:
        raise InvalidInput(
            f"tasks: expected at most {BATCH_LIMIT} tasks in a request, but got {len(items)}. Submit them in parts.",
            field="tasks",
        )
    specs: list[TaskSpec] = []
    for number, item in enumerate(items):
        where = f"tasks.{number}." if several else ""
        if not isinstance(item, dict):
            raise InvalidInput(
                f"{where.rstrip('.') or 'body'}: expected an object with role and prompt, but got "
                f"{type(item).__name__}. See /docs for the fields.",
                field=where.rstrip(".") or None,
            )
        specs.append(parse_spec(item, where))
    return specs, several


def parse_spec(item: dict[str, Any], where: str = "") -> TaskSpec:
    """Read one task; `where` is put before the names of fields in errors."""
    if isinstance(item.get("workspace"), str):
        item = {**item, "workspace": Workspace.parse(item["workspace"]).model_dump(mode="json")}
    try:
        return TaskSpec.model_validate(item)
    except ValidationError as error:
        # A prompt of megabytes must not be copied into the message.
        told = explain(error.errors(include_url=False))
        if not where:
            raise told from None
        fields = {**told.fields, "field": where + str(told.fields.get("field") or "")}
        raise InvalidInput(where + told.message, **fields) from None


def check_specs(config: FleetConfig, specs: Iterable[TaskSpec], *, here: bool = True, where: str = "tasks") -> None:
    """Refuse tasks that cannot be done.

    Args:
        config: the fleet's settings.
        specs: the tasks.
        here: whether every agent runs on this machine, so that a path must exist on it.
        where: the name of the list in errors, "" for a single task.

    Raises:
        InvalidInput: an empty prompt or a priority out of range.
        PromptTooLarge: over `PROMPT_LIMIT_BYTES`.
        UnknownRole: a role that the settings do not have.
        WorkspaceRefused: a working directory that is missing, outside the roots or of the wrong kind.
    """
    seen: set[Workspace] = set()
    for number, spec in enumerate(specs):
        prefix = f"{where}.{number}." if where else ""
        check_role(config, spec.role, f"{prefix}role")
        check_prompt(spec.prompt, f"{prefix}prompt")
        check_priority(spec.priority, f"{prefix}priority")
        workspace = spec.workspace
        if workspace is not None and workspace not in seen:
            check_workspace(config, workspace, here=here, field=f"{prefix}workspace")
            seen.add(workspace)


def check_role(config: FleetConfig, role: str, field: str = "role") -> None:
    """Refuse a role that the settings do not have."""
    if role not in config.roles:
        known = sorted(config.roles)
        raise UnknownRole(
            f"{field}: expected one of {', '.join(known)}, but got {role[:80]!r}. Choose one, or add "
            f"[roles.NAME] to fleet.toml.",
            field=field,
            role=role[:80],
            known=known,
        )


def check_text(text: str, field: str) -> None:
    """Refuse text with half a character (a lone surrogate): no file, database or terminal takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{field}: expected text, but it holds half a character ({text[error.start]!r}). Send valid Unicode.",
            field=field,
        ) from None


def check_prompt(prompt: str, field: str = "prompt") -> None:
    """Refuse an empty prompt and one over the limit."""
    if not prompt.strip():
        raise InvalidInput(
            f"{field}: expected words that say what to do, but it is empty. Write what the agent should do.",
            field=field,
        )
    check_text(prompt, field)
    size = len(prompt.encode())
    if size > PROMPT_LIMIT_BYTES:
        raise PromptTooLarge(
            f"{field}: expected at most {PROMPT_LIMIT_BYTES} bytes, but got {size}. Put the text into a file of the "
            f"working directory and name it in the prompt.",
            field=field,
            bytes=size,
            limit=PROMPT_LIMIT_BYTES,
        )


def check_priority(priority: int, field: str = "priority") -> None:
    """Refuse a priority out of range."""
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise InvalidInput(
            f"{field}: expected {PRIORITY_MIN} to {PRIORITY_MAX} (higher goes first), but got {priority}.",
            field=field,
            expected=f"{PRIORITY_MIN} to {PRIORITY_MAX}",
            got=priority,
        )


def check_workspace(config: FleetConfig, workspace: Workspace, *, here: bool = True, field: str = "workspace") -> None:
    """Refuse a working directory that is missing, outside the roots or of the wrong kind."""
    if workspace.ref is not None and workspace.ref.startswith("-"):
        raise _refused(config, workspace, f"{field}.ref", "a commit or branch", f"got {workspace.ref[:80]!r}")
    if workspace.kind is WorkspaceKind.SCRATCH:
        return
    text = workspace.path
    if not text:
        raise _refused(config, workspace, f"{field}.path", f"a path for kind {workspace.kind.value}", "there is none")
    if workspace.kind is WorkspaceKind.GIT and GIT_URL.match(text):
        return
    if workspace.kind is WorkspaceKind.GIT and not text.startswith("/"):
        expected = "a git URL (https, ssh, git@host:path) or an absolute path"
        raise _refused(config, workspace, f"{field}.path", expected, f"got {text[:200]!r}")
    if "\0" in text or not text.startswith("/"):
        raise _refused(config, workspace, f"{field}.path", "an absolute path", f"got {text[:200]!r}")
    # Resolved, so that neither `..` nor a symbolic link leads out of the roots; whether something outside exists is
    # not told.
    path = Path(text).resolve()
    roots = [Path(root).resolve() for root in config.roots]
    if not any(path.is_relative_to(root) for root in roots):
        expected = f"a path under {' or '.join(map(str, config.roots))}"
        raise _refused(config, workspace, f"{field}.path", expected, f"got {text[:200]}, which is outside")
    if not here:
        return
    if not path.is_dir():
        came = "it is no directory" if path.exists() else "it does not exist"
        raise _refused(config, workspace, f"{field}.path", "a directory", f"{text[:200]}: {came}")
    if workspace.kind in (WorkspaceKind.WORKTREE, WorkspaceKind.GIT) and not _is_repository(path):
        raise _refused(config, workspace, f"{field}.path", "a git repository", f"{text[:200]} is none")


def _is_repository(path: Path) -> bool:
    bare = (path / "HEAD").is_file() and (path / "objects").is_dir()
    return bare or any((folder / ".git").exists() for folder in (path, *path.parents))


def _refused(config: FleetConfig, workspace: Workspace, field: str, expected: str, came: str) -> WorkspaceRefused:
    return WorkspaceRefused(
        f"{field}: expected {expected}, but {came}. Choose a directory under the roots, or add its root to `roots` in "
        f"fleet.toml.",
        field=field,
        path=workspace.path,
        roots=[str(root) for root in config.roots],
        expected=expected,
    )
