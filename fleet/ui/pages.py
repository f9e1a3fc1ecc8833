"""The places of the page that our own scripts draw in.

`gr.HTML` evaluates what its template and values hold, so both are constants here: whatever an agent wrote reaches the
page through the REST API and the scripts in `static/`, which set text and never markup.
"""

from __future__ import annotations

import gradio as gr

TABS: tuple[tuple[str, str], ...] = (
    ("overview", "Overview"),
    ("tasks", "Tasks"),
    ("new", "New task"),
    ("approvals", "Approvals"),
    ("fleet", "Roles & nodes"),
    ("charts", "Charts"),
    ("search", "SQL & search"),
)
"""The tabs: id (also `?tab=` of the address) and label."""


def place(view: str) -> gr.HTML:
    """Return an empty place that `static/main.js` fills with the view of this name (a word of ours, never data)."""
    if not view.isidentifier():
        raise ValueError(f"expected a view's name, got {view!r}")
    return gr.HTML(
        html_template=f'<div class="fleet-view" data-view="{view}"></div>',
        js_on_load="",
        apply_default_css=False,
        container=False,
        padding=False,
        elem_classes=["fleet-place"],
    )
