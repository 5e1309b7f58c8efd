"""The settings of a run, as they are filled in on the page."""


def fill_in(page, settings) -> None:
    """Unfold every group of the settings, and fill in some."""
    for fold in page.locator("#settings .card .fold .label-wrap").all():
        fold.click()
    for name, value in settings.items():
        page.locator(f"#setting-{name} input, #setting-{name} textarea").first.fill(str(value))
