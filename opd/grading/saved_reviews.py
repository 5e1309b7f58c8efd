"""Saved reviews: one JSON file that opens anywhere, its content hash, the store of links, the CSV.

The file is described in docs/reviews.md. Nothing here needs torch: a saved review opens with no model.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from opd.files import assets_dir, home_dir, parse, write_atomically
from opd.reviews import Review
from opd.trajectory import VERDICTS
from opd.verdicts import blame, drop

FORMAT = "opd-review"
VERSION = 2
"""Counts changes that an older program would misread: 2 has one verdict more, the slip. A field that may be
absent needs no new version: older files open with it as None, and older programs pass over it."""

LARGEST_FILE = 512 * 2**20
"""Bytes of the largest file that is read; a review takes about a kilobyte a token."""

STORE_LIMIT = 4 * 2**30
"""Bytes that the store of one app may hold."""

HEADING = 80
"""Characters of a prompt that serve as a title."""

BEGINNING = 2**16
"""Characters of a stored file that a list reads of it."""

_BEFORE_NAME, _BEFORE_VALUE = re.compile(r"[\s,{\[]*"), re.compile(r"[\s:]*")
_ID = re.compile(r"[0-9a-f]{16}")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class ReviewGroup:
    """Reviews of one student under one heading; the n-th ones of several groups are compared.

    Attributes:
        label: the heading; empty where there is nothing to say.
        reviews: main lines and branches; ``Review.branch.parent`` is an index into them.
    """

    label: str
    reviews: Sequence[Review]


@dataclass(frozen=True, eq=False)
class ReviewSet:
    """What one file holds: groups of reviews that are looked at together. Iterating gives every review.

    Attributes:
        groups: at least one.
        title: a name for it.
        note: a sentence on what there is to see.
    """

    groups: Sequence[ReviewGroup]
    title: str | None = None
    note: str | None = None

    def __iter__(self) -> Iterator[Review]:
        """Go through the reviews of all groups, in order."""
        return (review for group in self.groups for review in group.reviews)

    def __len__(self) -> int:
        """Return the number of reviews."""
        return sum(len(group.reviews) for group in self.groups)

    @classmethod
    def of(cls, reviews: Iterable[Review] | ReviewSet) -> ReviewSet:
        """Return plain reviews as one group without a heading, and a set as it is."""
        return reviews if isinstance(reviews, ReviewSet) else cls([ReviewGroup("", list(reviews))])

    def with_review(self, group: int, number: int, review: Review) -> ReviewSet:
        """Return the set with one review in the place of another of its group, or behind the last."""
        reviews = [*self.groups[group].reviews]
        reviews[number : number + 1] = [review]
        groups = [replace(g, reviews=reviews) if i == group else g for i, g in enumerate(self.groups)]
        return replace(self, groups=groups)

    @cached_property
    def id(self) -> str:
        """The content hash: 16 hexadecimal digits that only this content has, on any machine.

        SHA-256 of the content as JSON with sorted keys and without spaces, absent fields left out: neither
        the layout of the file nor the version of the program counts. A file of an older version keeps its id.
        """
        return _hash(self._content())

    def to_json(self) -> str:
        """Return the file's text. Lone surrogates, which UTF-8 cannot carry, become U+FFFD.

        Raises:
            ValueError: a grade is not a number, as happens when a model overflows.
        """
        data = {"format": FORMAT, "version": VERSION, **self._content()}
        try:
            text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except ValueError as error:
            raise ValueError(
                "The review cannot be saved: a grade is not a number, so a model overflowed. Load the models "
                "in float32 or bfloat16."
            ) from error
        return _encodable(text)

    @classmethod
    def from_json(cls, text: str | bytes) -> ReviewSet:
        """Read the text of a file.

        Raises:
            ValueError: it is not a review file, of a newer version, or damaged; one sentence says which.
        """
        try:
            data = parse(text)
        except ValueError as error:
            raise ValueError(f"This is not a review file: {error}.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'This is not a review file: it does not say "format": "{FORMAT}".')
        version = data.get("version")
        if type(version) is not int or version > VERSION:
            raise ValueError(
                f"The review is of version {version}; this program reads up to {VERSION}. Update OPD Studio."
            )
        reviews = data.get("reviews")
        if not isinstance(reviews, list) or not reviews:
            raise ValueError("The file holds no review.")
        rest = iter([_review(number, review) for number, review in enumerate(reviews, start=1)])
        groups = [
            ReviewGroup(label, list(islice(rest, size)))
            for label, size in _group_sizes(data.get("groups"), len(reviews))
        ]
        for group in groups:
            _check_parents(group)
        found = cls(groups, _words(data, "title"), _words(data, "note"))
        if version < VERSION:  # judged anew as it was read: links to what was saved hold all the same
            content = {name: value for name, value in data.items() if name not in ("format", "version")}
            vars(found)["id"] = _hash(content)
        return found

    def _content(self) -> dict[str, Any]:
        groups = [{"label": group.label, "reviews": len(group.reviews)} for group in self.groups]
        plain = len(groups) == 1 and not groups[0]["label"]
        return {
            "title": self.title,
            "note": self.note,
            "groups": None if plain else groups,
            "reviews": [review.to_dict() for review in self],
        }


def save_reviews(path: str | Path, reviews: Iterable[Review] | ReviewSet) -> None:
    """Write reviews to one JSON file, whole or not at all.

    Raises:
        OSError: the file cannot be written (disk full, no permission); nothing is left behind.
        ValueError: see :meth:`ReviewSet.to_json`.
    """
    write_atomically(Path(path), ReviewSet.of(reviews).to_json())


def load_reviews(path: str | Path) -> ReviewSet:
    """Read the reviews of a file written by :func:`save_reviews`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a review file, of a newer version, too large, or damaged.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(
            f"{path.name} has more than {LARGEST_FILE // 2**20} MiB; so large a file is not opened."
        )
    try:
        return ReviewSet.from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def heading(reviews: ReviewSet) -> str:
    """Return the title of a set, or how its first prompt begins where it has none."""
    return reviews.title or _clipped(next(iter(reviews)).messages[-1]["content"])


