"""Builds the control room and mounts it: a Gradio shell, our scripts in it, nothing from another host.

`gradio` takes a second to import, so the gateway imports this module when it builds its app and not before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from fleet.config import FleetConfig
from fleet.contracts import Router, Store
from fleet.ui import query
from fleet.ui.pages import TABS, place
from fleet.ui.theme import theme

STATIC = Path(__file__).parent / "static"
"""Scripts, styles and pictures of the page; package data."""
STATIC_PATH = "/ui-static"
UI_PATH = "/ui"


def build_blocks(config: FleetConfig, store: Store, router: Router, broadcaster: Any) -> gr.Blocks:
    """Return the page.

    Args:
        config: settings.
        store: answers the SQL desk.
        router: not asked by the page itself, whose buttons call the REST API as everybody does.
        broadcaster: as `router`; the page listens to `/api/ws`.
    """
    with gr.Blocks(title="fleet", analytics_enabled=False, fill_width=True) as blocks:
        place("header")
        with gr.Tabs(overflow_behavior="wrap", elem_id="fleet-tabs"):
            for name, label in TABS:
                with gr.Tab(label, id=name, elem_id=f"fleet-tab-{name}"):
                    place(name)
                    if name == "search":
                        query.build(store)
    return blocks


class Static(StaticFiles):
    """Files that the browser asks about each time (answered 304), so that an upgrade is seen at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def head(rehearsal: bool) -> str:
    """Return what the page's head loads: settings as data attributes of the script, our styles and our one module."""
    flag = "true" if rehearsal else "false"
    return (
        f'<link rel="icon" href="{STATIC_PATH}/favicon.svg">\n'
        f'<link rel="stylesheet" href="{STATIC_PATH}/fleet.css">\n'
        f'<script type="module" id="fleet-main" data-rehearsal="{flag}" src="{STATIC_PATH}/main.js"></script>\n'
    )


def mount(app: FastAPI, config: FleetConfig, store: Store, router: Router, broadcaster: Any) -> FastAPI:
    """Mount the page at `/ui` and its files at `/ui-static`; the gateway's middleware guards both."""

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")

    app.mount(STATIC_PATH, Static(directory=STATIC), name="ui-static")
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        build_blocks(config, store, router, broadcaster),
        path=UI_PATH,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size="1mb",
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        head=head(config.rehearsal),
    )
    return mounted
