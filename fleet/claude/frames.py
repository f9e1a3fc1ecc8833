"""Reads Claude Code's frames: what a run costs and does, and how it ended. Pure.

Sources: the frames of Claude Code 2.1.330 as measured; unknown frames and fields are passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fleet.lifecycle import RunState
from fleet.models import Usage
from fleet.reasons import Reason

PRICES: tuple[tuple[str, float, float], ...] = (("opus", 4.0, 20.0), ("haiku", 1.0, 5.0), ("", 3.0, 15.0))
"""Part of a model's name, dollars per million input and output tokens: list prices, only for what a killed process has
not counted itself. Cache reads cost a tenth of input, cache writes a quarter more."""

TEXT_SHOWN = 400
TOOL_INPUT_SHOWN = 120
TOOL_INPUT_KEYS = ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt")


@dataclass
class Ending:
    """How a run ended, as its result frame tells it."""

    status: RunState
    reason: Reason | None = None
    detail: str = ""
    retry_at: float | None = None


@dataclass
class RunFacts:
    """What the frames of one process have told so far.

    Attributes:
        usage: tokens, each API message counted once.
        turns: turns of all results; while a turn runs, the assistant messages so far.
        context_tokens: size of the last request.
        tool: the tool that runs now, with the start of its input.
        text: the last words of the assistant.
        idle: whether the session said that it waits for input; None as long as it has not said anything.
        answered: uuids of user messages that results named.
        results: the result frames.
    """

    session_id: str | None = None
    model: str = ""
    context_tokens: int = 0
    tool: str | None = None
    text: str = ""
    idle: bool | None = None
    answered: set[str] = field(default_factory=set)
    results: list[dict[str, Any]] = field(default_factory=list)
    last_api_status: int | None = None
    resets_at: float | None = None
    limit_rejected: bool = False
    _settled_usage: Usage = field(default_factory=Usage)
    _settled_cost: float = 0.0
    _settled_turns: int = 0
    _last_total_cost: float | None = None
    _open: dict[str, tuple[str, Usage]] = field(default_factory=dict)
    _settled_ids: set[str] = field(default_factory=set)
    _streaming: str | None = None
    _tools: dict[str, str] = field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        """Tokens of the run so far."""
        total = self._settled_usage
        for _, usage in self._open.values():
            total = total + usage
        return total

    @property
    def cost_usd(self) -> float:
        """Dollars of the run so far; estimated by list prices for what no result has counted yet."""
        return self._settled_cost + sum(price(model, usage) for model, usage in self._open.values())

    @property
    def turns(self) -> int:
        """Turns of the run so far."""
        return self._settled_turns + len(self._open)

    @property
    def result(self) -> dict[str, Any] | None:
        """The last result frame."""
        return self.results[-1] if self.results else None

    def take(self, frame: dict[str, Any]) -> None:
        """Take in one frame."""
        if session := frame.get("session_id"):
            self.session_id = str(session)
        handler = getattr(self, f"_take_{frame.get('type')}", None)
        if handler is not None:
            handler(frame)

    def _take_system(self, frame: dict[str, Any]) -> None:
        subtype = frame.get("subtype")
        if subtype == "init":
            self.model = str(frame.get("model") or self.model)
        elif subtype == "api_retry":
            status = frame.get("error_status")
            self.last_api_status = status if isinstance(status, int) else None
        elif subtype == "session_state_changed":
            self.idle = frame.get("state") == "idle"

    def _take_rate_limit_event(self, frame: dict[str, Any]) -> None:
        info = frame.get("rate_limit_info") or frame
        if not isinstance(info, dict):
            return
        if info.get("status") == "rejected":
            self.limit_rejected = True
            if isinstance(at := info.get("resetsAt"), int | float):
                self.resets_at = float(at) / (1000.0 if at > 1e11 else 1.0)

    def _take_stream_event(self, frame: dict[str, Any]) -> None:
        event = frame.get("event")
        if not isinstance(event, dict):
            return
        if event.get("type") == "message_start":
            message = event.get("message") or {}
            self._streaming = str(message.get("id") or "")
            self._count(self._streaming, str(message.get("model") or ""), message.get("usage"), frame)
        elif event.get("type") == "message_delta" and self._streaming:
            # Only this has the final number of output tokens; assistant frames of a live run show 1.
            self._count(self._streaming, "", event.get("usage"), frame)

    def _take_assistant(self, frame: dict[str, Any]) -> None:
        message = frame.get("message")
        if not isinstance(message, dict):
            return
        if message.get("model") != "<synthetic>":
            self._count(str(message.get("id") or ""), str(message.get("model") or ""), message.get("usage"), frame)
        for block in _blocks(message):
            if block.get("type") == "text" and str(block.get("text", "")).strip():
                self.text = str(block["text"]).strip()[-TEXT_SHOWN:]
            elif block.get("type") == "tool_use":
                self._tools[str(block.get("id"))] = describe_tool(str(block.get("name")), block.get("input"))
        self._show_tool()

    def _take_user(self, frame: dict[str, Any]) -> None:
        message = frame.get("message")
        if isinstance(message, dict):
            for block in _blocks(message):
                if block.get("type") == "tool_result":
                    self._tools.pop(str(block.get("tool_use_id")), None)
            self._show_tool()

    def _show_tool(self) -> None:
        self.tool = next(reversed(self._tools.values())) if self._tools else None

    def _take_result(self, frame: dict[str, Any]) -> None:
        self.results.append(frame)
        self.answered |= {str(uuid) for uuid in frame.get("user_message_uuids") or []}
        if frame.get("user_message_uuid"):
            self.answered.add(str(frame["user_message_uuid"]))
        self._tools.clear()
        self._show_tool()
        self._settled_turns += int(frame.get("num_turns") or 0)
        counted, cost = _model_usage(frame.get("model_usage_since_last_result"))
        total = frame.get("total_cost_usd")
        if counted is None:
            counted = self._open_usage()
            cost = float(total or 0.0) - (self._last_total_cost or 0.0) if total is not None else None
        if cost is None:
            cost = sum(price(model, usage) for model, usage in self._open.values())
        self._last_total_cost = float(total) if total is not None else self._last_total_cost
        self._settled_usage = self._settled_usage + counted
        self._settled_cost += max(0.0, cost)
        self._settled_ids |= set(self._open)
        self._open.clear()

    def _open_usage(self) -> Usage:
        total = Usage()
        for _, usage in self._open.values():
            total = total + usage
        return total

    def _count(self, message_id: str, model: str, raw: Any, frame: dict[str, Any]) -> None:
        if not isinstance(raw, dict) or not message_id or message_id in self._settled_ids:
            return
        known_model, known = self._open.get(message_id, ("", Usage()))
        new = read_usage(raw)
        # One API message comes in several frames, each with a part of the numbers: the largest of each is the last.
        merged = Usage(**{name: max(getattr(known, name), getattr(new, name)) for name in Usage.model_fields})
        self._open[message_id] = (model or known_model or self.model, merged)
        if frame.get("parent_tool_use_id") is None:
            size = merged.input_tokens + merged.cache_read_tokens + merged.cache_write_tokens
            self.context_tokens = size + merged.output_tokens


def read_usage(raw: dict[str, Any]) -> Usage:
    """Return the tokens of an API message."""
    return Usage(
        input_tokens=_count_of(raw, "input_tokens", "inputTokens"),
        output_tokens=_count_of(raw, "output_tokens", "outputTokens"),
        cache_read_tokens=_count_of(raw, "cache_read_input_tokens", "cacheReadInputTokens"),
        cache_write_tokens=_count_of(raw, "cache_creation_input_tokens", "cacheCreationInputTokens"),
    )


def _count_of(raw: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(value := raw.get(name), int | float):
            return max(0, int(value))
    return 0


def _model_usage(raw: Any) -> tuple[Usage | None, float | None]:
    """Return tokens and dollars of a table model → usage; (None, None) when there is none."""
    if not isinstance(raw, dict) or not raw:
        return None, None
    usage, cost = Usage(), 0.0
    for entry in raw.values():
        if isinstance(entry, dict):
            usage = usage + read_usage(entry)
            cost += float(entry.get("costUSD") or entry.get("cost_usd") or 0.0)
    return usage, cost


def price(model: str, usage: Usage) -> float:
    """Return the list price of tokens in dollars."""
    _, per_input, per_output = next(row for row in PRICES if row[0] in model)
    tokens_in = usage.input_tokens + 0.1 * usage.cache_read_tokens + 1.25 * usage.cache_write_tokens
    return (tokens_in * per_input + usage.output_tokens * per_output) / 1e6


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def describe_tool(name: str, tool_input: Any) -> str:
    """Return a tool call in a few words: `Bash: pytest -q`."""
    if isinstance(tool_input, dict):
        for key in TOOL_INPUT_KEYS:
            if isinstance(value := tool_input.get(key), str) and value:
                first = value.strip().splitlines()[0] if value.strip() else ""
                return f"{name}: {first[:TOOL_INPUT_SHOWN]}"
    return name


SUBTYPES: dict[str, Reason] = {
    "error_max_turns": Reason.TURN_LIMIT,
    "error_max_budget_usd": Reason.COST_LIMIT,
    "error_max_structured_output_retries": Reason.OUTPUT_INVALID,
}
TERMINAL: dict[str, Reason] = {
    "max_turns": Reason.TURN_LIMIT,
    "budget_exhausted": Reason.COST_LIMIT,
    "structured_output_retry_exhausted": Reason.OUTPUT_INVALID,
    "prompt_too_long": Reason.INVALID_REQUEST,
    "image_error": Reason.INVALID_REQUEST,
    "blocking_limit": Reason.USAGE_LIMIT,
    "model_error": Reason.API_ERROR,
}
STATUSES: dict[int, Reason] = {
    400: Reason.INVALID_REQUEST,
    401: Reason.AUTHENTICATION,
    403: Reason.AUTHENTICATION,
    404: Reason.INVALID_REQUEST,
    413: Reason.INVALID_REQUEST,
    429: Reason.RATE_LIMITED,
    529: Reason.OVERLOADED,
}
WORDS: tuple[tuple[str, Reason], ...] = (
    (r"usage[_ ]limit|limit reached|hit your .*limit|credit balance is too low|billing_error", Reason.USAGE_LIMIT),
    (r"not logged in|authentication_(error|failed)|invalid (x-)?api.?key|oauth token|/login", Reason.AUTHENTICATION),
    (r"overloaded|\b529\b", Reason.OVERLOADED),
    (r"rate[_ ]limit|\b429\b", Reason.RATE_LIMITED),
    (r"prompt is too long|invalid_request", Reason.INVALID_REQUEST),
)


def classify(result: dict[str, Any], facts: RunFacts | None = None) -> Ending:
    """Return how a run ended by its result frame.

    API failures come as subtype `success` with `is_error` and terminal_reason `api_error`, so the subtype alone says
    nothing.
    """
    facts = facts or RunFacts()
    if not result.get("is_error") and result.get("subtype") == "success":
        return Ending(RunState.SUCCEEDED)
    detail = result_words(result)
    subtype, terminal = str(result.get("subtype") or ""), str(result.get("terminal_reason") or "")
    if reason := SUBTYPES.get(subtype) or TERMINAL.get(terminal):
        return Ending(RunState.FAILED, reason, detail, facts.resets_at if reason is Reason.USAGE_LIMIT else None)
    api_words = " ".join(str(result.get(key) or "") for key in ("api_error", "api_error_type"))
    if "usage_limit" in api_words or (facts.limit_rejected and facts.resets_at is not None):
        return Ending(RunState.FAILED, Reason.USAGE_LIMIT, detail, facts.resets_at)
    status = result.get("api_error_status")
    if not isinstance(status, int):
        status = None
    if status is not None and (known := STATUSES.get(status)):
        if known is Reason.RATE_LIMITED and re.search(WORDS[0][0], detail, re.IGNORECASE):
            known = Reason.USAGE_LIMIT
        return Ending(RunState.FAILED, known, detail, facts.resets_at)
    if status is None or terminal == "api_error":
        for pattern, reason in WORDS:
            if re.search(pattern, f"{detail} {api_words}", re.IGNORECASE):
                return Ending(RunState.FAILED, reason, detail, facts.resets_at)
        if facts.last_api_status is not None and (known := STATUSES.get(facts.last_api_status)):
            return Ending(RunState.FAILED, known, detail, facts.resets_at)
    if terminal == "api_error" or status is not None:
        return Ending(RunState.FAILED, Reason.API_ERROR, detail)
    return Ending(RunState.FAILED, Reason.CLAUDE_ERROR, detail)


def result_words(result: dict[str, Any]) -> str:
    """Return what a result frame says went wrong."""
    errors = [str(error) for error in result.get("errors") or [] if error]
    if errors:
        return "; ".join(errors)[:2000]
    if isinstance(text := result.get("result"), str) and text.strip():
        return text.strip()[:2000]
    return str(result.get("terminal_reason") or result.get("subtype") or "Claude Code reported an error.")


def session_missing(result: dict[str, Any]) -> bool:
    """Return whether Claude Code did not find the session it was to resume."""
    return "No conversation found" in result_words(result)
