"""The tables of transitions: what may follow what, and what never."""

from __future__ import annotations

from enum import StrEnum

import pytest

from fleet.errors import IllegalTransition
from fleet.lifecycle import (
    AGENT_TRANSITIONS,
    FINAL_TASK_STATES,
    RUN_TRANSITIONS,
    TASK_TRANSITIONS,
    AgentState,
    RunState,
    TaskState,
    step_agent,
    step_run,
    step_task,
)

TABLES = [
    (TaskState, TASK_TRANSITIONS, step_task),
    (RunState, RUN_TRANSITIONS, step_run),
    (AgentState, AGENT_TRANSITIONS, step_agent),
]


def reachable(table: dict[StrEnum, frozenset[StrEnum]], start: set[StrEnum]) -> set[StrEnum]:
    seen, left = set(start), list(start)
    while left:
        for new in table[left.pop()] - seen:
            seen.add(new)
            left.append(new)
    return seen


@pytest.mark.parametrize(("states", "table", "step"), TABLES, ids=["task", "run", "agent"])
def test_each_pair_of_states_is_allowed_or_refused_as_its_table_says(states, table, step) -> None:
    assert set(table) == set(states)
    for old in states:
        for new in states:
            if new in table[old]:
                assert step("x-1", old, new) is new
            else:
                with pytest.raises(IllegalTransition) as raised:
                    step("x-1", old, new)
                assert raised.value.fields["state"] == old.value
                assert raised.value.fields["wanted"] == new.value
                assert "x-1" in str(raised.value)


@pytest.mark.parametrize(("states", "table", "step"), TABLES, ids=["task", "run", "agent"])
def test_each_state_says_what_it_means(states, table, step) -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(states)).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = sum(isinstance(node, ast.Expr) for node in body.body) - 1
    assert documented == len(states)


def test_a_task_can_reach_each_state_from_those_it_begins_in() -> None:
    start: set[StrEnum] = {TaskState.QUEUED, TaskState.BLOCKED, TaskState.SCHEDULED}
    assert reachable(TASK_TRANSITIONS, start) == set(TaskState)


def test_a_task_that_succeeded_never_changes() -> None:
    assert TASK_TRANSITIONS[TaskState.SUCCEEDED] == frozenset()


def test_from_each_state_that_is_not_final_a_task_can_end() -> None:
    for state in set(TaskState) - FINAL_TASK_STATES:
        assert reachable(TASK_TRANSITIONS, {state}) & FINAL_TASK_STATES


def test_only_a_persons_retry_leaves_a_final_state() -> None:
    for state in FINAL_TASK_STATES - {TaskState.SUCCEEDED}:
        assert TASK_TRANSITIONS[state] <= {TaskState.QUEUED, TaskState.BLOCKED}
        assert state.final


def test_a_run_ends_once() -> None:
    for state in RunState:
        assert state.final == (state is not RunState.RUNNING)
        assert (RUN_TRANSITIONS[state] == frozenset()) == state.final


def test_an_agent_that_stopped_stays_stopped_and_any_other_can_be_stopped() -> None:
    assert AGENT_TRANSITIONS[AgentState.STOPPED] == frozenset()
    for state in set(AgentState) - {AgentState.STOPPED}:
        assert AgentState.STOPPED in AGENT_TRANSITIONS[state]


def test_no_state_follows_itself() -> None:
    for _, table, _ in TABLES:
        assert not [state for state, after in table.items() if state in after]
