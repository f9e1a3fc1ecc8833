"""Measures the router's core: a decision with many agents, a queued task in memory, a start with a full queue.

python -m tests.bench.router_core [--queued 1000000] [--agents 10,100,1000,10000]; prints JSON. Times are of the
processor: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from fleet.config import FleetConfig
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import AgentInfo, AgentReport, NodeInfo, Outcome, Result, Role, RouterState, Task, new_id
from fleet.router.core import RouterCore

NOW = 1_800_000_000.0
AGENTS_PER_NODE = 20
DECISIONS = 2000


def tasks(count: int) -> list[Task]:
    """Return queued tasks of all priorities."""
    return [
        Task(
            id=new_id("t"),
            role="dev",
            prompt=f"Do {number}.",
            priority=number % 10,
            state=TaskState.QUEUED,
            created_at=NOW,
            queued_at=NOW + number * 1e-3,
            updated_at=NOW,
        )
        for number in range(count)
    ]


def state(queue: list[Task], agents: int) -> RouterState:
    """Return what a router starts with."""
    infos = tuple(
        AgentInfo(
            id=f"dev-{number + 1}",
            role="dev",
            state=AgentState.STARTING,
            node=f"n{number // AGENTS_PER_NODE}",
            started_at=NOW,
            updated_at=NOW,
        )
        for number in range(agents)
    )
    return RouterState.model_construct(
        epoch=1, tasks=tuple(queue), runs=(), agents=infos, approvals=(), roles=(), idempotency={}, settings={}
    )


def started(queue: list[Task], agents: int) -> tuple[RouterCore, float, float]:
    """Return a core whose agents are all there, how long its restore took, and its first dispatch per agent."""
    role = Role(name="dev", prompt="Do it.", agents=min(agents, 1000))
    core = RouterCore(FleetConfig(home=Path("home"), roles={"dev": role}, queue_limit=10_000_000))
    began = time.thread_time()
    core.restore(state(queue, agents), NOW)
    restored = time.thread_time() - began
    count = -(-agents // AGENTS_PER_NODE)
    nodes = [
        NodeInfo(id=f"n{i}", name=f"n{i}", address="", alive=True, cpus=64, memory_mb=1e6, memory_free_mb=1e6)
        for i in range(count)
    ]
    core.set_nodes(nodes, NOW)
    core._target = lambda role: agents  # type: ignore[method-assign]
    for number in range(agents):
        report = AgentReport(agent_id=f"dev-{number + 1}", incarnation=1, node=f"n{number // AGENTS_PER_NODE}", pid=1)
        core.agent_up(report, NOW)
    began = time.thread_time()
    core.schedule(NOW)
    return core, restored, (time.thread_time() - began) / max(len(core.runs), 1)


def decide(core: RouterCore, count: int) -> dict[str, float]:
    """Let runs end, each followed by the next decision; returns microseconds."""
    whole: list[float] = []
    choice: list[float] = []
    for number in range(count):
        run = next(iter(core.runs.values()))
        result = Result(task_id=run.task_id, run_id=run.id, role="dev", finished_at=NOW)
        outcome = Outcome(
            run_id=run.id,
            task_id=run.task_id,
            agent_id=run.agent_id,
            epoch=1,
            status=RunState.SUCCEEDED,
            result=result,
            finished_at=NOW,
        )
        at = NOW + number * 1e-3
        began = time.thread_time()
        core.outcome(outcome, at, 0.5)
        effects = core.schedule(at)
        core.next_due(at)
        ended = time.thread_time()
        assert len(effects.runs) == 1
        whole.append((ended - began) * 1e6)
        choice.append(choose(core) * 1e6)
    return {
        "choice_p50_us": round(statistics.median(choice), 2),
        "whole_p50_us": round(statistics.median(whole), 1),
        "whole_p99_us": round(sorted(whole)[int(0.99 * len(whole))], 1),
    }


def choose(core: RouterCore) -> float:
    """Return the seconds of a choice alone: which task, which agent, why; with one agent idle."""
    agent = next(iter(core.agents.values()))
    core.idle.put("dev", agent.id, agent.node or "", agent.runs)
    began = time.thread_time()
    head, best = core._queues["dev"].head(), core.idle.best("dev")
    why = core._why_chosen(core.agents[best or ""])
    seconds = time.thread_time() - began
    assert head and best and why
    core.idle.discard(agent.id)
    return seconds


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--agents", default="10,100,1000,10000")
    given = parser.parse_args()
    process = psutil.Process()
    gc.disable()
    before = process.memory_info().rss
    queue = tasks(given.queued)
    in_models = process.memory_info().rss
    found: dict[str, Any] = {"queued": given.queued, "agents": {}}
    for agents in [int(number) for number in given.agents.split(",")]:
        core, restored, first = started(queue, agents)
        if "bytes_per_task" not in found:
            found["bytes_per_task"] = {
                "model": round((in_models - before) / given.queued),
                "indexes": round((process.memory_info().rss - in_models) / given.queued),
            }
            found["restore_s"] = round(restored, 2)
        found["agents"][agents] = {"burst_us": round(first * 1e6, 1), **decide(core, min(DECISIONS, given.queued // 4))}
        del core
        gc.collect()
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
