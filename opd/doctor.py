"""The doctor: examines a pair before it is used, in seconds, on a few short completions of the student.

Most failures of on-policy distillation are not in the loss but in the plumbing: another chat template,
another end-of-sequence token, a sampler with stale weights, a batch that changes the scores. Each check looks
for one of them and ends in one :class:`Finding`. Nothing is changed in the models.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd.config import DistillConfig
from opd.divergence import chunk_rows
from opd.engines import NotFiniteError, Sampler, Scorer
from opd.engines.transformers import TransformersSampler, distributions
from opd.grading import grade
from opd.models import LanguageModel, Pair, VocabularyMismatch, resolve_device, resolve_dtype
from opd.parallel import neighbours, world
from opd.sampling import requests
from opd.tasks import Task
from opd.trajectory import Messages, Prompt, Trajectory

Level = Literal["pass", "warn", "fail"]

AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Mean difference (nats a token) that two scorings of the same tokens may have: round-off of the dtype."""

TEMPLATE_BIAS = 0.1
"""Nats a token by which the teacher may read the student's prompt worse than its own rendering. A bias of
0.287 degraded a published recipe (tinker-cookbook issue 796)."""

RARE_STOP, REAL_STOP, EMPTY_ANSWER = 1e-6, 0.01, 0.5
"""Probability of the end: hardly ever below the first, meant to end above the second, and at the start of an
answer above the third it is empty."""

TIGHT = 0.9
"""Above this share of the free memory an estimate is too close to be sure."""

PROBE_TOKENS, PROBE_PROMPTS, TASK_PROMPTS = 32, 4, 64
QUESTIONS = ("What is 3 + 4?", "Name a colour.", "Why is the sky blue?", "How many days has a week?")
QUESTION: Messages = [{"role": "user", "content": QUESTIONS[0]}]
REPLY = "The answer is 7."
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

    def __str__(self) -> str:
        """One line, as it is printed."""
        return f"{self.level}  {self.check}: {self.message}"


