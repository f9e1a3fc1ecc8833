"""Tasks: the table, one task's page, the form; approvals; roles and nodes; charts; search and SQL."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from fleet.lifecycle import TaskState
from fleet.models import Run, TaskSpec
from fleet.reasons import Reason
from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, text

DIFF = """diff --git a/app.py b/app.py
index 1..2 100644
--- a/app.py
+++ b/app.py
@@ -1,3 +1,4 @@
 import os
-x = 1
+x = 2
+y = 3
 print(x)
diff --git a/new.py b/new.py
new file mode 100644
--- /dev/null
+++ b/new.py
@@ -0,0 +1 @@
+-- not a header
"""


@pytest.fixture(scope="module")
def acted(stage: Stage) -> dict[str, str]:
    """A few tasks: queued ones, one that failed, one with a diff; returns ids."""

    async def work() -> dict[str, str]:
        router = stage.router
        await router.spawn("api_developer", 2)
        await router.spawn("qa_tester", 1)
        done, failed, *queued = await router.submit(
            [
                TaskSpec(role="api_developer", prompt="Add a health route\n\nand cover it", labels={"team": "web"}),
                TaskSpec(role="api_developer", prompt="Use up all turns"),
                *(TaskSpec(role="qa_tester", prompt=f"Waits {number}", priority=number % 10) for number in range(12)),
            ]
        )
        run = await router.begin(done.id, "api_developer-1")
        await stage.frames(run, [text("The health route is there.")])
        await router.finish(run, text="Added `GET /health`.")
        result = await stage.store.result(done.id)
        assert result is not None
        await router._commit(results=(result.model_copy(update={"diff": DIFF, "branch": "fleet/one"}),))
        run = await router.begin(failed.id, "api_developer-2")
        await router.finish(run, TaskState.FAILED, Reason.TURN_LIMIT)
        return {"done": done.id, "failed": failed.id, "queued": queued[0].id}

    return stage.do(work())


def place(page: Page) -> dict[str, str]:
    """Return the address's query."""
    return {key: value[0] for key, value in parse_qs(urlsplit(page.url).query).items()}


