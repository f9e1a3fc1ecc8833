"""How rows look to people: the shapes that REST and the sockets share."""

from __future__ import annotations

from typing import Any

from fleet.gateway.broadcaster import Overview
from fleet.gateway.parts import dump
from fleet.models import Activity, AgentInfo, Result, Task, iso
from fleet.reasons import RULES

TITLE_CHARS = 120


def title(prompt: str) -> str:
    """Return the first line of a prompt that says something, cut to `TITLE_CHARS`."""
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"


def brief(task: Task) -> dict[str, Any]:
    """Return a task without what may be large (its prompt, its schema), with its `title`."""
    data: dict[str, Any] = task.model_dump(mode="json", exclude={"prompt", "output_schema"})
    return {**data, "title": title(task.prompt)}


def explained(task: Task) -> dict[str, Any]:
    """Return a whole task with its title and, when it has a reason, what happened and what can be done."""
    rule = RULES.get(task.reason) if task.reason is not None else None
    return {
        **dump(task),
        "title": title(task.prompt),
        "sentence": rule.sentence if rule else "",
        "remedy": rule.remedy if rule else "",
    }


def card(agent: AgentInfo, activity: Activity | None, task: Task | None) -> dict[str, Any]:
    """Return an agent with what it does: its row, `activity`, `task_title`, `task_priority`."""
    return {
        **dump(agent),
        "activity": dump(activity) if activity is not None else None,
        "task_title": title(task.prompt) if task is not None else None,
        "task_priority": task.priority if task is not None else None,
    }


def card_of(view: Overview, agent: AgentInfo) -> dict[str, Any]:
    """Return an agent's card from the overview."""
    activity = view.activities.get(agent.id)
    if activity is not None and agent.run_id is None:
        activity = activity.model_copy(update={"tool": None, "run_id": None, "task_id": None})
    return card(agent, activity, view.tasks.get(agent.task_id) if agent.task_id else None)


def light(result: Result) -> dict[str, Any]:
    """Return a result without its diff, with the diff's size."""
    return {**result.model_dump(mode="json", exclude={"diff"}), "diff_bytes": len(result.diff.encode())}


def figures(counts: dict[str, Any]) -> dict[str, Any]:
    """Return the counts with their times as ISO 8601."""
    oldest = counts.get("oldest_queued_at")
    return {**counts, "oldest_queued_at": iso(oldest) if isinstance(oldest, int | float) else oldest}
