"""Ink on warm paper by day, lamplight by night; fonts that Gradio ships, so that nothing is fetched."""

import gradio as gr

PAPER, PAPER_NIGHT = "#faf7f1", "#141210"
SHEET, SHEET_NIGHT = "#fffdf9", "#1a1815"
LINE, LINE_NIGHT = "#e4ddd1", "#38332d"
INK, INK_NIGHT = "#1f1b16", "#ece6dc"
MUTED, MUTED_NIGHT = "#6a6258", "#a79f93"

THEME = gr.themes.Base(
    primary_hue="stone",
    secondary_hue="stone",
    neutral_hue="stone",
    radius_size="lg",
    text_size="md",
    font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
    font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
).set(
    body_background_fill=PAPER,
    body_background_fill_dark=PAPER_NIGHT,
    body_text_color=INK,
    body_text_color_dark=INK_NIGHT,
    body_text_color_subdued=MUTED,
    body_text_color_subdued_dark=MUTED_NIGHT,
    background_fill_primary=PAPER,
    background_fill_primary_dark=PAPER_NIGHT,
    background_fill_secondary=PAPER,
    background_fill_secondary_dark=PAPER_NIGHT,
    border_color_primary=LINE,
    border_color_primary_dark=LINE_NIGHT,
    block_background_fill="transparent",
    block_background_fill_dark="transparent",
    block_border_width="0px",
    block_border_width_dark="0px",
    block_padding="0px",
    block_shadow="none",
    block_title_text_color=MUTED,
    block_title_text_color_dark=MUTED_NIGHT,
    block_info_text_color=MUTED,
    block_info_text_color_dark=MUTED_NIGHT,
    input_background_fill=SHEET,
    input_background_fill_dark=SHEET_NIGHT,
    input_background_fill_focus=SHEET,
    input_background_fill_focus_dark=SHEET_NIGHT,
    input_border_color=LINE,
    input_border_color_dark=LINE_NIGHT,
    input_border_width="1px",
    input_border_width_dark="1px",
    input_placeholder_color=MUTED,
    input_placeholder_color_dark=MUTED_NIGHT,
    button_primary_background_fill=INK,
    button_primary_background_fill_hover="#3a332b",
    button_primary_background_fill_dark=INK_NIGHT,
    button_primary_background_fill_hover_dark="#ffffff",
    button_primary_text_color="#ffffff",
    button_primary_text_color_dark="#1a1714",
    button_secondary_background_fill=SHEET,
    button_secondary_background_fill_dark=SHEET_NIGHT,
    button_secondary_border_color=LINE,
    button_secondary_border_color_dark=LINE_NIGHT,
    button_border_width="1px",
)
