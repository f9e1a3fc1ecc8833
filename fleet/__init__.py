"""fleet: many Claude Code agents as one durable worker cluster on Ray.

```python
from fleet import Fleet

with Fleet.connect() as fleet:
    task = fleet.submit("code_reviewer", "Review the last commit.", workspace=".")
    print(task.result.text)
```

The names below are the public API; they are imported when they are first used, so that `import fleet` stays light in
the processes of the cluster, which need no HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet.client import AsyncFleet, AsyncTaskHandle, Fleet, Rows, TaskHandle, as_completed
    from fleet.errors import Busy, FleetError, InvalidInput, NotFound, TaskFailed, Timeout, Unavailable
    from fleet.lifecycle import AgentState, TaskState
    from fleet.models import AgentInfo, Approval, Event, Limits, Result, Run, Task, TaskSpec, Workspace
    from fleet.reasons import Reason

__all__ = [
    "AgentInfo",
    "AgentState",
    "Approval",
    "AsyncFleet",
    "AsyncTaskHandle",
    "Busy",
    "Event",
    "Fleet",
    "FleetError",
    "InvalidInput",
    "Limits",
    "NotFound",
    "Reason",
    "Result",
    "Rows",
    "Run",
    "Task",
    "TaskFailed",
    "TaskHandle",
    "TaskSpec",
    "TaskState",
    "Timeout",
    "Unavailable",
    "Workspace",
    "as_completed",
]

_HOME = {
    "fleet.client": ("AsyncFleet", "AsyncTaskHandle", "Fleet", "Rows", "TaskHandle", "as_completed"),
    "fleet.errors": ("Busy", "FleetError", "InvalidInput", "NotFound", "TaskFailed", "Timeout", "Unavailable"),
    "fleet.lifecycle": ("AgentState", "TaskState"),
    "fleet.models": ("AgentInfo", "Approval", "Event", "Limits", "Result", "Run", "Task", "TaskSpec", "Workspace"),
    "fleet.reasons": ("Reason",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'fleet' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
