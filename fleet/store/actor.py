"""The store: `contracts.Store` over the DuckDB file. A plain class; `launch` makes it a Ray actor."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from fleet.errors import Conflict, NotFound, Unavailable
from fleet.models import (
    Activity,
    AgentInfo,
    Approval,
    Batch,
    Event,
    EventKind,
    FeedItem,
    QueryResult,
    Result,
    RouterState,
    Run,
    Task,
)
from fleet.store import backup as backups
from fleet.store import export as exports
from fleet.store import rows
from fleet.store.counts import DAY_S, Counts, TaskMark
from fleet.store.database import CommitOp, Database, EpochOp, EventsOp, NodesOp, Op, SettingOp
from fleet.store.feed import Feed
from fleet.store.messages import join_entries
from fleet.store.queries import Queries
from fleet.store.search import search
from fleet.store.writer import Writer, _die

log = logging.getLogger("fleet.store")
T = TypeVar("T")

READERS = 4
NODES_EVERY_S = 30.0
PRUNE_EVERY_S = 3600.0
LIMIT = 10_000
"""Rows that one read may return."""


class StoreActor:
    """The truth of a fleet (see `contracts.Store` for what each method promises).

    Args:
        path: the DuckDB file.
        retention_days: how long events are kept; None keeps them for ever.
        export_url: where to export on a schedule; None is never.
        export_every_s: how often.
        die: what to do when the database instance is lost; by default the process ends.
    """

    def __init__(
        self,
        path: str,
        *,
        retention_days: float | None = None,
        export_url: str | None = None,
        export_every_s: float = 3600.0,
        die: Callable[[str], None] = _die,
    ) -> None:
        began = time.monotonic()
        self._database = Database(path)
        self._retention_days = retention_days
        self._export_url = export_url
        self._export_every_s = export_every_s
        self._die = die
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._askers = ThreadPoolExecutor(READERS, thread_name_prefix="store-query")
        """People's queries and exports: however long they take, the fleet's own reads have threads."""
        self._queries = Queries(self._database)
        self._counts = Counts()
        self._activities: dict[str, Activity] = {}
        self._nodes: dict[str, tuple[float, float | None]] = {}
        self._writer: Writer | None = None
        self._feed: Feed | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._long = asyncio.Lock()
        self._load_counts()
        log.info("open path=%s epoch=%d seconds=%.2f", path, self._database.epoch, time.monotonic() - began)

    def __repr__(self) -> str:
        return f"store [{self._database.path}]"

    def _load_counts(self) -> None:
        found = self._database.read("SELECT id, state, priority, queued_at, finished_at FROM task")
        marks = ((row[0], TaskMark(row[1], row[2], rows.seconds_of(row[3]), rows.seconds_of(row[4]))) for row in found)
        today = time.time() // DAY_S * DAY_S
        costs = self._database.read(
            "SELECT id, coalesce(finished_at, started_at) AS ended, cost_usd FROM run WHERE ended >= $day",
            {"day": rows.stamp(today)},
        )
        self._counts.load(marks, ((row[0], rows.seconds_of(row[1]) or 0.0, row[2]) for row in costs))

    # ------------------------------------------------------------------ machinery

    def _start(self) -> tuple[Writer, Feed]:
        """Start what needs the event loop, at the first call."""
        if self._writer is None or self._feed is None:
            self._feed = Feed()
            self._writer = Writer(self._database, self._committed, self._die)
            self._tasks.append(asyncio.create_task(self._every(NODES_EVERY_S, self._write_nodes)))
            if self._retention_days is not None:
                self._tasks.append(asyncio.create_task(self._every(PRUNE_EVERY_S, self._prune_old)))
            if self._export_url is not None:
                self._tasks.append(asyncio.create_task(self._every(self._export_every_s, self._export_due)))
        return self._writer, self._feed

    async def _every(self, seconds: float, work: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("%s failed error=%s", work.__name__.strip("_"), error)

    async def _write_nodes(self) -> None:
        if self._nodes:
            seen, self._nodes = self._nodes, {}
            await self._start()[0].submit(NodesOp(seen), len(seen), 100)

    async def _prune_old(self) -> None:
        if self._retention_days is not None:
            await self.prune(older_than_s=self._retention_days * DAY_S)

    async def _export_due(self) -> None:
        if self._export_url is not None:
            await self.export(self._export_url)

    def _committed(self, written: Sequence[tuple[Op, Any]]) -> None:
        feed = self._start()[1]
        for op, _ in written:
            match op:
                case CommitOp(batch=batch):
                    self._counts.apply(batch)
                    for kind, items in (
                        ("task", batch.tasks),
                        ("run", batch.runs),
                        ("agent", batch.agents),
                        ("result", batch.results),
                        ("approval", batch.approvals),
                        ("role", batch.roles),
                    ):
                        for item in items:
                            feed.push(kind, item, _size(item))
                    for key, value in batch.settings.items():
                        feed.push("setting", {"key": key, "value": value})
                case EventsOp(written=events, payloads=payloads):
                    size = sum(map(len, payloads)) // max(1, len(payloads))
                    for pair in events:
                        if pair[0].kind is not EventKind.TRANSCRIPT:
                            feed.push("event", pair, size + 300)
                case SettingOp(key=key, value=value):
                    feed.push("setting", {"key": key, "value": value})
        feed.publish()

    async def _read(self, work: Callable[[], T], *, people: bool = False) -> T:
        self._start()
        pool = self._askers if people else self._readers
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except (duckdb.FatalException, duckdb.InternalException) as error:
            self._die(str(error))
            raise Unavailable("The store starts again. Try again.", part="store", retry_after_s=1.0) from error
        except duckdb.Error as error:
            log.warning("read failed error=%s", error)
            raise Unavailable(f"The store could not read this: {error}", part="store", retry_after_s=1.0) from error

    async def close(self) -> None:
        """Write what waits and close the file; nothing can be asked afterwards."""
        for task in self._tasks:
            task.cancel()
        if self._writer is not None:
            await self._writer.close()
        self._readers.shutdown(wait=True)
        self._askers.shutdown(wait=True)
        self._database.close()

    # ------------------------------------------------------------------ writing

    async def open_epoch(self, owner: str) -> RouterState:
        epoch: int = await self._start()[0].submit(EpochOp(owner), 1, 100)
        log.info("open epoch=%d owner=%s", epoch, owner)
        return await self._read(lambda: self._database.router_state(epoch))

    async def commit(self, epoch: int, batch: Batch) -> None:
        count = sum(len(getattr(batch, name)) for name in Batch.model_fields)
        size = 500 * count + sum(len(task.prompt) for task in batch.tasks)
        size += sum(len(result.text) + len(result.diff) for result in batch.results)
        await self._start()[0].submit(CommitOp(epoch, batch), count, size)

    async def append_events(self, events: Sequence[Event]) -> int:
        if not events:
            return -1
        payloads = [rows.to_json(event.payload) for event in events]
        size = 300 * len(events) + sum(map(len, payloads))
        last: int = await self._start()[0].submit(EventsOp(events, payloads), len(events), size)
        return last

    async def put_setting(self, key: str, value: Any) -> None:
        await self._start()[0].submit(SettingOp(key, value), 1, 1000)

    async def beat(self, activity: Activity) -> None:
        feed = self._start()[1]
        self._activities[activity.agent_id] = activity
        if activity.node:
            self._nodes[activity.node] = (activity.at, activity.node_free_mb)
        feed.push("activity", activity)
        feed.publish()

    async def prune(self, *, older_than_s: float | None = None, max_events: int | None = None) -> int:
        database = self._database
        deleted: int = await self._start()[0].call(lambda: database.prune(older_than_s, max_events))
        log.info("prune deleted=%d older_than_s=%s max_events=%s", deleted, older_than_s, max_events)
        return deleted

    # ------------------------------------------------------------------ following

    async def activities(self) -> list[Activity]:
        return sorted(self._activities.values(), key=lambda item: item.agent_id)

    async def follow(self, position: int | None, timeout_s: float = 10.0, limit: int = 2000) -> list[FeedItem]:
        return await self._start()[1].follow(position, timeout_s, limit)

    async def counts(self) -> dict[str, Any]:
        return self._counts.snapshot(time.time())

    # ------------------------------------------------------------------ reading

    async def task(self, task_id: str) -> Task:
        def work() -> list[Task]:
            exact: list[Task] = self._database.models(rows.TASK, "WHERE id = $id", {"id": task_id})
            if exact or not task_id:
                return exact
            return self._database.models(rows.TASK, "WHERE starts_with(id, $id) ORDER BY id LIMIT 2", {"id": task_id})

        found = await self._read(work)
        if len(found) == 1:
            return found[0]
        return _not_one(task_id, [task.id for task in found])

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
        where: list[str] = ["true"]
        params: dict[str, Any] = {"n": max(0, min(limit, LIMIT))}
        if states:
            where.append("state IN (SELECT unnest($states))")
            params["states"] = [str(state) for state in states]
        if roles:
            where.append("role IN (SELECT unnest($roles))")
            params["roles"] = list(roles)
        if agent is not None:
            where.append("(agent_id = $agent OR agent = $agent)")
            params["agent"] = agent
        if text:
            where.append("(contains(lower(prompt), $text) OR contains(lower(detail), $text) OR starts_with(id, $text))")
            params["text"] = rows.clean(text.lower())
        for number, (key, value) in enumerate((labels or {}).items()):
            # By a pointer, in which only ~ and / mean anything: a label may hold quotes and dots.
            where.append(f"json_extract_string(labels, $k{number}) = $v{number}")
            params[f"k{number}"] = "/" + key.replace("~", "~0").replace("/", "~1")
            params[f"v{number}"] = value
        if priority is not None:
            where.append("priority = $priority")
            params["priority"] = priority
        if since is not None:
            where.append("created_at >= $since")
            params["since"] = rows.stamp(since)
        if before is not None:
            where.append("id < $before")
            params["before"] = before
        tail = f"WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT $n"
        return await self._read(lambda: self._database.models(rows.TASK, tail, params))

    async def runs(self, *, task_id: str | None = None, agent_id: str | None = None, limit: int = 100) -> list[Run]:
        params: dict[str, Any] = {"n": max(0, min(limit, LIMIT))}
        where = "true"
        if task_id is not None:
            where += " AND task_id = $task"
            params["task"] = task_id
        if agent_id is not None:
            where += " AND agent_id = $agent"
            params["agent"] = agent_id
        order = "number, started_at, id" if task_id is not None else "started_at DESC, id DESC"
        return await self._read(
            lambda: self._database.models(rows.RUN, f"WHERE {where} ORDER BY {order} LIMIT $n", params)
        )

    async def result(self, task_id: str) -> Result | None:
        found = await self._read(lambda: self._database.results("WHERE task_id = $id", {"id": task_id}))
        return found[0] if found else None

    async def results(self, limit: int = 100) -> list[Result]:
        tail = "ORDER BY finished_at DESC, task_id DESC LIMIT $n"
        return await self._read(lambda: self._database.results(tail, {"n": max(0, min(limit, LIMIT))}, diffs=False))

    async def agents(self, *, all: bool = False) -> list[AgentInfo]:
        tail = "ORDER BY id" if all else "WHERE wanted ORDER BY id"
        return await self._read(lambda: self._database.models(rows.AGENT, tail))

    async def approvals(self, *, waiting: bool = True, limit: int = 200) -> list[Approval]:
        where = "WHERE state = 'waiting' ORDER BY created_at, id" if waiting else "ORDER BY created_at DESC, id DESC"
        return await self._read(
            lambda: self._database.models(rows.APPROVAL, f"{where} LIMIT $n", {"n": max(0, min(limit, LIMIT))})
        )

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
        database = self._database

        def work() -> list[Event]:
            low = max(after + 1, database.first_event(run_id=run_id, task_id=task_id, agent_id=agent_id))
            params: dict[str, Any] = {"low": low, "n": max(0, min(limit, LIMIT))}
            where = "id >= $low"
            for name, value in (("task_id", task_id), ("run_id", run_id), ("agent_id", agent_id)):
                if value is not None:
                    where += f" AND {name} = ${name}"
                    params[name] = value
            if before is not None:
                where += " AND id < $before"
                params["before"] = before
            if not transcript:
                where += " AND kind <> 'transcript'"
            order = "DESC" if newest else "ASC"
            found = database.read(
                f"SELECT {rows.EVENT_COLUMNS} FROM event WHERE {where} ORDER BY id {order} LIMIT $n", params
            )
            events = [rows.read_event(row) for row in found]
            return events[::-1] if newest else events

        return await self._read(work)

    async def transcript(self, session_id: str) -> list[dict[str, Any]]:
        def work() -> list[dict[str, Any]]:
            found = self._database.read(
                "SELECT payload FROM event WHERE session_id = $id AND kind = 'transcript' ORDER BY id",
                {"id": session_id},
            )
            return join_entries(json.loads(row[0]) for row in found)

        return await self._read(work)

    async def transitions(self, what: str, id: str) -> list[dict[str, Any]]:
        found = await self._read(
            lambda: self._database.read(
                "SELECT time, old, new, reason, why FROM transition WHERE what = $what AND subject = $id ORDER BY id",
                {"what": what, "id": id},
            )
        )
        return [
            {
                "at": rows.seconds_of(row[0]),
                "what": what,
                "id": id,
                "old": row[1],
                "new": row[2],
                "reason": row[3],
                "why": row[4],
            }
            for row in found
        ]

    async def setting(self, key: str) -> Any:
        found = await self._read(
            lambda: self._database.read("SELECT value FROM setting WHERE key = $key", {"key": key})
        )
        return json.loads(found[0][0]) if found else None

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
        return await self._read(
            lambda: search(
                self._database,
                words,
                tool=tool,
                path=path,
                role=role,
                state=state,
                since=since,
                limit=max(1, min(limit, 1000)),
            ),
            people=True,
        )

    # ------------------------------------------------------------------ people's SQL

    async def sql(
        self, query: str, *, max_rows: int = 10_000, timeout_s: float = 30.0, query_id: str | None = None
    ) -> QueryResult:
        return await self._read(lambda: self._queries.rows(query, max_rows, timeout_s, query_id), people=True)

    async def sql_arrow(self, query: str, *, max_rows: int = 1_000_000, timeout_s: float = 30.0) -> bytes:
        return await self._read(lambda: self._queries.arrow(query, max_rows, timeout_s), people=True)

    async def cancel_query(self, query_id: str) -> bool:
        return self._queries.cancel(query_id)

    # ------------------------------------------------------------------ copies

    async def backup(self, folder: str) -> dict[str, Any]:
        async with self._long:
            return await self._read(lambda: backups.backup(self._database, folder), people=True)

    async def export(self, url: str) -> dict[str, Any]:
        """Write what is new since the last export to a folder or fsspec URL (see `fleet.store.export`)."""
        async with self._long:
            return await self._read(lambda: exports.export(self._database, url), people=True)

    async def info(self) -> dict[str, Any]:
        writer, feed = self._start()
        database = self._database
        sizes = await self._read(
            lambda: dict(
                database.read("SELECT table_name, estimated_size FROM duckdb_tables() WHERE schema_name = 'main'")
            )
        )
        latencies = sorted(writer.latencies)
        return {
            "path": str(database.path),
            "bytes": _file_size(database.path),
            "wal_bytes": _file_size(Path(f"{database.path}.wal")),
            "schema_version": database.schema_version,
            "duckdb": duckdb.__version__,
            "epoch": database.epoch,
            "rows": sizes,
            "next_event": database.next_event,
            "commits": writer.commits,
            "rows_written": writer.rows_written,
            "commit_p50_s": _quantile(latencies, 0.5),
            "commit_p99_s": _quantile(latencies, 0.99),
            "inbox": writer.waiting,
            "position": feed.position,
            "pid": os.getpid(),
        }


def _not_one(task_id: str, found: list[str]) -> Task:
    if found:
        raise Conflict(f"Several tasks begin with {task_id}: give more of the id.", what="task", id=task_id, ids=found)
    raise NotFound(f"There is no task {task_id}. `fleet tasks` lists them.", what="task", id=task_id)


def _size(item: Any) -> int:
    return 500 + sum(len(getattr(item, name, None) or "") for name in ("prompt", "text", "diff"))


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _quantile(values: list[float], q: float) -> float | None:
    return round(values[min(len(values) - 1, int(q * len(values)))], 5) if values else None
