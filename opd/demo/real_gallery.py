"""Make the gallery's part of real models: what a damaged model writes, before and after it is healed.

    python -m opd.demo.real_gallery --healed CHECKPOINT --stranger FOLDER    # some minutes on two cores

The models are SmolLM2 and the preset ``heal``'s pruned one, which are fetched where they are not here. A run
of that preset leaves the checkpoint: ``opd train --preset heal --name heal-0`` in
``runs/heal-0/checkpoints/step-000020``. The stranger is a teacher with another tokenizer; the shipped one is
Gemma 3 270M. Whether a sentence still fits its picture is for a person to see.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from opd.demo.gallery import Titled, alone, graded, write_sets
from opd.engines.sampling import sample
from opd.grading.saved_reviews import ReviewGroup
from opd.models.load import load_model
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.presets import preset
from opd.reviews import Review

PART = "real-"
"""How the names of its files begin: behind the embedded pair's numbers."""

SEED, TEMPERATURE = 0, 0.7
"""At 1 a model of this size rambles: 3 nats of entropy a token."""


def make_real_gallery(folder: Path, healed: str, stranger: str) -> None:
    """Write every set of real models to ``folder``.

    Args:
        folder: of the gallery.
        healed: the pruned student after a run of the preset ``heal``, a checkpoint.
        stranger: the teacher with another tokenizer.
    """
    heal = preset("heal").changes
    whole, pruned = load_model(heal["teacher"]), load_model(heal["student"])
    mended, other = load_model(healed), load_model(stranger)
    mended.name, other.name = f"{pruned.name} after {heal['steps']} steps", "gemma-3-270m"
    write_sets(folder, _sets(whole, pruned, mended, other), part=PART)


def _sets(
    whole: LanguageModel, pruned: LanguageModel, mended: LanguageModel, other: LanguageModel
) -> Iterator[Titled]:
    steps = preset("heal").changes["steps"]
    yield (
        *("list", "A list without four layers"),
        "SmolLM2 135M after four of its thirty layers were taken out, graded by the model it was. Click a "
        "token to see what that would have written.",
        alone(*_answers(Pair(pruned, whole), "Name seven animals that live in the sea.", 80, n=4)),
    )
    yield (
        *("before-after", f"Healed in {steps} steps"),
        "One held-out request with the same random numbers, before and after a quarter of an hour of "
        "on-policy distillation on two cores: the preset Heal a pruned model.",
        [
            ReviewGroup(label, _answers(Pair(student, whole), "What makes a good leader?", 48, n=4))
            for label, student in (("four layers less", pruned), (f"after {steps} steps", mended))
        ],
    )
    asked = "Write a Python function that reverses a string."
    yield (
        *("code", "Code by a healed model"),
        "The healed model writes what looks like Python at a glance. A teacher of this size is no great "
        "programmer either: it says what it would not have written, not what would fail.",
        alone(*_answers(Pair(mended, whole), asked, 128)),
    )
    asked = "Write a letter to the mayor asking for more trees in our street."
    yield (
        *("long", "A long letter"),
        "Three hundred tokens and more of the healed model: a graph shows where the teacher frowns, n and "
        "p go from fork to fork.",
        alone(*_answers(Pair(mended, whole), asked, 360)),
    )
    yield (
        *("self", "A model under itself"),
        "SmolLM2 graded by SmolLM2: the penalty is 0 at every token, agreement is complete and nothing is "
        "blamed, whatever the luck of sampling wrote.",
        alone(*_answers(Pair(whole, whole), "Describe your perfect morning as if you were a bird.", 128)),
    )
    asked = "Name five animals and put the right emoji behind each."
    answers = _answers(Pair(whole, other, cross_tokenizer=True), asked, 80, n=4)
    yield (
        *("stranger", "A teacher with another tokenizer"),
        "SmolLM2's emoji, graded by Gemma 3 270M, which cuts the same text into other tokens: they are "
        "compared span by span, where both begin and end at the same byte.",
        alone(*sorted(answers, key=lambda made: len(made.trajectory), reverse=True)),
    )


def _answers(pair: Pair, prompt: str, max_tokens: int, *, n: int = 1) -> list[Review]:
    """Return ``n`` graded answers of the pair's student."""
    sampled = sample(pair, [prompt], n=n, seed=SEED, temperature=TEMPERATURE, max_tokens=max_tokens)
    return graded(pair, [prompt], sampled, seed=SEED)


def main() -> None:
    """Parse the command line and make the gallery."""
    parser = argparse.ArgumentParser(description="Make the gallery's part of real models.")
    parser.add_argument("--healed", required=True, help="checkpoint of a run of the preset heal")
    parser.add_argument("--stranger", required=True, help="a teacher with another tokenizer")
    parser.add_argument(
        "--out", type=Path, default=Path("assets/gallery"), help="folder (default assets/gallery)"
    )
    options = parser.parse_args()
    make_real_gallery(options.out, options.healed, options.stranger)


if __name__ == "__main__":
    main()
