"""What several commands take: a pair of models, saved reviews, and the settings of a run."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.config import GROUPS, MODELS, NOT_OFFERED, DistillConfig, grouped_settings, make_config, read_config
from opd.objectives import OBJECTIVES
from opd.presets import combine

if TYPE_CHECKING:
    from opd.grading.saved_reviews import ReviewSet
    from opd.models.pair import Pair

FILE_ONLY = ("lessons",)
"""Settings that have no flag: a table of tables."""


def add_pair(parser: argparse.ArgumentParser, *, usual: str | None = None) -> None:
    """The flags that name a pair; ``usual`` says what they stand for if it is not the embedded one."""
    for role in ("student", "teacher"):
        demo = f"demo-{role}"
        parser.add_argument(
            f"--{role}",
            default=None if usual else demo,
            help=f"{MODELS} or {demo} (default {usual or demo})",
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--teacher-device", help="device of the teacher, if another")
    parser.add_argument("--teacher-dtype", help="dtype of the teacher, if another")
    add_some_settings(parser, ("template_options", "teacher_template_options", "control_tokens"))


def load_pair(options: argparse.Namespace, **more: Any) -> Pair:  # noqa: ANN401
    """Load the pair that the flags of :func:`add_pair` name; ``more`` goes to :func:`opd.load_pair`."""
    import opd

    return opd.load_pair(
        options.student,
        options.teacher,
        device=options.device,
        dtype=options.dtype,
        teacher_device=options.teacher_device,
        teacher_dtype=options.teacher_dtype,
        template_options=options.template_options,
        teacher_template_options=options.teacher_template_options,
        control_tokens=bool(options.control_tokens),
        **more,
    )


def open_reviews(name: str) -> ReviewSet:
    """Open saved reviews, by their file or their id."""
    from opd.grading.saved_reviews import load_reviews, open_review

    return load_reviews(name) if Path(name).is_file() else open_review(name)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags of a run's settings, in their groups, behind a command's own, and ``--config``."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings from a .json or .toml file")
    refuse_what_is_not_offered(parser)
    # That of every setting would fill a page, at every mistyped flag too.
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " [SETTINGS]"
    for title, names in grouped_settings().items():
        add_some_settings(parser.add_argument_group(title, GROUPS[title]), names)


class NotOffered(argparse.Action):
    """Refuse a flag that other programs have, and say why."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:  # noqa: ANN401
        """End the program with the reason."""
        parser.error(f"{self.option_strings[0]} is not offered: {NOT_OFFERED[self.dest]}.")


def refuse_what_is_not_offered(parser: argparse.ArgumentParser) -> None:
    """Answer flags of sampling that other programs have with the reason why they are no flags here."""
    for name in NOT_OFFERED:
        parser.add_argument(
            "--" + name.replace("_", "-"),
            action=NotOffered,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def add_some_settings(parser: argparse._ActionsContainer, names: Iterable[str]) -> None:
    """One flag each of some settings, documented by the config's field."""
    for name in names:
        if name in FILE_ONLY:
            continue
        field = DistillConfig.model_fields[name]
        flag = "--" + name.replace("_", "-")
        text = field.description.replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        owners = {o: known.options[name] for o, known in OBJECTIVES.items() if name in known.options}
        default = next(iter(owners.values()), field.default)  # where several objectives have it, it is one
        said = [f"of {', '.join(owners)}"] if owners else []
        said += [f"default {default}"] if default is not None else []
        if said:
            text += f" ({'; '.join(said)})"
        kinds = _members(field.annotation)
        named = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
        choices = [value for kind in named for value in typing.get_args(kind)] or None
        kind = next((k for k in (int, float) if k in kinds), str)
        parser.add_argument(flag, type=kind, choices=choices, default=None, help=text)


def _members(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """The alternatives of an annotation: (int, None) of ``int | None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as flags."""
    values = {name: getattr(options, name, None) for name in DistillConfig.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def saved_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the file that was named, none without one.

    Raises:
        ValueError: it cannot be read as settings.
    """
    return read_config(options.config) if options.config else {}


def config_of(options: argparse.Namespace, preset: str | None = None) -> DistillConfig:
    """Return the config that file, preset and flags make; see :func:`opd.presets.combine`.

    Raises:
        ValueError: the settings cannot be used, or there is no such preset.
    """
    return make_config(combine(saved_settings(options), preset, given_settings(options)))
