"""The one configuration of a run: library, command line, saved file and app all use this model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from opd.files import parse, read_text
from opd.objectives import OBJECTIVES, OPTIONS, Need

# Chosen on the tuning split of the embedded pair; for other pairs the figures of the post's recipe (LoRA) and
# of a cautious full fine-tuning.
DEMO_LEARNING_RATE, LORA_LEARNING_RATE, FULL_LEARNING_RATE = 2e-3, 1e-4, 1e-5

# PPO's bound, for rollouts that are an update old and whose ratio is no longer 1.
ASYNCHRONOUS_CLIP = 0.2

RESERVED = ("demo-student", "demo-teacher", "demo", "everyday", "self", "smollm2", "smollm2-pruned")
"""Names of models and tasks that are no paths, whatever lies here."""

MODELS = "a folder, .gguf file or hub id, smollm2, smollm2-pruned"
"""What a model can be, beside an embedded one."""

NOT_OFFERED = dict.fromkeys(
    ("top_p", "min_p", "repetition_penalty"),
    "sampling takes the model's whole distribution at one temperature; cut or bent, the tokens would not be "
    "those of the model that is graded, and their mean penalty no unbiased estimate of its reverse KL",
)
"""What other programs let one set, and why it is no setting here."""

SOURCES = (
    "demo (the embedded pair's problems), everyday (340 requests of all kinds, without answers); "
    "a .jsonl, .json, .csv or .tsv file, or one of them as .gz; or, with pip install opd-studio[data], "
    "a .parquet file or a hub data set, owner/name or owner/name:config"
)
"""What a task can be."""


GROUPS = {
    "Models": "Who learns, and who grades.",
    "Task": "What the student is asked.",
    "Objective": "The loss, and on which tokens it is taken.",
    "Sampling": "What the student writes in a step.",
    "Optimiser": "How the student's weights change.",
    "Evaluation": "Held-out prompts, asked and graded anew at every evaluation.",
    "Engine": "What computes, where, and in how much memory.",
    "Run": "The seed, the checkpoints, and a tracker.",
}
"""The groups of the settings, and what each is about: the page, ``--help`` and docs/defaults.md have them."""

_models, _task, _objective, _sampling, _optimiser, _evaluation, _engine, _run = (
    partial(Field, json_schema_extra={"group": group}) for group in GROUPS
)


OURS = {
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}
"""What is handed to a chat template, or to the call that renders it, by us."""


def as_template_options(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chat template is told beside the messages, given as a mapping or as JSON.

    Raises:
        ValueError: it is no JSON object, or names what is not for a user to set.
    """
    wanted = 'Options of a chat template are a JSON object such as {"enable_thinking": false}'
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError as error:
            raise ValueError(f"{wanted}; {value!r} is none: {error}.") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{wanted}, not {value!r}.")
    if taken := sorted(OURS & value.keys()):
        raise ValueError(
            f"{wanted}; {', '.join(taken)} cannot be set: every prompt is rendered with our own."
        )
    try:
        return parse(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}; {value!r} cannot be written as JSON: {error}.") from error


def written(value: Any) -> str:  # noqa: ANN401
    """Return a setting's value as its flag, or a field of the page, takes it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


class LessonConfig(BaseModel):
    """A further teacher, bound to the prompts it grades."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    teacher: str = Field(description=f"{MODELS}, demo-teacher, or self")
    task: str = Field(description="the prompts this teacher grades")
    share: float = Field(gt=0, lt=1, description="share of each step's prompts")


