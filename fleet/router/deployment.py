"""The router's shell: messages in, commits and calls out. The class is plain; `fleet.cluster.app` deploys it.

One loop, one core. Whatever changes the core puts its effects into the commit pipe, which commits them in order, many
at once, and only then does the actions. A store that is away is waited for; a newer router ends this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from fleet.config import FleetConfig
from fleet.contracts import AGENT_PREFIX, NAMESPACE, Agent, Store
from fleet.errors import AgentGone, Busy, Conflict, FleetError, NotFound, StaleEpoch, StorageFull, Unavailable
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import (
    AgentInfo,
    AgentReport,
    Approval,
    Batch,
    NodeInfo,
    Outcome,
    Role,
    RoleState,
    RouterState,
    Task,
    TaskSpec,
    Transition,
)
from fleet.reasons import Reason
from fleet.router.core import PRESENT, RouterCore
from fleet.router.effects import (
    Acknowledge,
    Action,
    CancelRun,
    DeliverDecision,
    Dispatch,
    Effects,
    LaunchAgent,
    RequestNodes,
    StopAgent,
)
from fleet.router.retry import LEASE_MARGIN_S

log = logging.getLogger("fleet.router")

WATCH_S = 1.0
NODES_S = 2.0
SILENT_S = 4.0
"""An agent that has not beaten for so long is asked whether it is there."""
HELLO_TIMEOUT_S = 15.0
START_TIMEOUT_S = 180.0
"""How long an actor may take to be placed and to answer."""
COMMIT_PATIENCE_S = 20.0
"""How long a submit waits for a store that is away before its caller is told."""
CANCEL_PATIENCE_S = 10.0
CALL_TRIES = 60
CALL_AGAIN_S = 0.5
UNWATCHED_S = 5.0
"""A busy agent whose run nobody waits for is asked after so long: no slot is held for ever."""
DECIDED_READ = 1000
NODE_CHECK_S = 1.5


class Launcher(Protocol):
    """Starts and kills agents' actors; blocking calls."""

    def launch(self, config: FleetConfig, role: Role, agent: AgentInfo, node: str | None) -> None:
        """Start an actor. Raises whatever Ray raises."""
        ...

    def kill(self, agent_id: str) -> None:
        """End an actor, if it is there."""
        ...

    def handle(self, agent_id: str) -> Agent:
        """Return a proxy of the actor."""
        ...

    def nodes(self, activities: Sequence[Any]) -> list[NodeInfo]:
        """Return the nodes."""
        ...

    def answers(self, node: NodeInfo) -> bool:
        """Return whether a node can be reached over the network."""
        ...

    def request_nodes(self, bundles: Sequence[dict[str, float]], labels: Sequence[dict[str, str]]) -> None:
        """Tell the autoscaler how large the cluster must be."""
        ...


class RayLauncher:
    """The real one."""

    def launch(self, config: FleetConfig, role: Role, agent: AgentInfo, node: str | None) -> None:
        from fleet.agent.launch import launch_agent

        try:
            launch_agent(config, role, agent.id, agent.incarnation, node=node)
        except ValueError:
            # An earlier life still has the name: it was taken for lost, and must not go on.
            self.kill(agent.id)
            raise

    def kill(self, agent_id: str) -> None:
        import ray

        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(AGENT_PREFIX + agent_id, namespace=NAMESPACE), no_restart=True)

    def handle(self, agent_id: str) -> Agent:
        from fleet.cluster.handles import AgentHandle

        return AgentHandle(agent_id)

    def nodes(self, activities: Sequence[Any]) -> list[NodeInfo]:
        from fleet.router.ray_nodes import read_nodes

        return read_nodes(activities)

    def answers(self, node: NodeInfo) -> bool:
        from fleet.router.ray_nodes import answers

        return answers(node.id)

    def request_nodes(self, bundles: Sequence[dict[str, float]], labels: Sequence[dict[str, str]]) -> None:
        from fleet.router.ray_nodes import request_nodes

        request_nodes(bundles, labels)


