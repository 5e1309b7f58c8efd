"""Checkpoints: folders that appear by rename, whole or not at all.

``checkpoints/step-000050/`` holds what transformers (or PEFT) loads as a model and, in files called
``training…``, all that training goes on from: no pickle, and trained weights that the model's own files hold
by their names alone. ``pinned`` lies in one that is kept for good.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.files import size_in_words, write_atomically

if TYPE_CHECKING:
    from opd.models.network import LanguageModel

PINNED = "pinned"

_NAME = re.compile(r"step-\d{1,15}")
_TENSORS = ("weights", "optimizer")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def holds_model(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the weights of a model or adapter beside the training state."""
    return bool(_model_weights(checkpoint))


def model_files(checkpoint: Path) -> dict[str, Path]:
    """Return the files of the model by name: weights or adapter, tokenizer; no training state."""
    files = (path for path in sorted(checkpoint.iterdir()) if path.is_file())
    return {p.name: p for p in files if not p.name.startswith("training") and p.name != PINNED}


def remove_unpinned(checkpoints: Iterable[Path]) -> None:
    """Remove checkpoints, except those that are kept for good."""
    for path in checkpoints:
        if not (path / PINNED).exists():
            shutil.rmtree(path)


def try_saving(folder: Path, student: LanguageModel) -> None:
    """Write all of a checkpoint but its tensors, and remove it: can what will be trained be saved?

    Raises:
        OSError: it cannot; the message says why and the way out.
    """
    trial = folder / ".trial"
    try:
        trial.mkdir(parents=True, exist_ok=True)
        student.try_saving(trial)
        free = shutil.disk_usage(trial).free
    except Exception as error:  # each library has its own way to refuse
        raise OSError(
            f"What is trained could not be saved in {folder}: {_reason(error)}. Mend that first, or set "
            "OPD_HOME to another folder."
        ) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    trained = (p for p in student.model.parameters() if p.requires_grad)
    needed = 3 * sum(p.numel() * p.element_size() for p in trained)  # weights and AdamW's two moments
    if needed > free:
        raise OSError(
            f"A checkpoint takes {size_in_words(needed)}, and {size_in_words(free)} are free in {folder}. "
            "Make room, or set OPD_HOME to another disk."
        )


def write_checkpoint(
    folder: Path, step: int, student: LanguageModel, state: Mapping[str, Any], *, sharded: bool
) -> str:
    """Write the student and the training state.

    Args:
        folder: of all checkpoints.
        step: after which it is written.
        student: what is being trained.
        state: of the training; its "weights" and "optimizer" are tensors by name.
        sharded: whether the student's weights are whole in the state alone.

    Returns:
        Why a library refused to write the model; the training state is there without it. Else empty.

    Raises:
        OSError: the disk is full, and nothing appears.
    """
    from safetensors.torch import save_file

    final = folder / f"step-{step:06d}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        refusal = _write_model(partial, student, state["weights"] if sharded else None)
        held = _held_by_model(partial, state["weights"])
        rest = {name: weight for name, weight in state["weights"].items() if name not in held}
        for group, tensors in zip(_TENSORS, (rest, state["optimizer"]), strict=True):
            tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(tensors, partial / f"training-{group}.safetensors")
        scalars = {k: v for k, v in state.items() if k not in _TENSORS}
        write_atomically(partial / "training.json", json.dumps({**scalars, "held_by_model": held}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise
        raise OSError(f"The checkpoint of step {step} could not be written: {error}") from error
    return refusal


def _write_model(folder: Path, student: LanguageModel, weights: Mapping[str, Any] | None) -> str:
    try:
        student.save(folder, weights)
    except OSError:
        raise
    except Exception as error:  # a library's refusal must not cost what was trained
        shutil.rmtree(folder)
        folder.mkdir()
        return _reason(error)
    return ""


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Return the training state that a checkpoint was written with.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = dict(json.loads((checkpoint / "training.json").read_text(encoding="utf-8")))
        for group in _TENSORS:
            state[group] = load_file(checkpoint / f"training-{group}.safetensors")
        with _model_tensors(checkpoint) as read:
            held = state.pop("held_by_model", {})
            state["weights"] |= {name: read[there]() for name, there in held.items()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"The checkpoint {checkpoint} is damaged ({error}). Delete it, and the run goes on from the one "
            "before it."
        ) from error
    return state


def _held_by_model(checkpoint: Path, weights: Mapping[str, Any]) -> dict[str, str]:
    """Return which trained weights the model of a checkpoint holds, bit for bit, by their names there.

    They need not be kept a second time. What its library saves in another shape or type is not among them.
    """
    import torch

    found = {}
    with _model_tensors(checkpoint) as read:
        for name, weight in weights.items():
            there = name if name in read else name.replace(".default.", ".")  # PEFT drops the adapter's name
            if there in read:
                saved = read[there]()
                if saved.dtype == weight.dtype and torch.equal(saved, weight.cpu()):
                    found[name] = there
    return found


@contextlib.contextmanager
def _model_tensors(checkpoint: Path) -> Iterator[dict[str, Callable[[], Any]]]:
    """Yield what reads each tensor of the model that a checkpoint holds, by the tensor's name there."""
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in _model_weights(checkpoint)]
        yield {name: functools.partial(file.get_tensor, name) for file in files for name in file.keys()}  # noqa: SIM118


def _model_weights(checkpoint: Path) -> list[Path]:
    return sorted(p for p in checkpoint.glob("*.safetensors") if not p.name.startswith("training-"))


def _reason(error: Exception) -> str:
    """What an error says, on one line and without its full stop."""
    return " ".join(str(error).split()).rstrip(".")
