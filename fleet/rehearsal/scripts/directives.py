"""Prompts that say what to do, line by line: the language of tests, drivers and load.

    say: TEXT                   part of the final answer
    run: COMMAND                Bash
    read: PATH                  Read
    write: PATH                 Write, with the lines between <<< and >>> that follow
    edit: PATH | OLD | NEW      Edit (read first, as Claude Code demands)
    tool: NAME {JSON}           any other tool
    sleep: SECONDS              the model is silent before the next step
    think: N                    N words of thinking before the next step
    emit: N RATE                N pieces of text before the next step, RATE a second
    fault: WHAT retry-after=2 times=3 seconds=30
                                the next request is answered with this fault (see `server`), `times` times
    must: VERB: …               as VERB, but an error of the tool ends the task with words that say so

One tool call a turn, each after the result of the one before. What a call that was cut off did is looked into before
it is made again: a file that is there is not written again. The final answer says what the tools gave back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fleet.rehearsal.conversation import Call, Conversation
from fleet.rehearsal.scripts.steps import Directive, Fault, Pace, Say, Step, Use

CALLS = ("run", "read", "write", "edit", "tool")
PACES = ("sleep", "think", "emit")
VERBS = (*CALLS, *PACES, "say", "fault")
LINE = re.compile(rf"^\s*(must:\s*)?({'|'.join(VERBS)}):\s*(.*)$")
REDIRECTED = re.compile(r">>?\s*([^\s;|&<>]+)")
SHOWN = 600
"""Characters of a tool's output that the final answer repeats."""


def parse(prompt: str) -> list[Directive]:
    """Return the directives of a prompt in order; empty when there are none."""
    found: list[Directive] = []
    lines = iter(prompt.splitlines())
    for line in lines:
        if (match := LINE.match(line)) is None:
            continue
        body = _body(lines) if match[2] == "write" else ""
        found.append(Directive(match[2], match[3].strip(), body, bool(match[1])))
    return found


def _body(lines: Iterator[str]) -> str:
    if next(lines, "").strip() != "<<<":
        return ""
    collected: list[str] = []
    for line in lines:
        if line.strip() == ">>>":
            break
        collected.append(line + "\n")
    return "".join(collected)


def fault_due(directives: list[Directive], step: Step, key: str, given: dict[str, int]) -> Fault | None:
    """Return the fault that is ordered for the request that is to be answered with this step.

    Args:
        key: of the conversation.
        given: how often each fault was given already; counted on here.
    """
    position = step.step if isinstance(step, Use) else len(directives)
    for number, directive in enumerate(directives[:position]):
        if directive.verb != "fault":
            continue
        what, *options = directive.argument.split() or [""]
        values = dict(option.partition("=")[::2] for option in options)
        counted = f"{key} {number}"
        if given.get(counted, 0) < int(values.get("times", "1")):
            given[counted] = given.get(counted, 0) + 1
            return Fault(what, _number(values.get("retry-after")), _number(values.get("seconds")))
    return None


def next_step(directives: list[Directive], talk: Conversation) -> Step:
    """Return what follows in a conversation whose order holds these directives."""
    pace = Pace()
    for number, directive in enumerate(directives):
        if directive.verb in PACES:
            pace = _paced(pace, directive)
        if directive.verb not in CALLS:
            continue
        call = talk.call(number)
        step = _not_called(number, directive, talk) if call is None else _called(number, directive, call, talk)
        if step is not None:
            first = call is None and talk.call(number, "c") is None and talk.call(number, "r") is None
            return replace(step, pace=pace) if first else step
        # What comes before a step that was made is over.
        pace = Pace()
    return Say(_summary(directives, talk), pace)


