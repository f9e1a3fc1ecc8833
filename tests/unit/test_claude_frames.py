from __future__ import annotations

from typing import Any

import pytest

from fleet.claude.frames import RunFacts, classify, describe_tool, session_missing
from fleet.lifecycle import RunState
from fleet.reasons import Reason


def result(**fields: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "result": "done", **fields}


def api_error(status: int | None = None, text: str = "API Error", **fields: Any) -> dict[str, Any]:
    return result(is_error=True, terminal_reason="api_error", api_error_status=status, result=text, **fields)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (api_error(401), Reason.AUTHENTICATION),
        (api_error(403), Reason.AUTHENTICATION),
        (api_error(400), Reason.INVALID_REQUEST),
        (api_error(404), Reason.INVALID_REQUEST),
        (api_error(429), Reason.RATE_LIMITED),
        (api_error(529), Reason.OVERLOADED),
        (api_error(500), Reason.API_ERROR),
        (api_error(None, "API Error: Repeated 529 Overloaded errors"), Reason.OVERLOADED),
        (api_error(None, "API Error: Connection refused"), Reason.API_ERROR),
        (api_error(429, api_error="usage_limit_reached"), Reason.USAGE_LIMIT),
        (api_error(None, "Not logged in · Please run /login"), Reason.AUTHENTICATION),
        (result(subtype="error_max_turns", is_error=True, terminal_reason="max_turns"), Reason.TURN_LIMIT),
        (result(subtype="error_max_budget_usd", is_error=True), Reason.COST_LIMIT),
        (result(subtype="error_max_structured_output_retries", is_error=True), Reason.OUTPUT_INVALID),
        (result(is_error=True, terminal_reason="prompt_too_long"), Reason.INVALID_REQUEST),
        (result(subtype="error_during_execution", is_error=True, errors=["boom"]), Reason.CLAUDE_ERROR),
    ],
)
def test_every_kind_of_failure_has_its_reason(frame: dict[str, Any], reason: Reason) -> None:
    ending = classify(frame)
    assert (ending.status, ending.reason) == (RunState.FAILED, reason)
    assert ending.detail


def test_a_result_without_error_is_a_success() -> None:
    assert classify(result()).status is RunState.SUCCEEDED


def test_a_rejected_usage_limit_says_when_it_ends() -> None:
    facts = RunFacts()
    facts.take({"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1_800_000_000}})
    ending = classify(api_error(429), facts)
    assert (ending.reason, ending.retry_at) == (Reason.USAGE_LIMIT, 1_800_000_000)


def test_the_last_retry_names_the_status_where_the_result_has_none() -> None:
    facts = RunFacts()
    facts.take({"type": "system", "subtype": "api_retry", "error_status": 429})
    assert classify(api_error(None, "API Error"), facts).reason is Reason.RATE_LIMITED


def stream(event: dict[str, Any]) -> dict[str, Any]:
    return {"type": "stream_event", "event": event}


def assistant(identity: str, *blocks: dict[str, Any], tokens: int = 1) -> dict[str, Any]:
    usage = {"input_tokens": 100, "output_tokens": tokens, "cache_read_input_tokens": 10}
    return {
        "type": "assistant",
        "message": {"id": identity, "model": "claude-sonnet-5", "usage": usage, "content": list(blocks)},
    }


def test_a_message_in_several_frames_is_counted_once_with_its_final_numbers() -> None:
    facts = RunFacts()
    start = {"id": "m1", "model": "claude-sonnet-5", "usage": {"input_tokens": 100, "output_tokens": 1}}
    facts.take(stream({"type": "message_start", "message": start}))
    facts.take(assistant("m1", {"type": "text", "text": "Hello"}))
    facts.take(assistant("m1", {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls -l\npwd"}}))
    facts.take(stream({"type": "message_delta", "usage": {"output_tokens": 40}}))
    assert (facts.usage.input_tokens, facts.usage.output_tokens, facts.usage.cache_read_tokens) == (100, 40, 10)
    assert facts.cost_usd == pytest.approx((100 * 3 + 1 * 3 + 40 * 15) / 1e6)
    assert (facts.tool, facts.text, facts.turns, facts.context_tokens) == ("Bash: ls -l", "Hello", 1, 150)


def test_a_result_replaces_the_estimate_and_later_turns_add_to_it() -> None:
    facts = RunFacts()
    facts.take(assistant("m1", tokens=5))
    counted = {"claude-sonnet-5": {"inputTokens": 100, "outputTokens": 7, "costUSD": 0.5}}
    facts.take(result(model_usage_since_last_result=counted, num_turns=2, user_message_uuids=["u1"]))
    facts.take(assistant("m1", tokens=5))
    assert (facts.usage.output_tokens, facts.cost_usd, facts.turns, facts.answered) == (7, 0.5, 2, {"u1"})
    facts.take(result(model_usage_since_last_result=counted, user_message_uuids=["u2"]))
    assert (facts.usage.output_tokens, facts.cost_usd, facts.turns) == (14, 1.0, 3)


def test_without_the_split_the_running_total_is_taken_by_its_difference() -> None:
    facts = RunFacts()
    facts.take(result(total_cost_usd=0.2))
    facts.take(result(total_cost_usd=0.5))
    assert facts.cost_usd == pytest.approx(0.5)


def test_a_tool_ends_with_its_result() -> None:
    facts = RunFacts()
    facts.take(assistant("m", {"type": "tool_use", "id": "t1", "name": "Read", "input": {"file_path": "/a"}}))
    assert facts.tool == "Read: /a"
    facts.take({"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t1"}]}})
    assert facts.tool is None


def test_unknown_and_broken_frames_are_passed_over() -> None:
    facts = RunFacts()
    for frame in ({}, {"type": "news"}, {"type": "assistant", "message": 3}, {"type": "stream_event", "event": None}):
        facts.take(frame)
    assert facts.turns == 0


def test_the_session_tells_when_it_is_idle() -> None:
    facts = RunFacts()
    assert facts.idle is None
    facts.take({"type": "system", "subtype": "session_state_changed", "state": "running"})
    assert facts.idle is False
    facts.take({"type": "system", "subtype": "session_state_changed", "state": "idle"})
    assert facts.idle is True


def test_a_tool_without_known_input_is_its_name() -> None:
    assert describe_tool("Odd", {"n": 3}) == "Odd"


def test_a_missing_session_is_recognised() -> None:
    assert session_missing(result(is_error=True, errors=["No conversation found with session ID: x"]))
