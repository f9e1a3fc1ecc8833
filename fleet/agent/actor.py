"""The agent: one run at a time, its outcomes kept until they are committed, a sign of life every second.

A plain class; `fleet.agent.launch` makes a Ray actor of it. All its methods run in one event loop, in the thread that
starts Claude Code: the kernel takes the end of that thread for the end of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fleet.agent.runner import Runner, Surroundings, this_environment
from fleet.agent.workspace import Workspaces
from fleet.claude.credentials import Credentials, find_credentials, handed_over, rehearsal_credentials
from fleet.claude.environment import OWNER_TAG
from fleet.claude.processes import node_free_mb, sweep, tree_usage
from fleet.config import FleetConfig
from fleet.contracts import Store
from fleet.errors import Conflict, NotFound, StaleEpoch
from fleet.models import Activity, AgentReport, Approval, Outcome, Role, RunOrder, Usage
from fleet.reasons import Reason

log = logging.getLogger("fleet.agent")

BEAT_S = 1.0
EARLY_BEAT_S = 0.2
"""The least time between two beats, when what the run does has changed."""
BEAT_TIMEOUT_S = 5.0
REHEARSAL_START_S = 30.0
PRUNE_EVERY_S = 30.0


class Asker(Protocol):
    """What an agent wants of the router."""

    async def ask(self, approval: Approval) -> None: ...

    async def withdraw(self, approval_id: str) -> None: ...


class FleetAgent:
    """Implements `contracts.Agent`.

    Args:
        config: the fleet's settings.
        role: the agent's role as it was at its start; every order brings it anew.
        agent_id: `ROLE-N`.
        incarnation: which life of the actor this is.
        store: for tests; None finds the fleet's.
        router: for tests; None finds the fleet's.
        environ: for tests; None takes this process's.
    """

    def __init__(
        self,
        config: FleetConfig,
        role: Role,
        agent_id: str,
        incarnation: int = 1,
        *,
        store: Store | None = None,
        router: Asker | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._role = config, role
        self.agent_id, self.incarnation = agent_id, incarnation
        self._environ = dict(environ) if environ is not None else this_environment()
        self._store_given, self._router_given = store, router
        self._workspaces = Workspaces(config)
        self._epoch = 0
        self._runner: Runner | None = None
        self._running: asyncio.Task[Outcome] | None = None
        self._run_id: str | None = None
        self._outcomes: dict[str, Outcome] = {}
        self._acknowledged: set[str] = set()
        self._contact_at = time.monotonic()
        self._changed = asyncio.Event()
        self._beats: asyncio.Task[None] | None = None
        self._ready: asyncio.Task[None] | None = None
        self._server: Any = None
        self._base_url: str | None = None
        self._stopped = False
        self._kept: set[asyncio.Task[Any]] = set()
        self._prune_at = 0.0

    def __repr__(self) -> str:
        return f"{self.agent_id} [{self._role.name}]"

    @property
    def owner(self) -> str:
        """The value that marks all processes of this agent on this machine."""
        return f"{self._config.home}#{self.agent_id}"

    # What a router asks.

    async def hello(self, epoch: int) -> AgentReport:
        """Say what the agent has. Raises StaleEpoch."""
        await self._awake()
        self._fence(epoch)
        return AgentReport(
            agent_id=self.agent_id,
            incarnation=self.incarnation,
            node=self._node(),
            pid=os.getpid(),
            run_id=self._run_id,
            outcomes=tuple(self._outcomes.values()),
        )

    async def run(self, order: RunOrder, acknowledge: str | None = None) -> Outcome:
        """Do a run and return how it ended. Raises StaleEpoch, Conflict (busy, or stopped)."""
        await self._awake()
        self._fence(order.epoch)
        if acknowledge is not None:
            await self.acknowledge(acknowledge)
        run_id = order.run.id
        if run_id in self._outcomes or self._run_id == run_id:
            return await self.wait(run_id)
        if self._stopped:
            raise Conflict(f"Agent {self.agent_id} was stopped and takes no run.", state="stopped", agent=self.agent_id)
        if self._run_id is not None:
            raise Conflict(
                f"Agent {self.agent_id} does run {self._run_id} and takes no other before it has ended.",
                state="busy",
                agent=self.agent_id,
                run=self._run_id,
            )
        if run_id in self._acknowledged:
            raise Conflict(f"Run {run_id} has ended and its outcome is committed.", state="ended", agent=self.agent_id)
        self._role = order.role
        self._run_id = run_id
        self._contact_at = time.monotonic()
        self._running = asyncio.create_task(self._do(order), name=f"order {run_id}")
        # The run does not end with the call that asked for it: a router may come and go.
        return await asyncio.shield(self._running)

    async def wait(self, run_id: str) -> Outcome:
        """Wait for the outcome of a run the agent has, or had and was not acknowledged. Raises NotFound."""
        if (outcome := self._outcomes.get(run_id)) is not None:
            return outcome
        if self._run_id == run_id and self._running is not None:
            return await asyncio.shield(self._running)
        raise NotFound(f"Agent {self.agent_id} has no run {run_id}.", what="run", id=run_id)

    async def acknowledge(self, run_id: str) -> None:
        """Forget the outcome of a run: it is committed."""
        outcome = self._outcomes.pop(run_id, None)
        if outcome is None:
            return
        self._acknowledged.add(run_id)
        self._workspaces.done(outcome.task_id)
        if time.monotonic() >= self._prune_at:
            # It reads a note per folder: not with every run.
            self._prune_at = time.monotonic() + PRUNE_EVERY_S
            self._spawn(self._workspaces.prune())

    async def cancel(self, run_id: str, reason: str, detail: str = "") -> bool:
        """Interrupt a run; its outcome carries the reason. False when the agent does not have it."""
        if self._runner is None or self._run_id != run_id:
            return False
        self._runner.end(Reason(reason), detail)
        return True

    async def message(self, text: str, run_id: str | None = None) -> bool:
        """Put a message into the running conversation. False when there is none."""
        if self._runner is None or (run_id is not None and run_id != self._run_id):
            return False
        return await self._runner.message(text)

    async def decide(self, approval: Approval) -> bool:
        """Answer a tool call that waits for a person. False when it does not wait here."""
        return self._runner.decide(approval) if self._runner is not None else False

    async def stop(self, grace_s: float = 3.0) -> None:
        """End the run, if any, and everything of it; the agent takes no other. Its outcome can still be fetched."""
        self._stopped = True
        if self._runner is not None and self._running is not None:
            self._runner.end(Reason.AGENT_STOPPED, f"Agent {self.agent_id} was stopped.")
            with contextlib.suppress(Exception):
                # Interrupt, SIGTERM and SIGKILL have their own bounds; this one is for the unforeseen.
                await asyncio.wait_for(asyncio.shield(self._running), grace_s + 15.0)
        for task in (self._beats, *self._kept):
            if task is not None:
                task.cancel()
        if self._server is not None:
            server, self._server = self._server, None
            with contextlib.suppress(Exception):
                await server.stop()
        await sweep(f"{OWNER_TAG}={self.owner}")

    # Its inside.

    async def _do(self, order: RunOrder) -> Outcome:
        self._runner = Runner(
            order,
            Surroundings(
                config=self._config,
                store=self._store,
                workspaces=self._workspaces,
                environ=self._environ,
                owner=self.owner,
                find_credentials=self._credentials,
                ask=self._ask,
                withdraw=self._withdraw,
                on_contact=self._in_contact,
                on_change=self._changed.set,
            ),
        )
        try:
            outcome = await self._runner.execute()
            self._outcomes[order.run.id] = outcome
            return outcome
        finally:
            self._runner, self._running, self._run_id = None, None, None
            self._changed.set()

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleEpoch(
                f"Agent {self.agent_id} obeys the router of epoch {self._epoch}; this message is of epoch {epoch}.",
                epoch=epoch,
                current=self._epoch,
            )
        self._epoch = epoch

    async def _awake(self) -> None:
        """Begin what runs beside the runs, at the first call: the constructor may run outside the event loop."""
        if self._ready is None:
            self._ready = asyncio.create_task(self._begin())
        await asyncio.shield(self._ready)

    async def _begin(self) -> None:
        left = await sweep(f"{OWNER_TAG}={self.owner}")
        if left:
            log.warning("swept what an earlier life left agent=%s processes=%s", self.agent_id, left)
        self._beats = asyncio.create_task(self._beat_forever(), name="beat")

    async def _rehearse(self) -> None:
        if not self._config.rehearsal or self._base_url is not None:
            return
        from fleet.rehearsal.server import RehearsalServer

        self._server = RehearsalServer(faults=self._config.rehearsal_faults)
        self._base_url = await asyncio.wait_for(self._server.start(), REHEARSAL_START_S)

    async def _credentials(self) -> Credentials:
        if self._config.rehearsal:
            await self._rehearse()
            assert self._base_url is not None
            return rehearsal_credentials(self._base_url)
        environ = {**self._environ, **handed_over(self._config.home)}
        return find_credentials(environ, Path(environ.get("HOME") or "~").expanduser())

    def _in_contact(self) -> None:
        self._contact_at = time.monotonic()
        if self._runner is not None:
            self._runner.alive()

    async def _beat_forever(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await asyncio.wait_for(self._store.beat(self._activity()), BEAT_TIMEOUT_S)
                self._in_contact()
            except Exception as error:
                log.debug("beat failed agent=%s: %s", self.agent_id, error)
            self._check_lease()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), BEAT_S)
            await asyncio.sleep(max(0.0, EARLY_BEAT_S - (time.monotonic() - started)))

    def _check_lease(self) -> None:
        silent = time.monotonic() - self._contact_at
        if self._runner is not None and silent > self._config.lease_s:
            self._runner.end(
                Reason.NODE_LOST,
                f"The agent could not reach the store for {silent:.0f} s: the fleet takes its run for lost.",
            )

    def _activity(self) -> Activity:
        runner = self._runner
        facts = runner.facts if runner is not None else None
        rss, processes = (0.0, 0)
        if runner is not None and runner.root_pid is not None:
            rss, processes = tree_usage(runner.root_pid)
        return Activity(
            agent_id=self.agent_id,
            run_id=self._run_id,
            task_id=runner.order.task.id if runner is not None else None,
            tool=facts.tool if facts is not None else None,
            text=facts.text if facts is not None else "",
            turns=facts.turns if facts is not None else 0,
            usage=facts.usage if facts is not None else Usage(),
            context_tokens=facts.context_tokens if facts is not None else 0,
            cost_usd=facts.cost_usd if facts is not None else 0.0,
            rss_mb=rss,
            processes=processes,
            node=self._node(),
            node_free_mb=node_free_mb(),
            last_event_at=runner.last_event_at if runner is not None else None,
            at=time.time(),
        )

    @property
    def _store(self) -> Store:
        if self._store_given is None:
            from fleet.cluster.handles import StoreHandle

            self._store_given = StoreHandle()
        assert self._store_given is not None
        return self._store_given

    @property
    def _router(self) -> Asker:
        if self._router_given is None:
            from fleet.cluster.handles import RouterHandle

            self._router_given = RouterHandle()
        assert self._router_given is not None
        return self._router_given

    async def _ask(self, approval: Approval) -> None:
        await self._router.ask(approval)

    async def _withdraw(self, approval_id: str) -> None:
        await self._router.withdraw(approval_id)

    def _node(self) -> str:
        return node_id()

    def _spawn(self, coroutine: Awaitable[Any]) -> None:
        async def quiet() -> None:
            try:
                await coroutine
            except Exception as error:
                log.warning("clearing up failed agent=%s: %s", self.agent_id, error)

        task = asyncio.create_task(quiet())
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)


def node_id() -> str:
    """Return the id of the Ray node this process is on; `local` outside Ray."""
    import ray

    if not ray.is_initialized():
        return "local"
    return str(ray.get_runtime_context().get_node_id())
