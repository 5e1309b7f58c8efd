"""A pretended second device, for machines that have none: what is on it may not meet what is not.

PyTorch keeps a place for devices of others, PrivateUse1. Here it is called ``pretend``: its tensors say that
they are on ``pretend:0``, their data lie in main memory, and the CPU computes with them. So all results are
the CPU's, and an operation that mixes both devices raises :class:`Mixed`, as it would with a GPU.

As on a GPU, numbers and indices may come from the CPU, copies go both ways, and autocast lowers what is
multiplied out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE = f"{NAME}:0"

COPIES = ("aten::copy_", "aten::to", "aten::_to_copy", "aten::_copy_from", "aten::type_as")
INDEXED = (
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
)

MADE = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step")
"""Operations that make a tensor here of nothing; others are made of these."""

LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
"""Operations to which autocast gives its own dtype, of those in CUDA's list that models use."""


class Mixed(RuntimeError):
    """An operation on tensors of two devices."""


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module, ``torch.pretend``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return what autocast may compute in."""
        return [torch.bfloat16, torch.float16]


class Pretended(torch.Tensor):
    """A tensor on the pretended device.

    Attributes:
        here: the same on the CPU, which holds the data.
    """

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Pretended:
        """Wrap a tensor of the CPU."""
        with torch.inference_mode(False):  # a view of a weight is none of inference, wherever it is taken
            made = torch.Tensor._make_wrapper_subclass(
                cls, here.size(), strides=here.stride(), dtype=here.dtype, device=torch.device(DEVICE)
            )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU what is asked of this device."""
        return _computed(func, args, kwargs or {})

    def __repr__(self) -> str:
        """Show where it is."""
        return f"{self.here!r} on {DEVICE}"

    def tolist(self) -> Any:
        """Return numbers, which are copied as from any device; PyTorch has none of a subclass."""
        return self.here.tolist()


def _computed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Do an operation that has a tensor of this device among its arguments."""
    name, flat = func._schema.name, tree_flatten((args, kwargs))[0]
    _refuse_mixture(name, flat, args)
    ours = {id(x.here): x for x in flat if isinstance(x, Pretended)}
    devices = [x for x in flat if isinstance(x, torch.device)]
    if func is torch.ops.aten.to.other:
        devices = [args[1].device]
    leaves = devices[-1].type != NAME if devices else name == "aten::_local_scalar_dense"
    out = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if any(x.shape != x.here.shape for x in ours.values()):
        raise NotImplementedError(f"{name} resizes a tensor, of which {NAME} would keep the old shape")

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if leaves:
            return x.clone() if id(x) in ours else x
        return ours.get(id(x)) if id(x) in ours else Pretended(x)

    return args[0] if name == "aten::copy_" else tree_map(placed, out)


def _here(x: Any) -> Any:
    if isinstance(x, torch.device) and x.type == NAME:
        return torch.device("cpu")
    return x.here if isinstance(x, Pretended) else x


def _refuse_mixture(name: str, flat: Sequence[Any], args: Sequence[Any]) -> None:
    """Raise where an operation reads tensors of both devices.

    A number that is a tensor of no dimensions may come from the CPU, and so may indices.
    """
    if name in COPIES:
        return
    if name in INDEXED and isinstance(args[0], Pretended):
        flat = [args[0], *args[2:3]]
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    foreign = [x for x in tensors if not isinstance(x, Pretended) and x.dim()]
    if foreign and len(foreign) < len(tensors):
        shapes = [(tuple(x.shape), str(x.device)) for x in tensors]
        raise Mixed(f"{name} reads tensors of two devices: {shapes}")


_ATEN = torch.library.Library("aten", "IMPL")
_REST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")


@cache
def register() -> torch.device:
    """Make the device known to PyTorch, once, and return it. It stays for the life of the process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    for name in MADE:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        _ATEN.impl(name, partial(_made, op), "PrivateUse1")
    _ATEN.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in LOWERED:
        _ATEN.impl(name, partial(_lowered, getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
    _REST.fallback(torch.library.fallthrough_kernel)
    return torch.device(DEVICE)


@contextlib.contextmanager
def moved_in_place() -> Iterator[None]:
    """Let a module that moves keep its parameters, as one that moves to a GPU does: some are tied."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _made(op: Callable[..., torch.Tensor], *args: Any, device: Any = None, **kwargs: Any) -> Pretended:
    return Pretended(op(*args, device="cpu", **kwargs))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _here(target).copy_(_here(source))
    return target


def _lowered(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do an operation in the dtype of autocast, as a GPU would."""
    dtype = torch.get_autocast_dtype(NAME)

    def low(x: Any) -> Any:
        floats = isinstance(x, torch.Tensor) and x.is_floating_point() and x.device.type == NAME
        return x.to(dtype) if floats else x

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return op(*tree_map(low, args), **tree_map(low, kwargs))
