"""The pump between the store's feed and a recorder of metrics, over the store's twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from fleet.errors import Unavailable
from fleet.lifecycle import TaskState
from fleet.models import Batch, FeedItem, Task
from fleet.observability.definitions import Sample
from fleet.observability.files import lay_out
from fleet.observability.pump import MetricsPump
from fleet.store.memory import MemoryStore


class Recorded:
    """A recorder that keeps what it is given, and wakes who waits for it."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._more = asyncio.Event()

    def record(self, samples: Iterable[Sample]) -> None:
        self.samples += samples
        self._more.set()

    async def until(self, wanted: Callable[[list[Sample]], bool]) -> None:
        async with asyncio.timeout(30):
            while not wanted(self.samples):
                self._more.clear()
                await self._more.wait()

    def entered(self) -> list[str]:
        return [dict(sample.tags)["state"] for sample in self.samples if sample.name == "fleet_tasks_total"]


@asynccontextmanager
async def running(pump: MetricsPump) -> AsyncIterator[None]:
    task = asyncio.create_task(pump.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def task(id: str, state: TaskState) -> Task:
    return Task(id=id, role="qa", prompt="p", state=state, created_at=1.0, queued_at=1.0, updated_at=1.0)


async def commit(store: MemoryStore, *tasks: Task) -> None:
    await store.commit(store.epoch, Batch(tasks=tasks))


def gauges_there(samples: list[Sample]) -> bool:
    return any(sample.name == "fleet_tasks_in_state" for sample in samples)


async def test_changes_of_the_store_are_counted_from_the_start_on() -> None:
    store, recorded = MemoryStore(), Recorded()
    await store.open_epoch("test")
    await commit(store, task("t-old", TaskState.CANCELLED), task("t-open", TaskState.QUEUED))
    async with running(MetricsPump(store, recorded)):
        n = 0
        while not recorded.entered():
            n += 1
            # The row of a task that was there before comes again, and a new one.
            await commit(store, task("t-open", TaskState.QUEUED), task(f"t-{n}", TaskState.RUNNING))
            await asyncio.sleep(0.01)
    assert set(recorded.entered()) == {"running"}


async def test_a_store_that_is_away_is_waited_for() -> None:
    class Away(MemoryStore):
        away = 1

        async def follow(self, *args: Any, **kwargs: Any) -> list[FeedItem]:
            if self.away:
                self.away -= 1
                raise Unavailable("The store is restarted.")
            return await super().follow(*args, **kwargs)

    store, recorded = Away(), Recorded()
    await store.open_epoch("test")
    async with running(MetricsPump(store, recorded, retry_s=0.01)):
        await recorded.until(gauges_there)
        n = 0
        while not recorded.entered():
            n += 1
            await commit(store, task(f"t-{n}", TaskState.QUEUED))
            await asyncio.sleep(0.01)
    assert set(recorded.entered()) == {"queued"}


async def test_it_can_be_fed_by_whoever_follows_anyway() -> None:
    store, recorded = MemoryStore(), Recorded()
    await store.open_epoch("test")
    given: asyncio.Queue[Sequence[FeedItem] | None] = asyncio.Queue()
    async with running(MetricsPump(store, recorded, changes=given.get)):
        given.put_nowait([FeedItem(position=1, kind="task", item=task("t-1", TaskState.QUEUED))])
        given.put_nowait(None)  # some went by: the state is read anew
        given.put_nowait([FeedItem(position=9, kind="task", item=task("t-2", TaskState.CANCELLED))])
        await recorded.until(lambda samples: len(recorded.entered()) == 2)
    assert recorded.entered() == ["queued", "cancelled"]


def test_the_files_of_prometheus_and_grafana_are_laid_out(tmp_path: Path) -> None:
    environ = lay_out(tmp_path, tmp_path / "ray")
    config = yaml.safe_load((tmp_path / "metrics" / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yaml"]
    (sd,) = config["scrape_configs"][0]["file_sd_configs"]
    assert sd["files"] == [str(tmp_path / "ray" / "prom_metrics_service_discovery.json")]
    (grafana,) = environ.values()
    assert (Path(grafana) / "fleet.json").exists()
    assert (tmp_path / "metrics" / "prometheus" / "alerts.yaml").exists()
