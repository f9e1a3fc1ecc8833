"""The look of Gradio's own components, from the same colours as `static/fleet.css`."""

from __future__ import annotations

import gradio as gr

FONT = "IBM Plex Sans"
MONO = "IBM Plex Mono"
"""Bundled with Gradio in Regular and Bold with all Latin letters; the weights between them are broken subsets."""


def theme() -> gr.themes.Base:
    """Return the theme: one accent, thin borders, no shadows, fonts from the package."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        font=[gr.themes.LocalFont(FONT, weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont(MONO, weights=(400, 700)), "ui-monospace", "monospace"],
        text_size=gr.themes.sizes.text_sm,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
    )
    return base.set(
        body_background_fill="#f6f8fa",
        body_background_fill_dark="#0d1117",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#151b23",
        background_fill_secondary="#f6f8fa",
        background_fill_secondary_dark="#0d1117",
        block_background_fill="#ffffff",
        block_background_fill_dark="#151b23",
        block_border_color="#d1d9e0",
        block_border_color_dark="#2b3440",
        border_color_primary="#d1d9e0",
        border_color_primary_dark="#2b3440",
        body_text_color="#1f2328",
        body_text_color_dark="#e6edf3",
        body_text_color_subdued="#59636e",
        body_text_color_subdued_dark="#9198a1",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0d1117",
        button_primary_background_fill="#4f46e5",
        button_primary_background_fill_dark="#4f46e5",
        button_primary_text_color="#ffffff",
        block_shadow="none",
        block_shadow_dark="none",
    )
