from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import Busy, StorageFull, Unavailable
from fleet.gateway.errors import BODY_LIMIT_BYTES
from fleet.lifecycle import TaskState
from fleet.models import PROMPT_LIMIT_BYTES
from fleet.reasons import Reason
from tests.unit.gateway_world import World, gateway_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with gateway_world(tmp_path) as made:
        yield made


async def refused(world: World, body: Any, status: int, error: str, field: str | None = None) -> str:
    answer = await world.http.post("/api/tasks", json=body)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told["error"] == error
    if field is not None:
        assert told["field"] == field
    assert len(answer.text) < 2000
    assert world.router.submits == 0
    return str(told["message"])


async def test_one_task_is_submitted_and_read_back(world: World) -> None:
    task = await world.submit(prompt="\n  Write tests\nfor it", priority=7, labels={"area": "api"})
    assert (task["state"], task["title"], task["priority"]) == ("queued", "Write tests", 7)
    read = await world.get(f"/api/tasks/{task['id']}")
    assert read["id"] == task["id"]
    assert (read["runs"], read["result"], read["labels"]) == ([], None, {"area": "api"})


@pytest.mark.parametrize("path", ["/api/tasks", "/api/tasks:batch"])
async def test_many_tasks_are_submitted_at_once(world: World, path: str) -> None:
    body = [{"role": "qa_tester", "prompt": f"number {n}"} for n in range(3)]
    for wrapped in (body, {"tasks": body}):
        made = await world.post(path, wrapped, 201)
        assert [task["prompt"] for task in made["items"]] == ["number 0", "number 1", "number 2"]
    assert await world.post(path, [], 201) == {"items": []}


async def test_one_bad_task_of_many_refuses_all_and_is_named(world: World) -> None:
    body = [{"role": "qa_tester", "prompt": "x"}, {"role": "nobody", "prompt": "x"}]
    message = await refused(world, body, 422, "unknown_role", "tasks.1.role")
    assert message.startswith("tasks.1.role: expected one of api_developer, code_reviewer, qa_tester, but got 'nobody'")
    body[1] = {"role": "qa_tester", "prompt": "x", "priority": "high"}
    assert "tasks.1.priority" in await refused(world, body, 422, "invalid_input", "tasks.1.priority")


async def test_an_idempotency_key_returns_the_first_task(world: World) -> None:
    first = await world.submit(idempotency_key="k")
    assert (await world.submit(idempotency_key="k"))["id"] == first["id"]
    answer = await world.http.post(
        "/api/tasks", json={"role": "qa_tester", "prompt": "x"}, headers={"Idempotency-Key": "k"}
    )
    assert answer.json()["id"] == first["id"]


async def test_an_unknown_role_is_refused_with_those_there_are(world: World) -> None:
    message = await refused(world, {"role": "poet", "prompt": "x"}, 422, "unknown_role", "role")
    assert "api_developer, code_reviewer, qa_tester" in message and "'poet'" in message


@pytest.mark.parametrize("prompt", ["", " \n\t "])
async def test_an_empty_prompt_is_refused(world: World, prompt: str) -> None:
    assert "it is empty" in await refused(
        world, {"role": "qa_tester", "prompt": prompt}, 422, "invalid_input", "prompt"
    )


async def test_a_missing_prompt_is_refused(world: World) -> None:
    assert "prompt: expected a value, but it is missing" in await refused(
        world, {"role": "qa_tester"}, 422, "invalid_input", "prompt"
    )


async def test_a_prompt_of_ten_megabytes_is_refused_by_its_size(world: World) -> None:
    message = await refused(world, {"role": "qa_tester", "prompt": "x" * 10_000_000}, 413, "prompt_too_large", "prompt")
    assert "at most 1000000 bytes, but got 10000000" in message and "file" in message


async def test_a_prompt_of_one_megabyte_is_taken(world: World) -> None:
    await world.submit(prompt="x" * PROMPT_LIMIT_BYTES)


async def test_a_body_over_the_limit_is_refused_declared_or_not(world: World) -> None:
    big = b"x" * (BODY_LIMIT_BYTES + 1)

    async def chunks() -> AsyncIterator[bytes]:
        yield big

    for content in (big, chunks()):
        answer = await world.http.post("/api/tasks", content=content)
        assert answer.status_code == 413
        assert answer.json()["limit"] == BODY_LIMIT_BYTES