class Router:
    """Implements `contracts.Router`.

    Args:
        config: the fleet's settings.
        store: for tests; None finds the fleet's, made where there is none.
        launcher: for tests; None uses Ray.
        clock: for tests.
        seed: of the jitter, for tests.
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        store: Store | None = None,
        launcher: Launcher | None = None,
        clock: Callable[[], float] = time.time,
        seed: int | None = None,
    ) -> None:
        self.config = config
        self.core = RouterCore(config)
        self._store_given = store
        self._launcher: Launcher = launcher or RayLauncher()
        self._clock = clock
        self._random = random.Random(seed)
        self._starting: asyncio.Task[None] | None = None
        self._pending: list[tuple[Effects, asyncio.Future[None]]] = []
        self._committing = False
        self._work = asyncio.Event()
        self._wake = asyncio.Event()
        self._kept: set[asyncio.Task[Any]] = set()
        self._handles: dict[str, Agent] = {}
        self._failed_by: FleetError | None = None
        """Why this router has ended: another replaced it, or what it has in memory is not to be trusted."""
        self._watched: dict[str, int] = {}
        """Run → how many wait for its end."""
        self._unwatched_since: dict[str, float] = {}
        self._accepting: dict[str, asyncio.Future[None]] = {}
        """Task → the end of its commit."""
        self._asked: set[str] = set()
        self._heard: dict[str, tuple[tuple[int, float], float]] = {}
        """Agent → its last sign of life, and when it came."""
        self._changed = asyncio.Event()

    # The start and the end.

    async def check_health(self) -> None:
        """Serve asks each second; also what starts a fresh replica. Raises when this router has been replaced."""
        await self._ready()

    async def _ready(self) -> None:
        if self._failed_by is not None:
            raise self._failed_by
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.create_task(self._start(), name="router start")
        await asyncio.shield(self._starting)

    @property
    def store(self) -> Store:
        """The store."""
        if self._store_given is None:
            from fleet.cluster.handles import StoreHandle

            self._store_given = StoreHandle()
        assert self._store_given is not None
        return self._store_given

    async def _start(self) -> None:
        """Begin an epoch; called again it begins anew."""
        if self._store_given is None:
            from fleet.store.launch import launch_store

            await asyncio.to_thread(launch_store, self.config)
        await self._cancel_kept()
        self.core = RouterCore(self.config)
        owner = f"{socket.gethostname()} pid {os.getpid()}"
        state = await self._patiently(lambda: self.store.open_epoch(owner))
        draining, decided, ended = await self._patiently(lambda: self._past(state))
        now = self._clock()
        effects = self.core.restore(state, now, draining=draining, decided=decided, ended=ended)
        log.info("router start epoch=%d tasks=%d agents=%d", state.epoch, len(state.tasks), len(state.agents))
        self.core.set_activities(await self._patiently(lambda: self.store.activities()))
        effects.merge(await self._read_nodes())
        self._put(effects)
        self._spawn(self._commit_loop())
        # An agent gets nothing before it has said what it has.
        for agent in self.core.unattached():
            self._spawn(self._attach(agent))
        for loop in (self._schedule_loop, self._watch_loop, self._nodes_loop):
            self._spawn(loop())
        self._wake.set()

    async def _past(self, state: RouterState) -> tuple[list[AgentInfo], list[Approval], dict[str, TaskState]]:
        """Read what else the core needs: agents that drained, late decisions, how awaited tasks ended."""
        draining = [agent for agent in await self.store.agents(all=True) if agent.state is AgentState.DRAINING]
        wanted = {agent.id for agent in state.agents}
        decided = await self.store.approvals(waiting=False, limit=DECIDED_READ)
        open_ids = {task.id for task in state.tasks}
        blocked = [task for task in state.tasks if task.state is TaskState.BLOCKED]
        ended: dict[str, TaskState] = {}
        for task_id in {other for task in blocked for other in task.depends_on} - open_ids:
            with contextlib.suppress(NotFound):
                ended[task_id] = (await self.store.task(task_id)).state
        return [agent for agent in draining if agent.id not in wanted], decided, ended

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        delay = 0.1
        while True:
            try:
                return await call()
            except (Unavailable, Busy, StorageFull) as error:
                log.warning("store waits error=%s", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 2.0)

    async def _attach(self, agent: AgentInfo) -> None:
        """Ask an agent of an earlier router what it has; one that does not answer is lost."""
        asked = self.core.run_of.get(agent.id, "")
        try:
            report = await asyncio.wait_for(self._agent(agent.id).hello(self.core.epoch), HELLO_TIMEOUT_S)
        except StaleEpoch as error:
            self._end(error)
            return
        except Exception as error:
            # After a restart of everything no node is known: on one machine the guards have ended all that ran.
            several = len({known.node for known in self.core.agents.values() if known.node}) > 1
            away = isinstance(error, Unavailable | TimeoutError)
            node_lost = away or (several and agent.node not in self.core.nodes)
            log.info("agent lost at start agent=%s node_lost=%s: %s", agent.id, node_lost, error or "no answer")
            self._handles.pop(agent.id, None)
            await self._kill(agent.id)
            now, chance = self._clock(), self._random.random()
            self._put(self.core.agent_lost(agent.id, agent.incarnation, now, chance, node_lost=node_lost))
            return
        self._attached(report, asked)

    def _attached(self, report: AgentReport, asked: str | None) -> None:
        log.info("agent up agent=%s incarnation=%d run=%s", report.agent_id, report.incarnation, report.run_id)
        for outcome in report.outcomes:
            self._take(outcome)
        self._put(self.core.agent_up(report.model_copy(update={"outcomes": ()}), self._clock(), asked))
        if report.run_id is not None and report.run_id not in self._watched:
            if report.run_id in self.core.runs:
                self._spawn(self._await_outcome(report.agent_id, report.incarnation, report.run_id, None))
            else:
                self._spawn(self._await_refused(report.agent_id, report.incarnation, report.run_id))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._kept.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._failed_by is None:
            # Memory may be ahead of the store now for ever: the next router begins from the store.
            log.error("router work failed; a new router takes over", exc_info=error)
            self._end(error)

    async def close(self) -> None:
        """End the loops; what runs goes on with the next router."""
        await self._cancel_kept()
        self._launcher_close()

    async def _cancel_kept(self) -> None:
        kept = [task for task in self._kept if task is not asyncio.current_task()]
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)
        self._watched.clear()

    def _launcher_close(self) -> None:
        self._handles.clear()

    # Commits and actions.

    def _put(self, effects: Effects) -> asyncio.Future[None]:
        """Queue effects; the future is done when their rows are committed and their actions begun."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may wait for it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._failed_by is not None:
            future.set_exception(self._failed_by)
            return future
        self._pending.append((effects, future))
        self._work.set()
        self._wake.set()
        return future

    async def _commit_loop(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            taken, self._pending = self._pending, []
            merged = Effects()
            for effects, _ in taken:
                merged.merge(effects)
            self._committing = True
            try:
                if merged.rows:
                    batch = merged.batch()
                    await self._patiently(lambda: self.store.commit(self.core.epoch, batch))  # noqa: B023
            except BaseException as error:
                _fail(taken, error if isinstance(error, FleetError) else _ended(error))
                if isinstance(error, StaleEpoch):
                    self._end(error)
                    return
                raise
            finally:
                self._committing = False
            for action in merged.actions:
                self._do(action)
            for _, future in taken:
                if not future.done():
                    future.set_result(None)
            self._changed.set()
            self._changed = asyncio.Event()

    def _end(self, error: BaseException) -> None:
        """End this router: nothing more is decided, committed or ordered."""
        if self._failed_by is None:
            log.warning("router ends epoch=%d: %s", self.core.epoch, error)
            self._failed_by = error if isinstance(error, FleetError) else _ended(error)
        taken, self._pending = self._pending, []
        _fail(taken, self._failed_by)
        for task in list(self._kept):
            if task is not asyncio.current_task():
                task.cancel()

    def _do(self, action: Action) -> None:
        match action:
            case Dispatch():
                order = action.order
                log.info("run dispatch task=%s run=%s agent=%s", order.task.id, order.run.id, action.agent_id)
                self._spawn(self._dispatch(action))
            case CancelRun():
                self._spawn(self._quietly(self._cancel_run(action)))
            case LaunchAgent():
                self._spawn(self._launch(action))
            case StopAgent():
                self._spawn(self._stop_agent(action.agent_id, action.incarnation))
            case Acknowledge():
                self._spawn(self._quietly(self._agent(action.agent_id).acknowledge(action.run_id)))
            case DeliverDecision():
                self._spawn(self._quietly(self._deliver(action)))
            case RequestNodes():
                log.info("nodes wanted agents=%d", len(action.bundles))
                ask = asyncio.to_thread(self._launcher.request_nodes, action.bundles, action.labels)
                self._spawn(self._quietly(ask))

    async def _quietly(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except FleetError as error:
            log.info("call not delivered: %s", error)
        except Exception as error:
            log.warning("call failed: %s", error)

    async def _cancel_run(self, action: CancelRun) -> None:
        """Interrupt a run; it may not have arrived yet, or its agent be away for a moment."""
        for _ in range(CALL_TRIES):
            with contextlib.suppress(Unavailable):
                if await self._agent(action.agent_id).cancel(action.run_id, action.reason, action.detail):
                    return
            if action.run_id not in self.core.runs:
                return
            await asyncio.sleep(CALL_AGAIN_S)

    async def _deliver(self, action: DeliverDecision) -> None:
        for _ in range(CALL_TRIES):
            with contextlib.suppress(Unavailable):
                await self._agent(action.agent_id).decide(action.approval)
                return
            if action.approval.run_id not in self.core.runs:
                return
            await asyncio.sleep(CALL_AGAIN_S)

    def _agent(self, agent_id: str) -> Agent:
        if agent_id not in self._handles:
            self._handles[agent_id] = self._launcher.handle(agent_id)
        return self._handles[agent_id]

    # Runs.

    async def _dispatch(self, action: Dispatch) -> None:
        run = action.order.run
        await self._await_outcome(action.agent_id, run.incarnation, run.id, action)

    async def _await_outcome(self, agent_id: str, incarnation: int, run_id: str, dispatch: Dispatch | None) -> None:
        """Wait for a run's outcome, over an agent that cannot be reached for a while; a lost agent loses it."""
        self._watched[run_id] = self._watched.get(run_id, 0) + 1
        try:
            await self._outcome_of(agent_id, incarnation, run_id, dispatch)
        finally:
            self._unwatch(run_id)

    def _unwatch(self, run_id: str) -> None:
        self._watched[run_id] = self._watched.get(run_id, 1) - 1
        if self._watched[run_id] <= 0:
            del self._watched[run_id]

    async def _outcome_of(self, agent_id: str, incarnation: int, run_id: str, dispatch: Dispatch | None) -> None:
        agent = self._agent(agent_id)
        give_up_at = None
        while run_id in self.core.runs:
            try:
                if dispatch is not None:
                    outcome = await agent.run(dispatch.order, dispatch.acknowledge)
                else:
                    outcome = await agent.wait(run_id)
                self._outcome(outcome)
                return
            except StaleEpoch as error:
                self._end(error)
                return
            except AgentGone as error:
                await self._lose(agent_id, incarnation, str(error))
                return
            except Unavailable as error:
                now = self._clock()
                give_up_at = give_up_at or now + self.config.lease_s
                log.info("agent away agent=%s run=%s: %s", agent_id, run_id, error)
                if now > give_up_at:
                    await self._lose(agent_id, incarnation, "it cannot be reached", node_lost=True)
                    return
                # The same run again: an agent that has it, or had it, waits for the one outcome.
                await asyncio.sleep(0.5)
            except (Conflict, NotFound) as error:
                log.warning("run refused agent=%s run=%s: %s", agent_id, run_id, error)
                await self._reconcile_agent(agent_id, incarnation)
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("run failed in its agent agent=%s run=%s", agent_id, run_id)
                if run_id in self.core.runs:
                    self._outcome(self._failed(agent_id, run_id, error))
                return

    def _failed(self, agent_id: str, run_id: str, error: Exception) -> Outcome:
        run = self.core.runs[run_id]
        return Outcome(
            run_id=run_id,
            task_id=run.task_id,
            agent_id=agent_id,
            epoch=run.epoch,
            status=RunState.FAILED,
            reason=Reason.CLAUDE_ERROR,
            detail=f"the agent failed: {type(error).__name__}: {str(error)[-500:]}",
            finished_at=self._clock(),
        )

    async def _await_refused(self, agent_id: str, incarnation: int, run_id: str) -> None:
        """Wait for the end of a run that is not current: its outcome is refused, and its agent is free then."""
        self._watched[run_id] = self._watched.get(run_id, 0) + 1
        try:
            self._outcome(await self._agent(agent_id).wait(run_id))
        except (AgentGone, Unavailable) as error:
            await self._lose(agent_id, incarnation, str(error))
        except NotFound:
            await self._reconcile_agent(agent_id, incarnation)
        except Exception as error:
            # It is asked again: nobody waits for its run.
            log.warning("run failed in its agent agent=%s run=%s: %s", agent_id, run_id, error)
        finally:
            self._unwatch(run_id)

    async def _reconcile_agent(self, agent_id: str, incarnation: int) -> None:
        """Ask an agent what it has; one that does not answer is lost."""
        asked = self.core.run_of.get(agent_id, "")
        try:
            report = await asyncio.wait_for(self._agent(agent_id).hello(self.core.epoch), HELLO_TIMEOUT_S)
        except StaleEpoch as error:
            self._end(error)
        except (Unavailable, TimeoutError) as error:
            # It may go on where it cannot be reached, as long as its lease.
            await self._lose(agent_id, incarnation, str(error) or "it does not answer", node_lost=True)
        except Exception as error:
            await self._lose(agent_id, incarnation, str(error))
        else:
            self._attached(report, asked)

    def _outcome(self, outcome: Outcome) -> None:
        self._take(outcome)
        # The agent is free: what it gets next is committed with this.
        self._put(self.core.schedule(self._clock()))

    def _take(self, outcome: Outcome) -> None:
        log.info(
            "run end task=%s run=%s agent=%s status=%s reason=%s",
            outcome.task_id,
            outcome.run_id,
            outcome.agent_id,
            outcome.status.value,
            outcome.reason or "",
        )
        self._put(self.core.outcome(outcome, self._clock(), self._random.random()))

    async def _lose(self, agent_id: str, incarnation: int, why: str, node_lost: bool = False) -> None:
        """An agent is gone: find out whether its node went with it, and go on without it."""
        agent = self.core.agents.get(agent_id)
        if agent is None or agent.incarnation != incarnation:
            return
        if not node_lost and agent.node is not None:
            # Ray tells of a dead actor a little before it tells of its dead node.
            with contextlib.suppress(Exception):
                nodes = await asyncio.to_thread(self._launcher.nodes, ())
                if any(node.id == agent.node for node in nodes) and len(nodes) > 1:
                    await asyncio.sleep(NODE_CHECK_S)
                    nodes = await asyncio.to_thread(self._launcher.nodes, ())
                node_lost = all(node.id != agent.node for node in nodes)
        log.warning("agent lost agent=%s incarnation=%d node_lost=%s: %s", agent_id, incarnation, node_lost, why)
        self._handles.pop(agent_id, None)
        await self._kill(agent_id)
        now = self._clock()
        self._put(self.core.agent_lost(agent_id, incarnation, now, self._random.random(), node_lost=node_lost))

    async def _kill(self, agent_id: str) -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self._launcher.kill, agent_id)

    # Agents.

    async def _launch(self, action: LaunchAgent) -> None:
        agent = action.agent
        log.info("agent launch agent=%s incarnation=%d node=%s", agent.id, agent.incarnation, action.node)
        self._handles.pop(agent.id, None)
        try:
            await asyncio.to_thread(self._launcher.launch, self.config, action.role, agent, action.node)
        except Exception as error:
            log.warning("agent launch failed agent=%s: %s", agent.id, error)
            self._put(self.core.launch_failed(agent.id, agent.incarnation, str(error), self._clock()))
            return
        asked = self.core.run_of.get(agent.id, "")
        end = self._clock() + START_TIMEOUT_S
        why = f"its actor did not answer within {START_TIMEOUT_S:.0f} s"
        while self._clock() < end:
            try:
                report = await self._agent(agent.id).hello(self.core.epoch)
            except StaleEpoch as error:
                self._end(error)
                return
            except Unavailable as error:
                why = str(error)
                await asyncio.sleep(0.2)
                continue
            except AgentGone as error:
                why = str(error)
                break
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                break
            if report.incarnation == agent.incarnation and self._is_current(agent.id, agent.incarnation):
                self._attached(report, asked)
                return
            why = "another life of it has its name, or it is not wanted any more"
            break
        self._handles.pop(agent.id, None)
        await self._kill(agent.id)
        self._put(self.core.launch_failed(agent.id, agent.incarnation, f"it does not start: {why}", self._clock()))

    def _is_current(self, agent_id: str, incarnation: int) -> bool:
        agent = self.core.agents.get(agent_id)
        return agent is not None and agent.incarnation == incarnation

    async def _stop_agent(self, agent_id: str, incarnation: int) -> None:
        log.info("agent stop agent=%s", agent_id)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._agent(agent_id).stop(3.0), 25.0)
        # A run that ended with the stop brings its outcome by its own call, which is given a moment to arrive.
        for _ in range(20):
            if agent_id not in self.core.run_of:
                break
            await asyncio.sleep(0.05)
        if not self._is_current(agent_id, incarnation):
            return
        self._handles.pop(agent_id, None)
        await self._kill(agent_id)
        self._put(self.core.agent_stopped(agent_id, incarnation, self._clock(), self._random.random()))

    # Loops.

    async def _schedule_loop(self) -> None:
        while True:
            due = self.core.next_due(self._clock())
            timeout = None if due is None else max(due - self._clock(), 0.02)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)
            self._wake.clear()
            effects = self.core.schedule(self._clock())
            if effects.rows or effects.actions:
                self._put(effects)

    async def _watch_loop(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                self.core.set_activities(await self.store.activities())
            except Exception:
                # While the store is away nobody can be heard: everybody's silence begins anew.
                self._heard.clear()
                continue
            now = self._clock()
            self._listen(now)
            self._ask_unwatched(now)
            for agent in list(self.core.agents.values()):
                seen = self.core.activities.get(agent.id)
                last = max(seen.at if seen else 0.0, agent.updated_at)
                there = agent.state in PRESENT
                if there and now - last > SILENT_S and agent.id not in self._asked:
                    self._asked.add(agent.id)
                    self._spawn(self._probe(agent))

    def _listen(self, now: float) -> None:
        """Note who is silent. By this process's clock: those of other nodes may be wrong."""
        away = set()
        for agent in list(self.core.agents.values()):
            if agent.state not in PRESENT:
                self._heard.pop(agent.id, None)
                continue
            seen = self.core.activities.get(agent.id)
            beat = (agent.incarnation, seen.at if seen else 0.0)
            if self._heard.get(agent.id, (None, now))[0] != beat:
                self._heard[agent.id] = (beat, now)
            silent = now - self._heard[agent.id][1]
            if silent > SILENT_S:
                away.add(agent.id)
            if agent.id in self.core.run_of and silent > self.config.lease_s + LEASE_MARGIN_S:
                log.warning("agent away agent=%s run=%s silent_s=%.0f", agent.id, agent.run_id, silent)
                self._put(self.core.agent_away(agent.id, now, self._random.random()))
        back = self.core.away - away
        self.core.set_away(away, now)
        if back:
            self._wake.set()

    def _ask_unwatched(self, now: float) -> None:
        """Ask busy agents whose run nobody waits for."""
        runs = {
            agent.run_id: agent
            for agent in self.core.agents.values()
            if agent.state in (AgentState.BUSY, AgentState.DRAINING)
            and agent.run_id is not None
            and agent.run_id not in self._watched
        }
        if self._pending or self._committing:
            # Their dispatch may be among what is being committed.
            runs = {}
        self._unwatched_since = {run_id: self._unwatched_since.get(run_id, now) for run_id in runs}
        for run_id, agent in runs.items():
            if now - self._unwatched_since[run_id] >= UNWATCHED_S and agent.id not in self._asked:
                self._asked.add(agent.id)
                self._spawn(self._ask(agent))

    async def _ask(self, agent: AgentInfo) -> None:
        try:
            await self._reconcile_agent(agent.id, agent.incarnation)
        finally:
            self._asked.discard(agent.id)

    async def _probe(self, agent: AgentInfo) -> None:
        try:
            await self._agent(agent.id).hello(self.core.epoch)
        except StaleEpoch as error:
            self._end(error)
        except AgentGone as error:
            await self._lose(agent.id, agent.incarnation, str(error))
        except Unavailable as error:
            # A busy one has its own watcher; an idle one that cannot be reached must not be given a run.
            if agent.state is AgentState.IDLE:
                await self._lose(agent.id, agent.incarnation, str(error))
        except Exception as error:
            log.warning("probe failed agent=%s: %s", agent.id, error)
        finally:
            self._asked.discard(agent.id)

    async def _nodes_loop(self) -> None:
        while True:
            await asyncio.sleep(NODES_S)
            with contextlib.suppress(Exception):
                before = self.core.nodes
                effects = await self._read_nodes()
                await self._ask_deserted()
                if effects.rows or effects.actions:
                    self._put(effects)
                elif before.keys() != self.core.nodes.keys():
                    self._wake.set()

    async def _ask_deserted(self) -> None:
        """Find out whether silent nodes that hold no agent any more can be reached again."""
        nodes = [self.core.nodes[node_id] for node_id in self.core.deserted() if node_id in self.core.nodes]
        answers = await asyncio.gather(*(asyncio.to_thread(self._launcher.answers, node) for node in nodes))
        for node, reached in zip(nodes, answers, strict=True):
            if reached:
                log.info("node answers again node=%s", node.name)
                self.core.node_answers(node.id)

    async def _read_nodes(self) -> Effects:
        activities = list(self.core.activities.values())
        nodes = await asyncio.to_thread(self._launcher.nodes, activities)
        return self.core.set_nodes(nodes, self._clock())

    # What the gateway asks.

    async def submit(self, specs: Sequence[TaskSpec]) -> list[Task]:
        """Accept tasks, all or none; returns when they are committed."""
        await self._ready()
        known = await self._referred(specs)
        now = self._clock()
        planned = self.core.plan_submit(specs, known, now)
        fresh = [task for task in planned if isinstance(task, Task)]
        repeated = [self._accepting[task] for task in planned if isinstance(task, str) and task in self._accepting]
        if fresh:
            # Not ended with the call that asks for it: what is committed must be taken into the queue.
            commit = asyncio.ensure_future(self._commit_submit(planned, fresh, now))
            commit.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._accepting |= {task.id: commit for task in fresh}
            commit.add_done_callback(lambda _: [self._accepting.pop(task.id, None) for task in fresh])
            await asyncio.shield(commit)
        for other in repeated:
            await asyncio.shield(other)
        return [task if isinstance(task, Task) else await self._task(task) for task in planned]

    async def _commit_submit(self, planned: list[Task | str], fresh: list[Task], now: float) -> None:
        steps = tuple(
            Transition(at=now, what="task", id=task.id, old=None, new=task.state.value, why=task.why) for task in fresh
        )
        batch = Batch(tasks=tuple(fresh), transitions=steps)
        end = self._clock() + COMMIT_PATIENCE_S
        while True:
            try:
                await self.store.commit(self.core.epoch, batch)
                break
            except (Busy, StorageFull):
                # The store says that it wrote nothing.
                self.core.forget_keys(planned)
                raise
            except StaleEpoch as error:
                self._end(error)
                raise
            except Unavailable:
                if self._clock() > end:
                    # It may be committed or not; it will be, so that a repeated key finds the one task.
                    self._spawn(self._commit_late(batch, fresh))
                    raise
                await asyncio.sleep(0.2)
        self._put(self.core.accept(fresh, self._clock()))

    async def _commit_late(self, batch: Batch, fresh: list[Task]) -> None:
        await self._patiently(lambda: self.store.commit(self.core.epoch, batch))
        self._put(self.core.accept(fresh, self._clock()))

    async def _referred(self, specs: Sequence[TaskSpec]) -> dict[str, Task]:
        ids = {other for spec in specs for other in (*spec.depends_on, spec.continue_from) if other}
        found: dict[str, Task] = {}
        for task_id in ids - self.core.tasks.keys():
            with contextlib.suppress(NotFound):
                task = await self.store.task(task_id)
                if task.id == task_id:
                    found[task_id] = task
        return found

    async def _task(self, task_id: str) -> Task:
        return self.core.tasks.get(task_id) or await self.store.task(task_id)

    async def cancel(self, task_ids: Sequence[str], detail: str = "") -> list[Task]:
        """Cancel tasks; returns when they are, or when what runs takes longer than a moment to stop."""
        await self._ready()
        tasks = [await self._task(task_id) for task_id in task_ids]
        for task in tasks:
            if task.state.final and task.state is not TaskState.CANCELLED:
                raise Conflict(f"Task {task.id} is {task.state.value} already.", state=task.state.value, task=task.id)
        open_ids = [task.id for task in tasks if task.id in self.core.tasks]
        await self._put(self.core.cancel(open_ids, detail, self._clock()))
        end = time.monotonic() + CANCEL_PATIENCE_S
        while any(task_id in self.core.tasks for task_id in open_ids) and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.2)
        # What ended is in memory before it is in the store.
        await self._put(Effects())
        return [await self._task(task.id) for task in tasks]

    async def retry(self, task_ids: Sequence[str]) -> list[Task]:
        """Queue failed, cancelled or dead tasks again."""
        await self._ready()
        tasks = [await self._task(task_id) for task_id in task_ids]
        await self._put(self.core.retry(tasks, self._clock()))
        return [await self._task(task.id) for task in tasks]

    async def prioritize(self, task_ids: Sequence[str], priority: int) -> list[Task]:
        """Change the priority of tasks that have not ended."""
        await self._ready()
        tasks = [await self._task(task_id) for task_id in task_ids]
        for task in tasks:
            if task.id not in self.core.tasks:
                raise Conflict(f"Task {task.id} is {task.state.value} already.", state=task.state.value, task=task.id)
        await self._put(self.core.prioritize([task.id for task in tasks], priority, self._clock()))
        return [await self._task(task.id) for task in tasks]

    async def spawn(self, role: str, count: int = 1) -> list[AgentInfo]:
        """Add agents to a role."""
        await self._ready()
        ids, effects = self.core.spawn(role, count, self._clock())
        await self._put(effects)
        return [self.core.agents[agent_id] for agent_id in ids if agent_id in self.core.agents]

    async def stop_agent(self, agent_id: str, *, drain: bool = True) -> AgentInfo:
        """Stop an agent, after its run or now."""
        await self._ready()
        effects = self.core.stop_agent(agent_id, drain, self._clock())
        agent = self.core.agents[agent_id]
        await self._put(effects)
        return agent

    async def send(self, agent_id: str, text: str) -> dict[str, Any]:
        """Say something to an agent: into its conversation, or as a new task for it alone."""
        await self._ready()
        agent = self.core.agents.get(agent_id)
        if agent is None:
            raise AgentGone(f"There is no agent {agent_id} now.", agent=agent_id, state="gone")
        if agent.run_id is not None:
            with contextlib.suppress(Unavailable, AgentGone):
                if await self._agent(agent_id).message(text, agent.run_id):
                    return {"delivered": True, "task_id": agent.task_id}
        task = (await self.submit([TaskSpec(role=agent.role, prompt=text, agent=agent_id)]))[0]
        return {"delivered": False, "task_id": task.id}

    async def interrupt(self, agent_id: str) -> bool:
        """Cancel what an agent runs now."""
        await self._ready()
        agent = self.core.agents.get(agent_id)
        if agent is None:
            raise AgentGone(f"There is no agent {agent_id} now.", agent=agent_id, state="gone")
        run_id = self.core.run_of.get(agent_id)
        if run_id is None:
            return False
        await self.cancel([self.core.runs[run_id].task_id], f"Agent {agent_id} was interrupted.")
        return True

    async def ask(self, approval: Approval) -> None:
        """An agent's tool call waits for a person."""
        await self._ready()
        await self._put(self.core.ask(approval, self._clock()))

    async def withdraw(self, approval_id: str) -> None:
        """The call no longer waits."""
        await self._ready()
        await self._put(self.core.withdraw(approval_id, self._clock()))

    async def decide(
        self,
        approval_id: str,
        *,
        allow: bool,
        scope: str = "once",
        message: str = "",
        changed_input: dict[str, Any] | None = None,
        by: str = "",
    ) -> Approval:
        """A person decides."""
        await self._ready()
        now = self._clock()
        decided, effects = self.core.decide(approval_id, allow, scope, message, changed_input, by, now)
        await self._put(effects)
        return decided

    async def pause(self, role: str | None, paused: bool) -> None:
        """Let a queue wait or go on."""
        await self._ready()
        await self._put(self.core.pause(role, paused))

    async def scale(self, role: str, agents: int) -> RoleState:
        """Say how many agents a role has."""
        await self._ready()
        await self._put(self.core.scale(role, agents, self._clock()))
        return self.core.role_states[role]

    async def drain_node(self, node: str, deadline_s: float | None = None, undo: bool = False) -> NodeInfo:
        """Let a node's runs end and give it none."""
        await self._ready()
        await self._put(await self._read_nodes())
        now = self._clock()
        deadline = None if deadline_s is None else now + deadline_s
        await self._put(self.core.drain_node(node, deadline, undo, now))
        return next(known for known in self.core.node_list() if node in (known.name, known.id))

    async def nodes(self) -> list[NodeInfo]:
        """Return the nodes with their agents."""
        await self._ready()
        return self.core.node_list()

    async def roles(self) -> list[dict[str, Any]]:
        """Return each role with its agents and its queue."""
        await self._ready()
        return [self._role(role) for role in self.core.roles.values()]

    def _role(self, role: Role) -> dict[str, Any]:
        core = self.core
        agents = core._wanted(role.name)
        scaler = core._scalers.get(role.name)
        return {
            "role": role,
            "agents_wanted": core._target(role),
            "agents": len(agents),
            "idle": sum(agent.state is AgentState.IDLE for agent in agents),
            "queued": core.queue_length(role.name),
            "paused": core._role_state(role.name).paused,
            "rules": core._role_state(role.name).rules,
            "oldest_queued_at": core.waits_since(role.name),
            "why": core.why_waits(role.name),
            "scaler": scaler.why if scaler else "",
        }

    async def status(self) -> dict[str, Any]:
        """Return the router at a glance."""
        await self._ready()
        core = self.core
        return {
            "epoch": core.epoch,
            "rehearsal": self.config.rehearsal,
            "paused": core.paused,
            "since": core.since,
            "queued": sum(core.queue_length(role) for role in core.roles),
            "running": len(core.runs),
            "agents": sum(agent.wanted for agent in core.agents.values()),
            "why": {role: why for role in core.roles if (why := core.why_waits(role))},
            "scaler": {role: scaler.why for role, scaler in core._scalers.items() if scaler.why},
        }


def _ended(error: BaseException) -> Unavailable:
    return Unavailable(
        f"The router ended ({type(error).__name__}: {error}). Another starts by itself: try again.",
        part="router",
        retry_after_s=1.0,
    )


def _fail(taken: Sequence[tuple[Effects, asyncio.Future[None]]], error: FleetError) -> None:
    for _, future in taken:
        if not future.done():
            future.set_exception(error)
