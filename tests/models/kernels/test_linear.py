"""Linear layers by oneDNN against float64, and what they are not for."""

import pytest
import torch
from torch import nn

from opd.models.kernels.linear import OneDnnLinear, available, use_onednn

SHAPES = {
    "below every threshold": (3, 8, 16),
    "forward by oneDNN, weights by MKL": (64, 128, 520),
    "weights as a convolution": (600, 128, 256),
    "weights by oneDNN, more columns": (40, 1024, 512),
    "weights by oneDNN, more rows": (40, 512, 1024),
}


@pytest.mark.skipif(not available(), reason="torch has no oneDNN products for this processor")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_linear_layers_and_their_gradients_equal_float64(shape, bias):
    m, k, n = shape
    generator = torch.Generator().manual_seed(m)
    layer = nn.Linear(k, n, bias=bias)
    exact = nn.Linear(k, n, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    use_onednn(layer)
    assert type(layer) is OneDnnLinear
    x = (
        torch.randn(2, m // 2, k, generator=generator)
        if m % 2 == 0
        else torch.randn(m, k, generator=generator)
    )
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out, wanted = layer(ours), exact(theirs)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(layer(x), out)
    gradient = torch.randn(out.shape, generator=generator)
    out.backward(gradient)
    wanted.backward(gradient.double())
    for a, b in [(ours, theirs), *zip(layer.parameters(), exact.parameters(), strict=True)]:
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(a.grad.double() / scale, b.grad / scale, rtol=0, atol=2e-6)


@pytest.mark.skipif(not available(), reason="torch has no oneDNN products for this processor")
def test_a_gradient_that_lies_in_no_order_is_the_same():
    """An expanded one has strides of 0, in a transposed one no row lies together; the input can be so too."""
    layer = nn.Linear(128, 256)
    use_onednn(layer)
    own = torch.randn(600, 128), torch.randn(1, 128).expand(600, 128), torch.randn(128, 600).t()
    for x in own:
        for loss in (lambda y: y.sum(), lambda y: (y.t() * torch.linspace(0, 1, 600)).sum()):
            inputs = [x.detach().requires_grad_(), layer.weight, layer.bias]
            found = torch.autograd.grad(loss(layer(inputs[0])), inputs)
            wanted = torch.autograd.grad(loss(nn.functional.linear(*inputs)), inputs)
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.skipif(not available(), reason="torch has no oneDNN products for this processor")
def test_frozen_layers_keep_no_input_for_the_backward():
    """Which is what makes an adapter's update lean."""
    layer = nn.Linear(128, 512).requires_grad_(False)
    use_onednn(layer)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        layer(torch.randn(600, 128, requires_grad=True))
    assert kept == [layer.weight.shape]


def test_what_onednn_is_not_for_is_left_alone():
    layer = nn.Linear(256, 256)
    use_onednn(layer)
    x = torch.randn(128, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64

    class Own(nn.Linear):
        pass

    other = nn.Sequential(Own(2, 2))
    use_onednn(other)
    assert type(other[0]) is Own
