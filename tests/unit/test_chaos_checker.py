"""The chaos run's jobs, and its checker held to broken promises."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.chaos.checker import check
from tests.chaos.jobs import STEPS, Job, make


def test_the_same_seed_makes_the_same_jobs() -> None:
    first, second = (random.Random(3) for _ in range(2))
    assert [make(number, first) for number in range(50)] == [make(number, second) for number in range(50)]


JOB = Job("j1", "quick", "", 5)
TASK = {"id": "t1", "state": "succeeded", "reason": None, "detail": "", "run_id": "r2", "idempotency_key": "j1"}
RUNS = [
    {"id": "r1", "task_id": "t1", "number": 1, "state": "lost", "resumed_from": None, "started": 0, "finished": 10},
    {
        "id": "r2",
        "task_id": "t1",
        "number": 2,
        "state": "succeeded",
        "resumed_from": "r1",
        "started": 11,
        "finished": 20,
    },
]
RESULT = {"task_id": "t1", "run_id": "r2"}
EFFECTS = {"j1.1": ["r1"], **{f"j1.{step}": ["r2"] for step in range(2, STEPS + 1)}}


def verdict(
    *,
    task: dict[str, Any] | None = None,
    tasks: list[Any] | None = None,
    runs: list[Any] = RUNS,
    results: list[Any] | None = None,
    restarted: tuple[str, ...] = (),
    effects: dict[str, Any] | None = None,
) -> list[str]:
    rows = [{**TASK, **(task or {})}] if tasks is None else tasks
    found = [RESULT] if results is None else results
    seen = {**EFFECTS, **(effects or {})}
    return check({"j1": JOB}, {"j1": "t1"}, set(), rows, runs, found, set(restarted), seen).broken


def test_the_checker_is_content_with_a_kept_promise() -> None:
    assert verdict() == []
    # A run that had to begin again repeats what was done before it.
    assert verdict(effects={"j1.1": ["r1", "r2"]}, restarted=("r2",)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": []}, "has 0 rows"),
        ({"tasks": [TASK, {**TASK, "id": "t2"}]}, "2 tasks were made for one idempotency key"),
        ({"task": {"state": "running"}, "results": []}, "lost in the state running"),
        ({"task": {"state": "dead"}, "results": []}, "dead for None"),
        ({"results": []}, "with 0 results"),
        ({"results": [RESULT, RESULT]}, "with 2 results"),
        ({"results": [{"task_id": "t1", "run_id": "r1"}]}, "its result is of run r1"),
        ({"runs": [{**RUNS[0], "state": "succeeded"}, RUNS[1]]}, "2 succeeded runs"),
        ({"runs": [{**RUNS[0], "finished": 12}, RUNS[1]]}, "began 0.000 s before run 1 had ended"),
        ({"runs": [{**RUNS[0], "finished": None}, RUNS[1]]}, "did not end"),
        ({"runs": [RUNS[0], {**RUNS[1], "number": 3}]}, "numbers [1, 3]"),
        ({"effects": {"j1.2": []}}, "step 2 was never done"),
        ({"effects": {"j1.2": ["r2", "r2"]}}, "run 2 did step 2 2 times"),
        ({"effects": {"j1.1": ["r1", "r2"]}}, "run 2 went on from run 1 and did its step 1 again"),
        ({"effects": {"j1.1": ["r1", "r9"]}}, "done by r9, which is none of its runs"),
    ],
)
def test_the_checker_sees_each_broken_promise(changes: dict[str, Any], words: str) -> None:
    assert any(words in line for line in verdict(**changes)), verdict(**changes)
