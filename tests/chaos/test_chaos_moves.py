"""Two losses in full: a run moves to another raylet in its second turn, and a whole fleet is killed with its queue."""

from __future__ import annotations

import contextlib
from typing import Any

import psutil
import pytest

from fleet.cluster import processes
from tests.chaos.driver import Away, Rest
from tests.chaos.node import SecondNode
from tests.integration.support import SLOW_S, Home, temporary_home, until

NOBODY = "".join(f"[roles.{name}]\nagents = 0\n" for name in ("code_reviewer", "api_developer", "qa_tester"))
ROLE = (
    '[roles.mover]\nprompt = "You move."\ntools = ["Bash", "Read", "Write"]\nagents = {agents}\ncpus = 0.25\n'
    "memory_mb = 400\n"
)


def ask(rest: Rest, method: str, path: str, body: Any = None) -> Any:
    """Call until the fleet answers."""

    def once() -> Any:
        with contextlib.suppress(Away):
            return rest.call(method, path, body)
        return None

    return until(once, f"{method} {path} is answered")


def submit(rest: Rest, home: Home, prompts: list[str]) -> list[str]:
    workspace = {"kind": "directory", "path": str(home.work)}
    tasks = [{"role": "mover", "prompt": prompt, "workspace": workspace} for prompt in prompts]
    return [task["id"] for task in ask(rest, "POST", "/api/tasks", {"tasks": tasks})["items"]]


def kill_everything(home: Home) -> None:
    """SIGKILL every process of the fleet, the keeper first."""
    processes.kill([psutil.Process(home.record()["pid"])])
    processes.kill_until_none(home.processes)


@pytest.mark.timeout(900)
def test_a_run_whose_node_is_killed_in_its_second_turn_goes_on_on_another_raylet() -> None:
    settings = "lease_s = 4\nnode_floor_mb = 0\n" + NOBODY + ROLE.format(agents=0)
    with temporary_home(settings) as home:
        home.up()
        rest, node = Rest(home), SecondNode(home)
        node.keep()
        try:
            # 1. Two nodes, an agent on each.
            until(lambda: len([n for n in ask(rest, "GET", "/api/nodes")["items"] if n["alive"]]) == 2, "two nodes")
            ask(rest, "POST", "/api/agents", {"role": "mover", "count": 2})

            def agents() -> dict[str, str]:
                shown = ask(rest, "GET", "/api/agents?role=mover")["items"]
                return {agent["id"]: agent["node"] for agent in shown if agent["state"] in ("idle", "busy")}

            until(lambda: len(set(agents().values())) == 2, "an agent on each node")
            nodes = {item["id"]: item for item in ask(rest, "GET", "/api/nodes")["items"]}
            away = next(id for id, item in nodes.items() if not item["head"])
            # 2. A task each; the one on the second node has written its first file and is in its second turn.
            prompts = [
                f"write: {key}.1\n<<<\nfirst\n>>>\nrun: echo second >> {key}.2; sleep 20\n"
                f"run: echo third >> {key}.3\nsay: {key} is done."
                for key in ("a", "b")
            ]
            ids = submit(rest, home, prompts)
            until(lambda: all((home.work / f"{key}.2").exists() for key in ("a", "b")), "both are in their second turn")
            runs = ask(rest, "POST", "/api/sql", {"query": "select task_id, agent_id from run where state = 'running'"})
            moved = next(task for task, agent in runs["rows"] if agents()[agent] == away)
            key = ("a", "b")[ids.index(moved)]
            written = (home.work / f"{key}.1").stat().st_mtime_ns
            # 3. Its raylet is killed.
            assert node.kill()
            for id in ids:
                until(lambda id=id: ask(rest, "GET", f"/api/tasks/{id}")["state"] == "succeeded", f"{id} ends well")
            # 4. One conversation, on two nodes; nothing was done twice.
            task = ask(rest, "GET", f"/api/tasks/{moved}")
            first, second = task["runs"]
            assert (first["state"], second["state"]) == ("lost", "succeeded"), task
            assert first["node"] == away
            assert second["node"] != away
            assert first["session_id"] == second["session_id"]
            assert second["resumed_from"] == first["id"]
            assert (home.work / f"{key}.1").stat().st_mtime_ns == written
            assert (home.work / f"{key}.2").read_text() == "second\n"
            assert (home.work / f"{key}.3").read_text() == "third\n"
            assert f"{key} is done." in task["result"]["text"]
            # The cut run's tokens are counted too.
            assert first["usage"]["output_tokens"] > 0
            assert task["usage"]["output_tokens"] > second["usage"]["output_tokens"]
        finally:
            node.stop()


@pytest.mark.timeout(900)
def test_a_fleet_that_was_killed_with_fifty_queued_and_four_running_does_them_all() -> None:
    settings = f'node_floor_mb = 0\nclaude_path = "{{claude}}"\n{NOBODY}{ROLE.format(agents=4)}'
    with temporary_home() as home:
        from fleet.rehearsal import standin

        file = home.work / "fleet.toml"
        file.write_text(file.read_text() + settings.replace("{claude}", str(standin.install(home.folder / "bin"))))
        home.up()
        rest = Rest(home)
        prompts = [f"run: echo x >> {number}.txt; sleep 2\nsay: {number}" for number in range(54)]
        ids = submit(rest, home, prompts)

        def states() -> dict[str, int]:
            query = "select state, count(*) from task group by 1"
            return dict(ask(rest, "POST", "/api/sql", {"query": query})["rows"])

        until(lambda: states().get("running") == 4, "four run")
        kill_everything(home)
        home.up()
        until(lambda: states() == {"succeeded": 54}, "all succeed", SLOW_S * 2)
        counts = ask(rest, "POST", "/api/sql", {"query": "select count(*), count(distinct task_id) from result"})
        assert counts["rows"] == [[54, 54]]
        assert len(ids) == len(set(ids)) == 54
