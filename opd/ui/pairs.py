"""Loaded models, shared by everybody who looks at the app, and kept out of the way of training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from opd.config import as_template_options
from opd.runs.queue import holders
from opd.ui.errors import code, inform

if TYPE_CHECKING:
    from opd.models.network import LanguageModel
    from opd.models.pair import Pair


DIFFERING = {
    "refused": ("load no such pair", "", {}),
    "shared": (
        "grade the tokens that both share",
        ", over the tokens that both share if their vocabularies differ",
        {"shared_vocabulary": True},
    ),
    "spans": (
        "grade spans of text",
        ", by spans of text if their tokenizers differ",
        {"cross_tokenizer": True},
    ),
}
"""What may become of a pair whose vocabularies differ: to choose it, to say it, to ask for it."""


class PairNames(NamedTuple):
    """The pair that a session works with: its models by the names the user gave, and how they read prompts.

    The fields are those of :func:`opd.load_pair`, but for one of :data:`DIFFERING`; options of templates are
    JSON, or nothing.
    """

    student: str = "demo-student"
    teacher: str = "demo-teacher"
    differing: str = "refused"
    template_options: str = ""
    teacher_template_options: str = ""
    control_tokens: bool = False

    def __str__(self) -> str:
        """One line of Markdown."""
        _, how, _ = DIFFERING[self.differing]
        told = dict.fromkeys(filter(None, (self.template_options, self.teacher_template_options)))
        how += f"; templates are told {' and '.join(map(code, told))}" if told else ""
        how += "; control tokens in prompts are meant" if self.control_tokens else ""
        return f"{code(self.student)} writes, {code(self.teacher)} grades{how}."


def loaded_pair(names: PairNames) -> Pair:
    """Return the pair; a model that another pair has loaded already is used again.

    While a run holds the GPU, the app's own models work on the CPU, and the page says so.

    Raises:
        ValueError: a model cannot be loaded, the two do not share a vocabulary, or what their templates would
            be told is no JSON object.
    """
    from opd.models.pair import Pair

    device, run = _own_device()
    if run:
        make_room()
        inform(f"The run {run} has the GPU; until it ends the app's own models work on the CPU.")
    options = as_template_options(names.template_options or {})
    own = as_template_options(names.teacher_template_options or options)
    student, teacher = _loaded_model(names.student, device), _loaded_model(names.teacher, device)
    return Pair(
        student.prompted(options, control_tokens=names.control_tokens),
        teacher.prompted(own, control_tokens=names.control_tokens),
        **DIFFERING[names.differing][2],
    )


def warm_up() -> None:
    """Let the pair that everybody begins with write and grade a token: libraries are imported by that too.

    What it cannot do is said when somebody asks for it.
    """
    from opd.engines.sampling import sample
    from opd.grading.grading import grade
    from opd.models.pair import Pair

    with suppress(ValueError, OSError, RuntimeError):
        names, (device, _) = PairNames(), _own_device()
        pair = Pair(*(_loaded_model(name, device) for name in (names.student, names.teacher)))
        grade(pair, sample(pair, ["1"], max_tokens=1))


def make_room() -> None:
    """Take the app's own models off the GPU, for a run that is about to have it."""
    import torch

    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        kept_model.cache_clear()
        torch.cuda.empty_cache()


def refuse_if_taken(devices: Iterable[str]) -> None:
    """Say no to work on a GPU that a run holds.

    Raises:
        ValueError: it holds it.
    """
    held = holders()
    for device in devices:
        if device in held and device != "cpu":
            raise ValueError(f"The run {held[device]} holds {device}. Wait for its end, or set device cpu.")


def _own_device() -> tuple[str, str | None]:
    """Return where the app loads its models, and the run that keeps them off the GPU, if one does."""
    from opd.models.load import resolve_device

    device = resolve_device("auto")
    run = holders().get(f"cuda:{device.index or 0}") if device.type == "cuda" else None
    return ("cpu" if run else "auto"), run


_loading: defaultdict[tuple[str, str], Lock] = defaultdict(Lock)
"""Who asks for a model that is being loaded waits for it: it is loaded once."""


def _loaded_model(name: str, device: str) -> LanguageModel:
    with _loading[name, device]:
        return kept_model(name, device)


@lru_cache(maxsize=3)  # a student before and after training, and their teacher
def kept_model(name: str, device: str) -> LanguageModel:
    """Return a model, which stays at hand as long as it is among the last."""
    from opd.models.load import load_model

    return load_model(name, device=device)