class DistillConfig(BaseModel):
    """Everything that decides what a run does. The same config and seed give the same run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    student: str = _models("demo-student", description=f"{MODELS}, or demo-student")
    teacher: str = _models("demo-teacher", description=f"{MODELS}, demo-teacher, or self, the student")
    teacher_live: bool = _models(
        False, description="with teacher self: follow the student as it trains, instead of staying at step 0"
    )
    teacher_system: str | None = _models(None, description="a system prompt that only the teacher sees")
    teacher_hint: str | None = _models(
        None,
        description="text behind the prompt that only the teacher sees; {answer} stands for the right "
        "answer, {NAME} for what a file has in its column NAME, {reference} for a chat's last assistant turn",
    )
    teacher_url: str | None = _models(
        None,
        description="a vLLM server that scores for the teacher; teacher then names its tokenizer and config",
    )
    teacher_served_as: str | None = _models(
        None, description="the teacher's name on that server, if it has another one there"
    )
    template_options: dict[str, Any] | None = _models(
        None,
        description="variables for the chat templates of both models, a JSON object such as "
        '{"enable_thinking": false}',
    )
    teacher_template_options: dict[str, Any] | None = _models(
        None,
        description="those for the teacher, if others; it then reads its own rendering of each prompt",
    )
    control_tokens: bool = _models(
        False, description="control tokens that a prompt spells, such as <|im_end|>, are meant, not text"
    )
    shared_vocabulary: bool = _models(
        False,
        description="where the vocabularies differ in a few ids: train on those that both share, the others "
        "masked on both sides",
    )
    lessons: tuple[LessonConfig, ...] = _models(
        (), description="further teachers, each with a task and a share of the prompts (config file only)"
    )

    task: str = _task("demo", description=f"where prompts come from: {SOURCES}")
    prompt_column: str | None = _task(
        None, description="column of the prompts: text, or a list of chat messages; default: recognised"
    )
    answer_column: str | None = _task(
        None, description="column of the right answers, or of chats that end with them; default: recognised"
    )
    verifier: Literal["exact", "numeric", "choice", "regex", "math"] | None = _task(
        None,
        description="how an answer is compared; default: numeric for #### 42, math for \\boxed{42}, choice "
        "for lists of choices, else exact; math needs pip install opd-studio[math]",
    )
    on_malformed: Literal["skip", "fail"] = _task(
        "skip", description="rows that cannot be used: skip and count them, or fail"
    )
    heldout_share: float = _task(
        0.2, ge=0, lt=1, description="share of the prompts that never train; a third of it is for tuning"
    )
    task_split: str = _task("train", description="which split of a hub data set is read")

    objective: Literal[tuple(OBJECTIVES)] = _objective("reverse_kl", description="what is minimised")
    kl_coefficient: float | None = _objective(
        None, ge=0, description="weight of the penalty in the advantage"
    )
    discount: float | None = _objective(
        None, ge=0, le=1, description="a token's advantage includes later penalties, discounted by this"
    )
    clip: float | None = _objective(None, gt=0, lt=1, description="PPO clip of the importance ratio")
    beta: float | None = _objective(
        None, description="weight of the teacher in the JSD's mixture, inside (0, 1)"
    )
    top_k: int | None = _objective(
        None, ge=1, description="tokens kept of the vocabulary; the rest is one bucket"
    )
    top_k_from: Literal["student", "teacher"] | None = _objective(
        None, description="whose likeliest tokens are kept"
    )
    student_share: float | None = _objective(
        None, ge=0, le=1, description="share of completions that the student writes"
    )
    sft_prompts: int | None = _objective(
        None, ge=0, description="size of a fixed set of teacher samples; 0 samples fresh ones each step"
    )
    chain: int | None = _objective(
        None, ge=1, description="problems that share one reward, given only if all are right"
    )
    reward_weight: float = _objective(
        0.0, ge=0, description="weight of the task reward, centred in each prompt's group; 0 = none"
    )
    tokens: Literal["all", "entropy", "penalty", "fork_score"] = _objective(
        "all", description="which tokens train: all, or the top share by this figure"
    )
    token_share: float = _objective(
        0.2, gt=0, le=1, description="the share that trains, if not all (0.2: Wang et al. 2025)"
    )

    prompts_per_step: int = _sampling(128, ge=1, description="prompts of one step")
    samples_per_prompt: int = _sampling(1, ge=1, description="trajectories sampled for each prompt")
    max_tokens: int = _sampling(192, ge=1, description="longest completion, in tokens")
    temperature: float = _sampling(1.0, gt=0, le=10, description="sampling and scoring temperature")

    steps: int = _optimiser(60, ge=1, description="number of steps: sample, grade, update")
    substeps: int = _optimiser(2, ge=1, description="updates that each step's trajectories are spread over")
    learning_rate: float | None = _optimiser(
        None,
        gt=0,
        le=1,
        description=f"peak learning rate of AdamW; default {DEMO_LEARNING_RATE:g} for the embedded student, "
        f"else {LORA_LEARNING_RATE:g} with LoRA and {FULL_LEARNING_RATE:g} without",
    )
    warmup_steps: int = _optimiser(3, ge=0, description="steps of linear warm-up; then linear decay to zero")
    weight_decay: float = _optimiser(0.0, ge=0, description="decoupled weight decay of AdamW")
    max_grad_norm: float = _optimiser(1.0, gt=0, description="gradients are clipped to this norm")
    lora_rank: int = _optimiser(0, ge=0, description="rank of the LoRA adapter; 0 trains all weights")

    eval_every: int = _evaluation(10, ge=1, description="steps between two evaluations")
    eval_prompts: int = _evaluation(512, ge=0, description="held-out problems of an evaluation; 0 = none")
    eval_split: Literal["test", "tuning"] = _evaluation("test", description="which held-out problems")

    device: str = _engine("auto", description="device of both models: auto, cpu, cuda, cuda:1, mps")
    dtype: str = _engine("auto", description="compute dtype: auto, float32, bfloat16, float16")
    teacher_device: str | None = _engine(None, description="device of the teacher, if another")
    teacher_dtype: str | None = _engine(None, description="dtype of the teacher, if another; also 8bit, 4bit")
    micro_batch_tokens: int = _engine(
        8192, ge=1, description="tokens of one forward; the gradient does not depend on it"
    )
    gradient_checkpointing: bool = _engine(False, description="recompute activations to save memory")
    shard: bool = _engine(
        False, description="divide the student's weights, gradients and moments over torchrun's processes"
    )
    engine: Literal["transformers", "vllm"] = _engine(
        "transformers", description="what samples from the student; vllm runs in a process of its own"
    )
    compile: bool = _engine(
        False, description="compile the student's sampling step, which takes a while at the start"
    )
    vllm_memory: float | None = _engine(
        None, gt=0, lt=1, description="share of the device's memory for vLLM; default 0.3"
    )
    vllm_hot_swap: bool = _engine(
        False, description="hand vLLM the adapter after each update, instead of merged weights"
    )
    vllm_sleeps: bool = _engine(False, description="let vLLM give its memory to the update, on a CUDA device")
    asynchronous: bool = _engine(
        False, description="let vLLM write the next step while this one trains: rollouts are an update old"
    )

    seed: int = _run(0, ge=0, description="decides every random number of the run")
    save_every: int = _run(20, ge=1, description="steps between two checkpoints; the last step has one")
    keep_checkpoints: int = _run(
        2, ge=1, description="newest checkpoints to keep; the best and pinned ones stay"
    )
    report_to: Literal["none", "trackio", "wandb"] = _run(
        "none", description="a tracker that gets the metrics too, if it is installed"
    )
    ignore_doctor: bool = _run(False, description="train although the doctor says that it would go wrong")

    @field_validator("template_options", "teacher_template_options", mode="before")
    @classmethod
    def _are_template_options(cls, value: Any) -> Any:  # noqa: ANN401
        return None if value is None else as_template_options(value)

    @model_validator(mode="before")
    @classmethod
    def _settle_defaults(cls, data: Any) -> Any:  # noqa: ANN401
        """Settle defaults that depend on other fields, so that a saved config says what was used."""
        return {**data, **settled(data)} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _options_belong(self) -> Self:
        for name in OPTIONS - OBJECTIVES[self.objective].options.keys():
            if getattr(self, name) is not None:
                owners = ", ".join(other for other, of in OBJECTIVES.items() if name in of.options)
                raise ValueError(f"{name} is no option of {self.objective}; it belongs to {owners}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.beta is not None and not 0 < self.beta < 1:
            raise ValueError(
                f"beta must lie inside (0, 1), not {self.beta:g}: the JSD vanishes at its ends. For what the "
                "ends suggest, choose objective forward_kl (beta towards 0) or reverse_kl (beta towards 1)"
            )
        if self.warmup_steps >= self.steps > 1:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        completions = self.prompts_per_step * self.samples_per_prompt
        if self.substeps > completions:
            raise ValueError(f"substeps ({self.substeps}) exceeds the {completions} completions of a step")
        if self.asynchronous and (self.engine != "vllm" or self.vllm_sleeps):
            raise ValueError("asynchronous needs engine vllm, and awake: it samples while the update runs")
        if self.clip is not None and self.substeps == 1 and not self.asynchronous:
            raise ValueError("clip needs substeps > 1: in a single update the importance ratio is 1")
        if self.rewarded and self.samples_per_prompt < 2:
            raise ValueError("a task reward is centred in its group: samples_per_prompt must be at least 2")
        if self.reward_weight and OBJECTIVES[self.objective].baseline:
            raise ValueError(f"reward_weight does not mix with the baseline {self.objective}")
        if self.chain and self.prompts_per_step % self.chain:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of chain ({self.chain})"
            )
        if self.sft_prompts and self.sft_prompts % self.prompts_per_step:
            raise ValueError(
                f"sft_prompts ({self.sft_prompts}) must be 0 or a multiple of prompts_per_step "
                f"({self.prompts_per_step})"
            )
        if self.teacher_live and self.teacher != "self":
            raise ValueError("teacher_live needs teacher self")
        if self.teacher_url and self.teacher == "self":
            raise ValueError("teacher_url is for a teacher of its own, not for self")
        if self.teacher_served_as and not self.teacher_url:
            raise ValueError("teacher_served_as is a name on a server: it needs teacher_url")
        if self.shared_vocabulary and (self.teacher_url or self.engine == "vllm"):
            raise ValueError(
                "shared_vocabulary masks logits on both sides, which teacher_url and engine vllm cannot: it "
                "needs a teacher that is loaded here, and engine transformers"
            )
        if self.engine != "vllm" and (self.vllm_memory or self.vllm_hot_swap or self.vllm_sleeps):
            raise ValueError("vllm_memory, vllm_hot_swap and vllm_sleeps need engine vllm")
        if self.vllm_hot_swap and not self.lora_rank:
            raise ValueError("vllm_hot_swap hands over an adapter: it needs lora_rank")
        if self.shard and self.engine == "vllm":
            raise ValueError("shard gathers the weights to sample with them: it needs engine transformers")
        if self.compile and (self.shard or self.engine == "vllm"):
            raise ValueError("compile is for engine transformers, and for weights that are not sharded")
        if sum(lesson.share for lesson in self.lessons) >= 1:
            raise ValueError("the shares of the lessons must leave something for the main teacher")
        return self

    @property
    def grades_first(self) -> bool:
        """Whether the step must know all its grades before the update can begin."""
        ratio_moves = self.substeps > 1 and OBJECTIVES[self.objective].settles
        return bool(self.discount) or ratio_moves or self.tokens != "all"

    @property
    def reward_scale(self) -> float:
        """The weight of the task's reward, centred in its group; 0: the teacher alone leads the student."""
        return 1.0 if OBJECTIVES[self.objective].judge == "verifier" else self.reward_weight

    @property
    def rewarded(self) -> bool:
        """Whether the task's reward leads the student too, wherever its teacher stands."""
        return self.reward_scale > 0

    @property
    def need(self) -> Need:
        """What the run wants to know of its teacher's distribution at each token."""
        need = OBJECTIVES[self.objective].need
        return "chosen" if need == "top_k" and self.top_k_from == "student" else need

    def anchored(self) -> Self:
        """Return it with absolute paths for what lies here, so that it means the same from any folder."""
        lessons = tuple(
            lesson.model_copy(update={"teacher": anchor(lesson.teacher), "task": anchor(lesson.task)})
            for lesson in self.lessons
        )
        here = {name: anchor(getattr(self, name)) for name in ("student", "teacher", "task")}
        if self.teacher_url and here["teacher"] != self.teacher:  # its server knows nothing of this folder
            here["teacher_served_as"] = self.teacher_served_as or self.teacher
        return self.model_copy(update={**here, "lessons": lessons})


