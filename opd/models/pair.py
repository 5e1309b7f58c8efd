"""A student and the teacher that grades it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.config import as_template_options
from opd.models.load import load_model
from opd.models.network import LanguageModel
from opd.models.scoring import TransformersScorer
from opd.models.shared_vocabulary import ENOUGH, LimitedModel, SharedVocabulary, same_ids
from opd.protocols import Scorer
from opd.trajectory import Prompt

SHARE = (
    "Choose a student and a teacher of one model family, or grade and train on the shared ids alone, the "
    "others masked on both sides: --shared-vocabulary, shared_vocabulary=True, or the choice on the page."
)
CROSS = (
    "Choose a student and a teacher of one model family. (Such a pair can be graded by aligned text, though "
    "not trained: opd grade --cross-tokenizer, cross_tokenizer=True, or the choice among the page's models.)"
)
"""The ways out of a difference of some ids, and of another tokenizer."""


class VocabularyMismatch(ValueError):
    """Two models whose token ids do not mean the same tokens."""


@dataclass
class Pair:
    """A student and the teacher that grades it, with one meaning per token id unless ``cross_tokenizer``.

    Where ``shared_vocabulary`` was asked for and the vocabularies differ, both models are views that know the
    tokens that they share (:mod:`opd.models.shared_vocabulary`).

    Attributes:
        student: who writes.
        teacher: who grades; a skeleton (:func:`load_skeleton`) where it computes elsewhere.
        elsewhere: the engine that scores for the teacher where it computes elsewhere; see :attr:`scorer`.
        cross_tokenizer: the vocabularies may map differently, and then the teacher grades text instead of ids
            (:mod:`opd.grading.cross_grading`). False once it turns out that they do not.
        shared_vocabulary: the vocabularies may differ in a few ids, which are then left out of both models.
        shared: what they share; None where they do not differ, or where nobody asked.
    """

    student: LanguageModel
    teacher: LanguageModel
    elsewhere: Scorer | None = None
    cross_tokenizer: bool = False
    shared_vocabulary: bool = False
    shared: SharedVocabulary | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse a pair whose token ids mean different tokens, unless that was asked for.

        Raises:
            VocabularyMismatch: the two vocabularies map differently; the message says how.
        """
        if self.cross_tokenizer and self.shared_vocabulary:
            raise ValueError(
                "cross_tokenizer grades aligned text, shared_vocabulary the shared ids. Choose one of them."
            )
        ours, theirs = self.student.tokenizer.get_vocab(), self.teacher.tokenizer.get_vocab()
        self.cross_tokenizer = self.cross_tokenizer and ours != theirs
        if ours == theirs or self.cross_tokenizer:
            return
        student, teacher = self.student.whole, self.teacher.whole
        same = len(same_ids(student, teacher))
        enough = same >= ENOUGH * max(len(ours), len(theirs))
        if not (enough and self.shared_vocabulary):
            raise VocabularyMismatch(f"{self._difference(same)} {SHARE if enough else CROSS}")
        self.shared = SharedVocabulary.of(student, teacher)
        if student.eos_ids and not self.shared.ends:
            raise VocabularyMismatch(
                f"No token that ends an answer is shared: {student.name} would never end. Choose a teacher "
                "whose tokenizer or generation_config.json names an eos_token."
            )
        if self.elsewhere is not None:
            raise VocabularyMismatch(
                f"{self.elsewhere.name} computes elsewhere and gives log-probs over its whole vocabulary, "
                "which cannot be renormalised over the tokens that both models share. Load the teacher here."
            )
        self.student = LimitedModel(student, self.shared)
        self.teacher = LimitedModel(teacher, self.shared, teaches=True)

    def _difference(self, same: int) -> str:
        """Say how two vocabularies differ of which so many ids are the same."""
        ours, theirs = self.student.tokenizer.get_vocab(), self.teacher.tokenizer.get_vocab()
        different = sorted((t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)), key=repr)
        example = different[0]
        return (
            f"{self.student.name} and {self.teacher.name} do not share a vocabulary: {len(ours)} and "
            f"{len(theirs)} tokens, {len(different)} of them mapped differently, {same} the same. "
            f"{example!r}, for example, has id {ours.get(example)} here and {theirs.get(example)} there."
        )

    @property
    def teacher_renders(self) -> bool:
        """Whether the teacher reads its own rendering of prompts, instead of the student's."""
        return self.apart or self.teacher.template_options != self.student.template_options

    @property
    def apart(self) -> bool:
        """Whether ids of the student, in a prompt for one, could mean others to the teacher."""
        return self.cross_tokenizer or self.shared is not None

    def teacher_prompt(
        self, prompt: Prompt, student_ids: NDArray[np.int64], *, room: int = 1
    ) -> NDArray[np.int64]:
        """Return what the teacher reads before a completion, int64 ``[P']``.

        Args:
            prompt: what is asked.
            student_ids: what the student reads.
            room: tokens of the longest completion, which must fit behind it. How many another tokenizer makes
                of them is not known.

        Raises:
            ValueError: it does not fit; see also :meth:`opd.models.text.ModelText.render`.
        """
        if self.teacher_renders:
            return self.teacher.render(prompt, room=1 if self.cross_tokenizer else room, side="teacher")
        self.teacher.must_fit(len(student_ids), room)
        return student_ids

    @property
    def scorer(self) -> Scorer:
        """Who scores for the teacher: an engine elsewhere, or its own model, which is here."""
        return self.elsewhere or TransformersScorer(self.teacher, self.vocabulary)

    @property
    def concurrent(self) -> bool:
        """Whether the teacher computes beside the student, elsewhere or on a device of its own."""
        return self.scorer.device != self.student.device

    @property
    def packs(self) -> bool:
        """Whether all that is computed here needs no padding; see :attr:`LanguageModel.packs`."""
        return self.student.packs and self.scorer.packs

    def must_know(self, ids: NDArray[np.int64], what: str) -> None:
        """Refuse ids that no completion may hold, as :meth:`opd.models.text.ModelText.must_know` does."""
        for model in (self.student,) if self.apart else (self.student, self.teacher):
            model.must_know(ids, what)

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The tokenizer of the completions, which both models understand unless ``cross_tokenizer``."""
        return self.student.tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of token ids that a completion may hold: those the student knows, and the teacher too."""
        if self.cross_tokenizer:
            return self.student.vocabulary
        return min(self.student.vocabulary, self.teacher.vocabulary)


