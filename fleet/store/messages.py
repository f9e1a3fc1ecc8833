"""What people search and count, taken out of raw events: texts, thoughts, tool calls and their answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fleet.models import Event, EventKind

TEXT_LIMIT = 8000
"""Characters of a message that are kept for the search; the event has all of it."""
INPUT_LIMIT = 2000
"""Characters of a call that are kept with its answer."""
OPEN_CALLS_LIMIT = 256
"""Calls of a run whose answers are awaited; a run has a handful at once, so more means that answers never came."""


@dataclass(slots=True)
class Message:
    """One row of the table `message`, without what it shares with its event."""

    speaker: str
    kind: str
    text: str
    tool: str | None = None
    tool_use_id: str | None = None
    path: str | None = None
    input: str | None = None
    failed: bool | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Calls:
    """The open tool calls of a run: id → (tool, path, input, when)."""

    open: dict[str, tuple[str, str | None, str, float]] = field(default_factory=dict)


def messages_of(event: Event, calls: Calls) -> Iterator[Message]:
    """Yield the messages of an event; `calls` remembers the run's tool calls so that answers name their tool.

    Frames come from another program: whatever has not the expected shape yields nothing, and never raises.
    """
    payload = event.payload
    if event.kind is EventKind.MESSAGE:
        yield Message("user", "message", _text(payload.get("text")))
    elif event.kind is EventKind.STDERR:
        yield Message("system", "stderr", _text(payload.get("text")))
    elif event.kind is EventKind.FRAME:
        if event.type == "assistant":
            yield from _assistant(payload, calls, event.at)
        elif event.type == "user":
            yield from _user(payload, calls, event.at)
        elif event.type == "result":
            yield Message("assistant", "result", _text(payload.get("result")), failed=bool(payload.get("is_error")))


def _assistant(payload: dict[str, Any], calls: Calls, at: float) -> Iterator[Message]:
    for block in _blocks(payload):
        kind = block.get("type")
        if kind == "text":
            yield Message("assistant", "text", _text(block.get("text")))
        elif kind == "thinking":
            yield Message("assistant", "thinking", _text(block.get("thinking")))
        elif kind == "tool_use":
            given = block.get("input")
            tool, call_id = str(block.get("name")), str(block.get("id"))
            path, text = _path(given), _call_text(given)
            if len(calls.open) >= OPEN_CALLS_LIMIT:
                calls.open.pop(next(iter(calls.open)))
            calls.open[call_id] = (tool, path, text[:INPUT_LIMIT], at)
            yield Message("assistant", "tool_use", text, tool, call_id, path)


def _user(payload: dict[str, Any], calls: Calls, at: float) -> Iterator[Message]:
    message = payload.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        yield Message("user", "text", _text(content))
        return
    for block in _blocks(payload):
        if block.get("type") == "tool_result":
            call_id = str(block.get("tool_use_id"))
            tool, path, given, began = calls.open.pop(call_id, (None, None, None, None))
            seconds = None if began is None else max(0.0, at - began)
            failed = bool(block.get("is_error"))
            text = _text(block.get("content"))
            yield Message("tool", "tool_result", text, tool, call_id, path, given, failed, seconds)
        elif block.get("type") == "text":
            yield Message("user", "text", _text(block.get("text")))


def _blocks(payload: dict[str, Any]) -> list[dict[str, Any]]:
    message = payload.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value[:TEXT_LIMIT]
    if isinstance(value, list):
        parts = [block["text"] for block in value if isinstance(block, dict) and isinstance(block.get("text"), str)]
        return "\n".join(parts)[:TEXT_LIMIT]
    return ""


def _path(given: Any) -> str | None:
    if isinstance(given, dict):
        for key in ("file_path", "notebook_path", "path"):
            if isinstance(found := given.get(key), str):
                return found[:1000]
    return None


def _call_text(given: Any) -> str:
    if isinstance(given, dict) and isinstance(command := given.get("command"), str):
        return command[:TEXT_LIMIT]
    return json.dumps(given, ensure_ascii=False, default=str)[:TEXT_LIMIT]


def session_of(payload: dict[str, Any]) -> str | None:
    """Return the session whose main transcript a TRANSCRIPT event carries; None for a subagent's file."""
    file = payload.get("file")
    if isinstance(file, str) and file:
        folder, _, name = file.replace("\\", "/").rpartition("/")
        if "/subagents" in folder or name.startswith("agent-"):
            return None
        return name.removesuffix(".jsonl")
    entries = payload.get("entries")
    if isinstance(entries, list):
        for entry in entries:
            if isinstance(entry, dict) and isinstance(found := entry.get("sessionId"), str):
                return None if entry.get("isSidechain") else found
    return None


def join_entries(payloads: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of transcript payloads in order, each once.

    Claude Code sends entries again when it resumes; an entry is known by its `uuid`, and one without by all of it.
    """
    seen: set[str] = set()
    joined: list[dict[str, Any]] = []
    for payload in payloads:
        entries = payload.get("entries")
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict):
                continue
            uuid = entry.get("uuid")
            mark = uuid if isinstance(uuid, str) else json.dumps(entry, sort_keys=True, default=str)
            if mark not in seen:
                seen.add(mark)
                joined.append(entry)
    return joined
