"""What survives: the whole fleet killed at once, and a head that dies under a living keeper."""

from __future__ import annotations

import psutil

from fleet import Fleet
from fleet.cluster import processes
from tests.integration.conftest import NewFleet
from tests.integration.support import SLOW_S, Home, until

AGENTS = "[roles.qa_tester]\nagents = 2\n[roles.code_reviewer]\nagents = 0\n[roles.api_developer]\nagents = 0\n"


def kill_everything(home: Home) -> None:
    """SIGKILL every process of the fleet at once, the keeper first: nobody can tidy up."""
    keeper = psutil.Process(home.record()["pid"])
    processes.kill([keeper])
    processes.kill_until_none(home.processes)


def submit(client: Fleet, count: int) -> list[str]:
    return [handle.id for handle in client.map([f"Say {number}." for number in range(count)], role="qa_tester")]


def states(client: Fleet, ids: list[str]) -> list[str]:
    return [client.task(id).state.value for id in ids]


def test_after_a_kill_of_everything_all_tasks_succeed(new_fleet: NewFleet) -> None:
    home = new_fleet(AGENTS)
    with home.connect() as client:
        # 1. Some are running, the others wait.
        ids = submit(client, 8)
        until(lambda: "running" in states(client, ids), "a task runs")
    # 2. The machine goes away.
    kill_everything(home)
    # 3. The fleet starts again, in the same home.
    home.up()
    with home.connect() as client:
        # 4. Everything that was accepted succeeds, and has one result each.
        for handle in client.as_completed([client.task(id) for id in ids], timeout=SLOW_S):
            assert handle.state.value == "succeeded"
        wanted = ", ".join(f"'{id}'" for id in ids)
        rows = client.sql(f"select task_id, count(*) as n from result where task_id in ({wanted}) group by 1").dicts()
        assert {row["n"] for row in rows} == {1}
        assert len(rows) == len(ids)


def test_a_killed_head_comes_back_by_itself(new_fleet: NewFleet) -> None:
    home = new_fleet(AGENTS)
    before = home.record()
    with home.connect() as client:
        ids = submit(client, 4)
        # 1. Ray's head is killed with everything on it but the keeper.
        keeper = psutil.Process(before["pid"])
        processes.kill_until_none(lambda: [child for child in keeper.children(recursive=True)], timeout_s=1)
        # 2. It comes back at the same address, and the work goes on.
        until(lambda: home.record()["started_at"] != before["started_at"], "the record is new")
        assert home.record()["url"] == before["url"]
        assert home.record()["pid"] == before["pid"]
        for handle in client.as_completed([client.task(id) for id in ids], timeout=SLOW_S):
            assert handle.state.value == "succeeded"


def test_a_killed_keeper_leaves_nothing_for_long(new_fleet: NewFleet) -> None:
    home = new_fleet(AGENTS)
    processes.kill([psutil.Process(home.record()["pid"])])
    # Ray's head ends with its parent, the agents with Ray, Claude Code with its guard.
    until(lambda: not home.left(), "everything ended by itself", 60)
    assert "No fleet is running" in home.fleet("down").stdout
    assert not (home.home / "run.json").exists()
