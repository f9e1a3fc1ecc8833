"""What the parts promise each other: the seams between the stages, as protocols.

The real parts are Ray actors or deployments; callers hold a thin proxy (`fleet.cluster.handles`) whose methods are the
coroutines below, so nothing but the proxies knows Ray. Errors of `fleet.errors` cross the border unchanged; a part
that does not answer raises `Unavailable`, an agent whose actor is dead `AgentGone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fleet.models import (
    Activity,
    AgentInfo,
    AgentReport,
    Approval,
    Batch,
    Event,
    FeedItem,
    NodeInfo,
    Outcome,
    QueryResult,
    Result,
    RoleState,
    RouterState,
    Run,
    RunOrder,
    Task,
    TaskSpec,
)

NAMESPACE = "fleet"
"""The Ray namespace of every actor of a fleet."""
STORE_NAME = "fleet-store"
"""The name of the store's actor."""
AGENT_PREFIX = "agent:"
"""An agent's actor is named `agent:` + its id, so that the Ray dashboard lists agents together."""
HOST_LABEL = "fleet/host"
"""The Ray label with a node's host name: a node that comes back has another Ray id, but the same host."""
SERVE_APP = "fleet"
ROUTER_DEPLOYMENT = "Router"
GATEWAY_DEPLOYMENT = "Gateway"


