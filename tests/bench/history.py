"""The store with a long history: its pages', its people's and its searchers' answers while it is written to.

    python -m tests.bench.history [--events 10000000] [--tasks 100000] [--rate 1000]

Events and tasks go through the store's own write path (`append_events`, `commit`). Then, while so many events a second
are written, every question is asked some times, one after the other: the example query of each view (`docs/tables.md`),
what the control room's pages ask, and searches by words. The store runs in this process: its memory is this process's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import AgentInfo, Batch, Event, EventKind, Result, Run, Task, Transition, Usage
from fleet.store.actor import StoreActor
from fleet.store.docs import examples
from tests.bench import table

ROLES = ("qa_tester", "code_reviewer", "api_developer")
WORDS = tuple(
    word
    for line in (
        "pagination retry timeout parser index schema token cursor queue lease commit branch merge diff review failing",
        "fixture coverage request response header cache worker agent store router gateway client socket thread lock",
    )
    for word in line.split()
)
RARE = "xylophone"
AGENTS = 200
GROUP = 500
"""Tasks of one commit."""


class History:
    """Makes tasks with their runs, results and events, the same for the same seed."""

    def __init__(self, tasks: int, events: int) -> None:
        self.tasks, self.each = tasks, max(4, events // tasks)
        self.random = random.Random(7)
        self.begin = time.time() - 30 * 86_400

    def batch(self, start: int, count: int) -> Batch:
        """Return the rows of some tasks."""
        tasks, runs, results, transitions = [], [], [], []
        for number in range(start, start + count):
            at = self.begin + number / self.tasks * 30 * 86_400
            role, agent = ROLES[number % 3], f"{ROLES[number % 3]}-{number % AGENTS}"
            failed = number % 11 == 0
            ids = {"role": role, "agent_id": agent}
            cost = {
                "cost_usd": 0.01 + number % 50 / 1000,
                "usage": Usage(input_tokens=900, output_tokens=200),
                "turns": 5,
            }
            times = {"started_at": at + 5, "finished_at": at + 65 + number % 90}
            run = Run(
                id=f"r-{number:08d}",
                task_id=f"t-{number:08d}",
                number=1,
                incarnation=1,
                epoch=1,
                state=RunState.FAILED if failed else RunState.SUCCEEDED,
                **ids,
                **cost,
                **times,
            )
            task = Task(
                id=run.task_id,
                prompt=" ".join(self.random.choices(WORDS, k=20)),
                state=TaskState.FAILED if failed else TaskState.SUCCEEDED,
                run_id=run.id,
                number_of_runs=1,
                created_at=at,
                queued_at=at,
                updated_at=times["finished_at"],
                **ids,
                **cost,
                **times,
            )
            tasks.append(task)
            runs.append(run)
            if not failed:
                end = {"finished_at": times["finished_at"], "duration_s": 60.0, **cost}
                results.append(Result(task_id=task.id, run_id=run.id, role=role, text=task.prompt, **end))
            for old, new, when in (
                (None, "queued", at),
                ("queued", "running", at + 5),
                ("running", task.state.value, at + 65),
            ):
                transitions.append(Transition(at=when, what="task", id=task.id, old=old, new=new))
        return Batch(tasks=tuple(tasks), runs=tuple(runs), results=tuple(results), transitions=tuple(transitions))

    def events(self, number: int, first: int = 0, count: int | None = None) -> list[Event]:
        """Return the events of a task: texts, tool calls and their results, and a result frame."""
        at = self.begin + number / self.tasks * 30 * 86_400
        about = {"run_id": f"r-{number:08d}", "task_id": f"t-{number:08d}"}
        about["agent_id"] = f"{ROLES[number % 3]}-{number % AGENTS}"
        found = []
        for seq in range(first, first + (count or self.each)):
            frame = self._frame(number, seq)
            found.append(Event(**about, seq=seq, at=at + seq, kind=EventKind.FRAME, type=frame["type"], payload=frame))
        return found

    def _frame(self, number: int, seq: int) -> dict[str, Any]:
        step = seq % 3
        session = f"00000000-0000-0000-0000-{number:012d}"
        words = " ".join(self.random.choices(WORDS, k=15))
        if number % 5000 == 17 and seq == 3:
            words += " " + RARE
        if step == 0:
            content: dict[str, Any] = {"type": "text", "text": words}
        elif step == 1:
            given = {"command": f"pytest -q tests/test_{words.split()[0]}.py"}
            content = {"type": "tool_use", "id": f"c{seq}", "name": "Bash", "input": given}
        else:
            content = {"type": "tool_result", "tool_use_id": f"c{seq - 1}", "content": words, "is_error": seq % 9 == 2}
        role = "user" if step == 2 else "assistant"
        message = {"id": f"m{seq}", "role": role, "model": "bench", "content": [content]}
        return {"type": role, "session_id": session, "message": message, "parent_tool_use_id": None}


async def fill(store: StoreActor, history: History, say: Callable[[str], None]) -> float:
    """Write the history; return events a second."""
    epoch = (await store.open_epoch("bench")).epoch
    now = time.time()
    agents = tuple(
        AgentInfo(id=f"{role}-{n}", role=role, state=AgentState.IDLE, started_at=now, updated_at=now)
        for n in range(AGENTS)
        for role in (ROLES[n % 3],)
    )
    await store.commit(epoch, Batch(agents=agents))
    began = told = time.monotonic()
    for start in range(0, history.tasks, GROUP):
        count = min(GROUP, history.tasks - start)
        await store.commit(epoch, history.batch(start, count))
        for begin in range(start, start + count, 50):
            several = [history.events(number) for number in range(begin, min(begin + 50, start + count))]
            await asyncio.gather(*(store.append_events(events) for events in several))
        if time.monotonic() - told > 20:
            told = time.monotonic()
            done = (start + count) * history.each
            say(f"  {done:,} events, {done / (told - began):,.0f}/s, {rss_gb():.2f} GB")
    return history.tasks * history.each / (time.monotonic() - began)


def rss_gb() -> float:
    """Return this process's resident memory in GB."""
    return float(psutil.Process().memory_info().rss) / 1e9


