"""Who the doctor examines: a pair, the run it is meant for, and the material that the checks share."""

from __future__ import annotations

import contextlib
import functools
import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opd.config import DistillConfig
from opd.divergence import TopK, sampled
from opd.engines.sampling import requests, uniforms
from opd.engines.transformers import TransformersSampler
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.models.scoring import TransformersScorer
from opd.models.text import ModelText
from opd.packed import completions, cut
from opd.protocols import Sampler, SampleRequest, Scorer
from opd.tasks import Example, Task
from opd.training.lessons import PROBES, Lesson, filled
from opd.trajectory import Messages, Prompt, Trajectory, as_messages

PROBE_TOKENS, PROBE_PROMPTS, TASK_PROMPTS = 32, 4, 64
LONGEST, DICTATED = 16, 12
EXAMINED = 2**16
"""Prompts of a task that are looked at: all that the run will use, if they are not more."""

QUESTIONS = ("What is 3 + 4?", "Name a colour.", "Why is the sky blue?", "How many days has a week?")
QUESTION: Messages = [{"role": "user", "content": QUESTIONS[0]}]
REPLY = "The answer is 7."


@dataclass(frozen=True, eq=False)
class Patient:
    """A pair, what it is meant for, and the material that the checks share."""

    student: LanguageModel
    teacher: LanguageModel
    config: DistillConfig
    task: Task | None
    sampler: Sampler | None
    elsewhere: Scorer | None = None
    shared_vocabulary: bool = False

    @functools.cached_property
    def pair(self) -> Pair:
        """The two as a pair, with who scores for the teacher."""
        return Pair(self.student, self.teacher, self.elsewhere, shared_vocabulary=self.shared_vocabulary)

    @functools.cached_property
    def paired(self) -> Patient:
        """The same, with the models as the pair has them: without the tokens that they do not share."""
        return replace(self, student=self.pair.student, teacher=self.pair.teacher)

    @property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        """Student and teacher."""
        return self.student, self.teacher

    @property
    def local(self) -> tuple[LanguageModel, ...]:
        """The models that compute here."""
        return self.models if self.pair.scorer.writes else (self.student,)

    @property
    def writer(self) -> Sampler:
        """What samples from the student in the run; where that is not said, the transformers engine."""
        return self.sampler or TransformersSampler(self.student)

    @property
    def probe_tokens(self) -> int:
        """Tokens of a probe at most."""
        return min(PROBE_TOKENS, self.config.max_tokens)

    @functools.cached_property
    def lesson(self) -> Lesson:
        """Who teaches what, to ask what the teacher reads."""
        return Lesson(self.task, self.pair, 0, self.config.teacher_system, self.config.teacher_hint)

    @functools.cached_property
    def examples(self) -> list[Example]:
        """What the run will ask, each once: training prompts in their order, then those held out."""
        if self.task is None:
            return [Example(question) for question in QUESTIONS]
        config = self.config
        used = self.task.batch(
            min(config.steps * config.prompts_per_step, EXAMINED), step=1, seed=config.seed
        )
        if config.eval_prompts:
            used += self.task.heldout(max(PROBES, config.eval_prompts), split=config.eval_split)
        return list({id(example): example for example in used}.values())

    @functools.cached_property
    def probed(self) -> list[Example]:
        """The shortest of the first prompts that can be used; the built-in ones where none can."""
        shortest = sorted(self.examples[:TASK_PROMPTS], key=lambda e: len(str(e.prompt)))
        usable = (e for e in shortest if is_read(self, e, self.probe_tokens))
        return [*itertools.islice(usable, PROBE_PROMPTS)] or [Example(question) for question in QUESTIONS]

    @property
    def prompts(self) -> list[Prompt]:
        """What the probes answer."""
        return [example.prompt for example in self.probed]

    def read_by(self, model: ModelText) -> list[NDArray[np.int64]]:
        """The prompts as a model's own template renders them; those that it refuses are left out."""
        rendered = (ids_of_prompt(model, prompt) for prompt in self.prompts)
        return [ids for ids in rendered if ids is not None] or [model.render(QUESTION)]

    @functools.cached_property
    def longest(self) -> list[Example]:
        """Of each order of roles the first prompt, and of all prompts the longest."""
        kinds = {roles_of(e): e for e in reversed(self.examples)}
        by_length = sorted(self.examples, key=lambda e: -bytes_of(self, e))
        return [*kinds.values(), *by_length[:LONGEST]]

    @functools.cached_property
    def probes(self) -> list[Trajectory]:
        """Short completions that the student wrote to the shortest prompts."""
        asked = requests(self.student, self.prompts, n=2, max_tokens=self.probe_tokens)
        done = sorted(
            TransformersSampler(self.student).sample(asked), key=lambda t: (t.prompt_index, t.sample_index)
        )
        with contextlib.suppress(ValueError):  # what the teacher cannot read is found with the prompts
            done = self.lesson.informed(done, self.probed, room=self.probe_tokens)
        return done

    def cost(
        self, model: LanguageModel, right: Sequence[NDArray[np.int64]], read: Sequence[NDArray[np.int64]]
    ) -> float:
        """How much less likely a model finds its own text behind the prompts it reads, in nats a token.

        Its text is what it writes behind the right ones; so this estimates a KL divergence.
        """
        asked = [
            SampleRequest(
                ids,
                uniforms(self.probe_tokens, seed=1, step=0, prompt_index=i, sample_index=j),
                prompt_index=i,
            )
            for i, ids in enumerate(right)
            for j in range(2)
        ]
        if model is self.student or self.pair.scorer.writes:
            written = list(TransformersSampler(model).sample(asked))
        else:
            written = self._dictated(right)

        def behind(prompts: Sequence[NDArray[np.int64]]) -> Tensor:
            moved = [
                replace(t, prompt_ids=prompts[t.prompt_index], teacher_prompt_ids=prompts[t.prompt_index])
                for t in written
            ]
            return self.taken(model, moved)

        return float((behind(right) - behind(read)).mean())

    def _dictated(self, prompts: Sequence[NDArray[np.int64]]) -> list[Trajectory]:
        """What a teacher that only scores would write: its likeliest token, one by one."""
        begun = [ids[:0] for ids in prompts]
        for _ in range(DICTATED):
            asked = [
                Trajectory(prompt, np.append(ids, 0), None, None, prompt)
                for prompt, ids in zip(prompts, begun, strict=True)
            ]
            scores = cut(self.pair.scorer.score(asked, side="teacher", top_k=1), asked)
            begun = [np.append(ids, int(s.top_ids[-1, 0])) for ids, s in zip(begun, scores, strict=True)]
        return [
            Trajectory(prompt, ids, None, None, prompt, prompt_index=i)
            for i, (prompt, ids) in enumerate(zip(prompts, begun, strict=True))
        ]

    def log_probs(self, model: LanguageModel, trajectories: Sequence[Trajectory]) -> Tensor | TopK:
        """What a model predicts at each token of some trajectories, ``[N, V]``; elsewhere, part of it."""
        student = TransformersScorer(self.student, self.pair.vocabulary)
        scorer, side = (student, "student") if model is self.student else (self.pair.scorer, "teacher")
        return scorer.score(trajectories, side=side, top_k=1).rows(slice(None))

    def taken(self, model: LanguageModel, trajectories: Sequence[Trajectory]) -> Tensor:
        """What a model gives to each token of some trajectories, ``[N]``, wherever it computes."""
        return sampled(self.log_probs(model, trajectories), completions(trajectories))


