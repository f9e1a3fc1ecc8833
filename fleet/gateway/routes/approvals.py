"""Approvals: tool calls that wait for a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse

from fleet.errors import NotFound
from fleet.gateway.bodies import Decision
from fleet.gateway.parts import Parts, dump
from fleet.models import Approval


def routes(parts: Parts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["approvals"])

    @router.get("/approvals")
    async def listing(
        all: Annotated[bool, Query(description="Also those that were decided.")] = False,
        task: str | None = None,
        agent: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> JSONResponse:
        """List the tool calls that wait for a person."""
        found = await parts.store.approvals(waiting=not all, limit=limit)
        shown = [
            dump(approval)
            for approval in found
            if (task is None or approval.task_id == task) and (agent is None or approval.agent_id == agent)
        ]
        return JSONResponse({"items": shown})

    @router.get("/approvals/{approval_id}", responses={200: {"model": Approval}})
    async def detail(approval_id: str) -> JSONResponse:
        """Return an approval."""
        for waiting in (True, False):
            for approval in await parts.store.approvals(waiting=waiting, limit=1000):
                if approval.id == approval_id:
                    return JSONResponse(dump(approval))
        raise NotFound(f"There is no approval {approval_id[:80]!r}.", what="approval", id=approval_id[:80])

    @router.post("/approvals/{approval_id}", responses={200: {"model": Approval}})
    async def decide(approval_id: str, body: Decision) -> JSONResponse:
        """Allow or deny this call, or such calls of the task or role; with a changed input or words to the agent."""
        decided = await parts.router.decide(
            approval_id,
            allow=body.allow,
            scope=body.scope,
            message=body.message,
            changed_input=body.changed_input,
            by=body.by or "api",
        )
        return JSONResponse(dump(decided))

    return router
