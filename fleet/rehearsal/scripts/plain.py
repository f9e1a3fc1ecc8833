"""Plain prompts: look around with the tools there are, then answer with what was seen."""

from __future__ import annotations

import re

from fleet.rehearsal.conversation import Conversation
from fleet.rehearsal.scripts.progress import Progress, plain
from fleet.rehearsal.scripts.steps import Say

FILE_NAME = re.compile(r"^(\w[\w.-]*\.(?:py|md|txt|toml|json|js|rst))$", re.M)


def answer(talk: Conversation) -> Say:
    """List the folder, read a file that is there, and say what was seen."""
    do = Progress(talk)
    if "Bash" not in talk.tools:
        return Say(_said(talk, "I have no tool to look around with."))
    git = "code reviewer" in talk.system
    listed = do.bash(0, "git log --oneline -5" if git else "ls", "I look around first.")
    seen = listed.text.strip()[:300] or "nothing"
    if listed.failed:
        return Say(_said(talk, f"I could not look around: {seen}."))
    name = FILE_NAME.search(listed.text)
    if "Read" not in talk.tools or name is None:
        return Say(_said(talk, f"I saw: {seen}."))
    read = do.read(1, name[1], f"There is {name[1]}; I read it.")
    if read.failed:
        return Say(_said(talk, f"I saw: {seen}. I could not read {name[1]}: {read.text.strip()[:200]}."))
    lines = plain(read.text).splitlines()
    first = next((line.strip() for line in lines if line.strip()), "it is empty")
    return Say(_said(talk, f"I saw: {seen}.\nI read {name[1]} ({len(lines)} lines); it begins: {first[:200]}"))


def _said(talk: Conversation, seen: str) -> str:
    asked = " ".join(talk.order.split())[:200]
    return f"You asked: {asked}\n{seen}\nThis answer was rehearsed; no model thought about it."
