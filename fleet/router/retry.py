"""What follows when a run ended other than well: decided by its reason, never by an exception. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.lifecycle import TaskState
from fleet.models import Task
from fleet.reasons import MAX_LOSSES, RULES, Reason, Retry

FIRST_DELAY_S = 5.0
LONGEST_DELAY_S = 600.0
LOSS_DELAY_S = 3.0
"""After a lost agent: by then its guard has ended what it ran, so no run overlaps another of its task."""
LEASE_MARGIN_S = 5.0
"""After a lost node, beside the lease: clocks and beats are not exact."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What becomes of the task.

    Attributes:
        state: queued or scheduled when it is tried again, else failed, dead or cancelled.
        at: when a scheduled one is due.
        retries_used, losses: the task's new counts.
        why: one sentence.
    """

    state: TaskState
    at: float | None
    retries_used: int
    losses: int
    why: str


def decide(
    task: Task,
    reason: Reason,
    retries: int,
    now: float,
    chance: float,
    retry_at: float | None,
    lease_s: float,
    *,
    said: bool = True,
) -> RetryDecision:
    """Return what follows.

    Args:
        task: the task as it is.
        reason: why its run ended.
        retries: how many retries the task has.
        now: seconds since the epoch.
        chance: a random number from 0 to 1, for the jitter.
        retry_at: when the model service said to come back.
        lease_s: how long a lost node's agents may go on without the store.
        said: the agent said itself that the run has ended, with everything of it.
    """
    rule = RULES[reason]
    if reason is Reason.CANCELLED:
        return RetryDecision(TaskState.CANCELLED, None, task.retries_used, task.losses, rule.sentence)
    if rule.loss:
        losses = task.losses + 1
        if losses > MAX_LOSSES:
            why = f"{rule.sentence} That was loss {losses} of at most {MAX_LOSSES}."
            return RetryDecision(TaskState.DEAD, None, task.retries_used, losses, why)
        delay = lease_s + LEASE_MARGIN_S if reason is Reason.NODE_LOST else LOSS_DELAY_S
        if reason is Reason.AGENT_STOPPED and said:
            return RetryDecision(TaskState.QUEUED, None, task.retries_used, losses, f"{rule.sentence} It goes on.")
        why = f"{rule.sentence} It goes on in {delay:.0f} s."
        return RetryDecision(TaskState.SCHEDULED, now + delay, task.retries_used, losses, why)
    if rule.retry is Retry.NEVER:
        return RetryDecision(TaskState.FAILED, None, task.retries_used, task.losses, f"{rule.sentence} {rule.remedy}")
    used = task.retries_used + 1
    if used > retries:
        why = f"{rule.sentence} All {retries} retries are used. {rule.remedy}"
        return RetryDecision(TaskState.DEAD, None, task.retries_used, task.losses, why)
    if rule.retry is Retry.AT_TIME and retry_at is not None and retry_at > now:
        at = retry_at + chance
    else:
        at = now + min(FIRST_DELAY_S * 2 ** (used - 1), LONGEST_DELAY_S) * (0.5 + chance)
    why = f"{rule.sentence} Retry {used} of {retries} in {at - now:.0f} s."
    return RetryDecision(TaskState.SCHEDULED, at, used, task.losses, why)
