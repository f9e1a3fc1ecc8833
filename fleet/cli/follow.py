"""Events as lines for people."""

from __future__ import annotations

import json
from typing import Any

from rich.text import Text

from fleet.cli.output import line_of, money, out

INPUT_KEYS = ("command", "file_path", "pattern", "path", "url", "query", "prompt", "description")


def show_event(event: dict[str, Any]) -> None:
    """Print an event; frames without news for people print nothing."""
    for text in describe(event):
        out.print(text, soft_wrap=True)


def describe(event: dict[str, Any]) -> list[Text]:
    """Return the lines of an event."""
    at = str(event.get("at", ""))[11:19]
    head = Text(f"{at} {event.get('agent_id', '')} ", style="dim")
    return [head + line for line in _lines(event)]


def _lines(event: dict[str, Any]) -> list[Text]:
    payload = event.get("payload") or {}
    match event.get("kind"):
        case "frame":
            return _frame(payload)
        case "state":
            said = payload.get("text") or payload.get("detail") or payload.get("message") or ""
            return [Text(f"• {event.get('type', '')} {said}".rstrip(), style="blue")]
        case "stderr":
            return [Text(str(payload.get("text") or payload.get("line") or ""), style="red")]
        case "message":
            return [Text(f"» {payload.get('text', '')}", style="magenta")]
        case "gap":
            return [Text(f"… {payload.get('count', 'some')} events were left out", style="yellow")]
    return []


def _frame(frame: dict[str, Any]) -> list[Text]:
    match frame.get("type"):
        case "assistant" | "user":
            content = (frame.get("message") or {}).get("content")
            if isinstance(content, str):
                return [Text(content)] if frame["type"] == "assistant" else []
            return [line for block in content or [] if (line := _block(block)) is not None]
        case "result":
            failed = bool(frame.get("is_error"))
            said = (
                f"{frame.get('subtype', '')}, {frame.get('num_turns', 0)} turns, {money(frame.get('total_cost_usd'))}"
            )
            return [Text(("✗ " if failed else "✓ ") + said, style="red" if failed else "green")]
    return []


def _block(block: Any) -> Text | None:
    if not isinstance(block, dict):
        return None
    match block.get("type"):
        case "text":
            return Text(str(block.get("text", "")))
        case "tool_use":
            return Text(f"→ {block.get('name')}: {_input(block.get('input') or {})}", style="cyan")
        case "tool_result":
            content = block.get("content")
            if isinstance(content, list):
                content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
            return Text(f"← {line_of(str(content or ''), 160)}", style="red" if block.get("is_error") else "dim")
    return None


def _input(given: dict[str, Any]) -> str:
    for key in INPUT_KEYS:
        if key in given:
            return line_of(str(given[key]), 160)
    return line_of(json.dumps(given, ensure_ascii=False), 160)
