"""The bodies of requests, and what lists answer with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fleet.models import Limits, Model, Workspace


class Spawn(Model):
    """Start agents of a role."""

    role: str
    count: int = Field(1, ge=1, le=1000)


class StopAgent(Model):
    """Stop an agent: after its run with `drain`, else now."""

    drain: bool = True


class Say(Model):
    """Say something to an agent."""

    text: str


class Ids(Model):
    """Tasks by id."""

    ids: tuple[str, ...] = Field(min_length=1, max_length=10_000)


class Cancel(Model):
    """Why tasks are cancelled."""

    detail: str = Field("", max_length=1000)


class CancelMany(Ids):
    """Cancel tasks."""

    detail: str = Field("", max_length=1000)


class Priority(Model):
    """A task's new priority, 0 to 9."""

    priority: int


class PriorityMany(Ids):
    """The new priority of tasks, 0 to 9."""

    priority: int


class WaitMany(Ids):
    """Wait until one of the tasks is final."""

    timeout_s: float = Field(30.0, ge=0, le=120)


class Continue(Model):
    """Go on with a finished task's conversation; what is left out is the first task's."""

    prompt: str
    priority: int | None = None
    workspace: Workspace | None = None
    limits: Limits | None = None
    idempotency_key: str | None = Field(None, max_length=200)
    labels: dict[str, str] | None = None


class Scale(Model):
    """How many agents a role has."""

    agents: int = Field(ge=0, le=1000)


class Drain(Model):
    """Take a node out of use, or with `undo` back into it."""

    deadline_s: float | None = Field(None, ge=0)
    undo: bool = False


class Decision(Model):
    """A person's answer to a tool call that waits."""

    allow: bool
    scope: Literal["once", "task", "role"] = "once"
    message: str = Field("", max_length=10_000)
    changed_input: dict[str, Any] | None = None
    by: str = Field("", max_length=100)


class Query(Model):
    """One SELECT; rows and time are bounded."""

    query: str = Field(min_length=1, max_length=100_000)
    max_rows: int | None = Field(None, ge=1, le=1_000_000)
    timeout_s: float = Field(30.0, gt=0, le=300)
    query_id: str | None = Field(None, max_length=100)


class Backup(Model):
    """The new folder for a backup, on the machine of the store."""

    folder: str = Field(min_length=1, max_length=4096)


class Export(Model):
    """Where an export goes: a folder on the machine of the store, or an fsspec URL."""

    url: str = Field(min_length=1, max_length=4096)


class Prune(Model):
    """Which events are deleted."""

    older_than_s: float | None = Field(None, ge=0)
    max_events: int | None = Field(None, ge=0)


class Value(Model):
    """A setting's new value."""

    value: Any = None
