"""The rules of the reasons, and what the router makes of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.lifecycle import TaskState
from fleet.models import Task
from fleet.reasons import MAX_LOSSES, RULES, Reason, Retry
from fleet.router.retry import FIRST_DELAY_S, LEASE_MARGIN_S, LONGEST_DELAY_S, LOSS_DELAY_S, decide

NOW = 1_000_000.0
LEASE_S = 15.0


def task(**fields) -> Task:
    values = {"id": "t-1", "role": "r", "prompt": "p", "state": TaskState.RUNNING, "created_at": 1.0, "updated_at": 1.0}
    return Task(**{**values, **fields})


def after(reason: Reason, *, retries: int = 2, chance: float = 0.5, retry_at: float | None = None, **fields):
    return decide(task(**fields), reason, retries, NOW, chance, retry_at, LEASE_S)


def test_each_reason_has_a_rule_a_sentence_and_a_remedy() -> None:
    assert set(RULES) == set(Reason)
    for rule in RULES.values():
        assert rule.sentence.endswith(".") and rule.remedy.endswith(".")


def test_the_names_of_the_reasons_are_fixed() -> None:
    # They stand in databases and in people's queries.
    assert sorted(reason.value for reason in Reason) == [
        "agent_lost",
        "agent_stopped",
        "api_error",
        "authentication",
        "bad_workspace",
        "cancelled",
        "claude_error",
        "claude_not_found",
        "cost_limit",
        "dependency_failed",
        "invalid_request",
        "node_lost",
        "output_invalid",
        "overloaded",
        "permission_refused",
        "rate_limited",
        "silent",
        "time_limit",
        "turn_limit",
        "usage_limit",
    ]


@pytest.mark.parametrize("reason", [reason for reason, rule in RULES.items() if rule.retry is Retry.NEVER])
def test_what_no_retry_would_change_fails_at_once(reason: Reason) -> None:
    decision = after(reason, retries=100)
    expected = TaskState.CANCELLED if reason is Reason.CANCELLED else TaskState.FAILED
    assert decision.state is expected
    assert decision.retries_used == 0 and decision.losses == 0


@pytest.mark.parametrize("reason", [reason for reason, rule in RULES.items() if rule.retry is Retry.LATER])
def test_what_may_pass_is_tried_later_until_its_retries_are_used(reason: Reason) -> None:
    assert after(reason).state is TaskState.SCHEDULED
    assert after(reason, retries_used=1).retries_used == 2
    assert after(reason, retries_used=2).state is TaskState.DEAD
    assert after(reason, retries=0).state is TaskState.DEAD


@pytest.mark.parametrize("reason", [reason for reason, rule in RULES.items() if rule.loss])
def test_a_loss_uses_up_no_retry_but_losses_are_bounded(reason: Reason) -> None:
    decision = after(reason, retries=0)
    assert decision.state in (TaskState.QUEUED, TaskState.SCHEDULED)
    assert (decision.retries_used, decision.losses) == (0, 1)
    assert after(reason, losses=MAX_LOSSES - 1).state is not TaskState.DEAD
    assert after(reason, losses=MAX_LOSSES).state is TaskState.DEAD


def test_delays_double_up_to_ten_minutes_with_jitter_around_them() -> None:
    for used in range(12):
        nominal = min(FIRST_DELAY_S * 2**used, LONGEST_DELAY_S)
        early = after(Reason.API_ERROR, retries=100, retries_used=used, chance=0.0).at
        late = after(Reason.API_ERROR, retries=100, retries_used=used, chance=1.0).at
        assert early == pytest.approx(NOW + nominal / 2)
        assert late == pytest.approx(NOW + nominal * 1.5)


def test_a_rate_limit_is_tried_again_when_the_service_said() -> None:
    assert NOW + 300 <= after(Reason.RATE_LIMITED, retry_at=NOW + 300).at <= NOW + 301
    # Without a time, or with one that has passed, it waits as any other.
    assert after(Reason.RATE_LIMITED).at == pytest.approx(NOW + FIRST_DELAY_S)
    assert after(Reason.RATE_LIMITED, retry_at=NOW - 5).at == pytest.approx(NOW + FIRST_DELAY_S)


def test_a_lost_agents_task_waits_for_the_guard_and_a_lost_nodes_for_the_lease() -> None:
    assert after(Reason.AGENT_LOST).at == pytest.approx(NOW + LOSS_DELAY_S)
    assert after(Reason.NODE_LOST).at == pytest.approx(NOW + LEASE_S + LEASE_MARGIN_S)
    assert after(Reason.AGENT_STOPPED).state is TaskState.QUEUED


@given(
    st.sampled_from(list(Reason)),
    st.integers(0, 100),
    st.integers(0, 120),
    st.integers(0, 12),
    st.floats(0, 1),
    st.none() | st.floats(NOW - 1e6, NOW + 1e6),
)
def test_every_decision_explains_itself_and_never_lies_in_the_past(
    reason, retries, used, losses, chance, retry_at
) -> None:
    decision = after(
        reason, retries=retries, chance=chance, retry_at=retry_at, retries_used=min(used, retries), losses=losses
    )
    assert decision.why
    assert decision.retries_used <= retries
    assert decision.losses <= MAX_LOSSES + 2
    assert (decision.at is not None) == (decision.state is TaskState.SCHEDULED)
    assert decision.at is None or decision.at >= NOW
