"""What was: events, search, SQL; and the store's own care: figures, backup, pruning, kept settings."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from fleet.errors import Forbidden, InvalidInput, NotFound
from fleet.gateway import sse
from fleet.gateway.bodies import Backup, Export, Prune, Value
from fleet.gateway.bodies import Query as SqlQuery
from fleet.gateway.parts import Parts, dump
from fleet.models import EventKind

ARROW = "application/vnd.apache.arrow.stream"
ROWS_DEFAULT = 10_000
ROWS_ARROW = 1_000_000
OPEN_SETTINGS = ("templates", "queries", "ui")
"""Keys (or first words before a colon) that people may write; the others are the router's."""
EMPTY_SETTINGS = ("templates", "queries")
"""Collections: before anybody keeps one they are empty, not missing: a browser reports a 404 as an error."""


def routes(parts: Parts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["data"])

    @router.get("/events")
    async def events(
        task: str | None = None,
        run: str | None = None,
        agent: str | None = None,
        after: Annotated[int, Query(ge=0)] = 0,
        before: Annotated[int | None, Query(ge=1)] = None,
        kinds: Annotated[str | None, Query(description="frame,state,stderr,message,transcript,gap")] = None,
        newest: Annotated[bool, Query(description="The last `limit` of them, not the first.")] = False,
        limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    ) -> JSONResponse:
        """Return events of a task, run or agent as JSON, a page at a time: `next` is the `after` of the next page."""
        wanted = sse.kinds_of(kinds)
        if task is not None:
            task = (await parts.store.task(task)).id
        if task is None and run is None and agent is None:
            raise InvalidInput("Expected one of task, run and agent, but there is none.", field="task")
        page = await parts.store.events(
            task_id=task,
            run_id=run,
            agent_id=agent,
            after=after,
            before=before,
            limit=limit,
            newest=newest,
            transcript=EventKind.TRANSCRIPT.value in wanted,
        )
        more = page[-1].id if len(page) == limit and not newest else None
        shown = [dump(event) for event in page if not wanted or event.kind.value in wanted]
        return JSONResponse({"items": shown, "next": more})

    @router.get("/tasks/{task_id}/transcript")
    async def transcript(
        task_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        before: Annotated[int | None, Query(ge=1)] = None,
        kinds: str | None = None,
        newest: bool = False,
        limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    ) -> JSONResponse:
        """Return a task's events as JSON; as `/api/events?task=`."""
        return await events(
            task=task_id, after=after, before=before, kinds=kinds, newest=newest, limit=limit, run=None, agent=None
        )

    @router.get("/transitions/{what}/{id}")
    async def transitions(what: str, id: str) -> JSONResponse:
        """Return the changes of state of one task, run or agent, oldest first."""
        if what not in ("task", "run", "agent"):
            raise InvalidInput(f"what: expected task, run or agent, but got {what[:80]!r}.", field="what")
        return JSONResponse({"items": await parts.store.transitions(what, id)})

    @router.get("/search")
    async def search(
        q: Annotated[str, Query(description="Words.")] = "",
        tool: str | None = None,
        path: str | None = None,
        role: str | None = None,
        state: str | None = None,
        since: Annotated[float | None, Query(description="Only the last so many seconds.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> JSONResponse:
        """Search all transcripts, newest first."""
        if not (q.strip() or tool or path or role or state):
            raise InvalidInput("q: expected words to look for, a tool or a path, but there is none.", field="q")
        found = await parts.store.search(
            q,
            tool=tool,
            path=path,
            role=role,
            state=state,
            since=time.time() - since if since is not None else None,
            limit=limit,
        )
        return _json({"items": found})

    @router.post("/sql")
    async def sql(body: SqlQuery, accept: Annotated[str, Header()] = "") -> Response:
        """Run one SELECT; JSON, or an Arrow IPC stream when `Accept` asks for it."""
        if ARROW in accept:
            rows = body.max_rows or ROWS_ARROW
            data = await parts.store.sql_arrow(body.query, max_rows=rows, timeout_s=body.timeout_s)
            return Response(data, media_type=ARROW)
        answer = await parts.store.sql(
            body.query, max_rows=body.max_rows or ROWS_DEFAULT, timeout_s=body.timeout_s, query_id=body.query_id
        )
        return _json(answer)

    @router.delete("/sql/{query_id}")
    async def cancel_query(query_id: str) -> JSONResponse:
        """Stop a running query that was given this `query_id`."""
        return JSONResponse({"done": await parts.store.cancel_query(query_id)})

    @router.get("/settings/{key}")
    async def setting(key: str) -> JSONResponse:
        """Return a kept value: templates, saved queries."""
        value = await parts.store.setting(key)
        if value is None and key in EMPTY_SETTINGS:
            value = []
        if value is None:
            raise NotFound(f"There is no setting {key[:80]!r}.", what="setting", id=key[:80])
        return JSONResponse({"key": key, "value": value})

    @router.put("/settings/{key}")
    async def put_setting(key: str, body: Value) -> JSONResponse:
        """Keep a value under `templates…`, `queries…` or `ui…`."""
        if key.partition(":")[0] not in OPEN_SETTINGS:
            raise Forbidden(
                f"Expected a key that begins with {', '.join(OPEN_SETTINGS)}, but got {key[:80]!r}: the fleet keeps "
                f"the others itself.",
                key=key[:80],
            )
        await parts.store.put_setting(key, body.value)
        return JSONResponse({"key": key, "value": body.value})

    @router.get("/store")
    async def info() -> JSONResponse:
        """Return figures of the store."""
        return _json(await parts.store.info())

    @router.post("/backup", status_code=201)
    async def backup(body: Backup) -> JSONResponse:
        """Write a copy of the database and Parquet files of all tables into a new folder, while running."""
        if not Path(body.folder).is_absolute():
            raise InvalidInput(
                f"folder: expected an absolute path of a new folder, but got {body.folder[:200]!r}.", field="folder"
            )
        return _json(await parts.store.backup(body.folder), 201)

    @router.post("/export", status_code=201)
    async def export(body: Export) -> JSONResponse:
        """Write what is new since the last export as Parquet, by day and role."""
        if "://" not in body.url and not Path(body.url).is_absolute():
            raise InvalidInput(f"url: expected an absolute path or a URL, but got {body.url[:200]!r}.", field="url")
        return _json(await parts.store.export(body.url), 201)

    @router.post("/prune")
    async def prune(body: Prune) -> JSONResponse:
        """Delete old events; tasks, runs and results stay."""
        if body.older_than_s is None and body.max_events is None:
            raise InvalidInput("Expected older_than_s or max_events, but there is none.", field="older_than_s")
        deleted = await parts.store.prune(older_than_s=body.older_than_s, max_events=body.max_events)
        return JSONResponse({"deleted": deleted})

    return router


def _json(value: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(plain(value), status)


def plain(value: Any) -> Any:
    """Return JSON values of what DuckDB gives: dates as ISO 8601, bytes as hex, NaN, decimals and others as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, datetime | date | clock):
        return value.isoformat()
    return str(value)
