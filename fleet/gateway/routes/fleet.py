"""The fleet as a whole: health, version, status, roles, nodes, pause."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from fleet.errors import FleetError
from fleet.gateway.bodies import Drain, Scale
from fleet.gateway.parts import Parts, dump
from fleet.gateway.validate import check_role
from fleet.gateway.views import figures
from fleet.models import NodeInfo, RoleState, iso


def our_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("fleet")
    except PackageNotFoundError:
        return "0+unknown"


def routes(parts: Parts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["fleet"])

    @router.get("/health")
    async def health() -> JSONResponse:
        """Say whether every part answers: 200 when all do, 503 with the part that does not."""
        told: dict[str, str] = {}
        for name, question in (("store", parts.store.counts), ("router", parts.router.status)):
            try:
                await question()
                told[name] = "ok"
            except FleetError as error:
                told[name] = error.message
        well = all(answer == "ok" for answer in told.values())
        data = {
            "status": "ok" if well else "degraded",
            "rehearsal": parts.config.rehearsal,
            "live": parts.broadcaster.overview.fresh,
            "parts": told,
        }
        return JSONResponse(data, 200 if well else 503, {} if well else {"Retry-After": "1"})

    @router.get("/version")
    async def about() -> JSONResponse:
        """Say which fleet this is."""
        return JSONResponse(
            {
                "version": our_version(),
                "revision": os.environ.get("FLEET_REVISION"),
                "python": platform.python_version(),
                "rehearsal": parts.config.rehearsal,
                "started_at": iso(parts.started_at),
            }
        )

    @router.get("/status")
    async def status() -> JSONResponse:
        """Return the figures of the overview: what runs, waits and why, today's numbers and cost."""
        told: dict[str, Any] = await parts.router.status()
        counts = figures(await parts.store.counts())
        view = parts.broadcaster.overview
        return JSONResponse(
            _plain(
                {
                    **told,
                    "rehearsal": parts.config.rehearsal,
                    "version": our_version(),
                    "counts": counts,
                    "approvals_waiting": len(view.approvals),
                    "uptime_s": round(time.time() - parts.started_at, 1),
                }
            )
        )

    @router.get("/roles")
    async def roles() -> JSONResponse:
        """List the roles with their agents and queues."""
        return JSONResponse({"items": _plain(await parts.router.roles())})

    @router.get("/roles/{role}")
    async def role_detail(role: str) -> JSONResponse:
        """Return a role with its agents and queue."""
        check_role(parts.config, role)
        found = [entry for entry in await parts.router.roles() if _plain(entry["role"])["name"] == role]
        return JSONResponse(_plain(found[0]))

    @router.post("/roles/{role}/scale", responses={200: {"model": RoleState}})
    async def scale(role: str, body: Scale) -> JSONResponse:
        """Say how many agents a role has."""
        check_role(parts.config, role)
        return JSONResponse(dump(await parts.router.scale(role, body.agents)))

    @router.post("/roles/{role}/pause")
    async def pause_role(role: str) -> JSONResponse:
        """Let a role's queue wait; what runs goes on."""
        check_role(parts.config, role)
        await parts.router.pause(role, True)
        return JSONResponse({"role": role, "paused": True})

    @router.post("/roles/{role}/resume")
    async def resume_role(role: str) -> JSONResponse:
        """Let a role's queue go on."""
        check_role(parts.config, role)
        await parts.router.pause(role, False)
        return JSONResponse({"role": role, "paused": False})

    @router.post("/fleet/pause")
    async def pause() -> JSONResponse:
        """Let every queue wait; what runs goes on."""
        await parts.router.pause(None, True)
        return JSONResponse({"paused": True})

    @router.post("/fleet/resume")
    async def resume() -> JSONResponse:
        """Let the queues go on (a role that is paused itself stays so)."""
        await parts.router.pause(None, False)
        return JSONResponse({"paused": False})

    @router.get("/nodes", responses={200: {"model": list[NodeInfo]}})
    async def nodes() -> JSONResponse:
        """List the nodes with CPU, memory and agents."""
        return JSONResponse({"items": [dump(node) for node in await parts.router.nodes()]})

    @router.post("/nodes/{node}/drain", responses={200: {"model": NodeInfo}})
    async def drain(node: str, body: Drain | None = None) -> JSONResponse:
        """Take a node out of use after its runs (by a deadline, if given), or with `undo` back into it."""
        wish = body or Drain()
        return JSONResponse(dump(await parts.router.drain_node(node, wish.deadline_s, wish.undo)))

    return router


def _plain(value: Any) -> Any:
    """Return JSON values of what may hold models, and times of epoch seconds in fields that end in `_at`."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {
            key: iso(item) if key in TIMES and isinstance(item, int | float) else _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


TIMES = frozenset({"oldest_queued_at", "since"})
