"""The doctor: examines a pair before it is used, in seconds, on a few short completions of the student.

Most failures of on-policy distillation are not in the loss but in the plumbing: another chat template,
another end-of-sequence token, a sampler with stale weights, a batch that changes the scores. Each check looks
for one of them and ends in one :class:`Finding`. Nothing is changed in the models.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opd.config import DistillConfig, LessonConfig
from opd.divergence import sampled
from opd.engines.sampling import requests
from opd.files import size_in_words
from opd.grading.grading import grade
from opd.models.hf import DynamicCache
from opd.models.network import LanguageModel
from opd.models.pair import Pair, VocabularyMismatch
from opd.models.parallel import world
from opd.models.scoring import TransformersScorer, distributions
from opd.models.shared_vocabulary import LimitedModel, SharedVocabulary
from opd.models.text import ModelText
from opd.packed import completions, cut, pack
from opd.phases import announce
from opd.protocols import NotFiniteError, Sampler
from opd.reasoning import answer_in
from opd.tasks import Example, Task, opens_reasoning, text_to_verify
from opd.tasks.conclusion import conclusion
from opd.tasks.verifiers import long_for_exact, make_verifier
from opd.training.lessons import load_lesson_task, load_student, load_teacher, main_pair, settings_of
from opd.training.memory import estimate_memory, free_memory
from opd.training.patient import (
    PROBE_PROMPTS,
    PROBE_TOKENS,
    QUESTION,
    REPLY,
    Patient,
    bytes_of,
    ids_of_prompt,
    roles_of,
    tokens_read,
)
from opd.training.preflight import preflight
from opd.trajectory import Messages, Prompt, Side, Trajectory, as_messages

Level = Literal["pass", "warn", "fail"]

AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Mean difference (nats a token) that two scorings of the same tokens may have in any model of the dtype, and
on any engine: vLLM rounds elsewhere than transformers."""

OWN_ROUND_OFF, MOST_ROUND_OFF = 3, 0.25
"""A model may differ by more if its own scores do, with a cache and without (26 layers in bfloat16: 0.06): so
many times as much, but by no more nats than the second figure, which no round-off makes."""

PROMPT_COST = 0.1
"""Nats a token by which a model's own text may be less likely behind a prompt than behind the right one. A
bias of 0.287 degraded a published recipe (tinker-cookbook issue 796)."""

WITHOUT_START = 0.5
"""Nats a token that plain text may cost more without the token that begins a text (Gemma 3 270M: 2.5)."""

RARE_STOP, REAL_STOP, EMPTY_ANSWER = 1e-6, 0.01, 0.5
"""Probability of the end: hardly ever below the first, meant to end above the second, and at the start of an
answer above the third it is empty."""

MUCH_LEFT_OUT = 0.01
"""Share of a model's probability that may lie on tokens which the other one does not know."""

SHOWN_TOKENS = 3

TIGHT = 0.9
"""Above this share of the free memory an estimate is too close to be sure."""

ANSWERS, ROUND_OFF_PROBES, SHOWN = 64, 2, 60

SWITCHED_ON = "a switch that is on"

LEAST_WORDS, OWN_WORDS = 3, 120
"""Words of a line that are more than a role's name, and characters of such lines that are shown."""

PLAIN_TEXT = (
    "The sky is blue because the air scatters blue light more than red light. In the evening the light of "
    "the sun takes a longer way through the air, and most of the blue is gone when it reaches us. What is "
    "left is yellow, orange and red."
)

