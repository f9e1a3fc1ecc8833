"""What a task must be to be accepted. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fleet.errors import InvalidInput, PromptTooLarge, UnknownRole
from fleet.models import PRIORITY_MAX, PRIORITY_MIN, PROMPT_LIMIT_BYTES, Role, Task, TaskSpec


def check_priority(priority: int) -> None:
    """Raise InvalidInput for a priority out of range."""
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise InvalidInput(
            f"priority: expected {PRIORITY_MIN} to {PRIORITY_MAX}, higher goes first; got {priority}.", field="priority"
        )


def check_spec(spec: TaskSpec, roles: Mapping[str, Role], known: Mapping[str, Task]) -> None:
    """Raise what is wrong with a task.

    Args:
        spec: what is asked for.
        roles: the roles there are.
        known: the tasks it refers to, by id.

    Raises:
        UnknownRole, InvalidInput, PromptTooLarge.
    """
    if spec.role not in roles:
        raise UnknownRole(
            f"role: expected one of {', '.join(sorted(roles))}; got {spec.role!r}. New roles go into fleet.toml.",
            role=spec.role,
            known=sorted(roles),
            field="role",
        )
    if not spec.prompt.strip():
        raise InvalidInput("prompt: expected what the agent shall do; it is empty.", field="prompt")
    size = len(spec.prompt.encode("utf-8", "surrogatepass"))
    if size > PROMPT_LIMIT_BYTES:
        raise PromptTooLarge(
            f"prompt: expected at most {PROMPT_LIMIT_BYTES:,} bytes, got {size:,}. Put long texts into files of the "
            "workspace and name them in the prompt.",
            bytes=size,
            limit=PROMPT_LIMIT_BYTES,
            field="prompt",
        )
    check_priority(spec.priority)
    for field, ids in (("depends_on", spec.depends_on), ("continue_from", (spec.continue_from,))):
        for task_id in ids:
            if task_id is not None and task_id not in known:
                raise InvalidInput(f"{field}: expected the id of a task, but there is no {task_id}.", field=field)
    if spec.continue_from is not None:
        earlier = known[spec.continue_from]
        if not earlier.state.final:
            raise InvalidInput(
                f"continue_from: expected a task that has ended; {earlier.id} is {earlier.state.value}. "
                "Say it to its agent instead, or wait.",
                field="continue_from",
            )
        if earlier.session_id is None:
            raise InvalidInput(
                f"continue_from: {earlier.id} never began a conversation; submit a new task.", field="continue_from"
            )
