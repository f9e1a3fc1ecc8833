"""The one check in front of everything that is served: Host, Origin, token.

An ASGI middleware and not a dependency of routes, because Gradio serves paths of its own past any dependency. Open
without a token are only `/` (a redirect) and `/login`.

- Host: the loopback names, the configured host and `allowed_hosts`. Without it a web page anywhere could reach a fleet
  on loopback by rebinding its own name (DNS rebinding).
- Origin: when a browser sends one, it must be the very host and port that it talks to. Cookies do not know ports, so a
  page of another program on this machine would otherwise speak with the user's rights.
- Token: `Authorization: Bearer …`, or the cookie that `/login?token=…` sets. The cookie holds a value derived from the
  token, and its name is the fleet's own, so that two fleets on one machine do not log each other out.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import time
from collections.abc import Iterable
from html import escape
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.config import FleetConfig
from fleet.errors import FleetError, Forbidden, InvalidInput, StartFailed, Unauthorized, http_status

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
TOKEN_BYTES = 32
COOKIE_AGE_S = 30 * 24 * 3600
FORM_LIMIT_BYTES = 4096
CLOSE_POLICY = 1008
"""WebSocket close code of a refusal."""


def ensure_token(path: Path) -> str:
    """Return the fleet's access token; make the file, mode 0600, when it is missing.

    Raises:
        StartFailed: the file cannot be written, or is empty.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            # O_EXCL: of two parts that start at once, one makes the token and the other reads it.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        token = path.read_text(encoding="ascii").strip()
        for _ in range(20):
            if token:
                break
            time.sleep(0.05)  # The other part has made the file and not yet written it.
            token = path.read_text(encoding="ascii").strip()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise StartFailed(
            f"{path}: expected a token file that this user can read and write, but {error}. "
            f"Set FLEET_HOME to a folder of yours, or remove the file.",
            path=str(path),
        ) from error
    if not token:
        raise StartFailed(
            f"{path}: expected a token, but the file is empty. Remove it and start again.", path=str(path)
        )
    return token


def allowed_names(config: FleetConfig) -> tuple[frozenset[str], bool]:
    """Return the host names that are answered, and whether any IP address is (when it listens beyond loopback).

    An address in `Host` cannot come from a rebound name, so it is safe where other machines are meant to reach us.
    """
    host = config.host.strip("[]").lower()
    names = LOOPBACK_NAMES | {name.strip("[]").lower() for name in config.allowed_hosts}
    if host not in ("0.0.0.0", "::", ""):
        names |= {host}
    return names, host not in LOOPBACK_NAMES


