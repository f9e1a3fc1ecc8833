"""The command against a running fleet: what each does, and its exit codes."""

from __future__ import annotations

import json

import pytest

from tests.integration.support import Home, until


def submit(fleet: Home, *more: str) -> dict[str, object]:
    task = fleet.json("submit", "code_reviewer", "Say hello.", *more)
    assert isinstance(task, dict)
    return task


def test_a_task_is_submitted_waited_for_and_shown(fleet: Home) -> None:
    done = submit(fleet, "--wait", "--priority", "7", "--label", "kind=hello")
    assert done["state"] == "succeeded"
    shown = fleet.json("task", str(done["id"]))
    assert shown["priority"] == 7
    assert shown["labels"] == {"kind": "hello"}
    assert shown["result"]["text"]
    assert [run["number"] for run in shown["runs"]] == [1]
    assert shown["id"] in fleet.fleet("tasks", "--label", "kind=hello").stdout
    assert shown["result"]["text"] in fleet.fleet("task", str(done["id"])).stdout


def test_the_start_of_an_id_is_enough(fleet: Home) -> None:
    task = submit(fleet, "--wait")
    assert fleet.json("task", str(task["id"])[:-1])["id"] == task["id"]


def test_follow_shows_the_events(fleet: Home) -> None:
    done = fleet.fleet("submit", "code_reviewer", "Say hello.", "--follow")
    assert "✓" in done.stdout
    assert "succeeded" in done.stdout


def test_logs_of_a_task_and_of_an_agent(fleet: Home) -> None:
    task = submit(fleet, "--wait")
    events = [json.loads(line) for line in fleet.fleet("logs", str(task["id"]), "--json").stdout.splitlines()]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert {event["task_id"] for event in events} == {task["id"]}
    assert fleet.fleet("logs", str(task["agent_id"])).stdout


def test_many_tasks_come_from_a_file(fleet: Home) -> None:
    lines = [json.dumps({"role": "qa_tester", "prompt": f"Say {number}."}) for number in range(3)]
    made = fleet.json("submit", "--file", "-", "--wait", given="\n".join(lines))
    assert [task["state"] for task in made] == ["succeeded"] * 3


def test_the_same_key_is_the_same_task(fleet: Home) -> None:
    first = submit(fleet, "--idempotency-key", "once")
    assert submit(fleet, "--idempotency-key", "once")["id"] == first["id"]


def test_a_task_waits_for_another_and_is_cancelled(fleet: Home) -> None:
    fleet.fleet("pause")
    try:
        first = submit(fleet)
        second = submit(fleet, "--depends-on", str(first["id"]))
        assert second["state"] == "blocked"
        changed = fleet.json("prioritize", str(first["id"]), "-p", "9")
        assert changed[0]["priority"] == 9
        assert {task["state"] for task in fleet.json("cancel", str(first["id"]), str(second["id"]))} == {"cancelled"}
    finally:
        fleet.fleet("resume")
    assert fleet.json("retry", str(first["id"]))[0]["state"] in ("queued", "running", "succeeded")
    until(lambda: fleet.json("task", str(first["id"]))["state"] == "succeeded", "the retried task succeeds")


def test_an_agent_is_started_spoken_to_and_stopped(fleet: Home) -> None:
    agent = fleet.json("spawn", "qa_tester")[0]["id"]
    until(lambda: states(fleet).get(agent) == "idle", f"{agent} is idle")
    reply = fleet.json("send", agent, "Say hello.")
    until(lambda: fleet.json("task", reply["task_id"])["state"] == "succeeded", "the message became a task and ended")
    assert fleet.json("task", reply["task_id"])["agent_id"] == agent
    fleet.fleet("stop", agent)
    until(lambda: agent not in states(fleet), f"{agent} is gone")
    assert fleet.fleet("stop", agent, code=4).stderr.startswith("error: ")


def states(fleet: Home) -> dict[str, str]:
    return {agent["id"]: agent["state"] for agent in fleet.json("agents")}


def test_sql_sees_the_rows(fleet: Home) -> None:
    task = submit(fleet, "--wait")
    rows = fleet.json("sql", f"select id, state from task where id = '{task['id']}'")
    assert rows == [{"id": task["id"], "state": "succeeded"}]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("submit", "nobody", "Do it."), 2, "nobody"),
        (("submit", "qa_tester", "   "), 2, "prompt"),
        (("submit", "qa_tester", "Do it.", "--priority", "11"), 2, "priority"),
        (("submit", "qa_tester", "Do it.", "--workspace", "/nowhere-at-all"), 2, "/nowhere-at-all"),
        (("submit", "qa_tester", "Do it.", "--label", "x"), 2, "KEY=VALUE"),
        (("submit", "qa_tester"), 2, "PROMPT"),
        (("submit", "--file", "missing.json"), 2, "missing.json"),
        (("task", "t-none"), 3, "t-none"),
        (("logs", "nothing-1"), 3, "nothing-1"),
        (("stop", "nothing-1"), 3, "nothing-1"),
        (("sql", "drop table task"), 2, "SELECT"),
        (("spawn", "nobody"), 2, "nobody"),
        (("nonsense",), 2, "nonsense"),
        (("tasks", "--state", "odd"), 2, "odd"),
    ],
)
def test_what_is_wrong_is_named_and_has_its_exit_code(
    fleet: Home, arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert said in fleet.fleet(*arguments, code=code).stderr


def test_a_prompt_of_10_mb_is_refused(fleet: Home) -> None:
    done = fleet.fleet("submit", "qa_tester", "-", code=2, given="x" * 10_000_000)
    assert "1000000" in done.stderr


def test_a_wrong_token_is_refused(fleet: Home) -> None:
    url = fleet.record()["url"]
    done = fleet.fleet("--url", url, "tasks", code=5, FLEET_TOKEN="wrong", FLEET_HOME="/nonexistent")
    assert "token" in done.stderr.lower()


@pytest.mark.parametrize("command", ["status", "roles", "agents", "nodes", "tasks", "approvals"])
def test_every_list_is_also_json(fleet: Home, command: str) -> None:
    assert fleet.json(command) is not None
    assert fleet.fleet(command).stdout


def test_wrong_settings_are_named_with_their_line(home: Home) -> None:
    (home.work / "fleet.toml").write_text("port = 1\n[roles.qa_tester]\nmax_turnz = 3\n")
    done = home.fleet("config", "check", code=2)
    assert "fleet.toml:3" in done.stderr
    assert "max_turns" in done.stderr
    assert "No fleet is running" in home.fleet("down").stdout
