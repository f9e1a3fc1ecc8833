"""One run: a folder, one Claude Code process, its frames into the journal, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ClaudeSDKError, project_key_for_directory

from fleet.agent.approvals import Ask, Permissions, Withdraw
from fleet.agent.git import GitFailed, git
from fleet.agent.journal import Journal
from fleet.agent.session import first_message, session_of_task, usable, write_transcript
from fleet.agent.workspace import Prepared, Workspaces
from fleet.claude.argv import claude_argv
from fleet.claude.credentials import Credentials
from fleet.claude.environment import RUN_TAG, claude_environment
from fleet.claude.frames import Ending, RunFacts, classify, session_missing
from fleet.claude.locate import find_claude
from fleet.claude.processes import sweep
from fleet.claude.transport import GuardedTransport
from fleet.config import FleetConfig
from fleet.contracts import Store
from fleet.errors import ClaudeNotFound, CredentialsMissing, FleetError, WorkspaceRefused
from fleet.lifecycle import RunState
from fleet.models import Approval, EventKind, Outcome, Result, RunOrder
from fleet.reasons import Reason

log = logging.getLogger("fleet.agent")

INTERRUPT_S = 2.0
"""How long an interrupted turn has to end by itself; measured 0.03 s."""
IDLE_S = 10.0
"""How long after its result a session that works on has to say that it is idle."""
QUIET_S = 1.0
"""The same for one that has never told its state."""
FLUSH_S = 20.0
LEASE_MARGIN_S = 2.0
CONNECT_S = 90.0
TRANSCRIPT_S = 20.0
LOSSES = frozenset({Reason.AGENT_LOST, Reason.NODE_LOST, Reason.AGENT_STOPPED})


@dataclass(frozen=True)
class Surroundings:
    """What a run is given by its agent.

    Attributes:
        find_credentials: how to authenticate; called when the run starts.
        on_contact: called whenever the store answered.
        on_change: called when what the run does has changed much.
    """

    config: FleetConfig
    store: Store
    workspaces: Workspaces
    environ: Mapping[str, str]
    owner: str
    find_credentials: Callable[[], Awaitable[Credentials]]
    ask: Ask
    withdraw: Withdraw
    on_contact: Callable[[], None] = lambda: None
    on_change: Callable[[], None] = lambda: None


class Runner:
    """Does one run. `execute` once; the other methods while it goes on, in the same event loop.

    Attributes:
        facts: what the run has told so far.
        last_event_at: when it last said something (wall clock).
    """

    def __init__(self, order: RunOrder, around: Surroundings) -> None:
        self.order = order
        self.around = around
        self.facts = RunFacts()
        self.last_event_at: float | None = None
        run = order.run
        resumed = order.task.session_id if order.resume else None
        self.session_id: str = resumed or run.session_id or session_of_task(run.task_id)
        self.journal = Journal(
            around.store, run_id=run.id, task_id=run.task_id, agent_id=run.agent_id, on_contact=around.on_contact
        )
        self.permissions = Permissions(order, around.ask, around.withdraw, self._state, self._park)
        self._transport: GuardedTransport | None = None
        self._client: ClaudeSDKClient | None = None
        self._ending: Ending | None = None
        self._parked_for: str | None = None
        self._work: asyncio.Task[Ending] | None = None
        self._wake = asyncio.Event()
        self._sent: list[str] = []
        self._accepting = False
        self._prepared: Prepared | None = None
        self._last_stderr = ""
        self._heard = time.monotonic()
        self._started = time.time()

    @property
    def root_pid(self) -> int | None:
        """The pid at the root of the run's processes."""
        return self._transport.pid if self._transport is not None else None

    # What others ask of a run that goes on.

    def alive(self) -> None:
        """Note that the agent is in contact with its fleet."""
        if self._transport is not None:
            self._transport.alive()

    def end(self, reason: Reason, detail: str = "") -> None:
        """End the run for a reason: interrupt, then SIGTERM, then SIGKILL. The first reason counts."""
        if self._ending is not None:
            return
        status = RunState.CANCELLED if reason is Reason.CANCELLED else RunState.FAILED
        self._ending = Ending(RunState.LOST if reason in LOSSES else status, reason, detail)
        self._accepting = False
        self._state("interrupting", {"reason": reason.value, "detail": detail})
        self._wake.set()
        if self._client is None and self._work is not None:
            self._work.cancel()

    def _park(self, approval_id: str) -> None:
        """End the process, but not the task: it resumes when somebody has decided."""
        if self._ending is None:
            self._parked_for = approval_id
            self._ending = Ending(RunState.PARKED, None, "A tool call waits for a person; the run resumes after that.")
            self._accepting = False
            self._wake.set()

    async def message(self, text: str) -> bool:
        """Put a message into the conversation; False when it is over or has not begun."""
        if not self._accepting:
            return False
        try:
            await self._say(text)
        except ClaudeSDKError:
            return False
        self.journal.add(EventKind.MESSAGE, "message", {"text": text})
        return True

    def decide(self, approval: Approval) -> bool:
        """Hand a person's decision to the call that waits for it."""
        return self.permissions.decide(approval)

    # The run itself.

    async def execute(self) -> Outcome:
        """Do the run and return how it ended; never raises but when cancelled from outside."""
        order, run = self.order, self.order.run
        log.info("run started task=%s run=%s agent=%s resume=%s", run.task_id, run.id, run.agent_id, order.resume)
        self.journal.start()
        self._state("started", {"session_id": self.session_id, "number": run.number, "role": order.role.name})
        self._work = asyncio.create_task(self._do(), name=f"run {run.id}")
        try:
            ending = await self._work
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            ending = self._ending
        except WorkspaceRefused as error:
            ending = Ending(RunState.FAILED, Reason.BAD_WORKSPACE, error.message)
        except ClaudeNotFound as error:
            ending = Ending(RunState.FAILED, Reason.CLAUDE_NOT_FOUND, error.message)
        except CredentialsMissing as error:
            ending = Ending(RunState.FAILED, Reason.AUTHENTICATION, error.message)
        except Exception as error:
            log.exception("run broke task=%s run=%s agent=%s", run.task_id, run.id, run.agent_id)
            ending = self._ending or Ending(RunState.FAILED, Reason.CLAUDE_ERROR, f"{type(error).__name__}: {error}")
        finally:
            self._accepting = False
            await self._end_processes()
        return await self._outcome(ending)

    async def _do(self) -> Ending:
        if self._ending is not None:
            return self._ending
        claude = find_claude(self.around.config)
        credentials = await self.around.find_credentials()
        prepared = self._prepared = await self._prepare()
        config_dir = credentials.config_dir or self._config_dir()
        config_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        entries = await self._transcript() if self.order.resume else []
        fresh = True
        while True:
            if entries:
                write_transcript(config_dir, project_key_for_directory(prepared.path), self.session_id, entries)
            elif self.order.resume:
                self.session_id = session_of_task(self.order.task.id) if fresh else str(uuid.uuid4())
                self._state("restarted", {"why": "there is no usable transcript: the run starts from its prompt"})
            ending = await self._converse(claude, credentials, prepared, config_dir, entries)
            result = self.facts.result
            if entries and self._ending is None and result is not None and session_missing(result):
                # The transcript was cut too early to be one; the prompt is still there.
                entries, self.facts, self._sent, fresh = [], RunFacts(), [], False
                continue
            return ending

    async def _prepare(self) -> Prepared:
        task = self.order.task
        workspaces = self.around.workspaces
        workspace = task.workspace or self.order.role.workspace
        folder = workspaces.folder_of(workspace, task.id, task.continue_from)
        prepared = await workspaces.prepare(workspace, folder)
        self._state(
            "workspace",
            {
                "kind": prepared.kind.value,
                "path": str(prepared.path),
                "branch": prepared.branch,
                "base": prepared.base,
                "reused": prepared.reused,
            },
        )
        return prepared

    def _config_dir(self) -> Path:
        return self.around.config.work_path / "claude" / self.order.run.id

    async def _transcript(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + TRANSCRIPT_S
        while True:
            try:
                entries = await self.around.store.transcript(self.session_id)
                break
            except FleetError as error:
                if time.monotonic() >= deadline:
                    self._state("transcript_unavailable", {"detail": error.message})
                    return []
                await asyncio.sleep(0.5)
        if not usable(entries):
            return []
        self._state("resumed", {"session_id": self.session_id, "entries": len(entries), "moved": self.order.moved})
        return entries

    async def _converse(
        self,
        claude: Path,
        credentials: Credentials,
        prepared: Prepared,
        config_dir: Path,
        entries: list[dict[str, Any]],
    ) -> Ending:
        order = self.order
        transport = self._transport = GuardedTransport(
            claude_argv(
                claude,
                order.role,
                session_id=self.session_id,
                resume=bool(entries),
                limits=order.task.limits,
                rules=order.rules,
                output_schema=order.task.output_schema,
            ),
            env=claude_environment(
                self.around.environ,
                credentials,
                config_dir=config_dir,
                run_id=order.run.id,
                agent_id=order.run.agent_id,
                owner=self.around.owner,
                extra=await self._extra(credentials, prepared),
            ),
            cwd=prepared.path,
            secrets_by_descriptor=credentials.by_descriptor,
            redact=credentials.secrets if credentials.kind != "rehearsal" else (),
            tag=f"{RUN_TAG}={order.run.id}",
            cgroup=f"fleet-{order.run.id}" if self.around.config.cgroups else "",
            # The agent itself ends the run first, and says why.
            lease_s=self.around.config.lease_s + LEASE_MARGIN_S,
            on_frame=self._on_frame,
            on_stderr=self._on_stderr,
        )
        client = ClaudeSDKClient(
            ClaudeAgentOptions(can_use_tool=self.permissions.can_use_tool, verbatim_prompts=True), transport
        )
        try:
            try:
                await asyncio.wait_for(client.connect(), CONNECT_S)
                self._client = client
                await self._say(first_message(order, entries))
                self._accepting = self._ending is None
                ending = await self._watch(transport)
            except (ClaudeSDKError, TimeoutError, Exception) as error:
                if not isinstance(error, ClaudeSDKError | TimeoutError) and not transport.exited.is_set():
                    raise
                ending = await self._died(transport, str(error) or "Claude Code did not answer")
        finally:
            self._accepting = False
            self._client = None
            await client.disconnect()
            await transport.close()
        return ending

    async def _extra(self, credentials: Credentials, prepared: Prepared) -> dict[str, str]:
        """Return more variables: a home of its own in rehearsal, and a name for commits where git knows none."""
        extra: dict[str, str] = {}
        if credentials.kind == "rehearsal":
            home = self.around.config.work_path / "home"
            home.mkdir(parents=True, exist_ok=True)
            extra["HOME"] = str(home)
        if prepared.repository is not None:
            try:
                await git(prepared.path, "config", "user.email", timeout_s=10, environ={**self.around.environ, **extra})
            except GitFailed:
                name, mail = f"fleet {self.order.role.name}", "fleet@localhost"
                extra |= {f"GIT_{who}_NAME": name for who in ("AUTHOR", "COMMITTER")}
                extra |= {f"GIT_{who}_EMAIL": mail for who in ("AUTHOR", "COMMITTER")}
        return extra

    async def _say(self, text: str) -> None:
        """Send a user message under a uuid of our own: results name the messages that they answer."""
        assert self._client is not None
        mark = str(uuid.uuid4())
        self._sent.append(mark)
        frame = {
            "type": "user",
            "uuid": mark,
            "message": {"role": "user", "content": text},
            "parent_tool_use_id": None,
        }

        async def one() -> AsyncIterator[dict[str, Any]]:
            yield frame

        await self._client.query(one())

    def _on_frame(self, frame: dict[str, Any]) -> None:
        kind = str(frame.get("type") or "")
        self._heard = time.monotonic()
        self.last_event_at = time.time()
        if kind == "transcript_mirror":
            self.journal.add(
                EventKind.TRANSCRIPT,
                "mirror",
                {"file": str(frame.get("filePath") or ""), "entries": frame.get("entries") or []},
            )
            return
        tool = self.facts.tool
        self.facts.take(frame)
        self.journal.add(EventKind.FRAME, kind, frame)
        if self.facts.tool != tool or kind == "result":
            self.around.on_change()
        if kind in ("result", "system"):
            self._wake.set()

    def _on_stderr(self, line: str) -> None:
        self._last_stderr = line[:500]
        self.journal.add(EventKind.STDERR, "stderr", {"text": line})

    def _state(self, type: str, payload: dict[str, Any]) -> None:
        self.journal.add(EventKind.STATE, type, payload)

    # Waiting for its end.

    async def _watch(self, transport: GuardedTransport) -> Ending:
        """Wait until the conversation is over or is to be ended."""
        limits, role = self.order.task.limits, self.order.role
        time_limit = limits.time_limit_s or role.time_limit_s
        silence_limit = limits.silence_limit_s or role.silence_limit_s
        started = self._heard = time.monotonic()
        exit_wait = asyncio.create_task(transport.exited.wait())
        done_since: float | None = None
        try:
            while True:
                self._wake.clear()
                if self._ending is not None:
                    return await self._interrupted(transport)
                if transport.exited.is_set():
                    return await self._died(transport, "")
                now = time.monotonic()
                patience = [1.0]
                if self.facts.result is not None:
                    done_since = done_since if done_since is not None else now
                    left = self._left_to_wait(now - done_since)
                    if left <= 0:
                        self._accepting = False
                        return self._ended_well()
                    patience.append(left)
                else:
                    done_since = None
                if self.permissions.waiting:
                    self._heard = now
                elif now - started - self.permissions.waited_s >= time_limit:
                    self.end(Reason.TIME_LIMIT, f"The run took longer than its limit of {time_limit:g} s.")
                    continue
                elif now - self._heard >= silence_limit:
                    self.end(Reason.SILENT, f"Claude Code said nothing for {silence_limit:g} s.")
                    continue
                else:
                    patience += [time_limit - (now - started - self.permissions.waited_s)]
                    patience += [silence_limit - (now - self._heard)]
                wake = asyncio.create_task(self._wake.wait())
                await asyncio.wait(
                    {wake, exit_wait}, timeout=max(0.01, min(patience)), return_when=asyncio.FIRST_COMPLETED
                )
                wake.cancel()
        finally:
            exit_wait.cancel()

    def _left_to_wait(self, waited: float) -> float:
        """Return how much longer to wait after a result: all messages must be answered and the session be idle."""
        answered = not self.facts.answered or set(self._sent) <= self.facts.answered
        if self.facts.idle and (answered or waited >= QUIET_S):
            return 0.0
        if self.facts.idle is None:
            return QUIET_S - waited
        return (QUIET_S if self.facts.idle else IDLE_S) - waited

    def _ended_well(self) -> Ending:
        result = self.facts.result
        assert result is not None
        return classify(result, self.facts)

    async def _interrupted(self, transport: GuardedTransport) -> Ending:
        """Stop the turn: asked politely first, then by signals; the guard kills after its grace."""
        assert self._ending is not None and self._client is not None
        if self._ending.status is RunState.PARKED:
            # Not interrupted: the transcript must end with the call that waits, as the resumed session shall see it.
            transport.signal(signal.SIGTERM)
            await transport.ended(INTERRUPT_S)
            return self._ending
        before = len(self.facts.results)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.interrupt(), INTERRUPT_S)
        deadline = time.monotonic() + INTERRUPT_S
        while len(self.facts.results) == before and not transport.exited.is_set():
            self._wake.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                transport.signal(signal.SIGTERM)
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(left, 0.2))
        return self._ending

    async def _died(self, transport: GuardedTransport, why: str) -> Ending:
        """Return the ending of a process that ended by itself or never answered."""
        if self._ending is not None:
            return self._ending
        if not await transport.ended(1.0):
            await transport.close()
            return Ending(RunState.FAILED, Reason.CLAUDE_ERROR, f"{why}. {self._last_stderr}".strip())
        # What it said last may still be on its way through the reader.
        await asyncio.sleep(0.05)
        if self.facts.result is not None:
            return self._ended_well()
        code = transport.exit_code or 0
        killed = -code if code < 0 else code - 128 if code > 128 else 0
        if killed in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
            name = signal.Signals(killed).name
            return Ending(RunState.LOST, Reason.AGENT_LOST, f"Claude Code was ended from outside by {name}.")
        said = self._last_stderr or why or "it said nothing"
        return Ending(RunState.FAILED, Reason.CLAUDE_ERROR, f"Claude Code ended with exit code {code}: {said}")

    # After it.

    async def _end_processes(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(Exception):
                await self._transport.close()
            # The stub has looked after its guard, unless it was killed itself; it takes a look at all of /proc.
            code = self._transport.exit_code
            swept = code is not None and code >= 0 and code != 143
            killed = (
                0
                if swept
                else await sweep(
                    f"{RUN_TAG}={self.order.run.id}",
                    cgroup=f"fleet-{self.order.run.id}" if self.around.config.cgroups else "",
                )
            )
            if killed:
                log.warning("swept processes=%s run=%s agent=%s", killed, self.order.run.id, self.order.run.agent_id)
                self._state("swept", {"processes": killed})
        # Its transcript is in the journal; a login's own folder is not ours to remove.
        await asyncio.to_thread(shutil.rmtree, self._config_dir(), True)

    async def _outcome(self, ending: Ending) -> Outcome:
        order, run, facts, now = self.order, self.order.run, self.facts, time.time()
        result = await self._result(now) if ending.status is RunState.SUCCEEDED else None
        if self._prepared is not None and result is None and ending.status is RunState.FAILED:
            changes = await self.around.workspaces.changes(self._prepared)
            if changes.files:
                self._state("changes", {"files": list(changes.files), "branch": self._prepared.branch})
        self._state(
            "ended",
            {
                "status": ending.status.value,
                "reason": ending.reason.value if ending.reason else None,
                "detail": ending.detail,
                "cost_usd": facts.cost_usd,
                "turns": facts.turns,
                "stdin_at": self._transport.stdin_at if self._transport is not None else None,
            },
        )
        cut_off = ending.reason in (Reason.NODE_LOST, Reason.AGENT_STOPPED)
        if not await self.journal.close(1.0 if cut_off else FLUSH_S):
            log.error("events lost: the store did not take them task=%s run=%s", run.task_id, run.id)
        log.info(
            "run ended task=%s run=%s agent=%s status=%s reason=%s", run.task_id, run.id, run.agent_id,
            ending.status.value, ending.reason,
        )  # fmt: skip
        return Outcome(
            run_id=run.id,
            task_id=run.task_id,
            agent_id=run.agent_id,
            epoch=order.epoch,
            status=ending.status,
            reason=ending.reason,
            detail=ending.detail,
            retry_at=ending.retry_at,
            session_id=facts.session_id or self.session_id,
            result=result,
            cost_usd=facts.cost_usd,
            usage=facts.usage,
            turns=facts.turns,
            finished_at=now,
            approval_id=self._parked_for,
        )

    async def _result(self, now: float) -> Result:
        frame, prepared = self.facts.result or {}, self._prepared
        assert prepared is not None
        changes = await self.around.workspaces.changes(prepared)
        denials = list(self.permissions.denials)
        known = [(denial.get("tool_name"), denial.get("tool_input")) for denial in denials]
        for denial in frame.get("permission_denials") or []:
            if isinstance(denial, dict) and (denial.get("tool_name"), denial.get("tool_input")) not in known:
                denials.append(denial)
        text = frame.get("result")
        return Result(
            task_id=self.order.task.id,
            run_id=self.order.run.id,
            role=self.order.role.name,
            text=text if isinstance(text, str) else "",
            structured=frame.get("structured_output"),
            diff=changes.diff,
            branch=prepared.branch,
            workspace_path=str(prepared.path),
            files_changed=changes.files,
            denials=tuple(denials),
            cost_usd=self.facts.cost_usd,
            usage=self.facts.usage,
            turns=self.facts.turns,
            duration_s=max(0.0, now - self._started),
            finished_at=now,
        )


def this_environment() -> dict[str, str]:
    """Return a copy of this process's environment."""
    return dict(os.environ)
