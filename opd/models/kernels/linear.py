"""Linear layers by oneDNN on x86 CPUs: the same products in fp32, up to twice as fast.

torch gives products in fp32 to MKL, which on processors that are not Intel's uses half of their vector unit.
oneDNN, which torch brings along for convolutions and compiled graphs, asks the processor what it can do.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Multiplications from which a product is worth what oneDNN takes to begin; and the gradient by the weight.
PRODUCT_FROM = 2**22
WEIGHT_GRADIENT_FROM = 2**23

# Up to so many entries a weight's gradient is made as a convolution's: a product would leave threads idle.
CONVOLUTION_TO = 2**18


def available() -> bool:
    """Say whether this build of torch has oneDNN's products for this processor."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(model: nn.Module) -> None:
    """Let every plain linear layer of a model compute so where it can: on a CPU, in fp32."""
    if available():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """A linear layer that has oneDNN make its larger products; elsewhere it is what it was."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``, ``[..., K] -> [..., N]``."""
        if torch.compiler.is_compiling() or input.numel() * self.out_features < PRODUCT_FROM:
            return linear(input, self.weight, self.bias)
        weight, bias = self.weight, self.bias
        served = (
            type(weight) is nn.Parameter  # not one of another kind, such as a quantized one
            and input.device.type == weight.device.type == "cpu"
            and input.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )
        if not served:
            return linear(input, weight, bias)
        rows = input.reshape(-1, weight.shape[1]).contiguous()
        out = _Linear.apply(rows, weight, bias) if torch.is_grad_enabled() else _product(rows, weight, bias)
        return out.view(*input.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` for ``[M, K]``, ``[N, K]``, ``[N]``, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        by_input, by_weight, by_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if by_input else None,
            _weight_gradient(gradient, x, weight) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``gradient.T @ x``: ``[M, N]``, ``[M, K]`` -> ``[N, K]``."""
    (m, n), k = gradient.shape, x.shape[1]
    if m * n * k < WEIGHT_GRADIENT_FROM:
        return gradient.t() @ x
    if n * k <= CONVOLUTION_TO:
        # Rows as the pixels of one picture. Dilation means nothing to a kernel of one pixel, but without it
        # torch would not ask oneDNN where there is one thread.
        pixels = (rows.contiguous().view(1, 1, m, -1).permute(0, 3, 1, 2) for rows in (gradient, x))
        kernel = weight[:, :, None, None]
        return torch.ops.aten.convolution_backward(
            *pixels, kernel, None, [1, 1], [0, 0], [2, 2], False, [0, 0], 1, [False, True, False]
        )[1].view(n, k)
    return _product(gradient.t(), x.t()) if n <= k else _product(x.t(), gradient.t()).t()
