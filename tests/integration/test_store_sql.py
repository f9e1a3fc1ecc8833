"""People's SQL: what is answered, refused and bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fleet.errors import QueryLimit, QueryRefused
from fleet.lifecycle import TaskState
from fleet.models import Batch, Task
from fleet.store.actor import StoreActor


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreActor]:
    actor = StoreActor(str(tmp_path / "fleet.duckdb"))
    epoch = (await actor.open_epoch("test")).epoch
    tasks = tuple(
        Task(id=f"t-{n}", role="r", prompt="x", state=TaskState.QUEUED, created_at=0, updated_at=0) for n in range(5)
    )
    await actor.commit(epoch, Batch(tasks=tasks))
    yield actor
    await actor.close()


HOSTILE = [
    "COPY task TO '/tmp/stolen.csv'",
    "ATTACH '/tmp/other.duckdb'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "RESET memory_limit",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CHECKPOINT",
    "EXPORT DATABASE '/tmp/x'",
    "INSERT INTO task (id) VALUES ('t-x')",
    "UPDATE task SET state = 'succeeded'",
    "DELETE FROM task",
    "DROP TABLE task",
    "CREATE TABLE mine (a INTEGER)",
    "EXPLAIN ANALYZE SELECT 1",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "VACUUM",
    "SELECT 1; DROP TABLE task",
    "SELECT 1; SELECT 2",
    "",
    "-- nothing",
    "WITH x AS (INSERT INTO task (id) VALUES ('t-x') RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM task RETURNING *) SELECT count(*) FROM x",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM READ_BLOB('/etc/passwd')",
    "SELECT * FROM read_parquet('/tmp/*.parquet')",
    "SELECT * FROM read_json('/tmp/x.json')",
    "SELECT * FROM read_duckdb('/tmp/x.duckdb')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('/tmp/x.parquet')",
    "SELECT * FROM '/etc/passwd'",
    "FROM '/etc/passwd.csv'",
    "DESCRIBE '/etc/passwd.csv'",
    "SUMMARIZE SELECT * FROM 'x.parquet'",
    "SELECT (SELECT count(*) FROM read_csv('/etc/passwd'))",
    "SELECT * FROM task WHERE id IN (SELECT * FROM read_text('/etc/passwd'))",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('task')",
    "SELECT * FROM json_execute_serialized_sql('{}')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_logs()",
    "SELECT * FROM pragma_database_size()",
    "SELECT * FROM force_checkpoint()",
    "SELECT * FROM enable_logging()",
    "SELECT getenv('HOME')",
    "SELECT getvariable('x')",
    "SELECT current_setting('memory_limit')",
    "SELECT write_log('x')",
    "SELECT sleep_ms(1000000)",
    "SELECT list_transform([1], lambda x: getenv('HOME'))",
    "SELECT repeat('x', 2000000000)",
    "SELECT len(range(10000000000))",
    "SELECT * FROM nothing_of_this_name",
    "SELECT nothing_of_this_name FROM task",
    "SELECT * FROM system.main.duckdb_settings",
    "SELECT 1 /* " + "x" * 200_000 + " */",
    "SELECT '\0'",
    "SELEKT 1",
]


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: query[:60])
async def test_hostile_sql_is_refused_and_changes_nothing(store: StoreActor, query: str) -> None:
    with pytest.raises(QueryRefused):
        await store.sql(query)
    assert (await store.sql("SELECT count(*) FROM task WHERE state = 'queued'")).rows == ((5,),)


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT count(*) FROM tasks;", ((5,),)),
        ("FROM tasks SELECT id ORDER BY id LIMIT 1 -- the first", (("t-0",),)),
        ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT sum(n) FROM t", ((6,),)),
        ("SELECT * FROM range(2) ORDER BY 1 DESC", ((1,), (0,))),
        ("SELECT unnest([1, 2])", ((1,), (2,))),
        ("VALUES (1, 'a', NULL)", ((1, "a", None),)),
        ("SELECT sum(n) FROM (VALUES (1), (2)) AS v(n)", ((3,),)),
        ("SELECT 1.5::DECIMAL(4, 1), '{\"a\": 1}'::JSON->>'a'", ((1.5, "1"),)),
        ("SELECT created_at FROM tasks LIMIT 1", ((datetime(1970, 1, 1, tzinfo=UTC),),)),
        ("SELECT {'a': [TRUE]} AS s, 'x'::BLOB, INTERVAL 2 SECONDS", (({"a": [True]}, "78", None),)),
    ],
)
async def test_questions_are_answered_with_plain_values(
    store: StoreActor, query: str, rows: tuple[tuple[Any, ...], ...]
) -> None:
    found = (await store.sql(query)).rows
    if "INTERVAL" in query:
        found = tuple((*row[:-1], None) for row in found)
    assert found == rows


async def test_times_with_a_zone_can_be_asked_for(store: StoreActor) -> None:
    found = await store.sql("SELECT now() AS n, now() - INTERVAL 1 DAY < now()::TIMESTAMP AS yes")
    assert abs(found.rows[0][0].timestamp() - time.time()) < 60
    assert found.rows[0][1] is True


async def test_the_shape_of_tables_can_be_asked_for(store: StoreActor) -> None:
    names = {row[0] for row in (await store.sql("SHOW TABLES")).rows}
    assert {"tasks", "runs", "events", "tool_calls", "messages", "costs", "approvals", "agents", "nodes"} <= names
    assert (await store.sql("DESCRIBE tasks")).rows[0][0] == "id"


async def test_rows_are_bounded_and_said_to_be_cut(store: StoreActor) -> None:
    found = await store.sql("SELECT * FROM range(100)", max_rows=10)
    assert (len(found.rows), found.truncated) == (10, True)
    found = await store.sql("SELECT * FROM range(10)", max_rows=10)
    assert (len(found.rows), found.truncated) == (10, False)
    assert (found.columns, found.types) == (("range",), ("BIGINT",))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM range(10000000) a, range(10000000) b, range(1000) c",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
    ],
)
async def test_a_query_without_end_is_ended_while_the_store_goes_on(store: StoreActor, query: str) -> None:
    asked = asyncio.create_task(store.sql(query, timeout_s=1.0))
    await asyncio.sleep(0)
    await store.put_setting("k", 1)
    with pytest.raises(QueryLimit) as caught:
        await asked
    assert caught.value.fields["limit"] in ("seconds", "memory")
    assert (await store.sql("SELECT 1")).rows == ((1,),)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT list(a.range) FROM range(100000) a, range(100000) b",
        "SELECT string_agg(a.range::VARCHAR, '-----------------') FROM range(100000) a, range(100000) b",
        "SELECT a.range || '-' || b.range AS x FROM range(1000000) a, range(1000000) b ORDER BY x DESC",
        "SELECT a.range::VARCHAR || 'abcdefghijklmnopqrstuvwxyz' FROM range(100000000) a",
    ],
)
async def test_a_huge_result_is_bounded(store: StoreActor, query: str) -> None:
    with pytest.raises(QueryLimit):
        await store.sql(query, timeout_s=20.0, max_rows=100_000_000)
    assert (await store.sql("SELECT 1")).rows == ((1,),)


async def test_a_query_can_be_cancelled(store: StoreActor) -> None:
    assert not await store.cancel_query("q")
    asked = asyncio.create_task(
        store.sql("SELECT count(*) FROM range(10000000) a, range(10000000) b", timeout_s=120.0, query_id="q")
    )
    deadline = time.monotonic() + 60
    while not await store.cancel_query("q"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    with pytest.raises(QueryLimit) as caught:
        await asked
    assert caught.value.fields == {"limit": "cancelled"}
    assert not [thread for thread in threading.enumerate() if thread.name == "store-query-watch"]


async def test_arrow_comes_as_an_ipc_stream(store: StoreActor) -> None:
    with pa.ipc.open_stream(await store.sql_arrow("SELECT id FROM tasks ORDER BY id")) as reader:
        assert reader.read_all().column("id").to_pylist() == [f"t-{n}" for n in range(5)]
