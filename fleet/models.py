"""The nouns of fleet as frozen pydantic models. Pure: imported by every stage, imports none.

Times are `Instant`: seconds since the epoch (UTC) as a float in Python, ISO 8601 with `Z` in JSON.
Money is in US dollars, durations end in `_s`, sizes in `_mb` are MiB.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.reasons import Reason

PRIORITY_MIN, PRIORITY_MAX, PRIORITY_DEFAULT = 0, 9, 5
"""Higher goes first."""

PROMPT_LIMIT_BYTES = 1_000_000
"""Claude Code answers "Prompt is too long" to 10 MB and takes 1 MB; larger texts belong in files."""

ROLE_NAME = r"^[a-z][a-z0-9_-]{0,39}$"


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def iso(at: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, to the millisecond: `2026-01-31T12:00:00.000Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Instant = Annotated[float, BeforeValidator(_seconds), PlainSerializer(iso, return_type=str, when_used="json")]


_last_id = [0, 0]
_id_lock = threading.Lock()


def new_id(prefix: str) -> str:
    """Return a new id that sorts by time: prefix, 11 hex digits of milliseconds, 4 of a count, 4 of chance.

    The ids of one process rise strictly, also within one millisecond: tasks of one batch keep their order.
    """
    with _id_lock:
        now = int(time.time() * 1000)
        last, count = _last_id
        now = max(now, last)
        count = count + 1 if now == last else 0
        if count > 0xFFFF:
            now, count = now + 1, 0
        _last_id[:] = now, count
    return f"{prefix}-{now:011x}{count:04x}{secrets.token_hex(2)}"


M = TypeVar("M", bound=BaseModel)
_set = object.__setattr__


class Model(BaseModel):
    """The base of all models: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __reduce__(self) -> tuple[Any, ...]:
        # Every call between the parts pickles models: pydantic's own way takes 25 µs for a task, this one 3 µs.
        return built, (self.__class__, self.__dict__, self.__pydantic_fields_set__)


def built(cls: type[M], values: dict[str, Any], fields: set[str]) -> M:
    """Return a model made of values that are known to be good: nothing is checked, nothing is copied.

    Args:
        cls: the model's class.
        values: a value for every field.
        fields: the names of those that were given; may be shared between models.
    """
    model = cls.__new__(cls)
    _set(model, "__dict__", values)
    _set(model, "__pydantic_fields_set__", fields)
    _set(model, "__pydantic_extra__", None)
    _set(model, "__pydantic_private__", None)
    return model


class WorkspaceKind(StrEnum):
    """Where a run works."""

    DIRECTORY = "directory"
    """In the directory itself."""
    WORKTREE = "worktree"
    """In a git worktree and branch of its own, made from the repository at `path`."""
    SCRATCH = "scratch"
    """In a fresh empty folder."""
    GIT = "git"
    """In a worktree of a per-node cached clone of the repository at the URL `path`."""


WORKSPACE_KINDS = frozenset(kind.value for kind in WorkspaceKind)


class Workspace(Model):
    """Where a run works.

    Attributes:
        kind: how the folder is made.
        path: the directory, the repository, or the git URL; None for `scratch`.
        ref: the commit or branch that a worktree starts from; None means HEAD.
    """

    kind: WorkspaceKind = WorkspaceKind.SCRATCH
    path: str | None = None
    ref: str | None = None

    @classmethod
    def parse(cls, text: str) -> Workspace:
        """Read the short form: `scratch`, `/a/dir` or `directory:/a/dir`, `worktree:/a/repo[@ref]`, `git:URL[@ref]`."""
        if text == "scratch":
            return cls()
        kind, sep, rest = text.partition(":")
        if not sep or kind not in WORKSPACE_KINDS:
            return cls(kind=WorkspaceKind.DIRECTORY, path=text)
        path, at, ref = rest.rpartition("@") if kind != "directory" else (rest, "", "")
        if not at or ("/" in ref and ":" in ref):
            path, ref = rest, ""
        return cls(kind=WorkspaceKind(kind), path=path or None, ref=ref or None)

    def __str__(self) -> str:
        if self.kind is WorkspaceKind.SCRATCH:
            return "scratch"
        return f"{self.kind.value}:{self.path}" + (f"@{self.ref}" if self.ref else "")


class Limits(Model):
    """Bounds of one run; None takes the role's.

    Attributes:
        max_turns: how many turns Claude Code may take.
        max_cost_usd: how much a run may cost; Claude Code overshoots by at most one call.
        time_limit_s: how long a run may take.
        silence_limit_s: how long its stream may be silent.
        retries: how often a failed task is tried again.
    """

    max_turns: int | None = Field(None, ge=1, le=1000)
    max_cost_usd: float | None = Field(None, gt=0)
    time_limit_s: float | None = Field(None, gt=0)
    silence_limit_s: float | None = Field(None, gt=0)
    retries: int | None = Field(None, ge=0, le=100)


