"""Models that are fetched by their name: who has them, and which of them are not here yet.

There are two sources, the hub and the package index, and each is a module. Neither is asked for anything but
a model that somebody named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from opd.models import hub, packages
from opd.models.downloads import Progress


class Source(Protocol):
    """Where models come from. ``name`` is a model's; without its weights, config and tokenizer will do."""

    def has(self, name: str) -> bool:
        """Whether the name is one of this source's; it is not asked, and may have no such model after all."""

    def is_here(self, name: str) -> bool:
        """Whether the model is wholly on this machine; nobody is asked."""

    def request(self, name: str) -> str:
        """Say what would be asked for: from whom it comes, and what it is and how big if that is known."""

    def check_reachable(self, name: str, *, weights: bool = True) -> None:
        """Refuse a model that is not here where it may not be asked for; nobody is asked.

        Raises:
            ValueError: it is out of reach, or nothing can have this name.
        """

    def fetch(self, name: str, *, weights: bool = True) -> Iterator[Progress]:
        """Download the model to where it is found, and say how far it is.

        Closing the generator ends the download; what has arrived is kept, and the next one goes on from it.

        Raises:
            ValueError: it cannot be downloaded; the message says why.
        """

    def folder(self, name: str, *, weights: bool = True) -> str:
        """Return the model's folder, after what is not here has been downloaded.

        How far the download is stands on standard error.

        Raises:
            ValueError: it is not wholly here and cannot be downloaded; the message says why.
        """


def source_of(name: str) -> Source | None:
    """Return who has a model of this name; None if it is no name of one that is fetched."""
    sources: tuple[Source, ...] = (packages, hub)
    return next((source for source in sources if source.has(name)), None)


def absent(names: Iterable[str]) -> list[str]:
    """Return those of some models' names that are fetched and not (wholly) here; nobody is asked."""
    named = ((name, source_of(name)) for name in dict.fromkeys(names))
    return [name for name, source in named if source and not source.is_here(name)]
