"""Runs people's SQL: bounded in rows, seconds and memory, cancellable, on a snapshot, away from the writer."""

from __future__ import annotations

import io
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from fleet.errors import Busy, QueryLimit, QueryRefused
from fleet.models import QueryResult
from fleet.store import sql_guard
from fleet.store.database import Database

log = logging.getLogger("fleet.store")

AT_ONCE = 2
"""Queries of people that run at the same time; more would take the memory and the processors of the writer."""
WAIT_S = 10.0
"""How long one waits for its turn."""
RESULT_BYTES = 128 * 2**20
MEMORY_GROWTH_MB = 1500
"""Growth of the process during a query that ends it: DuckDB's own limit does not count long strings under way."""
WATCH_S = 0.05


class Queries:
    """The place where people's queries run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._running: dict[str, _Watch] = {}

    def cancel(self, query_id: str) -> bool:
        """End a query; False when it does not run."""
        watch = self._running.get(query_id)
        if watch is None:
            return False
        watch.stop("cancelled")
        return True

    def table(
        self, query: str, max_rows: int, timeout_s: float, query_id: str | None = None
    ) -> tuple[pa.Table, list[str], bool]:
        """Return the rows of a query as an Arrow table, DuckDB's types of its columns, and whether rows were cut.

        Raises:
            QueryRefused: it is not one SELECT over the fleet's tables, or DuckDB does not understand it.
            QueryLimit: it met its bound of time or memory, or was cancelled.
            Busy: others run already.
        """
        if not self._turns.acquire(timeout=min(WAIT_S, timeout_s)):
            raise Busy(f"{AT_ONCE} queries run already. Try again when one has ended.", retry_after_s=2.0, part="store")
        try:
            con = self._database.cursor()
            try:
                return self._run(con, query, max_rows, timeout_s, query_id)
            finally:
                con.close()
        finally:
            self._turns.release()

    def _run(
        self, con: Any, query: str, max_rows: int, timeout_s: float, query_id: str | None
    ) -> tuple[pa.Table, list[str], bool]:
        text = sql_guard.check(
            query, lambda sql: str(con.execute("SELECT json_serialize_sql($q)", {"q": sql}).fetchall()[0][0])
        )
        watch = _Watch(con, timeout_s)
        if query_id is not None:
            self._running[query_id] = watch
        try:
            watch.start()
            con.execute("BEGIN TRANSACTION READ ONLY")
            asked = con.sql(f"SELECT * FROM (\n{text}\n) LIMIT {int(max_rows) + 1}")
            types = [str(kind) for kind in asked.types]
            reader = asked.to_arrow_reader(10_000)
            batches: list[pa.RecordBatch] = []
            size = 0
            for batch in reader:
                batches.append(batch)
                size += batch.nbytes
                if size > RESULT_BYTES:
                    raise QueryLimit(
                        f"The result is larger than {RESULT_BYTES // 2**20} MiB. Ask for fewer rows or columns, or use "
                        "`fleet export`.",
                        limit="bytes",
                    )
                if watch.why:
                    break
            if watch.why:
                raise watch.error()
            table = pa.Table.from_batches(batches, schema=reader.schema)
            return table.slice(0, max_rows), types, table.num_rows > max_rows
        except duckdb.FatalException:
            raise
        except duckdb.OutOfMemoryException as error:
            raise QueryLimit(
                "The query needs more memory than it may have. Ask for less at once.", limit="memory"
            ) from error
        except (duckdb.Error, pa.ArrowException, RuntimeError, OSError) as error:
            if watch.why:
                raise watch.error() from error
            raise QueryRefused(f"DuckDB cannot run this: {error}") from error
        finally:
            watch.end()
            if query_id is not None:
                self._running.pop(query_id, None)

    def rows(self, query: str, max_rows: int, timeout_s: float, query_id: str | None = None) -> QueryResult:
        """Return the rows of a query as Python values (see `table`)."""
        began = time.monotonic()
        table, types, truncated = self.table(query, max_rows, timeout_s, query_id)
        columns = [[_value(value) for value in column.to_pylist()] for column in table.columns]
        return QueryResult.model_construct(
            columns=tuple(table.column_names),
            types=tuple(types),
            rows=tuple(zip(*columns, strict=True)) if columns else (),
            truncated=truncated,
            seconds=round(time.monotonic() - began, 4),
        )

    def arrow(self, query: str, max_rows: int, timeout_s: float) -> bytes:
        """Return the rows of a query as an Arrow IPC stream (see `table`)."""
        table, _, _ = self.table(query, max_rows, timeout_s)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue()


def _value(value: Any) -> Any:
    """Return a value that JSON can carry; times, which are UTC in every table, say so."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(key): _value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return str(value)


class _Watch:
    """Interrupts a query that takes too long or too much."""

    def __init__(self, con: Any, timeout_s: float) -> None:
        self._con = con
        self._timeout_s = timeout_s
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="store-query-watch", daemon=True)
        self.why = ""

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """No interrupt comes after this."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def stop(self, why: str) -> None:
        with self._lock:
            if not self._done.is_set() and not self.why:
                self.why = why

    def error(self) -> QueryLimit:
        """Return what the caller is told."""
        sentences = {
            "cancelled": "The query was cancelled.",
            "seconds": f"The query took longer than {self._timeout_s:g} s. Narrow it, for example by `time`.",
            "memory": "The query needs more memory than it may have. Ask for less at once.",
        }
        return QueryLimit(sentences[self.why], limit=self.why)

    def _watch(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        floor = _resident_mb()
        while not self._done.wait(WATCH_S):
            if time.monotonic() > deadline:
                self.stop("seconds")
            elif _resident_mb() - floor > MEMORY_GROWTH_MB:
                self.stop("memory")
            if self.why:
                # Again and again: an interrupt that comes between two statements is forgotten.
                self._con.interrupt()


def _resident_mb() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
    except (OSError, ValueError, IndexError):
        return 0.0
