"""The palette's ramps: text stays readable on every step, by day and by night."""

import pytest

from opd.view import palette

STEPS = range(1, 7)
THEMES = {
    theme: {name: colours[night].removeprefix("#") for name, colours in palette().items()}
    for night, theme in enumerate(("light", "dark"))
}


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (b / 255 for b in bytes.fromhex(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ramp", ["dislike", "like", "open"])
def test_text_is_readable_on_every_step(theme, ramp):
    colours = THEMES[theme]
    for step in STEPS:
        ink = colours[f"heat-ink-{step}" if step > 4 else "heat-ink-low"]
        assert contrast(ink, colours[f"{ramp}-{step}"]) >= 4.5, step


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ramp", ["dislike", "like", "open"])
def test_more_is_darker_by_day_and_lighter_by_night(theme, ramp):
    steps = [luminance(THEMES[theme][f"{ramp}-{step}"]) for step in STEPS]
    assert steps == sorted(steps, reverse=theme == "light")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ink", ["ink", "muted", "fork", "right", "wrong"])
def test_ink_is_readable_on_both_papers(theme, ink):
    colours = THEMES[theme]
    for paper in ("paper", "paper-2"):
        assert contrast(colours[ink], colours[paper]) >= 4.5