class TestTable:
    def test_filters_are_in_the_address_and_survive_a_reload(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?tab=tasks", wait=".f-tasks tbody tr")
        rows = page.locator(".f-tasks tbody tr")
        expect(rows).to_have_count(14)
        page.locator('.f-chip[data-state="failed"]').click()
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("turn limit")
        assert place(page)["state"] == "failed"
        page.reload()
        expect(rows).to_have_count(1)
        page.get_by_role("button", name="Clear filters").click()
        expect(rows).to_have_count(14)
        page.get_by_label("Words in the prompt").fill("Waits 1")
        expect(rows).to_have_count(3)
        assert place(page)["q"] == "Waits 1"
        page.get_by_label("Words in the prompt").fill("")
        expect(rows).to_have_count(14)
        page.get_by_label("Role", exact=True).locator("visible=true").select_option("api_developer")
        expect(rows).to_have_count(2)
        page.go_back()
        expect(rows).to_have_count(14)

    def test_bulk_actions_say_how_many_they_touch(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?tab=tasks", wait=".f-tasks tbody tr")
        page.get_by_label("Select all tasks shown").check()
        bar = page.locator(".f-bulk")
        expect(bar).to_contain_text("14 selected")
        expect(bar.get_by_role("button", name="Cancel 12")).to_be_visible()
        expect(bar.get_by_role("button", name="Retry 1")).to_be_visible()
        bar.get_by_role("button", name="Change priority of 12").click()
        dialog = page.locator("dialog")
        expect(dialog).to_contain_text("The other 2 selected cannot be changed this way")
        dialog.get_by_label("Priority").fill("9")
        dialog.get_by_role("button", name="Change 12 tasks").click()
        expect(page.locator(".f-toast", has_text="Changed: 12 tasks.")).to_be_visible()
        assert stage.do(stage.store.task(acted["queued"])).priority == 9
        page.get_by_label(f"Select task {acted['queued']}").check()
        bar.get_by_role("button", name="Cancel 1").click()
        dialog.get_by_role("button", name="Cancel 1 task").click()
        expect(page.locator(f'tr[data-key="{acted["queued"]}"] .f-pill')).to_have_text("cancelled")
        page.get_by_label(f"Select task {acted['queued']}").check()
        bar.get_by_role("button", name="Retry 1").click()
        dialog.get_by_role("button", name="Retry 1 task").click()
        expect(page.locator(f'tr[data-key="{acted["queued"]}"] .f-pill')).to_have_text("queued")


class TestOneTask:
    def test_a_diff_is_commented_and_sent_back_as_a_follow_up(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, f"/ui/?task={acted['done']}", wait=".f-diff-line")
        expect(page.get_by_role("heading", name="Add a health route")).to_be_visible()
        expect(page.locator(".f-diff-sum")).to_contain_text("2 files changed +3 −1")
        expect(page.locator(".f-timeline li")).to_have_count(3)
        expect(page.get_by_text("The health route is there.")).to_be_visible()
        page.get_by_label("Comment on line 2 of app.py").last.click()
        page.get_by_label("Comment on app.py line 2").fill("name it better")
        page.get_by_role("button", name="Send 1 comment back…").click()
        words = page.locator("dialog textarea")
        expect(words).to_have_value(re.compile("app.py:2: name it better"))
        page.get_by_role("button", name="Send as a follow-up").click()
        page.wait_for_url(lambda url: acted["done"] not in url)
        task = stage.do(stage.store.task(place(page)["task"]))
        assert task.continue_from == acted["done"] and "name it better" in task.prompt
        expect(page.get_by_role("link", name=acted["done"])).to_be_visible()

    def test_a_failed_task_says_why_and_is_retried_from_its_page(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, f"/ui/?task={acted['failed']}", wait=".f-note")
        expect(page.locator(".f-note")).to_contain_text("The run used all its turns.")
        expect(page.locator(".f-note")).to_contain_text("What to do: Raise max_turns")
        page.get_by_role("button", name="Retry", exact=True).click()
        expect(page.locator(".f-task .f-pill").first).to_have_text("queued")
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_role("button", name="Cancel the task").click()
        expect(page.locator(".f-task .f-pill").first).to_have_text("cancelled")

    def test_an_unknown_task_says_so(self, stage: Stage, browser_page_404: Page) -> None:
        expect(browser_page_404.get_by_text("There is no such task.")).to_be_visible()


@pytest.fixture
def browser_page_404(stage: Stage, open_page: OpenPage) -> Page:
    """A page of a task that does not exist; the browser reports the 404 itself."""
    page = open_page(stage.login)
    page.watch.forgiven = "404"  # type: ignore[attr-defined]
    page.goto(f"{stage.url}/ui/?task=t-nothing")
    return page


class TestNewTask:
    def test_wrong_values_are_said_next_to_their_fields(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?tab=new", wait="#fleet-new-role:has(option)")
        page.get_by_label("Priority", exact=True).locator("visible=true").fill("12")
        page.get_by_label("Working directory").select_option("directory")
        page.get_by_label("Path or URL").fill("not/absolute")
        page.get_by_role("button", name="Submit task").click()
        expect(page.locator("#fleet-new-prompt-error")).to_contain_text("Say what the agent should do")
        expect(page.locator("#fleet-new-priority-error")).to_contain_text("from 0 to 9")
        expect(page.locator("#fleet-new-path-error")).to_contain_text("absolute path")
        page.watch.forgiven = "422"  # type: ignore[attr-defined]
        page.get_by_label("Prompt", exact=True).fill("Do it")
        page.get_by_label("Priority", exact=True).locator("visible=true").fill("7")
        page.get_by_label("Path or URL").fill("/etc")
        page.get_by_role("button", name="Submit task").click()
        expect(page.locator("#fleet-new-path-error")).to_contain_text("roots")
        page.get_by_label("Working directory").select_option("")
        page.get_by_role("button", name="Submit task").click()
        page.locator(".f-done a").click()
        expect(page.get_by_role("heading", name="Do it")).to_be_visible()
        assert stage.do(stage.store.task(place(page)["task"])).priority == 7

    def test_many_tasks_come_from_lines_and_from_a_csv(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?tab=new", wait="#fleet-new-role:has(option)")
        page.get_by_role("button", name="Many at once").click()
        page.get_by_label("Prompts").fill("one thing\n\nanother thing\n")
        page.get_by_role("button", name="Submit 2 tasks").click()
        expect(page.locator(".f-done")).to_contain_text("Submitted 2 tasks.")
        page.get_by_label("Prompts").fill('prompt,priority,role\n"say ""hi"", then stop",8,qa_tester\nplain,99,\n')
        expect(page.locator("#fleet-new-many-error")).to_contain_text("Line 3: expected a priority")
        page.get_by_label("Prompts").fill('prompt,priority,role\n"say ""hi"", then stop",8,qa_tester\n')
        page.get_by_role("button", name="Submit 1 task").click()
        expect(page.locator(".f-done a")).to_have_text('say "hi", then stop')
        newest = stage.do(stage.store.tasks(limit=1))[0]
        assert (newest.priority, newest.role) == (8, "qa_tester")

    def test_templates_are_kept_and_used_again(self, stage: Stage, acted: dict[str, str], open_page: OpenPage) -> None:
        page = open_page(stage.login, "/ui/?tab=new", wait="#fleet-new-role:has(option)")
        page.get_by_label("Prompt", exact=True).fill("Review the last commit")
        page.get_by_role("button", name="Save as template…").click()
        page.locator("dialog textarea").fill("review")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_label("Template", exact=True)).to_have_value("review")
        page.reload()
        page.get_by_label("Template", exact=True).select_option("review")
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("Review the last commit")


class TestApprovals:
    def begin(self, stage: Stage) -> Run:
        async def work() -> Run:
            task = (await stage.router.submit([TaskSpec(role="qa_tester", prompt="Needs a person")]))[0]
            return await stage.router.begin(task.id, "qa_tester-1")

        return stage.do(work())

    def test_calls_are_allowed_changed_and_denied_with_words(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        run = self.begin(stage)
        page = open_page(stage.login, "/ui/?tab=approvals")
        expect(page.get_by_text("Nothing waits for you.")).to_be_visible()
        first = stage.do(stage.ask(run, "Bash", {"command": "git push"}, "Push the branch"))
        card = page.locator(".f-approval")
        expect(card).to_contain_text("git push")
        expect(page.locator('[data-tab-id="approvals"]')).to_have_attribute("data-count", "1")
        card.get_by_role("button", name="Allow for this task").click()
        expect(page.get_by_text("Nothing waits for you.")).to_be_visible()
        second = stage.do(stage.ask(run, "Bash", {"command": "rm -rf build"}))
        card.get_by_role("button", name="Change…").click()
        page.locator("dialog textarea").fill("make clean")
        page.get_by_role("button", name="Allow with this input").click()
        expect(card).to_have_count(0)
        third = stage.do(stage.ask(run, "Edit", {"file_path": "a.py", "old_string": "x = 1", "new_string": "x = 2"}))
        expect(card.locator(".f-diff-line.add")).to_contain_text("x = 2")
        card.get_by_role("button", name="Deny…").click()
        page.locator("dialog textarea").fill("not this file")
        page.get_by_role("button", name="Deny", exact=True).click()
        expect(page.locator(".f-table", has_text="not this file")).to_be_visible()
        decided = {one.id: one for one in stage.do(stage.store.approvals(waiting=False))}
        assert (decided[first.id].state, decided[first.id].scope) == ("allowed", "task")
        assert decided[second.id].changed_input == {"command": "make clean"}
        assert (decided[third.id].state, decided[third.id].message) == ("denied", "not this file")
        assert decided[third.id].decided_by == "control room"
        stage.do(stage.router.finish(run))


class TestFleet:
    def test_a_role_is_scaled_and_paused_and_a_node_drained(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?tab=fleet", wait=".f-role")
        role = page.locator(".f-role", has_text="qa_tester")
        role.get_by_label("One agent of qa_tester more").click()
        expect(page.locator(".f-toast", has_text="qa_tester: 2 agents wanted.")).to_be_visible()
        role.get_by_role("button", name="Pause").click()
        expect(role.get_by_role("button", name="Resume")).to_be_visible()
        role.get_by_role("button", name="Resume").click()
        expect(role.get_by_role("button", name="Pause")).to_be_visible()
        node = page.locator(".f-node")
        expect(node).to_contain_text("head (head)")
        node.get_by_role("button", name="Drain…").click()
        page.get_by_role("button", name="Drain the node").click()
        expect(page.locator(".f-toast", has_text="The node drains.")).to_be_visible()
        page.get_by_role("button", name="Pause fleet").click()
        page.locator("dialog").get_by_role("button", name="Pause fleet").click()
        expect(page.locator(".f-banner")).to_contain_text("The fleet is paused")
        page.get_by_role("button", name="Resume fleet").click()
        expect(page.locator(".f-banner")).to_be_hidden()


class TestCharts:
    def test_charts_show_hours_days_and_weeks(self, stage: Stage, acted: dict[str, str], open_page: OpenPage) -> None:
        page = open_page(stage.login, "/ui/?tab=charts", wait=".f-chart svg rect")
        expect(page.locator(".f-chart")).to_have_count(6)
        for label, span in (("By day", "day"), ("By week", "week")):
            page.get_by_role("button", name=label).click()
            expect(page.get_by_role("button", name=label)).to_have_attribute("aria-pressed", "true")
            expect(page.locator(".f-chart svg rect").first).to_be_visible()
            assert place(page)["span"] == span
        page.get_by_text("Show the numbers").first.click()
        expect(page.locator(".f-numbers table").first).to_contain_text("succeeded")


class TestSearch:
    def test_words_are_found_in_transcripts_and_sql_answers(
        self, stage: Stage, acted: dict[str, str], open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?tab=search", wait="#fleet-sql-run")
        page.get_by_label("Words in any transcript").fill("health route")
        page.get_by_label("Words in any transcript").press("Enter")
        expect(page.locator(".f-found-row mark").first).to_be_visible()
        page.locator(".cm-content").click()
        page.keyboard.type("select count(*) as n, '${HOME}' as t from tasks")
        page.locator("#fleet-sql-run").click()
        expect(page.locator("#fleet-sql-said textarea")).to_have_value(re.compile("1 row in"))
        expect(page.locator("#fleet-sql-rows")).to_contain_text("${HOME}")
        page.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.type("drop table task")
        page.locator("#fleet-sql-run").click()
        expect(page.locator("#fleet-sql-said textarea")).to_have_value(re.compile("query_refused"))
        page.locator(".f-found-row").first.click()
        expect(page.get_by_role("heading", name="Add a health route")).to_be_visible()
