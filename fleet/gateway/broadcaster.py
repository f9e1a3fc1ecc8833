"""One follow loop over the store, fanned out to every subscriber of the gateway.

However many browsers and drivers watch, the store is asked once. A subscriber has a bounded queue; one that is too slow
loses its queue as a whole and is told how much (`Delivery.missed`), so that it can read the rest from the store: events
are durable and have global ids, so a reader that keeps the last id loses nothing.

The loop also keeps what the overview shows (agents, their activities, approvals that wait, counts), so that a page
opens without a question to the store.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fleet.contracts import Store
from fleet.errors import FleetError
from fleet.gateway.waiting import end, wait_event
from fleet.lifecycle import AgentState, TaskState
from fleet.models import Activity, AgentInfo, Approval, ApprovalState, Event, FeedItem, Result, Run, Task

log = logging.getLogger("fleet.gateway")

ALL = "all"
"""Topic of every change."""
ROWS = "rows"
"""Topic of every change that is no event and no activity."""
QUEUE_LIMIT = 2000
"""Items a subscriber may be behind: 20 s of 10 agents that write 10 events a second."""
KNOWN_TASKS = 100_000
"""Tasks whose last state is remembered (about 100 B each), so that a wait needs no question to the store."""
RECENT_TASKS = 500
"""Whole tasks kept for titles and for the list of the latest changes."""
COUNTS_EVERY_S = 0.5
RETRY_S = 0.5


def of_task(task_id: str) -> str:
    """Return the topic of one task: its row, runs, result, approvals and events."""
    return f"task:{task_id}"


def of_agent(agent_id: str) -> str:
    """Return the topic of one agent: its row, activity, runs, approvals and events."""
    return f"agent:{agent_id}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a subscriber gets at once.

    Attributes:
        items: changes in the order of the feed.
        missed: how many were dropped before them; -1 when nobody knows (the store was restarted). Read anew then.
        closed: the broadcaster stopped; nothing comes any more.
    """

    items: tuple[FeedItem, ...] = ()
    missed: int = 0
    closed: bool = False


