"""Named starting points with their reasons, and a config written down as a command or as Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opd.config import LORA_LEARNING_RATE, DistillConfig, chosen, make_config, override, written
from opd.objectives import OBJECTIVES


@dataclass(frozen=True)
class Preset:
    """A starting point.

    Attributes:
        title: its name for people.
        reason: why and when one takes it, in a sentence or two.
        changes: the settings it changes; those that it does not name stay as they are.
        defining: those of them without which it would be another method: in a race they stand.
    """

    title: str
    reason: str
    changes: Mapping[str, Any]
    defining: tuple[str, ...] = ()


PRESETS: dict[str, Preset] = {
    "quick-look": Preset(
        "Quick look",
        "A third of the steps with half the prompts: whether the KL falls at all shows within them.",
        {"steps": 20, "prompts_per_step": 64, "eval_every": 5, "eval_prompts": 128},
    ),
    "heal": Preset(
        "Heal a pruned model",
        "Real weights and real text on two cores, in about a quarter of an hour: SmolLM2 135M without four "
        "of its thirty layers babbles, and learns from the whole model to write sentences again. The KL "
        "falls most in the first five steps. Answers are cut at 64 tokens to keep steps short; an alarm "
        "says so.",
        {
            "student": "smollm2-pruned",
            "teacher": "smollm2",
            "task": "everyday",
            "objective": "reverse_kl",
            "lora_rank": 0,
            "prompts_per_step": 8,
            "max_tokens": 64,
            "steps": 20,
            "substeps": 1,
            "learning_rate": 2e-4,
            "warmup_steps": 2,
            "eval_every": 5,
        },
    ),
    "post": Preset(
        "The post's recipe",
        "What Thinking Machines' post describes: the sampled penalty as the advantage of each token, no "
        "discount, one update a step, four samples a prompt, a LoRA adapter.",
        {
            "objective": "importance_sampling",
            "kl_coefficient": 1.0,
            "discount": 0.0,
            "prompts_per_step": 32,
            "samples_per_prompt": 4,
            "substeps": 1,
            "lora_rank": 32,
        },
        ("objective",),
    ),
    "lora": Preset(
        "LoRA",
        "An adapter on every linear layer instead of all weights: no gradients and moments of the base "
        "model, and a file of some megabytes to keep.",
        {"lora_rank": 32},
    ),
    "full": Preset(
        "All weights",
        "Every weight trains: the most a student can learn, at four times the memory of its weights.",
        {"lora_rank": 0},
        ("lora_rank",),
    ),
    "sft": Preset(
        "SFT baseline",
        "Imitate what the teacher writes: off-policy, so the student never learns to leave its own mistakes. "
        "What distillation has to beat.",
        {"objective": "sft"},
        ("objective",),
    ),
    "rl": Preset(
        "RL baseline",
        "Reward for right answers and no teacher: as many completions a step, in groups of eight, but one "
        "bit of news for each instead of a grade for every token. Needs prompts with answers.",
        {"objective": "rl", "prompts_per_step": 16, "samples_per_prompt": 8},
        ("objective",),
    ),
    "self": Preset(
        "Self-distillation",
        "The student is its own teacher, shown the right answer: it learns to think as if it had known. "
        "Needs prompts with answers.",
        {"teacher": "self", "teacher_hint": "The right answer is {answer}."},
        ("teacher",),
    ),
    "recover": Preset(
        "Recover a lost skill",
        "For a student that forgot something in fine-tuning: set the teacher to the model it was made from "
        "and the task to prompts of the lost skill. An adapter moves least of what was learnt since.",
        {"lora_rank": 32, "prompts_per_step": 64, "steps": 100},
    ),
}
"""The starting points by name."""

BASELINES = [name for name, objective in OBJECTIVES.items() if objective.judge != "teacher"]
"""Objectives that ask no teacher for grades."""

RACERS = ("full", *BASELINES)
"""Starting points that race against each other unless others are named."""

LARGE = {"lora_rank": 32, "learning_rate": LORA_LEARNING_RATE, "max_tokens": 512, "prompts_per_step": 64}
"""For a student of half a billion parameters or more: an adapter at the rate of the post's recipe, answers
of a paragraph or two, and so few of them that a step takes no longer."""


def _pair(title: str, reason: str, student: str, teacher: str, **settings: Any) -> Preset:  # noqa: ANN401
    """Make the starting point of a pair; what it leaves out goes back to its default."""
    usual = {name: DistillConfig.model_fields[name].default for name in ("template_options", *LARGE)}
    return Preset(title, reason, {"student": student, "teacher": teacher} | usual | settings)


PAIRS: dict[str, Preset] = {
    "embedded": _pair(
        "Embedded",
        "Two toys of about a million parameters that ship with the program: minutes on a laptop, no network.",
        "demo-student",
        "demo-teacher",
    ),
    "smollm2-1.7b": _pair(
        "SmolLM2 135M under 1.7B",
        "The smallest pair of chat models that is worth a look: all weights of the student train, and both "
        "fit into 16 GB.",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        learning_rate=5e-5,
        max_tokens=256,
        prompts_per_step=64,
    ),
    "qwen3-4b": _pair(
        "Qwen3 0.6B under 4B",
        "Neither thinks: reasoning of thousands of tokens would be cut off before the answer.",
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-4B",
        template_options={"enable_thinking": False},
        **LARGE,
    ),
    "qwen3-8b": _pair(
        "Qwen3 0.6B under 8B",
        "As under 4B, with a teacher that knows more and takes 16 GB in bfloat16.",
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-8B",
        template_options={"enable_thinking": False},
        **LARGE,
    ),
    "qwen2.5": _pair(
        "Qwen2.5 0.5B under 7B",
        "Models that never think, of one vocabulary; the larger's matrix is padded, which does no harm.",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
        **LARGE,
    ),
    "llama3.2": _pair(
        "Llama 3.2 1B under 3B",
        "Gated: accept the licence on the hub first. The template writes today's date into every prompt "
        "unless it is told one, and a run should mean the same tomorrow.",
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        template_options={"date_string": "26 Jul 2024"},
        **LARGE,
    ),
    "gemma3": _pair(
        "Gemma 3 270M under 1B",
        "Gated: accept the licence on the hub first. A small body under a vocabulary of 262,144: the logits "
        "take the memory, so answers are short.",
        "google/gemma-3-270m-it",
        "google/gemma-3-1b-it",
        learning_rate=5e-5,
        max_tokens=256,
        prompts_per_step=64,
    ),
}
"""Starting points that name two models, and what those need: all set the same settings, so that one takes
another's place. Those of the hub are untried: rates and lengths are the usual ones for their sizes."""


