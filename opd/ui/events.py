"""How the page's own events are wired."""

PLUMBING = {"api_visibility": "private", "show_progress": "hidden"}
"""For events that only move the page along: no endpoint of the API, no spinner over the page."""
