"""Convolutions whose input gradient is cheap to differentiate in the weights.

torch's double backward of a convolution computes the weights' gradient as a convolution with transposed operands and
returns a view that autograd must copy to accumulate. For a penalty on input gradients, three ordinary kernels do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class CheapDoubleBackward(TorchFunctionMode):
    """While active, conv2d records itself so that d(input gradient)/d(weights) takes ordinary kernels.

    Set `inputs_only` to False once the input gradient has been taken: until then no gradient of a weight is computed,
    and after it none of the images themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs_only = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d:
            return self._conv(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _conv(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.ndim != 4:
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        options = (_pair(stride), _pair(padding), _pair(dilation), groups)
        return _Conv.apply(input, weight, bias, options, self)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, options: Any, want: list[bool]) -> Any:
    stride, padding, dilation, groups = options
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, want
    )


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any, mode: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.mode = options, mode
        return F.conv2d(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        if ctx.mode.inputs_only:
            return (_ConvInput.apply(grads[0], x, weight, ctx.options) if of_x else None), None, None, None, None
        want = [of_x and not x.is_leaf, of_weight, of_bias]
        return *_backward(grads[0], x, weight, ctx.options, want), None, None


class _ConvInput(torch.autograd.Function):
    """The gradient of a convolution's input: linear in the output's gradient and in the weights."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.options = options
        found: Tensor = _backward(grad, x, weight, options, [True, False, False])[0]
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, weight = ctx.saved_tensors
        of_grad, _, of_weight = ctx.needs_input_grad[:3]
        tangent = F.conv2d(grads[0], weight, None, *ctx.options) if of_grad else None
        of_weights = _backward(grad, grads[0], weight, ctx.options, [False, True, False])[1] if of_weight else None
        return tangent, None, of_weights, None
