"""What a script may do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pace:
    """How an answer comes.

    Attributes:
        delay_s: how long the model is silent first.
        thinking_words: how many words of thinking come before the text.
        pieces: how many pieces of text are streamed before the text, each its own event.
        pieces_per_s: how fast; 0 is as fast as it goes.
    """

    delay_s: float = 0.0
    thinking_words: int = 0
    pieces: int = 0
    pieces_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Say:
    """End the turn with a text."""

    text: str
    pace: Pace = Pace()


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
    pace: Pace = Pace()


Step = Say | Use


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that is an error or a broken stream.

    Attributes:
        what: one of `server.FAULTS`.
        retry_after_s: what the header `retry-after` says.
        seconds: how long a stalled stream is silent; None takes the server's own time.
    """

    what: str
    retry_after_s: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Directive:
    """One line of a prompt that says what to do; see `directives`."""

    verb: str
    argument: str
    body: str = ""
    must: bool = False