def load_pair(
    student: str = "demo-student",
    teacher: str = "demo-teacher",
    *,
    device: str = "auto",
    dtype: str = "auto",
    teacher_device: str | None = None,
    teacher_dtype: str | None = None,
    cross_tokenizer: bool = False,
    shared_vocabulary: bool = False,
    template_options: str | Mapping[str, Any] | None = None,
    teacher_template_options: str | Mapping[str, Any] | None = None,
    control_tokens: bool = False,
) -> Pair:
    """Load a student and a teacher; without arguments, the embedded demo pair.

    Args:
        student: a model's name; see :func:`opd.models.load.load_model`. An adapter folder loads its base.
        teacher: the same for the teacher.
        device: where the models go; see :func:`load_model`.
        dtype: their dtype; see :func:`load_model`.
        teacher_device: overrides ``device`` for the teacher.
        teacher_dtype: overrides ``dtype`` for the teacher.
        cross_tokenizer: the vocabularies may differ: the pair can then be graded, by text, but not trained.
        shared_vocabulary: the vocabularies may differ in a few ids, which are masked on both sides.
        template_options: what both chat templates are told beside the messages, as a mapping or as JSON, such
            as ``{"enable_thinking": False}``.
        teacher_template_options: what the teacher's is told instead; it then reads its own rendering.
        control_tokens: control tokens that prompts spell are meant as such, and not text.

    Raises:
        ValueError: one of them cannot be loaded, or their vocabularies differ (:class:`VocabularyMismatch`).
    """
    options = as_template_options(template_options or {})
    own = options if teacher_template_options is None else as_template_options(teacher_template_options)
    writer = load_model(student, device=device, dtype=dtype)
    grader = load_model(teacher, device=teacher_device or device, dtype=teacher_dtype or dtype)
    return Pair(
        writer.prompted(options, control_tokens=control_tokens),
        grader.prompted(own, control_tokens=control_tokens),
        cross_tokenizer=cross_tokenizer,
        shared_vocabulary=shared_vocabulary,
    )
