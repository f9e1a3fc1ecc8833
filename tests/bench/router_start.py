"""Measures how long a router needs to start with a queue that is full: from the store's file to a core that dispatches.

python -m tests.bench.router_start [--queued 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from fleet.config import load_config
from fleet.lifecycle import TaskState
from fleet.models import Batch, Task, new_id
from fleet.router.core import RouterCore
from fleet.store.actor import StoreActor
from tests.bench import table

GROUP = 20_000


async def fill(path: Path, count: int) -> None:
    """Write so many queued tasks by the store's own path."""
    store = StoreActor(str(path))
    epoch = (await store.open_epoch("bench")).epoch
    now = time.time()
    for start in range(0, count, GROUP):
        tasks = tuple(
            Task(
                id=new_id("t"),
                role="qa_tester",
                prompt=f"Write tests for module {start + n}.",
                state=TaskState.QUEUED,
                created_at=now,
                queued_at=now,
                updated_at=now,
            )
            for n in range(min(GROUP, count - start))
        )
        await store.commit(epoch, Batch(tasks=tasks))
    await store.close()


async def start(path: Path, say: Callable[[str], None]) -> float:
    """Return the seconds from a store that is open to a router that could dispatch, pickling included."""
    store = StoreActor(str(path))
    began = time.perf_counter()
    state = await store.open_epoch("bench")
    read = time.perf_counter()
    data = pickle.dumps(state, protocol=5)
    del state
    state = pickle.loads(data)
    moved = time.perf_counter()
    core = RouterCore(load_config(environ={}))
    core.restore(state, time.time())
    done = time.perf_counter()
    rss = psutil.Process(os.getpid()).memory_info().rss / 2**30
    say(
        f"  router start: read {read - began:.1f} s, moved {moved - read:.1f} s ({len(data) / 2**20:.0f} MiB), "
        f"restored {done - moved:.1f} s; this process {rss:.1f} GiB"
    )
    await store.close()
    return done - began


def rows(folder: Path, queued: int, say: Callable[[str], None]) -> list[table.Row]:
    """Return the row of the bench."""
    path = folder / "queued.duckdb"
    asyncio.run(fill(path, queued))
    seconds = asyncio.run(start(path, say))
    path.unlink()
    what = f"router start with {queued:,} queued tasks in the store"
    return [table.absolute("router_start", what, "s", [seconds], 15.0, note="one measurement, in one process")]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=1_000_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fleet-bench-"))
    try:
        print(table.markdown(rows(folder, given.queued, lambda text: print(text, file=sys.stderr))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