class Approvals(StrEnum):
    """What happens to a tool call outside the role's rules."""

    DENY = "deny"
    ASK = "ask"


class Role(Model):
    """A named kind of agent. `fleet.toml` has the same keys under `[roles.NAME]`."""

    name: str = Field(pattern=ROLE_NAME)
    prompt: str = Field(min_length=1)
    prompt_mode: Literal["append", "replace"] = "append"
    """`append` keeps Claude Code's own system prompt and adds ours; `replace` gives ours alone."""
    tools: tuple[str, ...] = ()
    """Tool rules that are allowed, as Claude Code writes them: `Read`, `Bash(git *)`."""
    tools_denied: tuple[str, ...] = ()
    permission_mode: Literal["default", "acceptEdits", "plan", "dontAsk", "bypassPermissions"] = "default"
    model: str | None = None
    fallback_model: str | None = None
    max_turns: int = Field(15, ge=1, le=1000)
    max_cost_usd: float | None = Field(None, gt=0)
    time_limit_s: float = Field(1800.0, gt=0)
    silence_limit_s: float = Field(600.0, gt=0)
    retries: int = Field(2, ge=0, le=100)
    mcp_servers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    workspace: Workspace = Workspace()
    setting_sources: tuple[Literal["user", "project", "local"], ...] = ()
    cpus: float = Field(0.25, ge=0)
    memory_mb: int = Field(768, ge=64)
    agents: int = Field(1, ge=0, le=1000)
    """How many agents the role starts with."""
    min_agents: int | None = Field(None, ge=0)
    max_agents: int | None = Field(None, ge=1)
    """With both set the role scales between them."""
    target_wait_s: float = Field(30.0, gt=0)
    target_queue_per_agent: float = Field(4.0, gt=0)
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels the role's agents need."""
    resources: dict[str, float] = Field(default_factory=dict)
    spread: bool = True
    approvals: Approvals = Approvals.DENY
    approval_timeout_s: float = Field(600.0, gt=0)
    approval_default: Literal["allow", "deny"] = "deny"
    approval_hold_s: float = Field(600.0, gt=0)
    """How long a waiting call holds its process; after that the process is ended, and the task resumes when somebody
    has decided."""


class TaskSpec(Model):
    """What somebody asks for: the body of a submit.

    Attributes:
        role: the role that does it.
        prompt: what to do; 1 byte to 1 MB.
        priority: 0 to 9, higher first.
        workspace: where; None takes the role's.
        limits: bounds that differ from the role's.
        depends_on: ids of tasks that must succeed first.
        not_before: the earliest start.
        idempotency_key: a repeated submit with the same key returns the first task.
        agent: the id of the only agent that may run it.
        continue_from: the id of a finished task whose Claude session goes on.
        output_schema: a JSON schema that the answer must fit.
        labels: free words for filters.
    """

    role: str
    prompt: str
    priority: int = PRIORITY_DEFAULT
    workspace: Workspace | None = None
    limits: Limits = Limits()
    depends_on: tuple[str, ...] = ()
    not_before: Instant | None = None
    idempotency_key: str | None = Field(None, max_length=200)
    agent: str | None = None
    continue_from: str | None = None
    output_schema: dict[str, Any] | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Usage(Model):
    """Tokens of a run."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})


class Task(TaskSpec):
    """A task with its state; the row of the table `task`.

    Attributes:
        number_of_runs: how many runs were started.
        retries_used: how many failures used up one of its retries.
        losses: how often its agent or node went away.
        run_id: the current run, or the last one.
        session_id: the Claude session to resume or continue.
        agent_id: who runs it or ran it last.
        why: one sentence: why this agent, or why it waits.
        not_before: also when a scheduled retry starts.
    """

    id: str
    state: TaskState
    reason: Reason | None = None
    detail: str = ""
    why: str = ""
    number_of_runs: int = 0
    retries_used: int = 0
    losses: int = 0
    run_id: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    node: str | None = None
    cost_usd: float = 0.0
    usage: Usage = Usage()
    turns: int = 0
    created_at: Instant
    queued_at: Instant | None = None
    started_at: Instant | None = None
    finished_at: Instant | None = None
    updated_at: Instant


class Run(Model):
    """One attempt at a task by one agent; the row of the table `run`.

    Attributes:
        number: 1 for the first attempt.
        incarnation: which life of the agent's actor.
        epoch: the router that dispatched it.
        resumed_from: the run whose session goes on.
        why: why this agent.
    """

    id: str
    task_id: str
    number: int
    role: str
    agent_id: str
    incarnation: int
    node: str | None = None
    epoch: int
    state: RunState = RunState.RUNNING
    reason: Reason | None = None
    detail: str = ""
    session_id: str | None = None
    resumed_from: str | None = None
    why: str = ""
    cost_usd: float = 0.0
    usage: Usage = Usage()
    turns: int = 0
    started_at: Instant
    finished_at: Instant | None = None


class EventKind(StrEnum):
    """What an event is."""

    FRAME = "frame"
    """A frame of Claude Code's stream-json, kept raw."""
    STATE = "state"
    """A change in the run: workspace ready, resumed, interrupted, ended."""
    STDERR = "stderr"
    MESSAGE = "message"
    """A message somebody sent to the agent."""
    TRANSCRIPT = "transcript"
    """Claude Code's own transcript entries, kept to resume; hidden from transcripts shown to people."""
    GAP = "gap"
    """Events were left out under pressure; `payload.count` says how many."""


