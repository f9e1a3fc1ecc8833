"""Plain prompts: look around with the tools there are, then answer with what was seen."""

from __future__ import annotations

import re

from fleet.rehearsal.conversation import Conversation
from fleet.rehearsal.scripts.steps import Say, Step, Use


def next_step(talk: Conversation) -> Step:
    """Return what follows: list the folder, read a file that is there, answer."""
    if "Bash" in talk.tools:
        listed = talk.call(0)
        if listed is None:
            command = "git log --oneline -5" if "reviewer" in talk.system else "ls"
            return Use(0, "Bash", {"command": command, "description": "Look around"}, "I look around first.")
        file = next(iter(re.findall(r"^(\w[\w.-]*\.(?:py|md|txt|toml|js))$", listed.text, re.M)), None)
        if "Read" in talk.tools and file is not None:
            read = talk.call(1)
            if read is None:
                return Use(1, "Read", {"file_path": file}, f"There is {file}; I read it.")
            return Say(_answer(talk, f"I read {file} ({len(read.text.splitlines())} lines)."))
        return Say(_answer(talk, f"I saw: {listed.text.strip()[:300] or 'an empty folder'}."))
    return Say(_answer(talk, "I have no tool to look around with."))


def _answer(talk: Conversation, seen: str) -> str:
    said = f" You said: {'; '.join(talk.remarks)[:400]}." if talk.remarks else ""
    return f"Asked: {talk.order[:200]}\n{seen}{said}\nThis answer was rehearsed; no model thought about it."