CONVERSATIONS: dict[str, Messages] = {
    "a question": QUESTION,
    "a system prompt": [{"role": "system", "content": "Be brief."}, *QUESTION],
    "a second turn": [*QUESTION, {"role": "assistant", "content": REPLY}, *QUESTION],
}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: the name of the check.
        level: "fail" means that a run would go wrong.
        message: what was found, and what to do about it unless all is well.
    """

    check: str
    level: Level
    message: str

    @property
    def order(self) -> int:
        """Its place among others by how bad it is, the worst first."""
        return ("fail", "warn", "pass").index(self.level)

    def __str__(self) -> str:
        """One line, as it is printed."""
        return f"{self.level}  {self.check}: {self.message}"


Outcome = tuple[Level, str]


def examine(
    pair: Pair | tuple[LanguageModel, LanguageModel],
    *,
    config: DistillConfig | None = None,
    task: Task | None = None,
    sampler: Sampler | None = None,
) -> list[Finding]:
    """Examine a student and a teacher.

    Args:
        pair: the pair, or the two models of which one wants to know whether they make one.
        config: the run they are meant for; the default settings where None.
        task: where the run's prompts come from; a few built-in questions where None.
        sampler: samples from the student in the run; the transformers engine where None.

    Returns:
        One finding a check, in a fixed order. Models without a common vocabulary get no further checks, as
        those compare ids; a ``cross_tokenizer`` pair gets those of how each of the two reads a prompt.
    """
    config = config or DistillConfig()
    if isinstance(pair, Pair) and pair.cross_tokenizer:
        return _examine_apart(pair, config, task)
    elsewhere, shared = None, config.shared_vocabulary
    if isinstance(pair, Pair):
        elsewhere, shared, pair = pair.elsewhere, pair.shared_vocabulary, (pair.student, pair.teacher)
    patient = Patient(*pair, config, task, sampler, elsewhere, shared)
    findings = [_find("vocabulary", _vocabulary, patient)]
    if findings[0].level != "fail":
        patient = patient.paired
        for number, (name, check) in enumerate(CHECKS.items(), start=1):
            announce(f"Examining the pair, {number} of {len(CHECKS)}: {name}")
            findings.append(_find(name, check, patient))
    return findings


def _examine_apart(pair: Pair, config: DistillConfig, task: Task | None) -> list[Finding]:
    """Examine two models with tokenizers of their own: what each of them makes of a prompt."""
    sides = {"student": pair.student, "teacher": pair.teacher}
    notes = [note for side, model in sides.items() if (note := _own_words(side, model))]
    begins = [
        _find("start of text", _start_of_text, Patient(model, model, config, task, None))
        for model in sides.values()
    ]
    return [
        Finding(
            "vocabulary",
            "warn",
            f"{pair.student.name} and {pair.teacher.name} have vocabularies of their own: the teacher can "
            "grade spans of text, and no run can train on them.",
        ),
        Finding(
            "chat template", "pass", " ".join(["Each model reads its own rendering of a prompt.", *notes])
        ),
        min(begins, key=lambda finding: finding.order),
    ]


def examine_run(
    config: DistillConfig,
) -> Iterator[tuple[DistillConfig | LessonConfig, Pair | tuple[LanguageModel, LanguageModel], list[Finding]]]:
    """Let the doctor look at every lesson of a run: which one (first the main one), its pair, the findings.

    Raises:
        ValueError: a model or a task cannot be used.
    """
    preflight(config)
    student = load_student(config)
    # The config itself names the main teacher and its task.
    for number, lesson in enumerate((config, *config.lessons)):
        task = load_lesson_task(lesson.task, config)
        if lesson is config and config.teacher_url:
            pair = main_pair(student, config)
        else:  # not a Pair yet: that the vocabularies differ is a finding like others
            pair = student, load_teacher(lesson.teacher, student, config)
        yield lesson, pair, examine(pair, config=settings_of(number, config), task=task)
        del pair  # the next teacher needs its room


def check_sampler(
    student: LanguageModel,
    sampler: Sampler,
    *,
    prompts: Sequence[Prompt] = (QUESTION,),
    temperature: float = 1.0,
) -> Finding:
    """Say whether a sampler's log-probs are those of the student's own forward, as after each weight sync."""
    return _find(
        "sampler", lambda _: _compare_sampler(student, sampler, prompts, temperature, PROBE_TOKENS), None
    )


def _find(name: str, check: Callable[[Any], Outcome], patient: Any) -> Finding:  # noqa: ANN401
    try:
        with torch.inference_mode():
            return Finding(name, *check(patient))
    except NotFiniteError as error:
        return Finding(name, "fail", str(error))
    except Exception as error:  # what breaks an examination would break the run
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return Finding(name, "fail", f"This could not be examined: {reason}.")


def _vocabulary(p: Patient) -> Outcome:
    try:
        shared = p.pair.shared
    except VocabularyMismatch as mismatch:
        return "fail", str(mismatch)
    for model in p.models:
        tokens = max(model.tokenizer.get_vocab().values()) + 1
        if tokens > (rows := model.causal_lm.config.get_text_config().vocab_size):
            return "warn", (
                f"The tokenizer of {model.name} has ids up to {tokens - 1}, its matrix {rows} rows; a "
                "prompt with one of the ids beyond cannot be read. Resize the embeddings if your prompts "
                "use them."
            )
    if shared is not None:
        return _shared_vocabulary(p.paired, shared)
    return "pass", f"Both models mean the same by all {len(p.student.tokenizer.get_vocab())} token ids."


def _shared_vocabulary(p: Patient, shared: SharedVocabulary) -> Outcome:
    """Say what is left out where two vocabularies differ in a few ids, and what it was worth to each."""
    ours, theirs = (model.tokenizer.convert_ids_to_tokens(model.left_out) for model in p.models)
    masses = [
        _mass_left_out(p, model, side) for model, side in zip(p.models, ("student", "teacher"), strict=True)
    ]
    said = (
        f"{shared.tokens:,} ids are shared. Left out are {len(ours)} tokens of {p.student.name} "
        f"({_some(ours)}) and {len(theirs)} of {p.teacher.name} ({_some(theirs)}), which held "
        f"{masses[0]:.2g} of the student's probability on the probes and {masses[1]:.2g} of the teacher's."
    )
    if shared.end:
        names = [
            model.tokenizer.convert_ids_to_tokens(i) for model, i in zip(p.models, shared.end, strict=True)
        ]
        said += (
            f" An answer ends with {names[0]} of the student, against which {names[1]} of the teacher stands."
        )
    if max(masses) > MUCH_LEFT_OUT:
        return "warn", f"{said} That is much: grades and training miss what the models would say with them."
    return "pass", said


def _mass_left_out(p: Patient, model: LimitedModel, side: Side) -> float:
    """Mean probability on the probes that a model, as it is whole, gives to tokens that are not shared."""
    found = TransformersScorer(model.whole, model.whole.vocabulary).score(p.probes, side=side)
    return float(found.rows(slice(None))[:, model.left_out].exp().sum(-1).mean())


def _some(tokens: Sequence[str]) -> str:
    return ", ".join(map(repr, tokens[:SHOWN_TOKENS])) + ", …" * (len(tokens) > SHOWN_TOKENS) or "none"


def _chat_template(p: Patient) -> Outcome:
    level, said = _compared_templates(p)
    sides = ("student", "teacher") if p.lesson.privileged else ("student",)  # else the teacher reads its ids
    notes = [note for side, model in zip(sides, p.models, strict=False) if (note := _own_words(side, model))]
    return level, " ".join([said, *notes])


def _compared_templates(p: Patient) -> Outcome:
    for model in p.models:
        if opening := _unopened(model):
            asked = p.read_by(model)
            opened = [
                np.append(ids, model.tokenizer(opening, add_special_tokens=False)["input_ids"])
                for ids in asked
            ]
            cost = p.cost(model, opened, asked)
            return "fail" if cost >= PROMPT_COST else "warn", (
                f"The chat template of {model.name} never opens the assistant's turn: answers stand behind "
                f"{opening!r}, and add_generation_prompt adds nothing. Without it the model's own text is "
                f"{cost:.3f} nats a token less likely. Add it to the template's end."
            )
    if p.lesson.privileged:
        more = ", with what it alone sees" if p.lesson.system or p.lesson.hint else ""
        return "pass", f"The teacher reads its own rendering of each prompt{more}."
    kinds = {"the task's prompts": p.longest} if p.task else {}
    cases = {name: [Example(prompt)] for name, prompt in CONVERSATIONS.items()} | kinds
    different = {
        name: parts
        for name, examples in cases.items()
        for e in examples
        if (parts := _where_they_part(p, e.prompt))
    }
    if not different:
        if not p.student.templated:
            return "pass", "Neither model has a chat template; both read the same plain text."
        return "pass", "The same messages become the same ids for both models."
    name, parts = next(iter(different.items()))
    said = f"The chat templates differ for {', '.join(different)}: with {name} {parts}."
    if not {"a question", "the task's prompts"} & different.keys():
        return "warn", f"{said} Plain questions are the same; keep to them, or give both models one template."
    if (cost := _template_cost(p)) is None:
        return "warn", (
            f"{said} The teacher reads what the student's template makes of them. Put what a system prompt "
            "says into the question, or give both models one template."
        )
    return "fail" if cost >= PROMPT_COST else "warn", (
        f"{said} The teacher reads what the student reads, and behind that its own text is {cost:.3f} nats a "
        "token less likely than behind its own template. Give both models one: copy chat_template.jinja from "
        "one folder to the other."
    )


def _own_words(side: Side, model: ModelText) -> str:
    """Say what a model reads beside the messages: a system prompt of its template's own, or no template."""
    if not model.templated:
        return f"The {side} has no chat template: it reads messages as plain text, one below the other."
    if not (words := _before_a_question(model, QUESTION)):
        return ""
    told = ids_of_prompt(model, CONVERSATIONS["a system prompt"])
    replaced = told is not None and words[0] not in model.text(told)
    shown = " ".join(words)
    shown = shown if len(shown) <= OWN_WORDS else f"{shown[:OWN_WORDS]}…"
    return f"The {side}'s template puts words of its own before a question: {shown!r}." + (
        " A system prompt takes their place." if replaced else ""
    )


