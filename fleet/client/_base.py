"""What the sync and the async client share: where the fleet is, when to try again, how streams are read. Pure.

Both clients are thin shells: they send a `Call` with httpx and hand the answer to its `parse`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from fleet.errors import FleetError, NotFound, TaskFailed, Unauthorized, Unavailable, from_dict
from fleet.lifecycle import TaskState
from fleet.models import Event, Task, new_id
from fleet.reasons import RULES

T = TypeVar("T")

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
CONNECT_S = 5.0
ANSWER_S = 70.0
"""Parts answer within 60 s or are reported as unavailable."""
STREAM_SILENCE_S = 60.0
"""A stream says every 15 s that it lives; one that does not is taken up again."""
WAIT_S = 60.0
"""How long one question of a wait lasts."""
RETRY_FOR_S = 60.0
"""The longest outage met when one part was killed is 28 s (Serve's proxy)."""
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
CONNECT_RETRY_S = 3.0
PARTS_AWAY = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Target:
    """Where the fleet is.

    Attributes:
        url: of its gateway, without a slash at the end.
        token: its access token.
        source: where both were found, for messages.
    """

    url: str
    token: str = field(repr=False)
    source: str = "arguments"


def find_target(url: str | None = None, token: str | None = None, environ: Mapping[str, str] | None = None) -> Target:
    """Find a running fleet: arguments, then `FLEET_URL` and `FLEET_TOKEN`, then the record in `FLEET_HOME`.

    Code of a Ray job finds the fleet it runs in the same way: the cluster's processes carry `FLEET_HOME`.

    Raises:
        NotFound: no fleet was named and none is recorded.
        Unauthorized: a URL but no token.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get("FLEET_HOME") or "~/.fleet").expanduser()
    source = "arguments" if url else "FLEET_URL"
    record: dict[str, Any] = {}
    url = url or env.get("FLEET_URL")
    if not url:
        source = str(home / "run.json")
        record = _record(home / "run.json")
        url = record.get("url")
    if not url:
        raise NotFound(
            f"Expected a running fleet, but FLEET_URL is not set and {home / 'run.json'} names none. Start one with "
            f"`fleet up` (or `fleet up --rehearsal`), or set FLEET_URL and FLEET_TOKEN.",
            what="fleet",
            id=str(home),
        )
    token = token or env.get("FLEET_TOKEN") or _token(home / "token")
    if not token:
        raise Unauthorized(
            f"Expected the access token of {url}, but FLEET_TOKEN is not set and {home / 'token'} cannot be read. "
            f"`fleet url` shows it on the machine where the fleet runs."
        )
    return Target(str(url).rstrip("/"), token, source)


def _record(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _token(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how to read its answer.

    Attributes:
        safe: doing it twice is the same as once, so it is sent again after any interruption; one that is not is sent
            again only when it cannot have arrived.
        timeout_s: how long its answer may take.
        accept: the answer's media type; other than JSON, `parse` gets the bytes.
        also: statuses beside those of success that `parse` reads.
    """

    method: str
    path: str
    parse: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    safe: bool = True
    timeout_s: float = ANSWER_S
    accept: str = JSON
    also: frozenset[int] = frozenset()

    def query(self) -> dict[str, Any]:
        """Return the parameters that are set, as URLs have them."""
        return {
            key: str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value
            for key, value in self.params.items()
            if value is not None
        }

    def request(self) -> dict[str, Any]:
        """Return the arguments of httpx's `request`."""
        headers = {"Accept": self.accept}
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "params": self.query(),
            "headers": headers,
        }
        if self.body is not None:
            headers["Content-Type"] = JSON
            arguments["content"] = json.dumps(self.body).encode()
        return {**arguments, "timeout": timeout(self.timeout_s)}


def timeout(read_s: float) -> tuple[float, float, float, float]:
    """Return a timeout as httpx takes it: connect, read, write, pool, in seconds."""
    return (CONNECT_S, read_s, read_s, read_s)


def is_loopback(url: str) -> bool:
    """Whether a URL is this machine's: a proxy of the environment must not be asked for it."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def read_answer(call: Call[T], status: int, content: bytes) -> T:
    """Return what the call's answer says, or raise its error."""
    if status >= 400 and status not in call.also:
        raise read_error(status, content)
    if call.accept == JSON:
        return call.parse(json.loads(content) if content else None)
    return call.parse(content)


