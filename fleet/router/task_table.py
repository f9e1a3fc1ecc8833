"""The tasks that have not ended, by id: those that wait are packed, so that a million of them fit into memory. Pure.

A `Task` takes 1.9 KB. One that waits is kept as a tuple of its fields that differ
from their defaults (some 300 bytes with its prompt) and becomes a `Task` again whenever somebody looks at it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

from fleet.lifecycle import TaskState
from fleet.models import Limits, Task, Usage, Workspace

_REQUIRED = tuple(name for name, field in Task.model_fields.items() if field.is_required() and name != "id")
_DEFAULTS: dict[str, Any] = {
    name: field.get_default(call_default_factory=True)
    for name, field in Task.model_fields.items()
    if not field.is_required()
}
_MODELS = tuple((name, value.__dict__) for name, value in _DEFAULTS.items() if isinstance(value, Limits | Usage))
_PLAIN = tuple((name, value) for name, value in _DEFAULTS.items() if not isinstance(value, Limits | Usage))
_EMPTY = {name: _DEFAULTS.get(name) for name in Task.model_fields}
"""All fields in their order."""

Packed = tuple[Any, ...]
"""The names of the fields kept, then their values."""


class TaskTable(MutableMapping[str, Task]):
    """A dictionary of tasks."""

    def __init__(self) -> None:
        self._rows: dict[str, Task | Packed] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._workspaces: dict[Workspace, Workspace] = {}

    def __getitem__(self, task_id: str) -> Task:
        row = self._rows[task_id]
        return row if isinstance(row, Task) else _unpack(task_id, row)

    def __setitem__(self, task_id: str, task: Task) -> None:
        self._rows[task_id] = task if task.state is TaskState.RUNNING else self._pack(task)

    def __delitem__(self, task_id: str) -> None:
        del self._rows[task_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._rows

    def _pack(self, task: Task) -> Packed:
        fields = task.__dict__
        differ = [name for name, default in _PLAIN if (value := fields[name]) is not default and value != default]
        # Equality of models costs more than all the rest.
        differ += [name for name, default in _MODELS if fields[name].__dict__ != default]
        key = (*_REQUIRED, *differ)
        names = self._names.setdefault(key, key)
        return (names, *[self._slim(name, fields[name]) for name in names])

    def _slim(self, name: str, value: Any) -> Any:
        if name == "workspace" and value is not None:
            # Thousands of tasks of one repository share one value.
            if len(self._workspaces) > 10_000:
                self._workspaces.clear()
            return self._workspaces.setdefault(value, value)
        return sys.intern(value) if name in ("role", "why") and type(value) is str else value


def _unpack(task_id: str, row: Packed) -> Task:
    # As `model_construct`, which takes three times as long; every value was checked when the task was made.
    task = Task.__new__(Task)
    fields: dict[str, Any] = {**_EMPTY, "id": task_id, "labels": {}}
    fields.update(zip(row[0], row[1:], strict=True))
    object.__setattr__(task, "__dict__", fields)
    object.__setattr__(task, "__pydantic_fields_set__", set(_EMPTY))
    object.__setattr__(task, "__pydantic_extra__", None)
    object.__setattr__(task, "__pydantic_private__", None)
    return task