class Subscription:
    """A bounded queue of changes; a context manager that unsubscribes."""

    def __init__(self, topics: frozenset[str], limit: int, forget: Callable[[Subscription], None]) -> None:
        self.topics = topics
        self._limit = limit
        self._forget = forget
        self._queue: deque[FeedItem] = deque()
        self._missed = 0
        self._closed = False
        self._wake = asyncio.Event()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribe; a waiting `next` returns."""
        self._closed = True
        self._wake.set()
        self._forget(self)

    async def next(self, timeout_s: float | None = None) -> Delivery:
        """Wait for changes and return all there are; an empty delivery when none came in time."""
        if not self._queue and not self._missed and not self._closed:
            await wait_event(self._wake, timeout_s)
        delivery = Delivery(tuple(self._queue), self._missed, self._closed)
        self._queue.clear()
        self._missed = 0
        if not self._closed:
            self._wake.clear()
        return delivery

    def offer(self, item: FeedItem) -> None:
        """Put a change in, dropping all that waits when the queue is full."""
        if len(self._queue) >= self._limit:
            if self._missed >= 0:
                self._missed += len(self._queue)
            self._queue.clear()
        self._queue.append(item)
        self._wake.set()

    def lose(self) -> None:
        """Say that an unknown number of changes went by."""
        self._queue.clear()
        self._missed = -1
        self._wake.set()


@dataclass
class Overview:
    """What everybody sees, kept current by the broadcaster; read it, never write it.

    Attributes:
        agents: the agents that are wanted or still alive, by id.
        activities: what each of them does now.
        approvals: those that wait for a person, by id.
        counts: the figures of `Store.counts`.
        tasks: the tasks that changed last (newest last), at most `RECENT_TASKS`.
        fresh: False while the store does not answer.
        version: grows with every change.
    """

    agents: dict[str, AgentInfo] = field(default_factory=dict)
    activities: dict[str, Activity] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    tasks: OrderedDict[str, Task] = field(default_factory=OrderedDict)
    fresh: bool = False
    version: int = 0


class Broadcaster:
    """Follows the store and tells the subscribers.

    Args:
        store: the store, or its proxy.
        wait_s: how long one question to the feed waits.
    """

    def __init__(self, store: Store, *, wait_s: float = 10.0) -> None:
        self.overview = Overview()
        self._store = store
        self._wait_s = wait_s
        self._topics: dict[str, set[Subscription]] = {}
        self._states: OrderedDict[str, TaskState] = OrderedDict()
        self._loop_task: asyncio.Task[None] | None = None
        self._counts_task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._counts_due = asyncio.Event()
        self._closed = False

    async def start(self) -> None:
        """Begin to follow; called again it does nothing."""
        if self._loop_task is None:
            self._closed = False
            self._loop_task = asyncio.create_task(self._follow(), name="broadcaster")
            self._counts_task = asyncio.create_task(self._count(), name="broadcaster-counts")

    async def stop(self) -> None:
        """End the loop and every subscription."""
        self._closed = True
        await end(self._loop_task, self._counts_task)
        self._loop_task = self._counts_task = None
        for subscription in self.subscriptions():
            subscription.close()

    @property
    def closed(self) -> bool:
        """Whether it was stopped."""
        return self._closed

    async def ready(self, timeout_s: float = 10.0) -> bool:
        """Wait until the overview was read once; False when it was not in time."""
        return await wait_event(self._ready, timeout_s)

    def subscribe(self, *topics: str, limit: int = QUEUE_LIMIT) -> Subscription:
        """Subscribe to topics: `ALL`, `ROWS`, `of_task(id)`, `of_agent(id)`."""
        subscription = Subscription(frozenset(topics), limit, self._unsubscribe)
        for topic in subscription.topics:
            self._topics.setdefault(topic, set()).add(subscription)
        if self._closed:
            subscription.close()
        return subscription

    def subscriptions(self) -> set[Subscription]:
        """Return all that are open."""
        return {subscription for group in self._topics.values() for subscription in group}

    def state_of(self, task_id: str) -> TaskState | None:
        """Return the last state of a task that went by, None when it is not remembered."""
        return self._states.get(task_id)

    def _unsubscribe(self, subscription: Subscription) -> None:
        for topic in subscription.topics:
            group = self._topics.get(topic)
            if group is not None:
                group.discard(subscription)
                if not group:
                    del self._topics[topic]

    async def _follow(self) -> None:
        position: int | None = None
        while not self._closed:
            try:
                if position is None:
                    position = await self._begin()
                items = await self._store.follow(position, timeout_s=self._wait_s)
                if any(_is_gap(item) for item in items) or (items and items[-1].position < position):
                    log.warning("feed lost position=%s", position)
                    position = None
                    continue
                for item in items:
                    self._take(item)
                    position = item.position
            except asyncio.CancelledError:
                raise
            except FleetError as error:
                self._lost(error)
                position = None
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("feed failed")
                self._lost(None)
                position = None
                await asyncio.sleep(RETRY_S)

    def _lost(self, error: FleetError | None) -> None:
        if self.overview.fresh:
            log.warning("feed away error=%s", error)
            self.overview.fresh = False
            self._changed()

    async def _begin(self) -> int:
        """Take the present position, then read the state: changes in between are applied twice, which is harmless."""
        first = await self._store.follow(None, timeout_s=1.0)
        position = first[-1].position if first else 0
        agents, activities, approvals, counts, running = await asyncio.gather(
            self._store.agents(),
            self._store.activities(),
            self._store.approvals(waiting=True),
            self._store.counts(),
            self._store.tasks(states=[TaskState.RUNNING.value], limit=RECENT_TASKS),
        )
        view = self.overview
        view.agents = {agent.id: agent for agent in agents}
        view.activities = {activity.agent_id: activity for activity in activities}
        view.approvals = {approval.id: approval for approval in approvals}
        view.counts = counts
        self._states.clear()
        for task in reversed(running):
            self._keep(task)
        view.fresh = True
        self._changed()
        self._ready.set()
        for subscription in self.subscriptions():
            subscription.lose()
        return position

    def _take(self, item: FeedItem) -> None:
        topics: Iterable[str]
        row = item.item
        view = self.overview
        match item.kind:
            case "event":
                event: Event = row
                self._publish(item, (of_task(event.task_id), of_agent(event.agent_id), ALL))
                return
            case "activity":
                activity: Activity = row
                view.activities[activity.agent_id] = activity
                topics = (of_agent(activity.agent_id), ALL)
            case "task":
                task: Task = row
                self._keep(task)
                self._counts_due.set()
                topics = (of_task(task.id), *([of_agent(task.agent_id)] if task.agent_id else []), ALL, ROWS)
            case "agent":
                agent: AgentInfo = row
                if agent.state is AgentState.STOPPED or (agent.state is AgentState.FAILED and not agent.wanted):
                    view.agents.pop(agent.id, None)
                    view.activities.pop(agent.id, None)
                else:
                    view.agents[agent.id] = agent
                topics = (of_agent(agent.id), ALL, ROWS)
            case "approval":
                approval: Approval = row
                if approval.state is ApprovalState.WAITING:
                    view.approvals[approval.id] = approval
                else:
                    view.approvals.pop(approval.id, None)
                topics = (of_task(approval.task_id), of_agent(approval.agent_id), ALL, ROWS)
            case "run":
                run: Run = row
                topics = (of_task(run.task_id), of_agent(run.agent_id), ALL, ROWS)
            case "result":
                result: Result = row
                topics = (of_task(result.task_id), ALL, ROWS)
            case _:
                topics = (ALL, ROWS)
        self._publish(item, topics)
        self._changed()

    def _keep(self, task: Task) -> None:
        self._states[task.id] = task.state
        self._states.move_to_end(task.id)
        while len(self._states) > KNOWN_TASKS:
            self._states.popitem(last=False)
        self.overview.tasks[task.id] = task
        self.overview.tasks.move_to_end(task.id)
        while len(self.overview.tasks) > RECENT_TASKS:
            self.overview.tasks.popitem(last=False)

    def _publish(self, item: FeedItem, topics: Iterable[str]) -> None:
        told: set[Subscription] = set()
        for topic in topics:
            for subscription in self._topics.get(topic, ()):
                if subscription not in told:
                    told.add(subscription)
                    subscription.offer(item)

    def _changed(self) -> None:
        self.overview.version += 1

    async def _count(self) -> None:
        """Read the figures anew after changes, at most every `COUNTS_EVERY_S`, and at midnight's turn within 30 s."""
        while True:
            await wait_event(self._counts_due, 30.0)
            self._counts_due.clear()
            began = time.monotonic()
            try:
                counts = await self._store.counts()
                if counts != self.overview.counts:
                    self.overview.counts = counts
                    self._changed()
            except FleetError:
                pass
            except Exception:
                log.exception("counts failed")
            await asyncio.sleep(max(0.0, COUNTS_EVERY_S - (time.monotonic() - began)))


def _is_gap(item: FeedItem) -> bool:
    return item.kind == "setting" and isinstance(item.item, dict) and bool(item.item.get("gap"))
