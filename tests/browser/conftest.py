"""One browser for the session; every page is watched for errors and for requests to other hosts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.browser.stage import Stage

WAIT_MS = int(os.environ.get("FLEET_TEST_WAIT_MS", "60000"))
"""CI has two slow, shared cores."""
CHROMIUM = os.environ.get("FLEET_TEST_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """The driver of the browser; it holds an event loop, so it ends before other packages run coroutines."""
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """The one browser."""
    if not Path(CHROMIUM).exists():
        pytest.skip("chromium is not installed (apt-get install chromium)")
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    yield started
    started.close()


class Watch:
    """What a page did that it must not do."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.wrong: list[str] = []
        self.away = False
        """The test took the server away: failed connections are expected."""
        self.forgiven = ""
        """A status that the test asks for, e.g. 404: browsers report it as an error of the page."""

    def follow(self, page: Page) -> None:
        """Watch a page."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, message: Any) -> None:
        if message.type != "error" or (self.away and "ERR_CONNECTION_REFUSED" in message.text):
            return
        if self.away and "WebSocket connection" in message.text:
            return
        if self.forgiven and f"status of {self.forgiven}" in message.text:
            return
        self.wrong.append(f"console {message.text} {message.location}")

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self.host:
            self.wrong.append(f"request to {url}")


@pytest.fixture(scope="package")
def contexts(browser: Browser) -> Iterator[dict[str, BrowserContext]]:
    """Contexts by their options: pages of equal ones share the cache, so that each opens quickly."""
    made: dict[str, BrowserContext] = {}
    yield made
    for context in made.values():
        context.close()


@pytest.fixture
def open_page(browser: Browser, contexts: dict[str, BrowserContext]) -> Iterator[OpenPage]:
    """Open pages, logged in; at the end each must have been without errors and foreign requests."""
    pages: list[Page] = []
    watches: list[Watch] = []

    def open_(login: str, path: str = "/ui/", *, wait: str = ".f-view", **options: Any) -> Page:
        key = repr(sorted(options.items()))
        if key not in contexts:
            contexts[key] = browser.new_context(
                **{"viewport": {"width": 1440, "height": 900}, "locale": "en-GB", **options}
            )
            contexts[key].set_default_timeout(WAIT_MS)
        page = contexts[key].new_page()
        pages.append(page)
        watch = Watch(urlsplit(login).netloc)
        watch.follow(page)
        watches.append(watch)
        page.watch = watch  # type: ignore[attr-defined]
        page.goto(f"{login}&next={_quoted(path)}")
        page.wait_for_selector(wait)
        return page

    yield open_
    for page in pages:
        page.close()
    wrong = [line for watch in watches for line in watch.wrong]
    assert not wrong, "\n".join(wrong)


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A stage for the tests of one module."""
    with tempfile.TemporaryDirectory(prefix="fs") as folder, Stage(Path(folder), rehearsal=True) as opened:
        yield opened