Verdict = tuple[Level, str]


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
        One finding a check, in a fixed order. Models without a common vocabulary get no further checks: all
        of them compare ids.
    """
    scorer = None
    if isinstance(pair, Pair):
        scorer, pair = pair.scorer, (pair.student, pair.teacher)
    student, teacher = pair
    patient = _Patient(
        student, teacher, config or DistillConfig(), task, sampler or TransformersSampler(student), scorer
    )
    findings = [_find("vocabulary", _vocabulary, patient)]
    if findings[0].level != "fail":
        findings += [_find(name, check, patient) for name, check in CHECKS.items()]
    return findings


def check_sampler(
    student: LanguageModel,
    sampler: Sampler,
    *,
    prompts: Sequence[Prompt] = (QUESTION,),
    temperature: float = 1.0,
) -> Finding:
    """Say whether a sampler's log-probs are those of the student's own forward, as after each weight sync."""
    return _find(
        "sampler", lambda _: _sampler_verdict(student, sampler, prompts, temperature, PROBE_TOKENS), None
    )


def _find(name: str, check: Callable[[Any], Verdict], patient: Any) -> Finding:  # noqa: ANN401
    try:
        with torch.inference_mode():
            return Finding(name, *check(patient))
    except NotFiniteError as error:
        return Finding(name, "fail", str(error))
    except Exception as error:  # what breaks an examination would break the run
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return Finding(name, "fail", f"This could not be examined: {reason}.")


@dataclass(frozen=True, eq=False)
class _Patient:
    """A pair, what it is meant for, and the material that the checks share."""

    student: LanguageModel
    teacher: LanguageModel
    config: DistillConfig
    task: Task | None
    sampler: Sampler
    scorer: Scorer | None = None

    @property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        return self.student, self.teacher

    @property
    def local(self) -> tuple[LanguageModel, ...]:
        """The models that compute here."""
        return self.models if self.scorer is None else (self.student,)

    @property
    def probe_tokens(self) -> int:
        return min(PROBE_TOKENS, self.config.max_tokens)

    @functools.cached_property
    def prompts(self) -> list[Prompt]:
        """Prompts the run will use, the shortest first."""
        if self.task is None:
            return list(QUESTIONS)
        prompts = [example.prompt for example in self.task.batch(TASK_PROMPTS, step=1, seed=self.config.seed)]
        return sorted(prompts, key=lambda prompt: len(str(prompt)))

    @functools.cached_property
    def probes(self) -> list[Trajectory]:
        """Short completions that the student wrote to the shortest prompts."""
        asked = requests(self.student, self.prompts[:PROBE_PROMPTS], n=2, max_tokens=self.probe_tokens)
        done = TransformersSampler(self.student).sample(asked)
        return sorted(done, key=lambda t: (t.prompt_index, t.sample_index))

    def log_probs(self, model: LanguageModel, trajectories: Sequence[Trajectory]) -> Tensor:
        """What a model predicts at each token of some trajectories, ``[N, V]``."""
        side = "student" if model is self.student else "teacher"
        vocabulary = min(self.student.vocabulary, self.teacher.vocabulary)
        found = distributions(model, trajectories, side=side, temperature=1.0, vocabulary=vocabulary)
        return found.log_probs(found.hidden)

    def taken(self, model: LanguageModel, trajectories: Sequence[Trajectory]) -> Tensor:
        """What a model gives to each token of some trajectories, ``[N]``, wherever it computes."""
        if model is self.student or self.scorer is None:
            return _taken(self.log_probs(model, trajectories), _ids(trajectories))
        scores = self.scorer.score(trajectories, side="teacher", top_k=1)
        return torch.from_numpy(np.concatenate([s.logprobs for s in scores]))


def _vocabulary(p: _Patient) -> Verdict:
    try:
        Pair(p.student, p.teacher)
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
    return "pass", f"Both models mean the same by all {len(p.student.tokenizer.get_vocab())} token ids."


def _chat_template(p: _Patient) -> Verdict:
    cases = {**CONVERSATIONS, **({"the task's prompts": p.prompts[0]} if p.task else {})}
    different = {name: parts for name, prompt in cases.items() if (parts := _where_they_part(p, prompt))}
    if not different:
        if not getattr(p.student.tokenizer, "chat_template", None):
            return "pass", "Neither model has a chat template; both read the same plain text."
        return "pass", "The same messages become the same ids for both models."
    name, parts = next(iter(different.items()))
    said = f"The chat templates differ for {', '.join(different)}: with {name} {parts}."
    if not {"a question", "the task's prompts"} & different.keys():
        return "warn", f"{said} Plain questions are the same; keep to them, or give both models one template."
    bias = _template_bias(p)
    return "fail" if bias >= TEMPLATE_BIAS else "warn", (
        f"{said} The teacher reads what the student reads, which costs it {bias:.3f} nats a token against "
        "its own template. Give both models one: copy chat_template.jinja from one folder to the other."
    )


def _where_they_part(p: _Patient, prompt: Prompt) -> str:
    """Say where two renderings of a prompt begin to differ; nothing if they do not."""
    rendered: list[NDArray[np.int64] | None] = []
    for model in p.models:
        try:
            rendered.append(model.render(prompt))
        except Exception:  # some templates refuse system prompts, each in its own way
            rendered.append(None)
    ours, theirs = rendered
    if ours is None or theirs is None:
        refuses = p.student.name if ours is None else p.teacher.name
        return "" if ours is theirs else f"{refuses} refuses it"
    if np.array_equal(ours, theirs):
        return ""
    common = min(len(ours), len(theirs))
    at = int(np.argmax(np.append(ours[:common] != theirs[:common], True)))
    shown = [repr(p.student.token_text(int(ids[at]))) if at < len(ids) else "the end" for ids in rendered]
    return f"they part at token {at}, {shown[0]} against {shown[1]}"


def _template_bias(p: _Patient) -> float:
    """How much better the teacher predicts the probes behind its own rendering, nats a token."""
    own = [replace(t, teacher_prompt_ids=p.teacher.render(p.prompts[t.prompt_index])) for t in p.probes]
    return float((p.taken(p.teacher, own) - p.taken(p.teacher, p.probes)).mean())


def _thinking(p: _Patient) -> Verdict:
    ours, theirs = (_thinking_switch(model) for model in p.models)
    if ours == theirs:
        return "pass", f"Both chat templates agree on thinking: {ours}."
    return "warn", (
        f"The chat templates differ on thinking: {p.student.name} has {ours}, {p.teacher.name} {theirs}. "
        "One of them writes a <think> part that the other never saw; choose two models of one kind."
    )


def _thinking_switch(model: LanguageModel) -> str:
    if not getattr(model.tokenizer, "chat_template", None):
        return "no switch"

    def rendered(**flags: bool) -> str:
        return model.tokenizer.apply_chat_template(
            QUESTION, add_generation_prompt=True, tokenize=False, **flags
        )

    on, off = rendered(enable_thinking=True), rendered(enable_thinking=False)
    return "no switch" if on == off else "a switch that is on" if rendered() == on else "a switch that is off"


def _end_of_sequence(p: _Patient) -> Verdict:
    vocabulary = min(p.student.vocabulary, p.teacher.vocabulary)
    ours, theirs = ({i for i in model.eos_ids if i < vocabulary} for model in p.models)
    if not ours:
        return "fail", (
            f"{p.student.name} has no end-of-sequence id, so no completion would ever end. Set eos_token_id "
            "in its generation_config.json."
        )
    if p.scorer is not None:
        if ours & theirs:
            return "pass", f"Both models end with {_tokens(p, ours & theirs)}, by their own settings."
        return "warn", (
            f"The models list different end tokens: the student {_tokens(p, ours)}, the teacher "
            f"{_tokens(p, theirs) or 'none'}. Only the student's end a completion; watch its length."
        )
    ended = [t for t in p.probes if t.finish_reason == "stop"]
    if not ended:  # a reply that is complete, whoever wrote it
        prompt = p.probes[0].prompt_ids
        reply = p.student.tokenizer(REPLY, add_special_tokens=False)["input_ids"]
        ended = [Trajectory(prompt, np.array([*reply, min(ours)]), None, None, prompt)]
    last = np.cumsum([len(t) for t in ended]) - 1
    at_end = [p.log_probs(model, ended)[last].exp().mean(0) for model in p.models]
    first = np.cumsum([0, *(len(t) for t in p.probes[:-1])])
    at_start = [p.log_probs(model, p.probes)[first].exp().mean(0) for model in p.models]

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
    if ours != theirs:
        return "warn", f"The models list different end tokens; only the student's end a completion: {said}."
    return "pass", f"Both models end with the same ids: {said}."


def _tokens(p: _Patient, ids: set[int]) -> str:
    return ", ".join(f"{p.student.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(ids))


def _self_grade(p: _Patient) -> Verdict:
    for model in p.local:
        grades = grade(Pair(model, model), [replace(t, teacher_prompt_ids=t.prompt_ids) for t in p.probes])
        worst = max(float(np.abs(np.concatenate([g.penalty, g.reverse_kl])).max()) for g in grades)
        if worst > 0:
            return "fail", (
                f"{model.name} graded against itself gets up to {worst:.2g} nats instead of 0: its forward "
                "is not deterministic. Turn off dropout and kernels that are not deterministic."
            )
        logprobs, ids = p.log_probs(model, p.probes), _ids(p.probes)
        # Ids against the distribution one place too early: nothing but a broken model scores both alike.
        shifted = (_taken(logprobs[:-1], ids[1:]) - _taken(logprobs[1:], ids[1:])).abs().max()
        if shifted < AGREEMENT[torch.float32]:
            return "fail", f"{model.name} predicts the same at every place. Check its weights."
    return "pass", "Each model graded against itself gets exactly 0, and not when shifted by one token."


def _scoring(p: _Patient) -> Verdict:
    said = []
    for model in p.models:
        together = p.taken(model, p.probes)
        alone = torch.cat([p.taken(model, [t]) for t in p.probes])
        mean, worst, bound = _disagreement(model, together, alone)
        if not mean <= bound:
            return "fail", (
                f"{model.name} scores the same tokens differently in a batch than alone: {mean:.2g} nats a "
                f"token on average (at most {worst:.2g}), where {bound:g} is round-off. Its attention mask "
                "or positions go wrong in a batch; try float32 or another attention implementation."
            )
        said.append(f"{mean:.1g}")
    return "pass", f"In a batch and alone, scores differ by {said[0]} (student) and {said[1]} nats (teacher)."


def _sampler(p: _Patient) -> Verdict:
    prompts = p.prompts[:PROBE_PROMPTS]
    return _sampler_verdict(p.student, p.sampler, prompts, p.config.temperature, p.probe_tokens)


def _sampler_verdict(
    student: LanguageModel, sampler: Sampler, prompts: Sequence[Prompt], temperature: float, tokens: int
) -> Verdict:
    asked = requests(student, prompts, n=2, max_tokens=tokens)
    sampled = list(sampler.sample(asked, temperature=temperature))
    vocabulary = student.vocabulary
    scored = distributions(student, sampled, side="student", temperature=temperature, vocabulary=vocabulary)
    own = _taken(scored.log_probs(scored.hidden), _ids(sampled))
    behaviour = torch.from_numpy(np.concatenate([t.behaviour_logprobs for t in sampled])).to(own.device)
    mean, worst, bound = _disagreement(student, own, behaviour)
    if not mean <= bound:
        return "fail", (
            f"The sampler's log-probs are {mean:.2g} nats a token off the student's own (at most "
            f"{worst:.2g}), where {bound:g} is round-off: it samples from other weights or at another "
            "temperature. Synchronise it, and check that the adapter reaches it."
        )
    return "pass", f"The sampler's log-probs are the student's own, to {mean:.1g} nats a token."


def _disagreement(model: LanguageModel, a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Return mean and largest difference of two columns of log-probs ``[N]``, and the mean allowed."""
    difference = (a - b).abs()
    kind = model.device.type
    if kind == "meta":  # it computes elsewhere, in a dtype of its own
        return float(difference.mean()), float(difference.max()), AGREEMENT[torch.bfloat16]
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.causal_lm.dtype
    return float(difference.mean()), float(difference.max()), AGREEMENT.get(dtype, AGREEMENT[torch.bfloat16])


