"""One run in several processes: each has a device of its own and a share of the work, all know the whole.

``torchrun --nproc-per-node 2 -m opd train`` starts the program twice. The processes make the same calls in
the same order and exchange what they find: trajectories and grades are small. So each of them sees the step
as one process would, and what is decided over it (rewards in their groups, the top share of tokens, metrics)
needs no second way. In one process nothing in this module does anything.

The loss is divided by the tokens of the whole step, so gradients are *summed* over processes, once, after the
last micro-batch: the mathematics of ``DistributedDataParallel``, whose hooks average, and want as many
backward passes of every process. Where a model does not fit beside its gradients and optimizer state,
``fully_shard`` (FSDP2) divides all three; then the weights are gathered once for all that samples or scores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from opd.models.network import LanguageModel

Item, Result = TypeVar("Item"), TypeVar("Result")

PATIENCE = timedelta(hours=1)
"""How long a process waits for another in the middle of a step. One that dies is noticed at once."""

IDLE = timedelta(days=365)
"""How long a process waits for the first one to say what is next: it may be paused, or wait for a device."""

FAREWELL = timedelta(seconds=5)
"""How long a process that failed stays, so that the others can say why before torchrun ends them."""


class FailedElsewhere(RuntimeError):
    """Another process of the run failed; the message is what it said."""


@dataclass(frozen=True)
class _Team:
    store: dist.Store
    orders: dist.ProcessGroup


_team: _Team | None = None


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; the first one, 0, writes to disk and screen."""
    return dist.get_rank() if dist.is_initialized() else 0


def neighbours() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def gpus(device: torch.device) -> range:
    """Return the numbers of the GPUs that this machine's processes use where each says ``device``.

    Raises:
        ValueError: a GPU cannot be had by each of them.
    """
    if not dist.is_initialized() or device.index is not None:
        return range(device.index or 0, (device.index or 0) + 1)
    if neighbours() > torch.cuda.device_count():
        raise ValueError(
            f"torchrun started {neighbours()} processes on a machine with {torch.cuda.device_count()} GPUs. "
            f"Start --nproc-per-node {torch.cuda.device_count()}, or set the device to cpu."
        )
    return range(neighbours())


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started; each gets the GPU of its number as its default device.

    Whoever fails inside sends the others the reason; see :func:`cause`.
    """
    global _team
    if not dist.is_torchelastic_launched():
        yield
        return
    store, number, total = next(dist.rendezvous("env://", timeout=PATIENCE))
    local, backend = int(os.environ["LOCAL_RANK"]), "gloo"
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=number, world_size=total, timeout=PATIENCE)
    _team = _Team(store, dist.new_group(backend="gloo", timeout=IDLE))
    try:
        yield
    except Exception as error:
        reason = cause(error)
        # Who is first says why; then the connections close, and whoever waits for this process looks for it.
        store.compare_set("opd/failed", "", f"{number} {error or type(error).__name__}")
        store.set(f"opd/left/{number}", "")
        dist.destroy_process_group()
        with contextlib.suppress(dist.DistError):
            store.wait([f"opd/left/{other}" for other in range(total)], FAREWELL)
        if reason is error:
            raise
        raise reason from error
    finally:
        _team = None
        if dist.is_initialized():
            dist.destroy_process_group()


def cause(error: Exception) -> Exception:
    """Return why this process cannot go on: its own error, or what the process said that failed first."""
    if _team is None or isinstance(error, FailedElsewhere) or not _team.store.check(["opd/failed"]):
        return error
    number, sentence = _team.store.get("opd/failed").decode().split(" ", 1)
    return (
        error if int(number) == rank() else FailedElsewhere(f"Process {number} of the run failed: {sentence}")
    )


def send_order(order: object) -> None:
    """Say, as the first process, what all others are to do; they wait in :func:`next_order`."""
    if _team is not None:
        dist.broadcast_object_list([order], group=_team.orders)


def next_order() -> Any:  # noqa: ANN401
    """Wait, as any but the first process, for what it has to say."""
    heard = [None]
    dist.broadcast_object_list(heard, group=_team.orders)
    return heard[0]


def exchange(value: Item) -> list[Item]:
    """Give every process what each of them has, by number; nobody leaves before all have come."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def share(sizes: Sequence[int], number: int | None = None) -> list[int]:
    """Return which of some items fall to a process, in order; dealt by size, so that all get about as much.

    Args:
        sizes: of the items.
        number: the process; None = this one.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    return sorted(order[rank() if number is None else number :: world()])


def spread(
    work: Callable[[list[Item]], Sequence[Result]],
    items: Sequence[Item],
    size: Callable[[Item], int] = lambda item: 1,
) -> list[Result]:
    """Let each process do its share of some items; all get all results, in the order of the items.

    Args:
        work: returns one result an item.
        items: the same in every process.
        size: how much work an item is.
    """
    mine = share([size(item) for item in items])
    done = zip(mine, work([items[i] for i in mine]), strict=True)
    found = dict(pair for part in exchange(list(done)) for pair in part)
    return [found[i] for i in range(len(items))]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all processes, in each of them. Sharded ones are summed already."""
    if world() == 1:
        return
    sums = []
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            continue
        if parameter.grad is None:  # nothing fell to this process
            parameter.grad = torch.zeros_like(parameter)
        sums.append(dist.all_reduce(parameter.grad, async_op=True))
    for one in sums:
        one.wait()


def shard(student: LanguageModel) -> None:
    """Divide a model's weights over all processes, in place; gradients and optimizer state follow.

    Every process must then run the model as often as all others, except while it is :func:`gathered`.
    """
    if world() == 1:
        return
    model = student.causal_lm
    _ = student.head, student.packs, student.takes_additive_mask  # looked at while the weights are whole
    mesh = init_device_mesh(student.device.type, (world(),))
    for module in [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    # We run the body without the model around it, and then the head many times: it is the body's forward that
    # gathers the weights of both, which stay until the backward pass has ended.
    body = model.base_model
    model.body_forward = body.forward
    register_fsdp_forward_method(model, "body_forward")
    body.forward = model.body_forward


@contextlib.contextmanager
def gathered(student: LanguageModel) -> Iterator[None]:
    """Hold a sharded model's weights whole inside: it can then sample and score without the other processes.

    All processes enter together. A model that is not sharded is whole anyway.
    """
    parts = _parts(student.causal_lm)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not student.causal_lm, recurse=False)
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in one piece, in every process; another one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_first(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in one piece, in the first process's main memory; in others it is empty."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if rank() == 0 else full.new_empty(0)


def cut_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor as ``parameter`` lies: on its device, and cut where that is sharded."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _parts(model: torch.nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