async def write_on(store: StoreActor, history: History, rate: float) -> None:
    """Write so many events a second for ever, as 50 agents would."""

    async def agent(place: int, number: int) -> None:
        seq, count, began = history.each, 4, time.monotonic()
        for step in itertools.count():
            due = began + (step + place / 50) * 50 * count / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            events = history.events(number, seq, count)
            await store.append_events([event.model_copy(update={"at": time.time()}) for event in events])
            seq += count

    await asyncio.gather(*(agent(place, history.tasks - 50 + place) for place in range(50)))


def questions(store: StoreActor, history: History) -> dict[str, tuple[float, Callable[[], Awaitable[Any]]]]:
    """Return name → (goal in seconds, question)."""
    middle = f"t-{history.tasks // 2:08d}"
    found: dict[str, tuple[float, Callable[[], Awaitable[Any]]]] = {}
    for view, query in examples().items():
        found[f"example {view}"] = (1.0, lambda query=query: store.sql(query))  # type: ignore[misc]
    found |= {
        "page tasks": (1.0, lambda: store.tasks(limit=100)),
        "page tasks, failed ones of a role": (1.0, lambda: store.tasks(states=["failed"], roles=[ROLES[0]], limit=100)),
        "page tasks, words": (1.0, lambda: store.tasks(text="pagination retry", limit=100)),
        "page task": (1.0, lambda: store.task(middle)),
        "page task, transcript": (1.0, lambda: store.events(task_id=middle, limit=1000)),
        "page task, transitions": (1.0, lambda: store.transitions("task", middle)),
        "page agent, transcript": (1.0, lambda: store.events(agent_id=f"{ROLES[0]}-0", newest=True, limit=200)),
        "page agent, runs": (1.0, lambda: store.runs(agent_id=f"{ROLES[0]}-0", limit=100)),
        "page results": (1.0, lambda: store.results(100)),
        "page overview, counts": (1.0, lambda: store.counts()),
        "search, frequent words": (2.0, lambda: store.search("pagination retry")),
        "search, a rare word": (2.0, lambda: store.search(RARE)),
        "search, a word that is nowhere": (2.0, lambda: store.search("zzzyx")),
        "search, words and a tool": (2.0, lambda: store.search("pytest", tool="Bash", role=ROLES[1])),
    }
    return found


async def measure(
    path: Path, tasks: int, events: int, rate: float, times: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Fill a store and ask it; return figures and rows."""
    store = StoreActor(str(path))
    history = History(tasks, events)
    per_s = await fill(store, history, say)
    writing = asyncio.create_task(write_on(store, history, rate))
    rows, peak = [], rss_gb()
    await asyncio.sleep(3.0)
    before, began = (await store.info())["next_event"], time.monotonic()
    try:
        for name, (goal, ask) in questions(store, history).items():
            seconds = []
            for _ in range(times):
                start = time.perf_counter()
                await ask()
                seconds.append(time.perf_counter() - start)
                peak = max(peak, rss_gb())
            rows.append(table.absolute(name.replace(" ", "_"), name, "s", seconds, goal))
            say(f"  {name}: {statistics.median(seconds):.3f} s")
        info = await store.info()
        written = (info["next_event"] - before) / (time.monotonic() - began)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await store.close()
    note = (
        f"{tasks:,} tasks, {history.each * tasks:,} events, file {info['bytes'] / 1e9:.2f} GB; {written:.0f} events/s"
    )
    note += f" written meanwhile, commit p99 {1000 * (info['commit_p99_s'] or 0):.0f} ms"
    rows.append(table.absolute("store_memory", "memory of the store", "GB", [peak], 2.0, note=note))
    return {"rows": rows, "filled_per_s": per_s}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--tasks", type=int, default=0, help="0: one for each 100 events")
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tasks = given.tasks or max(100, given.events // 100)
    with tempfile.TemporaryDirectory(prefix="fleet-history-") as folder:
        path = Path(folder) / "fleet.duckdb"
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        found = asyncio.run(measure(path, tasks, given.events, given.rate, given.times, say))
    print(table.markdown(found["rows"]))
    print(f"\nfilled with {found['filled_per_s']:,.0f} events/s")
    if given.json:
        given.json.write_text(json.dumps(table.plain(found["rows"]), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
