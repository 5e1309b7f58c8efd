"""Where prompts come from and how an answer is verified: one module a task.

A task hands out :class:`Example` s and says whether a completion is right. Training prompts are a pure
function of (seed, step), so a resumed run sees the prompts it would have seen; held-out prompts are a fixed
list that no training batch contains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from opd.config import SOURCES
from opd.files import assets_dir
from opd.reasoning import OPENS
from opd.trajectory import Prompt, Trajectory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from opd.models.text import ModelText

Split = Literal["tuning", "test", "all"]
VerifierName = Literal["exact", "numeric", "choice", "regex", "math"]

FILE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""How the files end that hold rows; each may be packed and end with .gz."""


@dataclass(frozen=True)
class Example:
    """One problem: the prompt, the right answer if one is known, its family, and where it was read.

    ``columns`` holds the texts of its row, which a teacher's hint may name.
    """

    prompt: Prompt
    answer: str | None = None
    family: str = ""
    place: str = field(default="", compare=False)
    columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class TaskOptions:
    """How rows of a file, a hub data set or the task everyday are read; the task demo has no options.

    Attributes:
        prompt_column: holds the prompts: text, or a list of chat messages (in a CSV file, as JSON). None: the
            rows' shape is recognised, see :mod:`opd.tasks.shapes`.
        answer_column: holds the right answers; None = the column "answer", if there is one, or what is
            recognised. With answers, every row must have one.
        verifier: decides whether a completion gives the answer; see :mod:`opd.tasks.verifiers`. None: the one
            that reads the form of the answers, else "exact".
        on_malformed: what rows that cannot be used do: they are "skip"ped and counted, or they "fail" the
            task. Either way their lines and reasons are named.
        heldout_share: share of the prompts that no training batch contains; a third of them for tuning, two
            thirds for the test. A hash of the prompt decides, so adding rows moves none.
        task_split: which split of a hub data set is read.
    """

    prompt_column: str | None = None
    answer_column: str | None = None
    verifier: VerifierName | None = None
    on_malformed: Literal["skip", "fail"] = "skip"
    heldout_share: float = 0.2
    task_split: str = "train"

    @classmethod
    def of(cls, settings: Any) -> Self:  # noqa: ANN401
        """Take the options from anything that has them as attributes, such as a config."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})


class Task(Protocol):
    """A source of prompts and the verifier that goes with it.

    Who subclasses it need not write its last four methods, nor name its verifier.
    """

    name: str
    verifier: str = "(the task's own)"

    def batch(self, n: int, *, step: int, seed: int) -> list[Example]:
        """Return the ``n`` training examples of one step; the same arguments give the same examples."""
        ...

    def heldout(self, n: int, *, split: Split = "test") -> list[Example]:
        """Return the first ``n`` held-out examples of a split; a larger ``n`` extends the list.

        The split "all" has those that train too; of problems without end there is none.
        """
        ...

    def verify(self, example: Example, completion: str, *, cut: bool = False) -> bool | None:
        """Say whether ``completion`` (text without special tokens) answers ``example`` rightly.

        ``cut``: the length limit cut it off, so that what it was about to say is not known. None: nobody can
        say, because the example has no answer. Of one task, either all examples have an answer or none has.
        """
        ...

    def columns(self) -> list[str]:
        """Return what a teacher's hint may name: texts that come with every example."""
        (example,) = self.batch(1, step=1, seed=0)
        return [] if example.answer is None else ["answer"]

    def fingerprint(self) -> str:
        """Return what changes with the examples or their order; empty where they never do."""
        return ""

    def sizes(self) -> dict[str, int]:
        """Return how many prompts "train", are for "tuning" and the "test"; empty where there is no end."""
        return {}

    def summary(self) -> str:
        """Say in a sentence or two what the task holds, malformed rows included."""
        return f"{self.name}."


THINKING_TAIL = 8
"""Tokens at the end of a prompt among which a chat template opens the reasoning."""


def must_verify(task: Task) -> None:
    """Refuse a task of one's own whose ``verify`` cannot be called as :meth:`Task.verify` is.

    Raises:
        ValueError: it cannot.
    """
    try:
        signature(task.verify).bind(None, "", cut=False)
    except (AttributeError, TypeError):
        raise ValueError(
            f"The task {getattr(task, 'name', task)} needs a method verify(example, completion, *, "
            "cut=False): cut says that the length limit cut the completion off. See opd.tasks.Task."
        ) from None


def verify(task: Task, example: Example, model: ModelText, trajectory: Trajectory) -> bool | None:
    """Say whether a trajectory answers an example rightly; None where nobody can say.

    Reasoning that the prompt opens, as some chat templates do, is reasoning; see :meth:`Task.verify`.

    Args:
        task: the example's.
        example: the problem.
        model: whose ids the trajectory has.
        trajectory: the answer.

    Raises:
        ValueError: see :func:`must_verify`.
    """
    must_verify(task)
    text = text_to_verify(model, trajectory)
    return task.verify(example, text, cut=trajectory.finish_reason == "length")


def text_to_verify(model: ModelText, trajectory: Trajectory) -> str:
    """Return a completion as verifiers read it, begun by the reasoning that its prompt opens."""
    begun = OPENS if opens_reasoning(model, trajectory.prompt_ids) else ""
    return begun + model.text(trajectory.completion_ids)


def opens_reasoning(model: ModelText, prompt_ids: NDArray[np.int64]) -> bool:
    """Whether a prompt ends with an opened <think>, as some chat templates let it."""
    return model.text(prompt_ids[-THINKING_TAIL:]).rstrip().endswith(OPENS)


def load_task(spec: str, options: TaskOptions | None = None) -> Task:
    """Return the task behind a name.

    Args:
        spec: "demo"; "everyday"; a file of one of :data:`FILE_TYPES`; or a data set of the hub,
            ``owner/name`` or ``owner/name:config``.
        options: how a file or data set is read; the defaults where None.

    Raises:
        ValueError: there is no such task, it has no usable row, or the options do not fit; one sentence
            says which.
    """
    options = options or TaskOptions()
    if spec == "demo":
        if options != TaskOptions():
            given = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
            raise ValueError(f"The task demo has a verifier of its own and does not take {', '.join(given)}.")
        from opd.tasks.demo import DemoTask

        return DemoTask()

    from opd.tasks import files, formats

    if spec == "everyday":
        return files.RowsTask(spec, formats.read_table(assets_dir() / "tasks/everyday.jsonl"), options)
    path = Path(spec).expanduser()
    if file_type(path) in FILE_TYPES or path.is_file():
        return files.RowsTask(str(path), formats.read_table(path), options)
    if is_hub_data_set(spec):
        return files.read_hub(spec, options)
    raise ValueError(f"There is no task called {spec!r}. Known tasks: {SOURCES}.")


def file_type(path: Path) -> str:
    """Return how a file's name ends, such as ".jsonl", without the .gz of one that is packed."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_hub_data_set(spec: str) -> bool:
    """Whether a task's name can only be that of a data set on the hub."""
    if spec == "demo" or file_type(Path(spec)) in FILE_TYPES:
        return False
    return spec.count("/") == 1 and not (spec.startswith((".", "~", os.sep)) or Path(spec).exists())
