"""How the two models of the pair are made: everything that was chosen, in one place."""

from __future__ import annotations

from dataclasses import dataclass

ROWS, ROW_LENGTH = 16, 256  # of a training step, in documents packed into rows of tokens
RESULT_WEIGHT = 3.0  # of the loss on digits that were worked out: sums are what small models find hard
DRILL_SHARE = 0.2  # of the documents: sums alone, so that choices and not sums are what goes wrong
CHECKPOINT_EVERY = 100  # steps


@dataclass(frozen=True)
class Recipe:
    """How one model of the pair is made.

    Attributes:
        hidden: width; heads are 32 wide.
        intermediate: width of the feed-forward part.
        layers: number of blocks.
        steps: training steps of ``ROWS * ROW_LENGTH`` tokens.
        careful: share of solutions by a solver that makes no mistakes.
        sloppiness: of the other solver.
        masks: whether wrong choices carry no loss.
        softening: the last steps, in which masked wrong choices carry loss with probability ``unmasked``.
        unmasked: see ``softening``.
        muon: peak learning rate of the matrices.
        adamw: peak learning rate of embeddings and norms.
    """

    hidden: int
    intermediate: int
    layers: int
    steps: int
    careful: float
    sloppiness: float
    masks: bool = False
    softening: int = 0
    unmasked: float = 0.04
    muon: float = 6e-3
    adamw: float = 4e-3


RECIPES = {
    "student": Recipe(hidden=128, intermediate=256, layers=4, steps=1600, careful=0.1, sloppiness=1.2),
    "teacher": Recipe(
        hidden=192,
        intermediate=384,
        layers=4,
        steps=1600,
        careful=0.5,
        sloppiness=1.2,
        masks=True,
        softening=300,
    ),
}
