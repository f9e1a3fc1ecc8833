"""Take the README's pictures of a rehearsal fleet at work: `python -m tests.browser.screenshots FOLDER`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from fleet.models import TaskSpec, Workspace, WorkspaceKind
from fleet.rehearsal.demo import backlog, make_repository
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.integration.support import SLOW_S, temporary_home, until

SETTINGS = """
[roles.release_engineer]
prompt = "You are a release engineer who asks before anything leaves the machine."
tools = ["Read", "Bash(git log *)", "Bash(git status*)"]
approvals = "ask"
agents = 2
cpus = 0.1
[roles.api_developer]
agents = 3
cpus = 0.1
[roles.code_reviewer]
agents = 2
cpus = 0.1
[roles.qa_tester]
agents = 2
cpus = 0.1
"""

BUSY = (
    ("api_developer", "Add rate limits to the public API\nrun: echo reading the routes\nrun: sleep 90\nsay: done"),
    ("code_reviewer", "Review the retry policy of the payment client\nrun: git --version\nrun: git help -a\nsay: fine"),
    ("qa_tester", "Cover the empty basket\nwrite: test_x.py\n<<<\ndef test_x():\n    pass\n>>>\nsay: covered"),
    ("api_developer", "Move the invoices endpoint to v2\nrun: sleep 60\nsay: moved"),
    ("release_engineer", "Publish version 1.4.0\nrun: git push origin v1.4.0\nsay: published"),
    ("release_engineer", "Tidy the build folder\nrun: rm -rf build dist\nsay: tidied"),
)


def main(folder: Path) -> None:
    """Start a fleet, give it work, take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_home(SETTINGS) as home, sync_playwright() as playwright:
        home.up()
        repo = make_repository(home.work / "shop")
        login = f"{home.record()['url']}/login?token={(home.home / 'token').read_text().strip()}"
        with home.connect() as api:
            # In worktrees of their own, so that what they change is a diff to look at.
            apart = Workspace(kind=WorkspaceKind.WORKTREE, path=str(repo))
            specs = [spec.model_copy(update={"workspace": apart}) for _, spec, _ in backlog(repo)]
            done = [task.wait(SLOW_S * 2) for task in api.submit_many(specs)]
            api.submit_many([TaskSpec(role=role, prompt=prompt) for role, prompt in BUSY * 2])
            until(lambda: len(api.approvals()) >= 2, "two calls wait for a person")
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_context(
                viewport={"width": 1440, "height": 900}, color_scheme="dark", locale="en-GB"
            ).new_page()
            page.goto(login)
            page.locator(".f-card").first.wait_for()
            expect(page.locator(".f-card", has_text="needs approval").first).to_be_visible(timeout=60_000)
            take(page, folder / "overview.png")
            page.goto(f"{home.record()['url']}/ui/?task={done[0].id}")
            page.locator(".f-diff-line.add").first.wait_for()
            page.locator(".f-tr-item").first.wait_for()
            take(page, folder / "task.png")
            page.goto(f"{home.record()['url']}/ui/?tab=approvals")
            page.locator(".f-approval").nth(1).wait_for()
            take(page, folder / "approvals.png")
            page.goto(f"{home.record()['url']}/ui/?agent=api_developer-1")
            page.locator(".f-drawer .f-tr-item").first.wait_for()
            take(page, folder / "agent.png")
            browser.close()


def take(page: Page, path: Path) -> None:
    """Take a picture once the fonts are there."""
    page.evaluate("document.fonts.ready")
    page.screenshot(path=path)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    if shutil.which("chromium") is None:
        sys.exit("chromium is not installed")
    main(Path(sys.argv[1]))
