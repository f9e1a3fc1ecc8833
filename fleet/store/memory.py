"""The store's twin without a file, for tests: the same contract, the same errors, nothing durable."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.errors import Conflict, InvalidInput, NotFound, QueryRefused, StaleEpoch
from fleet.lifecycle import RunState
from fleet.models import (
    Activity,
    AgentInfo,
    Approval,
    ApprovalState,
    Batch,
    Event,
    EventKind,
    FeedItem,
    QueryResult,
    Refusal,
    Result,
    RoleState,
    RouterState,
    Run,
    Task,
    Transition,
)
from fleet.store.counts import Counts
from fleet.store.feed import Feed
from fleet.store.messages import Calls, Message, join_entries, messages_of, session_of
from fleet.store.words import snippet, split_words


class MemoryStore:
    """`contracts.Store` in memory. It has neither SQL nor files: those methods raise `InvalidInput` and its kinds."""

    def __init__(self) -> None:
        self.epoch = 0
        self.refusals: list[Refusal] = []
        self._tasks: dict[str, Task] = {}
        self._runs: dict[str, Run] = {}
        self._results: dict[str, Result] = {}
        self._agents: dict[str, AgentInfo] = {}
        self._approvals: dict[str, Approval] = {}
        self._roles: dict[str, RoleState] = {}
        self._settings: dict[str, Any] = {}
        self._transitions: list[Transition] = []
        self._events: list[Event] = []
        self._messages: list[tuple[Event, Message]] = []
        self._calls: dict[str, Calls] = {}
        self._last_seq: dict[str, int] = {}
        self._next_event = 1
        self._activities: dict[str, Activity] = {}
        self._counts = Counts()
        self._made_feed: Feed | None = None

    @property
    def _feed(self) -> Feed:
        if self._made_feed is None:
            self._made_feed = Feed()
        return self._made_feed

    # ------------------------------------------------------------------ writing

    async def open_epoch(self, owner: str) -> RouterState:
        self.epoch += 1
        return RouterState(
            epoch=self.epoch,
            tasks=tuple(
                sorted((t for t in self._tasks.values() if not t.state.final), key=lambda t: (t.created_at, t.id))
            ),
            runs=tuple(
                sorted(
                    (r for r in self._runs.values() if r.state is RunState.RUNNING), key=lambda r: (r.started_at, r.id)
                )
            ),
            agents=tuple(sorted((a for a in self._agents.values() if a.wanted), key=lambda a: a.id)),
            approvals=tuple(await self.approvals(limit=10**9)),
            roles=tuple(self._roles[name] for name in sorted(self._roles)),
            idempotency={t.idempotency_key: t.id for t in self._tasks.values() if t.idempotency_key is not None},
            settings=dict(self._settings),
        )

    async def commit(self, epoch: int, batch: Batch) -> None:
        if epoch < self.epoch:
            raise StaleEpoch(
                f"This router's epoch is {epoch}, but router {self.epoch} has taken over. Stop this one.",
                epoch=epoch,
                current=self.epoch,
            )
        feed = self._feed
        self._counts.apply(batch)
        for task in batch.tasks:
            self._tasks[task.id] = task
            feed.push("task", task)
        for run in batch.runs:
            self._runs[run.id] = run
            feed.push("run", run)
        for agent in batch.agents:
            self._agents[agent.id] = agent
            feed.push("agent", agent)
        for result in batch.results:
            self._results[result.task_id] = result
            feed.push("result", result)
        for approval in batch.approvals:
            self._approvals[approval.id] = approval
            feed.push("approval", approval)
        for role in batch.roles:
            self._roles[role.role] = role
            feed.push("role", role)
        for key, value in batch.settings.items():
            self._put_setting(key, value)
        self._transitions.extend(batch.transitions)
        self.refusals.extend(batch.refusals)
        feed.publish()

    def _put_setting(self, key: str, value: Any) -> None:
        self._settings[key] = json.loads(json.dumps(value, default=str))
        self._feed.push("setting", {"key": key, "value": value})

    async def append_events(self, events: Sequence[Event]) -> int:
        last = -1
        for event in events:
            last = self._last_seq.get(event.run_id, -1)
            if event.seq <= last:
                continue
            self._last_seq[event.run_id] = last = event.seq
            kept = event.model_copy(update={"id": self._next_event})
            self._next_event += 1
            self._events.append(kept)
            if event.kind is not EventKind.TRANSCRIPT:
                calls = self._calls.setdefault(event.run_id, Calls())
                self._messages.extend((kept, message) for message in messages_of(kept, calls))
                self._feed.push("event", kept)
        self._feed.publish()
        return last

    async def beat(self, activity: Activity) -> None:
        self._activities[activity.agent_id] = activity
        self._feed.push("activity", activity)
        self._feed.publish()

    async def put_setting(self, key: str, value: Any) -> None:
        self._put_setting(key, value)
        self._feed.publish()

    async def prune(self, *, older_than_s: float | None = None, max_events: int | None = None) -> int:
        low = 0
        if older_than_s is not None:
            cut = time.time() - older_than_s
            low = min((e.id or 0 for e in self._events if e.at >= cut), default=self._next_event)
        if max_events is not None and len(self._events) > max_events:
            kept_from = self._events[-max_events].id or 0 if max_events else self._next_event
            low = max(low, kept_from)
        low = min(low, self._next_event - 1)
        kept = [
            event
            for event in self._events
            if (event.id or 0) >= low or ((task := self._tasks.get(event.task_id)) is not None and not task.state.final)
        ]
        deleted = len(self._events) - len(kept)
        self._events = kept
        ids = {event.id for event in kept}
        self._messages = [pair for pair in self._messages if pair[0].id in ids]
        return deleted

    # ------------------------------------------------------------------ following and reading

    async def activities(self) -> list[Activity]:
        return sorted(self._activities.values(), key=lambda item: item.agent_id)

    async def follow(self, position: int | None, timeout_s: float = 10.0, limit: int = 2000) -> list[FeedItem]:
        return await self._feed.follow(position, timeout_s, limit)

    async def counts(self) -> dict[str, Any]:
        return self._counts.snapshot(time.time())

    async def task(self, task_id: str) -> Task:
        if task_id in self._tasks:
            return self._tasks[task_id]
        found = sorted(key for key in self._tasks if task_id and key.startswith(task_id))[:2]
        if len(found) == 1:
            return self._tasks[found[0]]
        if found:
            raise Conflict(
                f"Several tasks begin with {task_id}: give more of the id.", what="task", id=task_id, ids=found
            )
        raise NotFound(f"There is no task {task_id}. `fleet tasks` lists them.", what="task", id=task_id)

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
        found: list[Task] = []
        for key in sorted(self._tasks, reverse=True):
            task = self._tasks[key]
            if (
                (states and task.state not in states)
                or (roles and task.role not in roles)
                or (agent is not None and agent not in (task.agent_id, task.agent))
                or (text and not _has(task, text.lower()))
                or (labels and any(task.labels.get(name) != value for name, value in labels.items()))
                or (priority is not None and task.priority != priority)
                or (since is not None and task.created_at < since)
                or (before is not None and key >= before)
            ):
                continue
            found.append(task)
        return found[: max(0, limit)]

    async def runs(self, *, task_id: str | None = None, agent_id: str | None = None, limit: int = 100) -> list[Run]:
        found = [
            run
            for run in self._runs.values()
            if (task_id is None or run.task_id == task_id) and (agent_id is None or run.agent_id == agent_id)
        ]
        if task_id is not None:
            found.sort(key=lambda run: (run.number, run.started_at, run.id))
        else:
            found.sort(key=lambda run: (run.started_at, run.id), reverse=True)
        return found[:limit]

    async def result(self, task_id: str) -> Result | None:
        return self._results.get(task_id)

    async def results(self, limit: int = 100) -> list[Result]:
        found = sorted(self._results.values(), key=lambda r: (r.finished_at, r.task_id), reverse=True)[:limit]
        return [result.model_copy(update={"diff": ""}) for result in found]

    async def agents(self, *, all: bool = False) -> list[AgentInfo]:
        return sorted((a for a in self._agents.values() if all or a.wanted), key=lambda a: a.id)

    async def approvals(self, *, waiting: bool = True, limit: int = 200) -> list[Approval]:
        found = [a for a in self._approvals.values() if not waiting or a.state is ApprovalState.WAITING]
        found.sort(key=lambda a: (a.created_at, a.id), reverse=not waiting)
        return found[:limit]

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
        found = [
            event
            for event in self._events
            if (task_id is None or event.task_id == task_id)
            and (run_id is None or event.run_id == run_id)
            and (agent_id is None or event.agent_id == agent_id)
            and (event.id or 0) > after
            and (before is None or (event.id or 0) < before)
            and (transcript or event.kind is not EventKind.TRANSCRIPT)
        ]
        if limit <= 0:
            return []
        return found[-limit:] if newest else found[:limit]

    async def transcript(self, session_id: str) -> list[dict[str, Any]]:
        return join_entries(
            event.payload
            for event in self._events
            if event.kind is EventKind.TRANSCRIPT and session_of(event.payload) == session_id
        )

    async def transitions(self, what: str, id: str) -> list[dict[str, Any]]:
        return [item.model_dump() for item in self._transitions if item.what == what and item.id == id]

    async def setting(self, key: str) -> Any:
        return self._settings.get(key)

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
        wanted = split_words(words)
        found: list[dict[str, Any]] = []
        for event, message in reversed(self._messages):
            run, task = self._runs.get(event.run_id), self._tasks.get(event.task_id)
            its_role = run.role if run else None
            its_state = task.state.value if task else None
            if (
                any(word not in message.text.lower() for word in wanted)
                or (tool and message.tool != tool)
                or (path and path.lower() not in (message.path or "").lower())
                or (role and its_role != role)
                or (state and its_state != state)
                or (since is not None and event.at < since)
                or (not wanted and not tool and not path and not message.text)
            ):
                continue
            found.append(
                {
                    "task_id": event.task_id,
                    "run_id": event.run_id,
                    "event_id": event.id,
                    "at": event.at,
                    "role": its_role,
                    "state": its_state,
                    "kind": message.kind,
                    "tool": message.tool,
                    "path": message.path,
                    "agent_id": event.agent_id,
                    "snippet": snippet(message.text, wanted),
                }
            )
            if len(found) >= limit:
                break
        return found

    # ------------------------------------------------------------------ what needs DuckDB

    async def sql(
        self, query: str, *, max_rows: int = 10_000, timeout_s: float = 30.0, query_id: str | None = None
    ) -> QueryResult:
        raise QueryRefused("The store in memory has no SQL.")

    async def sql_arrow(self, query: str, *, max_rows: int = 1_000_000, timeout_s: float = 30.0) -> bytes:
        raise QueryRefused("The store in memory has no SQL.")

    async def cancel_query(self, query_id: str) -> bool:
        return False

    async def backup(self, folder: str) -> dict[str, Any]:
        raise InvalidInput(f"The store in memory cannot be copied to {Path(folder)}.")

    async def export(self, url: str) -> dict[str, Any]:
        raise InvalidInput(f"The store in memory cannot be exported to {url}.")

    async def info(self) -> dict[str, Any]:
        return {
            "path": ":memory:",
            "bytes": 0,
            "schema_version": 0,
            "epoch": self.epoch,
            "rows": {"task": len(self._tasks), "run": len(self._runs), "event": len(self._events)},
            "next_event": self._next_event,
            "commit_p50_s": None,
            "commit_p99_s": None,
            "inbox": 0,
            "position": self._feed.position,
            "pid": 0,
        }


def _has(task: Task, text: str) -> bool:
    return text in task.prompt.lower() or text in task.detail.lower() or task.id.startswith(text)
