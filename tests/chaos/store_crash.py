"""Kills the store at random points of a write load, opens its file again, and compares it with what was acknowledged.

    python -m tests.chaos.store_crash [--rounds 30] [--seed 1]

Each round goes on with the same file. A writer process runs the real store; after each acknowledgement it appends a
line to a ledger. The checker reads the ledger and the file, and knows nothing of the writer's state.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleet.lifecycle import RunState, TaskState
from fleet.models import Batch, Event, EventKind, Result, Run, Task, Transition
from fleet.store.actor import StoreActor
from fleet.store.database import Database

PRODUCERS = 8
STATES = (TaskState.QUEUED, TaskState.RUNNING, TaskState.SUCCEEDED)
FIRST_ACK_S = 60.0


async def produce(store: StoreActor, epoch: int, name: str, ledger: int, chance: random.Random) -> None:
    """Write tasks, each with a run and events, and note what was acknowledged."""
    number = 0
    while True:
        number += 1
        task_id, run_id = f"t-{name}-{number:06d}", f"r-{name}-{number:06d}"
        now = time.time()
        task = Task(
            id=task_id, role="r", prompt="p" * chance.randint(1, 2000), state=STATES[0], created_at=now, updated_at=now
        )
        await store.commit(epoch, Batch(tasks=(task,)))
        os.write(ledger, f"task {task_id} 0\n".encode())
        run = Run(
            id=run_id,
            task_id=task_id,
            number=1,
            role="r",
            agent_id=f"a-{name}",
            incarnation=1,
            epoch=epoch,
            started_at=now,
        )
        changed = task.model_copy(update={"state": STATES[1]})
        change = Transition(at=now, what="task", id=task_id, old="queued", new="running")
        await store.commit(epoch, Batch(tasks=(changed,), runs=(run,), transitions=(change,)))
        os.write(ledger, f"task {task_id} 1\n".encode())
        seq = 0
        for _ in range(chance.randint(1, 6)):
            count = chance.randint(1, 200)
            events = [
                Event(
                    run_id=run_id,
                    task_id=task_id,
                    agent_id=f"a-{name}",
                    seq=seq + n,
                    at=now,
                    kind=EventKind.FRAME,
                    type="assistant",
                    payload={"message": {"content": [{"type": "text", "text": f"{run_id} {seq + n} " + "x" * 200}]}},
                )
                for n in range(count)
            ]
            seq += count
            last = await store.append_events(events)
            if chance.random() < 0.2:  # As an agent does that did not hear the answer.
                assert await store.append_events(events) == last
            os.write(ledger, f"events {run_id} {last}\n".encode())
        result = Result(task_id=task_id, run_id=run_id, role="r", text="done", finished_at=now)
        over = run.model_copy(update={"state": RunState.SUCCEEDED, "finished_at": now})
        changed = task.model_copy(update={"state": STATES[2], "finished_at": now})
        await store.commit(epoch, Batch(tasks=(changed,), runs=(over,), results=(result,)))
        os.write(ledger, f"task {task_id} 2\n".encode())


async def write(path: str, ledger_path: str, seed: int, life: str) -> None:
    """Be the writer process."""
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    chance = random.Random(seed)
    store = StoreActor(path)
    epoch = (await store.open_epoch(life)).epoch
    os.write(ledger, f"epoch {life} {epoch}\n".encode())

    async def checkpoints() -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.1, 0.6))
            await store._start()[0].call(store._database.checkpoint)

    await asyncio.gather(
        checkpoints(), *(produce(store, epoch, f"{life}{n}", ledger, random.Random(seed + n)) for n in range(PRODUCERS))
    )


def check(path: Path, ledger: Path) -> dict[str, int]:
    """Compare the file with the ledger; raise AssertionError for anything lost or doubled."""
    tasks: dict[str, int] = {}
    runs: dict[str, int] = {}
    epoch = 0
    for line in ledger.read_text().splitlines():
        kind, name, number = line.split()
        if kind == "epoch":
            epoch = max(epoch, int(number))
        else:
            known = tasks if kind == "task" else runs
            known[name] = max(known.get(name, -1), int(number))
    database = Database(path)
    try:
        found = dict(database.read("SELECT id, state FROM task"))
        lost = [name for name, number in tasks.items() if name not in found or STATES.index(found[name]) < number]
        assert not lost, f"tasks lost: {lost[:5]}"
        events = {
            run: (count, distinct, last)
            for run, count, distinct, last in database.read(
                "SELECT run_id, count(*), count(DISTINCT seq), max(seq) FROM event GROUP BY run_id"
            )
        }
        for run, last in runs.items():
            count, distinct, top = events[run]
            assert top >= last, f"events lost of {run}: {top} < {last}"
            assert count == distinct == top + 1, f"events of {run}: {count} rows, {distinct} numbers, up to {top}"
        total, ids = database.read("SELECT count(*), count(DISTINCT id) FROM event")[0]
        assert total == ids, f"{total} events have {ids} ids"
        assert database.read("SELECT count(*), count(DISTINCT event_id) FROM message")[0] == (total, total)
        finished = [name for name, number in tasks.items() if number == 2]
        results, distinct = database.read("SELECT count(*), count(DISTINCT task_id) FROM result")[0]
        assert results == distinct
        assert results >= len(finished)
        count, distinct = database.read("SELECT count(*), count(DISTINCT id) FROM run")[0]
        assert count == distinct, f"{count} rows of {distinct} runs"
        assert database.epoch >= epoch
        for name in tasks:  # By the key, too: an index that lost a row would not be seen by a scan.
            assert len(database.read("SELECT 1 FROM task WHERE id = $id", {"id": name})) == 1, name
        return {
            "tasks": len(tasks),
            "events": sum(last + 1 for last in runs.values()),
            "unacknowledged": len(found) - len(tasks),
        }
    finally:
        database.close()


def rounds(folder: Path, count: int, seed: int, longest_s: float = 2.0) -> dict[str, int]:
    """Kill and check `count` times; return the figures of the last check."""
    chance = random.Random(seed)
    path, ledger = folder / "fleet.duckdb", folder / "ledger"
    report: dict[str, int] = {}
    for number in range(count):
        size = ledger.stat().st_size if ledger.exists() else 0
        writer = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.chaos.store_crash",
                "--write",
                str(path),
                str(ledger),
                str(seed + number),
                f"k{number}-",
            ],
            cwd=Path(__file__).parents[2],
        )
        try:
            deadline = time.monotonic() + FIRST_ACK_S
            while not ledger.exists() or ledger.stat().st_size == size:
                assert writer.poll() is None, f"the writer ended by itself: {writer.returncode}"
                assert time.monotonic() < deadline, "the writer wrote nothing"
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, longest_s))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        report = check(path, ledger)
        print(f"round {number + 1}/{count} seed={seed} {report}", flush=True)
    return report


def main() -> None:
    """Run the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        path, ledger, seed, life = given.write
        asyncio.run(write(path, ledger, int(seed), life))
        return
    with tempfile.TemporaryDirectory(prefix="fleet-crash-") as folder:
        report = rounds(Path(folder), given.rounds, given.seed)
    print(f"{given.rounds} kills: 0 acknowledged rows lost, 0 corrupt; {report}")


if __name__ == "__main__":
    main()
