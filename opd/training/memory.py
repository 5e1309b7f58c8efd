"""The memory of a run: what it needs by the shapes of its models, what is free, and the most that it took."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from opd.config import DistillConfig
from opd.divergence import chunk_rows
from opd.engines.transformers import TransformersSampler
from opd.files import size_in_words
from opd.models.load import resolve_device, resolve_dtype
from opd.models.parallel import neighbours

FORGET_PEAK = "5"
"""What proc(5) has a process write to its ``clear_refs`` to set its peak back to what it holds now."""


@dataclass(frozen=True)
class Memory:
    """What a run needs on its devices, in bytes; an estimate.

    Attributes:
        student: the student's weights.
        teacher: the teacher's weights.
        gradients: of the weights that are trained.
        moments: AdamW's two moments of them.
        sampling: key-value cache and next-token distributions while completions grow.
        update: activations of a micro-batch and one chunk of logits.
    """

    student: int
    teacher: int
    gradients: int
    moments: int
    sampling: int
    update: int

    @property
    def total(self) -> int:
        """The peak, with everything on one device: sampling and update take turns."""
        return self.student + self.teacher + self.gradients + self.moments + max(self.sampling, self.update)

    def __str__(self) -> str:
        """The parts in words."""
        return (
            f"{size_in_words(self.student)} student, {size_in_words(self.teacher)} teacher, "
            f"{size_in_words(self.gradients + self.moments)} gradients and AdamW, "
            f"{size_in_words(self.sampling)} to sample or {size_in_words(self.update)} to update"
        )


def estimate_memory(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    config: DistillConfig,
    *,
    prompt_tokens: int = 256,
    processes: int = 1,
) -> Memory:
    """Estimate the memory of each process of a run from the shapes of its models.

    Args:
        student: the student's transformers model.
        teacher: the teacher's.
        config: the run.
        prompt_tokens: length of a prompt.
        processes: how many there are.
    """
    shape = student.config.get_text_config()
    compute = resolve_dtype(config.dtype, resolve_device(config.device)).itemsize
    teacher_device = resolve_device(config.teacher_device or config.device)
    teacher_bytes = resolve_dtype(config.teacher_dtype or config.dtype, teacher_device).itemsize
    parameters = sum(p.numel() for p in student.parameters())
    trained = parameters
    if config.lora_rank:  # two thin matrices beside each linear layer but the head
        head = student.get_output_embeddings()
        linear = (m for m in student.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        trained = config.lora_rank * sum(m.in_features + m.out_features for m in linear)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    heads = shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or hidden // heads
    cached = 2 * (getattr(shape, "num_key_value_heads", None) or heads) * width
    tokens = prompt_tokens + config.max_tokens
    completions = -(-config.prompts_per_step * config.samples_per_prompt // processes)
    rows = min(TransformersSampler.in_flight, completions)
    micro = min(config.micro_batch_tokens, completions * tokens)
    # What autograd keeps of a layer and token: norms, queries to outputs, the gated MLP.
    layer = (
        8 * hidden
        + 3 * heads * width
        + 2 * cached
        + 4 * (getattr(shape, "intermediate_size", None) or 4 * hidden)
    )
    kept = layers * hidden + layer if config.gradient_checkpointing else layers * layer
    whole = parameters * (compute if config.lora_rank else 4) + (trained * 4 if config.lora_rank else 0)
    parts = processes if config.shard else 1
    # Sharded weights are whole while they sample; an update gathers the matrices at both ends and two layers.
    ends = 2 * shape.vocab_size * hidden * whole // parameters
    return Memory(
        student=whole // parts,
        teacher=0 if config.teacher_url else sum(p.numel() for p in teacher.parameters()) * teacher_bytes,
        gradients=4 * trained // parts,
        moments=8 * trained // parts,
        # fp32 logits and log-probs, float64 probabilities and their sums
        sampling=rows * (tokens * layers * cached * compute + shape.vocab_size * (4 + 4 + 8 + 8))
        + whole
        - whole // parts,
        # a chunk of both models' logits, log-probs and the gradient: eight fp32 tensors
        update=micro * kept * compute
        + 8 * 4 * min(chunk_rows(shape.vocab_size), micro) * shape.vocab_size
        + (min(whole, ends + 2 * whole // layers) if parts > 1 else 0),
    )


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes a device has left for this process; None where that is not known.

    Main memory is shared by all processes of the run on this machine.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container may have less; "max" is no number
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free // neighbours()


def forget_peak() -> None:
    """Begin to measure anew: what this process held before is none of the run's.

    Where the system does not allow it (macOS, some containers) the peak stays that of the whole process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(FORGET_PEAK, encoding="ascii")
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes since :func:`forget_peak`: of a GPU, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage: there Linux hands a process the peak of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):  # no /proc, or one without this line
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