def ids_of_prompt(model: ModelText, prompt: Prompt) -> NDArray[np.int64] | None:
    """Return the ids of a prompt; None where the template refuses it, or where it is too long."""
    try:
        return model.render(prompt)
    except Exception:  # some templates refuse system prompts, each in its own way
        return None


def tokens_read(p: Patient, example: Example, room: int) -> int:
    """Return the length of what student and teacher read before a completion, in tokens.

    Raises:
        ValueError: one of them cannot read it.
    """
    lengths = [len(p.student.render(example.prompt, room=room, side="student"))]
    if p.lesson.privileged:
        try:
            lengths.append(
                len(p.teacher.render(p.lesson.teacher_messages(example), room=room, side="teacher"))
            )
        except ValueError as error:
            raise ValueError(f"As the teacher reads it: {error}") from error
    else:
        p.teacher.must_fit(lengths[0], room, "Shorten the prompt or lower max_tokens.")
    return max(lengths)


def is_read(p: Patient, example: Example, room: int) -> bool:
    """Whether student and teacher can read a prompt and so many tokens behind it."""
    try:
        return bool(tokens_read(p, example, room))
    except ValueError:
        return False


def roles_of(example: Example) -> tuple[str, ...]:
    """Who speaks in a prompt, in order."""
    return tuple(message["role"] for message in as_messages(example.prompt))


def bytes_of(p: Patient, example: Example) -> int:
    """Bytes of what a prompt and a hint say: no fewer than their tokens.

    Some tokenizers read a text decomposed, which may be longer.
    """
    hint = filled(p.config.teacher_hint or "", example)
    texts = (*(m["content"] for m in as_messages(example.prompt)), hint)
    forms = ((text, unicodedata.normalize("NFKD", text)) for text in texts)
    return sum(max(len(form.encode()) for form in both) for both in forms)
