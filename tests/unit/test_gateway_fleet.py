from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import Unavailable
from fleet.models import Approval, QueryResult
from tests.unit.gateway_world import World, gateway_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with gateway_world(tmp_path, rehearsal=True) as made:
        yield made


class TestAgents:
    async def test_they_are_spawned_listed_and_stopped(self, world: World) -> None:
        made = await world.post("/api/agents", {"role": "qa_tester", "count": 2}, 201)
        assert [agent["id"] for agent in made["items"]] == ["qa_tester-1", "qa_tester-2"]
        assert len((await world.get("/api/agents", role="qa_tester"))["items"]) == 2
        stopped = await world.post("/api/agents/qa_tester-1/stop", {"drain": True})
        assert stopped["state"] == "stopped"
        every = await world.get("/api/agents", all="true")
        assert {agent["id"]: agent["state"] for agent in every["items"]} == {
            "qa_tester-1": "stopped",
            "qa_tester-2": "idle",
        }
        assert (await world.http.delete("/api/agents/qa_tester-2")).json()["state"] == "stopped"

    async def test_one_shows_its_task_and_its_history(self, world: World) -> None:
        await world.router.spawn("qa_tester")
        task = await world.submit(prompt="Look")
        run = await world.router.begin(task["id"], "qa_tester-1")
        shown = await world.get("/api/agents/qa_tester-1")
        assert shown["id"] == "qa_tester-1"
        assert [entry["id"] for entry in shown["history"]] == [run.id]

    async def test_wrong_ones_are_refused(self, world: World) -> None:
        assert (await world.post("/api/agents", {"role": "poet"}, 422))["error"] == "unknown_role"
        assert (await world.get("/api/agents", 422, state="asleep"))["field"] == "state"
        for path in ("", "/logs"):
            assert (await world.get(f"/api/agents/nobody{path}", 404))["what"] == "agent"
        await world.router.spawn("qa_tester")
        await world.post("/api/agents/qa_tester-1/stop")
        for path, body in (("stop", None), ("send", {"text": "hello"}), ("interrupt", None)):
            answer = await world.http.post(f"/api/agents/qa_tester-1/{path}", json=body)
            assert answer.status_code == 410, answer.text
            assert answer.json()["error"] == "agent_gone"

    async def test_an_idle_one_takes_a_message_as_a_task_of_its_own(self, world: World) -> None:
        await world.router.spawn("qa_tester")
        told = await world.post("/api/agents/qa_tester-1/send", {"text": "hello"})
        assert told["delivered"] is False
        assert (await world.get(f"/api/tasks/{told['task_id']}"))["agent"] == "qa_tester-1"
        assert (await world.post("/api/agents/qa_tester-1/send", {"text": ""}, 422))["field"] == "text"
        assert (await world.post("/api/agents/qa_tester-1/send", {"text": "x" * 2_000_000}, 413))["limit"] == 1_000_000