def _clipped(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= HEADING else text[: HEADING - 1].rstrip() + "…"


# The store behind the links


def store(reviews: ReviewSet) -> str:
    """Keep a set in ``$OPD_HOME/reviews/`` and return its id, by which :func:`open_review` finds it again.

    Raises:
        OSError: it cannot be written.
        ValueError: the store is full; see also :meth:`ReviewSet.to_json`.
    """
    folder = store_dir()
    path = _path(reviews.id)
    if not path.exists():
        if sum(file.stat().st_size for file in folder.glob("*.json")) > STORE_LIMIT:
            raise ValueError(
                f"The store of reviews is full ({STORE_LIMIT // 2**30} GiB). Download this one as JSON, or "
                f"remove files from {folder}."
            )
        save_reviews(path, reviews)
    return reviews.id


def open_review(ident: str) -> ReviewSet:
    """Return a stored set, or one of the gallery, by its id.

    Raises:
        ValueError: there is none of that id, or the file was changed since it was stored.
    """
    if ident in gallery():
        return gallery()[ident]
    path = _path(ident)
    if not _ID.fullmatch(ident) or not path.is_file():
        raise ValueError(
            f"There is no review {ident!r} here. A link works where its review was saved; ask for the file "
            "and open that."
        )
    found = load_reviews(path)
    if found.id != ident:
        raise ValueError(f"The review {ident} was changed after it was saved, so the link is not followed.")
    return found


def stored_reviews() -> list[str]:
    """Return the ids of all stored sets, the newest first."""
    files = [path for path in store_dir().glob("*.json") if _ID.fullmatch(path.stem)]
    return [path.stem for path in sorted(files, key=lambda path: -path.stat().st_mtime)]


@dataclass(frozen=True)
class Stored:
    """What a list says of a stored set.

    Attributes:
        id: the set's id.
        heading: see :func:`heading`.
        saved: when, seconds since 1970.
    """

    id: str
    heading: str
    saved: float


def stored(most: int | None = None) -> list[Stored]:
    """Return what there is to list of the ``most`` newest stored sets, None: all. No file is read whole."""
    found = []
    for ident in stored_reviews()[:most]:
        with suppress(OSError):  # it was removed meanwhile
            found.append(Stored(ident, heading_in(path := _path(ident)), path.stat().st_mtime))
    return found


def _path(ident: str) -> Path:
    return store_dir() / f"{ident}.json"


@lru_cache(maxsize=4096)
def heading_in(path: Path) -> str:
    """Return the heading from a file's first bytes; the id where they do not say it."""
    with path.open(encoding="utf-8", errors="replace") as file:
        members = _first_members(file.read(BEGINNING))
    match members:
        case {"title": str(title)} if title:
            return _clipped(title)
        case {"messages": [*_, {"content": str(asked)}]}:
            return _clipped(asked)
    return path.stem


def _first_members(text: str) -> dict[str, Any]:
    """Return what stands first in a file: its own members and, in "reviews", those of its first review."""
    read, at, members = json.JSONDecoder().raw_decode, 0, {}
    with suppress(ValueError, RecursionError):  # the text ends somewhere, or is none
        while True:
            name, at = read(text, _BEFORE_NAME.match(text, at).end())
            at = _BEFORE_VALUE.match(text, at).end()
            if name != "reviews":
                members[name], at = read(text, at)
    return members


def store_dir() -> Path:
    """Return the folder of stored reviews."""
    return home_dir() / "reviews"


@cache
def gallery() -> dict[str, ReviewSet]:
    """Return the reviews that are shipped, by id, in the order they are offered; broken ones are left out."""
    found = {}
    for file in sorted((assets_dir() / "gallery").glob("*.json")):
        with suppress(OSError, ValueError):
            reviews = load_reviews(file)
            found[reviews.id] = reviews
    return found


# Tables
CSV_COLUMNS = (
    *("group", "review", "index", "token_id", "token", "penalty", "reverse_kl", "forward_kl", "jsd", "drop"),
    *(
        "blame",
        "agreement",
        "verdict",
        "fork",
        "student_logprob",
        "teacher_logprob",
        "student_entropy",
        "teacher_entropy",
    ),
    *("student_rank", "teacher_rank", "behaviour_logprob", "student_choice", "student_choice_logprob"),
    *("teacher_choice", "teacher_choice_logprob", "correct", "branch_of", "branch_at", "span", "writer"),
)
"""What stands in a row of :func:`to_csv`; docs/reviews.md says what each means."""


def to_csv(reviews: ReviewSet) -> str:
    """Return one row a token as CSV for ``pandas.read_csv``, which needs no option; absent values are empty.

    Tokens are JSON strings: spaces and line breaks stay visible, "NA" stays a text, and as each begins with
    a quotation mark no spreadsheet takes one for a formula. A heading that could be one gets an apostrophe.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for group in reviews.groups:
        label = _encodable(group.label)
        if label.startswith(_FORMULA):
            label = "'" + label
        for number, review in enumerate(group.reviews):
            table.writerows((label, number, *row) for row in _token_rows(review))
    return out.getvalue()


def _token_rows(review: Review) -> Iterator[tuple[Any, ...]]:
    grades, trajectory, branch = review.grades, review.trajectory, review.branch
    student, teacher = grades.student, grades.teacher
    lost, blamed = drop(teacher), blame(student, teacher)
    ranks = [scores.shown_ranks for scores in (student, teacher)]
    writers = _writers(review)

    def text(token: str) -> str:
        return json.dumps(_encodable(token), ensure_ascii=False)

    def figure(column: Any, index: int) -> str:  # noqa: ANN401
        return "" if column is None or np.isnan(column[index]) else f"{column[index]:.6g}"

    for i in range(len(trajectory)):
        yield (
            i,
            trajectory.completion_ids[i],
            text(review.pieces[i]),
            *(figure(getattr(grades, name), i) for name in ("penalty", "reverse_kl", "forward_kl", "jsd")),
            *(figure(column, i) for column in (lost, blamed, grades.agreement)),
            "" if grades.verdicts is None else VERDICTS[grades.verdicts[i]],
            bool(grades.forks[i]),
            *(figure(scores.logprobs, i) for scores in (student, teacher)),
            *(figure(scores.entropy, i) for scores in (student, teacher)),
            *("" if column is None else column[i] for column in ranks),
            figure(trajectory.behaviour_logprobs, i),
            text(review.vocabulary[int(student.top_ids[i, 0])]),
            figure(student.top_logprobs[:, 0], i),
            "" if (choice := review.teacher_choice(i)) is None else text(choice[0]),
            figure(teacher.top_logprobs[:, 0], i),
            "" if review.correct is None else review.correct,
            "" if branch is None else branch.parent,
            "" if branch is None else branch.at,
            "" if grades.spans is None or not grades.graded[i] else grades.spans[i],
            writers[i],
        )


def _writers(review: Review) -> list[str]:
    """Return who chose each token."""
    tokens, branch = len(review.trajectory), review.branch
    if branch is None:
        return ["text" if review.trajectory.behaviour_logprobs is None else "student"] * tokens
    rest = tokens - branch.at - branch.forced
    return ["parent"] * branch.at + ["forced"] * branch.forced + [branch.by] * rest


# Reading what anybody may have written


def _review(number: int, data: Any) -> Review:  # noqa: ANN401
    try:
        return Review.from_dict(data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Review {number} is damaged: {error}") from error


def _group_sizes(groups: Any, reviews: int) -> list[tuple[str, int]]:  # noqa: ANN401
    if groups is None:
        return [("", reviews)]
    try:
        sizes = [(str(group["label"]), int(group["reviews"])) for group in groups]
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError('Its "groups" are not all like {"label": "before", "reviews": 4}.') from error
    if min((size for _, size in sizes), default=0) < 1 or sum(size for _, size in sizes) != reviews:
        raise ValueError(f'Its "groups" do not add up to its {reviews} reviews.')
    return sizes


def _check_parents(group: ReviewGroup) -> None:
    for index, review in enumerate(group.reviews):
        if review.branch is not None and not 0 <= review.branch.parent < index:
            raise ValueError(
                f"The file is damaged: review {index} branches off review {review.branch.parent}, which does "
                "not come before it."
            )


def _words(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f'Its "{name}" is not text.')
    return value


def _hash(content: dict[str, Any]) -> str:
    """Return the content hash of a set; see :attr:`ReviewSet.id`."""
    text = json.dumps(_without_nulls(content), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_encodable(text).encode()).hexdigest()[:16]


def _without_nulls(data: Any) -> Any:  # noqa: ANN401
    """Leave absent fields out of JSON data; entries of lists stay."""
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [_without_nulls(one) for one in data]
    return data


def _encodable(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)