def _before_a_question(model: ModelText, asked: Messages) -> list[str]:
    """Return the lines of words, names of roles aside, that a template puts before a question."""
    read = model.prompt_text(model.render(asked))
    control = set(read.control)
    text = "".join("\n" if i in control else piece for i, piece in enumerate(read.pieces))
    lines = text.partition(asked[-1]["content"])[0].splitlines()
    return [line.strip() for line in lines if len(re.findall(r"[^\W\d_]{2,}", line)) >= LEAST_WORDS]


def _unopened(model: ModelText) -> str:
    """Return what a chat template puts before an answer and leaves out where an answer is asked for."""
    if not model.templated:
        return ""
    render = functools.partial(model.tokenizer.apply_chat_template, tokenize=False, **model.template_options)
    answered = render([*QUESTION, {"role": "assistant", "content": REPLY}])
    asked = render(QUESTION, add_generation_prompt=True)
    if asked != render(QUESTION):  # an answer may begin otherwise where a template writes out old turns
        return ""
    before, there, _ = answered.partition(REPLY)
    opening = before[len(asked) :] if there and before.startswith(asked) else ""
    return opening if opening.strip() else ""


def _where_they_part(p: Patient, prompt: Prompt) -> str:
    """Say where two renderings of a prompt begin to differ; nothing if they do not."""
    ours, theirs = rendered = [ids_of_prompt(model, prompt) for model in p.models]
    if ours is None or theirs is None:
        side, model = ("student", p.student) if ours is None else ("teacher", p.teacher)
        return "" if ours is theirs else f"the {side}'s, of {model.name}, refuses it"
    if np.array_equal(ours, theirs):
        return ""
    common = min(len(ours), len(theirs))
    at = int(np.argmax(np.append(ours[:common] != theirs[:common], True)))
    shown = [repr(p.student.token_text(int(ids[at]))) if at < len(ids) else "the end" for ids in rendered]
    return f"they part at token {at}, {shown[0]} against {shown[1]}"


