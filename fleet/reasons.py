"""Why a run ended other than well: fixed names, a rule for each, and what the user can do.

The rule goes by the reason, never by the exception that brought it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a run or a task did not succeed."""

    AGENT_LOST = "agent_lost"
    NODE_LOST = "node_lost"
    AGENT_STOPPED = "agent_stopped"
    OVERLOADED = "overloaded"
    RATE_LIMITED = "rate_limited"
    USAGE_LIMIT = "usage_limit"
    API_ERROR = "api_error"
    TIME_LIMIT = "time_limit"
    SILENT = "silent"
    TURN_LIMIT = "turn_limit"
    COST_LIMIT = "cost_limit"
    AUTHENTICATION = "authentication"
    INVALID_REQUEST = "invalid_request"
    PERMISSION_REFUSED = "permission_refused"
    CLAUDE_ERROR = "claude_error"
    CLAUDE_NOT_FOUND = "claude_not_found"
    BAD_WORKSPACE = "bad_workspace"
    DEPENDENCY_FAILED = "dependency_failed"
    OUTPUT_INVALID = "output_invalid"
    CANCELLED = "cancelled"


class Retry(StrEnum):
    """When a reason is tried again."""

    NEVER = "never"
    AT_ONCE = "at_once"
    LATER = "later"
    """After an exponential delay with jitter."""
    AT_TIME = "at_time"
    """At the time the model service named; as LATER when it named none."""


@dataclass(frozen=True, slots=True)
class ReasonRule:
    """What follows from a reason.

    Attributes:
        retry: when the task is tried again.
        loss: whether it counts as a loss (bounded by `MAX_LOSSES`) and not as one of the task's own retries.
        sentence: what happened.
        remedy: what the user can do.
    """

    retry: Retry
    loss: bool
    sentence: str
    remedy: str


MAX_LOSSES = 10
"""How often a task may lose its agent or node before it is dead: a task that kills its agents must end."""

RULES: dict[Reason, ReasonRule] = {
    Reason.AGENT_LOST: ReasonRule(
        Retry.AT_ONCE, True, "The agent's process ended during the run.", "Nothing: the run goes on with another agent."
    ),
    Reason.NODE_LOST: ReasonRule(
        Retry.AT_ONCE, True, "The agent's node went away during the run.", "Nothing: the run goes on on another node."
    ),
    Reason.AGENT_STOPPED: ReasonRule(
        Retry.AT_ONCE, True, "The agent was stopped during the run.", "Nothing: the run goes on with another agent."
    ),
    Reason.OVERLOADED: ReasonRule(
        Retry.LATER, False, "The model service was overloaded.", "Wait, or set a fallback_model for the role."
    ),
    Reason.RATE_LIMITED: ReasonRule(
        Retry.AT_TIME, False, "The model service limited the rate of requests.", "Run fewer agents, or raise the limit."
    ),
    Reason.USAGE_LIMIT: ReasonRule(
        Retry.AT_TIME, False, "The account's usage limit is reached.", "Wait for its reset, or use another account."
    ),
    Reason.API_ERROR: ReasonRule(
        Retry.LATER, False, "The model service answered with an error.", "Look at the run's last events."
    ),
    Reason.TIME_LIMIT: ReasonRule(
        Retry.LATER, False, "The run took longer than its time limit.", "Raise time_limit_s, or split the task."
    ),
    Reason.SILENT: ReasonRule(
        Retry.LATER, False, "Claude Code was silent for longer than the role allows.", "Raise silence_limit_s."
    ),
    Reason.TURN_LIMIT: ReasonRule(
        Retry.NEVER, False, "The run used all its turns.", "Raise max_turns, or continue the task."
    ),
    Reason.COST_LIMIT: ReasonRule(
        Retry.NEVER, False, "The run used all its money.", "Raise max_cost_usd, or continue the task."
    ),
    Reason.AUTHENTICATION: ReasonRule(
        Retry.NEVER, False, "The model service refused the credentials.", "Set valid credentials, then retry the task."
    ),
    Reason.INVALID_REQUEST: ReasonRule(
        Retry.NEVER, False, "The model service refused the request.", "Check the role's model and the prompt."
    ),
    Reason.PERMISSION_REFUSED: ReasonRule(
        Retry.NEVER, False, "A tool call that the task needs was refused.", "Allow the tool for the role, then retry."
    ),
    Reason.CLAUDE_ERROR: ReasonRule(
        Retry.LATER, False, "Claude Code ended with an error.", "Look at the run's stderr events."
    ),
    Reason.CLAUDE_NOT_FOUND: ReasonRule(
        Retry.NEVER, False, "Claude Code was not found on the node.", "Install claude-agent-sdk on every node."
    ),
    Reason.BAD_WORKSPACE: ReasonRule(
        Retry.NEVER, False, "The working directory could not be used.", "Check the path, the roots and the repository."
    ),
    Reason.DEPENDENCY_FAILED: ReasonRule(
        Retry.NEVER, False, "A task that this one waits for did not succeed.", "Retry that task, then this one."
    ),
    Reason.OUTPUT_INVALID: ReasonRule(
        Retry.LATER,
        False,
        "The answer did not fit the output schema.",
        "Simplify the schema, or say more in the prompt.",
    ),
    Reason.CANCELLED: ReasonRule(Retry.NEVER, False, "Somebody cancelled it.", "Retry the task to run it again."),
}