class Event(Model):
    """One fact of a run, in order.

    Attributes:
        id: position in the store, over all runs; None until it is committed. The `Last-Event-ID` of SSE.
        seq: position in the run, from 0.
        type: for a frame its type (`assistant`, `user`, `system`, `result`, …), else a word of the kind.
    """

    id: int | None = None
    run_id: str
    task_id: str
    agent_id: str
    seq: int
    at: Instant
    kind: EventKind
    type: str = ""
    payload: dict[str, Any] = Field(default_factory=dict)


class Result(Model):
    """What a finished run leaves; the row of the table `result`, one per task.

    Attributes:
        text: the final answer.
        structured: the answer by `output_schema`.
        diff: unified diff of what the run changed in its worktree, else "".
        branch: the branch that holds it.
        files_changed: paths in the diff.
        denials: tool calls that were refused.
    """

    task_id: str
    run_id: str
    role: str
    text: str = ""
    structured: Any = None
    diff: str = ""
    branch: str | None = None
    workspace_path: str | None = None
    files_changed: tuple[str, ...] = ()
    denials: tuple[dict[str, Any], ...] = ()
    cost_usd: float = 0.0
    usage: Usage = Usage()
    turns: int = 0
    duration_s: float = 0.0
    finished_at: Instant


class Outcome(Model):
    """How a run ended, as its agent tells the router; kept by the agent until it is acknowledged.

    Attributes:
        status: a final run state.
        retry_at: when the model service said to come back.
        result: present when `status` is `succeeded`.
    """

    run_id: str
    task_id: str
    agent_id: str
    epoch: int
    status: RunState
    reason: Reason | None = None
    detail: str = ""
    retry_at: Instant | None = None
    session_id: str | None = None
    result: Result | None = None
    cost_usd: float = 0.0
    usage: Usage = Usage()
    turns: int = 0
    finished_at: Instant
    approval_id: str | None = None


class AgentInfo(Model):
    """An agent; the row of the table `agent`.

    Attributes:
        id: `ROLE-N`, also the actor's name.
        wanted: whether the fleet keeps it alive; False once somebody stopped it.
        incarnation: which life of the actor, from 1.
        why: why this node, or why it does not start.
    """

    id: str
    role: str
    state: AgentState
    wanted: bool = True
    incarnation: int = 1
    node: str | None = None
    pid: int | None = None
    task_id: str | None = None
    run_id: str | None = None
    why: str = ""
    runs: int = 0
    failures: int = 0
    restarts: int = 0
    cost_usd: float = 0.0
    started_at: Instant
    updated_at: Instant


class Activity(Model):
    """What an agent does right now; lives in the store's memory, never on disk.

    Attributes:
        tool: the tool that runs, with the start of its input, e.g. `Bash: pytest -q`.
        context_tokens: tokens of the last request: how full the context is.
        rss_mb: resident memory of the agent's Claude Code process tree.
        node_free_mb: free memory of its node.
        last_event_at: when the run last said something.
    """

    agent_id: str
    run_id: str | None = None
    task_id: str | None = None
    tool: str | None = None
    text: str = ""
    turns: int = 0
    usage: Usage = Usage()
    context_tokens: int = 0
    cost_usd: float = 0.0
    rss_mb: float = 0.0
    processes: int = 0
    node: str | None = None
    node_free_mb: float = 0.0
    last_event_at: Instant | None = None
    at: Instant


class RunOrder(Model):
    """What the router gives an agent: one run.

    Attributes:
        epoch: the router's; an agent refuses one lower than it has seen.
        role: the role as it is now.
        resume: continue `task.session_id` from the store's transcript.
        moved: the run before was cut off: the agent tells Claude so.
        message: what is said to a resumed session instead of the task's prompt.
        rules: tool rules a person allowed for this task.
    """

    epoch: int
    run: Run
    task: Task
    role: Role
    resume: bool = False
    moved: bool = False
    message: str | None = None
    rules: tuple[str, ...] = ()