class TestTheWhole:
    async def test_health_and_version_say_rehearsal(self, world: World) -> None:
        health = await world.get("/api/health")
        assert (health["status"], health["rehearsal"]) == ("ok", True)
        assert (await world.get("/api/version"))["rehearsal"] is True

    async def test_a_part_that_is_away_makes_health_503_and_is_named(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def away() -> None:
            raise Unavailable("The router does not answer now.", part="router")

        monkeypatch.setattr(world.router, "status", away)
        health = await world.get("/api/health", 503)
        assert health["parts"] == {"store": "ok", "router": "The router does not answer now."}

    async def test_status_has_figures_and_times_people_read(self, world: World) -> None:
        await world.submit()
        status = await world.get("/api/status")
        assert status["counts"]["states"]["queued"] == 1
        assert status["since"] == "1970-01-01T00:16:40.000Z"
        assert status["rehearsal"] is True

    async def test_roles_are_listed_scaled_and_paused(self, world: World) -> None:
        roles = {entry["role"]["name"]: entry for entry in (await world.get("/api/roles"))["items"]}
        assert set(roles) == {"code_reviewer", "api_developer", "qa_tester"}
        assert roles["qa_tester"]["oldest_queued_at"] == "1970-01-01T00:16:40.000Z"
        assert (await world.get("/api/roles/qa_tester"))["role"]["max_turns"] == 15
        assert (await world.post("/api/roles/qa_tester/scale", {"agents": 5}))["agents"] == 5
        assert (await world.post("/api/roles/qa_tester/scale", {"agents": -1}, 422))["field"] == "agents"
        await world.post("/api/roles/qa_tester/pause")
        await world.post("/api/fleet/pause")
        assert world.router.paused == {"qa_tester": True, None: True}
        await world.post("/api/roles/qa_tester/resume")
        await world.post("/api/fleet/resume")
        assert world.router.paused == {"qa_tester": False, None: False}
        for path in ("scale", "pause", "resume"):
            assert (await world.post(f"/api/roles/poet/{path}", {"agents": 1}, 422))["error"] == "unknown_role"

    async def test_nodes_are_listed_and_drained(self, world: World) -> None:
        assert [node["name"] for node in (await world.get("/api/nodes"))["items"]] == ["head"]
        assert (await world.post("/api/nodes/node/drain"))["draining"] is True
        assert (await world.post("/api/nodes/node/drain", {"undo": True}))["draining"] is False
        await world.post("/api/nodes/other/drain", None, 404)


async def test_approvals_are_listed_and_decided_once(world: World) -> None:
    now = time.time()
    approval = Approval(
        id="a-1",
        task_id="t-1",
        run_id="r-1",
        agent_id="qa_tester-1",
        role="qa_tester",
        tool="Bash",
        input={"command": "rm -r build"},
        created_at=now,
        expires_at=now + 600,
    )
    await world.router.ask(approval)
    assert [found["id"] for found in (await world.get("/api/approvals"))["items"]] == ["a-1"]
    assert (await world.get("/api/approvals", task="t-2"))["items"] == []
    decided = await world.post(
        "/api/approvals/a-1", {"allow": True, "scope": "task", "changed_input": {"command": "ls"}, "by": "ann"}
    )
    assert (decided["state"], decided["scope"], decided["decided_by"]) == ("allowed", "task", "ann")
    assert (await world.post("/api/approvals/a-1", {"allow": False}, 409))["state"] == "allowed"
    assert (await world.post("/api/approvals/a-1", {"allow": True, "scope": "world"}, 422))["field"] == "scope"
    assert (await world.get("/api/approvals/a-1"))["changed_input"] == {"command": "ls"}
    await world.get("/api/approvals/a-2", 404)
    await world.post("/api/approvals/a-2", {"allow": True}, 404)


class TestData:
    async def test_events_come_in_pages(self, world: World) -> None:
        await world.router.spawn("qa_tester")
        run = await world.router.begin((await world.submit())["id"], "qa_tester-1")
        ids = await world.router.speak(run, *"abcde")
        page = await world.get("/api/events", task=run.task_id, limit=3)
        assert [event["id"] for event in page["items"]] == ids[:3]
        rest = await world.get(f"/api/tasks/{run.task_id}/transcript", after=page["next"], limit=3)
        assert ([event["id"] for event in rest["items"]], rest["next"]) == (ids[3:], None)
        newest = await world.get("/api/events", agent="qa_tester-1", newest="true", limit=2)
        assert [event["id"] for event in newest["items"]] == ids[-2:]
        older = await world.get("/api/events", run=run.id, newest="true", before=ids[3], limit=2)
        assert [event["id"] for event in older["items"]] == ids[1:3]
        assert (await world.get("/api/events", 422))["field"] == "task"

    async def test_search_needs_something_to_look_for(self, world: World) -> None:
        await world.router.spawn("qa_tester")
        run = await world.router.begin((await world.submit())["id"], "qa_tester-1")
        await world.router.speak(run, "the needle is here")
        found = await world.get("/api/search", q="needle")
        assert [hit["task_id"] for hit in found["items"]] == [run.task_id]
        assert (await world.get("/api/search", 422))["field"] == "q"

    async def test_sql_answers_json_with_what_json_does_not_know(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from datetime import UTC, datetime
        from decimal import Decimal

        async def sql(query: str, **bounds: Any) -> QueryResult:
            rows = ((float("nan"), datetime(2026, 1, 31, tzinfo=UTC), Decimal("1.50"), b"\x00\xff", [float("inf")]),)
            return QueryResult(columns=("n", "t", "d", "b", "l"), types=("x",) * 5, rows=rows)

        monkeypatch.setattr(world.store, "sql", sql)
        answer = await world.post("/api/sql", {"query": "select 1"})
        assert answer["rows"][0][0] == "nan"
        assert answer["rows"][0][1].startswith("2026-01-31T00:00:00")
        assert answer["rows"][0][2] == "1.50"
        assert answer["rows"][0][4] == ["inf"]

    async def test_sql_answers_arrow_when_asked(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        async def sql_arrow(query: str, **bounds: Any) -> bytes:
            assert bounds == {"max_rows": 7, "timeout_s": 30.0}
            return b"arrow"

        monkeypatch.setattr(world.store, "sql_arrow", sql_arrow)
        answer = await world.http.post(
            "/api/sql",
            json={"query": "select 1", "max_rows": 7},
            headers={"Accept": "application/vnd.apache.arrow.stream"},
        )
        assert (answer.content, answer.headers["content-type"]) == (b"arrow", "application/vnd.apache.arrow.stream")

    async def test_sql_errors_are_ordinary_errors(self, world: World) -> None:
        assert (await world.post("/api/sql", {"query": "drop table task"}, 422))["error"] == "query_refused"
        assert (await world.post("/api/sql", {"query": ""}, 422))["field"] == "query"
        assert (await world.http.delete("/api/sql/q-1")).json() == {"done": False}

    async def test_templates_are_kept_and_the_routers_own_settings_are_not_open(self, world: World) -> None:
        answer = await world.http.put("/api/settings/templates", json={"value": [{"name": "review"}]})
        assert answer.status_code == 200
        assert (await world.get("/api/settings/templates"))["value"] == [{"name": "review"}]
        assert (await world.get("/api/settings/queries"))["value"] == []
        await world.get("/api/settings/ui:nothing", 404)
        assert (await world.http.put("/api/settings/paused", json={"value": True})).status_code == 403

    async def test_the_stores_care_is_reachable(self, world: World) -> None:
        assert (await world.get("/api/store"))["path"] == ":memory:"
        assert (await world.post("/api/prune", {"older_than_s": 0}))["deleted"] == 0
        assert (await world.post("/api/prune", {}, 422))["field"] == "older_than_s"
        assert (await world.post("/api/backup", {"folder": "here"}, 422))["field"] == "folder"


class TestDocs:
    async def test_the_page_loads_nothing_from_elsewhere(self, world: World) -> None:
        texts = [(await world.http.get(path)).text for path in ("/docs", "/docs/docs.js", "/docs/docs.css")]
        assert all(texts)
        for text in texts:
            assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), text
        assert "innerHTML" not in texts[1]
        policy = (await world.http.get("/docs")).headers["content-security-policy"]
        assert "default-src 'none'" in policy

    async def test_every_route_is_in_openapi_with_words(self, world: World) -> None:
        spec = await world.get("/openapi.json")
        for path in ("/api/tasks", "/api/tasks/{task_id}/events", "/api/agents/{agent_id}/logs", "/api/sql"):
            assert path in spec["paths"]
        for path, verbs in spec["paths"].items():
            for verb, told in verbs.items():
                assert told.get("description"), f"{verb} {path} says nothing"
        schemas = spec["components"]["schemas"]
        assert {"TaskSpec", "Task", "Run", "Result", "Event", "AgentInfo", "Approval", "NodeInfo"} <= set(schemas)
        for name in re.findall(r'"#/components/schemas/([^"]+)"', (await world.http.get("/openapi.json")).text):
            assert name in schemas, f"{name} is referred to and missing"
