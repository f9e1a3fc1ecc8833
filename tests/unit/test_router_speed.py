"""A decision's cost does not grow with the fleet: counted in calls, so that a slow machine proves nothing wrong."""

from __future__ import annotations

import sys
from typing import Any

from fleet.lifecycle import RunState
from fleet.models import Outcome, Result
from tests.bench.router_core import DECISIONS, started, tasks

NOW = 1_800_000_000.0


def calls_of_a_decision(agents: int, queued: int) -> float:
    """Return how many function calls, Python's and C's, the end of a run and the next decision take."""
    core, _, _ = started(tasks(queued), agents)
    counted = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    rounds = min(100, DECISIONS)
    for number in range(rounds):
        run = next(iter(core.runs.values()))
        outcome = Outcome(
            run_id=run.id,
            task_id=run.task_id,
            agent_id=run.agent_id,
            epoch=1,
            status=RunState.SUCCEEDED,
            result=Result(task_id=run.task_id, run_id=run.id, role="dev", finished_at=NOW),
            finished_at=NOW,
        )
        sys.setprofile(count)
        try:
            core.outcome(outcome, NOW + number, 0.5)
            core.schedule(NOW + number)
            core.next_due(NOW + number)
        finally:
            sys.setprofile(None)
    return counted / rounds


def test_a_decision_with_two_thousand_agents_costs_what_one_with_ten_does() -> None:
    few, many = calls_of_a_decision(10, 3000), calls_of_a_decision(2000, 6000)
    assert many < 2 * few, f"{few:.0f} calls with 10 agents, {many:.0f} with 2,000"
