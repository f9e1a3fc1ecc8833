"""A walk through the page on a running fleet: real agents, the real Claude Code, the rehearsal model."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.integration.support import SLOW_S, Home, temporary_home, until

SLOW_MS = SLOW_S * 1000

SETTINGS = """
[roles.asker]
prompt = "You ask before you run a command."
tools = ["Read", "Bash(echo *)"]
approvals = "ask"
agents = 1

[roles.code_reviewer]
agents = 0
[roles.qa_tester]
agents = 0
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Home]:
    """A running fleet in rehearsal with a role that asks."""
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
    # The transcript grows while the run goes on.
    expect(page.locator(".f-tool", has_text="echo first")).to_have_attribute("data-state", "succeeded", timeout=SLOW_MS)
    expect(page.locator(".f-task .f-pill").first).to_have_text("running")
    expect(page.locator(".f-task .f-pill").first).to_have_text("succeeded", timeout=SLOW_MS)
    expect(page.locator("section[aria-label='Result']")).to_contain_text("all done")
    tool = page.locator(".f-tool", has_text="echo first")
    tool.locator("summary").click()
    expect(tool).to_contain_text("first-42")
    page.reload()
    expect(page.locator("section[aria-label='Result']")).to_contain_text("all done")


def test_a_worktrees_diff_is_shown_and_continued(fleet: Home, login: str, open_page: OpenPage) -> None:
    repo = make_repository(fleet.work / "repo")
    page = open_page(login)
    first = submit(
        page, "api_developer", "write: hello.txt\n<<<\nhello fleet\n>>>\nsay: written", kind="worktree", path=str(repo)
    )
    expect(page.locator(".f-diff-line.add")).to_contain_text("hello fleet", timeout=SLOW_MS)
    page.get_by_label("Comment on line 1 of hello.txt").click()
    page.get_by_label("Comment on hello.txt line 1").fill("greet everybody")
    page.get_by_role("button", name="Send 1 comment back…").click()
    page.get_by_role("button", name="Send as a follow-up").click()
    page.wait_for_url(lambda url: first not in url)
    expect(page.get_by_role("link", name=first)).to_be_visible()
    expect(page.locator(".f-task .f-pill").first).to_have_text("succeeded", timeout=SLOW_MS)


def test_a_command_is_allowed_and_another_denied(fleet: Home, login: str, open_page: OpenPage) -> None:
    page = open_page(login)
    submit(page, "asker", "run: touch allowed.txt\nrun: touch denied.txt\nsay: finished")
    card = page.locator(".f-task .f-approval")
    expect(card).to_contain_text("touch allowed.txt", timeout=SLOW_MS)
    page.locator('[data-tab-id="approvals"]').click()
    card = page.locator(".f-approvals .f-approval")
    card.get_by_role("button", name="Allow once").click()
    expect(card).to_contain_text("touch denied.txt", timeout=SLOW_MS)
    card.get_by_role("button", name="Deny…").click()
    page.locator("dialog textarea").fill("one file is enough")
    page.get_by_role("button", name="Deny", exact=True).click()
    expect(page.locator(".f-table", has_text="one file is enough")).to_be_visible()
    page.go_back()
    expect(page.locator(".f-task .f-pill").first).to_have_text("succeeded", timeout=SLOW_MS)
    expect(page.locator(".f-tool", has_text="touch denied.txt")).to_have_attribute("data-state", "failed")


def test_a_busy_agent_is_told_something_and_interrupted_and_its_task_retried(
    fleet: Home, login: str, open_page: OpenPage
) -> None:
    page = open_page(login)
    task = submit(page, "api_developer", "run: sleep 20\nsay: slept")
    expect(page.locator(".f-tool", has_text="sleep 20")).to_have_attribute("data-state", "running", timeout=SLOW_MS)
    page.locator(".f-task").get_by_role("link", name="api_developer-1").click()
    panel = page.locator(".f-drawer")
    expect(panel.locator(".f-pill").first).to_have_text("busy")
    panel.locator("#fleet-say").fill("say: heard you")
    panel.get_by_role("button", name="Send", exact=True).click()
    expect(panel).to_contain_text("Delivered into the running conversation.")
    panel.get_by_role("button", name="Interrupt").click()
    page.get_by_role("button", name="Interrupt the run").click()
    page.keyboard.press("Escape")
    expect(page.locator(".f-task .f-pill").first).to_have_text("cancelled", timeout=SLOW_MS)
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator(".f-tool", has_text="sleep 20").last).to_have_attribute(
        "data-state", "running", timeout=SLOW_MS
    )
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the task").click()
    expect(page.locator(".f-task .f-pill").first).to_have_text("cancelled", timeout=SLOW_MS)
    with fleet.connect() as api:
        until(lambda: str(api.task(task).state) == "cancelled", "the task is cancelled")


def test_numbers_of_today_are_found(fleet: Home, login: str, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(login)
    expect(page.locator('[data-figure="done"]')).to_contain_text("succeeded")
    expect(page.locator('[data-figure="cost"] .f-fig-value')).not_to_have_text("$0.00")
    page.locator('[data-figure="cost"]').click()
    expect(page.locator(".f-chart", has_text="Cost by role").locator("rect").first).to_be_visible()
    page.locator('[data-tab-id="fleet"]').click()
    expect(page.locator(".f-node")).to_contain_text("alive")
    page.screenshot(path=tmp_path / "fleet.png")


def make_repository(folder: Path) -> Path:
    """Make a git repository with one commit."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# A repository\n")
    who = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "Begin"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder
