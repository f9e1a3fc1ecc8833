"""Metrics: what the feed adds up to, and that dashboard and alerts name what exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import fleet.observability
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import Activity, AgentInfo, Approval, ApprovalState, Event, EventKind, FeedItem, Run, Task, Usage
from fleet.observability.definitions import DEFINITIONS, EXPORTED, Kind, Sample
from fleet.observability.meter import Meter
from fleet.reasons import Reason

FOLDER = Path(fleet.observability.__file__).parent
FeedKind = Literal["task", "run", "agent", "result", "approval", "role", "event", "activity", "setting"]


def queries() -> list[tuple[str, str]]:
    """Return every query of the dashboard and the alerts, with where it is."""
    dashboard = json.loads((FOLDER / "grafana" / "fleet.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = yaml.safe_load((FOLDER / "prometheus" / "alerts.yaml").read_text())
    found += [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    return found


@pytest.mark.parametrize(("where", "query"), queries(), ids=[where for where, _ in queries()])
def test_every_query_names_metrics_that_exist(where: str, query: str) -> None:
    names = set(re.findall(r"\bray_\w+", query))
    assert names, f"{where} asks for nothing of ours"
    assert names <= EXPORTED, f"{where}: {names - EXPORTED}"
    for labels in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
        definition = next(d for d in DEFINITIONS.values() if labels[0] in d.exported)
        for label in re.findall(r"(\w+)\s*[=!]", labels[1]):
            assert label in definition.tags, f"{where}: {labels[0]} has no label {label}"


def test_every_metric_is_shown_on_the_dashboard() -> None:
    shown = {name for _, query in queries() for name in re.findall(r"\bray_\w+", query)}
    assert not [d.name for d in DEFINITIONS.values() if not shown & set(d.exported)]


def test_names_follow_the_conventions_of_prometheus() -> None:
    for definition in DEFINITIONS.values():
        assert definition.name.endswith("_total") == (definition.kind is Kind.COUNTER), definition.name
        assert bool(definition.buckets) == (definition.kind is Kind.HISTOGRAM), definition.name
        assert list(definition.buckets) == sorted(definition.buckets)
        assert definition.help.endswith("."), definition.name
        assert not definition.name.endswith(("_ms", "_mb", "_kb"))


def task(state: TaskState, **changes: Any) -> Task:
    return Task(
        **{"id": "t-1", "role": "qa", "prompt": "p", "state": state, "created_at": 1.0, "updated_at": 1.0, **changes}
    )


def run(state: RunState, **changes: Any) -> Run:
    values = {"id": "r-1", "task_id": "t-1", "number": 1, "role": "qa", "agent_id": "qa-1", "incarnation": 1}
    return Run(**{**values, "epoch": 1, "state": state, "started_at": 10.0, **changes})


def agent(state: AgentState, **changes: Any) -> AgentInfo:
    return AgentInfo(**{"id": "qa-1", "role": "qa", "state": state, "started_at": 1.0, "updated_at": 1.0, **changes})


def frame(seq: int, type: str, at: float, **changes: Any) -> Event:
    values: dict[str, Any] = {"run_id": "r-1", "task_id": "t-1", "agent_id": "qa-1", "seq": seq, "at": at}
    return Event(**{**values, "kind": EventKind.FRAME, "type": type, **changes})


def fed(meter: Meter, kind: FeedKind, *rows: object, now: float = 100.0) -> list[Sample]:
    return [s for row in rows for s in meter.take(FeedItem(position=1, kind=kind, item=row), now)]


def test_a_task_counts_once_per_state_however_often_its_row_comes() -> None:
    meter = Meter()
    queued = task(TaskState.QUEUED, queued_at=10.0)
    running = task(TaskState.RUNNING, queued_at=10.0, started_at=14.5, number_of_runs=1)
    samples = fed(meter, "task", queued, queued, running, running, task(TaskState.SUCCEEDED, number_of_runs=1))
    entered = [dict(s.tags)["state"] for s in samples if s.name == "fleet_tasks_total"]
    assert entered == ["queued", "running", "succeeded"]
    waits = [s for s in samples if s.name == "fleet_task_wait_seconds"]
    assert [(s.value, s.tags) for s in waits] == [(4.5, (("role", "qa"),))]


def test_a_task_that_was_there_before_is_not_counted() -> None:
    meter = Meter()
    meter.begin(tasks=[task(TaskState.QUEUED)])
    assert fed(meter, "task", task(TaskState.QUEUED)) == []


def test_a_rate_limit_counts_as_a_wait() -> None:
    limited = task(TaskState.SCHEDULED, reason=Reason.RATE_LIMITED)
    assert "fleet_rate_limit_waits_total" in [s.name for s in fed(Meter(), "task", limited)]
    other = task(TaskState.SCHEDULED, reason=Reason.OVERLOADED)
    assert "fleet_rate_limit_waits_total" not in [s.name for s in fed(Meter(), "task", other)]


def test_an_ended_run_gives_duration_cost_and_tokens_once() -> None:
    meter = Meter()
    ended = run(RunState.SUCCEEDED, finished_at=40.0, cost_usd=0.5, usage=Usage(input_tokens=3, output_tokens=4))
    samples = fed(meter, "run", run(RunState.RUNNING), ended, ended)
    assert [(s.name, s.value) for s in samples] == [
        ("fleet_run_duration_seconds", 30.0),
        ("fleet_cost_usd_total", 0.5),
        ("fleet_tokens_total", 3.0),
        ("fleet_tokens_total", 4.0),
    ]


def test_a_failed_run_counts_with_its_reason() -> None:
    (failed,) = fed(Meter(), "run", run(RunState.LOST, reason=Reason.AGENT_LOST))
    assert (failed.name, dict(failed.tags)) == ("fleet_run_failures_total", {"role": "qa", "reason": "agent_lost"})


def test_a_turn_goes_from_prompt_to_the_tools_answers() -> None:
    meter = Meter()
    samples = fed(
        meter,
        "event",
        frame(0, "system", 1.0),
        frame(1, "assistant", 3.0),
        frame(2, "assistant", 4.0),  # two tools called together
        frame(3, "user", 5.0),
        frame(4, "user", 6.0),
        frame(5, "assistant", 8.0),
        frame(6, "result", 8.5),
    )
    assert [s.value for s in samples if s.name == "fleet_turn_duration_seconds"] == [4.0, 2.5]


def test_events_give_their_lag_and_kinds() -> None:
    samples = fed(Meter(), "event", frame(0, "assistant", 99.5), now=100.0)
    assert [(s.name, s.value) for s in samples] == [("fleet_event_lag_seconds", 0.5), ("fleet_events_total", 1.0)]


def test_orphans_count_by_their_number() -> None:
    event = frame(0, "swept", 1.0, kind=EventKind.STATE, payload={"processes": 3})
    assert [(s.value, s.tags) for s in fed(Meter(), "event", event) if "orphans" in s.name] == [
        (3.0, (("role", "qa"),))
    ]


def test_restarts_count_by_the_difference() -> None:
    meter = Meter()
    meter.begin(agents=[agent(AgentState.IDLE, restarts=2)])
    (sample,) = fed(meter, "agent", agent(AgentState.STARTING, restarts=3), agent(AgentState.IDLE, restarts=3))
    assert (sample.name, sample.value) == ("fleet_agent_restarts_total", 1.0)


def test_gauges_show_zero_for_what_went_away() -> None:
    meter = Meter()
    meter.begin(agents=[agent(AgentState.BUSY)])
    fed(meter, "activity", Activity(agent_id="qa-1", rss_mb=2.0, at=1.0))
    first = meter.gauges({"states": {"queued": 2}, "queued_by_priority": {9: 2}, "oldest_queued_at": 40.0}, {}, 100.0)
    by_name = {(s.name, *(value for _, value in s.tags)): s.value for s in first}
    assert by_name["fleet_tasks_in_state", "queued"] == 2
    assert by_name["fleet_tasks_in_state", "dead"] == 0
    assert by_name["fleet_tasks_queued", "9"] == 2
    assert by_name["fleet_oldest_queued_seconds",] == 60.0
    assert by_name["fleet_agents", "qa", "busy"] == 1
    assert by_name["fleet_agent_memory_bytes", "qa"] == 2 * 1024 * 1024
    fed(meter, "agent", agent(AgentState.STOPPED))
    later = meter.gauges({"states": {}}, {"inbox": 3, "commit_p99_s": 0.01}, 101.0)
    by_name = {(s.name, *(value for _, value in s.tags)): s.value for s in later}
    assert by_name["fleet_agents", "qa", "busy"] == 0
    assert by_name["fleet_agent_memory_bytes", "qa"] == 0
    assert by_name["fleet_tasks_queued", "9"] == 0
    assert by_name["fleet_oldest_queued_seconds",] == 0.0
    assert by_name["fleet_store_inbox",] == 3
    assert by_name["fleet_store_commit_seconds", "0.99"] == 0.01


def test_approvals_that_wait_are_counted() -> None:
    values: dict[str, Any] = {"id": "a-1", "task_id": "t-1", "run_id": "r-1", "agent_id": "qa-1", "role": "qa"}
    waiting = Approval(**values, tool="Bash", input={}, created_at=1.0, expires_at=2.0)
    meter = Meter()

    def shown() -> float:
        return next(s.value for s in meter.gauges({}, {}, 1.0) if s.name == "fleet_approvals_waiting")

    fed(meter, "approval", waiting)
    assert shown() == 1
    fed(meter, "approval", waiting.model_copy(update={"state": ApprovalState.ALLOWED}))
    assert shown() == 0


def test_the_meters_memory_is_bounded() -> None:
    meter = Meter(remembered=10)
    for n in range(100):
        fed(meter, "task", task(TaskState.QUEUED, id=f"t-{n}"))
        fed(meter, "run", run(RunState.RUNNING, id=f"r-{n}"))
        fed(meter, "event", frame(0, "assistant", 1.0, run_id=f"r-{n}"))
    assert max(len(meter._tasks), len(meter._runs), len(meter._turns), len(meter._roles)) == 10