def split_host(value: str) -> str:
    """Return the name of a `Host` header or netloc: without port and brackets, in lower case."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if value.count(":") == 1 else value


class Guard:
    """The middleware.

    Args:
        app: what it stands in front of.
        token: the access token.
        names: host names that are answered.
        any_address: whether any IP address in `Host` is answered too.
    """

    def __init__(self, app: ASGIApp, *, token: str, names: Iterable[str], any_address: bool = False) -> None:
        self._app = app
        self._token = token.encode()
        self._names = frozenset(names)
        self._any_address = any_address
        digest = hashlib.sha256(self._token).hexdigest()
        self.cookie_name = f"fleet-{digest[:8]}"
        self._cookie = hmac.new(self._token, b"fleet browser session", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._check_source(headers)
        path = _path(scope)
        if error is None and scope["type"] == "http" and path == "/login":
            await self._login(scope, receive, send, headers)
            return
        if error is None and path != "/" and not self._known(headers):
            error = Unauthorized(
                "Expected the fleet's access token, but "
                + ("it is a wrong one." if headers.get("authorization") else "there is none.")
                + " Send `Authorization: Bearer TOKEN` (`fleet url` shows it), or open the link of `fleet url`."
            )
        if error is None:
            await self._app(scope, receive, _with_headers(send, path))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": CLOSE_POLICY, "reason": error.message[:120]})
        else:
            await self._refuse(error, scope, headers)(scope, receive, _with_headers(send, path))

    def _check_source(self, headers: Headers) -> FleetError | None:
        given = headers.get("host", "")
        name = split_host(given)
        if name not in self._names and not (self._any_address and _is_address(name)):
            return Forbidden(
                f"Expected a Host this fleet answers to ({', '.join(sorted(self._names))}), but got {given[:100]!r}. "
                f"Add the name to allowed_hosts in fleet.toml.",
                host=given[:100],
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != given.strip().lower():
            origin_name = split_host(urlsplit(origin).netloc)
            # Behind a reverse proxy Host may lose the port that the browser sees: then the name must be listed.
            if origin_name in LOOPBACK_NAMES or origin_name not in self._names or origin_name != name:
                return Forbidden(
                    f"Expected a page of this fleet (http://{given[:100]}), but the request comes from "
                    f"{origin[:100]!r}. Open the control room under the address that `fleet url` shows.",
                    origin=origin[:100],
                )
        return None

    def _known(self, headers: Headers) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if value:
            return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode(), self._token)
        cookie = _cookie(headers.get("cookie", ""), self.cookie_name)
        return cookie is not None and hmac.compare_digest(cookie.encode(), self._cookie.encode())

    async def _login(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if scope["method"] == "POST":
            form = parse_qs((await _read(receive)).decode("utf-8", "replace"))
            given, target = form.get("token", [""])[0], form.get("next", ["/ui"])[0]
        elif scope["method"] in ("GET", "HEAD"):
            given, target = query.get("token", [""])[0], query.get("next", ["/ui"])[0]
        else:
            error = InvalidInput(f"Expected GET or POST of /login, but got {scope['method']}.")
            await JSONResponse(error.to_dict(), 405, {"Allow": "GET, POST"})(scope, receive, send)
            return
        target = target if _is_local(target) else "/ui"
        response: Response
        if hmac.compare_digest(given.strip().encode(), self._token):
            response = RedirectResponse(target, 303, {"Cache-Control": "no-store"})
            # No `Secure`: on loopback there is no TLS, and behind a proxy with TLS the scheme is the proxy's.
            response.set_cookie(
                self.cookie_name, self._cookie, max_age=COOKIE_AGE_S, path="/", httponly=True, samesite="strict"
            )
        else:
            response = _page(target, "That token is not this fleet's." if given else "", 401 if given else 200)
        await response(scope, receive, _with_headers(send, "/login"))

    def _refuse(self, error: FleetError, scope: Scope, headers: Headers) -> Response:
        status = http_status(error)
        if "text/html" in headers.get("accept", "") and scope["method"] == "GET":
            if isinstance(error, Unauthorized):
                query = scope.get("query_string", b"").decode("latin-1")
                return _page(_path(scope) + (f"?{query}" if query else ""), "", status)
            return HTMLResponse(PAGE.format(body=f"<p>{escape(error.message)}</p>"), status)
        more = {"WWW-Authenticate": 'Bearer realm="fleet"'} if isinstance(error, Unauthorized) else {}
        return JSONResponse(error.to_dict(), status, more)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return (path.removeprefix(root) or "/") if root else path


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(target: str) -> bool:
    """Whether a redirect stays here: `//evil` and `/\\evil` are other hosts to a browser."""
    return target.startswith("/") and not target.startswith(("//", "/\\")) and not any(ord(c) < 32 for c in target)


def _cookie(header: str, name: str) -> str | None:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(header)
    except CookieError:
        return None
    morsel = jar.get(name)
    return morsel.value if morsel is not None else None


async def _read(receive: Receive) -> bytes:
    body = b""
    while len(body) <= FORM_LIMIT_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body[:FORM_LIMIT_BYTES]


def _with_headers(send: Send, path: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("X-Frame-Options", "SAMEORIGIN")
            # Not `no-referrer`: with it Chromium sends `Origin: null` with the login form, which is refused.
            headers.setdefault("Referrer-Policy", "same-origin")
            if path.startswith("/api"):
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fleet</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">
<style>:root{{color-scheme:light dark}}
body{{font:15px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem}}
code,input{{font:14px ui-monospace,monospace}}
input{{width:100%;box-sizing:border-box;padding:.5rem;margin:.25rem 0 .75rem}}
button{{font:inherit;padding:.4rem 1.2rem}}[role=alert]{{color:#c62828}}</style></head>
<body><h1>fleet</h1>{body}</body></html>"""

# A link from another site does not carry a SameSite=Strict cookie on its first request, but a reload from here does.
FORM = """<p>You are not logged in to this fleet in this browser.</p>{alert}
<p>On the machine where it runs, <code>fleet url</code> prints a link that logs you in: open that link.
Or paste the token of the link here.</p>
<form method="post" action="/login"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<input type="hidden" name="next" value="{target}"><button>Log in</button></form>
<script>if(location.pathname!=="/login"&&!sessionStorage.getItem("fleet-reloaded")){{
sessionStorage.setItem("fleet-reloaded","1");location.replace(location.href)}}</script>"""


def _page(target: str, alert: str, status: int) -> HTMLResponse:
    warning = f'<p role="alert">{escape(alert)}</p>' if alert else ""
    body = FORM.format(alert=warning, target=escape(target if _is_local(target) else "/ui", quote=True))
    return HTMLResponse(PAGE.format(body=body), status, {"Cache-Control": "no-store"})


def login_url(base: str, token: str, target: str = "/ui") -> str:
    """Return the link that logs a browser in."""
    more = "" if target == "/ui" else f"&next={quote(target)}"
    return f"{base.rstrip('/')}/login?token={quote(token)}{more}"
