"""Makes one trace of each task from the store's feed: submit → waits → runs → calls of tools. Pure.

A trace is made when its task has ended and its last run with it. Nothing is kept on disk: a task that ends while
nobody follows has no trace, its history is in the store all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from fleet.lifecycle import RunState, TaskState
from fleet.models import Approval, ApprovalState, Event, EventKind, FeedItem, Run, Task

OPEN_TASKS = 10_000
"""Tasks that are put together at once; the oldest are let go."""
TOOLS_PER_RUN = 1_000


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of a trace.

    Attributes:
        start: seconds since the epoch; `end` too.
        error: why it did not succeed, None when it did.
    """

    name: str
    start: float
    end: float
    attributes: dict[str, str | int | float]
    error: str | None = None
    children: tuple[Span, ...] = ()


@dataclass(slots=True)
class _Open:
    """A task whose trace is not whole yet."""

    spans: list[Span] = field(default_factory=list)
    ended: Task | None = None
    state: TaskState | None = None
    queued_at: float | None = None


@dataclass(slots=True)
class _Run:
    task_id: str
    role: str
    spans: list[Span] = field(default_factory=list)
    calls: dict[str, tuple[str, float]] = field(default_factory=dict)


class TraceBuilder:
    """Puts traces together.

    Args:
        open_tasks: how many tasks are put together at once.
    """

    def __init__(self, open_tasks: int = OPEN_TASKS) -> None:
        self._tasks: OrderedDict[str, _Open] = OrderedDict()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._limit = open_tasks

    def take(self, item: FeedItem) -> list[Span]:
        """Take one change; return the traces that it completes."""
        match item.kind:
            case "task":
                return self._task(item.item)
            case "run":
                return self._run(item.item)
            case "event":
                self._event(item.item)
            case "approval":
                self._approval(item.item)
            case _:
                pass
        return []

    def _task(self, task: Task) -> list[Span]:
        known = self._tasks.setdefault(task.id, _Open())
        self._trim()
        if task.state is TaskState.RUNNING and known.state is not TaskState.RUNNING:
            since = known.queued_at or task.queued_at
            if since is not None and task.started_at is not None and task.started_at >= since:
                known.spans.append(Span("wait", since, task.started_at, {"fleet.why": task.why[:200]}))
        known.state, known.queued_at = task.state, task.queued_at
        if not task.state.final:
            known.ended = None
            return []
        known.ended = task
        return self._finish(task.id) if task.run_id not in self._runs else []

    def _run(self, run: Run) -> list[Span]:
        known = self._runs.setdefault(run.id, _Run(run.task_id, run.role))
        while len(self._runs) > self._limit:
            self._runs.popitem(last=False)
        if run.state is RunState.RUNNING:
            return []
        self._runs.pop(run.id, None)
        end = run.finished_at if run.finished_at is not None else run.started_at
        span = Span(
            f"run {run.number}",
            run.started_at,
            max(end, run.started_at),
            {
                "fleet.run": run.id,
                "fleet.agent": run.agent_id,
                "fleet.node": run.node or "",
                "fleet.state": run.state.value,
                "fleet.turns": run.turns,
                "fleet.cost_usd": run.cost_usd,
                "gen_ai.usage.input_tokens": run.usage.input_tokens,
                "gen_ai.usage.output_tokens": run.usage.output_tokens,
            },
            _why(run.reason, run.detail) if run.state in (RunState.FAILED, RunState.LOST) else None,
            tuple(known.spans),
        )
        task = self._tasks.get(run.task_id)
        if task is None:
            return []
        task.spans.append(span)
        return self._finish(run.task_id) if task.ended is not None and task.ended.run_id == run.id else []

    def _event(self, event: Event) -> None:
        run = self._runs.get(event.run_id)
        if run is None or event.kind is not EventKind.FRAME or event.type not in ("assistant", "user"):
            return
        for block in _blocks(event):
            if block.get("type") == "tool_use" and len(run.spans) + len(run.calls) < TOOLS_PER_RUN:
                run.calls[str(block.get("id"))] = (str(block.get("name")), event.at)
            elif block.get("type") == "tool_result":
                call = run.calls.pop(str(block.get("tool_use_id")), None)
                if call is not None:
                    error = "the tool answered with an error" if block.get("is_error") else None
                    run.spans.append(
                        Span(f"tool {call[0]}", call[1], max(call[1], event.at), {"fleet.tool": call[0]}, error)
                    )

    def _approval(self, approval: Approval) -> None:
        run = self._runs.get(approval.run_id)
        if run is not None and approval.state is not ApprovalState.WAITING and approval.decided_at is not None:
            attributes: dict[str, str | int | float] = {
                "fleet.tool": approval.tool,
                "fleet.state": approval.state.value,
                "fleet.decided_by": approval.decided_by,
            }
            run.spans.append(Span("approval", approval.created_at, approval.decided_at, attributes))

    def _finish(self, task_id: str) -> list[Span]:
        known = self._tasks.pop(task_id)
        task = known.ended
        assert task is not None
        return [
            Span(
                f"task {task.role}",
                task.created_at,
                max(task.created_at, task.finished_at or task.updated_at),
                {
                    "fleet.task": task.id,
                    "fleet.role": task.role,
                    "fleet.state": task.state.value,
                    "fleet.priority": task.priority,
                    "fleet.runs": task.number_of_runs,
                    "fleet.cost_usd": task.cost_usd,
                },
                None if task.state is TaskState.SUCCEEDED else _why(task.reason, task.detail) or task.state.value,
                tuple(sorted(known.spans, key=lambda span: span.start)),
            )
        ]

    def _trim(self) -> None:
        while len(self._tasks) > self._limit:
            self._tasks.popitem(last=False)


def _why(reason: object, detail: str) -> str:
    return ": ".join(str(part) for part in (reason, detail[:200]) if part)


def _blocks(event: Event) -> Iterable[dict[str, object]]:
    message = event.payload.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
