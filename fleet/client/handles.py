"""What the handles of both clients have in common: a task as it was seen last. Pure."""

from __future__ import annotations

from fleet.lifecycle import TaskState
from fleet.models import Task
from fleet.reasons import Reason


class HandleBase:
    """A task as it was seen last; two handles of one task are equal."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @property
    def task(self) -> Task:
        """The task as it was seen last."""
        return self._task

    @property
    def id(self) -> str:
        """The task's id."""
        return self._task.id

    @property
    def role(self) -> str:
        """The role that does it."""
        return self._task.role

    @property
    def prompt(self) -> str:
        """What to do."""
        return self._task.prompt

    @property
    def state(self) -> TaskState:
        """Its state as it was seen last; `refresh` looks again."""
        return self._task.state

    @property
    def reason(self) -> Reason | None:
        """Why it did not succeed."""
        return self._task.reason

    @property
    def done(self) -> bool:
        """Whether it was final when it was seen last."""
        return self._task.state.final

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HandleBase) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        why = f", {self._task.reason.value}" if self._task.reason is not None else ""
        return f"<{type(self).__name__} {self.id} {self.role} {self.state.value}{why}>"
