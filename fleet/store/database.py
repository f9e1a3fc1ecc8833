"""The synchronous core: opens the DuckDB file, writes groups of operations in one transaction each, reads by cursors.

One thread writes (`write`, `run`), any thread reads (`read`, `cursor`): DuckDB refuses two calls at once on one
connection, and cursors of the same instance see a snapshot each.
"""

from __future__ import annotations

import errno
import importlib.resources
import json
import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from fleet.errors import FleetError, InvalidInput, StaleEpoch, StartFailed, StorageFull, StoreCorrupt
from fleet.models import (
    AgentInfo,
    Approval,
    Batch,
    Event,
    EventKind,
    Result,
    RoleState,
    RouterState,
    Run,
    Task,
    no_collection,
)
from fleet.store import rows
from fleet.store.messages import INPUT_LIMIT, Calls, messages_of, session_of

log = logging.getLogger("fleet.store")
T = TypeVar("T")

CONFIG = {
    "threads": 2,
    "memory_limit": "1GB",
    # Never by itself: a checkpoint that meets a full disk is fatal to the instance. `checkpoint` looks first.
    "checkpoint_threshold": "1TB",
    # An automatic install goes to the network for seconds at a time.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
TEMP_LIMIT = "4GB"
"""What queries may spill to disk."""
RUNS_KEPT = 20_000
"""Runs whose last `seq` is kept in memory; older ones are read again when needed."""
NODE_EVERY_S = 30.0
"""How often a node's row follows its agents."""
CHECKPOINT_BYTES = 128 * 2**20
"""WAL after which a checkpoint is due. At 16 MiB, DuckDB's default, commits stalled for 0.2 s every 93,000 rows; 180 MB
take 0.5 s to replay."""
CHECKPOINT_SPARE_BYTES = 16 * 2**20
"""Space a checkpoint needs beside the size of the WAL."""
LOCK_WAIT_S = 15.0
"""How long to wait for a predecessor that still holds the file: a killed actor's process takes a moment to go."""

EVENT_TABLE = ("id", "run_id", "task_id", "agent_id", "role", "seq", "time", "kind", "type", "session_id", "payload")
MESSAGE_TABLE = (
    "event_id",
    "run_id",
    "task_id",
    "agent_id",
    "role",
    "time",
    "speaker",
    "kind",
    "tool",
    "tool_use_id",
    "path",
    "input",
    "failed",
    "seconds",
    "text",
    "folded",
)
KEYED = (rows.RUN, rows.AGENT, rows.RESULT, rows.APPROVAL, rows.ROLE_STATE)


class Fatal(Exception):
    """The database instance is lost (DuckDB's FatalException): only a new process can open the file again."""


@dataclass(slots=True)
class CommitOp:
    """A router's batch. The outcome is None."""

    epoch: int
    batch: Batch


@dataclass(slots=True)
class EventsOp:
    """Events with their payloads as JSON. The outcome is the last durable `seq` of the last event's run."""

    events: Sequence[Event]
    payloads: Sequence[str]
    written: list[tuple[Event, int]] = field(default_factory=list)
    """Filled by the write: the events that were new, and their ids."""


@dataclass(slots=True)
class EpochOp:
    """A new router. The outcome is its epoch."""

    owner: str


@dataclass(slots=True)
class SettingOp:
    """A setting of no epoch. The outcome is None."""

    key: str
    value: Any


@dataclass(slots=True)
class NodesOp:
    """Nodes heard from: name → (when, free memory in MiB). The outcome is None."""

    seen: dict[str, tuple[float, float | None]]


Op = CommitOp | EventsOp | EpochOp | SettingOp | NodesOp


@dataclass(slots=True)
class _Mark:
    """What is remembered of a run."""

    role: str | None
    last_seq: int
    first_event: int
    calls: Calls = field(default_factory=Calls)


@dataclass(slots=True)
class _Group:
    """The rows of one transaction, and what changes in memory once it is committed."""

    epoch: int
    next_event: int
    next_transition: int
    owner: str | None = None
    tasks: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    keyed: dict[str, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    """Runs that a row exists of, though memory does not know them."""
    fresh: set[str] = field(default_factory=set)
    """Runs that no row exists of."""
    transitions: list[tuple[Any, ...]] = field(default_factory=list)
    refusals: list[tuple[Any, ...]] = field(default_factory=list)
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    nodes: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    messages: list[tuple[Any, ...]] = field(default_factory=list)
    marks: dict[str, _Mark] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    """Run → the last `seq` that is staged."""


class Database:
    """The DuckDB file.

    Args:
        path: the file; made when it does not exist.

    Raises:
        StartFailed: the file cannot be opened or written.
        StoreCorrupt: it is newer than this program, or failed its self-check.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.work = self.path.with_name(self.path.name + ".work")
        """The only folder DuckDB may write beside its file: copies and Parquet are made here and then moved."""
        self._root = self._open()
        self._root_lock = threading.Lock()
        self._local = threading.local()
        self._con = self._root.cursor()
        try:
            self._migrate()
            self._self_check()
            self._prepare()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ opening

    def _open(self) -> Any:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.work, ignore_errors=True)  # What a copy that was cut off left there.
            self.work.mkdir(mode=0o700, exist_ok=True)
            if self.path.exists() and not self.path.stat().st_size:
                self.path.unlink()  # A first start that was killed, or met a full disk, leaves an empty file.
        except OSError as error:
            raise StartFailed(
                f"The store's folder {self.path.parent} cannot be written ({error}). Choose another with FLEET_HOME.",
                path=str(self.path),
            ) from error
        config = CONFIG | {
            "temp_directory": str(self.path) + ".tmp",
            "max_temp_directory_size": TEMP_LIMIT,
        }
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                root = duckdb.connect(str(self.path), config=config)
                self.path.chmod(0o600)  # Prompts and transcripts: nobody else's business.
                break
            except duckdb.IOException as error:
                text = str(error)
                if "lock" in text and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                if "lock" in text:
                    raise StartFailed(
                        f"{self.path} is open in another process. End the fleet that uses it (`fleet down`), or choose "
                        "another FLEET_HOME.",
                        path=str(self.path),
                    ) from error
                if "not a valid DuckDB" in text or "version number" in text or "Corrupt" in text:
                    raise self._corrupt(text) from error
                raise StartFailed(f"{self.path} cannot be opened: {text}", path=str(self.path)) from error
            except duckdb.Error as error:
                raise self._corrupt(str(error)) from error
        # SQL of users comes later and through a guard; these make sure that what the guard overlooks reaches no file.
        allowed = str(self.work).replace("'", "''")
        root.execute(f"SET allowed_directories = ['{allowed}']")
        root.execute("SET GLOBAL TimeZone = 'UTC'")
        root.execute("SET enable_external_access = false")
        root.execute("SET python_enable_replacements = false")
        root.execute("SET lock_configuration = true")
        return root

    def _corrupt(self, why: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self.path} failed its check: {why} Restore the last backup (`fleet restore`), or move the file away.",
            path=str(self.path),
        )

    def _migrate(self) -> None:
        """Bring the schema to this program's version, one migration at a time.

        Each is a transaction followed by a CHECKPOINT: the replay of a WAL that mixes DDL with DML has failed in
        several versions of DuckDB.
        """
        con = self._con
        known = migrations()
        tables = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        version = 0
        if "meta" in tables:
            found = con.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
            version = int(found[0][0]) if found else 0
        elif tables:
            raise self._corrupt("it is a DuckDB file of another program.")
        if version > len(known):
            raise StoreCorrupt(
                f"{self.path} has schema version {version}, but this program knows {len(known)}. Use the newer "
                "program, or another FLEET_HOME.",
                path=str(self.path),
                version=version,
                known=len(known),
            )
        for number, (name, sql) in enumerate(known, start=1):
            if number <= version:
                continue
            log.info("migrate version=%d name=%s path=%s", number, name, self.path)
            con.begin()
            con.execute(sql)
            con.execute("DELETE FROM meta WHERE key = 'schema_version'")
            con.execute("INSERT INTO meta VALUES ('schema_version', $v)", {"v": str(number)})
            con.commit()
            con.execute("CHECKPOINT")
        self.schema_version = len(known)

    def _self_check(self) -> None:
        """Compare the key's index with the table, and read the ends of what only grows."""
        con = self._con
        try:
            total, distinct = con.execute("SELECT count(*), count(DISTINCT id) FROM task").fetchall()[0]
            if total != distinct:
                raise self._corrupt(f"task has {total} rows but {distinct} ids.")
            sample = con.execute("SELECT id, hash(task) FROM task USING SAMPLE 50 ROWS").fetchall() if total else []
            for task_id, mark in sample:
                found = con.execute("SELECT hash(task) FROM task WHERE id = $id", {"id": task_id}).fetchall()
                if found != [(mark,)]:
                    raise self._corrupt(f"the key of task {task_id} does not lead to its row.")
            top = con.execute("SELECT coalesce(max(id), 0) FROM event").fetchall()[0][0]
            tail = con.execute(
                "SELECT count(*), count(DISTINCT id) FROM event WHERE id > $low", {"low": top - 5000}
            ).fetchall()[0]
            if tail[0] != tail[1]:
                raise self._corrupt(f"the last events have {tail[0]} rows but {tail[1]} ids.")
        except duckdb.Error as error:
            raise self._corrupt(str(error)) from error

    def _prepare(self) -> None:
        con = self._con
        meta = dict(con.execute("SELECT key, value FROM meta").fetchall())
        self.epoch = int(meta.get("epoch", "0"))
        self.next_event = con.execute("SELECT coalesce(max(id), 0) + 1 FROM event").fetchall()[0][0]
        self.next_transition = con.execute("SELECT coalesce(max(id), 0) + 1 FROM transition").fetchall()[0][0]
        self._marks: OrderedDict[str, _Mark] = OrderedDict()
        self._nodes_written: dict[str, float] = {}
        running = con.execute("SELECT id, role, first_event FROM run WHERE state = 'running'").fetchall()
        if running:
            low = min(row[2] for row in running)
            seqs = dict(
                con.execute(
                    "SELECT run_id, max(seq) FROM event WHERE id >= $low AND run_id IN (SELECT unnest($ids)) "
                    "GROUP BY ALL",
                    {"low": low, "ids": [row[0] for row in running]},
                ).fetchall()
            )
            for run_id, role, first in running:
                self._marks[run_id] = _Mark(role, seqs.get(run_id, -1), first)
            self._load_calls(low)
        self._appenders = {
            "task": con.appender("task", columns=list(rows.TASK.columns), action="upsert"),
            "event": con.appender("event", columns=list(EVENT_TABLE)),
            "message": con.appender("message", columns=list(MESSAGE_TABLE)),
            "transition": con.appender("transition", columns=["id", *rows.TRANSITION.columns]),
            "refusal": con.appender("refusal", columns=list(rows.REFUSAL.columns)),
            "setting": con.appender("setting", columns=["key", "value"]),
        }
        for table in KEYED:
            columns = [*table.columns, "first_event"] if table is rows.RUN else list(table.columns)
            self._appenders[table.name] = con.appender(table.name, columns=columns)

    def _load_calls(self, low: int) -> None:
        """Know the tool calls under way, so that an answer that comes after a restart still names its tool."""
        found = self._con.execute(
            "SELECT run_id, tool_use_id, tool, path, text, time FROM message AS call WHERE event_id >= $low "
            "AND kind = 'tool_use' AND run_id IN (SELECT unnest($ids)) AND NOT EXISTS (FROM message AS answer WHERE "
            "answer.event_id >= $low AND answer.kind = 'tool_result' AND answer.run_id = call.run_id "
            "AND answer.tool_use_id = call.tool_use_id) ORDER BY event_id",
            {"low": low, "ids": list(self._marks)},
        ).fetchall()
        for run_id, call_id, tool, path, text, when in found:
            began = rows.seconds_of(when) or 0.0
            self._marks[run_id].calls.open[call_id] = (tool, path, text[:INPUT_LIMIT], began)

    def close(self) -> None:
        """Close the file, with a checkpoint where that is possible."""
        self._appenders = {}
        for con in (self._con, self._root):
            try:
                con.close()
            except duckdb.Error as error:
                log.warning("close path=%s error=%s", self.path, error)

    # ------------------------------------------------------------------ writing (one thread)

    def write(self, ops: Sequence[Op]) -> list[Any]:
        """Write operations in one transaction; return for each its outcome, or the exception that it met alone.

        Raises:
            Fatal: the process must end.
        """
        group = _Group(self.epoch, self.next_event, self.next_transition)
        outcomes: list[Any] = []
        try:
            group.known = self._known_runs(ops)
        except duckdb.Error as error:
            return self._failed(ops, [None] * len(ops), error)
        for op in ops:
            try:
                outcomes.append(self._stage(group, op))
            except FleetError as error:
                outcomes.append(error)
            except (TypeError, ValueError, OverflowError) as error:
                outcomes.append(InvalidInput(f"The store cannot write this: {error}."))
        try:
            self._execute(group)
        except duckdb.Error as error:
            return self._failed(ops, outcomes, error)
        self._apply(group)
        return outcomes

    def _failed(self, ops: Sequence[Op], outcomes: list[Any], error: duckdb.Error) -> list[Any]:
        self._rollback(error)
        if disk_full(error):
            full: list[Any] = []
            for op, outcome in zip(ops, outcomes, strict=True):
                if isinstance(op, EventsOp):
                    op.written.clear()
                full.append(outcome if isinstance(outcome, FleetError) else storage_full(self.path, error))
            return full
        log.error("commit failed ops=%d error=%s", len(ops), error)
        for op in ops:
            if isinstance(op, EventsOp):
                op.written.clear()
        if len(ops) > 1:  # One bad row fails its whole flush: find whose it is, so that it harms nobody else.
            return [self.write([op])[0] for op in ops]
        return [InvalidInput(f"The store could not write this: {error}")]

    def _rollback(self, error: duckdb.Error) -> None:
        if isinstance(error, duckdb.FatalException | duckdb.InternalException):
            raise Fatal(str(error)) from error
        try:
            self._con.rollback()
        except duckdb.FatalException as worse:
            raise Fatal(str(worse)) from worse
        except duckdb.Error:
            log.debug("rollback: no transaction was open")
        try:
            for appender in self._appenders.values():
                appender.clear()
        except duckdb.Error as worse:
            raise Fatal(f"an appender cannot be cleared: {worse}") from worse
        if "invalidated" in str(error):
            raise Fatal(str(error)) from error

    def _stage(self, group: _Group, op: Op) -> Any:
        match op:
            case CommitOp():
                return self._stage_commit(group, op)
            case EventsOp():
                return self._stage_events(group, op)
            case EpochOp():
                group.epoch += 1
                group.owner = rows.clean(op.owner)
                return group.epoch
            case SettingOp():
                group.settings[op.key] = (rows.clean(op.key), rows.to_json(op.value))
                return None
            case NodesOp():
                group.nodes.update(op.seen)
                return None

    def _stage_commit(self, group: _Group, op: CommitOp) -> None:
        if op.epoch < group.epoch:
            raise StaleEpoch(
                f"This router's epoch is {op.epoch}, but router {group.epoch} has taken over. Stop this one.",
                epoch=op.epoch,
                current=group.epoch,
            )
        batch = op.batch
        # All rows are made before the first is kept: an op that cannot be written leaves nothing in the group.
        tasks = {task.id: rows.TASK.row(task) for task in batch.tasks}
        runs: dict[str, tuple[Any, ...]] = {}
        fresh: set[str] = set()
        for run in batch.runs:
            mark = self._mark_of_run(group, run, fresh)
            runs[run.id] = (*rows.RUN.row(run), mark.first_event)
        keyed: dict[str, dict[str, tuple[Any, ...]]] = {
            "run": runs,
            "agent": {item.id: rows.AGENT.row(item) for item in batch.agents},
            "result": {item.task_id: rows.RESULT.row(item) for item in batch.results},
            "approval": {item.id: rows.APPROVAL.row(item) for item in batch.approvals},
            "role_state": {item.role: rows.ROLE_STATE.row(item) for item in batch.roles},
        }
        transitions = [
            (group.next_transition + index, *rows.TRANSITION.row(item)) for index, item in enumerate(batch.transitions)
        ]
        refusals = [rows.REFUSAL.row(item) for item in batch.refusals]
        settings = {key: (rows.clean(key), rows.to_json(value)) for key, value in batch.settings.items()}

        group.tasks.update(tasks)
        for name, items in keyed.items():
            group.keyed.setdefault(name, {}).update(items)
        group.fresh |= fresh
        group.transitions.extend(transitions)
        group.next_transition += len(transitions)
        group.refusals.extend(refusals)
        group.settings.update(settings)
        for agent in batch.agents:
            if agent.node and agent.updated_at - self._nodes_written.get(agent.node, 0.0) > NODE_EVERY_S:
                group.nodes.setdefault(agent.node, (agent.updated_at, None))

    def _mark_of_run(self, group: _Group, run: Run, fresh: set[str]) -> _Mark:
        mark = group.marks.get(run.id) or self._marks.get(run.id)
        if mark is None:
            if run.id in group.known:
                mark = self._new_mark(group, run.id)
            else:
                fresh.add(run.id)
                mark = _Mark(run.role, -1, group.next_event)
        if mark.role is None:
            mark.role = run.role
        group.marks[run.id] = mark
        return mark

    def _known_runs(self, ops: Sequence[Op]) -> set[str]:
        """Return which of the runs that memory does not know have a row: one query for the group, not one for each."""
        asked = {run.id for op in ops if isinstance(op, CommitOp) for run in op.batch.runs if run.id not in self._marks}
        if not asked:
            return set()
        found = self._con.execute(
            "SELECT id FROM run WHERE id IN (SELECT unnest($ids))", {"ids": [rows.clean(name) for name in asked]}
        ).fetchall()
        return {row[0] for row in found}

    def _load_mark(self, run_id: str) -> _Mark | None:
        found = self._con.execute("SELECT role, first_event FROM run WHERE id = $id", {"id": run_id}).fetchall()
        low = found[0][1] if found else 0
        last, first = self._con.execute(
            "SELECT max(seq), min(id) FROM event WHERE id >= $low AND run_id = $id", {"low": low, "id": run_id}
        ).fetchall()[0]
        if not found and last is None:
            return None
        return _Mark(found[0][0] if found else None, -1 if last is None else last, found[0][1] if found else first)

    def _stage_events(self, group: _Group, op: EventsOp) -> int:
        """Add the events that are new to the group. The hot path: some 30,000 events a second pass here."""
        written: list[tuple[Event, int]] = []
        next_id = group.next_event
        touched: dict[str, tuple[_Mark, int]] = {}
        events: list[tuple[Any, ...]] = []
        messages: list[tuple[Any, ...]] = []
        run_id, mark, last = "", _Mark(None, -1, 0), -1
        for event, payload in zip(op.events, op.payloads, strict=True):
            if event.run_id != run_id:
                if run_id:
                    touched[run_id] = mark, last
                run_id = event.run_id
                if run_id in touched:
                    mark, last = touched[run_id]
                else:
                    mark = group.marks.get(run_id) or self._marks.get(run_id) or self._new_mark(group, run_id)
                    # A repeated batch of the same group must see what is staged; memory does not change before COMMIT.
                    last = group.seqs.get(run_id, mark.last_seq)
            seq = event.seq
            if seq <= last:
                continue
            last = seq
            kind = event.kind
            when = rows.EPOCH + timedelta(seconds=event.at)
            head = run_id, event.task_id, event.agent_id, mark.role
            session = None
            if kind is EventKind.TRANSCRIPT:
                session = session_of(event.payload)
            else:
                for item in messages_of(event, mark.calls):
                    text = rows.clean(item.text)
                    messages.append(
                        (
                            next_id,
                            *head,
                            when,
                            item.speaker,
                            item.kind,
                            item.tool and rows.clean(item.tool),
                            item.tool_use_id and rows.clean(item.tool_use_id),
                            item.path and rows.clean(item.path),
                            item.input and rows.clean(item.input),
                            item.failed,
                            item.seconds,
                            text,
                            text.lower(),
                        )
                    )
            events.append((next_id, *head, seq, when, kind.value, rows.clean(event.type), session, payload))
            written.append((event, next_id))
            next_id += 1
        if run_id:
            touched[run_id] = mark, last
        op.written = written
        group.events.extend(events)
        group.messages.extend(messages)
        group.next_event = next_id
        for name, (its_mark, its_last) in touched.items():
            group.marks[name] = its_mark
            group.seqs[name] = its_last
        return last

    def _new_mark(self, group: _Group, run_id: str) -> _Mark:
        return self._load_mark(run_id) or _Mark(None, -1, group.next_event)

    def _execute(self, group: _Group) -> None:
        con = self._con
        con.begin()
        if group.owner is not None:
            con.execute("DELETE FROM meta WHERE key IN ('epoch', 'epoch_owner')")
            con.execute(
                "INSERT INTO meta VALUES ('epoch', $e), ('epoch_owner', $o)", {"e": str(group.epoch), "o": group.owner}
            )
        self._append("task", group.tasks.values())
        for table in KEYED:
            items = group.keyed.get(table.name)
            if not items:
                continue
            old = [key for key in items if key not in group.fresh] if table is rows.RUN else list(items)
            if old:
                con.execute(f"DELETE FROM {table.name} WHERE {table.key} IN (SELECT unnest($keys))", {"keys": old})
            self._append(table.name, items.values())
        if group.settings:
            con.execute("DELETE FROM setting WHERE key IN (SELECT unnest($keys))", {"keys": list(group.settings)})
            self._append("setting", group.settings.values())
        self._append("transition", group.transitions)
        self._append("refusal", group.refusals)
        self._append("event", group.events)
        self._append("message", group.messages)
        for name, (at, free) in group.nodes.items():
            self._write_node(name, rows.stamp(at), free)
        con.commit()

    def _append(self, name: str, items: Iterable[tuple[Any, ...]]) -> None:
        found = items if isinstance(items, list) else list(items)
        if found:
            appender = self._appenders[name]
            appender.append_rows(found)
            appender.flush()

    def _write_node(self, name: str, at: datetime | None, free: float | None) -> None:
        values = {"name": rows.clean(name), "at": at, "free": free}
        known = self._con.execute("SELECT 1 FROM node WHERE name = $name", {"name": values["name"]}).fetchall()
        if known:
            self._con.execute(
                "UPDATE node SET last_seen = greatest(last_seen, $at), free_mb = coalesce($free, free_mb) "
                "WHERE name = $name",
                values,
            )
        else:
            self._con.execute("INSERT INTO node VALUES ($name, $at, $at, $free)", values)

    def _apply(self, group: _Group) -> None:
        self.epoch = group.epoch
        self.next_event = group.next_event
        self.next_transition = group.next_transition
        for run_id, mark in group.marks.items():
            mark.last_seq = group.seqs.get(run_id, mark.last_seq)
            self._marks[run_id] = mark
            self._marks.move_to_end(run_id)
        self._nodes_written.update({name: at for name, (at, _) in group.nodes.items()})
        while len(self._marks) > RUNS_KEPT:
            self._marks.popitem(last=False)

    def run(self, work: Callable[[Any], T]) -> T:
        """Do something else with the writer's connection, in the writer's thread.

        Raises:
            StorageFull, Fatal, duckdb.Error
        """
        try:
            return work(self._con)
        except duckdb.Error as error:
            self._rollback(error)
            if disk_full(error):
                raise storage_full(self.path, error) from error
            raise

    @property
    def wal_bytes(self) -> int:
        """The size of the WAL."""
        try:
            return Path(f"{self.path}.wal").stat().st_size
        except OSError:
            return 0

    def checkpoint(self) -> bool:
        """Move the WAL into the file, where the disk has room for it; return whether it did. In the writer's thread."""
        need = self.wal_bytes + CHECKPOINT_SPARE_BYTES
        free = shutil.disk_usage(self.path.parent).free
        if free < need:
            log.warning("checkpoint put off path=%s free_bytes=%d needed_bytes=%d", self.path, free, need)
            return False
        self.run(lambda con: con.execute("CHECKPOINT"))
        return True

    def prune(self, older_than_s: float | None, max_events: int | None) -> int:
        """Delete old events and their messages; return how many events. In the writer's thread.

        The transcripts of sessions that a task may still resume or continue stay: those of tasks that are not final.
        """

        def work(con: Any) -> int:
            low = 0
            if older_than_s is not None:
                cut = rows.stamp(time.time() - older_than_s)
                # Ids follow the order of commits: everything before the first event that is young enough goes.
                found = con.execute("SELECT min(id) FROM event WHERE time >= $cut", {"cut": cut}).fetchall()[0][0]
                low = self.next_event if found is None else found
            if max_events is not None:
                total = con.execute("SELECT count(*) FROM event").fetchall()[0][0]
                if total > max_events:
                    found = con.execute(
                        "SELECT min(id) FROM (SELECT id FROM event ORDER BY id DESC LIMIT $n)", {"n": max_events}
                    ).fetchall()[0][0]
                    low = max(low, self.next_event if found is None else found)
            if not low:
                return 0
            con.begin()
            deleted = con.execute(
                "DELETE FROM event WHERE id < $low AND id < $last AND task_id NOT IN "
                "(SELECT id FROM task WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'dead'))",
                {"low": low, "last": self.next_event - 1},
            ).fetchall()[0][0]
            con.execute(
                "DELETE FROM message WHERE event_id < $low AND event_id NOT IN (SELECT id FROM event WHERE id < $low)",
                {"low": low},
            )
            con.commit()
            return int(deleted)

        return self.run(work)

    # ------------------------------------------------------------------ reading (any thread)

    def cursor(self) -> Any:
        """Return a new cursor: for a query that may be interrupted."""
        with self._root_lock:
            return self._root.cursor()

    def read(self, sql: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query, by this thread's cursor."""
        con = getattr(self._local, "con", None)
        if con is None:
            con = self._local.con = self.cursor()
        found: list[tuple[Any, ...]] = con.execute(sql, params or {}).fetchall()
        return found

    def models(self, table: rows.Table, tail: str = "", params: dict[str, Any] | None = None) -> list[Any]:
        """Return the models of a table; `tail` is what follows FROM."""
        with no_collection():
            found = self.read(f"SELECT {table.selected} FROM {table.name} {tail}", params)
            return [table.read(row) for row in found]

    def router_state(self, epoch: int) -> RouterState:
        """Return what a router needs to start."""
        final = "('succeeded', 'failed', 'cancelled', 'dead')"
        tasks: list[Task] = self.models(rows.TASK, f"WHERE state NOT IN {final} ORDER BY created_at, id")
        runs: list[Run] = self.models(rows.RUN, "WHERE state = 'running' ORDER BY started_at, id")
        agents: list[AgentInfo] = self.models(rows.AGENT, "WHERE wanted ORDER BY id")
        approvals: list[Approval] = self.models(rows.APPROVAL, "WHERE state = 'waiting' ORDER BY created_at, id")
        roles: list[RoleState] = self.models(rows.ROLE_STATE, "ORDER BY role")
        keys = self.read("SELECT idempotency_key, id FROM task WHERE idempotency_key IS NOT NULL")
        # Not checked again: a million tasks may be among them.
        return RouterState.model_construct(
            epoch=epoch,
            tasks=tuple(tasks),
            runs=tuple(runs),
            agents=tuple(agents),
            approvals=tuple(approvals),
            roles=tuple(roles),
            idempotency=dict(keys),
            settings=self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """Return all settings."""
        return {key: json.loads(value) for key, value in self.read("SELECT key, value FROM setting")}

    def first_event(self, *, run_id: str | None, task_id: str | None, agent_id: str | None = None) -> int:
        """Return an id below which the run, or the task's runs, or the agent's, have no event."""
        if run_id is not None:
            found = self.read("SELECT min(first_event) FROM run WHERE id = $id", {"id": run_id})
        elif task_id is not None:
            found = self.read("SELECT min(first_event) FROM run WHERE task_id = $id", {"id": task_id})
        elif agent_id is not None:
            found = self.read("SELECT min(first_event) FROM run WHERE agent_id = $id", {"id": agent_id})
        else:
            return 0
        return int(found[0][0] or 0)

    def results(self, tail: str, params: dict[str, Any], *, diffs: bool = True) -> list[Result]:
        """Return results; without `diffs` theirs are empty."""
        columns = rows.RESULT.selected if diffs else rows.RESULT.selected.replace(" diff,", " '' AS diff,")
        return [rows.RESULT.read(row) for row in self.read(f"SELECT {columns} FROM result {tail}", params)]


def migrations() -> list[tuple[str, str]]:
    """Return the migrations in order: name and SQL. Their numbers are 1, 2, … without a gap."""
    folder = importlib.resources.files("fleet.store") / "schema"
    found = sorted(
        (item.name, item.read_text(encoding="utf-8")) for item in folder.iterdir() if item.name.endswith(".sql")
    )
    for number, (name, _) in enumerate(found, start=1):
        if int(name.split("_")[0]) != number:
            raise StoreCorrupt(
                f"Expected migration {number:03d}, found {name}: the installation is damaged. Install again."
            )
    return found


def disk_full(error: BaseException) -> bool:
    """Whether an error means that no space is left."""
    text = str(error)
    return (
        "No space left" in text
        or "not enough disk space" in text.lower()
        or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
    )


def storage_full(path: Path, error: BaseException) -> StorageFull:
    """Return the error that callers get when no space is left."""
    return StorageFull(
        f"The disk of {path} is full; nothing was written. Free some space: the store goes on by itself.",
        path=str(path),
        detail=str(error)[:300],
    )
