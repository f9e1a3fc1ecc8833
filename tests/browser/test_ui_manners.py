"""Hostile words, the keyboard, a server that goes away, themes, a phone, and what a screen reader needs."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from fleet.models import EventKind, Run, TaskSpec
from tests.browser.axe import violations
from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, answer, call, text

HOSTILE = (
    "${HOME} {{7*7}} <img src=x onerror='window.hit=1'> <script>window.hit=1</script> \u202egnp.exe \x1b[31mred `x` \\d"
)
TABS = ("overview", "tasks", "new", "approvals", "fleet", "charts", "search")
SHOWN = "${HOME} {{7*7}} <img src=x onerror='window.hit=1'>"


@pytest.fixture(scope="module")
def hostile(stage: Stage) -> Run:
    """A run whose every field is hostile."""

    async def work() -> Run:
        router = stage.router
        await router.spawn("api_developer", 1)
        task = (await router.submit([TaskSpec(role="api_developer", prompt=HOSTILE, labels={HOSTILE: HOSTILE})]))[0]
        run = await router.begin(task.id, "api_developer-1")
        await stage.beat(run, tool=HOSTILE, text=HOSTILE)
        frames: list[dict[str, Any]] = [
            {"type": "system", "subtype": "init", "model": HOSTILE, "cwd": HOSTILE},
            text(HOSTILE),
            text("```\n" + HOSTILE + "\n```"),
            call("t1", HOSTILE, {"command": HOSTILE}),
            answer("t1", HOSTILE),
            call("t2", "Bash", {"command": "cat big"}),
            answer("t2", "z" * 1_000_000),
        ]
        await stage.frames(run, frames)
        await stage.frames(run, [{"text": HOSTILE}], EventKind.STDERR)
        await stage.ask(run, "Bash", {"command": HOSTILE}, HOSTILE)
        other = (await router.submit([TaskSpec(role="api_developer", prompt="with a hostile result")]))[0]
        await router.spawn("api_developer", 1)
        second = await router.begin(other.id, "api_developer-2")
        await router.finish(second, text=HOSTILE)
        result = await stage.store.result(other.id)
        assert result is not None
        diff = f"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-{HOSTILE}\n+{HOSTILE}\n"
        await router._commit(results=(result.model_copy(update={"diff": diff, "branch": HOSTILE}),))
        return run

    return stage.do(work())


def harmless(page: Page) -> None:
    """Nothing of the hostile words became markup or ran."""
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src='x']").count() == 0


class TestHostileWords:
    def test_they_are_text_on_every_page(self, stage: Stage, hostile: Run, open_page: OpenPage) -> None:
        page = open_page(stage.login, "/ui/?agent=api_developer-1", wait=".f-card")
        expect(page.locator(".f-card-task").first).to_contain_text(SHOWN)
        expect(page.locator(".f-drawer .f-approval")).to_contain_text(SHOWN)
        expect(page.locator(".f-drawer .f-approval")).to_contain_text("⟨U+202E⟩gnp.exe ␛[31mred")
        expect(page.locator(".f-drawer .f-tool").first).to_contain_text(SHOWN)
        page.locator(".f-drawer .f-tool", has_text="cat big").locator("summary").click()
        page.get_by_role("button", name="Show all 1,000,000 characters").click()
        assert page.locator(".f-drawer .f-tool pre").last.evaluate("node => node.textContent.length") == 1_000_000
        harmless(page)
        page.goto(f"{stage.url}/ui/?tab=tasks&task={hostile.task_id}")
        expect(page.locator(".f-task h2")).to_contain_text(SHOWN)
        expect(page.locator(".f-tr-item", has_text=SHOWN).first).to_be_visible()
        harmless(page)
        page.goto(f"{stage.url}/ui/?tab=tasks")
        page.locator("tr", has_text="with a hostile result").locator("a").click()
        expect(page.locator(".f-diff-line.add")).to_contain_text(SHOWN)
        expect(page.locator("section[aria-label='Result']")).to_contain_text(SHOWN)
        harmless(page)
        page.goto(f"{stage.url}/ui/?tab=approvals")
        expect(page.locator(".f-approval")).to_contain_text(SHOWN)
        page.goto(f"{stage.url}/ui/?tab=search&words=red")
        expect(page.locator(".f-found-row").first).to_contain_text("<script>window.hit=1</script>")
        harmless(page)


class TestKeyboard:
    def test_keys_lead_through_the_page(self, stage: Stage, hostile: Run, open_page: OpenPage) -> None:
        page = open_page(stage.login, wait=".f-card")
        page.keyboard.press("g")
        page.keyboard.press("t")
        expect(page.get_by_role("tab", name="Tasks")).to_have_attribute("aria-selected", "true")
        expect(page.locator(".f-tasks tbody tr").first).to_be_visible()
        page.keyboard.press("ArrowDown")
        expect(page.locator(".f-task-link").first).to_be_focused()
        page.keyboard.press("x")
        expect(page.locator(".f-bulk")).to_contain_text("1 selected")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator(".f-task h2")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(".f-tasks")).to_be_visible()
        page.keyboard.press("/")
        expect(page.get_by_label("Search tasks")).to_be_focused()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.locator("dialog")).to_contain_text("search tasks")
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        page.keyboard.press("g")
        page.keyboard.press("a")
        expect(page.locator(".f-card").first).to_be_visible()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".f-card").first).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".f-drawer")).to_be_visible()


class TestLooks:
    def test_a_phone_shows_all_without_scrolling_sideways(
        self, stage: Stage, hostile: Run, open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, viewport={"width": 390, "height": 844})
        expect(page.locator(".f-conn")).to_have_text("live")
        for name in TABS:
            page.locator(f'[data-tab-id="{name}"]').click()
            expect(page.locator(f'.fleet-view[data-view="{name}"] .f-view')).to_be_visible()
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{name} is {wide} px wide"
            assert (found := violations(page)) == [], "\n".join(found)

    def test_dark_and_light_are_chosen_and_kept(self, stage: Stage, hostile: Run, open_page: OpenPage) -> None:
        page = open_page(stage.login, color_scheme="dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Switch between dark and light").click()
        page.reload()
        expect(page.locator(".f-conn")).to_have_text("live")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark

    def test_axe_finds_nothing_wrong_on_any_page_in_dark_and_light(
        self, stage: Stage, hostile: Run, open_page: OpenPage
    ) -> None:
        page = open_page(stage.login, "/ui/?agent=api_developer-1", wait=".f-drawer .f-tr-item")
        expect(page.locator(".f-conn")).to_have_text("live")
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.locator("main").count() == 1
        assert page.locator("header").count() == 1
        wrong: list[str] = []

        def look(where: str) -> None:
            for theme in ("light", "dark"):
                assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
                wrong.extend(f"{where}, {theme}: {line}" for line in violations(page))
                page.evaluate(SWITCH)

        look("agent")
        page.keyboard.press("Escape")
        for name in TABS:
            page.locator(f'[data-tab-id="{name}"]').click()
            expect(page.locator(f'.fleet-view[data-view="{name}"] .f-view')).to_be_visible()
            expect(page.locator(FULL[name]).first).to_be_visible()
            assert page.evaluate(DOUBLE_IDS) == [], name
            look(name)
        page.keyboard.press("?")
        expect(page.locator("dialog")).to_be_visible()
        look("help")
        page.goto(f"{stage.url}/ui/?tab=tasks")
        page.locator("tr", has_text="with a hostile result").locator("a").click()
        page.get_by_label("Comment on line 1 of x").last.click()
        look("task")
        assert wrong == [], "\n".join(wrong)


class TestConnection:
    def test_a_lost_server_is_said_and_found_again(self, stage: Stage, hostile: Run, open_page: OpenPage) -> None:
        page = open_page(stage.login, wait=".f-card")
        page.watch.away = True  # type: ignore[attr-defined]
        stage.shut()
        expect(page.locator(".f-banner")).to_contain_text("The server does not answer")
        expect(page.locator(".f-conn")).to_have_text("reconnecting…")
        stage.open()
        expect(page.locator(".f-conn")).to_have_text("live")
        expect(page.locator(".f-banner")).to_be_hidden()
        stage.do(stage.router.submit([TaskSpec(role="api_developer", prompt="after the return")]))
        expect(page.locator(".f-recent")).to_contain_text("after the return")

    def test_without_a_token_nothing_is_shown(self, stage: Stage, browser: Any) -> None:
        context = browser.new_context()
        try:
            page = context.new_page()
            answered = page.goto(f"{stage.url}/ui/")
            assert answered is not None and answered.status == 401
            assert page.locator(".f-view").count() == 0
            for path in ("/ui-static/main.js", "/ui/config", "/favicon.ico"):
                assert context.request.get(stage.url + path).status == 401, path
        finally:
            context.close()


SWITCH = "document.querySelector('[aria-label=\"Switch between dark and light\"]').click()"
FULL = {
    "overview": ".f-card",
    "tasks": ".f-tasks tbody tr",
    "new": "#fleet-new-role:has(option)",
    "approvals": ".f-approval",
    "fleet": ".f-node",
    "charts": ".f-chart svg",
    "search": "#fleet-sql-rows",
}
"""What each page shows when it has read what it shows."""

DOUBLE_IDS = """() => {
  const seen = new Map();
  for (const node of document.querySelectorAll('.f-view [id]')) seen.set(node.id, (seen.get(node.id) ?? 0) + 1);
  return [...seen].filter(([, n]) => n > 1);
}"""
