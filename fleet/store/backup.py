"""Copies of the whole store: a backup while it runs, and its way back."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import duckdb

from fleet.errors import Conflict, InvalidInput, NotFound, StorageFull, StoreCorrupt
from fleet.models import iso
from fleet.store.database import Database, disk_full, storage_full

log = logging.getLogger("fleet.store")

COPY_NAME = "fleet.duckdb"
MANIFEST = "backup.json"
TABLES = (
    "meta",
    "task",
    "run",
    "event",
    "message",
    "result",
    "agent",
    "approval",
    "transition",
    "refusal",
    "role_state",
    "setting",
    "node",
)


def backup(database: Database, folder: str | Path) -> dict[str, Any]:
    """Write `fleet.duckdb`, a Parquet file per table and `backup.json` into a new folder; in any thread.

    The files are made in the work folder, the only one DuckDB may write, and then moved.

    Returns:
        What `backup.json` says: `{"folder", "at", "seconds", "schema_version", "rows": {table: n}, "bytes"}`.

    Raises:
        InvalidInput: the folder exists and is not empty, or cannot be made.
        StorageFull
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput(f"Expected a new folder for the backup, but {target} has something in it.", field="folder")
    began = time.time()
    stage = database.work / f"backup-{os.getpid()}-{int(began * 1e6):x}"
    con = database.cursor()
    try:
        target.mkdir(parents=True, exist_ok=True)
        stage.mkdir(parents=True)
        counted: dict[str, int] = {}
        name = f"copy_{int(began * 1e6):x}"
        con.execute("BEGIN")  # One snapshot for the copy and the Parquet files.
        for table in TABLES:
            file = _quoted(stage / f"{table}.parquet")
            counted[table] = con.execute(
                f"COPY {table} TO {file} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 100000)"
            ).fetchall()[0][0]
        con.execute("ROLLBACK")
        own = con.execute("SELECT current_database()").fetchall()[0][0].replace('"', '""')
        con.execute(f"ATTACH {_quoted(stage / COPY_NAME)} AS {name}")
        try:
            con.execute(f'COPY FROM DATABASE "{own}" TO {name}')
            con.execute(f"CHECKPOINT {name}")
        finally:
            con.execute(f"DETACH {name}")
        for made in sorted(stage.iterdir()):
            shutil.move(str(made), str(target / made.name))
        size = sum(file.stat().st_size for file in target.iterdir())
        report = {
            "folder": str(target),
            "at": iso(began),
            "seconds": round(time.time() - began, 3),
            "schema_version": database.schema_version,
            "rows": counted,
            "bytes": size,
        }
        (target / MANIFEST).write_text(
            json.dumps(report, indent=2) + "\n", encoding="utf-8"
        )  # Last: a backup without it is none.
        log.info("backup folder=%s bytes=%d seconds=%.1f", target, size, report["seconds"])
        return report
    except (duckdb.Error, OSError) as error:
        if disk_full(error):
            raise storage_full(target, error) from error
        if isinstance(error, OSError):
            raise InvalidInput(f"The backup cannot be written to {target}: {error}.", field="folder") from error
        raise
    finally:
        con.close()
        shutil.rmtree(stage, ignore_errors=True)


def restore(folder: str | Path, path: str | Path, *, replace: bool = False) -> dict[str, Any]:
    """Put a backup back as the store's file, while no fleet runs. The file that was there is kept beside it.

    The database copy is taken where it is sound, else the Parquet files are loaded into a new file.

    Returns:
        `{"path", "kept": old file or None, "from": "copy" or "parquet", "rows": {table: n}}`.

    Raises:
        NotFound: the folder holds no finished backup.
        Conflict: there is a file, and `replace` is not set.
        StoreCorrupt: neither the copy nor the Parquet files can be read.
    """
    source, target = Path(folder).expanduser().absolute(), Path(path)
    manifest = source / MANIFEST
    if not manifest.is_file():
        raise NotFound(f"{source} holds no finished backup: expected {MANIFEST} in it.", what="backup", id=str(source))
    expected: dict[str, int] = json.loads(manifest.read_text(encoding="utf-8"))["rows"]
    if target.exists() and not replace:
        raise Conflict(
            f"{target} exists. Say that it may be replaced; the old file is kept beside it.", path=str(target)
        )
    fresh = target.with_name(f"{target.name}.restoring")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(fresh)
    try:
        try:
            shutil.copyfile(source / COPY_NAME, fresh)
            counted, way = _counted(fresh), "copy"
            if any(counted[table] < rows for table, rows in expected.items()):
                raise StoreCorrupt("The copy has fewer rows than the backup says.")
        except (OSError, duckdb.Error, StoreCorrupt) as error:
            if disk_full(error):
                raise
            log.warning("restore: the copy is not usable, loading the Parquet files: %s", error)
            _remove(fresh)
            _load_parquet(source, fresh)
            counted, way = _counted(fresh), "parquet"
    except (OSError, duckdb.Error) as error:
        _remove(fresh)
        if disk_full(error):
            raise storage_full(target, error) from error
        raise StoreCorrupt(f"The backup in {source} cannot be read: {error}", path=str(source)) from error
    except StorageFull:
        _remove(fresh)
        raise
    kept: str | None = None
    if target.exists():
        aside = target.with_name(f"{target.name}.before-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        target.replace(aside)
        kept = str(aside)
    wal = Path(f"{target}.wal")
    if wal.exists():  # It belongs to the old file; with the new one it would be replayed into the wrong data.
        wal.replace(f"{kept or target}.wal" if kept else f"{target}.wal.old")
    fresh.replace(target)
    return {"path": str(target), "kept": kept, "from": way, "rows": counted}


def _counted(path: Path) -> dict[str, int]:
    """Return the rows of each table, after the store's own self-check."""
    database = Database(path)
    try:
        return {table: database.read(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}
    finally:
        database.close()
        shutil.rmtree(database.work, ignore_errors=True)


def _load_parquet(source: Path, path: Path) -> None:
    Database(path).close()  # The schema.
    shutil.rmtree(path.with_name(path.name + ".work"), ignore_errors=True)
    con = duckdb.connect(str(path))
    try:
        for table in TABLES:
            con.execute(f"DELETE FROM {table}")
            con.execute(
                f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet({_quoted(source / f'{table}.parquet')})"
            )
        con.execute("CHECKPOINT")
    finally:
        con.close()


def _remove(path: Path) -> None:
    for file in (path, Path(f"{path}.wal")):
        file.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
