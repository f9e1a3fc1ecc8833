"""The metrics of a fleet: one table. Pure.

Names follow the Prometheus conventions: base units (seconds, USD), `_total` for counters. Ray puts `ray_` in front and
adds its own labels (`SessionName`, `NodeAddress`, `WorkerId`, …), so queries sum over what they do not ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EXPORTED_PREFIX = "ray_"
"""What Ray's endpoint puts in front of every name."""


class Kind(StrEnum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        tags: its labels.
        help: one sentence.
        buckets: upper bounds of a histogram's buckets, in the unit of its name.
    """

    name: str
    kind: Kind
    help: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The series that Ray's endpoint shows."""
        name = EXPORTED_PREFIX + self.name
        return tuple(name + end for end in ("_bucket", "_sum", "_count")) if self.kind is Kind.HISTOGRAM else (name,)


SHORT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONG_S = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
WAIT_S = (0.1, 0.5, 1, 5, 15, 30, 60, 300, 900, 3600, 14400)

C, G, H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

_TABLE = (
    Definition("fleet_tasks_total", C, "Tasks that entered a state.", ("role", "state")),
    Definition("fleet_tasks_in_state", G, "Tasks that are in a state now.", ("state",)),
    Definition("fleet_tasks_queued", G, "Tasks that wait for an agent.", ("priority",)),
    Definition("fleet_oldest_queued_seconds", G, "How long the oldest queued task has waited."),
    Definition("fleet_task_wait_seconds", H, "From queued to started, per run.", ("role",), WAIT_S),
    Definition("fleet_run_duration_seconds", H, "From a run's start to its end.", ("role", "state"), LONG_S),
    Definition("fleet_turn_duration_seconds", H, "One turn: the model's answer and its tools.", ("role",), LONG_S),
    Definition("fleet_run_failures_total", C, "Runs that ended other than well.", ("role", "reason")),
    Definition("fleet_agents", G, "Agents in a state now.", ("role", "state")),
    Definition("fleet_agent_restarts_total", C, "Agents that were started again.", ("role",)),
    Definition("fleet_agent_memory_bytes", G, "Resident memory of an agent's Claude Code processes.", ("role",)),
    Definition("fleet_tokens_total", C, "Tokens of ended runs.", ("role", "kind")),
    Definition("fleet_cost_usd_total", C, "Cost of ended runs in US dollars.", ("role",)),
    Definition("fleet_approvals_waiting", G, "Tool calls that wait for a person."),
    Definition("fleet_rate_limit_waits_total", C, "Tasks put off because the model service said so.", ("role",)),
    Definition("fleet_store_commit_seconds", G, "How long a commit of the store takes.", ("quantile",)),
    Definition("fleet_store_inbox", G, "Writes that wait in the store."),
    Definition("fleet_store_bytes", G, "Size of the store's file."),
    Definition("fleet_event_lag_seconds", H, "From an event to its place in the live feed.", (), SHORT_S),
    Definition("fleet_events_total", C, "Events of runs that were stored.", ("kind",)),
    Definition("fleet_orphans_killed_total", C, "Processes a run left behind that were ended.", ("role",)),
)

DEFINITIONS: dict[str, Definition] = {definition.name: definition for definition in _TABLE}
"""By name, as we set them."""

EXPORTED: frozenset[str] = frozenset(name for definition in _TABLE for name in definition.exported)
"""Every name that a query may use."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One number for a metric: added to a counter, put in place of a gauge, counted by a histogram."""

    name: str
    value: float
    tags: tuple[tuple[str, str], ...] = ()


def sample(name: str, value: float, **tags: str) -> Sample:
    """Return a sample; the tags must be those of the definition."""
    assert set(tags) == set(DEFINITIONS[name].tags), (name, tags)
    return Sample(name, float(value), tuple(tags.items()))