def _paced(pace: Pace, directive: Directive) -> Pace:
    first, _, second = directive.argument.partition(" ")
    amount = _number(first) or 0.0
    if directive.verb == "sleep":
        return replace(pace, delay_s=pace.delay_s + amount)
    if directive.verb == "think":
        return replace(pace, thinking_words=int(amount))
    return replace(pace, pieces=int(amount), pieces_per_s=_number(second) or 0.0)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _not_called(number: int, directive: Directive, talk: Conversation) -> Step | None:
    """Return the step of a directive that the conversation does not have, None when its effect is there already."""
    target, check = _effect(directive), talk.call(number, "c")
    if check is not None and _present(check):
        return None
    # The journal may lack the last calls of a run that was cut off: they may have been made all the same.
    maybe_made = talk.moved_at is not None and all(call.kind for call in talk.calls[talk.moved_at :])
    if maybe_made and target is not None and not _fresh(check, talk):
        return _check(number, target, "I was moved")
    if directive.verb == "edit":
        read = talk.call(number, "r")
        path = directive.argument.split("|")[0].strip()
        if read is None or read.interrupted:
            return Use(number, "Read", {"file_path": path}, f"I read {path} first.", "r")
    return _use(number, directive)


def _called(number: int, directive: Directive, call: Call, talk: Conversation) -> Step | None:
    """Return what a call's result asks for, None when the next directive is due."""
    if not call.interrupted:
        if call.failed and directive.must:
            return Say(f"{directive.verb} failed, so I stop here: {call.text.strip()[:SHOWN]}")
        return None
    target, check = _effect(directive), talk.call(number, "c")
    if target is None:
        return _use(number, directive, "Nobody knows what the interrupted call did; it is safe to make it again.")
    if check is not None and check.position > call.position and _present(check):
        return None
    if check is None or check.position < call.position or not _fresh(check, talk):
        return _check(number, target, "The call was interrupted")
    return _use(number, directive, f"{target} is not there, so I make the call again.")


def _fresh(check: Call | None, talk: Conversation) -> bool:
    """Return whether a check was made since the conversation was cut off last."""
    return check is not None and not check.interrupted and check.position >= (talk.moved_at or 0)


def _check(number: int, target: str, why: str) -> Use:
    given = {"command": f"test -s {target} && echo present || echo absent", "description": f"Look for {target}"}
    return Use(number, "Bash", given, f"{why}: I look whether {target} is there before I repeat it.", "c")


def _present(check: Call) -> bool:
    return not check.failed and "present" in check.text.split()


def _use(number: int, directive: Directive, text: str = "") -> Use:
    argument = directive.argument
    given: dict[str, Any]
    match directive.verb:
        case "run":
            tool, given = "Bash", {"command": argument, "description": argument[:60]}
        case "read":
            tool, given = "Read", {"file_path": argument}
        case "write":
            tool, given = "Write", {"file_path": argument, "content": directive.body}
        case "edit":
            path, old, new = [*(part.strip() for part in argument.split("|")), "", ""][:3]
            tool, given = "Edit", {"file_path": path, "old_string": old, "new_string": new}
        case _:
            tool, _, arguments = argument.partition(" ")
            given = _json(arguments)
    return Use(number, tool, given, text)


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {"not_json": text}
    return found if isinstance(found, dict) else {"value": found}


def _effect(directive: Directive) -> str | None:
    """Return the file that shows whether a directive took effect, None when nothing shows it."""
    if directive.verb == "write":
        return directive.argument
    if directive.verb == "run" and (found := REDIRECTED.search(directive.argument)):
        return found[1]
    return None


def _summary(directives: list[Directive], talk: Conversation) -> str:
    parts = [directive.argument for directive in directives if directive.verb == "say"]
    for number, directive in enumerate(directives):
        if directive.verb not in CALLS:
            continue
        what = f"{directive.verb} {directive.argument[:80]}"
        call = talk.call(number)
        if call is None or call.interrupted:
            parts.append(f"{what}: done before I was cut off")
        elif call.failed:
            parts.append(f"{what}: failed: {call.text.strip()[:SHOWN]}")
        elif directive.verb in ("run", "read", "tool"):
            parts.append(f"{what}: {call.text.strip()[:SHOWN]}")
        else:
            parts.append(f"{what}: done")
    return "\n".join(parts) or "Nothing was asked for."
