"""The overview and the agent's panel."""

from __future__ import annotations

from playwright.sync_api import expect

from fleet.models import Run, TaskSpec
from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, answer, call, text


def begin(stage: Stage, role: str, prompt: str, agent: str) -> Run:
    """Submit a task and let an agent begin it."""

    async def work() -> Run:
        task = (await stage.router.submit([TaskSpec(role=role, prompt=prompt)]))[0]
        run = await stage.router.begin(task.id, agent)
        await stage.beat(run)
        return run

    return stage.do(work())


class TestOverview:
    def test_an_empty_fleet_says_what_to_do_and_starts_its_first_agent(self, stage: Stage, open_page: OpenPage) -> None:
        page = open_page(stage.login)
        expect(page.locator(".f-rehearsal")).to_have_text("rehearsal")
        expect(page.get_by_text("No agents yet.")).to_be_visible()
        expect(page.get_by_text("No tasks yet.")).to_be_visible()
        page.get_by_label("Role to start").select_option("api_developer")
        page.get_by_role("button", name="Start agent").click()
        expect(page.locator(".f-card")).to_have_count(1)
        expect(page.locator(".f-card-name")).to_have_text("api_developer-1")

    def test_what_an_agent_does_is_pushed_to_its_card(self, stage: Stage, open_page: OpenPage) -> None:
        page = open_page(stage.login)
        card = page.locator(".f-card", has_text="api_developer-1")
        expect(card).to_contain_text("idle on head")
        card.evaluate("node => { node.mark = 1 }")
        run = begin(stage, "api_developer", "Fix the pagination", "api_developer-1")
        expect(card).to_contain_text("Fix the pagination")
        expect(card).to_contain_text("Bash: pytest -q")
        expect(card.locator(".f-pill")).to_have_text("busy")
        expect(page.locator('[data-figure="running"]')).to_contain_text("1")
        assert card.evaluate("node => node.mark") == 1, "the card was drawn anew, not changed in place"
        stage.do(stage.router.finish(run))
        expect(card.locator(".f-pill")).to_have_text("idle")
        expect(page.locator('[data-figure="done"]')).to_contain_text("100.0 % succeeded")

    def test_two_hundred_agents_can_be_filtered_sorted_and_grouped_with_trouble_first(
        self, stage: Stage, open_page: OpenPage
    ) -> None:
        async def crowd() -> None:
            await stage.router.spawn("qa_tester", 120)
            await stage.router.spawn("code_reviewer", 79)

        stage.do(crowd())
        run = begin(stage, "qa_tester", "Ask before pushing", "qa_tester-77")
        approval = stage.do(stage.ask(run, "Bash", {"command": "git push"}))
        page = open_page(stage.login, wait=".f-card")
        expect(page.locator(".f-card")).to_have_count(200)
        expect(page.locator(".f-card").first).to_contain_text("qa_tester-77")
        expect(page.locator(".f-card").first).to_contain_text("needs approval")
        page.get_by_label("Group").select_option("role")
        expect(page.locator(".f-group-title")).to_have_count(3)
        page.get_by_label("Group").select_option("")
        page.get_by_label("Filter agents by any word").fill("reviewer-7")
        expect(page.locator(".f-card")).to_have_count(11)
        page.get_by_label("Filter agents by any word").fill("")
        page.get_by_label("State").select_option("trouble")
        expect(page.locator(".f-card")).to_have_count(1)
        page.get_by_label("State").select_option("")
        page.get_by_label("Sort").select_option("name")
        expect(page.locator(".f-card-name").first).to_have_text("api_developer-1")
        stage.do(stage.router.decide(approval.id, allow=True))
        stage.do(stage.router.finish(run))
        expect(page.locator('[data-figure="waiting"]')).to_contain_text("nothing waits for you")


