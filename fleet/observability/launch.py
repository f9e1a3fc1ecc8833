"""The side of observability that knows Ray: its metrics and its log folder."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util import metrics

from fleet.contracts import Store
from fleet.models import FeedItem
from fleet.observability import logs, otel
from fleet.observability.definitions import DEFINITIONS, Kind, Sample
from fleet.observability.pump import MetricsPump

log = logging.getLogger("fleet.observability")
T = TypeVar("T")


def configure_logs(part: str, level: str) -> None:
    """Give this Ray worker's log lines their format, on stderr and in Ray's log folder as `fleet-PART.log`."""
    logs.configure(part, level, log_folder())


def logged(cls: type[T], part: str, level: str) -> type[T]:
    """Return a class as this one whose instance first gives its process's log lines their format: for `ray.remote`.

    Args:
        cls: an actor's plain class.
        part: see `configure_logs`.
        level: DEBUG, INFO, WARNING or ERROR.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        configure_logs(part, level)
        cls.__init__(self, *args, **kwargs)

    # Under its own name, which is what the Ray dashboard shows.
    return type(cls.__name__, (cls,), {"__init__": __init__, "__doc__": cls.__doc__, "__module__": cls.__module__})


def log_folder() -> Path | None:
    """Return this node's log folder of the Ray session, None outside of Ray."""
    if not ray.is_initialized():
        return None
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path()) if node is not None else None


class RayRecorder:
    """Records samples through `ray.util.metrics`; they come out of the metrics port of this process's node."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        for definition in DEFINITIONS.values():
            if definition.kind is Kind.HISTOGRAM:
                metric = metrics.Histogram(
                    definition.name,
                    description=definition.help,
                    boundaries=list(definition.buckets),
                    tag_keys=definition.tags,
                )
            else:
                cls = metrics.Counter if definition.kind is Kind.COUNTER else metrics.Gauge
                metric = cls(definition.name, description=definition.help, tag_keys=definition.tags)
            self._metrics[definition.name] = metric

    def record(self, samples: Iterable[Sample]) -> None:
        """Take samples. Those of one counter are added up first: a busy fleet brings a thousand events at once."""
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for one in samples:
            match DEFINITIONS[one.name].kind:
                case Kind.COUNTER:
                    sums[one.name, one.tags] = sums.get((one.name, one.tags), 0.0) + one.value
                case Kind.GAUGE:
                    self._metrics[one.name].set(one.value, dict(one.tags))
                case Kind.HISTOGRAM:
                    self._metrics[one.name].observe(one.value, dict(one.tags))
        for (name, tags), value in sums.items():
            if value > 0:
                self._metrics[name].inc(value, dict(tags))


def start_metrics(
    store: Store, changes: Callable[[], Awaitable[Sequence[FeedItem] | None]] | None = None
) -> asyncio.Task[None]:
    """Start the fleet's metrics, and its traces where `OTEL_*` asks for them, in this process's event loop.

    Args:
        store: the store's proxy.
        changes: see `MetricsPump`.

    Returns:
        The task; cancel it to end them.
    """
    traces = otel.watcher(os.environ)
    pump = MetricsPump(store, RayRecorder(), changes=changes, watchers=[traces] if traces else [])
    return asyncio.create_task(pump.run(), name="metrics")
