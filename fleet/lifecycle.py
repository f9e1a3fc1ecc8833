"""The states of tasks, runs and agents, and the one table of transitions each.

Pure: no clock, no I/O. Everything that changes a state goes through `step_task`, `step_run` or `step_agent`, so an
illegal change is found where it is made and not where it is read.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from fleet.errors import IllegalTransition

S = TypeVar("S", bound=StrEnum)


class TaskState(StrEnum):
    """Where a task is."""

    BLOCKED = "blocked"
    """It waits for other tasks."""
    SCHEDULED = "scheduled"
    """It waits for a time: a retry's delay, a rate limit's reset, its own start time."""
    QUEUED = "queued"
    """It waits for an agent."""
    RUNNING = "running"
    """An agent runs it."""
    SUCCEEDED = "succeeded"
    """Its last run gave a result."""
    FAILED = "failed"
    """It ended for a reason that no retry would change."""
    CANCELLED = "cancelled"
    """Somebody cancelled it."""
    DEAD = "dead"
    """It gave up after its retries; it can be requeued."""

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the task by itself."""
        return self in FINAL_TASK_STATES


class RunState(StrEnum):
    """Where a run, one attempt at a task, is."""

    RUNNING = "running"
    """Claude Code works on it."""
    SUCCEEDED = "succeeded"
    """It gave a result."""
    FAILED = "failed"
    """It ended with an error."""
    CANCELLED = "cancelled"
    """It was interrupted by request."""
    LOST = "lost"
    """Its agent or node went away."""
    PARKED = "parked"
    """It waits for a person; its process was ended and it resumes after the decision."""

    @property
    def final(self) -> bool:
        """Whether the run is over."""
        return self is not RunState.RUNNING


class AgentState(StrEnum):
    """Where an agent is."""

    STARTING = "starting"
    """Its actor is wanted or being placed."""
    IDLE = "idle"
    """It waits for a run."""
    BUSY = "busy"
    """It has a run."""
    DRAINING = "draining"
    """It ends its run and then stops."""
    STOPPED = "stopped"
    """It was stopped by request."""
    FAILED = "failed"
    """It could not be started again."""


FINAL_TASK_STATES = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.DEAD})

T, R, A = TaskState, RunState, AgentState

TASK_TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    T.BLOCKED: frozenset({T.QUEUED, T.SCHEDULED, T.FAILED, T.CANCELLED}),
    T.SCHEDULED: frozenset({T.QUEUED, T.CANCELLED}),
    T.QUEUED: frozenset({T.RUNNING, T.CANCELLED, T.FAILED}),
    T.RUNNING: frozenset({T.SUCCEEDED, T.FAILED, T.CANCELLED, T.DEAD, T.QUEUED, T.SCHEDULED, T.BLOCKED}),
    T.SUCCEEDED: frozenset(),
    T.FAILED: frozenset({T.QUEUED}),
    T.CANCELLED: frozenset({T.QUEUED}),
    T.DEAD: frozenset({T.QUEUED}),
}
"""From → to. Only a person's retry or requeue leaves a final state; `running` → `blocked` parks a task at an
approval."""

RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    R.RUNNING: frozenset({R.SUCCEEDED, R.FAILED, R.CANCELLED, R.LOST, R.PARKED}),
    R.SUCCEEDED: frozenset(),
    R.FAILED: frozenset(),
    R.CANCELLED: frozenset(),
    R.LOST: frozenset(),
    R.PARKED: frozenset(),
}

AGENT_TRANSITIONS: dict[AgentState, frozenset[AgentState]] = {
    A.STARTING: frozenset({A.IDLE, A.BUSY, A.DRAINING, A.STOPPED, A.FAILED}),
    A.IDLE: frozenset({A.BUSY, A.DRAINING, A.STOPPED, A.STARTING, A.FAILED}),
    A.BUSY: frozenset({A.IDLE, A.DRAINING, A.STOPPED, A.STARTING, A.FAILED}),
    A.DRAINING: frozenset({A.STOPPED, A.FAILED, A.STARTING}),
    A.STOPPED: frozenset(),
    A.FAILED: frozenset({A.STARTING, A.STOPPED}),
}


def step_task(task_id: str, old: TaskState, new: TaskState) -> TaskState:
    """Return `new` when a task may go from `old` to it, else raise `IllegalTransition`."""
    return _step("task", task_id, old, new, TASK_TRANSITIONS)


def step_run(run_id: str, old: RunState, new: RunState) -> RunState:
    """Return `new` when a run may go from `old` to it, else raise `IllegalTransition`."""
    return _step("run", run_id, old, new, RUN_TRANSITIONS)


def step_agent(agent_id: str, old: AgentState, new: AgentState) -> AgentState:
    """Return `new` when an agent may go from `old` to it, else raise `IllegalTransition`."""
    return _step("agent", agent_id, old, new, AGENT_TRANSITIONS)


def _step(what: str, name: str, old: S, new: S, table: dict[S, frozenset[S]]) -> S:
    if new not in table[old]:
        raise IllegalTransition(what, name, old.value, new.value, sorted(s.value for s in table[old]))
    return new
