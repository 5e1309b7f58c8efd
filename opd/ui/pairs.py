"""Loaded models, shared by everybody who looks at the app, and kept out of the way of training."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from opd.runs.queue import holders
from opd.ui.errors import inform

if TYPE_CHECKING:
    from opd.models.network import LanguageModel
    from opd.models.pair import Pair


def loaded_pair(student: str, teacher: str, cross_tokenizer: bool = False) -> Pair:
    """Return the pair; a model that another pair has loaded already is used again.

    With ``cross_tokenizer`` the two may have different vocabularies; see :class:`opd.models.pair.Pair`.

    While a run holds the GPU, the app's own models work on the CPU, and the page says so.

    Raises:
        ValueError: a model cannot be loaded, or the two do not share a vocabulary.
    """
    from opd.models.pair import Pair

    device, run = _own_device()
    if run:
        make_room()
        inform(f"The run {run} has the GPU; until it ends the app's own models work on the CPU.")
    models = _loaded_model(student, device), _loaded_model(teacher, device)
    return Pair(*models, cross_tokenizer=cross_tokenizer)


def make_room() -> None:
    """Take the app's own models off the GPU, for a run that is about to have it."""
    import torch

    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        _loaded_model.cache_clear()
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


@lru_cache(maxsize=3)  # a student before and after training, and their teacher
def _loaded_model(name: str, device: str) -> LanguageModel:
    from opd.models.load import load_model

    return load_model(name, device=device)
