"""What a script may do next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Say:
    """End the turn with a text."""

    text: str
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """Call a tool.

    Attributes:
        step: the script's own number of the step.
        kind: a letter for a check beside the step.
        text: what is said before the call.
    """

    step: int
    tool: str
    input: dict[str, Any]
    text: str = ""
    kind: str = ""
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Answer with an error or a broken stream.

    Attributes:
        what: `429`, `500`, `529`, `401`, `400`, `cut`, `stall`, `malformed`.
    """

    what: str
    retry_after_s: float | None = None


Step = Say | Use | Fault


@dataclass(frozen=True, slots=True)
class Directive:
    """One line of a prompt that says what to do; see `directives`."""

    verb: str
    argument: str
    body: str = ""
    must: bool = False
    options: dict[str, str] = field(default_factory=dict)
