"""axe-core in the page: what WCAG 2.1 on levels A and AA demands and a machine can see."""

from __future__ import annotations

from importlib.resources import files

from playwright.sync_api import Page

SCRIPT = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

RUN = """async () => {
  const told = await axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    resultTypes: ["violations"],
  });
  return told.violations.flatMap((rule) => rule.nodes.map((node) =>
    `${rule.id}: ${node.target.join(" ")} ${node.html.slice(0, 160)} — ${node.failureSummary}`));
}"""


def violations(page: Page) -> list[str]:
    """Return what axe finds on the whole page as it is now, what Gradio draws included."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(f"() => {{ {SCRIPT} }}")
    found: list[str] = page.evaluate(RUN)
    return found