def preset(name: str) -> Preset:
    """Return a starting point, a pair's too.

    Raises:
        ValueError: there is none of that name.
    """
    known = PRESETS | PAIRS
    if name not in known:
        raise ValueError(f"There is no preset called {name!r}. Presets: {', '.join(known)}.")
    return known[name]


def combine(
    saved: Mapping[str, Any], name: str | None = None, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings of a file, a preset's over them, and over both those that were given beside it.

    What a saved config spells out though nobody chose it (a learning rate that followed from its student)
    counts for nothing: it is settled anew.

    Raises:
        ValueError: there is no preset of that name.
    """
    return override(override(chosen(saved), preset(name).changes if name else {}), given or {})


def race_configs(
    methods: Iterable[str], saved: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, DistillConfig]:
    """Return the config of every method of a race, a preset each; see :func:`combine`.

    What is given is for all of them, but leaves each method what it is: with a ``lora_rank`` of 8, "full"
    trains all weights still. Nor does the file of a baseline's run make a baseline of a method that is none.

    Raises:
        ValueError: there is no such preset, one is named twice, settings cannot be used, a method would not
            be what it is called, or two would train the same.
    """
    if saved.get("objective") in BASELINES:
        given = {"objective": DistillConfig.model_fields["objective"].default, **given}
    configs: dict[str, DistillConfig] = {}
    for name in methods:
        if name in configs:
            raise ValueError(f"The method {name} is named twice. Once will do: both would train the same.")
        of = preset(name)
        stands = {key: of.changes[key] for key in of.defining}
        config = make_config(override(combine(saved, name, given), stands))
        if name == "lora" and not config.lora_rank:
            raise ValueError("The method lora needs a lora_rank above 0: without an adapter it is full.")
        for other, theirs in configs.items():
            if theirs == config:
                raise ValueError(
                    f"{other} and {name} would train the same here. Leave one of them out, or the settings "
                    "that make them equal."
                )
        configs[name] = config
    return configs


def differences(config: DistillConfig) -> dict[str, Any]:
    """Return the fewest settings that make this config: those that defaults would not settle so."""
    values = config.model_dump()
    defaults = DistillConfig().model_dump()
    kept = {name: value for name, value in values.items() if value is not None and value != defaults[name]}
    # A default may follow from another setting; and what the plain defaults hold may not follow from these.
    if make_or_none(kept) != config:
        kept = {name: value for name, value in values.items() if value is not None}
    for name in list(kept):
        fewer = {other: value for other, value in kept.items() if other != name}
        if make_or_none(fewer) == config:
            kept = fewer
    return kept


def make_or_none(values: Mapping[str, Any]) -> DistillConfig | None:
    """Build a config; None if these settings do not fit together."""
    try:
        return make_config(values)
    except ValueError:
        return None


def as_command(config: DistillConfig) -> str:
    """Return the command line that trains with this config.

    Raises:
        ValueError: it has lessons, which only a file can hold.
    """
    if config.lessons:
        raise ValueError("Lessons have no flags: save the settings to a file and give it with --config.")
    words = ["opd", "train"]
    for name, value in differences(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", written(value)]
    return shlex.join(words)


def as_python(config: DistillConfig) -> str:
    """Return the Python program that trains with this config."""
    settings = "".join(f"    {name}={value!r},\n" for name, value in differences(config).items())
    call = f"opd.DistillConfig(\n{settings})" if settings else "opd.DistillConfig()"
    loop = "for report in opd.distill(config):\n    print(report.step, report.metrics)\n"
    return f"import opd\n\nconfig = {call}\n{loop}"
