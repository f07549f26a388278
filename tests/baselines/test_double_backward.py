"""The derivative of an input gradient through our convolution is that of plain autograd."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.double_backward import CheapDoubleBackward

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {"padding": 1},
    "strided": {"stride": 2, "bias": False},
    "dilated": {"dilation": (1, 2), "padding": (0, 2)},
    "grouped": {"groups": 2},
    "padded by name": {"padding": "same"},
}


def net(options: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, **options), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
        ).double()


def derivatives(model: nn.Module, x: Tensor, mode: Any) -> list[Tensor]:
    """Of a loss in the logits and in the squared input gradient, with respect to every weight."""
    x = x.clone().requires_grad_()
    with mode:
        logits = model(x)
        (gradient,) = torch.autograd.grad(logits.log_softmax(1).sum(), x, create_graph=True)
    if isinstance(mode, CheapDoubleBackward):
        mode.inputs_only = False
    loss = logits.square().mean() + gradient.square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_autograd(name: str) -> None:
    model, x = net(LAYERS[name]), torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    model(x)
    ours, theirs = derivatives(model, x, CheapDoubleBackward()), derivatives(model, x, nullcontext())
    assert min(float(g.abs().max()) for g in theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_frozen_weights_stay_without_gradient() -> None:
    model, x = net({}), torch.rand(2, 2, 9, 9, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    model(x)
    model[0].requires_grad_(False)
    mode = CheapDoubleBackward()
    with mode:
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    mode.inputs_only = False
    gradient.square().sum().backward()
    assert model[0].weight.grad is None
    assert float(model[2].weight.grad.abs().max()) > 0
