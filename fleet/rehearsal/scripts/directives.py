"""Prompts that say what to do, line by line: the language of tests, drivers and load.

    say: TEXT                   part of the final answer
    run: COMMAND                Bash
    read: PATH                  Read
    write: PATH                 Write, with the lines between <<< and >>> that follow
    edit: PATH | OLD | NEW      Edit (read first, as Claude Code demands)
    tool: NAME {JSON}           any other tool
    sleep: SECONDS              the model takes its time before the next step
    fault: 429 retry-after=2 times=3      the next request is answered so, `times` times (`server` counts)
    must: VERB: …               as VERB, but an error of the tool ends the task with words that say so

One tool call a turn, each after the result of the one before. A call that was interrupted is looked into before it is
made again: a file that is there is not written again.
"""

from __future__ import annotations

import re

from fleet.rehearsal.conversation import Call, Conversation
from fleet.rehearsal.scripts.steps import Directive, Say, Step, Use

VERBS = ("say", "run", "read", "write", "edit", "tool", "sleep", "fault")
LINE = re.compile(rf"^\s*(must:\s*)?({'|'.join(VERBS)}):\s*(.*)$")


def parse(prompt: str) -> list[Directive]:
    """Return the directives of a prompt in order; empty when there are none."""
    found: list[Directive] = []
    lines = iter(prompt.splitlines())
    for line in lines:
        if (match := LINE.match(line)) is None:
            continue
        body = ""
        if match[2] == "write":
            body = _body(lines)
        found.append(Directive(match[2], match[3].strip(), body, bool(match[1])))
    return found


def _body(lines: object) -> str:
    collected: list[str] = []
    started = False
    for line in lines:  # type: ignore[attr-defined]
        if not started:
            if line.strip() != "<<<":
                return ""
            started = True
        elif line.strip() == ">>>":
            break
        else:
            collected.append(line)
    return "".join(text + "\n" for text in collected)


def next_step(directives: list[Directive], talk: Conversation) -> Step:
    """Return what follows in a conversation whose order holds these directives."""
    delay = 0.0
    for number, directive in enumerate(directives):
        if directive.verb == "sleep":
            call_after = any(call.step > number for call in talk.calls)
            delay += 0.0 if call_after else float(directive.argument or 0)
            continue
        if directive.verb in ("say", "fault"):
            continue
        call = talk.call(number)
        if call is None:
            return _first(number, directive, talk, delay)
        if call.interrupted:
            again = _after_interruption(number, directive, call, talk)
            if again is not None:
                return again
        elif call.failed and directive.must:
            return Say(f"{directive.verb} failed, so I stop here: {call.text.strip()[:400]}")
        delay = 0.0
    return Say(_summary(directives, talk), delay)


def _first(number: int, directive: Directive, talk: Conversation, delay: float) -> Step:
    if directive.verb == "edit" and talk.call(number, "r") is None:
        path = directive.argument.split("|")[0].strip()
        return Use(number, "Read", {"file_path": path}, f"I read {path} first.", "r", delay)
    return _use(number, directive, "", delay)


def _use(number: int, directive: Directive, text: str = "", delay: float = 0.0) -> Use:
    argument = directive.argument
    if directive.verb == "run":
        return Use(number, "Bash", {"command": argument, "description": argument[:60]}, text, "", delay)
    if directive.verb == "read":
        return Use(number, "Read", {"file_path": argument}, text, "", delay)
    if directive.verb == "write":
        return Use(number, "Write", {"file_path": argument, "content": directive.body}, text, "", delay)
    if directive.verb == "edit":
        path, old, new = [*(part.strip() for part in argument.split("|")), "", ""][:3]
        return Use(number, "Edit", {"file_path": path, "old_string": old, "new_string": new}, text, "", delay)
    import json

    name, _, arguments = argument.partition(" ")
    return Use(number, name, json.loads(arguments or "{}"), text, "", delay)


def _effect(directive: Directive) -> str | None:
    """Return the file that shows whether a directive took effect, None when nothing shows it."""
    if directive.verb == "write":
        return directive.argument
    if directive.verb == "run" and (found := re.search(r">>?\s*([^\s;|&<>]+)", directive.argument)):
        return found[1]
    return None


def _after_interruption(number: int, directive: Directive, call: Call, talk: Conversation) -> Step | None:
    target = _effect(directive)
    if target is None:
        return _use(number, directive, "Nobody knows what the interrupted call did; it is safe to make it again.")
    check = talk.call(number, "c")
    if check is None or talk.calls.index(check) < talk.calls.index(call) or check.interrupted:
        command = f"test -s {target} && echo present || echo absent"
        text = f"The call was interrupted: I look whether {target} is there before I repeat it."
        return Use(number, "Bash", {"command": command, "description": f"Check {target}"}, text, "c")
    if "present" in check.text:
        return None
    return _use(number, directive, f"{target} is not there, so I make the call again.")


def _summary(directives: list[Directive], talk: Conversation) -> str:
    parts = [directive.argument for directive in directives if directive.verb == "say"]
    for number, directive in enumerate(directives):
        if (call := talk.call(number)) is None:
            continue
        what = f"{directive.verb} {directive.argument[:80]}"
        text = call.text.strip()
        if call.failed and not call.interrupted:
            parts.append(f"{what}: failed: {text[:300]}")
        elif call.interrupted:
            parts.append(f"{what}: done before the interruption")
        elif directive.verb in ("run", "read"):
            parts.append(f"{what}: {text[:600]}")
        else:
            parts.append(f"{what}: done")
    if talk.remarks:
        parts.append("You said: " + "; ".join(talk.remarks)[:600])
    return "\n".join(parts) or "Nothing was asked for."