def _teacher(p: _Patient) -> Verdict:
    sizes = [sum(w.numel() for w in model.causal_lm.parameters()) for model in p.models]
    grades = grade(Pair(*p.models, p.scorer), p.probes)
    kl = np.concatenate([g.reverse_kl for g in grades])
    if max(float(np.abs(g.penalty).max()) for g in grades) == 0:
        if p.config.teacher_hint or p.config.teacher_system:
            return "pass", "The teacher is the student itself, told what the student is not."
        return "warn", (
            "The teacher says exactly what the student says, so there is nothing to learn. Choose another "
            "teacher, or tell it something the student does not know."
        )
    if sizes[1] < sizes[0]:
        return "warn", (
            f"The teacher ({sizes[1]:,} parameters) is smaller than the student ({sizes[0]:,}). Check that "
            "they are not swapped."
        )
    return "pass", f"The teacher is {kl.mean():.2g} nats a token from the student on {len(kl)} probe tokens."


def _context(p: _Patient) -> Verdict:
    wanted = p.config.max_tokens
    longest = max(len(p.student.render(prompt, room=wanted)) for prompt in p.prompts)
    for model in p.models:
        if longest + wanted > model.context:
            return "fail", (
                f"{model.name} reads {model.context} tokens; prompts of up to {longest} and completions of "
                f"{wanted} need more. Lower max_tokens, or shorten the prompts."
            )
    return "pass", f"Prompts of up to {longest} tokens and completions of {wanted} fit both contexts."


