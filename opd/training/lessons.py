"""Who teaches what: the student made trainable, its teachers loaded, each bound to the prompts it grades."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from opd.config import DistillConfig
from opd.models.load import check_model, load_model, load_skeleton, resolve_device, resolve_dtype
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.objectives import OBJECTIVES
from opd.phases import announce
from opd.protocols import SampleRequest, Scorer
from opd.tasks import Example, Task, TaskOptions, load_task
from opd.training.learner import trainable
from opd.training.losses import alternatives
from opd.trajectory import Messages, Trajectory, as_messages

PROBES = 64
"""Held-out prompts of each lesson whose completions are graded at an evaluation."""

_NAMED = re.compile(r"\{([^\W\d][\w .-]*)\}")
"""What a hint names: ``{answer}``, or a column."""

Asked = TypeVar("Asked", SampleRequest, Trajectory)


@dataclass(frozen=True, eq=False)
class Lesson:
    """A teacher, the task whose prompts it grades, and how many of them make a step.

    Attributes:
        task: the prompts and their verifier.
        pair: the student, shared by all lessons, and this lesson's teacher.
        prompts: prompts of one step.
        system: a system prompt that only the teacher sees.
        hint: text that only the teacher sees behind the prompt; see :func:`filled`.
    """

    task: Task
    pair: Pair
    prompts: int
    system: str | None = None
    hint: str | None = None

    @property
    def privileged(self) -> bool:
        """Whether the teacher reads a rendering of its own, as where it sees more than the student."""
        return bool(self.system or self.hint) or self.pair.teacher_renders

    def teacher_messages(self, example: Example) -> Messages:
        """Return the conversation as the teacher sees it."""
        messages = as_messages(example.prompt)
        if self.hint:
            messages[-1]["content"] += f"\n{filled(self.hint, example)}"
        if self.system:
            messages = [
                {"role": "system", "content": self.system},
                *(m for m in messages if m["role"] != "system"),
            ]
        return messages

    def informed(self, items: Sequence[Asked], examples: Sequence[Example], *, room: int) -> list[Asked]:
        """Let the teacher of some requests or trajectories see its hint and its system prompt.

        Args:
            items: each with the place of its prompt in ``examples``.
            examples: the problems.
            room: tokens of the longest completion, which must fit behind what the teacher sees.

        Raises:
            ValueError: it does not fit.
        """
        if not self.privileged:
            return list(items)
        teacher = self.pair.teacher
        seen = [teacher.render(self.teacher_messages(e), room=room, side="teacher") for e in examples]
        return [replace(item, teacher_prompt_ids=seen[item.prompt_index]) for item in items]


def load_lessons(config: DistillConfig, pair: Pair | None = None) -> list[Lesson]:
    """Load the config's student for training and its teachers; the main lesson comes first.

    Args:
        config: names the models; ``lessons`` binds further teachers to shares of the prompts.
        pair: the main pair, if it is loaded already; its student is trained in place.

    Raises:
        ValueError: a model or a task cannot be used, the pair's scorer cannot serve the objective, nothing
            can be compiled, or a share of the prompts is less than one prompt.
    """
    if config.compile:
        must_compile(config)
    if pair is None:
        check_models(config)
    names = (config.task, *(lesson.task for lesson in config.lessons))
    tasks = [load_lesson_task(name, config) for name in names]
    main, *shares = prompts_of_lessons(config)
    student = trainable(pair.student if pair else load_student(config), config)
    if pair:
        _must_serve(pair.scorer, config)
    # What compares tokens cannot train on spans of text: such a pair is refused here.
    pair = replace(pair, student=student, cross_tokenizer=False) if pair else main_pair(student, config)
    lessons = [Lesson(tasks[0], pair, main, config.teacher_system, config.teacher_hint)]
    for lesson, task, share in zip(config.lessons, tasks[1:], shares, strict=True):
        teacher = load_teacher(lesson.teacher, student, config)
        further = Pair(student, teacher, shared_vocabulary=config.shared_vocabulary)
        lessons.append(Lesson(task, further, share))
    if len({lesson.pair.shared for lesson in lessons}) > 1:
        raise ValueError(
            "The lessons' teachers share different ids with the student, which can write by one vocabulary "
            "only. Choose teachers of one vocabulary."
        )
    return lessons


def prompts_of_lessons(config: DistillConfig) -> list[int]:
    """Return how many prompts of a step each lesson has, the main one first.

    Raises:
        ValueError: there are too few, or too few for a chain.
    """
    shares = [round(lesson.share * config.prompts_per_step) for lesson in config.lessons]
    prompts = [config.prompts_per_step - sum(shares), *shares]
    if min(prompts) < 1:
        raise ValueError(f"{config.prompts_per_step} prompts a step are too few for these shares of lessons.")
    if any(n % (config.chain or 1) for n in prompts):
        raise ValueError(
            f"A chain spans {config.chain} problems of one lesson, and the lessons' shares make "
            f"{', '.join(map(str, prompts))} prompts a step. Choose shares that are multiples of it."
        )
    return prompts


def check_models(config: DistillConfig) -> None:
    """Look at every model that a config names before one of them is loaded.

    Raises:
        ValueError: what is wrong with the first that cannot be used, and which of them it is.
    """
    named = [("student", config.student, True)]
    named += [("teacher", config.teacher, not config.teacher_url)]
    named += [("teacher", lesson.teacher, True) for lesson in config.lessons]
    for what, name, weights in named:
        if what == "student" or name != "self":
            try:
                check_model(name, weights=weights)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from error


def must_compile(config: DistillConfig) -> None:
    """Refuse to compile where what it takes is missing; on a GPU Triton has its own words for that.

    Raises:
        ValueError: something is missing.
    """
    compiler = os.environ.get("CXX") or "g++"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if resolve_device(config.device).type == "cpu" and not (shutil.which(compiler) and headers.exists()):
        raise ValueError(
            f"compile needs a C++ compiler and Python's headers, and {compiler} or {headers} is not here. "
            "Install them (Debian: g++ and python3-dev), or leave compile out."
        )


def settings_of(number: int, config: DistillConfig) -> DistillConfig:
    """Return the settings that apply to a lesson: the teachers of further ones get no hint."""
    return config.model_copy(update={"teacher_system": None, "teacher_hint": None}) if number else config


def load_lesson_task(name: str, config: DistillConfig) -> Task:
    """Load a task and ask it, before any model is loaded, for what the run will want of it.

    Raises:
        ValueError: there is no such task, or it lacks held-out problems or answers that the run needs.
    """
    announce(f"Reading {name}")
    # Beside a file, the embedded task need not know the file's options.
    task = load_task(name, None if name == "demo" and config.lessons else TaskOptions.of(config))
    if config.eval_prompts:
        task.heldout(1, split=config.eval_split)
    if task.batch(1, step=1, seed=config.seed)[0].answer is None and config.rewarded:
        raise ValueError(
            f"A task reward needs answers to verify, and {task.name} has none. Set answer_column, the "
            "verifier that compares with its references, or another task."
        )
    if name == config.task:
        must_fill(config.teacher_hint or "", task)
    return task


def filled(hint: str, example: Example) -> str:
    """Return a hint with ``{answer}`` and the columns that it names replaced by what an example has there."""
    texts = {**example.columns, "answer": str(example.answer)}
    return _NAMED.sub(lambda named: texts.get(named[1], named[0]), hint)


def must_fill(hint: str, task: Task) -> None:
    """Refuse a hint that names what not every example of a task has.

    Raises:
        ValueError: it does; the message says what could be named.
    """
    named = _NAMED.findall(hint)
    there = task.columns() if named else []
    for name in named:
        if name == "answer" and name not in there:
            raise ValueError(
                f"teacher_hint names {{answer}}, and {task.name} has none. Set answer_column, or hint at "
                "something else."
            )
        if name not in there:
            raise ValueError(
                f"teacher_hint names {{{name}}}, and not every row of {task.name} has a text there. Each "
                f"has: {', '.join(there) or 'nothing'}. Where braces are meant, put a space behind the first."
            )


def load_student(config: DistillConfig) -> LanguageModel:
    """Load the student; weights that will change are float32: small updates vanish in bfloat16."""
    resolve_dtype(config.dtype, resolve_device(config.device))
    student = load_model(
        config.student, device=config.device, dtype=config.dtype if config.lora_rank else "float32"
    )
    return student.prompted(config.template_options, control_tokens=config.control_tokens)


def main_pair(student: LanguageModel, config: DistillConfig) -> Pair:
    """Return a student with the config's main teacher, which is loaded here or asked on its server.

    Raises:
        ValueError: the teacher cannot be loaded; or its server cannot serve this run, and why.
        EngineError: the server does not answer.
    """
    if not config.teacher_url:
        teacher = load_teacher(config.teacher, student, config)
        return Pair(student, teacher, shared_vocabulary=config.shared_vocabulary)
    from opd.engines.remote import RemoteScorer

    must_only_score(config)
    pair = Pair(student, _prompted(load_skeleton(config.teacher), config))
    name = config.teacher_served_as or config.teacher
    scorer = RemoteScorer(config.teacher_url, name, vocabulary=pair.vocabulary)
    _must_serve(scorer, config)
    scorer.check(student, top_k=alternatives(config, pair.vocabulary))
    return replace(pair, elsewhere=scorer)


def must_only_score(config: DistillConfig) -> None:
    """Refuse an objective that wants more of a teacher on a server than scores.

    Raises:
        ValueError: the objective trains on what the teacher writes.
    """
    if OBJECTIVES[config.objective].source != "student":
        raise ValueError(
            f"{config.objective} needs completions that the teacher writes, and a teacher on a server only "
            "scores. Choose an objective on the student's own completions, such as importance_sampling."
        )


def _must_serve(scorer: Scorer, config: DistillConfig) -> None:
    asked = {"temperature": config.temperature, "tokens": config.micro_batch_tokens}
    if refusal := scorer.refusal(config.need, **asked):
        raise ValueError(refusal)


def load_teacher(name: str, student: LanguageModel, config: DistillConfig) -> LanguageModel:
    """Load a teacher by its name in the config; "self" is the student, as it starts or (live) as it trains.

    Raises:
        ValueError: it cannot be loaded.
    """
    if name == "self" and config.teacher_live:
        return student if config.teacher_template_options is None else _prompted(student, config)
    teacher = load_model(
        config.student if name == "self" else name,
        device=config.teacher_device or config.device,
        dtype=config.teacher_dtype or config.dtype,
    )
    return _prompted(teacher, config)


def _prompted(teacher: LanguageModel, config: DistillConfig) -> LanguageModel:
    own = config.teacher_template_options
    options = config.template_options if own is None else own
    return teacher.prompted(options, control_tokens=config.control_tokens)