class Store(Protocol):
    """The truth: the only process that opens the DuckDB file. Every write is durable (fsync) when it returns."""

    async def open_epoch(self, owner: str) -> RouterState:
        """Begin a new router's epoch: from now on commits with an older one raise `StaleEpoch`."""
        ...

    async def commit(self, epoch: int, batch: Batch) -> None:
        """Write a batch in one transaction (grouped with others). Raises StaleEpoch, Busy, StorageFull."""
        ...

    async def append_events(self, events: Sequence[Event]) -> int:
        """Write events of a run in their order; those at or below the run's last `seq` are left out. Returns the last
        `seq` that is durable for the run. Raises Busy, StorageFull."""
        ...

    async def beat(self, activity: Activity) -> None:
        """Say what an agent does now (memory only); also the agent's proof that it is alive."""
        ...

    async def activities(self) -> list[Activity]:
        """Return the newest activity of every agent."""
        ...

    async def follow(self, position: int | None, timeout_s: float = 10.0, limit: int = 2000) -> list[FeedItem]:
        """Wait for committed changes after `position` and return them in order.

        None begins now: the answer is one empty-handed item of kind `setting` whose position is the present one. When
        `position` is too old for the ring in memory, the first item says so: kind `setting`, item
        `{"gap": true}`; the follower reads its state anew. An empty list means that nothing came in time.
        """
        ...

    async def task(self, task_id: str) -> Task:
        """Return a task by id or unique prefix of it. Raises NotFound."""
        ...

    async def tasks(
        self,
        *,
        states: Sequence[str] = (),
        roles: Sequence[str] = (),
        agent: str | None = None,
        text: str | None = None,
        labels: dict[str, str] | None = None,
        priority: int | None = None,
        since: float | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Task]:
        """Return tasks, newest first; `before` is the id of the last one seen (the cursor)."""
        ...

    async def runs(self, *, task_id: str | None = None, agent_id: str | None = None, limit: int = 100) -> list[Run]:
        """Return runs of a task (oldest first) or of an agent (newest first)."""
        ...

    async def result(self, task_id: str) -> Result | None: ...

    async def results(self, limit: int = 100) -> list[Result]:
        """Return results, newest first, without their diffs."""
        ...

    async def agents(self, *, all: bool = False) -> list[AgentInfo]:
        """Return the agents that are wanted; with `all` also those that were stopped."""
        ...

    async def approvals(self, *, waiting: bool = True, limit: int = 200) -> list[Approval]: ...

    async def events(
        self,
        *,
        task_id: str | None = None,
        run_id: str | None = None,
        agent_id: str | None = None,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        newest: bool = False,
        transcript: bool = False,
    ) -> list[Event]:
        """Return events in the order of their ids, those with `after < id < before`.

        `newest` takes the last `limit` of them in place of the first. TRANSCRIPT events only come with `transcript`.
        """
        ...

    async def transcript(self, session_id: str) -> list[dict[str, Any]]:
        """Return the entries of a Claude session in order, each once, as its journal has them: for a resume."""
        ...

    async def transitions(self, what: str, id: str) -> list[dict[str, Any]]:
        """Return the changes of state of one task, run or agent, oldest first."""
        ...

    async def counts(self) -> dict[str, Any]:
        """Return the figures of the overview: `{"states": {state: n}, "queued_by_priority": {p: n}, "done_today": n,
        "failed_today": n, "cost_today": usd, "oldest_queued_at": epoch seconds or None}`. From memory, cheap."""
        ...

    async def search(
        self,
        words: str = "",
        *,
        tool: str | None = None,
        path: str | None = None,
        role: str | None = None,
        state: str | None = None,
        since: float | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Search all transcripts, newest first: dicts with task_id, run_id, event_id, at, role, state, snippet."""
        ...

    async def sql(
        self, query: str, *, max_rows: int = 10_000, timeout_s: float = 30.0, query_id: str | None = None
    ) -> QueryResult:
        """Run one SELECT on a snapshot. Raises QueryRefused, QueryLimit."""
        ...

    async def sql_arrow(self, query: str, *, max_rows: int = 1_000_000, timeout_s: float = 30.0) -> bytes:
        """As `sql`, as an Arrow IPC stream."""
        ...

    async def cancel_query(self, query_id: str) -> bool: ...

    async def setting(self, key: str) -> Any:
        """Return a JSON value of the table `setting`, None when there is none."""
        ...

    async def put_setting(self, key: str, value: Any) -> None:
        """Keep a JSON value that belongs to no router epoch (templates, saved queries)."""
        ...

    async def backup(self, folder: str) -> dict[str, Any]:
        """Write a copy of the database and Parquet files of all tables into a new folder, while running."""
        ...

    async def export(self, url: str) -> dict[str, Any]:
        """Write what is new since the last export as Parquet, by day and role, to a folder or fsspec URL."""
        ...

    async def prune(self, *, older_than_s: float | None = None, max_events: int | None = None) -> int:
        """Delete old events (never tasks, runs, results); return how many."""
        ...

    async def info(self) -> dict[str, Any]:
        """Return figures of the store: path, bytes, schema version, rows, commit p50 and p99, inbox length, pid."""
        ...


class Agent(Protocol):
    """An agent's actor."""

    async def hello(self, epoch: int) -> AgentReport:
        """Say what the agent has; a router asks it before it dispatches. Raises StaleEpoch."""
        ...

    async def run(self, order: RunOrder, acknowledge: str | None = None) -> Outcome:
        """Do a run and return how it ended. `acknowledge` is the id of a run whose outcome is committed.

        Called again for the run it has, it waits for the same outcome. Raises StaleEpoch, Conflict (busy with
        another run).
        """
        ...

    async def wait(self, run_id: str) -> Outcome:
        """Wait for the outcome of a run the agent has, or had and was not acknowledged. Raises NotFound."""
        ...

    async def acknowledge(self, run_id: str) -> None:
        """The outcome of this run is committed: the agent may forget it."""
        ...

    async def cancel(self, run_id: str, reason: str, detail: str = "") -> bool:
        """Interrupt a run; its outcome carries the reason. False when the agent does not have it."""
        ...

    async def message(self, text: str, run_id: str | None = None) -> bool:
        """Put a message into the running conversation. False when there is none."""
        ...

    async def decide(self, approval: Approval) -> bool:
        """Answer a tool call that waits for a person. False when it does not wait here."""
        ...

    async def stop(self, grace_s: float = 3.0) -> None:
        """End the run, if any, and everything of it."""
        ...


class Router(Protocol):
    """The mind: the queue, the agents wanted, the decisions. Called through its Serve handle.

    Every change is committed to the store before the call returns.
    """

    async def submit(self, specs: Sequence[TaskSpec]) -> list[Task]:
        """Accept tasks, all or none. A known idempotency key returns its task. Raises InvalidInput kinds, Busy,
        Unavailable, StorageFull."""
        ...

    async def cancel(self, task_ids: Sequence[str], detail: str = "") -> list[Task]: ...

    async def retry(self, task_ids: Sequence[str]) -> list[Task]:
        """Queue failed, cancelled or dead tasks again, with their retries renewed. Raises Conflict for others."""
        ...

    async def prioritize(self, task_ids: Sequence[str], priority: int) -> list[Task]: ...

    async def spawn(self, role: str, count: int = 1) -> list[AgentInfo]: ...

    async def stop_agent(self, agent_id: str, *, drain: bool = True) -> AgentInfo: ...

    async def send(self, agent_id: str, text: str) -> dict[str, Any]:
        """Say something to an agent: `{"delivered": true, "task_id": …}` into its running conversation, or
        `{"delivered": false, "task_id": …}` as a new task pinned to it."""
        ...

    async def interrupt(self, agent_id: str) -> bool:
        """Cancel what the agent runs now (its task becomes `cancelled`)."""
        ...

    async def decide(
        self,
        approval_id: str,
        *,
        allow: bool,
        scope: str = "once",
        message: str = "",
        changed_input: dict[str, Any] | None = None,
        by: str = "",
    ) -> Approval: ...

    async def ask(self, approval: Approval) -> None:
        """An agent's tool call waits for a person: commit it and let it be seen."""
        ...

    async def withdraw(self, approval_id: str) -> None:
        """The call no longer waits."""
        ...

    async def pause(self, role: str | None, paused: bool) -> None:
        """Pause or resume a role's queue, or with None the whole fleet's."""
        ...

    async def scale(self, role: str, agents: int) -> RoleState:
        """Say how many agents a role has."""
        ...

    async def drain_node(self, node: str, deadline_s: float | None = None, undo: bool = False) -> NodeInfo: ...

    async def nodes(self) -> list[NodeInfo]: ...

    async def roles(self) -> list[dict[str, Any]]:
        """Return each role: `{"role": Role, "agents_wanted": n, "agents": n, "idle": n, "queued": n, "paused": bool,
        "oldest_queued_at": …, "why": …}`."""
        ...

    async def status(self) -> dict[str, Any]:
        """Return `{"epoch", "rehearsal", "paused", "since", "queued", "running", "agents",
        "why": {role: sentence}}`."""
        ...
