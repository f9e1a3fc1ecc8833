"""Turns the store's feed into samples of metrics. Pure: time arrives as an argument.

A row comes again whenever anything of it changed, so the meter remembers the last state of each and counts a change
once. Its memory is bounded; a row that was forgotten and comes again in a final state is counted again, which takes
`REMEMBERED` newer rows.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import Activity, AgentInfo, Approval, ApprovalState, Event, EventKind, FeedItem, Run, Task
from fleet.observability.definitions import Sample, sample
from fleet.reasons import Reason

REMEMBERED = 100_000
RATE_LIMITS = frozenset({Reason.RATE_LIMITED, Reason.USAGE_LIMIT})
ORPHANS_TYPE = "swept"
"""Type of the `state` event in which an agent says that its run left processes behind; `payload.processes` of them."""
MIB = 1024 * 1024

V = TypeVar("V")


class Meter:
    """The numbers of a fleet, from its changes.

    Args:
        remembered: how many tasks and runs are known at once.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._tasks: OrderedDict[str, tuple[TaskState, int]] = OrderedDict()
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self._turns: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._roles: OrderedDict[str, str] = OrderedDict()
        self._agents: dict[str, AgentInfo] = {}
        self._activities: dict[str, Activity] = {}
        self._waiting: set[str] = set()
        self._shown: dict[str, set[tuple[str, ...]]] = {}
        self._remembered = remembered

    def begin(
        self,
        agents: Iterable[AgentInfo] = (),
        approvals: Iterable[Approval] = (),
        tasks: Iterable[Task] = (),
        activities: Iterable[Activity] = (),
    ) -> None:
        """Take the present state without counting it: what was before is somebody else's."""
        self._agents = {agent.id: agent for agent in agents}
        self._activities = {activity.agent_id: activity for activity in activities}
        self._waiting = {approval.id for approval in approvals if approval.state is ApprovalState.WAITING}
        for task in tasks:
            self._tasks[task.id] = (task.state, task.number_of_runs)
            if task.run_id and task.state is TaskState.RUNNING:
                self._runs[task.run_id] = RunState.RUNNING
                self._roles[task.run_id] = task.role

    def take(self, item: FeedItem, now: float) -> list[Sample]:
        """Return what one change adds to counters and histograms."""
        match item.kind:
            case "task":
                return self._task(item.item)
            case "run":
                return self._run(item.item)
            case "event":
                return self._event(item.item, now)
            case "agent":
                return self._agent(item.item)
            case "activity":
                self._activities[item.item.agent_id] = item.item
            case "approval":
                approval: Approval = item.item
                if approval.state is ApprovalState.WAITING:
                    self._waiting.add(approval.id)
                else:
                    self._waiting.discard(approval.id)
            case _:
                pass
        return []

    def gauges(self, counts: Mapping[str, Any], info: Mapping[str, Any], now: float) -> list[Sample]:
        """Return all gauges; to be asked for every few seconds, as Ray drops a gauge that is not renewed.

        Args:
            counts: the answer of `Store.counts`.
            info: the answer of `Store.info`.
            now: seconds since the epoch.
        """
        states = dict.fromkeys((state.value for state in TaskState), 0) | dict(counts.get("states", {}))
        queued = {str(priority): n for priority, n in dict(counts.get("queued_by_priority", {})).items()}
        oldest = counts.get("oldest_queued_at")
        out = [sample("fleet_tasks_in_state", n, state=state) for state, n in states.items()]
        out += [
            sample("fleet_tasks_queued", queued.get(priority, 0), priority=priority)
            for (priority,) in self._all("fleet_tasks_queued", {(p,) for p in queued} or {("5",)})
        ]
        out.append(sample("fleet_oldest_queued_seconds", max(0.0, now - oldest) if oldest else 0.0))
        out.append(sample("fleet_approvals_waiting", len(self._waiting)))
        living = Counter((agent.role, agent.state.value) for agent in self._agents.values())
        out += [
            sample("fleet_agents", living.get((role, state), 0), role=role, state=state)
            for role, state in self._all("fleet_agents", set(living))
        ]
        memory: Counter[str] = Counter()
        for agent in self._agents.values():
            activity = self._activities.get(agent.id)
            memory[agent.role] += int(activity.rss_mb * MIB) if activity else 0
        out += [
            sample("fleet_agent_memory_bytes", memory.get(role, 0), role=role)
            for (role,) in self._all("fleet_agent_memory_bytes", {(role,) for role in memory})
        ]
        for quantile, key in (("0.5", "commit_p50_s"), ("0.99", "commit_p99_s")):
            if info.get(key) is not None:
                out.append(sample("fleet_store_commit_seconds", info[key], quantile=quantile))
        for name, key in (("fleet_store_inbox", "inbox"), ("fleet_store_bytes", "bytes")):
            if info.get(key) is not None:
                out.append(sample(name, info[key]))
        return out

    def _all(self, name: str, present: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the tags that are there now or were before: those that went away must be shown as 0."""
        shown = self._shown.setdefault(name, set())
        shown |= present
        return sorted(shown)

    def _task(self, task: Task) -> list[Sample]:
        before, runs = self._tasks.get(task.id, (None, 0))
        self._remember(self._tasks, task.id, (task.state, task.number_of_runs))
        out = []
        if task.state is not before:
            out.append(sample("fleet_tasks_total", 1, role=task.role, state=task.state.value))
            if task.state is TaskState.SCHEDULED and task.reason in RATE_LIMITS:
                out.append(sample("fleet_rate_limit_waits_total", 1, role=task.role))
        started = task.state is TaskState.RUNNING and (before is not task.state or task.number_of_runs > runs)
        if started and task.started_at is not None and task.queued_at is not None:
            wait = max(0.0, task.started_at - task.queued_at)
            out.append(sample("fleet_task_wait_seconds", wait, role=task.role))
        return out

    def _run(self, run: Run) -> list[Sample]:
        before = self._runs.get(run.id)
        self._remember(self._runs, run.id, run.state)
        self._remember(self._roles, run.id, run.role)
        if not run.state.final or run.state is before:
            return []
        self._turns.pop(run.id, None)
        out = []
        if run.finished_at is not None:
            seconds = max(0.0, run.finished_at - run.started_at)
            out.append(sample("fleet_run_duration_seconds", seconds, role=run.role, state=run.state.value))
        if run.state not in (RunState.SUCCEEDED, RunState.PARKED):
            reason = run.reason.value if run.reason else "unknown"
            out.append(sample("fleet_run_failures_total", 1, role=run.role, reason=reason))
        if run.cost_usd > 0:
            out.append(sample("fleet_cost_usd_total", run.cost_usd, role=run.role))
        for kind, tokens in (
            ("input", run.usage.input_tokens),
            ("output", run.usage.output_tokens),
            ("cache_read", run.usage.cache_read_tokens),
            ("cache_write", run.usage.cache_write_tokens),
        ):
            if tokens > 0:
                out.append(sample("fleet_tokens_total", tokens, role=run.role, kind=kind))
        return out

    def _event(self, event: Event, now: float) -> list[Sample]:
        out = [
            sample("fleet_event_lag_seconds", max(0.0, now - event.at)),
            sample("fleet_events_total", 1, kind=event.kind.value),
        ]
        role = self._roles.get(event.run_id) or event.agent_id.rpartition("-")[0] or "unknown"
        if event.kind is EventKind.FRAME:
            out += self._turn(event, role)
        elif event.kind is EventKind.STATE and event.type == ORPHANS_TYPE:
            out.append(sample("fleet_orphans_killed_total", int(event.payload.get("processes", 0)), role=role))
        return out

    def _turn(self, event: Event, role: str) -> list[Sample]:
        """A turn goes from the prompt, or the tools' last answers, to the tools' next answers or the result."""
        since, answered = self._turns.get(event.run_id, (event.at, False))
        if event.type == "assistant":
            self._remember(self._turns, event.run_id, (since, True))
        elif event.type in ("user", "result"):
            # Tools called together answer in several frames: the first ends the turn, the last begins the next.
            self._remember(self._turns, event.run_id, (event.at, False))
            if answered:
                return [sample("fleet_turn_duration_seconds", max(0.0, event.at - since), role=role)]
        elif event.run_id not in self._turns:
            self._remember(self._turns, event.run_id, (event.at, False))
        return []

    def _agent(self, agent: AgentInfo) -> list[Sample]:
        before = self._agents.get(agent.id)
        if agent.state is AgentState.STOPPED:
            self._agents.pop(agent.id, None)
            self._activities.pop(agent.id, None)
        else:
            self._agents[agent.id] = agent
        more = agent.restarts - before.restarts if before else 0
        return [sample("fleet_agent_restarts_total", more, role=agent.role)] if more > 0 else []

    def _remember(self, where: OrderedDict[str, V], key: str, value: V) -> None:
        where[key] = value
        where.move_to_end(key)
        if len(where) > self._remembered:
            where.popitem(last=False)
