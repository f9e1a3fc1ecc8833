"""Export to Parquet: incremental, atomic, partitioned by day and role, to a folder or any fsspec URL.

    event/day=2026-01-31/role=qa_tester/part-000000000001.parquet      new parts with each export
    task/day=2026-01-31/role=qa_tester/data.parquet                    written again when a row of it changed
    agent/data.parquet
    manifest.json                                                      what there is; written last

A reader sees whole files only. An export that was cut off is done again under the same names, so no row appears twice:
`read_parquet('FOLDER/event/**/*.parquet', hive_partitioning = true)` is always right.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import duckdb

from fleet.errors import Conflict, InvalidInput
from fleet.models import iso
from fleet.store.database import Database, disk_full, storage_full

log = logging.getLogger("fleet.store")

MANIFEST = "manifest.json"
GROWING = {
    "event": ("id", "time", "role"),
    "message": ("event_id", "time", "role"),
    "transition": ("id", "time", "what"),
}
"""Tables that only grow: by which id, by which time, and by which column beside the day."""
CHANGING = {
    "task": ("created_at", "role"),
    "run": ("started_at", "role"),
    "result": ("finished_at", "role"),
    "approval": ("created_at", "role"),
}
"""Tables whose rows change: by which time and column."""
SMALL = ("agent", "node", "refusal")
"""Tables written whole when they changed."""


class Target(Protocol):
    """Where an export goes."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None when there is none."""
        ...

    def put(self, file: Path, name: str) -> None:
        """Put a file there, replacing what has its name at once."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...


class Folder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, file: Path, name: str) -> None:
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name ends so that no reader's pattern takes it for a Parquet file.
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            shutil.copyfile(file, part)
            with part.open("rb") as opened:
                os.fsync(opened.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class Remote:
    """An fsspec file system; object stores show a file once it is whole."""

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped, unused-ignore]

        self._fs, self._root = fsspec.core.url_to_fs(url)

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def put(self, file: Path, name: str) -> None:
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self._fs.put_file(str(file), path)

    def remove(self, name: str) -> None:
        try:
            self._fs.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return


def target_of(url: str) -> Target:
    """Return the target of a path or URL. Raises InvalidInput when there is no such file system."""
    if "://" not in url or url.startswith("file://"):
        return Folder(Path(url.removeprefix("file://")).expanduser().absolute())
    try:
        return Remote(url)
    except (ImportError, ValueError) as error:
        raise InvalidInput(f"Cannot export to {url}: {error}. Install the package it names.", field="url") from error


def export(database: Database, url: str) -> dict[str, Any]:
    """Write what is new since the last export; in any thread.

    Returns:
        `{"url", "at", "seconds", "files": number written, "rows": {table: rows written}}`.

    Raises:
        InvalidInput: the target cannot be written.
        Conflict: it holds the export of another store.
        StorageFull
    """
    began = time.time()
    stage = database.work / f"export-{os.getpid()}-{int(began * 1e6):x}"
    con = database.cursor()
    try:
        target = target_of(url)
        found = target.read(MANIFEST)
        manifest: dict[str, Any] = json.loads(found) if found else {"tables": {}}
        tables: dict[str, Any] = manifest["tables"]
        stage.mkdir(parents=True)
        counted: dict[str, int] = {}
        con.execute("BEGIN")  # One snapshot for all tables.
        gone: list[str] = []
        for table in GROWING:
            counted[table] = _growing(con, stage, table, tables.setdefault(table, {"last": 0}), url)
        for table in CHANGING:
            counted[table] = _changing(con, stage, table, tables.setdefault(table, {"partitions": {}}), gone)
        for table in SMALL:
            counted[table] = _small(con, stage, table, tables.setdefault(table, {"mark": None}))
        con.execute("ROLLBACK")
        files = sorted(file for file in stage.rglob("*.parquet"))
        for file in files:
            target.put(file, file.relative_to(stage).as_posix())
        for name in gone:
            target.remove(name)
        manifest |= {"format": 1, "at": iso(began), "schema_version": database.schema_version}
        last = stage / MANIFEST
        last.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        target.put(last, MANIFEST)
        report = {
            "url": url,
            "at": iso(began),
            "seconds": round(time.time() - began, 3),
            "files": len(files),
            "rows": counted,
        }
        log.info("export url=%s files=%d seconds=%.1f", url, len(files), report["seconds"])
        return report
    except (duckdb.Error, OSError) as error:
        if disk_full(error):
            raise storage_full(database.path, error) from error
        if isinstance(error, OSError):
            raise InvalidInput(f"Cannot export to {url}: {error}.", field="url") from error
        raise
    finally:
        con.close()
        shutil.rmtree(stage, ignore_errors=True)


def _growing(con: Any, stage: Path, table: str, state: dict[str, Any], url: str) -> int:
    key, at, by = GROWING[table]
    low = int(state["last"])
    high = con.execute(f"SELECT coalesce(max({key}), 0) FROM {table}").fetchall()[0][0]
    if high < low:
        raise Conflict(
            f"{url} holds the export of another store: its {table}s go up to {low}, here up to {high}. "
            "Use a new folder.",
            url=url,
        )
    if high == low:
        return 0
    written = _copy(
        con,
        stage / table,
        f"SELECT * EXCLUDE ({by}), CAST({at} AS DATE) AS day, coalesce({by}, 'none') AS role FROM {table} "
        f"WHERE {key} > {low} AND {key} <= {high}",
        f"part-{low + 1:012d}",
    )
    state["last"] = high
    return written


def _changing(con: Any, stage: Path, table: str, state: dict[str, Any], gone: list[str]) -> int:
    at, by = CHANGING[table]
    now = {
        f"{day}/{role}": f"{count}-{mark}"
        for day, role, count, mark in con.execute(
            f"SELECT CAST({at} AS DATE), {by}, count(*), bit_xor(hash(t)) FROM {table} AS t GROUP BY ALL"
        ).fetchall()
    }
    before: dict[str, str] = state["partitions"]
    changed = [name for name, mark in now.items() if before.get(name) != mark]
    for name in before.keys() - now.keys():
        day, role = name.split("/", 1)
        gone.append(f"{table}/day={day}/role={role}/data.parquet")
    state["partitions"] = now
    if not changed:
        return 0
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in changed)
    return _copy(
        con,
        stage / table,
        f"SELECT *, CAST({at} AS DATE) AS day FROM {table} WHERE CAST({at} AS DATE) || '/' || {by} IN ({names})",
        "data",
    )


def _copy(con: Any, folder: Path, query: str, name: str) -> int:
    """Write a query's rows into `folder/day=…/role=…/NAME.parquet`; return how many."""
    folder.mkdir(parents=True, exist_ok=True)
    written = con.execute(
        f"COPY ({query}) TO {_quoted(folder)} (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (day, role), "
        f"FILENAME_PATTERN '{name}_{{i}}', OVERWRITE_OR_IGNORE true)"
    ).fetchall()[0][0]
    # DuckDB adds a number per thread; the partitions of one COPY have one file each, which gets the bare name.
    for file in sorted(folder.rglob("*.parquet")):
        number = file.stem.removeprefix(f"{name}_")
        file.rename(file.with_name(f"{name}.parquet" if number == "0" else f"{name}-{number}.parquet"))
    return int(written)


def _small(con: Any, stage: Path, table: str, state: dict[str, Any]) -> int:
    count, mark = con.execute(f"SELECT count(*), bit_xor(hash(t)) FROM {table} AS t").fetchall()[0]
    if state["mark"] == f"{count}-{mark}":
        return 0
    state["mark"] = f"{count}-{mark}"
    folder = stage / table
    folder.mkdir(parents=True, exist_ok=True)
    return int(
        con.execute(
            f"COPY {table} TO {_quoted(folder / 'data.parquet')} (FORMAT parquet, COMPRESSION zstd)"
        ).fetchall()[0][0]
    )


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
