"""Lets a script be written as its steps in a row, though each request only asks for the next one.

A script runs from its start at every request. A step whose result the conversation holds returns it; the first one
without leaves the script by `Next`.
"""

from __future__ import annotations

import re
from typing import Any

from fleet.rehearsal.conversation import Call, Conversation
from fleet.rehearsal.scripts.steps import Use

NUMBERED = re.compile(r"^\s*\d+[\t→]", re.M)


class Next(Exception):
    """Carries the step to take now out of a script."""

    def __init__(self, use: Use) -> None:
        super().__init__(use.tool)
        self.use = use


class Progress:
    """What a conversation has done of its script."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk

    def bash(self, step: int, command: str, text: str) -> Call:
        """Run a command; one that was interrupted is run again, so it must be harmless to repeat."""
        return self._do(step, "Bash", {"command": command, "description": text[:80]}, text)

    def read(self, step: int, path: str, text: str, kind: str = "") -> Call:
        """Read a file."""
        return self._do(step, "Read", {"file_path": path}, text, kind)

    def edit(self, step: int, path: str, old: str, new: str, text: str) -> Call:
        """Change a file; after an interruption, only when the change is not there."""
        given = {"file_path": path, "old_string": old, "new_string": new}
        call = self._do(step, "Edit", given, text, repeat=False)
        if not call.interrupted and "has not been read" not in call.text:
            return call
        seen = self._check(step, path, call)
        if not seen.failed and new in plain(seen.text):
            return seen
        raise Next(Use(step, "Edit", given, f"The change is not in {path}: I make it."))

    def write(self, step: int, path: str, content: str, text: str) -> Call:
        """Write a file; after an interruption, only when it is not there."""
        given = {"file_path": path, "content": content}
        call = self._do(step, "Write", given, text, repeat=False)
        if not call.interrupted:
            return call
        seen = self._check(step, path, call)
        if not seen.failed and plain(seen.text).strip() == content.strip():
            return seen
        raise Next(Use(step, "Write", given, f"{path} is not as it should be: I write it."))

    def _do(self, step: int, tool: str, given: dict[str, Any], text: str, kind: str = "", repeat: bool = True) -> Call:
        call = self.talk.call(step, kind)
        if call is None or (call.interrupted and repeat):
            raise Next(Use(step, tool, given, text, kind))
        return call

    def _check(self, step: int, path: str, after: Call) -> Call:
        """Read what an interrupted call was to change, once for each interruption."""
        check = self.talk.call(step, "c")
        if check is None or check.interrupted or check.position < after.position:
            raise Next(
                Use(step, "Read", {"file_path": path}, f"Nobody knows what the call did: I look at {path}.", "c")
            )
        return check


def plain(text: str) -> str:
    """Return what Read showed, without its line numbers."""
    return NUMBERED.sub("", text)
