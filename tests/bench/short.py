"""The bench in a minute: four ratios that hold on a busy machine, against those that are committed.

    python -m tests.bench.short [--write]

Both sides of a ratio are measured in turns within moments, and only the medians count, so what else the machine does
meets both. CI fails when a ratio is more than half worse than in `baseline.json`, twice in a row; `--write` sets it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import duckdb

from fleet.agent.actor import FleetAgent
from fleet.config import load_config
from fleet.lifecycle import AgentState, TaskState
from fleet.models import (
    Activity,
    AgentInfo,
    AgentReport,
    Event,
    Role,
    RouterState,
    Run,
    RunOrder,
    Task,
    TaskSpec,
    new_id,
)
from fleet.router.core import RouterCore
from fleet.store.actor import StoreActor
from tests.bench import echo
from tests.bench.store_write import batch_of

BASELINE = Path(__file__).parent / "baseline.json"
WORSE = 1.5
ROLE = Role(name="echo", prompt="You echo.")


def task_of(number: int) -> Task:
    """Return a task that waits."""
    now = 1_800_000_000.0
    about = {"state": TaskState.QUEUED, "created_at": now, "queued_at": now, "updated_at": now}
    return Task(id=f"t-{number:08d}", role="qa_tester", prompt=f"Write tests for module {number}.", **about)


async def ratio_of(fleet: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]], rounds: int) -> float:
    """Return the ratio of the medians of both sides' times, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            await (fleet, other)[side]()
            times[side].append(time.perf_counter() - began)
    return statistics.median(times[0]) / statistics.median(times[1])


async def crossing() -> float:
    """Tasks pickled and unpickled, as every call between the parts does, beside JSON of the same."""
    tasks = [task_of(number) for number in range(500)]
    plain = [task.model_dump(mode="json") for task in tasks]

    async def fleet() -> None:
        pickle.loads(pickle.dumps(tasks, protocol=5))

    async def other() -> None:
        json.loads(json.dumps(plain))

    return await ratio_of(fleet, other, 21)


async def deciding() -> float:
    """Submitting and placing tasks in the router's core, beside JSON of the same tasks."""
    config = load_config(environ={})
    plain = [task_of(number).model_dump(mode="json") for number in range(500)]

    async def fleet() -> None:
        core = RouterCore(config)
        now = 1_800_000_000.0
        agents = tuple(
            AgentInfo(id=f"qa_tester-{n}", role="qa_tester", state=AgentState.STARTING, started_at=now, updated_at=now)
            for n in range(50)
        )
        nothing: dict[str, Any] = {"tasks": (), "runs": (), "approvals": (), "roles": (), "idempotency": {}}
        core.restore(RouterState(epoch=1, agents=agents, settings={}, **nothing), now)
        for agent in agents:
            core.agent_up(AgentReport(agent_id=agent.id, incarnation=1, node="n", pid=1), now)
        planned = core.plan_submit([TaskSpec(role="qa_tester", prompt=f"{n}") for n in range(500)], {}, now)
        core.accept([task for task in planned if isinstance(task, Task)], now)
        core.schedule(now)

    async def other() -> None:
        json.loads(json.dumps(plain))

    return await ratio_of(fleet, other, 21)


async def writing(folder: Path) -> float:
    """Events made durable by the store, beside DuckDB's own appender with the same payloads."""
    store = StoreActor(str(folder / "fleet.duckdb"))
    epoch = (await store.open_epoch("bench")).epoch
    bare = duckdb.connect(str(folder / "bare.duckdb"))
    bare.execute("CREATE TABLE event (id BIGINT, run VARCHAR, payload JSON)")
    numbers = iter(range(1000))
    now = 1_800_000_000.0
    from fleet.models import Batch

    about = {"number": 1, "role": "bench", "incarnation": 1, "epoch": epoch, "started_at": now}
    runs = tuple(Run(id=f"r-{n}", task_id=f"t-{n}", agent_id=f"a-{n}", **about) for n in range(8))
    await store.commit(epoch, Batch(runs=runs))

    async def fleet() -> None:
        number = next(numbers)
        await asyncio.gather(*(store.append_events(batch_of(producer, number, 200)) for producer in range(8)))

    async def other() -> None:
        values = [
            (number, event.run_id, json.dumps(event.payload))
            for producer in range(8)
            for number, event in enumerate(batch_of(producer, 0, 200))
        ]

        def write() -> None:
            bare.begin()
            ids, names, payloads = (list(column) for column in zip(*values, strict=True))
            bare.execute("INSERT INTO event SELECT unnest($1), unnest($2), unnest($3)", [ids, names, payloads])
            bare.commit()

        await asyncio.to_thread(write)

    try:
        await fleet()
        return await ratio_of(fleet, other, 11)
    finally:
        await store.close()
        bare.close()


class _Nowhere:
    """What an agent needs of a store."""

    async def append_events(self, events: list[Event]) -> int:
        return events[-1].seq

    async def beat(self, activity: Activity) -> None:
        pass


async def running(folder: Path) -> float:
    """A run of an agent over the echo executable, from order to outcome, beside the executable by itself."""
    executable = echo.install(folder / "bin")
    home = folder / "home"
    home.mkdir()
    config = load_config(environ={}, home=home, rehearsal=True, claude_path=executable)
    agent = FleetAgent(config, ROLE, "echo-1", store=_Nowhere(), router=None, environ=dict(os.environ))  # type: ignore[arg-type]
    line = json.dumps({"type": "user", "message": {"role": "user", "content": "hello"}}).encode() + b"\n"

    async def fleet() -> None:
        task = task_of(0).model_copy(update={"id": new_id("t"), "role": "echo"})
        about = {"number": 1, "role": "echo", "agent_id": "echo-1", "incarnation": 1, "epoch": 1}
        run = Run(id=new_id("r"), task_id=task.id, started_at=time.time(), **about)
        outcome = await agent.run(RunOrder(epoch=1, run=run, task=task, role=ROLE))
        assert outcome.result is not None and outcome.result.text, outcome
        await agent.acknowledge(run.id)

    async def other() -> None:
        await asyncio.to_thread(subprocess.run, [executable], input=line, stdout=subprocess.DEVNULL, check=True)

    try:
        await fleet()
        return await ratio_of(fleet, other, 15)
    finally:
        await agent.stop()


async def measure() -> dict[str, float]:
    """Return all ratios; less is better."""
    with tempfile.TemporaryDirectory(prefix="fleet-short-") as name:
        folder = Path(name)
        return {
            "crossing": round(await crossing(), 3),
            "deciding": round(await deciding(), 3),
            "writing": round(await writing(folder), 3),
            "running": round(await running(folder), 3),
        }


def worse(found: dict[str, float], known: dict[str, float]) -> dict[str, str]:
    """Return the ratios that are worse than allowed, with words."""
    return {
        name: f"{ratio:.2f}, the baseline is {known[name]:.2f}"
        for name, ratio in found.items()
        if ratio > known[name] * WORSE
    }


def main() -> None:
    """Measure; say what is worse, or write the baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make what is measured the baseline")
    found = asyncio.run(measure())
    print(found)
    if parser.parse_args().write:
        BASELINE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        print(worse(found, json.loads(BASELINE.read_text(encoding="utf-8"))) or "nothing is worse")


if __name__ == "__main__":
    main()
