"""Which Claude session a run has, what it is told first, and its transcript on disk. Pure but for the one file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.models import RunOrder

MOVED = (
    "You were moved to another process, maybe on another machine. What the last tool call did before the move is not "
    "known: check whether it took effect before you repeat it. Then go on with the task."
)
CUT_OFF = "The last attempt was cut off by an error. Check what is done already, then go on with the task."


def session_of_task(task_id: str) -> str:
    """Return the id of the session that a task begins: always the same one, so that it is known also when the first
    run was lost before it could tell."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"fleet:task:{task_id}"))


def usable(entries: Sequence[dict[str, Any]]) -> bool:
    """Return whether a transcript has something said in it: without, Claude Code finds no conversation."""
    return any(entry.get("type") in ("user", "assistant") for entry in entries)


def was_said(entries: Sequence[dict[str, Any]], prompt: str) -> bool:
    """Return whether a user message of the transcript is this prompt."""
    for entry in entries:
        message = entry.get("message")
        if entry.get("type") == "user" and isinstance(message, dict):
            content = message.get("content")
            if content == prompt:
                return True
            if isinstance(content, list) and any(
                isinstance(block, dict) and block.get("text") == prompt for block in content
            ):
                return True
    return False


def first_message(order: RunOrder, entries: Sequence[dict[str, Any]]) -> str:
    """Return what a run says first, given the transcript it goes on from (empty: none)."""
    if not entries:
        return order.task.prompt
    if order.message:
        return order.message
    if not was_said(entries, order.task.prompt):
        return order.task.prompt
    return MOVED if order.moved else CUT_OFF


def write_transcript(config_dir: Path, project_key: str, session_id: str, entries: Sequence[dict[str, Any]]) -> Path:
    """Write a transcript where Claude Code looks for it when it resumes; return the file."""
    folder = config_dir / "projects" / project_key
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{session_id}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for entry in entries:
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return file