@pytest.mark.parametrize("priority", [-1, 10, 1000])
async def test_a_priority_out_of_range_is_refused(world: World, priority: int) -> None:
    body = {"role": "qa_tester", "prompt": "x", "priority": priority}
    assert f"expected 0 to 9 (higher goes first), but got {priority}" in await refused(
        world, body, 422, "invalid_input", "priority"
    )


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"{", None, "Expected a body of JSON"),
        (b"3", None, "expected an object"),
        (b'["x"]', "tasks.0", "expected an object"),
        (b'{"role": "qa_tester", "prompt": "x", "prio": 1}', "prio", "no such field"),
        (b'{"role": "qa_tester", "prompt": "x", "limits": {"max_turns": 0}}', "limits.max_turns", "greater than"),
        (b'{"role": "qa_tester", "prompt": ["x"]}', "prompt", "a valid string"),
        (b"\xff\xfe", None, "Expected a body of JSON"),
        (b'{"role": "qa_tester", "prompt": "\\ud800"}', "body", "half a character"),
    ],
)
async def test_a_body_that_does_not_fit_is_explained(world: World, body: bytes, field: str, words: str) -> None:
    answer = await world.http.post("/api/tasks", content=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "invalid_input"
    assert answer.json()["field"] == field
    assert words in answer.json()["message"]


async def test_other_bodies_are_explained_in_the_same_shape(world: World) -> None:
    answer = await world.http.post("/api/agents", json={"role": "qa_tester", "count": 0, "x": 1})
    assert answer.status_code == 422
    told = answer.json()
    assert (told["error"], told["field"]) == ("invalid_input", "count")
    assert "greater than or equal to 1, but got 0 (1 more)" in told["message"]
    answer = await world.http.get("/api/tasks", params={"limit": "many"})
    assert answer.json()["field"] == "limit"
    answer = await world.http.post("/api/agents", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_input")
    answer = await world.http.get("/api/nothing")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    answer = await world.http.put("/api/tasks")
    assert answer.status_code == 405


class TestWorkspaces:
    async def test_a_directory_under_a_root_is_taken(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "work").mkdir()
        task = await world.submit(workspace=str(tmp_path / "work"))
        assert task["workspace"] == {"kind": "directory", "path": str(tmp_path / "work"), "ref": None}
        await world.submit(workspace={"kind": "scratch"})

    async def test_a_missing_directory_is_refused(self, world: World, tmp_path: Path) -> None:
        body = {"role": "qa_tester", "prompt": "x", "workspace": str(tmp_path / "no")}
        message = await refused(world, body, 422, "workspace_refused", "workspace.path")
        assert "it does not exist" in message
        (tmp_path / "file").touch()
        body["workspace"] = str(tmp_path / "file")
        assert "it is no directory" in await refused(world, body, 422, "workspace_refused")

    async def test_a_directory_outside_the_roots_is_refused_also_through_links_and_dots(
        self, world: World, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to("/etc")
        for path in ("/etc", "/", f"{tmp_path}/../..", str(tmp_path / "link"), str(tmp_path) + "-beside"):
            body = {"role": "qa_tester", "prompt": "x", "workspace": path}
            message = await refused(world, body, 422, "workspace_refused", "workspace.path")
            assert f"a path under {tmp_path}" in message

    async def test_outside_the_roots_nobody_learns_what_exists(self, world: World) -> None:
        told = [
            await refused(world, {"role": "qa_tester", "prompt": "x", "workspace": path}, 422, "workspace_refused")
            for path in ("/etc", "/none-such")
        ]
        assert told[0].replace("/etc", "") == told[1].replace("/none-such", "")

    async def test_a_relative_path_is_refused(self, world: World) -> None:
        body = {"role": "qa_tester", "prompt": "x", "workspace": "here"}
        assert "an absolute path" in await refused(world, body, 422, "workspace_refused")

    async def test_a_worktree_needs_a_repository(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        body = {"role": "qa_tester", "prompt": "x", "workspace": f"worktree:{tmp_path}/plain"}
        assert "a git repository" in await refused(world, body, 422, "workspace_refused")
        (tmp_path / "plain" / ".git").mkdir()
        assert (await world.submit(workspace=f"worktree:{tmp_path}/plain@main"))["workspace"]["ref"] == "main"

    @pytest.mark.parametrize("url", ["ext::sh -c id", "-uhttps://x", "fd::3", "file:///etc", None])
    async def test_git_urls_that_run_commands_are_refused(self, world: World, url: str | None) -> None:
        body = {"role": "qa_tester", "prompt": "x", "workspace": {"kind": "git", "path": url}}
        await refused(world, body, 422, "workspace_refused", "workspace.path")

    async def test_git_urls_are_taken(self, world: World) -> None:
        for url in ("https://example.com/a.git", "git@example.com:a/b.git"):
            await world.submit(workspace={"kind": "git", "path": url})

    async def test_a_ref_is_no_option(self, world: World, tmp_path: Path) -> None:
        workspace = {"kind": "worktree", "path": str(tmp_path), "ref": "--upload-pack=x"}
        body = {"role": "qa_tester", "prompt": "x", "workspace": workspace}
        await refused(world, body, 422, "workspace_refused", "workspace.ref")


async def test_an_agent_that_is_gone_or_never_was_is_refused(world: World) -> None:
    message = await refused(world, {"role": "qa_tester", "prompt": "x", "agent": "qa_tester-9"}, 404, "not_found")
    assert "There is no agent 'qa_tester-9'" in message
    await world.post("/api/agents", {"role": "qa_tester"}, 201)
    await world.post("/api/agents/qa_tester-1/stop", {"drain": False})
    message = await refused(world, {"role": "qa_tester", "prompt": "x", "agent": "qa_tester-1"}, 410, "agent_gone")
    assert "it is stopped" in message and "fleet spawn qa_tester" in message


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (Busy("full", retry_after_s=2.4), 429, "3"),
        (Unavailable("away", part="store"), 503, "1"),
        (StorageFull("the disk is full"), 507, None),
    ],
)
async def test_pressure_is_answered_with_its_status_and_when_to_come_again(
    world: World, error: Any, status: int, after: str | None
) -> None:
    world.router.failing.append(error)
    answer = await world.http.post("/api/tasks", json={"role": "qa_tester", "prompt": "x"})
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, after)
    assert answer.json()["error"] == error.code


async def test_an_error_nobody_expected_is_answered_without_its_inside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(world.store, "tasks", broken)
    world.transport.app = _quiet(world.app)
    answer = await world.http.get("/api/tasks")
    assert answer.status_code == 500
    assert answer.json()["error"] == "error"
    assert "secret" not in answer.text


def _quiet(app: Any) -> Any:
    """Starlette answers 500 and raises the error again for its server's log."""

    async def run(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(RuntimeError):
            await app(scope, receive, send)

    return run


class TestLists:
    async def test_pages_follow_each_other_by_cursor(self, world: World) -> None:
        made = [(await world.submit(prompt=f"n{n}"))["id"] for n in range(5)]
        seen: list[str] = []
        cursor = None
        while True:
            page = await world.get("/api/tasks", limit=2, **({"before": cursor} if cursor else {}))
            seen += [task["id"] for task in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == [task["id"] for task in (await world.get("/api/tasks"))["items"]]
        assert sorted(seen) == sorted(made)

    async def test_filters_narrow(self, world: World) -> None:
        one = await world.submit(role="api_developer", prompt="alpha", priority=9, labels={"a": "1"})
        two = await world.submit(prompt="beta")
        await world.http.post(f"/api/tasks/{two['id']}/cancel")

        async def ids(**params: Any) -> list[str]:
            return sorted(task["id"] for task in (await world.get("/api/tasks", **params))["items"])

        assert await ids(state="queued") == [one["id"]]
        assert await ids(state="cancelled,dead") == [two["id"]]
        assert await ids(role=["api_developer", "code_reviewer"]) == [one["id"]]
        assert await ids(text="bet") == [two["id"]]
        assert await ids(priority=9) == [one["id"]]
        assert await ids(label="a=1") == [one["id"]]
        assert await ids(since=3600) == sorted([one["id"], two["id"]])

    async def test_wrong_filters_are_refused(self, world: World) -> None:
        assert (await world.get("/api/tasks", 422, state="done"))["field"] == "state"
        assert (await world.get("/api/tasks", 422, label="x"))["field"] == "label"
        assert (await world.get("/api/tasks", 422, priority=11))["field"] == "priority"


class TestOneTask:
    async def test_its_result_diff_runs_and_transitions_are_there_when_it_ended(self, world: World) -> None:
        task = await world.submit()
        path = f"/api/tasks/{task['id']}"
        assert (await world.get(f"{path}/result", 409))["state"] == "queued"
        await world.router.spawn("qa_tester")
        run = await world.router.begin(task["id"], "qa_tester-1")
        await world.router.finish(run, text="all green")
        read = await world.get(path)
        assert read["result"]["text"] == "all green"
        assert "diff" not in read["result"] and read["result"]["diff_bytes"] > 0
        assert [shown["id"] for shown in read["runs"]] == [run.id]
        assert (await world.get(f"{path}/result"))["diff"].startswith("--- a/x")
        assert (await world.http.get(f"{path}/diff")).text.startswith("--- a/x")
        states = [step["new"] for step in (await world.get(f"{path}/transitions"))["items"]]
        assert states == ["queued", "running", "succeeded"]
        assert (await world.get("/api/results"))["items"][0]["task_id"] == task["id"]

    async def test_a_failure_shows_what_happened_and_what_can_be_done(self, world: World) -> None:
        task = await world.submit()
        await world.router.spawn("qa_tester")
        run = await world.router.begin(task["id"], "qa_tester-1")
        await world.router.finish(run, TaskState.FAILED, Reason.TURN_LIMIT)
        read = await world.get(f"/api/tasks/{task['id']}")
        assert read["sentence"] == "The run used all its turns."
        assert "max_turns" in read["remedy"]
        assert (await world.get(f"/api/tasks/{task['id']}/result", 404))["what"] == "result"

    async def test_a_beginning_of_its_id_finds_it(self, world: World) -> None:
        task = await world.submit()
        assert (await world.get(f"/api/tasks/{task['id'][:-2]}"))["id"] == task["id"]
        assert (await world.get("/api/tasks/t-none", 404))["error"] == "not_found"

    async def test_cancel_retry_and_priority(self, world: World) -> None:
        task = await world.submit()
        path = f"/api/tasks/{task['id']}"
        assert (await world.post(f"{path}/priority", {"priority": 9}))["priority"] == 9
        assert (await world.post(f"{path}/priority", {"priority": 99}, 422))["field"] == "priority"
        assert (await world.post(f"{path}/retry", None, 409))["error"] == "conflict"
        cancelled = await world.post(f"{path}/cancel", {"detail": "not needed"})
        assert (cancelled["state"], cancelled["detail"]) == ("cancelled", "not needed")
        assert (await world.post(f"{path}/retry"))["state"] == "queued"

    async def test_many_are_changed_at_once(self, world: World) -> None:
        ids = [(await world.submit())["id"] for _ in range(3)]
        assert {
            t["priority"] for t in (await world.post("/api/tasks:priority", {"ids": ids, "priority": 1}))["items"]
        } == {1}
        assert {t["state"] for t in (await world.post("/api/tasks:cancel", {"ids": ids}))["items"]} == {"cancelled"}
        assert {t["state"] for t in (await world.post("/api/tasks:retry", {"ids": ids}))["items"]} == {"queued"}
        await world.post("/api/tasks:cancel", {"ids": []}, 422)

    async def test_a_finished_conversation_is_continued(self, world: World) -> None:
        task = await world.submit(priority=8, labels={"a": "b"})
        path = f"/api/tasks/{task['id']}/continue"
        assert (await world.post(path, {"prompt": "more"}, 409))["state"] == "queued"
        await world.router.spawn("qa_tester")
        await world.router.finish(await world.router.begin(task["id"], "qa_tester-1"))
        next_task = await world.post(path, {"prompt": "more"}, 201)
        assert next_task["continue_from"] == task["id"]
        assert (next_task["priority"], next_task["labels"], next_task["prompt"]) == (8, {"a": "b"}, "more")
        assert (await world.post(path, {"prompt": " "}, 422))["field"] == "prompt"


class TestWaiting:
    async def test_a_wait_ends_with_the_task(self, world: World) -> None:
        task = await world.submit()
        await world.router.spawn("qa_tester")
        waiting = asyncio.create_task(world.get(f"/api/tasks/{task['id']}/wait", timeout_s=60))
        run = await world.router.begin(task["id"], "qa_tester-1")
        await asyncio.sleep(0)
        assert not waiting.done()
        await world.router.finish(run)
        assert (await asyncio.wait_for(waiting, 10))["state"] == "succeeded"
        assert (await world.get(f"/api/tasks/{task['id']}/wait", timeout_s=60))["state"] == "succeeded"

    async def test_a_wait_that_is_over_gives_the_task_as_it_is(self, world: World) -> None:
        task = await world.submit()
        assert (await world.get(f"/api/tasks/{task['id']}/wait", timeout_s=0))["state"] == "queued"
        await world.get(f"/api/tasks/{task['id']}/wait", 422, timeout_s=1000)
        await world.get("/api/tasks/t-none/wait", 404)

    async def test_a_wait_for_many_gives_those_that_are_final(self, world: World) -> None:
        ids = [(await world.submit())["id"] for _ in range(3)]
        assert (await world.post("/api/tasks:wait", {"ids": ids, "timeout_s": 0}))["items"] == []
        waiting = asyncio.create_task(world.post("/api/tasks:wait", {"ids": ids, "timeout_s": 60}))
        await asyncio.sleep(0)
        await world.post(f"/api/tasks/{ids[1]}/cancel")
        done = await asyncio.wait_for(waiting, 10)
        assert [task["id"] for task in done["items"]] == [ids[1]]
        assert (await world.post("/api/tasks:wait", {"ids": ["t-none"]}, 404))["error"] == "not_found"
