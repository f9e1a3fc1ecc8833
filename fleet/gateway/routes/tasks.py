"""Tasks: submit, list, look at, wait for, cancel, retry, prioritize, continue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fleet.errors import Conflict, InvalidInput, NotFound
from fleet.gateway import sse
from fleet.gateway.bodies import Cancel, CancelMany, Continue, Ids, Priority, PriorityMany, WaitMany
from fleet.gateway.broadcaster import of_task
from fleet.gateway.parts import Parts, dump
from fleet.gateway.streams import Wish
from fleet.gateway.validate import check_priority, check_specs, parse_specs
from fleet.gateway.views import explained, light
from fleet.lifecycle import TaskState
from fleet.models import Result, Run, Task, TaskSpec

STATES = [state.value for state in TaskState]
WAIT_LIMIT_S = 120.0
"""How long one answer waits; a client that wants longer asks again."""
ASK_AT_ONCE = 64

ONE_OR_MANY = {
    "requestBody": {
        "required": True,
        "description": "One task, a list of tasks, or {tasks: [...]}. `workspace` also takes its short form, e.g. "
        '"worktree:/a/repo@main".',
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TaskSpec"}}},
    }
}


def routes(parts: Parts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["tasks"])

    @router.post("/tasks", status_code=201, openapi_extra=ONE_OR_MANY, responses={201: {"model": Task}})
    @router.post("/tasks:batch", status_code=201, openapi_extra=ONE_OR_MANY)
    async def submit(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> JSONResponse:
        """Submit one task or many (all or none); answered once they are on disk."""
        specs, several = parse_specs(await request.body())
        if idempotency_key is not None and not several and specs[0].idempotency_key is None:
            specs = [specs[0].model_copy(update={"idempotency_key": idempotency_key[:200]})]
        tasks = await _submit(specs, "tasks" if several else "")
        if several:
            return JSONResponse({"items": [dump(task) for task in tasks]}, 201)
        return JSONResponse(explained(tasks[0]), 201)

    async def _submit(specs: Sequence[TaskSpec], where: str) -> list[Task]:
        if not specs:
            return []
        here = await parts.one_machine()
        await asyncio.to_thread(check_specs, parts.config, specs, here=here, where=where)
        for agent_id in sorted({spec.agent for spec in specs if spec.agent is not None}):
            await parts.living_agent(agent_id)
        return await parts.router.submit(list(specs))

    @router.get("/tasks")
    async def listing(
        state: Annotated[list[str] | None, Query(description="One or more states.")] = None,
        role: Annotated[list[str] | None, Query()] = None,
        agent: str | None = None,
        text: Annotated[str | None, Query(description="Words in the prompt.")] = None,
        label: Annotated[list[str] | None, Query(description="name=value, all of them.")] = None,
        priority: int | None = None,
        since: Annotated[float | None, Query(description="Only tasks made in the last so many seconds.")] = None,
        before: Annotated[str | None, Query(description="The cursor: `next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> JSONResponse:
        """List tasks, newest first, a page at a time."""
        states = _split(state)
        if unknown := [name for name in states if name not in STATES]:
            raise InvalidInput(
                f"state: expected some of {', '.join(STATES)}, but got {unknown[0][:80]!r}.", field="state"
            )
        if priority is not None:
            check_priority(priority)
        tasks = await parts.store.tasks(
            states=states,
            roles=_split(role),
            agent=agent,
            text=text or None,
            labels=_labels(label) or None,
            priority=priority,
            since=time.time() - since if since is not None else None,
            before=before,
            limit=limit + 1,
        )
        page = tasks[:limit]
        more = page[-1].id if len(tasks) > limit else None
        return JSONResponse({"items": [explained(task) for task in page], "next": more})

    @router.get("/tasks/{task_id}", responses={200: {"model": Task}})
    async def detail(task_id: str) -> JSONResponse:
        """Return a task with its runs, its result (without the diff) and its remedy."""
        task = await parts.store.task(task_id)
        runs, result = await asyncio.gather(parts.store.runs(task_id=task.id), parts.store.result(task.id))
        shown = light(result) if result is not None else None
        return JSONResponse({**explained(task), "runs": [dump(run) for run in runs], "result": shown})

    @router.get("/tasks/{task_id}/runs", responses={200: {"model": list[Run]}})
    async def runs(task_id: str) -> JSONResponse:
        """Return the runs of a task, oldest first."""
        task = await parts.store.task(task_id)
        return JSONResponse({"items": [dump(run) for run in await parts.store.runs(task_id=task.id)]})

    @router.get("/tasks/{task_id}/result", responses={200: {"model": Result}})
    async def result(task_id: str) -> JSONResponse:
        """Return what a finished task left, with its diff."""
        return JSONResponse(dump(await _result(task_id)))

    @router.get("/tasks/{task_id}/diff", response_class=PlainTextResponse)
    async def diff(task_id: str) -> Response:
        """Return what a finished task changed, as a unified diff."""
        return PlainTextResponse((await _result(task_id)).diff, media_type="text/x-diff; charset=utf-8")

    async def _result(task_id: str) -> Result:
        task = await parts.store.task(task_id)
        found = await parts.store.result(task.id)
        if found is not None:
            return found
        if task.state.final:
            raise NotFound(
                f"Task {task.id} {task.state.value} and left no result. `fleet task {task.id}` says why.",
                what="result",
                id=task.id,
            )
        raise Conflict(
            f"Task {task.id} is {task.state.value}: its result comes when it succeeded. Wait for it first.",
            state=task.state.value,
        )

    @router.get("/tasks/{task_id}/transitions")
    async def transitions(task_id: str) -> JSONResponse:
        """Return a task's changes of state and those of its runs, oldest first."""
        task = await parts.store.task(task_id)
        return JSONResponse({"items": await parts.store.transitions("task", task.id)})

    @router.get("/tasks/{task_id}/events", response_class=Response, responses={200: {"content": _SSE}})
    async def events(
        task_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        kinds: Annotated[str | None, Query(description="frame,state,stderr,message,transcript,gap")] = None,
        tail: Annotated[int | None, Query(ge=0, le=1000, description="Begin with so many of the newest.")] = None,
        follow: Annotated[bool, Query(description="Go on after the task's final state.")] = False,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Stream a task's events as SSE until its final state; `Last-Event-ID` resumes without a hole or a repeat."""
        begin, wanted = sse.last_id(last_event_id, after), sse.kinds_of(kinds)
        task = await parts.store.task(task_id)
        return await sse.respond(parts, Wish(task_id=task.id, after=begin, tail=tail, kinds=wanted, follow=follow))

    @router.get("/tasks/{task_id}/wait", responses={200: {"model": Task}})
    async def wait(task_id: str, timeout_s: Annotated[float, Query(ge=0, le=WAIT_LIMIT_S)] = 30.0) -> JSONResponse:
        """Return the task as soon as it is final, or as it is after `timeout_s`."""
        task = await parts.store.task(task_id)
        if not task.state.final:
            await _wait([task.id], timeout_s)
            task = await parts.store.task(task.id)
        return JSONResponse(explained(task))

    @router.post("/tasks:wait")
    async def wait_many(body: WaitMany) -> JSONResponse:
        """Return those of the tasks that are final, as soon as there is one; none after `timeout_s`."""
        return _many(await _wait(list(dict.fromkeys(body.ids)), body.timeout_s))

    async def _wait(ids: list[str], timeout_s: float) -> list[Task]:
        """Return the tasks that are final; subscribed before asked, so that no change falls in between."""
        deadline = time.monotonic() + timeout_s
        with parts.broadcaster.subscribe(*map(of_task, ids)) as subscription:
            while True:
                known = {task_id: parts.broadcaster.state_of(task_id) for task_id in ids}
                # What is remembered may lag behind the store by a moment, e.g. after a retry: the store decides.
                asked = await _tasks([task_id for task_id, state in known.items() if state is None or state.final])
                final = [task for task in asked if task.state.final]
                if final or deadline <= time.monotonic():
                    return final
                while (left := deadline - time.monotonic()) > 0:
                    delivery = await subscription.next(left)
                    if delivery.closed:
                        return []
                    if delivery.missed or any(item.kind == "task" for item in delivery.items):
                        break

    async def _tasks(ids: Sequence[str]) -> list[Task]:
        found: list[Task] = []
        for start in range(0, len(ids), ASK_AT_ONCE):
            found += await asyncio.gather(*(parts.store.task(task_id) for task_id in ids[start : start + ASK_AT_ONCE]))
        return found

    @router.post("/tasks/{task_id}/cancel", responses={200: {"model": Task}})
    async def cancel(task_id: str, body: Cancel | None = None) -> JSONResponse:
        """Cancel a task, also while it runs."""
        task = await parts.store.task(task_id)
        done = await parts.router.cancel([task.id], body.detail if body else "")
        return JSONResponse(explained(done[0]))

    @router.post("/tasks:cancel")
    async def cancel_many(body: CancelMany) -> JSONResponse:
        """Cancel tasks."""
        return _many(await parts.router.cancel(list(body.ids), body.detail))

    @router.post("/tasks/{task_id}/retry", responses={200: {"model": Task}})
    async def retry(task_id: str) -> JSONResponse:
        """Queue a failed, cancelled or dead task again, with its retries renewed."""
        task = await parts.store.task(task_id)
        return JSONResponse(explained((await parts.router.retry([task.id]))[0]))

    @router.post("/tasks:retry")
    async def retry_many(body: Ids) -> JSONResponse:
        """Queue failed, cancelled or dead tasks again."""
        return _many(await parts.router.retry(list(body.ids)))

    @router.post("/tasks/{task_id}/priority", responses={200: {"model": Task}})
    async def prioritize(task_id: str, body: Priority) -> JSONResponse:
        """Change the priority of a task that waits."""
        check_priority(body.priority)
        task = await parts.store.task(task_id)
        return JSONResponse(explained((await parts.router.prioritize([task.id], body.priority))[0]))

    @router.post("/tasks:priority")
    async def prioritize_many(body: PriorityMany) -> JSONResponse:
        """Change the priority of tasks that wait."""
        check_priority(body.priority)
        return _many(await parts.router.prioritize(list(body.ids), body.priority))

    @router.post("/tasks/{task_id}/continue", status_code=201, responses={201: {"model": Task}})
    async def go_on(task_id: str, body: Continue) -> JSONResponse:
        """Submit a task that goes on with a finished task's conversation."""
        task = await parts.store.task(task_id)
        if not task.state.final:
            raise Conflict(
                f"Task {task.id} is {task.state.value} and can be continued when it has ended. Until then, send a "
                f"message to its agent.",
                state=task.state.value,
            )
        if task.session_id is None:
            raise Conflict(
                f"Task {task.id} has no Claude session to go on with: no run of it came so far. Retry it instead.",
                state=task.state.value,
            )
        spec = TaskSpec(
            role=task.role,
            prompt=body.prompt,
            priority=task.priority if body.priority is None else body.priority,
            workspace=body.workspace or task.workspace,
            limits=body.limits or task.limits,
            idempotency_key=body.idempotency_key,
            continue_from=task.id,
            labels=task.labels if body.labels is None else body.labels,
        )
        return JSONResponse(explained((await _submit([spec], ""))[0]), 201)

    @router.get("/results")
    async def results(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JSONResponse:
        """Return the newest results, without their diffs."""
        return JSONResponse({"items": [light(found) for found in await parts.store.results(limit)]})

    return router


_SSE: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}


def _many(tasks: list[Task]) -> JSONResponse:
    return JSONResponse({"items": [explained(task) for task in tasks]})


def _split(values: list[str] | None) -> list[str]:
    """Read `?state=queued,running` and `?state=queued&state=running` alike."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def _labels(values: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values or []:
        name, sep, wanted = value.partition("=")
        if not sep or not name:
            raise InvalidInput(f"label: expected name=value, but got {value[:80]!r}.", field="label")
        found[name] = wanted
    return found