class AgentReport(Model):
    """What an agent says of itself to a router.

    Attributes:
        run_id: the run it has, None when it has none.
        outcomes: those that are not acknowledged yet.
    """

    agent_id: str
    incarnation: int
    node: str
    pid: int
    run_id: str | None = None
    outcomes: tuple[Outcome, ...] = ()


class ApprovalState(StrEnum):
    """Where an approval is."""

    WAITING = "waiting"
    ALLOWED = "allowed"
    DENIED = "denied"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """Its run ended before anybody decided."""


class Approval(Model):
    """A tool call that waits, or waited, for a person; the row of the table `approval`.

    Attributes:
        scope: what the decision covers: this call, this task, or the role.
        changed_input: the input the person put in place of the agent's.
    """

    id: str
    task_id: str
    run_id: str
    agent_id: str
    role: str
    tool: str
    input: dict[str, Any]
    description: str = ""
    state: ApprovalState = ApprovalState.WAITING
    scope: Literal["once", "task", "role"] = "once"
    message: str = ""
    changed_input: dict[str, Any] | None = None
    decided_by: str = ""
    created_at: Instant
    expires_at: Instant
    decided_at: Instant | None = None


class Transition(Model):
    """One change of state; the row of the table `transition`."""

    at: Instant
    what: Literal["task", "run", "agent"]
    id: str
    old: str | None
    new: str
    reason: str = ""
    why: str = ""


class Refusal(Model):
    """A message that was refused, kept for the audit: a late result, a stale epoch; the row of the table `refusal`."""

    at: Instant
    what: str
    run_id: str | None = None
    task_id: str | None = None
    agent_id: str | None = None
    epoch: int | None = None
    detail: str = ""


class RoleState(Model):
    """What the fleet keeps about a role beside its configuration; the row of the table `role_state`.

    Attributes:
        agents: how many agents somebody asked for; None keeps the configuration's number.
        paused: its queue waits.
        rules: tool rules a person allowed for the role.
    """

    role: str
    agents: int | None = None
    paused: bool = False
    rules: tuple[str, ...] = ()


class NodeInfo(Model):
    """A node, as Ray and its agents see it."""

    id: str
    name: str
    address: str
    alive: bool
    head: bool = False
    cpus: float = 0.0
    cpus_free: float = 0.0
    memory_mb: float = 0.0
    memory_free_mb: float = 0.0
    labels: dict[str, str] = Field(default_factory=dict)
    resources: dict[str, float] = Field(default_factory=dict)
    """Custom resources, all of them."""
    draining: bool = False
    drain_deadline: Instant | None = None
    """When Ray, or the cloud behind it, takes the node away."""
    agents: int = 0
    refuses: str = ""
    """Why it takes no agent now, "" when it does."""


class Batch(Model):
    """What one commit of the store writes: whole rows, the last of equal keys wins."""

    tasks: tuple[Task, ...] = ()
    runs: tuple[Run, ...] = ()
    agents: tuple[AgentInfo, ...] = ()
    results: tuple[Result, ...] = ()
    approvals: tuple[Approval, ...] = ()
    roles: tuple[RoleState, ...] = ()
    transitions: tuple[Transition, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    """Rows of the table `setting`: JSON values by key (whole-fleet pause, drained nodes, templates, …)."""

    def __add__(self, other: Batch) -> Batch:
        lists = {name: getattr(self, name) + getattr(other, name) for name in Batch.model_fields if name != "settings"}
        return Batch(**lists, settings={**self.settings, **other.settings})

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not any(getattr(self, name) for name in Batch.model_fields)


class RouterState(Model):
    """What a router needs from the store to start."""

    epoch: int
    tasks: tuple[Task, ...]
    """All that are not final."""
    runs: tuple[Run, ...]
    """Those still `running`."""
    agents: tuple[AgentInfo, ...]
    """All that are wanted."""
    approvals: tuple[Approval, ...]
    """Those still waiting."""
    roles: tuple[RoleState, ...]
    idempotency: dict[str, str]
    """Key → task id, of all tasks."""
    settings: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        # Packed on its own, so that the collector can rest while a million tasks are made: it would double the time.
        return _unpacked, (pickle.dumps((self.__dict__, self.__pydantic_fields_set__), protocol=5),)


def _unpacked(data: bytes) -> RouterState:
    with no_collection():
        values, fields = pickle.loads(data)
    return built(RouterState, values, fields)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Let the garbage collector rest while many objects are made that all stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class FeedItem(Model):
    """One committed change, as the store tells whoever follows it.

    `item` is the row for `task`, `run`, `agent`, `result`, `approval`, `role`, `event`, or an `activity`.
    """

    position: int
    kind: Literal["task", "run", "agent", "result", "approval", "role", "event", "activity", "setting"]
    item: Any


class QueryResult(Model):
    """Rows of a query. `truncated` says that the bound of rows cut it."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False
    seconds: float = 0.0
