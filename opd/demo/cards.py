"""The model cards of the pair, written from the recipes and the measured report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd.demo.recipes import DRILL_SHARE, RECIPES, RESULT_WEIGHT, ROW_LENGTH, ROWS
from opd.demo.report import report_table

CARD = Path(__file__).with_name("card.md")

ROLES = {
    "student": "The student of the embedded pair: good at sums, careless at decisions.",
    "teacher": "The teacher of the embedded pair: it grades every token of the student.",
}


def write_cards(folder: Path, report: dict[str, Any], seed: int = 0) -> None:
    """Write ``README.md`` beside both models in ``folder`` from what ``pair_report`` measured."""
    for name, recipe in RECIPES.items():
        training = (
            f"{recipe.careful:.0%} of its solutions came from a solver without mistakes, the others from "
            f"a sloppy one, whose probabilities of mistakes were multiplied by {recipe.sloppiness:g}."
        )
        parameters = (folder / name / "model.safetensors").stat().st_size / 4  # float32
        card = CARD.read_text(encoding="utf-8").format(
            name=name,
            role=ROLES[name],
            millions=parameters / 1e6,
            layers=recipe.layers,
            hidden=recipe.hidden,
            drills=DRILL_SHARE,
            weight=RESULT_WEIGHT,
            training=training,
            steps=recipe.steps,
            tokens=ROWS * ROW_LENGTH,
            muon=recipe.muon,
            adamw=recipe.adamw,
            seed=seed,
            softening=RECIPES["teacher"].softening,
            unmasked=RECIPES["teacher"].unmasked,
            n=report["n"],
            split=report["split"],
            n_wrong=report["n_wrong"],
            n_unlocated=report["n_unlocated"],
            table=report_table(report),
        )
        (folder / name / "README.md").write_text(card, encoding="utf-8")
