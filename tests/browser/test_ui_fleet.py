"""A walk through the page on a running fleet: real agents, the real Claude Code, the rehearsal model."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.integration.support import SLOW_S, Home, temporary_home

SLOW_MS = SLOW_S * 1000

SETTINGS = """
[roles.code_reviewer]
agents = 0
[roles.qa_tester]
agents = 0
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Home]:
    """A running fleet in rehearsal, with one agent."""
    with temporary_home(SETTINGS) as home:
        yield home.up()


@pytest.fixture
def login(fleet: Home) -> str:
    """The address that logs a browser in."""
    return f"{fleet.record()['url']}/login?token={(fleet.home / 'token').read_text().strip()}"


def submit(page: Page, role: str, prompt: str, **fields: str) -> str:
    """Submit a task by the form and open it; returns its id."""
    page.locator('[data-tab-id="new"]').click()
    page.locator("#fleet-new-role").select_option(role)
    page.locator("#fleet-new-prompt").fill(prompt)
    for name, value in fields.items():
        control = page.locator(f"#fleet-new-{name}")
        if name == "kind":
            control.select_option(value)
        else:
            control.fill(value)
    page.locator("#fleet-new-submit").click()
    page.locator(".f-done a").click()
    expect(page.locator(".f-task h2")).to_be_visible()
    found = re.search(r"task=(t-\w+)", page.url)
    assert found is not None, page.url
    return found[1]


def test_a_newcomer_starts_an_agent_gives_it_work_and_reads_what_it_did(
    fleet: Home, login: str, open_page: OpenPage
) -> None:
    page = open_page(login)
    expect(page.locator(".f-rehearsal")).to_have_text("rehearsal")
    page.get_by_label("Role to start").select_option("code_reviewer")
    page.get_by_role("button", name="Start agent").click()
    expect(page.locator(".f-card", has_text="code_reviewer-1").locator(".f-pill")).to_have_text("idle", timeout=SLOW_MS)
    submit(page, "api_developer", "run: echo first-$((40 + 2))\nrun: sleep 4\nrun: echo last\nsay: all done")
    expect(page.locator(".f-tool", has_text="echo first")).to_have_attribute("data-state", "succeeded", timeout=SLOW_MS)
    expect(page.locator(".f-task .f-pill").first).to_have_text("succeeded", timeout=SLOW_MS)
    expect(page.locator("section[aria-label='Result']")).to_contain_text("all done")
    tool = page.locator(".f-tool", has_text="echo first")
    tool.locator("summary").click()
    expect(tool).to_contain_text("first-42")
    page.reload()
    expect(page.locator("section[aria-label='Result']")).to_contain_text("all done")
