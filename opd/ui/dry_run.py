"""Before the start: what the doctor finds, what a run costs, and what its first step would punish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opd.config import DistillConfig
from opd.trajectory import Review
from opd.ui.component import OwnHTML
from opd.ui.pairs import refuse_if_taken
from opd.view.payload import visible

if TYPE_CHECKING:
    from opd.training.doctor import Finding
    from opd.training.preview import Preview, PushedToken

SHOWN_AROUND = 30
"""Characters before a token that are shown; half as many after it."""


class DryRun(OwnHTML):
    """Shows findings and a preview. Event: ``token`` (``_data``: ``key, review``, the completion it
    stands in)."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Make an empty view; ``kwargs`` are those of :class:`gradio.HTML`."""
        super().__init__(__file__, **kwargs)

    def show(self, key: str, findings: Sequence[Finding], preview: Preview | None) -> str:
        """Return the value for what was found out; without a preview the doctor forbade it.

        ``key`` names the set of the preview's completions.
        """
        value: dict[str, Any] = {
            "key": key,
            "findings": [
                {"level": f.level, "check": f.check, "message": visible(f.message)}
                for f in sorted(findings, key=lambda f: ("fail", "warn", "pass").index(f.level))
            ],
        }
        if preview:
            value["facts"] = preview.sentences()
            value["punished"] = [_row(token) for token in preview.punished]
            value["rewarded"] = [_row(token) for token in preview.rewarded]
        return json.dumps(value)


def _row(token: PushedToken) -> dict[str, Any]:
    def line(text: str) -> str:
        return visible(text).replace("\n", "")

    return {
        "before": line(token.before[-SHOWN_AROUND:]),
        "text": line(token.text),
        "after": line(token.after[: SHOWN_AROUND // 2]),
        "advantage": round(token.advantage, 3),
        "choice": line(token.teacher_choice),
        "review": token.review,
    }


def look_ahead(config: DistillConfig) -> tuple[list[Finding], Preview | None, Sequence[Review]]:
    """Examine a config's pair and rehearse its first step; no preview where a finding forbids the run.

    Raises:
        ValueError: a model or the task cannot be used, or a run holds the device.
    """
    from opd.runs.worker import devices_of
    from opd.training import preview

    refuse_if_taken(devices_of(config))
    findings, ahead = preview.look_ahead(config)
    return findings, ahead, ahead.reviews if ahead else []
