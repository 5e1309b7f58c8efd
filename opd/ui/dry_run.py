"""The dry run: what the doctor finds, what a run costs, and what its first step would punish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opd.ui.component import OwnHTML
from opd.view.payload import one_line, visible

if TYPE_CHECKING:
    from opd.training.doctor import Finding
    from opd.training.preview import Preview, PushedToken


class DryRun(OwnHTML):
    """Shows findings and a preview. Event: ``token`` (``_data``: ``key, review``, the completion it
    stands in)."""

    def show(self, key: str, findings: Sequence[Finding], preview: Preview | None) -> str:
        """Return the value for what was found out; without a preview the doctor forbade it.

        ``key`` names the set of the preview's completions.
        """
        value: dict[str, Any] = {
            "key": key,
            "findings": [
                {"level": f.level, "check": f.check, "message": visible(f.message)}
                for f in sorted(findings, key=lambda f: f.order)
            ],
        }
        if preview:
            value["facts"] = preview.sentences()
            value["punished"] = [_row(token) for token in preview.punished]
            value["rewarded"] = [_row(token) for token in preview.rewarded]
        return json.dumps(value)


def _row(token: PushedToken) -> dict[str, Any]:
    return {
        "left": one_line(token.before),
        "token": one_line(token.text),
        "right": one_line(token.after),
        "advantage": round(token.advantage, 3),
        "choice": one_line(token.teacher_choice),
        "review": token.review,
    }
