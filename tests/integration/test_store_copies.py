"""Backup, restore, export, migrations and the reference page: the file and what is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from fleet.errors import Conflict, InvalidInput, NotFound, StartFailed, StoreCorrupt
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import AgentInfo, Batch, Event, EventKind, Result, Run, Task, Transition
from fleet.store import docs
from fleet.store.actor import StoreActor
from fleet.store.backup import restore
from fleet.store.database import Database, migrations

DAY = 86_400.0
NOW = 1_800_000_000.0


async def fill(store: StoreActor, first: int = 0, count: int = 3, day: float = 0.0) -> None:
    epoch = (await store.open_epoch("test")).epoch
    for n in range(first, first + count):
        role = ("qa_tester", "code_reviewer")[n % 2]
        at = NOW + day * DAY + n
        frames = [
            {"type": "assistant", "message": {"content": [{"type": "text", "text": f"hello {n}"}]}},
            {
                "type": "assistant",
                "message": {"content": [{"type": "tool_use", "id": "u", "name": "Bash", "input": {"command": "ls"}}]},
            },
            {
                "type": "user",
                "message": {
                    "content": [{"type": "tool_result", "tool_use_id": "u", "content": "a.py", "is_error": True}]
                },
            },
        ]
        await store.commit(
            epoch,
            Batch(
                tasks=(
                    Task(id=f"t-{n}", role=role, prompt="p", state=TaskState.SUCCEEDED, created_at=at, updated_at=at),
                ),
                runs=(
                    Run(
                        id=f"r-{n}",
                        task_id=f"t-{n}",
                        number=1,
                        role=role,
                        agent_id=f"{role}-1",
                        incarnation=1,
                        epoch=epoch,
                        state=RunState.SUCCEEDED,
                        cost_usd=0.5,
                        started_at=at,
                        finished_at=at + 1,
                    ),
                ),
                results=(Result(task_id=f"t-{n}", run_id=f"r-{n}", role=role, text="ok", finished_at=at + 1),),
                agents=(
                    AgentInfo(
                        id=f"{role}-1", role=role, state=AgentState.IDLE, node="n1", started_at=NOW, updated_at=at
                    ),
                ),
                transitions=(Transition(at=at, what="task", id=f"t-{n}", old=None, new="queued"),),
            ),
        )
        await store.append_events(
            [
                Event(
                    run_id=f"r-{n}",
                    task_id=f"t-{n}",
                    agent_id=f"{role}-1",
                    seq=seq,
                    at=at + seq,
                    kind=EventKind.FRAME,
                    type=str(frame["type"]),
                    payload=frame,
                )
                for seq, frame in enumerate(frames)
            ]
        )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreActor]:
    actor = StoreActor(str(tmp_path / "home" / "fleet.duckdb"))
    await fill(actor)
    yield actor
    await actor.close()


async def test_everything_is_there_after_the_file_is_opened_again(tmp_path: Path) -> None:
    path = str(tmp_path / "fleet.duckdb")
    first = StoreActor(path)
    await fill(first)
    before = await first.tasks(), await first.events(), await first.results(), await first.counts()
    await first.close()
    second = StoreActor(path)
    assert (await second.tasks(), await second.events(), await second.results(), await second.counts()) == before
    assert (await second.open_epoch("again")).epoch == 2
    last = before[1][-1]
    assert await second.append_events([last]) == 2, "the events' order is known after a restart"
    assert await second.append_events([last.model_copy(update={"seq": 3})]) == 3
    assert (await second.events(newest=True, limit=1))[0].id == (last.id or 0) + 1
    await second.close()


async def test_a_backup_made_while_running_is_restored(store: StoreActor, tmp_path: Path) -> None:
    report = await store.backup(str(tmp_path / "copy"))
    assert report["rows"]["task"] == 3
    await fill(store, first=10)
    target = tmp_path / "new" / "fleet.duckdb"
    told = restore(tmp_path / "copy", target)
    assert (told["from"], told["rows"]["event"], told["kept"]) == ("copy", 9, None)
    other = StoreActor(str(target))
    assert [task.id for task in await other.tasks()] == ["t-2", "t-1", "t-0"]
    assert len(await other.events()) == 9
    await fill(other, first=20, count=1)
    await other.close()


async def test_a_backup_whose_copy_is_damaged_is_restored_from_parquet(store: StoreActor, tmp_path: Path) -> None:
    await store.backup(str(tmp_path / "copy"))
    (tmp_path / "copy" / "fleet.duckdb").write_bytes(b"not a database" * 1000)
    told = restore(tmp_path / "copy", tmp_path / "new.duckdb")
    assert (told["from"], told["rows"]["message"]) == ("parquet", 9)
    other = StoreActor(str(tmp_path / "new.duckdb"))
    assert (await other.task("t-1")).role == "code_reviewer"
    await other.close()


async def test_a_restore_keeps_the_old_file_and_asks_before(store: StoreActor, tmp_path: Path) -> None:
    await store.backup(str(tmp_path / "copy"))
    target = tmp_path / "t.duckdb"
    Database(target).close()
    with pytest.raises(Conflict):
        restore(tmp_path / "copy", target)
    told = restore(tmp_path / "copy", target, replace=True)
    assert Path(told["kept"]).exists()
    with pytest.raises(NotFound):
        restore(tmp_path / "nothing", target, replace=True)
    shutil.rmtree(tmp_path / "copy")


async def test_a_backup_goes_into_a_new_folder_only(store: StoreActor, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InvalidInput):
        await store.backup(str(tmp_path / "full"))


async def test_an_export_grows_and_is_read_as_a_whole(store: StoreActor, tmp_path: Path) -> None:
    folder = tmp_path / "lake"
    first = await store.export(str(folder))
    assert first["rows"]["event"] == 9
    again = await store.export(str(folder))
    assert (again["files"], again["rows"]["event"]) == (0, 0)
    await fill(store, first=2, count=2, day=1)  # t-2 changes its day, t-3 is new.
    third = await store.export(f"file://{folder}")
    assert third["rows"]["event"] == 3, "the events of r-2 were there"
    con = duckdb.connect()
    assert con.execute(f"SELECT count(*), count(DISTINCT id) FROM '{folder}/event/**/*.parquet'").fetchall() == [
        (12, 12)
    ]
    assert con.execute(
        f"SELECT day::VARCHAR, role, id FROM read_parquet('{folder}/task/**/*.parquet', hive_partitioning = true) "
        "ORDER BY id"
    ).fetchall() == [
        ("2027-01-15", "qa_tester", "t-0"),
        ("2027-01-15", "code_reviewer", "t-1"),
        ("2027-01-16", "qa_tester", "t-2"),
        ("2027-01-16", "code_reviewer", "t-3"),
    ]
    con.close()
    assert len(pd.read_parquet(folder / "message")) == 12
    assert not [file for file in folder.rglob("*") if file.name.endswith(".part")]
    assert json.loads((folder / "manifest.json").read_text())["tables"]["event"]["last"] == 12


async def test_an_export_that_was_cut_off_leaves_no_row_twice(store: StoreActor, tmp_path: Path) -> None:
    folder = tmp_path / "lake"
    await store.export(str(folder))
    (folder / "manifest.json").unlink()  # As if it had ended before its last step.
    await fill(store, first=5, count=1)
    await store.export(str(folder))
    con = duckdb.connect()
    assert con.execute(f"SELECT count(*), count(DISTINCT id) FROM '{folder}/event/**/*.parquet'").fetchall() == [
        (12, 12)
    ]
    con.close()


async def test_an_export_goes_to_any_fsspec_url(store: StoreActor) -> None:
    import fsspec

    report = await store.export("memory://lake/fleet")
    memory = fsspec.filesystem("memory")
    assert report["files"] == len(memory.glob("/lake/fleet/**/*.parquet"))
    assert (await store.export("memory://lake/fleet"))["files"] == 0
    with pytest.raises(InvalidInput):
        await store.export("nosuch://x/y")


async def test_an_export_of_another_store_is_not_mixed_in(store: StoreActor, tmp_path: Path) -> None:
    await store.export(str(tmp_path / "lake"))
    other = StoreActor(str(tmp_path / "other.duckdb"))
    with pytest.raises(Conflict):
        await other.export(str(tmp_path / "lake"))
    await other.close()


async def test_the_reference_names_every_column_and_its_examples_run(store: StoreActor) -> None:
    page = docs.reference()
    committed = Path(__file__).parents[2] / "docs" / "tables.md"
    assert committed.read_text() == page, "make it again: python -m fleet.store.docs > docs/tables.md"
    described = {relation.name: [name for name, _ in relation.columns] for relation in docs.relations()}
    rows = (
        await store.sql(
            "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
            "WHERE schema_name = 'main' AND NOT internal GROUP BY table_name"
        )
    ).rows
    assert described == {name: columns for name, columns in rows}
    views = {
        "tasks",
        "runs",
        "events",
        "tool_calls",
        "messages",
        "costs",
        "approvals",
        "agents",
        "nodes",
        "transitions",
    }
    assert docs.examples().keys() == views
    for name, example in docs.examples().items():
        found = await store.sql(example)
        assert found.rows or name in ("approvals", "messages"), name
        assert f"## {name}\n" in page
        assert example in page


async def test_tool_calls_have_their_answers(store: StoreActor) -> None:
    found = await store.sql("SELECT tool, input, output, failed, seconds FROM tool_calls")
    assert found.rows == (("Bash", "ls", "a.py", True, 1.0),) * 3


async def test_an_answer_that_comes_after_a_restart_names_its_tool(tmp_path: Path) -> None:
    path = str(tmp_path / "fleet.duckdb")
    store = StoreActor(path)
    epoch = (await store.open_epoch("test")).epoch
    run = Run(id="r", task_id="t", number=1, role="x", agent_id="a", incarnation=1, epoch=epoch, started_at=NOW)
    await store.commit(epoch, Batch(runs=(run,)))

    def frame(seq: int, type: str, *blocks: dict[str, object]) -> Event:
        return Event(
            run_id="r",
            task_id="t",
            agent_id="a",
            seq=seq,
            at=NOW + seq,
            kind=EventKind.FRAME,
            type=type,
            payload={"message": {"content": list(blocks)}},
        )

    await store.append_events(
        [frame(0, "assistant", {"type": "tool_use", "id": "u", "name": "Edit", "input": {"file_path": "/a.py"}})]
    )
    await store.close()
    store = StoreActor(path)
    await store.append_events([frame(4, "user", {"type": "tool_result", "tool_use_id": "u", "content": "done"})])
    found = await store.sql("SELECT tool, path, input, output, seconds FROM tool_calls")
    assert found.rows == (("Edit", "/a.py", '{"file_path": "/a.py"}', "done", 4.0),)
    await store.close()


async def test_a_tool_result_of_20_mb_is_kept_whole(store: StoreActor) -> None:
    huge = Event(
        run_id="r-0",
        task_id="t-0",
        agent_id="a",
        seq=100,
        at=NOW,
        kind=EventKind.FRAME,
        type="user",
        payload={"message": {"content": [{"type": "tool_result", "tool_use_id": "u", "content": "é" * 20_000_000}]}},
    )
    assert await store.append_events([huge]) == 100
    [found] = await store.events(run_id="r-0", after=0, newest=True, limit=1)
    assert found.payload == huge.payload


def test_an_older_program_refuses_a_newer_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.duckdb"
    Database(path).close()
    con = duckdb.connect(str(path))
    con.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    con.close()
    with pytest.raises(StoreCorrupt) as caught:
        Database(path)
    assert caught.value.fields["version"] == 99
    assert caught.value.fields["known"] == len(migrations())


def test_an_older_file_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleet.store import database as module

    path = tmp_path / "fleet.duckdb"
    Database(path).close()
    more = [
        *migrations(),
        ("999_more.sql", "ALTER TABLE node ADD COLUMN more INTEGER; CREATE VIEW more AS SELECT 1 AS one;"),
    ]
    monkeypatch.setattr(module, "migrations", lambda: more)
    opened = Database(path)
    assert opened.schema_version == len(more)
    assert opened.read("SELECT one FROM more") == [(1,)]
    opened.close()


@pytest.mark.parametrize("content", [b"x" * 8192, b""])
def test_a_file_that_is_no_database_is_refused_unless_it_is_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fleet.duckdb"
    path.write_bytes(content)
    if content:
        with pytest.raises(StoreCorrupt):
            Database(path)
    else:
        Database(path).close()


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.duckdb"
    con = duckdb.connect(str(path))
    con.execute("CREATE TABLE other (a INTEGER)")
    con.close()
    with pytest.raises(StoreCorrupt):
        Database(path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartFailed):
        Database(tmp_path / "file" / "fleet.duckdb")
