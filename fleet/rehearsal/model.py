"""The rehearsal model: a request's body in, one step out. Pure.

A demo's script is chosen by words of its order, a prompt with directives is followed, anything else is looked at.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fleet.rehearsal import conversation
from fleet.rehearsal.conversation import Conversation
from fleet.rehearsal.scripts import directives, plain
from fleet.rehearsal.scripts.demo import script_for
from fleet.rehearsal.scripts.progress import Next
from fleet.rehearsal.scripts.steps import Say, Step

BYTES_PER_TOKEN = 4


def decide(body: dict[str, Any]) -> tuple[Conversation, Step]:
    """Return the conversation of a request and the step that follows."""
    talk = conversation.read(body)
    if orders := directives.parse(talk.order):
        return talk, directives.next_step(orders, talk)
    try:
        return talk, (script_for(talk) or plain.answer)(talk)
    except Next as found:
        return talk, found.use


def content_of(talk: Conversation, step: Step, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the content blocks of the answer; what somebody said meanwhile is acknowledged in it."""
    blocks: list[dict[str, Any]] = []
    if step.pace.thinking_words:
        thought = " ".join(f"thought {number}" for number in range(1, step.pace.thinking_words + 1))
        blocks.append({"type": "thinking", "thinking": thought, "signature": "rehearsed"})
    if step.pace.pieces:
        blocks.append({"type": "text", "text": "".join(pieces_of(step))})
    text = "".join(f"You said: {said[:300]}\n" for said in talk.remarks_now) + step.text
    if isinstance(step, Say):
        structured = _structured(body, step)
        return [*blocks, structured or {"type": "text", "text": text}]
    if text:
        blocks.append({"type": "text", "text": text})
    nonce = hashlib.sha256(json.dumps(body.get("messages", [])[-1:], sort_keys=True).encode()).hexdigest()[:10]
    name = f"toolu_o{talk.order_number}s{step.step}{step.kind}_{nonce}{len(body.get('messages', []))}"
    return [*blocks, {"type": "tool_use", "id": name, "name": step.tool, "input": step.input}]


def pieces_of(step: Step) -> list[str]:
    """Return the pieces of text that are streamed one by one."""
    return [f"{number} " for number in range(1, step.pace.pieces + 1)]


def _structured(body: dict[str, Any], step: Say) -> dict[str, Any] | None:
    """Return a call of Claude Code's tool for structured output where the request offers it, with a fitting value."""
    tool = next((tool for tool in body.get("tools", []) if tool.get("name") == "StructuredOutput"), None)
    messages = json.dumps(body.get("messages", []))
    if tool is None or '"toolu_structured' in messages:
        return None
    value = example(tool.get("input_schema", {}), step.text)
    return {"type": "tool_use", "id": "toolu_structured_0", "name": "StructuredOutput", "input": value}


def example(schema: dict[str, Any], text: str) -> Any:
    """Return a value that fits a JSON schema; strings hold the text."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties", {})
        return {key: example(part, text) for key, part in properties.items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), text)]
    return {"string": text, "integer": 1, "number": 1.0, "boolean": True, "null": None}.get(kind, text)


def usage_of(body: dict[str, Any], content: list[dict[str, Any]]) -> dict[str, int]:
    """Return token counts that go with the sizes: the conversation before the last message counts as cached."""
    messages = body.get("messages", [])
    fresh = len(json.dumps(messages[-1:]))
    cached = len(json.dumps(messages[:-1])) if len(messages) > 1 else 0
    return {
        "input_tokens": fresh // BYTES_PER_TOKEN + 1,
        "cache_read_input_tokens": cached // BYTES_PER_TOKEN,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(json.dumps(content)) // BYTES_PER_TOKEN + 1,
    }