@dataclass(frozen=True)
class Memory:
    """What a run needs on its devices, in bytes; an estimate.

    Attributes:
        student: the student's weights.
        teacher: the teacher's weights.
        gradients: of the weights that are trained.
        moments: AdamW's two moments of them.
        sampling: key-value cache and next-token distributions while completions grow.
        update: activations of a micro-batch and one chunk of logits.
    """

    student: int
    teacher: int
    gradients: int
    moments: int
    sampling: int
    update: int

    @property
    def total(self) -> int:
        """The peak, with everything on one device: sampling and update take turns."""
        return self.student + self.teacher + self.gradients + self.moments + max(self.sampling, self.update)

    def __str__(self) -> str:
        """The parts in words."""
        return (
            f"{size_in_words(self.student)} student, {size_in_words(self.teacher)} teacher, "
            f"{size_in_words(self.gradients + self.moments)} gradients and AdamW, "
            f"{size_in_words(self.sampling)} to sample or {size_in_words(self.update)} to update"
        )


def estimate_memory(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    config: DistillConfig,
    *,
    prompt_tokens: int = 256,
    processes: int = 1,
) -> Memory:
    """Estimate the memory of each process of a run from the shapes of its models, skeletons or whole ones.

    Args:
        student: the student's transformers model, or :func:`skeleton` of it.
        teacher: the teacher's.
        config: the run.
        prompt_tokens: length of a prompt.
        processes: how many there are.
    """
    shape = student.config.get_text_config()
    compute = resolve_dtype(config.dtype, resolve_device(config.device)).itemsize
    teacher_device = resolve_device(config.teacher_device or config.device)
    teacher_bytes = resolve_dtype(config.teacher_dtype or config.dtype, teacher_device).itemsize
    parameters = sum(p.numel() for p in student.parameters())
    trained = parameters
    if config.lora_rank:  # two thin matrices beside each linear layer but the head
        head = student.get_output_embeddings()
        linear = (m for m in student.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        trained = config.lora_rank * sum(m.in_features + m.out_features for m in linear)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    heads = shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or hidden // heads
    cached = 2 * (getattr(shape, "num_key_value_heads", None) or heads) * width
    tokens = prompt_tokens + config.max_tokens
    completions = -(-config.prompts_per_step * config.samples_per_prompt // processes)
    rows = min(TransformersSampler.in_flight, completions)
    micro = min(config.micro_batch_tokens, completions * tokens)
    # What autograd keeps of a layer and token: norms, queries to outputs, the gated MLP.
    layer = (
        8 * hidden
        + 3 * heads * width
        + 2 * cached
        + 4 * (getattr(shape, "intermediate_size", None) or 4 * hidden)
    )
    kept = layers * hidden + layer if config.gradient_checkpointing else layers * layer
    whole = parameters * (compute if config.lora_rank else 4) + (trained * 4 if config.lora_rank else 0)
    parts = processes if config.shard else 1
    # Sharded weights are whole while they sample; an update gathers the matrices at both ends and two layers.
    ends = 2 * shape.vocab_size * hidden * whole // parameters
    return Memory(
        student=whole // parts,
        teacher=0 if config.teacher_url else sum(p.numel() for p in teacher.parameters()) * teacher_bytes,
        gradients=4 * trained // parts,
        moments=8 * trained // parts,
        # fp32 logits and log-probs, float64 probabilities and their sums
        sampling=rows * (tokens * layers * cached * compute + shape.vocab_size * (4 + 4 + 8 + 8))
        + whole
        - whole // parts,
        # a chunk of both models' logits, log-probs and the gradient: eight fp32 tensors
        update=micro * kept * compute
        + 8 * 4 * min(chunk_rows(shape.vocab_size), micro) * shape.vocab_size
        + (min(whole, ends + 2 * whole // layers) if parts > 1 else 0),
    )


def skeleton(name: str) -> torch.nn.Module:
    """Return a model of the right shapes without weights, to estimate from before anything is loaded.

    Raises:
        OSError: there is no configuration of this name.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from opd.models import DEMO_MODELS
    from opd.paths import assets_dir

    where = assets_dir() / DEMO_MODELS[name] if name in DEMO_MODELS else name
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where, trust_remote_code=False))


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes a device has left for this process; None where nobody can tell.

    Main memory is shared by all processes of the run on this machine.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container may have less; "max" is no number
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free // neighbours()


def _saving(p: _Patient) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        p.student.save(Path(folder), {})
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


def _memory(p: _Patient) -> Verdict:
    longest = max(len(p.student.render(prompt)) for prompt in p.prompts)
    need = estimate_memory(
        p.student.causal_lm, p.teacher.causal_lm, p.config, prompt_tokens=longest, processes=world()
    )
    there = sum(w.numel() * w.element_size() for w in p.student.model.parameters())
    missing = need.total - need.teacher - there  # the teacher is loaded already
    free = free_memory(p.student.device)
    said = f"Training needs about {size_in_words(missing)} more than is loaded ({need})"
    if free is None:
        return "warn", f"{said}; how much is free on {p.student.device} cannot be told. Watch it."
    said += f"; {size_in_words(free)} are free on {p.student.device}."
    if missing <= TIGHT * free:
        return "pass", said
    return "fail" if missing > free else "warn", (
        f"{said} Lower micro_batch_tokens or max_tokens, set gradient_checkpointing, train an adapter "
        "(lora_rank), or move the teacher (teacher_device)."
    )


def size_in_words(size: int) -> str:
    """Return bytes as people write them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _ids(trajectories: Sequence[Trajectory]) -> Tensor:
    return torch.from_numpy(np.concatenate([t.completion_ids for t in trajectories]))


def _taken(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-prob of each row's token, ``[N, V]``, ``[N]`` -> ``[N]``."""
    return logprobs.gather(1, ids.to(logprobs.device)[:, None]).squeeze(1)


CHECKS: dict[str, Callable[[_Patient], Verdict]] = {
    "chat template": _chat_template,
    "thinking": _thinking,
    "end of sequence": _end_of_sequence,
    "self-grade": _self_grade,
    "scoring": _scoring,
    "sampler": _sampler,
    "teacher": _teacher,
    "context": _context,
    "saving": _saving,
    "memory": _memory,
}