def grouped_settings() -> dict[str, list[str]]:
    """Return the names of all settings by their group; see :data:`GROUPS`."""
    fields = DistillConfig.model_fields.items()
    return {g: [name for name, f in fields if f.json_schema_extra["group"] == g] for g in GROUPS}


def anchor(name: str) -> str:
    """Return the absolute path of a model or task that lies here; any other name as it is."""
    try:
        path = Path(name).expanduser()
        here = name.strip() and name not in RESERVED and path.exists()
    except (OSError, RuntimeError):  # no file can be called so
        here = False
    return str(path.resolve()) if here else name


def settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings whose defaults follow from other ones: as given, else as those make them."""
    usual = {name: field.default for name, field in DistillConfig.model_fields.items()}
    every = usual | {name: value for name, value in values.items() if value is not None}
    objective = every["objective"]
    known = isinstance(objective, str) and objective in OBJECTIVES
    found = dict(OBJECTIVES[objective].options) if known else {}
    if every["asynchronous"] and "clip" in found:
        found["clip"] = ASYNCHRONOUS_CLIP
    found["learning_rate"] = LORA_LEARNING_RATE if every["lora_rank"] else FULL_LEARNING_RATE
    if every["student"] == usual["student"]:
        found["learning_rate"] = DEMO_LEARNING_RATE
    if isinstance(steps := every["steps"], int) and steps > 0:
        found["warmup_steps"] = min(usual["warmup_steps"], steps - 1)
    return found | {name: values[name] for name in found if values.get(name) is not None}


def chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what would be settled so anyway: a saved config spells out what nobody chose.

    Settings that leave any of those names out were written by hand, and what they say was chosen.
    """
    follow = OPTIONS | {"learning_rate", "warmup_steps"}
    if not follow <= values.keys():
        return dict(values)
    anew = settled({n: v for n, v in values.items() if n not in follow})
    return {n: v for n, v in values.items() if v is not None and (n not in anew or anew[n] != v)}


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a ``.toml`` file, or from JSON such as a run's ``config.json``.

    Raises:
        ValueError: the file cannot be read, or is not what its name says.
    """
    try:
        text = read_text(path, strict=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as settings: {error.strerror or error}.") from error
    try:
        values = parse(text, tomllib.loads if path.suffix == ".toml" else json.loads)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as settings: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} cannot be read as settings: it holds no table of names and values.")
    return values


def override(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``saved`` settings with the ``given`` ones in their place.

    A saved config spells out the options of its objective; where another objective is given, they go with it.
    """
    objective = given.get("objective", saved.get("objective"))
    if objective in OBJECTIVES and objective != saved.get("objective"):
        foreign = OPTIONS - OBJECTIVES[objective].options.keys()
        saved = {name: value for name, value in saved.items() if name not in foreign}
    return {**saved, **given}


def make_config(values: Mapping[str, Any]) -> DistillConfig:
    """Build a config from what a user gave, with an error a person can read.

    Raises:
        ValueError: one sentence that names each setting that is wrong.
    """
    try:
        return DistillConfig(**values)
    except ValidationError as error:
        problems = "; ".join(_problem(e) for e in error.errors())
        raise ValueError(f"These settings cannot be used: {problems}.") from None


def _problem(error: Mapping[str, Any]) -> str:
    """Name the setting that is wrong and say how."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        if name in NOT_OFFERED:
            return f"{name} is not offered: {NOT_OFFERED[name]}"
        near = get_close_matches(name, DistillConfig.model_fields, n=1)
        return f"there is no setting {name}" + (f"; did you mean {near[0]}?" if near else "")
    said = error["msg"].removeprefix("Value error, ").removesuffix(".")
    return f"{name}: {said}" if name else said
