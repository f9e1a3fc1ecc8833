"""Measures durable events a second of the store: several producers, real frames, acknowledged after COMMIT.

python -m tests.bench.store_write [--producers 8] [--batch 200] [--batches 100]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from fleet.models import Batch, Event, EventKind, Run
from fleet.store.actor import StoreActor


def batch_of(producer: int, number: int, size: int) -> list[Event]:
    """Return one batch of a producer's events: assistant frames of about 300 bytes."""
    return [
        Event(
            run_id=f"r-{producer}",
            task_id=f"t-{producer}",
            agent_id=f"a-{producer}",
            seq=number * size + n,
            at=1_800_000_000.0 + n,
            kind=EventKind.FRAME,
            type="assistant",
            payload={
                "type": "assistant",
                "session_id": "00000000-0000-0000-0000-000000000000",
                "message": {
                    "role": "assistant",
                    "usage": {"input_tokens": 10, "output_tokens": 20},
                    "content": [{"type": "text", "text": f"Here is what I say in step {n} of my work, as agents do."}],
                },
            },
        )
        for n in range(size)
    ]


async def measure(path: Path, producers: int, batch: int, batches: int) -> dict[str, Any]:
    """Write and return `{"events", "events_per_s", "commit_p50_s", "commit_p99_s"}`."""
    store = StoreActor(str(path))
    epoch = (await store.open_epoch("bench")).epoch
    runs = tuple(
        Run(
            id=f"r-{n}",
            task_id=f"t-{n}",
            number=1,
            role="bench",
            agent_id=f"a-{n}",
            incarnation=1,
            epoch=epoch,
            started_at=1_800_000_000.0,
        )
        for n in range(producers)
    )
    await store.commit(epoch, Batch(runs=runs))
    load = [[batch_of(n, number, batch) for number in range(batches)] for n in range(producers)]

    async def produce(mine: list[list[Event]]) -> None:
        for events in mine:
            assert await store.append_events(events) == events[-1].seq

    began = time.monotonic()
    await asyncio.gather(*(produce(mine) for mine in load))
    seconds = time.monotonic() - began
    info = await store.info()
    await store.close()
    total = producers * batch * batches
    assert info["next_event"] == total + 1
    return {
        "events": total,
        "events_per_s": round(total / seconds),
        "commit_p50_s": info["commit_p50_s"],
        "commit_p99_s": info["commit_p99_s"],
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--producers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--batches", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        print(asyncio.run(measure(Path(folder) / "fleet.duckdb", given.producers, given.batch, given.batches)))


if __name__ == "__main__":
    main()
