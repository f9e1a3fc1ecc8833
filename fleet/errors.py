"""The exceptions of fleet: one tree, and one table that maps it to HTTP statuses and exit codes.

    FleetError
    ├── InvalidInput            what the caller gave is wrong
    │   ├── ConfigError         a setting, with file, line, key
    │   ├── UnknownRole
    │   ├── WorkspaceRefused    a path is missing or outside the roots
    │   ├── QueryRefused        SQL that is not one SELECT, or touches files or the network
    │   └── PromptTooLarge
    ├── NotFound                a task, run, agent, node or approval that does not exist
    ├── Conflict                the thing exists but its state does not allow it
    │   ├── IllegalTransition
    │   ├── StaleEpoch          a router that is no longer the router
    │   └── AgentGone           an agent that was stopped or lost
    ├── Unauthorized            no token, or a wrong one
    ├── Forbidden               Host or Origin not allowed
    ├── Busy                    a bounded queue is full: try again after `retry_after_s`
    ├── Unavailable             a part of the fleet does not answer now
    ├── StorageFull             the disk of the store is full
    ├── QueryLimit              a query met its bound of time, rows or memory
    ├── Timeout                 a wait ended before what it waited for
    ├── TaskFailed              raised by `Task.result` of a task that did not succeed
    ├── CredentialsMissing      nothing to authenticate to the model with
    ├── ClaudeNotFound          no Claude Code executable
    ├── StartFailed             the fleet or a part did not start (port taken, path not writable)
    └── StoreCorrupt            the store's file failed its self-check, or is newer than this program

Every error pickles (it crosses process borders in Ray), keeps its fields, and says what was expected, what came and
what to do.
"""

from __future__ import annotations

from typing import Any


class FleetError(Exception):
    """The base of every error of fleet.

    Attributes:
        message: what was expected, what came and what to do.
        fields: what a program can branch on; JSON values only.
    """

    code = "error"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields)

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the error as REST and `--json` show it: `{"error": code, "message": …, …fields}`."""
        return {"error": self.code, "message": self.message, **self.fields}


def _rebuild(cls: type[FleetError], message: str, fields: dict[str, Any]) -> FleetError:
    error = cls.__new__(cls)
    FleetError.__init__(error, message, **fields)
    return error


class InvalidInput(FleetError):
    """What the caller gave is wrong; nothing was changed. `field` names it where there is one."""

    code = "invalid_input"


class ConfigError(InvalidInput):
    """A setting is wrong; fields: `file`, `line`, `key`."""

    code = "invalid_config"


class UnknownRole(InvalidInput):
    """No role of this name; fields: `role`, `known`."""

    code = "unknown_role"


class WorkspaceRefused(InvalidInput):
    """A working directory that is missing or outside the roots; fields: `path`, `roots`."""

    code = "workspace_refused"


class QueryRefused(InvalidInput):
    """SQL that is not a single SELECT over the fleet's own tables."""

    code = "query_refused"


class PromptTooLarge(InvalidInput):
    """A prompt over the limit; fields: `bytes`, `limit`."""

    code = "prompt_too_large"


class NotFound(FleetError):
    """Nothing of this id; fields: `what`, `id`."""

    code = "not_found"


class Conflict(FleetError):
    """The thing exists, but its state does not allow this; fields: `state` where there is one."""

    code = "conflict"


class IllegalTransition(Conflict):
    """A state change that the table of `lifecycle` does not have."""

    code = "illegal_transition"

    def __init__(self, what: str, name: str, old: str, new: str, allowed: list[str]) -> None:
        super().__init__(
            f"{what} {name} is {old} and cannot become {new}; from {old} it may become "
            f"{', '.join(allowed) or 'nothing else'}.",
            what=what,
            id=name,
            state=old,
            wanted=new,
        )


class StaleEpoch(Conflict):
    """A message of a router that has been replaced; fields: `epoch`, `current`."""

    code = "stale_epoch"


class AgentGone(Conflict):
    """The agent was stopped or lost; fields: `agent`, `state`."""

    code = "agent_gone"


class Unauthorized(FleetError):
    """No token, or a wrong one."""

    code = "unauthorized"


class Forbidden(FleetError):
    """A Host or Origin that is not allowed."""

    code = "forbidden"


class Busy(FleetError):
    """A bounded queue is full; fields: `retry_after_s`."""

    code = "busy"


class Unavailable(FleetError):
    """A part of the fleet does not answer now; fields: `part`, `retry_after_s`."""

    code = "unavailable"


class StorageFull(FleetError):
    """The disk that holds the store is full."""

    code = "storage_full"


class QueryLimit(FleetError):
    """A query met its bound; fields: `limit`."""

    code = "query_limit"


class Timeout(FleetError):
    """A wait ended before what it waited for; fields: `seconds`."""

    code = "timeout"


class TaskFailed(FleetError):
    """A task did not succeed; fields: `task`, `state`, `reason`, `remedy`."""

    code = "task_failed"


class CredentialsMissing(FleetError):
    """Nothing to authenticate to the model with."""

    code = "no_credentials"


class ClaudeNotFound(FleetError):
    """No Claude Code executable."""

    code = "claude_not_found"


class StartFailed(FleetError):
    """The fleet, or a part of it, did not start."""

    code = "start_failed"


class StoreCorrupt(FleetError):
    """The store's file failed its self-check, or was written by a newer program."""

    code = "store_corrupt"


ERROR_TABLE: dict[type[FleetError], tuple[int, int]] = {
    FleetError: (500, 1),
    InvalidInput: (422, 2),
    ConfigError: (422, 2),
    UnknownRole: (422, 2),
    WorkspaceRefused: (422, 2),
    QueryRefused: (422, 2),
    PromptTooLarge: (413, 2),
    NotFound: (404, 3),
    Conflict: (409, 4),
    IllegalTransition: (409, 4),
    StaleEpoch: (409, 4),
    AgentGone: (410, 4),
    Unauthorized: (401, 5),
    Forbidden: (403, 5),
    Busy: (429, 6),
    Unavailable: (503, 6),
    StorageFull: (507, 6),
    QueryLimit: (408, 7),
    Timeout: (408, 7),
    TaskFailed: (424, 8),
    CredentialsMissing: (503, 9),
    ClaudeNotFound: (503, 9),
    StartFailed: (500, 10),
    StoreCorrupt: (500, 10),
}
"""Error → (HTTP status, exit code). Exit code 0 is success, 130 an interrupt from the keyboard."""


def http_status(error: FleetError) -> int:
    """Return the HTTP status of an error."""
    return ERROR_TABLE[type(error)][0]


def exit_code(error: FleetError) -> int:
    """Return the exit code of an error."""
    return ERROR_TABLE[type(error)][1]


def from_dict(data: dict[str, Any]) -> FleetError:
    """Rebuild the error that `to_dict` wrote (an unknown code becomes a plain `FleetError`)."""
    fields = {key: value for key, value in data.items() if key not in ("error", "message")}
    by_code = {cls.code: cls for cls in ERROR_TABLE}
    return _rebuild(by_code.get(str(data.get("error")), FleetError), str(data.get("message", "")), fields)
