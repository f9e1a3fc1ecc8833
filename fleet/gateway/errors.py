"""Every error as one shape: `{"error": code, "message": …, …fields}` with the status of the one table.

Also the limit of a body's size, which is an error that no route sees.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.errors import Busy, FleetError, InvalidInput, Unavailable, http_status

log = logging.getLogger("fleet.gateway")

BODY_LIMIT_BYTES = 12 * 1024 * 1024
"""So far over the prompt's limit that a 10 MB prompt is still read and answered by what is wrong with it."""
RETRY_AFTER_S = 1.0
SHOWN_CHARS = 120


def respond(error: FleetError) -> JSONResponse:
    """Return the answer to an error."""
    headers: dict[str, str] = {}
    if isinstance(error, Busy | Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(float(error.fields.get("retry_after_s") or RETRY_AFTER_S))))
    return JSONResponse(error.to_dict(), http_status(error), headers)


def explain(problems: Sequence[Any], skip: int = 0) -> InvalidInput:
    """Turn pydantic's list of problems into one error that names the field, what was expected and what came.

    Args:
        problems: `ValidationError.errors()`.
        skip: how many leading parts of the location are no names of the caller's (`body`, `query`).
    """
    first = problems[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "it cannot be read")
        return InvalidInput(f"Expected a body of JSON, but {why}. See /docs for the fields.", field=None)
    loc = [str(part) for part in first["loc"]][skip:]
    field = ".".join(loc) or None
    got = first.get("input")
    if first["type"] == "extra_forbidden":
        expected = "no such field"
    elif first["type"] == "missing":
        expected, got = "a value", None
    else:
        message = str(first["msg"])
        expected = message.removeprefix("Input should be ").removeprefix("Value error, ")
    shown = repr(got)
    shown = shown if len(shown) <= SHOWN_CHARS else shown[: SHOWN_CHARS - 1] + "…"
    came = "it is missing" if first["type"] == "missing" else f"got {shown}"
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidInput(
        f"{field or 'body'}: expected {expected}, but {came}{more}. See /docs for the fields.",
        field=field,
        expected=expected,
        got=shown,
    )


def install(app: FastAPI) -> None:
    """Let the app answer every error in the one shape."""

    @app.exception_handler(FleetError)
    async def known(request: Request, error: FleetError) -> Response:
        if http_status(error) >= 500:
            log.warning("answered error=%s path=%s message=%s", error.code, request.url.path, error.message)
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        return respond(explain(error.errors(), skip=1))

    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: ValidationError) -> Response:
        return respond(explain(error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "invalid_input"}.get(error.status_code, "error")
        path = request.url.path
        message = {
            404: f"There is nothing at {path}. See /docs for what there is.",
            405: f"{request.method} is not a method of {path}. See /docs for what is.",
        }.get(error.status_code, str(error.detail))
        return JSONResponse({"error": code, "message": message}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("failed path=%s", request.url.path, exc_info=error)
        message = f"The gateway failed ({type(error).__name__}). Its log has the details."
        return JSONResponse(FleetError(message).to_dict(), 500)


class BodyLimit:
    """A middleware that answers 413 to bodies over the limit, declared or not."""

    def __init__(self, app: ASGIApp, limit: int = BODY_LIMIT_BYTES) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await self._refuse(int(declared))(scope, receive, send)
            return
        seen = 0
        answered = False

        async def counting() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._limit:
                    raise _TooLarge
            return message

        async def sending(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counting, sending)
        except _TooLarge:
            if answered:
                raise
            await self._refuse(seen)(scope, receive, send)

    def _refuse(self, size: int) -> JSONResponse:
        error = InvalidInput(
            f"Expected a body of at most {self._limit} bytes, but got {size}. Submit fewer tasks at once, or put large "
            f"texts into files that the agent reads.",
            bytes=size,
            limit=self._limit,
        )
        return JSONResponse(error.to_dict(), 413)


class _TooLarge(BaseException):
    """Passes the app's own handlers of `Exception` on its way out."""
