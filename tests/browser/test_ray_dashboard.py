"""The Ray dashboard in a browser: it shows the agents by name, and the Serve application with its parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.integration.support import Home, temporary_home, until

SLOW_MS = 120_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[Home]:
    """A running fleet in rehearsal."""
    with temporary_home() as home:
        yield home.up()


@pytest.fixture
def page(fleet: Home, browser: Browser) -> Iterator[Page]:
    """A page whose requests carry the token of Ray."""
    token = (fleet.home / "ray_token").read_text().strip()
    context = browser.new_context(
        viewport={"width": 1500, "height": 900}, extra_http_headers={"Authorization": f"Bearer {token}"}
    )
    context.set_default_timeout(SLOW_MS)
    yield context.new_page()
    context.close()


def test_the_actors_page_shows_the_agents_by_name(fleet: Home, page: Page, tmp_path: Path) -> None:
    with fleet.connect() as api:
        agents = until(
            lambda: [agent for agent in api.agents() if agent.state in ("idle", "busy")], "an agent is alive"
        )
    page.goto(f"{fleet.record()['dashboard_url']}/#/actors")
    for agent in agents:
        page.get_by_text(re.compile(rf"agent:{agent.id}\b")).first.wait_for()
        # The class is shown by the actor's repr, which carries the role.
        page.get_by_text(f"{agent.id} [{agent.role}]").first.wait_for()
    page.get_by_text("fleet-store").first.wait_for()
    page.screenshot(path=tmp_path / "ray-actors.png", full_page=True)
    assert (tmp_path / "ray-actors.png").stat().st_size > 10_000


def test_the_serve_page_shows_router_and_gateway_healthy(fleet: Home, page: Page, tmp_path: Path) -> None:
    page.goto(f"{fleet.record()['dashboard_url']}/#/serve")
    for name in ("Router", "Gateway", "HEALTHY"):
        page.get_by_text(name).first.wait_for()
    page.screenshot(path=tmp_path / "ray-serve.png", full_page=True)


def test_without_rays_token_the_dashboards_data_is_refused(fleet: Home) -> None:
    url = f"{fleet.record()['dashboard_url']}/nodes?view=summary"
    assert httpx.get(url, trust_env=False, timeout=60).status_code in (401, 403)
