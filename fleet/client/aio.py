"""The async client: `AsyncFleet` and its task handles; a thin shell over httpx.

The same names as the sync client; what waits is awaited, `task.result` and `task.diff` too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from fleet.client import calls
from fleet.client._base import (
    CONNECT_RETRY_S,
    RETRY_FOR_S,
    STREAM_SILENCE_S,
    WAIT_S,
    Call,
    Message,
    Patience,
    StreamReader,
    Target,
    away,
    event_of,
    failure,
    find_target,
    is_loopback,
    read_answer,
    read_error,
    timeout,
)
from fleet.client.handles import HandleBase
from fleet.client.rows import Rows
from fleet.errors import Timeout, Unavailable, from_dict
from fleet.models import AgentInfo, Approval, Event, NodeInfo, Result, RoleState, Run, Task, TaskSpec

T = TypeVar("T")

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""After these the call cannot have arrived."""


class AsyncTaskHandle(HandleBase):
    """A task of a fleet."""

    def __init__(self, fleet: AsyncFleet, task: Task) -> None:
        super().__init__(task)
        self._fleet = fleet

    async def refresh(self) -> AsyncTaskHandle:
        """Look at the task again."""
        self._task = await self._fleet._do(calls.task(self.id))
        return self

    async def wait(self, timeout: float | None = None) -> AsyncTaskHandle:
        """Wait until the task is final.

        Args:
            timeout: how long, in seconds; None for ever.

        Raises:
            Timeout: it was not in time; the task goes on.
        """
        async for _ in self._fleet.as_completed([self], timeout):
            pass
        return self

    @property
    async def result(self) -> Result:
        """What the task left; waits for it.

        Raises:
            TaskFailed: it did not succeed; the message says why and what can be done.
        """
        if not self.done:
            await self.wait()
        if (error := failure(self._task)) is not None:
            raise error
        return await self._fleet._do(calls.result(self.id))

    @property
    async def diff(self) -> str:
        """What the task changed, as a unified diff."""
        return await self._fleet._do(calls.diff(self.id))

    async def runs(self) -> list[Run]:
        """Return its runs, oldest first."""
        return await self._fleet._do(calls.runs(self.id))

    async def events(
        self, *, after: int = 0, kinds: str | None = None, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[Event]:
        """Yield the task's events until it is final; an interrupted connection is taken up where it was cut.

        Args:
            after: the id of the last event already seen.
            kinds: only these kinds, e.g. `frame,state`.
            tail: begin with so many of the newest.
            follow: go on after the final state.
        """
        params = {"kinds": kinds, "tail": tail, "follow": follow}
        async for message in self._fleet._stream(f"/api/tasks/{self.id}/events", params, after):
            if message.id is not None:
                yield event_of(message)
            elif message.event == "end":
                await self.refresh()

    async def cancel(self, detail: str = "") -> AsyncTaskHandle:
        """Cancel the task, also while it runs."""
        self._task = (await self._fleet._do(calls.cancel([self.id], detail)))[0]
        return self

    async def retry(self) -> AsyncTaskHandle:
        """Queue a failed, cancelled or dead task again."""
        self._task = (await self._fleet._do(calls.retry([self.id])))[0]
        return self

    async def prioritize(self, priority: int) -> AsyncTaskHandle:
        """Change the priority of a task that waits."""
        self._task = (await self._fleet._do(calls.prioritize([self.id], priority)))[0]
        return self

    async def continue_(self, prompt: str, **options: Any) -> AsyncTaskHandle:
        """Go on with a finished task's conversation in a new task."""
        return AsyncTaskHandle(self._fleet, await self._fleet._do(calls.go_on(self.id, prompt, options)))


class AsyncFleet:
    """A running fleet.

    ```python
    async with await AsyncFleet.connect() as fleet:
        task = await fleet.submit("code_reviewer", "Review the last commit.", workspace=".")
        print((await task.result).text)
    ```

    Args:
        target: where it is.
        retry_for_s: how long calls are sent again while the fleet, or a part of it, is away.
        transport: httpx's transport, for tests.
    """

    def __init__(
        self, target: Target, *, retry_for_s: float = RETRY_FOR_S, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.target = target
        self._retry_for_s = retry_for_s
        self._http = httpx.AsyncClient(
            base_url=target.url,
            headers={"Authorization": f"Bearer {target.token}"},
            transport=transport,
            trust_env=not is_loopback(target.url),
        )

    @classmethod
    async def connect(
        cls, url: str | None = None, token: str | None = None, *, retry_for_s: float = RETRY_FOR_S
    ) -> AsyncFleet:
        """Connect to a fleet, and see that it answers.

        Args:
            url: of its gateway; None takes `FLEET_URL`, else what `fleet up` recorded under `FLEET_HOME`.
            token: its access token; None takes `FLEET_TOKEN`, else the token file under `FLEET_HOME`.
            retry_for_s: how long calls are sent again while the fleet, or a part of it, is away.

        Raises:
            NotFound: no fleet was named and none is recorded.
            Unauthorized: no token, or a wrong one.
            Unavailable: it does not answer.
        """
        fleet = cls(find_target(url, token), retry_for_s=retry_for_s)
        try:
            await fleet._do(calls.version(), retry_for_s=min(CONNECT_RETRY_S, retry_for_s))
        except BaseException:
            await fleet.close()
            raise
        return fleet

    async def close(self) -> None:
        """Close the connections; the fleet goes on."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncFleet:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncFleet {self.target.url}>"

    # Tasks

    async def submit(self, role: str, prompt: str, **options: Any) -> AsyncTaskHandle:
        """Submit a task; returns once it is on disk.

        Args:
            role: who does it.
            prompt: what to do.
            **options: fields of `TaskSpec` (`priority`, `workspace` as a path or its short form, `depends_on`,
                `output_schema`, `labels`, `idempotency_key`, …) and limits by name (`max_turns`, `max_cost_usd`, …).
        """
        return (await self.submit_many([calls.make_spec(role, prompt, options)]))[0]

    async def submit_many(self, specs: Iterable[TaskSpec]) -> list[AsyncTaskHandle]:
        """Submit tasks; each request of up to 500 is accepted as a whole or not at all."""
        wanted = list(specs)
        handles: list[AsyncTaskHandle] = []
        for start in range(0, len(wanted), calls.BATCH):
            part = await self._do(calls.submit(wanted[start : start + calls.BATCH]))
            handles += [AsyncTaskHandle(self, task) for task in part]
        return handles

    async def map(self, prompts: Iterable[str], *, role: str, **options: Any) -> list[AsyncTaskHandle]:
        """Submit one task for each prompt, with the same role and options; `as_completed` yields them as they end."""
        return await self.submit_many(calls.make_specs(role, prompts, options))

    async def as_completed(
        self, tasks: Iterable[AsyncTaskHandle], timeout: float | None = None
    ) -> AsyncIterator[AsyncTaskHandle]:
        """Yield tasks as they become final, each once.

        Raises:
            Timeout: `timeout` seconds passed before the last one.
        """
        pending = {handle.id: handle for handle in tasks}
        deadline = None if timeout is None else time.monotonic() + timeout
        for handle in [handle for handle in pending.values() if handle.done]:
            del pending[handle.id]
            yield handle
        while pending:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise Timeout(
                    f"{len(pending)} tasks were not final after {timeout} s. They go on: wait again, or cancel them.",
                    seconds=timeout,
                    tasks=list(pending)[:100],
                )
            wait_s = WAIT_S if left is None else min(left, WAIT_S)
            for task in await self._do(calls.wait(list(pending)[: calls.IDS], wait_s)):
                handle = pending.pop(task.id)
                handle._task = task
                yield handle

    async def task(self, task_id: str) -> AsyncTaskHandle:
        """Return a task by its id, or the beginning of it."""
        return AsyncTaskHandle(self, await self._do(calls.task(task_id)))

    async def tasks(self, *, limit: int = 100, before: str | None = None, **filters: Any) -> list[AsyncTaskHandle]:
        """Return tasks, newest first.

        Args:
            limit: how many at most.
            before: only tasks older than the one of this id.
            **filters: `state`, `role` (one or several), `agent`, `text`, `labels`, `priority`, `since` (seconds ago).
        """
        found: list[AsyncTaskHandle] = []
        while len(found) < limit:
            page, before = await self._do(calls.tasks(before=before, limit=limit - len(found), **filters))
            found += [AsyncTaskHandle(self, task) for task in page]
            if before is None:
                break
        return found

    async def detail(self, task_id: str) -> dict[str, Any]:
        """Return a task with its runs, result and remedy, as the JSON of `GET /api/tasks/{id}`."""
        return await self._do(calls.detail(task_id))

    async def cancel(self, task_ids: Sequence[str], detail: str = "") -> list[Task]:
        """Cancel tasks, also while they run."""
        return await self._do(calls.cancel(task_ids, detail))

    async def retry(self, task_ids: Sequence[str]) -> list[Task]:
        """Queue failed, cancelled or dead tasks again."""
        return await self._do(calls.retry(task_ids))

    async def prioritize(self, task_ids: Sequence[str], priority: int) -> list[Task]:
        """Change the priority of tasks that wait."""
        return await self._do(calls.prioritize(task_ids, priority))

    async def events(self, **query: Any) -> list[Event]:
        """Return a page of events of a `task`, `run` or `agent` (`after`, `before`, `kinds`, `newest`, `limit`)."""
        return await self._do(calls.events(**query))

    async def transitions(self, what: str, id: str) -> list[dict[str, Any]]:
        """Return the changes of state of a task, run or agent, oldest first."""
        return await self._do(calls.transitions(what, id))

    # Agents

    async def agents(self, *, all: bool = False, role: str | None = None, state: str | None = None) -> list[AgentInfo]:
        """Return the agents; with `all` also those that were stopped."""
        return await self._do(calls.agents(all, role, state))

    async def cards(self, *, all: bool = False) -> list[dict[str, Any]]:
        """Return the agents with what each does now, as JSON."""
        return await self._do(calls.cards(all))

    async def agent(self, agent_id: str) -> dict[str, Any]:
        """Return an agent, its task and its last runs, as JSON."""
        return await self._do(calls.agent(agent_id))

    async def spawn(self, role: str, count: int = 1) -> list[AgentInfo]:
        """Start agents of a role."""
        return await self._do(calls.spawn(role, count))

    async def stop(self, agent_id: str, *, drain: bool = True) -> AgentInfo:
        """Stop an agent: after its run with `drain`, else now."""
        return await self._do(calls.stop(agent_id, drain))

    async def send(self, agent_id: str, text: str) -> dict[str, Any]:
        """Say something to an agent; `delivered` says whether it went into a running conversation."""
        return await self._do(calls.send(agent_id, text))

    async def interrupt(self, agent_id: str) -> bool:
        """Cancel what an agent runs now."""
        return await self._do(calls.interrupt(agent_id))

    async def logs(
        self, agent_id: str, *, tail: int = 200, after: int = 0, kinds: str | None = None, follow: bool = True
    ) -> AsyncIterator[Event]:
        """Yield an agent's events over all its runs, beginning with the newest `tail`."""
        params = {"tail": tail, "kinds": kinds, "follow": follow}
        async for message in self._stream(f"/api/agents/{agent_id}/logs", params, after):
            if message.id is not None:
                yield event_of(message)

    # The fleet

    async def roles(self) -> list[dict[str, Any]]:
        """Return the roles with their agents and queues."""
        return await self._do(calls.roles())

    async def scale(self, role: str, agents: int) -> RoleState:
        """Say how many agents a role has."""
        return await self._do(calls.scale(role, agents))

    async def pause(self, role: str | None = None) -> None:
        """Let a role's queue wait, or with None every queue."""
        await self._do(calls.pause(role, True))

    async def resume(self, role: str | None = None) -> None:
        """Let a role's queue go on, or with None every queue."""
        await self._do(calls.pause(role, False))

    async def nodes(self) -> list[NodeInfo]:
        """Return the nodes."""
        return await self._do(calls.nodes())

    async def drain_node(self, node: str, *, deadline_s: float | None = None, undo: bool = False) -> NodeInfo:
        """Take a node out of use, or with `undo` back into it."""
        return await self._do(calls.drain_node(node, deadline_s, undo))

    async def approvals(self, *, all: bool = False) -> list[Approval]:
        """Return the tool calls that wait for a person; with `all` also those that were decided."""
        return await self._do(calls.approvals(all))

    async def decide(
        self,
        approval_id: str,
        *,
        allow: bool,
        scope: str = "once",
        message: str = "",
        changed_input: Mapping[str, Any] | None = None,
        by: str = "",
    ) -> Approval:
        """Answer a tool call that waits for a person.

        Args:
            approval_id: which.
            allow: whether it may be done.
            scope: `once`, `task` or `role`.
            message: words to the agent.
            changed_input: what is done in place of what was asked for.
            by: who decided.
        """
        return await self._do(calls.decide(approval_id, allow, scope, message, changed_input, by))

    async def sql(self, query: str, *, max_rows: int | None = None, timeout_s: float = 30.0) -> Rows:
        """Run one SELECT over the fleet's tables: `.arrow()`, `.pandas()`, `.rows`, or iterate dicts."""
        return await self._do(calls.sql(query, max_rows, timeout_s))

    async def search(self, words: str = "", **filters: Any) -> list[dict[str, Any]]:
        """Search all transcripts (`tool`, `path`, `role`, `state`, `since` seconds ago, `limit`), newest first."""
        return await self._do(calls.search(words, **filters))

    async def status(self) -> dict[str, Any]:
        """Return the fleet's figures: what runs, what waits and why, today's numbers and cost."""
        return await self._do(calls.status())

    async def health(self) -> dict[str, Any]:
        """Return whether every part answers."""
        return await self._do(calls.health())

    async def version(self) -> dict[str, Any]:
        """Return which fleet it is: `version`, `rehearsal`, …."""
        return await self._do(calls.version())

    async def store_info(self) -> dict[str, Any]:
        """Return figures of the store."""
        return await self._do(calls.store())

    async def backup(self, folder: str | Path) -> dict[str, Any]:
        """Write a backup into a new folder on the store's machine, while the fleet runs."""
        return await self._do(calls.backup(str(Path(folder).expanduser().absolute())))

    async def export(self, url: str | Path) -> dict[str, Any]:
        """Write what is new since the last export as Parquet to a folder of the store's machine, or an fsspec URL."""
        where = str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())
        return await self._do(calls.export(where))

    async def prune(self, *, older_than_s: float | None = None, max_events: int | None = None) -> int:
        """Delete old events; returns how many."""
        return await self._do(calls.prune(older_than_s, max_events))

    async def setting(self, key: str) -> Any:
        """Return a kept value. Raises NotFound."""
        return await self._do(calls.setting(key))

    async def put_setting(self, key: str, value: Any) -> None:
        """Keep a value under `templates…`, `queries…` or `ui…`."""
        await self._do(calls.put_setting(key, value))

    # The shell

    async def _do(self, call: Call[T], retry_for_s: float | None = None) -> T:
        patience = Patience(self._retry_for_s if retry_for_s is None else retry_for_s)
        while True:
            try:
                answer = await self._http.request(**call.request())
            except httpx.TransportError as error:
                delay = patience.after_failure(call.safe, not isinstance(error, NOT_SENT))
                if delay is None:
                    raise away(self.target, error) from error
            else:
                after = answer.headers.get("Retry-After")
                delay = patience.after_answer(call.safe, answer.status_code, after, call.also)
                if delay is None:
                    return read_answer(call, answer.status_code, answer.content)
            await asyncio.sleep(delay)

    async def _stream(self, path: str, params: Mapping[str, Any], after: int) -> AsyncIterator[Message]:
        reader = StreamReader(after)
        patience = Patience(self._retry_for_s)
        query = {key: value for key, value in params.items() if value is not None}
        while True:
            reader.restart()
            headers = {"Accept": "text/event-stream"}
            if reader.last_id:
                headers["Last-Event-ID"] = str(reader.last_id)
            problem: Exception = Unavailable("the stream was cut")
            try:
                async with self._http.stream(
                    "GET", path, params=query, headers=headers, timeout=timeout(STREAM_SILENCE_S)
                ) as answer:
                    if answer.status_code >= 400:
                        problem = read_error(answer.status_code, await answer.aread())
                        delay = patience.after_answer(True, answer.status_code, answer.headers.get("Retry-After"))
                        if delay is None:
                            raise problem
                    else:
                        async for chunk in answer.aiter_bytes():
                            for message in reader.feed(chunk):
                                if message.event == "error":
                                    raise from_dict(message.data)
                                patience = Patience(self._retry_for_s)
                                yield message
                                if message.event == "end":
                                    return
                        delay = patience.after_failure(True, True)
            except httpx.TransportError as error:
                problem, delay = error, patience.after_failure(True, True)
            except Unavailable as error:
                problem, delay = error, patience.after_failure(True, True)
            if delay is None:
                raise away(self.target, problem) from problem
            await asyncio.sleep(delay)
