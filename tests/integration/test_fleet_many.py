"""Many tasks of mixed roles and priorities through six agents, with the real Claude Code.

Sixty by default; `FLEET_TEST_TASKS=200 pytest tests/integration/test_fleet_many.py` is the long form.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict

from fleet.models import TaskSpec
from tests.integration.conftest import NewFleet
from tests.integration.support import SLOW_S

ROLES = ("api_developer", "code_reviewer", "qa_tester")
TASKS = int(os.environ.get("FLEET_TEST_TASKS", "60"))
AGENTS_PER_ROLE = 2
SETTINGS = "".join(f"[roles.{role}]\nagents = {AGENTS_PER_ROLE}\ncpus = 0.1\nmemory_mb = 256\n" for role in ROLES)


def test_many_tasks_succeed_in_the_order_of_their_priorities(new_fleet: NewFleet) -> None:
    home = new_fleet(SETTINGS)
    chance = random.Random(7)
    specs = [
        TaskSpec(role=ROLES[number % 3], prompt=f"say: task {number} is done", priority=chance.randint(0, 9))
        for number in range(TASKS)
    ]
    with home.connect() as client:
        # 1. All are in the queue before the first is given away.
        client.pause()
        handles = client.submit_many(specs)
        client.resume()
        # 2. All of them succeed, each by its own words.
        for handle in client.as_completed(handles, timeout=4 * SLOW_S):
            assert handle.state.value == "succeeded", client.task(handle.id)
        texts = {row["task_id"]: row["text"] for row in client.sql("select task_id, text from result").dicts()}
        for number, handle in enumerate(handles):
            assert f"task {number} is done" in texts[handle.id]
        # 3. Each role began them by priority, first come first served within one.
        began = client.sql(
            "select id, role, priority, created_at, started_at from task order by started_at, id"
        ).dicts()
        by_role: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for row in began:
            by_role[row["role"]].append((-row["priority"], row["id"]))
        for role, order in by_role.items():
            # Agents of a role begin at almost the same time; what began may be off by as many places as there are.
            places = {entry: place for place, entry in enumerate(sorted(order))}
            for place, entry in enumerate(order):
                assert abs(places[entry] - place) <= AGENTS_PER_ROLE, (role, place, entry)
        # 4. And each ran once.
        assert client.sql("select count(*) as n from run").dicts() == [{"n": TASKS}]
