"""Ink on warm paper by day, lamplight by night; fonts that Gradio ships, so that nothing is fetched."""

import gradio as gr

from opd.view import palette

PAGE, PAPER, LINE, INK, MUTED = (palette()[name] for name in ("page", "paper", "line", "ink", "muted"))


def _both(**colours: tuple[str, str]) -> dict[str, str]:
    """Return the theme's settings for some colours: by day, and under a name of its own by night."""
    return {
        name + ending: colour
        for name, (day, night) in colours.items()
        for ending, colour in (("", day), ("_dark", night))
    }


THEME = gr.themes.Base(
    primary_hue="stone",
    secondary_hue="stone",
    neutral_hue="stone",
    radius_size="lg",
    text_size="md",
    font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
    font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
).set(
    block_border_width="0px",
    block_border_width_dark="0px",
    block_padding="0px",
    block_shadow="none",
    input_border_width="1px",
    input_border_width_dark="1px",
    button_border_width="1px",
    **_both(
        body_background_fill=PAGE,
        body_text_color=INK,
        body_text_color_subdued=MUTED,
        background_fill_primary=PAGE,
        background_fill_secondary=PAGE,
        border_color_primary=LINE,
        block_background_fill=("transparent", "transparent"),
        block_title_text_color=MUTED,
        block_info_text_color=MUTED,
        input_background_fill=PAPER,
        input_background_fill_focus=PAPER,
        input_border_color=LINE,
        input_placeholder_color=MUTED,
        button_primary_background_fill=INK,
        button_primary_background_fill_hover=("#3a332b", "#ffffff"),
        button_primary_text_color=("#ffffff", "#1a1714"),
        button_secondary_background_fill=PAPER,
        button_secondary_border_color=LINE,
    ),
)
