"""The API's documentation at `/docs`, without a request to any other host (FastAPI's own page loads from a CDN).

A small script draws `/openapi.json`; whatever it shows goes through `textContent`.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

HERE = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fleet API</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/docs.css"></head><body>
<header><h1>fleet API</h1><input id="filter" type="search" placeholder="Filter" aria-label="Filter the operations">
<nav><a href="ui">Control room</a> <a href="openapi.json">openapi.json</a></nav></header>
<main id="operations"><p>Loading …</p></main>
<noscript>A script draws this page; without one, read <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/docs.js"></script></body></html>"""


def routes() -> APIRouter:
    """Return the page, its script and its style."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @router.get("/docs/docs.js")
    async def script() -> Response:
        return Response((HERE / "docs.js").read_text("utf-8"), media_type="text/javascript")

    @router.get("/docs/docs.css")
    async def style() -> Response:
        return Response((HERE / "docs.css").read_text("utf-8"), media_type="text/css")

    return router
