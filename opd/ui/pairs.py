"""Loaded models, shared by everybody who looks at the app."""

from __future__ import annotations

from functools import lru_cache

from opd.models import LanguageModel, Pair, load_model


def loaded_pair(student: str, teacher: str) -> Pair:
    """Return the pair; a model that another pair has loaded already is used again.

    Raises:
        ValueError: a model cannot be loaded, or the two do not share a vocabulary.
    """
    return Pair(_loaded_model(student), _loaded_model(teacher))


@lru_cache(maxsize=3)  # a student before and after training, and their teacher
def _loaded_model(name: str) -> LanguageModel:
    return load_model(name)
