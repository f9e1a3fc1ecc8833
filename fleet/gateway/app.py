"""The gateway's app: everything that is served, behind one guard.

`build_asgi` only assembles; `Gateway` is the plain class that Serve wraps as its ingress.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import RedirectResponse

from fleet.config import FleetConfig
from fleet.contracts import Router, Store
from fleet.gateway import docs, errors
from fleet.gateway.auth import Guard, allowed_names, ensure_token
from fleet.gateway.broadcaster import ALL, Broadcaster
from fleet.gateway.hub import Hub
from fleet.gateway.parts import Parts
from fleet.gateway.routes import agents, approvals, data, fleet, sockets, tasks
from fleet.models import AgentInfo, Approval, Event, FeedItem, Model, NodeInfo, Result, Run, Task, TaskSpec

log = logging.getLogger("fleet.gateway")

DESCRIPTION = """Many Claude Code agents as one durable worker cluster.

Every request needs the access token: `Authorization: Bearer TOKEN` (`fleet url` shows it), or the cookie that the link
of `fleet url` sets. Lists answer {"items": [...], "next": cursor}. Errors answer
{"error": code, "message": what was expected, what came, what to do, ...}. 429 and 503 carry Retry-After.
WebSockets: /api/ws (overview; ?agent=ID or ?task=ID for a transcript), /api/agents/{id}/attach (watch and send).
"""


Changes = Callable[[], Awaitable[Sequence[FeedItem] | None]]
"""Waits for the next changes of the feed; None says that some went by."""
StartMetrics = Callable[[Store, Changes], asyncio.Task[None]]


def build_asgi(
    config: FleetConfig, store: Store, router: Router, *, ui: bool = True, metrics: StartMetrics | None = None
) -> FastAPI:
    """Assemble the app; pure but for the token file.

    Args:
        config: the fleet's settings.
        store: the store, or its proxy.
        router: the router, or its proxy.
        ui: whether the control room is served under `/ui`.
        metrics: starts what counts the changes of the broadcaster's feed.

    Returns:
        The app. Its lifespan runs the broadcaster (`app.state.broadcaster`).
    """
    token = ensure_token(config.token_path)
    parts = Parts(config, store, router, Broadcaster(store))
    hub = Hub(parts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await parts.broadcaster.start()
        counting = metrics(store, _changes(parts.broadcaster)) if metrics else None
        try:
            yield
        finally:
            if counting is not None:
                counting.cancel()
                await asyncio.wait([counting])
            await hub.stop()
            await parts.broadcaster.stop()

    app = FastAPI(
        title="fleet",
        version=fleet.our_version(),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.parts = parts
    app.state.broadcaster = parts.broadcaster
    app.state.hub = hub
    errors.install(app)
    for routes in (tasks, agents, approvals, fleet, data):
        app.include_router(routes.routes(parts))
    app.include_router(sockets.routes(parts, hub))
    app.include_router(docs.routes())

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/ui", 303)

    _name_schemas(app, TaskSpec, Task, Run, Result, Event, AgentInfo, Approval, NodeInfo)
    if ui:
        app = _with_ui(app, parts)
    names, any_address = allowed_names(config)
    app.add_middleware(errors.BodyLimit)
    # Added last, so it stands in front of everything, Gradio's own routes included.
    app.add_middleware(Guard, token=token, names=names, any_address=any_address)
    return app


def _changes(broadcaster: Broadcaster) -> Changes:
    """Return the broadcaster's feed for whoever counts it: the store is followed once."""
    feed = broadcaster.subscribe(ALL)

    async def changes() -> Sequence[FeedItem] | None:
        delivery = await feed.next()
        if delivery.closed:
            await asyncio.Event().wait()
        return None if delivery.missed else delivery.items

    return changes


def _with_ui(app: FastAPI, parts: Parts) -> FastAPI:
    # Imported here: gradio takes seconds, and tests of the API need none of it.
    from fleet.ui.app import mount

    return mount(app, parts.config, parts.store, parts.router, parts.broadcaster)


def _name_schemas(app: FastAPI, *models: type[Model]) -> None:
    """Put the models into OpenAPI: answers are written by hand, so FastAPI does not see all of them."""
    made = app.openapi

    def openapi() -> dict[str, object]:
        fresh = app.openapi_schema is None
        schema = made()
        if fresh:
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in models:
                part = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
                components.update(part.pop("$defs", {}))
                components[model.__name__] = part
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


class Gateway:
    """The ingress: a plain class that `fleet.cluster.app` wraps for Serve.

    Args:
        config: the fleet's settings.
    """

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        logging.getLogger("fleet").setLevel(config.log_level)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app; Serve calls this in the replica, after `__init__`."""
        from fleet.cluster.handles import RouterHandle, StoreHandle
        from fleet.observability.launch import start_metrics

        app = build_asgi(self._config, StoreHandle(), RouterHandle(), metrics=start_metrics)
        log.info("gateway built rehearsal=%s", self._config.rehearsal)
        return app
