"""Reads a request of the Messages API as a script needs it: which order stands, what was called and what came back.

Pure and stateless: everything comes from the request's body, so that a conversation resumed on another machine, by
another server, goes on where it was. Steps are never counted by messages (Claude Code injects reminders and repeats
requests); they are counted by the ids of the tool calls that the scripts themselves issued.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

CALL_ID = re.compile(r"^toolu_o(\d+)s(\d+)([a-z]*)_")
"""`toolu_o<order>s<step><kind>_<nonce>`: which order of the conversation, which of its steps."""

INTERRUPTED = ("[Tool call interrupted", "[Tool result missing", "[Request interrupted")
REJECTED = "The user doesn't want to proceed with this tool use"
"""What Claude Code gives as the result of a call that was interrupted."""
CONTINUES = ("You were moved", "The last attempt was cut off", "Continue from where you left off")
"""How a resumed run is told to go on; it is no new order."""
CUT_ANSWER = ("Output token limit hit", "Your response above was cut off", "Please continue from where you left off")
"""How Claude Code asks for the rest of an answer."""
SAID_MEANWHILE = re.compile(
    r"The user sent a new message while you were working:\n(.*?)"
    r"(?:\n\n(?:This is how Claude Code|IMPORTANT:)|\n*</system|\Z)",
    re.S,
)
"""How Claude Code passes on what was said in mid-turn: as a system message, or as a reminder beside a result."""
IGNORED = ("<system-reminder>", "[Request interrupted", "<command-", "<local-command", "Caveat:")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of a script and its result.

    Attributes:
        step: the script's step that issued it.
        kind: "" for the step itself, a letter for a check beside it.
        text: what came back, as text.
        failed: whether the tool said it is an error.
        interrupted: whether nobody knows what it did.
        position: its place among the calls of the conversation.
    """

    step: int
    kind: str
    tool: str
    input: dict[str, Any]
    text: str = ""
    failed: bool = False
    interrupted: bool = False
    position: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a script needs to know.

    Attributes:
        order: the text that it works on: the first prompt, or the last one after a finished answer.
        order_number: 0 for the first.
        calls: those of this order, in their order, with results.
        remarks: what somebody said while the order was worked on.
        remarks_now: those that came after the last result, not answered yet.
        system: the system prompt.
        tools: names of the tools offered.
        moved_at: how many calls there were when the conversation was last told that it was cut off; None: never.
    """

    order: str
    order_number: int = 0
    calls: tuple[Call, ...] = ()
    remarks: tuple[str, ...] = ()
    remarks_now: tuple[str, ...] = ()
    system: str = ""
    tools: frozenset[str] = frozenset()
    moved_at: int | None = None

    def call(self, step: int, kind: str = "") -> Call | None:
        """Return the last call of a step, None when it was not made."""
        found = [call for call in self.calls if call.step == step and call.kind == kind]
        return found[-1] if found else None

    @property
    def next_step(self) -> int:
        """The number after the last step that was called."""
        return max((call.step for call in self.calls), default=-1) + 1


def text_of(content: Any) -> str:
    """Return the text of a message's or a tool result's content."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict) and "text" in block)
    return ""


def read(body: dict[str, Any]) -> Conversation:
    """Read a request's body."""
    orders: list[str] = []
    remarks: list[str] = []
    remarks_now: list[str] = []
    pending: dict[str, dict[str, Any]] = {}
    calls: list[Call] = []
    moved_at: int | None = None
    working = False
    for message in body.get("messages", []):
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if message.get("role") == "assistant":
            used = [block for block in blocks if block.get("type") == "tool_use"]
            for block in used:
                pending[block["id"]] = block
            said = text_of(blocks).strip()
            # Claude Code puts this in when it resumes a cut conversation; the order still stands.
            if said not in ("No response requested.", ""):
                remarks_now.clear()
            if not used and said not in ("No response requested.", ""):
                working = False
            continue
        heard = [said.strip() for said in SAID_MEANWHILE.findall(text_of(blocks))] if working else []
        remarks += heard
        remarks_now += heard
        if message.get("role") != "user":
            continue
        for block in blocks:
            if block.get("type") == "tool_result":
                call = _call(pending.pop(block.get("tool_use_id", ""), None), block, len(calls))
                if call is not None:
                    calls.append(call)
            elif block.get("type") == "text":
                said = str(block["text"]).strip()
                if said.startswith("[Request interrupted"):
                    working = False
                if not said or said.startswith(IGNORED):
                    continue
                if said.startswith(CONTINUES) and orders:
                    moved_at, working = len(calls), True
                    if calls and calls[-1].text.startswith(REJECTED):
                        # An interrupt of the fleet's own, and the session goes on: nobody knows what the call did.
                        calls[-1] = replace(calls[-1], interrupted=True)
                elif said.startswith(CUT_ANSWER) and orders:
                    working = True
                elif working:
                    remarks.append(said)
                    remarks_now.append(said)
                else:
                    orders.append(said)
                    calls, remarks, remarks_now, working, moved_at = [], [], [], True, None
    number = max(len(orders) - 1, 0)
    system = text_of(body.get("system"))
    return Conversation(
        order=orders[-1] if orders else "",
        order_number=number,
        calls=tuple(calls),
        remarks=tuple(remarks),
        remarks_now=tuple(remarks_now),
        system=system,
        tools=frozenset(tool.get("name", "") for tool in body.get("tools", [])),
        moved_at=moved_at,
    )


def _call(used: dict[str, Any] | None, result: dict[str, Any], position: int) -> Call | None:
    if used is None or (found := CALL_ID.match(used["id"])) is None:
        return None
    text = text_of(result.get("content"))
    return Call(
        step=int(found[2]),
        kind=found[3],
        tool=used["name"],
        input=used.get("input") or {},
        text=text,
        failed=bool(result.get("is_error")),
        interrupted=text.startswith(INTERRUPTED),
        position=position,
    )