def _template_cost(p: Patient) -> float | None:
    """How much less likely the teacher finds its own text behind the student's prompts, nats a token.

    None where its own template takes none of them.
    """
    prompts = [prompt for prompt in p.prompts if ids_of_prompt(p.teacher, prompt) is not None]
    if not prompts:
        return None
    own, read = ([model.render(prompt) for prompt in prompts] for model in (p.teacher, p.student))
    return p.cost(p.teacher, own, read)


def _start_of_text(p: Patient) -> Outcome:
    found: list[Outcome] = []
    for model in p.models:
        start = model.tokenizer.bos_token_id
        if start is None:
            continue
        token = model.tokenizer.convert_ids_to_tokens(start)
        read = p.read_by(model)
        if all(ids[:2].tolist() == [start, start] for ids in read):
            cost = p.cost(model, [ids[1:] for ids in read], read)
            said = (
                f"Prompts of {model.name} begin with {token} twice, behind which its own text is {cost:.3f} "
                "nats a token less likely. Take one of them out of its chat template."
            )
            found.append(("fail" if cost >= PROMPT_COST else "warn", said))
        elif any(ids[0] != start for ids in read):
            with_it, without = (_cost_of_plain_text(p, model, begin) for begin in ([start], []))
            if without - with_it >= WITHOUT_START:
                said = (
                    f"Prompts of {model.name} do not begin with {token}, and without it plain text costs the "
                    f"model {without:.2f} nats a token instead of {with_it:.2f}. Set add_bos_token in its "
                    "tokenizer_config.json, or put bos_token into its chat template."
                )
                found.append(("fail", said))
    worst_first = sorted(found, key=lambda outcome: outcome[0])
    return worst_first[0] if found else ("pass", "Prompts begin as both models want texts to begin.")


