"""Between models and rows: one `Table` per model, with its columns in the order of the schema. Pure."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from operator import attrgetter
from typing import Any, TypeVar, get_args

import pydantic_core
from pydantic import BaseModel, TypeAdapter

from fleet.models import (
    AgentInfo,
    Approval,
    Event,
    Refusal,
    Result,
    RoleState,
    Run,
    Task,
    Transition,
    Usage,
    built,
)

M = TypeVar("M", bound=BaseModel)

EPOCH = datetime(1970, 1, 1)
USAGE = tuple(Usage.model_fields)
USAGE_SET = set(USAGE)
NO_USAGE = Usage()


def stamp(seconds: float | None) -> datetime | None:
    """Return seconds since the epoch as the naive UTC datetime that a TIMESTAMP column takes."""
    return None if seconds is None else EPOCH + timedelta(seconds=seconds)


def seconds_of(value: datetime | None) -> float | None:
    """Return a TIMESTAMP as seconds since the epoch."""
    return None if value is None else (value - EPOCH).total_seconds()


def clean(text: str) -> str:
    """Return text that DuckDB takes: lone surrogates, which no UTF-8 has, become question marks."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def to_json(value: Any) -> str:
    """Return JSON that DuckDB takes: no NaN, no lone surrogates."""
    try:
        return pydantic_core.to_json(value, inf_nan_mode="null", serialize_unknown=True).decode()
    except ValueError:  # A lone surrogate, which no UTF-8 has, or a cycle.
        return clean(json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":")))


def _json_or_none(value: Any) -> str | None:
    if value is None:
        return None
    return clean(value.model_dump_json()) if isinstance(value, BaseModel) else to_json(value)


def _name(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True)
class Table:
    """How a model is written and read.

    Attributes:
        name: the table.
        model: the model.
        columns: the table's columns in order, without those the store adds itself.
        key: the column by which a new row replaces an old one; None for tables that only grow.
    """

    name: str
    model: type[BaseModel]
    columns: tuple[str, ...]
    key: str | None
    getter: Callable[[Any], tuple[Any, ...]]
    encoders: tuple[tuple[int, Callable[[Any], Any]], ...]
    """Fields that are not written as they are, by their place in the model."""
    readers: tuple[tuple[str, int, Callable[[Any], Any] | None], ...]
    """Of every field but `usage`: its name, its place in a row, and what makes its value of a cell that is not NULL."""
    fields: set[str]
    usage_at: int | None

    @property
    def selected(self) -> str:
        """The columns as a SELECT names them."""
        return ", ".join(self.columns)

    def row(self, item: BaseModel) -> tuple[Any, ...]:
        """Return the model's row."""
        values = list(self.getter(item))
        for index, encode in self.encoders:
            values[index] = encode(values[index])
        for index, value in enumerate(values):
            if type(value) is str and not value.isascii():
                values[index] = clean(value)
        if (at := self.usage_at) is not None:
            used = values[at]
            values[at : at + 1] = (
                used.input_tokens,
                used.output_tokens,
                used.cache_read_tokens,
                used.cache_write_tokens,
            )
        return tuple(values)

    def read(self, row: Sequence[Any]) -> Any:
        """Return the model of a row. The row is our own, so nothing is checked: that took 10 of 12 µs."""
        values: dict[str, Any] = {}
        for field, index, decode in self.readers:
            value = row[index]
            values[field] = value if decode is None or value is None else decode(value)
        if (at := self.usage_at) is not None:
            used = tuple(row[at : at + 4])
            usage = NO_USAGE if used == (0, 0, 0, 0) else built(Usage, dict(zip(USAGE, used, strict=True)), USAGE_SET)
            values["usage"] = usage
        return built(self.model, values, self.fields)


def _json_reader(annotation: Any) -> Callable[[str], Any]:
    """Return what reads a field's JSON. Values that nobody can change are shared: most are the default."""
    if not re.search(r"dict|Any", str(annotation)):
        return functools.lru_cache(1024)(TypeAdapter(annotation).validate_json)
    return TypeAdapter(annotation).validate_json


def _enum_reader(annotation: Any) -> Callable[[str], Any] | None:
    """Return what reads a field whose type is an enum, or an enum or None; None for any other."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Enum):
            return {member.value: member for member in kind}.__getitem__
    return None


def _table(
    name: str, model: type[BaseModel], key: str | None, json: str = "", rename: dict[str, str] | None = None
) -> Table:
    """Make a table from a model's fields: `json` names those that are JSON; usage becomes four columns."""
    names = {} if rename is None else rename
    columns: list[str] = []
    readers: list[tuple[str, int, Callable[[Any], Any] | None]] = []
    encoders: list[tuple[int, Callable[[Any], Any]]] = []
    usage_at: int | None = None
    for place, (field, info) in enumerate(model.model_fields.items()):
        if field == "usage":
            usage_at = len(columns)
            columns.extend(USAGE)
            continue
        decode: Callable[[Any], Any] | None = None
        if field in json.split():
            encoders.append((place, _json_or_none))
            decode = _json_reader(info.annotation)
        elif field == "at" or field.endswith(("_at", "not_before")):
            encoders.append((place, stamp))
            decode = seconds_of
        elif field in ("state", "reason"):
            encoders.append((place, _name))
            decode = _enum_reader(info.annotation)
        readers.append((field, len(columns), decode))
        columns.append(names.get(field, field))
    return Table(
        name,
        model,
        tuple(columns),
        key,
        attrgetter(*model.model_fields),
        tuple(encoders),
        tuple(readers),
        set(model.model_fields),
        usage_at,
    )


TASK = _table("task", Task, "id", json="workspace limits depends_on output_schema labels")
RUN = _table("run", Run, "id")
AGENT = _table("agent", AgentInfo, "id")
RESULT = _table("result", Result, "task_id", json="structured files_changed denials")
APPROVAL = _table("approval", Approval, "id", json="input changed_input")
ROLE_STATE = _table("role_state", RoleState, "role", json="rules")
TRANSITION = _table("transition", Transition, None, rename={"at": "time", "id": "subject"})
REFUSAL = _table("refusal", Refusal, None, rename={"at": "time"})

EVENT_COLUMNS = "id, run_id, task_id, agent_id, seq, time, kind, type, payload"


def read_event(row: Sequence[Any]) -> Event:
    """Return the event of a row of EVENT_COLUMNS."""
    return Event.model_validate(
        {
            "id": row[0],
            "run_id": row[1],
            "task_id": row[2],
            "agent_id": row[3],
            "seq": row[4],
            "at": seconds_of(row[5]),
            "kind": row[6],
            "type": row[7],
            "payload": json.loads(row[8]),
        }
    )
