"""`fleet report` on a running fleet, and the log lines of its parts in Ray's folder."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.support import Home, until


def test_a_report_says_what_ran_and_what_failed(fleet: Home) -> None:
    with fleet.connect() as api:
        done = [
            api.submit("api_developer", "run: echo hello\nsay: done"),
            api.submit("api_developer", "run: true\nrun: true\nrun: true", max_turns=1),
        ]
        for task in api.as_completed(done, timeout=240):
            task.refresh()
        assert [task.refresh().state for task in done] == ["succeeded", "failed"]
    said = fleet.json("report", "--since", "1h")
    (role,) = [line for line in said["roles"] if line["role"] == "api_developer"]
    assert role["succeeded"] >= 1 and role["failed"] >= 1 and role["cost_usd"] > 0
    (failure,) = [one for one in said["failures"] if one["reason"] == "turn_limit"]
    assert done[1].id in failure["examples"] and failure["remedy"]
    text = fleet.fleet("report").stdout
    assert "turn_limit" in text and failure["remedy"] in text
    html = fleet.work / "report.html"
    fleet.fleet("report", "--since", "7d", "--html", str(html))
    assert "turn_limit" in html.read_text()


def test_a_wrong_span_is_named(fleet: Home) -> None:
    assert "24h" in fleet.fleet("report", "--since", "yesterday", code=2).stderr


def test_every_part_writes_json_lines_into_rays_log_folder(fleet: Home) -> None:
    with fleet.connect() as api:
        task = api.submit("qa_tester", "say: hello").wait(240)
        agent = task.refresh().task.agent_id
    logs = Path(fleet.record()["temp_dir"]) / "session_latest" / "logs"

    def lines(part: str) -> list[dict[str, str]]:
        path = logs / f"fleet-{part}.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    for part in ("store", "router", "gateway", "agent-qa_tester-1"):
        found = until(lambda part=part: lines(part), f"{part} writes log lines")  # type: ignore[misc]
        assert all(line["part"] == part and line["action"] and line["at"].endswith("Z") for line in found)
    until(
        lambda: any(line.get("task") == task.id for line in lines(f"agent-{agent}")),
        "the agent's lines carry the task's id",
    )