def _cost_of_plain_text(p: Patient, model: LanguageModel, begin: list[int]) -> float:
    """Nats a token of a text behind a beginning; not of its first words, which any beginning explains."""
    text = model.tokenizer(PLAIN_TEXT, add_special_tokens=False)["input_ids"][: model.context // 2]
    known = len(text) // 4
    prompt = np.array([*begin, *text[:known]], dtype=np.int64)
    rest = Trajectory(prompt, np.array(text[known:], dtype=np.int64), None, None, prompt)
    return -float(p.taken(model, [rest]).mean())


def _thinking(p: Patient) -> Outcome:
    if idle := _idle_options(p):
        return "warn", (
            f"No chat template asks for {', '.join(idle)}, so template_options that say it change nothing. "
            "Look into the template for what it asks."
        )
    ours, theirs = (_thinking_switch(model) for model in p.models)
    if ours == theirs:
        return "pass", f"Both chat templates agree on thinking: {ours}."
    return "warn", (
        f"The chat templates differ on thinking: {p.student.name} has {ours}, {p.teacher.name} {theirs}. "
        "One of them writes a <think> part that the other never saw; choose two models of one kind, or set "
        "enable_thinking in template_options."
    )


def _idle_options(p: Patient) -> list[str]:
    """Return the options that no template they are told to has a use for."""
    told: dict[str, list[ModelText]] = {}
    for model in p.models:
        for name in model.template_options:
            told.setdefault(name, []).append(model)
    return [
        name
        for name, models in told.items()
        if not any(
            model.templated and re.search(rf"\b{re.escape(name)}\b", model.tokenizer.get_chat_template())
            for model in models
        )
    ]


def _thinking_switch(model: ModelText) -> str:
    if not model.templated:
        return "no switch"

    def rendered(**flags: bool) -> str:
        return model.tokenizer.apply_chat_template(
            QUESTION, add_generation_prompt=True, tokenize=False, **{**model.template_options, **flags}
        )

    on, off = rendered(enable_thinking=True), rendered(enable_thinking=False)
    return "no switch" if on == off else SWITCHED_ON if rendered() == on else "a switch that is off"


def _end_of_sequence(p: Patient) -> Outcome:
    vocabulary = min(p.student.vocabulary, p.teacher.vocabulary)
    ours, theirs = ({i for i in model.eos_ids if i < vocabulary} for model in p.models)
    if not ours:
        return "fail", (
            f"{p.student.name} has no end-of-sequence id, so no completion would ever end. Set eos_token_id "
            "in its generation_config.json."
        )
    if not p.pair.scorer.writes:
        if ours & theirs:
            return "pass", f"Both models end with {_tokens(p, ours & theirs)}, by their own settings."
        return "warn", (
            f"The models list different end tokens: the student {_tokens(p, ours)}, the teacher "
            f"{_tokens(p, theirs) or 'none'}. Only the student's end a completion; watch its length."
        )
    prompt = p.student.render(QUESTION)
    reply = p.student.tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    complete = Trajectory(prompt, np.array([*reply, min(ours)]), None, None, prompt)  # whoever wrote it
    ended = [t for t in p.probes if t.finish_reason == "stop"] or [complete]

    def mean_at(place: int, texts: Sequence[Trajectory]) -> list[Tensor]:
        rows = (cut(p.log_probs(model, texts), texts) for model in p.models)
        return [torch.stack([of[place] for of in own]).exp().mean(0) for own in rows]

    at_end, at_start = mean_at(-1, ended), mean_at(0, p.probes)

    def mass(probs: Tensor, ids: set[int]) -> float:
        return float(probs[sorted(ids)].sum()) if ids else 0.0

    stop, shared, foreign = mass(at_end[0], ours), mass(at_end[1], ours), mass(at_end[1], theirs - ours)
    said = (
        f"where the student ends, it gives {stop:.2g} to {_tokens(p, ours)} and the teacher {shared:.2g}"
        + f" (and {foreign:.2g} to {_tokens(p, theirs - ours)})" * bool(theirs - ours)
    )
    if foreign > max(shared, REAL_STOP):
        return "fail", (
            f"The models end differently: {said}. The student would be taught never to stop, and "
            "completions would grow to the limit. Use a teacher that ends as the student does, or add the "
            "teacher's id to eos_token_id in the student's generation_config.json and train it to end so "
            "first."
        )
    if shared < RARE_STOP:
        return "warn", (
            f"The teacher hardly ever stops here: {said}. Watch the completion length; check that both "
            "models were trained to end with the same token."
        )
    for model, probs in zip(p.models, at_start, strict=True):
        if (empty := mass(probs, ours | theirs)) > EMPTY_ANSWER:
            return "warn", (
                f"{model.name} ends {empty:.0%} of its answers before the first token. Check that the chat "
                "template opens the assistant's turn."
            )
    most = sum(t.finish_reason == "stop" for t in p.probes) >= len(p.probes) / 2
    known = (1.0 if most else 0.0, shared)  # that it ends, from what the student wrote
    for model, ids, at_least in zip(p.models, (ours, ours | theirs), known, strict=True):
        ends = mass(p.log_probs(model, [complete])[-1].exp(), ids)
        if max(ends, at_least) < REAL_STOP and not opens_reasoning(model, prompt):
            return "warn", (
                f"{model.name} does not end where a reply is complete: behind {REPLY!r} it gives {ends:.2g} "
                f"to {_tokens(p, ids)}. A model that was not trained on chats writes on to the limit: choose "
                "one that was, or watch the completion length."
            )
    if ours != theirs:
        return "warn", f"The models list different end tokens; only the student's end a completion: {said}."
    return "pass", f"Both models end with the same ids: {said}."


def _weights(p: Patient) -> Outcome:
    """Say what the models' weights are, and of what GGUF file they were made if they were."""
    level, said = "pass", []
    for model in p.models[: 1 + (p.teacher is not p.student)]:
        network = model.causal_lm
        dtype = str(network.dtype).removeprefix("torch.")
        numbers = f"{model.name} has {sum(w.numel() for w in network.parameters()):,} weights in {dtype}"
        made_of = getattr(network.config, "gguf", {})
        if types := made_of.get("types"):
            numbers += f", dequantised from {', '.join(types)} of {made_of['file']}"
        said.append(f"{numbers}.")
        if rule := made_of.get("unknown_rule"):
            level = "warn"
            said.append(
                f"{made_of['file']} cuts text by the rule {rule}, which is not known here: GPT-2's is taken. "
                "Compare token ids with the original model's."
            )
    return level, " ".join(said)


def _tokens(p: Patient, ids: set[int]) -> str:
    return ", ".join(f"{p.student.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(ids))


def _self_grade(p: Patient) -> Outcome:
    for model in p.local:
        grades = grade(Pair(model, model), [replace(t, teacher_prompt_ids=t.prompt_ids) for t in p.probes])
        worst = max(float(np.abs(np.concatenate([g.penalty, g.reverse_kl])).max()) for g in grades)
        if worst > 0:
            return "fail", (
                f"{model.name} graded against itself gets up to {worst:.2g} nats instead of 0: its forward "
                "is not deterministic. Turn off dropout and kernels that are not deterministic."
            )
        logprobs, ids = p.log_probs(model, p.probes), completions(p.probes)
        # Ids against the distribution one place too early: nothing but a broken model scores both alike.
        shifted = (sampled(logprobs[:-1], ids[1:]) - sampled(logprobs[1:], ids[1:])).abs().max()
        if shifted < AGREEMENT[torch.float32]:
            return "fail", f"{model.name} predicts the same at every place. Check its weights."
    return "pass", "Each model graded against itself gets exactly 0, and not when shifted by one token."


def _scoring(p: Patient) -> Outcome:
    said = []
    for model, side in zip(p.models, ("student", "teacher"), strict=True):
        together = p.taken(model, p.probes)
        alone = torch.cat([p.taken(model, [t]) for t in p.probes])
        mean, worst, bound = _disagreement(model, together, alone, p.probes, side=side)
        if not mean <= bound:
            return "fail", (
                f"{model.name} scores the same tokens differently in a batch than alone: {mean:.2g} nats a "
                f"token on average (at most {worst:.2g}), where {bound:.2g} is round-off. Its attention mask "
                "or positions go wrong in a batch; try float32 or another attention implementation."
            )
        said.append(f"{mean:.1g}")
    return "pass", f"In a batch and alone, scores differ by {said[0]} (student) and {said[1]} nats (teacher)."


def _sampler(p: Patient) -> Outcome:
    prompts = p.prompts[:PROBE_PROMPTS]
    return _compare_sampler(p.student, p.writer, prompts, p.config.temperature, p.probe_tokens)


def _compare_sampler(
    student: LanguageModel, sampler: Sampler, prompts: Sequence[Prompt], temperature: float, tokens: int
) -> Outcome:
    asked = requests(student, prompts, n=2, max_tokens=tokens)
    written = list(sampler.sample(asked, temperature=temperature))
    vocabulary = student.vocabulary
    scored = distributions(student, written, side="student", temperature=temperature, vocabulary=vocabulary)
    own = sampled(scored.log_probs(scored.hidden), completions(written))
    behaviour = pack((t.behaviour_logprobs for t in written), own.device)
    mean, worst, bound = _disagreement(student, own, behaviour, written, temperature=temperature)
    if not mean <= bound:
        return "fail", (
            f"The sampler's log-probs are {mean:.2g} nats a token off the student's own (at most "
            f"{worst:.2g}), where {bound:.2g} is round-off: it samples from other weights or at another "
            "temperature. Synchronise it, and check that the adapter reaches it."
        )
    return "pass", f"The sampler's log-probs are the student's own, to {mean:.1g} nats a token."


def _disagreement(
    model: LanguageModel,
    a: Tensor,
    b: Tensor,
    scored: Sequence[Trajectory],
    *,
    side: Side = "student",
    temperature: float = 1.0,
) -> tuple[float, float, float]:
    """Return mean and largest difference of two columns of log-probs ``[N]``, and the mean allowed.

    What the model itself shows is measured only where the difference is not small in any model.
    """
    difference = (a - b).abs()
    mean, worst = float(difference.mean()), float(difference.max())
    kind = model.device.type
    if kind == "meta":
        return mean, worst, AGREEMENT[torch.bfloat16]  # it computes elsewhere, in a dtype of its own
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.causal_lm.dtype
    bound = AGREEMENT.get(dtype, AGREEMENT[torch.bfloat16])
    if mean > bound:
        longest = sorted(scored, key=len)[-ROUND_OFF_PROBES:]
        own = np.mean([_round_off(model, t, side, temperature) for t in longest])
        bound = max(bound, min(OWN_ROUND_OFF * float(own), MOST_ROUND_OFF))
    return mean, worst, bound


def _round_off(model: LanguageModel, t: Trajectory, side: Side, temperature: float) -> float:
    """Mean difference of a model's scores of a text, token by token with a cache and at once; in nats."""
    found = distributions(model, [t], side=side, temperature=temperature, vocabulary=model.vocabulary)
    prompt = t.seen_by(side)
    ids = torch.from_numpy(np.append(prompt, t.completion_ids[:-1]))[None].to(model.device)
    places = torch.arange(ids.shape[1], device=model.device)[None]
    cache = DynamicCache(config=model.causal_lm.config)
    ends = range(len(prompt), ids.shape[1] + 1)
    hidden = [
        model.hidden(
            ids[:, start:end],
            attention_mask=torch.ones_like(ids[:, :end]),
            position_ids=places[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )[:, -1]
        for start, end in zip((0, *ends), ends, strict=False)
    ]
    ids = completions([t])
    one_by_one, at_once = (sampled(found.log_probs(h), ids) for h in (torch.cat(hidden), found.hidden))
    return float((one_by_one - at_once).abs().mean())


def _length(p: Patient) -> Outcome:
    """Whether some answer comes to its end, or says at least what was asked, within the length limit."""
    limit, written = p.config.max_tokens, p.probes
    if limit > p.probe_tokens and not any(t.finish_reason == "stop" for t in written):
        asked = requests(p.student, p.prompts[:PROBE_PROMPTS], max_tokens=limit)
        written = list(p.writer.sample(asked, temperature=p.config.temperature))
    if any(t.finish_reason == "stop" for t in written):
        return "pass", f"Answers end by themselves within {limit} tokens."
    said = f"Every answer that the student tried was cut off at max_tokens ({limit})"
    texts = [text_to_verify(p.student, t) for t in written]
    if not any(answer_in(text).strip() for text in texts):
        off = ", or turn thinking off (template_options)" * (_thinking_switch(p.student) == SWITCHED_ON)
        return "warn", f"{said} while it still reasoned. Raise max_tokens{off}."
    if p.task and p.examples[0].answer is not None and not any(conclusion(t, cut=True) for t in texts):
        return "warn", f"{said} before it stated one. Raise max_tokens."
    return "pass", f"{said}, though not before it said something."


def _teacher(p: Patient) -> Outcome:
    sizes = [sum(w.numel() for w in model.causal_lm.parameters()) for model in p.models]
    grades = grade(p.pair, p.probes)
    kl = np.concatenate([g.reverse_kl for g in grades])
    if max(float(np.abs(g.penalty).max()) for g in grades) == 0:
        return "warn", (
            "The teacher says exactly what the student says, so there is nothing to learn. Choose another "
            "teacher, or give it a hint of what the student does not know."
        )
    if sizes[1] < sizes[0]:
        return "warn", (
            f"The teacher ({sizes[1]:,} parameters) is smaller than the student ({sizes[0]:,}). Check that "
            "they are not swapped."
        )
    who = "the student itself, which sees more than the student, " if p.config.teacher == "self" else ""
    return (
        "pass",
        f"The teacher is {who}{kl.mean():.2g} nats a token from the student on {len(kl)} probe tokens.",
    )


def _prompts(p: Patient) -> Outcome:
    """Look at all prompts of the run as both models read them, but for those that must fit by their bytes."""
    room, least = p.config.max_tokens, min(model.context for model in p.models)
    template: dict[tuple[str, ...], int] = {}  # a bound on what is added to prompts of these roles
    refused: dict[int, tuple[Example, str]] = {}
    longest = 0
    for i, example in enumerate((*p.longest, *p.examples)):
        roles = roles_of(example)
        if i >= len(p.longest) and template.get(roles, least) + bytes_of(p, example) + room <= least:
            continue
        try:
            length = tokens_read(p, example, room)
        except ValueError as error:
            refused[id(example)] = example, str(error)
        else:
            longest = max(longest, length)
            template.setdefault(roles, length)
    if refused:
        example, why = next(iter(refused.values()))
        place = example.place or repr(as_messages(example.prompt)[-1]["content"][:SHOWN])
        return "fail", (
            f"{len(refused)} of the run's {len(p.examples)} prompts cannot be used. The first, {place}: {why}"
        )
    return "pass", f"Prompts of up to {longest} tokens and completions of {room} fit both contexts."


def _answers(p: Patient) -> Outcome:
    known = [e for e in p.examples[:ANSWERS] if e.answer is not None]
    if not known or p.task.verifier == "regex":  # a pattern is no answer that somebody could give
        return "pass", "There is no reference answer to check."
    wrong = [e for e in known if not any(p.task.verify(e, text) for text in _as_answers(e.answer))]
    if p.task.verifier == "exact" and (long := long_for_exact([e.answer for e in known])):
        return "warn", long
    if not wrong:
        return "pass", f"The verifier accepts the reference answers of {len(known)} prompts."
    fits = [
        name
        for name in ("choice", "numeric", "exact")
        for verifier in [make_verifier(name)]
        if all(
            not verifier.fault(e.answer) and any(verifier.right(e.answer, t) for t in _as_answers(e.answer))
            for e in known
        )
    ]
    advice = f"Set verifier to {fits[0]}." if fits else "Choose another verifier or answer_column."
    return "fail" if len(wrong) > len(known) / 2 else "warn", (
        f"The verifier {p.task.verifier} rejects {len(wrong)} of {len(known)} reference answers, such as "
        f"{wrong[0].answer[-SHOWN:]!r}{f' ({wrong[0].place})' if wrong[0].place else ''}: who says just that "
        f"counts as wrong. {advice}"
    )


def _as_answers(answer: str) -> tuple[str, str]:
    return answer, f"The answer is {answer}."


def _saving(p: Patient) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        p.student.try_saving(Path(folder))
    settings = p.student.causal_lm.generation_config
    try:
        if settings is not None and not p.config.lora_rank:  # with an adapter none are written
            settings.validate(strict=True)
    except ValueError as error:
        odd = ", ".join(re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)) or "they contradict each other"
        return "warn", (
            f"transformers refuses to write the generation settings of {p.student.name} again: {odd}. "
            "Checkpoints keep them as they came; whoever trains them elsewhere cannot save. Mend its "
            "generation_config.json: settings of sampling want do_sample true, or are to be left out."
        )
    return "pass", "What is trained can be saved: config, settings and tokenizer are such as may be written."


def _memory(p: Patient) -> Outcome:
    lengths = [len(ids) for e in p.longest if (ids := ids_of_prompt(p.student, e.prompt)) is not None]
    longest = max(lengths, default=0)
    need = estimate_memory(
        p.student.causal_lm, p.teacher.causal_lm, p.config, prompt_tokens=longest, processes=world()
    )
    there = sum(w.numel() * w.element_size() for w in p.student.model.parameters())
    missing = need.total - need.teacher - there  # the teacher is loaded already
    free = free_memory(p.student.device)
    said = f"Training needs about {size_in_words(missing)} more than is loaded ({need})"
    if free is None:
        return "warn", f"{said}; how much is free on {p.student.device} is not known. Watch it."
    said += f"; {size_in_words(free)} are free on {p.student.device}."
    if missing <= TIGHT * free:
        return "pass", said
    return "fail" if missing > free else "warn", (
        f"{said} Lower micro_batch_tokens or max_tokens, set gradient_checkpointing, train an adapter "
        "(lora_rank), or move the teacher (teacher_device)."
    )


CHECKS: dict[str, Callable[[Patient], Outcome]] = {
    "weights": _weights,  # what they are, and what they were made of
    "chat template": _chat_template,  # the teacher reads what the student reads, and knows what it is
    "start of text": _start_of_text,  # texts begin as the models want them to
    "thinking": _thinking,  # either both think, or neither
    "end of sequence": _end_of_sequence,  # both end, and with the same token
    "self-grade": _self_grade,  # a model graded against itself gets 0
    "scoring": _scoring,  # a text has the same scores alone and in a batch
    "sampler": _sampler,  # the sampler's weights are the student's
    "length": _length,  # an answer fits into max_tokens
    "teacher": _teacher,  # there is something to learn
    "prompts": _prompts,  # every prompt of the run fits, as both models read it
    "answers": _answers,  # the verifier takes the reference answers for right
    "saving": _saving,  # what is trained can be written down
    "memory": _memory,  # it fits
}
"""All checks behind that of the vocabularies, in their order; each says what is found of a patient."""