class TestAgent:
    def test_the_panel_shows_a_transcript_that_grows(self, stage: Stage, open_page: OpenPage) -> None:
        run = begin(stage, "api_developer", "Mend the store", "api_developer-1")
        page = open_page(stage.login, "/ui/?agent=api_developer-1", wait=".f-drawer")
        panel = page.locator(".f-drawer")
        expect(panel.get_by_text("fleet attach api_developer-1")).to_be_visible()
        stage.do(stage.frames(run, [text("I will **look** first."), call("t1", "Bash", {"command": "pytest -q"})]))
        expect(panel.get_by_text("I will look first.")).to_be_visible()
        tool = panel.locator(".f-tool", has_text="pytest -q")
        expect(tool).to_have_attribute("data-state", "running")
        stage.do(stage.frames(run, [answer("t1", "3 failed, 5 passed", failed=True)]))
        expect(tool).to_have_attribute("data-state", "failed")
        tool.locator("summary").click()
        expect(tool.get_by_text("3 failed, 5 passed")).to_be_visible()
        stage.do(
            stage.frames(
                run,
                [
                    call("t2", "Task", {"description": "explore"}),
                    text("Deep inside.", "t2"),
                    call("t3", "Grep", {"pattern": "fsync"}, "t2"),
                    answer("t3", "2 matches", parent="t2"),
                    answer("t2", "found"),
                ],
            )
        )
        expect(panel.get_by_text("Deep inside.")).to_be_visible()
        assert panel.locator('.f-tr-item[data-depth="1"]').count() == 2
        panel.get_by_role("button", name="Hide the subagent's 2 steps").click()
        expect(panel.get_by_text("Deep inside.")).to_have_count(0)
        panel.get_by_role("button", name="Raw frames").click()
        expect(panel.locator(".f-raw").first).to_be_visible()
        stage.do(stage.frames(run, [{"text": "a word on stderr"}], "stderr"))  # type: ignore[arg-type]
        panel.get_by_role("button", name="stderr").click()
        expect(panel.get_by_text("a word on stderr")).to_be_visible()
        panel.get_by_label("Message to api_developer-1").fill("use make")
        panel.get_by_label("Message to api_developer-1").press("Enter")
        expect(panel.get_by_text("Delivered into the running conversation.")).to_be_visible()
        assert stage.router.said[-1] == ("api_developer-1", "use make")
        panel.get_by_role("button", name="Interrupt").click()
        page.get_by_role("button", name="Interrupt the run").click()
        expect(page.locator(".f-toast", has_text="Interrupted.")).to_be_visible()
        assert stage.do(stage.store.task(run.task_id)).state == "cancelled"
        panel.get_by_text("Runs of this agent").click()
        expect(panel.locator(".f-runs").get_by_role("link", name=run.id)).to_be_visible()
        expect(panel.locator(".f-facts > div", has_text="Node").locator("dd")).to_have_text("head")

    def test_an_agent_is_stopped_after_a_question(self, stage: Stage, open_page: OpenPage) -> None:
        page = open_page(stage.login, "/ui/?agent=code_reviewer-3", wait=".f-drawer")
        page.get_by_role("button", name="Stop now").click()
        page.locator("dialog").get_by_role("button", name="Stop now").click()
        expect(page.locator(".f-drawer .f-pill").first).to_have_text("stopped")
        page.keyboard.press("Escape")
        expect(page.locator(".f-drawer")).to_be_hidden()

    def test_ten_thousand_events_open_at_once_and_scroll(self, stage: Stage, open_page: OpenPage) -> None:
        run = begin(stage, "code_reviewer", "A long one", "code_reviewer-5")
        frames = []
        for number in range(3334):
            frames += [
                text(f"step {number} of many"),
                call(f"c{number}", "Bash", {"command": f"echo {number}"}),
                answer(f"c{number}", f"{number}\n" * 5),
            ]
        stage.do(stage.frames(run, frames))
        page = open_page(stage.login, f"/ui/?tab=tasks&task={run.task_id}", wait=".f-tr-item")
        expect(page.get_by_text("step 3333 of many")).to_be_visible()
        assert page.locator(".f-tr-item").count() < 120, "the whole transcript is in the page: it is not windowed"
        expect(page.locator(".f-tr-bar")).to_contain_text("6,668 steps")
        body = page.locator(".f-tr-body")
        longest = body.evaluate(
            """async node => {
              let longest = 0, last = performance.now();
              node.scrollTop = 0;
              for (let step = 0; step < 60; step += 1) {
                await new Promise(requestAnimationFrame);
                node.scrollTop += 900;
                const now = performance.now();
                longest = Math.max(longest, now - last);
                last = now;
              }
              return longest;
            }"""
        )
        assert longest < 1500, f"a frame took {longest:.0f} ms"
        body.evaluate("node => { node.scrollTop = 0 }")
        expect(page.get_by_text("step 0 of many")).to_be_visible()