def read_error(status: int, content: bytes) -> FleetError:
    """Rebuild the error of an answer; one that is not ours becomes a plain one with its status."""
    try:
        data = json.loads(content)
    except ValueError:
        data = None
    if isinstance(data, dict) and "error" in data and "message" in data:
        return from_dict(data)
    text = content[:200].decode("utf-8", "replace")
    if status in PARTS_AWAY:
        return Unavailable(f"The fleet does not answer now (status {status}: {text}). Try again.", part="gateway")
    return FleetError(f"Expected an answer of a fleet, but got status {status}: {text}", status=status)


class Patience:
    """Whether and when a call is sent again: exponential delays with jitter, within a bound of time.

    Args:
        retry_for_s: how long to go on; 0 never sends again.
        chance: a number from 0 to 1, for tests.
    """

    def __init__(self, retry_for_s: float = RETRY_FOR_S, chance: Callable[[], float] = random.random) -> None:
        self._left_s = retry_for_s
        self._delay_s = FIRST_DELAY_S
        self._chance = chance

    def after_answer(
        self, safe: bool, status: int, retry_after: str | None, also: frozenset[int] = frozenset()
    ) -> float | None:
        """Return the delay before the call is sent again, None when the answer stands.

        429 means that nothing was done; after 503 and its like only safe calls are repeated.
        """
        if status not in PARTS_AWAY or status in also or not (safe or status == 429):
            return None
        return self._next(_seconds(retry_after))

    def after_failure(self, safe: bool, arrived: bool) -> float | None:
        """Return the delay after a connection that failed; `arrived` says that the call may have been received."""
        return None if arrived and not safe else self._next(None)

    def _next(self, wanted_s: float | None) -> float | None:
        delay = wanted_s if wanted_s is not None else self._delay_s * (0.5 + self._chance())
        self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)
        if delay > self._left_s:
            return None
        # Counted without the time of the calls: a slow refusal must not use up the patience.
        self._left_s -= max(delay, 0.05)
        return delay


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None


def away(target: Target, error: BaseException) -> Unavailable:
    """Return the error of a fleet that cannot be reached."""
    return Unavailable(
        f"Expected a fleet at {target.url} (from {target.source}), but it does not answer "
        f"({str(error) or type(error).__name__}). Is it running? `fleet status` says, `fleet up` starts it.",
        part="gateway",
        url=target.url,
    )


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream."""

    event: str
    data: Any
    id: int | None


class StreamReader:
    """Turns the bytes of Server-Sent Events into messages; keeps the last id to resume with."""

    def __init__(self, last_id: int = 0) -> None:
        self.last_id = last_id
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._id: int | None = None

    def restart(self) -> None:
        """Forget a half-read message: the connection was cut."""
        self._rest, self._event, self._data, self._id = b"", "", [], None

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Take bytes and yield the messages they complete."""
        # Split at \n alone: str.splitlines would also cut at U+2028 inside a text.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.decode("utf-8", "replace").removesuffix("\r")
            if not line:
                if self._data:
                    if self._id is not None:
                        self.last_id = self._id
                    yield Message(self._event or "message", json.loads("\n".join(self._data)), self._id)
                self._event, self._data, self._id = "", [], None
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                self._event = value
            elif name == "data":
                self._data.append(value)
            elif name == "id" and value.isdigit():
                self._id = int(value)


def event_of(message: Message) -> Event:
    """Return the event of a message."""
    return Event.model_validate(message.data)


def new_key() -> str:
    """Return an idempotency key of our own, so that a submit can be sent again without a second task."""
    return new_id("k")


def failure(task: Task) -> TaskFailed | None:
    """Return the error of a final task that did not succeed."""
    if task.state is TaskState.SUCCEEDED:
        return None
    rule = RULES.get(task.reason) if task.reason is not None else None
    remedy = rule.remedy if rule else f"Look at it with `fleet task {task.id}`."
    why = task.detail or (rule.sentence if rule else "")
    return TaskFailed(
        f"Task {task.id} {task.state.value}: {why or 'no reason given'} {remedy}",
        task=task.id,
        state=task.state.value,
        reason=task.reason.value if task.reason is not None else None,
        detail=task.detail,
        remedy=remedy,
    )
