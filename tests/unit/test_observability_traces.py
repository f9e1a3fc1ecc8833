"""Traces: one per task, with its waits, runs, tools and approvals, whatever order the rows of a commit come in."""

from __future__ import annotations

from typing import Any

from fleet.lifecycle import RunState, TaskState
from fleet.models import Approval, ApprovalState, Event, EventKind, FeedItem, Run, Task
from fleet.observability.otel import wanted
from fleet.observability.traces import Span, TraceBuilder
from fleet.reasons import Reason


def task(state: TaskState, **changes: Any) -> FeedItem:
    values = {"id": "t-1", "role": "qa", "prompt": "p", "state": state, "created_at": 1.0, "queued_at": 1.0}
    return FeedItem(position=1, kind="task", item=Task(**{**values, "updated_at": 9.0, **changes}))


def run(state: RunState, **changes: Any) -> FeedItem:
    values = {"id": "r-1", "task_id": "t-1", "number": 1, "role": "qa", "agent_id": "qa-1", "incarnation": 1}
    return FeedItem(
        position=1, kind="run", item=Run(**{**values, "epoch": 1, "state": state, "started_at": 3.0, **changes})
    )


def frame(type: str, at: float, block: dict[str, Any]) -> FeedItem:
    event = Event(
        run_id="r-1",
        task_id="t-1",
        agent_id="qa-1",
        seq=int(at * 10),
        at=at,
        kind=EventKind.FRAME,
        type=type,
        payload={"message": {"content": [block]}},
    )
    return FeedItem(position=1, kind="event", item=event)


def built(*items: FeedItem, builder: TraceBuilder | None = None) -> list[Span]:
    maker = builder or TraceBuilder()
    return [span for item in items for span in maker.take(item)]


STARTED = (
    task(TaskState.QUEUED),
    task(TaskState.RUNNING, started_at=3.0, run_id="r-1", why="idle"),
    run(RunState.RUNNING),
)
TASK_ENDED = task(TaskState.SUCCEEDED, started_at=3.0, run_id="r-1", finished_at=8.0)
RUN_ENDED = run(RunState.SUCCEEDED, finished_at=8.0)


def test_a_task_gives_one_trace_with_its_wait_and_run() -> None:
    (trace,) = built(*STARTED, RUN_ENDED, TASK_ENDED)
    assert (trace.name, trace.start, trace.end, trace.error) == ("task qa", 1.0, 8.0, None)
    assert [(span.name, span.start, span.end) for span in trace.children] == [("wait", 1.0, 3.0), ("run 1", 3.0, 8.0)]


def test_the_tasks_row_may_come_before_its_runs() -> None:
    assert built(*STARTED, TASK_ENDED, RUN_ENDED) == built(*STARTED, RUN_ENDED, TASK_ENDED)


def test_tools_and_approvals_are_children_of_the_run() -> None:
    call = frame("assistant", 4.0, {"type": "tool_use", "id": "u", "name": "Bash", "input": {}})
    answer = frame("user", 5.0, {"type": "tool_result", "tool_use_id": "u", "is_error": True})
    approval = Approval(
        id="a",
        task_id="t-1",
        run_id="r-1",
        agent_id="qa-1",
        role="qa",
        tool="Write",
        input={},
        state=ApprovalState.ALLOWED,
        created_at=5.0,
        expires_at=99.0,
        decided_at=7.0,
    )
    (trace,) = built(
        *STARTED, call, answer, FeedItem(position=1, kind="approval", item=approval), RUN_ENDED, TASK_ENDED
    )
    tool, asked = trace.children[1].children
    assert (tool.name, tool.start, tool.end) == ("tool Bash", 4.0, 5.0) and tool.error
    assert (asked.name, asked.end - asked.start) == ("approval", 2.0)


def test_a_retried_task_has_both_runs_in_one_trace() -> None:
    (trace,) = built(
        *STARTED,
        run(RunState.LOST, reason=Reason.AGENT_LOST, finished_at=4.0),
        task(TaskState.QUEUED, queued_at=4.0, run_id="r-1"),
        task(TaskState.RUNNING, queued_at=4.0, started_at=5.0, run_id="r-2"),
        run(RunState.RUNNING, id="r-2", number=2, started_at=5.0),
        run(RunState.SUCCEEDED, id="r-2", number=2, started_at=5.0, finished_at=8.0),
        task(TaskState.SUCCEEDED, queued_at=4.0, started_at=5.0, run_id="r-2", finished_at=8.0),
    )
    assert [span.name for span in trace.children] == ["wait", "run 1", "wait", "run 2"]
    assert trace.children[1].error == "agent_lost" and trace.error is None


def test_a_failed_task_says_why() -> None:
    (trace,) = built(
        *STARTED,
        run(RunState.FAILED, reason=Reason.TURN_LIMIT, finished_at=4.0),
        task(TaskState.FAILED, reason=Reason.TURN_LIMIT, detail="15 turns", run_id="r-1", finished_at=4.0),
    )
    assert trace.error == "turn_limit: 15 turns"


def test_a_task_cancelled_in_the_queue_has_a_trace_too() -> None:
    (trace,) = built(task(TaskState.QUEUED), task(TaskState.CANCELLED, finished_at=2.0))
    assert trace.children == () and trace.end == 2.0


def test_its_memory_is_bounded() -> None:
    builder = TraceBuilder(open_tasks=10)
    for n in range(100):
        built(task(TaskState.RUNNING, id=f"t-{n}"), run(RunState.RUNNING, id=f"r-{n}"), builder=builder)
    assert len(builder._tasks) == len(builder._runs) == 10


def test_the_standard_variables_decide() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert wanted(endpoint) and not wanted({})
    assert not wanted(endpoint | {"OTEL_SDK_DISABLED": "true"})
    assert not wanted(endpoint | {"OTEL_TRACES_EXPORTER": "none"})
