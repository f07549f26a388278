"""DeepLIFT-SHAP: the rescale rule averaged over baselines, complete through max-pooling, without hooks.

The rescale rule (Shrikumar et al., ICML 2017) replaces the derivative of a nonlinearity f by the slope of its secant,
(f(z_x) - f(z_b)) / (z_x - z_b), where z_x and z_b are its inputs for the image and for the baseline. Multipliers then
chain like gradients, and sum_i m_i (x_i - b_i) = score(x) - score(b). The mean over baselines approximates Shapley
values (Deep SHAP: Lundberg and Lee, NeurIPS 2017, section 4.2).

Max-pooling has many inputs, so it has no single secant. In one window let i be the winner for the image and k the one
for the baseline. If i = k, i's multiplier is 1. Otherwise the change x_i - b_k is shared between i and k as the Shapley
value of the maximum as a game of these two players:
    phi_i = ((max(x_i, b_k) - b_k) + (x_i - max(b_i, x_k))) / 2
    phi_k = ((max(b_i, x_k) - b_k) + (x_i - max(x_i, b_k))) / 2
They add up to x_i - b_k, which is the change of the window's maximum, so completeness holds. The maximum is monotone
and 1-Lipschitz, so phi_i / (x_i - b_i) and phi_k / (x_k - b_k) lie in [0, 1]: no division by a small number can blow
up, and an input that did not change gets 0. Swapping image and baseline flips the sign. Where a maximum is attained at
several places (a window of zeros behind a ReLU), a place that also wins in the other image is the winner in both.

Nonlinear functions are met as torch functions while the model runs, so modules, functional calls and modules used
twice are all handled, the model is not touched, and images and baselines each run forward once: per baseline there is
only one backward pass through the images' graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from harness.chain import Layer, chain_of
from harness.errors import NotApplicable
from harness.explain import Explainer, positive, target_score
from harness.explain_info import DEEPLIFT_SHAP

Function = Callable[..., Any]

# Functions of one number, piecewise linear or with a kink: the secant is exact at any distance.
_KINKED: tuple[Any, ...] = (
    *(torch.relu, torch.Tensor.relu, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.threshold),
)
# Smooth ones: where image and baseline nearly agree, the derivative beats a difference of rounded values.
_SMOOTH: tuple[Any, ...] = (
    *(torch.sigmoid, torch.Tensor.sigmoid, torch.special.expit, torch.tanh, torch.Tensor.tanh, F.sigmoid, F.tanh),
    *(F.softplus, F.gelu, F.silu, F.mish, F.logsigmoid, F.softsign),
)
_MAX_POOL: tuple[Any, ...] = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
)
_REFUSED = frozenset(
    [
        *("softmax", "log_softmax", "softmin", "gumbel_softmax", "scaled_dot_product_attention"),
        *("multi_head_attention_forward", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
        *("local_response_norm", "normalize", "norm", "glu", "prelu", "rrelu", "topk", "sort", "median", "where"),
        *("abs", "clamp", "clamp_min", "clamp_max", "amax", "amin", "max", "min", "maximum", "minimum"),
        *("exp", "log", "pow", "__pow__", "square", "sqrt", "rsqrt", "sin", "cos", "erf"),
        *("relu_", "sigmoid_", "tanh_", "elu_", "leaky_relu_", "hardtanh_"),
    ]
)
_PRODUCTS = frozenset(["mul", "__mul__", "multiply", "div", "__truediv__", "matmul", "__matmul__", "bmm", "einsum"])
_SMOOTH_MODULES = (nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU)


class DeepLiftShap(Explainer):
    """DeepLIFT-SHAP of the target's logit minus the mean logit; the gap's reference is the mean score of the baselines.

    Handles any module of linear layers, convolutions, BatchNorm in eval mode, average- and max-pooling, additions,
    concatenations and pointwise nonlinearities. Plain multilayer perceptrons take a closed form of matrix products.
    Memory: the graph of one batch of images, and the nonlinearities' inputs of all baselines.
    """

    info = DEEPLIFT_SHAP

    def __init__(self, *, baselines: int = 20):
        self.baselines = positive("deeplift_shap", "baselines", baselines)

    @property
    def params(self) -> dict[str, Any]:
        """Number of baselines."""
        return {"baselines": self.baselines}

    def _prepare(self, model: nn.Module, baselines: Tensor, batch_size: int) -> _Chain | _Recording:
        if len(baselines) == 0:
            raise ValueError("deeplift_shap needs at least one baseline")
        layers = chain_of(model)
        with torch.no_grad():
            if layers is not None:
                return _Chain(layers, baselines)
            return _record(model, baselines, batch_size)

    def _attribute(
        self, model: nn.Module, x: Tensor, target: Tensor, state: _Chain | _Recording
    ) -> tuple[Tensor, Tensor]:
        if isinstance(state, _Chain):
            return state.attribute(x, target)
        return _attribute_graph(model, x, target, state)


def slope(function: Function, z: Tensor, out: Tensor, z_ref: Tensor, smooth: bool) -> Tensor:
    """Secant slope of a pointwise function between z_ref (broadcast) and z, where out = function(z).

    Where both agree (for smooth functions: nearly), the derivative at z.
    """
    step = z - z_ref
    found: Tensor = (out - function(z_ref)).div_(step)
    tie = step.abs() < torch.finfo(z.dtype).eps ** 0.5 if smooth else step == 0
    if not bool(tie.any()):
        return found
    return torch.where(tie, _derivative(function, z), found)


def _derivative(function: Function, z: Tensor) -> Tensor:
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        out: Tensor = torch.autograd.grad(function(at).sum(), at)[0]
    return out


# ---- any network --------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """One nonlinear call during the baselines' forward pass: its inputs [B, ...] and, for pooling, its winners."""

    function: Function
    z: Tensor
    winners: Tensor | None = None


@dataclass
class _Recording:
    """All nonlinear calls of the baselines in order, their logits, and the baseline that a backward pass looks at."""

    baselines: Tensor
    logits: Tensor
    calls: list[_Call]
    current: int = 0


@dataclass
class _Site:
    """A nonlinear call of the images, tied to the same call of the baselines."""

    recording: _Recording
    call: _Call
    smooth: bool = False

    @property
    def reference(self) -> Tensor:
        """Input of the current baseline, [1, ...]."""
        return self.call.z[self.recording.current, None]


class _Secant(torch.autograd.Function):
    """Identity on a pointwise function's output; its backward multiplies by the secant slope."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, out: Tensor, site: _Site) -> Tensor:
        ctx.save_for_backward(z, out)
        ctx.site = site
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, out = ctx.saved_tensors
        site: _Site = ctx.site
        return slope(site.call.function, z, out, site.reference, site.smooth).mul_(grads[0]), None, None


class _MaxPool(torch.autograd.Function):
    """Identity on a max-pool's output; its backward shares the change between the two winners (module docstring)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, out: Tensor, winners: Tensor, site: _Site) -> Tensor:
        ctx.save_for_backward(z, out, winners)
        ctx.site = site
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        z, out, winners = ctx.saved_tensors
        site: _Site = ctx.site
        assert site.call.winners is not None
        at_x = winners.flatten(2)
        at_b = site.call.winners[site.recording.current, None].flatten(2).expand_as(at_x)
        flat = z.flatten(2)
        flat_ref = site.reference.flatten(2).expand_as(flat)
        x_i, x_k = out.flatten(2), flat.gather(2, at_b)
        b_i, b_k = flat_ref.gather(2, at_x), flat_ref.gather(2, at_b)
        high, low = torch.maximum(x_i, b_k), torch.maximum(b_i, x_k)
        phi_i = ((high - b_k) + (x_i - low)).mul_(0.5)
        phi_k = ((low - b_k) + (x_i - high)).mul_(0.5)
        i_wins_both = (at_x == at_b) | (b_i == b_k)
        k_wins_both = (x_k == x_i) & ~i_wins_both
        m_i = torch.where(x_i == b_i, 0.0, phi_i / (x_i - b_i))
        m_k = torch.where(x_k == b_k, 0.0, phi_k / (x_k - b_k))
        m_i = torch.where(i_wins_both, 1.0, torch.where(k_wins_both, 0.0, m_i))
        m_k = torch.where(k_wins_both, 1.0, torch.where(i_wins_both, 0.0, m_k))
        grad = grads[0].flatten(2)
        spread = torch.zeros_like(flat).scatter_add_(2, at_x, m_i * grad).scatter_add_(2, at_b, m_k * grad)
        return spread.view(z.shape), None, None, None


class _Nonlinearities(TorchFunctionMode):
    """Meets every torch function of a forward pass: notes the nonlinear ones, or ties them to those of `recording`."""

    def __init__(self, recording: _Recording | None = None):
        super().__init__()
        self.calls: list[_Call] = []
        self.recording = recording

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KINKED or func in _SMOOTH:
            return self._pointwise(func, args, kwargs)
        if func in _MAX_POOL:
            return self._max_pool(func, args, kwargs)
        _refuse(func, args, kwargs)
        return func(*args, **kwargs)

    def _pointwise(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        z, rest, options = _input(args, {k: v for k, v in kwargs.items() if k != "inplace"})
        rest = tuple(False if value is True else value for value in rest)  # a positional `inplace`

        def function(value: Tensor) -> Tensor:
            result: Tensor = func(value, *rest, **options)
            return result

        with torch.no_grad():
            out = function(z.detach())
        self.calls.append(_Call(function, z.detach()))
        if self.recording is None:
            return out
        tied: Tensor = _Secant.apply(z, out, self._site(func, smooth=func in _SMOOTH))
        return tied

    def _max_pool(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        z, rest, options = _input(args, kwargs)
        if options.get("return_indices") is True:
            raise NotApplicable("deeplift_shap: max-pooling that returns its indices (unpooling) has no rescale rule")
        with torch.no_grad():
            out, winners = func(z.detach(), *rest, **(options | {"return_indices": True}))
        self.calls.append(_Call(func, z.detach(), winners))
        if self.recording is None:
            return out  # type: ignore[no-any-return]
        tied: Tensor = _MaxPool.apply(z, out, winners, self._site(func))
        return tied

    def _site(self, func: Any, smooth: bool = False) -> _Site:
        assert self.recording is not None
        position, here = len(self.calls) - 1, self.calls[-1]
        known = self.recording.calls[position] if position < len(self.recording.calls) else None
        if known is None or known.z.shape[1:] != here.z.shape[1:] or (known.winners is None) != (here.winners is None):
            raise NotApplicable(
                f"deeplift_shap: call {position} ({func.__name__}) differs between images and baselines; the model "
                f"must run the same operations on every image"
            )
        return _Site(self.recording, known, smooth)


def _record(model: nn.Module, baselines: Tensor, batch_size: int) -> _Recording:
    """Run the baselines forward once, keeping the inputs of every nonlinear call."""
    logits: list[Tensor] = []
    parts: list[list[_Call]] = []
    for part in baselines.split(batch_size):
        with _Nonlinearities() as mode:
            logits.append(model(part))
        parts.append(mode.calls)
    calls = [
        _Call(
            same[0].function,
            torch.cat([c.z for c in same]),
            None if same[0].winners is None else torch.cat([c.winners for c in same if c.winners is not None]),
        )
        for same in zip(*parts, strict=True)
    ]
    return _Recording(baselines, torch.cat(logits), calls)


def _attribute_graph(model: nn.Module, x: Tensor, target: Tensor, recording: _Recording) -> tuple[Tensor, Tensor]:
    """Attributions [n, C, H, W] from one forward and, per baseline, one backward pass; the score difference [n]."""
    x = x.detach().requires_grad_()
    fixed = {name: value.detach() for name, value in model.named_parameters()}  # no graph for the weights
    with torch.enable_grad(), _Nonlinearities(recording) as mode:
        logits = torch.func.functional_call(model, fixed, (x,))
    if len(mode.calls) != len(recording.calls):
        raise NotApplicable("deeplift_shap: the model runs different operations on images and on baselines")
    with torch.enable_grad():
        score = target_score(logits, target)
        total = score.sum()
    phi = torch.zeros_like(x)
    last = len(recording.baselines) - 1
    for current in range(last + 1):
        recording.current = current
        (multiplier,) = torch.autograd.grad(total, x, retain_graph=current < last)
        with torch.no_grad():
            phi.addcmul_(multiplier, x - recording.baselines[current])
    reference = target_score(recording.logits.mean(0, keepdim=True).expand(len(x), -1), target)
    return phi.detach().div_(last + 1), score.detach() - reference


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Split a call into its input, further positional arguments and keywords."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["input"], (), {k: v for k, v in kwargs.items() if k != "input"}


def _refuse(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise NotApplicable for a function that is nonlinear in the image and that no rule covers."""
    name = getattr(func, "__name__", "")
    if name in _REFUSED or name in _PRODUCTS or name == "batch_norm":
        flat = [t for a in (*args, *kwargs.values()) for t in (a if isinstance(a, (tuple, list)) else (a,))]
        live = sum(isinstance(t, Tensor) and t.requires_grad for t in flat)
        batch_statistics = name == "batch_norm" and bool(kwargs.get("training"))
        if (live and name in _REFUSED) or (live > 1 and name in _PRODUCTS) or (live and batch_statistics):
            what = "a product of two activations" if name in _PRODUCTS else f"'{name}'"
            raise NotApplicable(
                f"deeplift_shap: the model uses {what}, for which there is no rescale rule; use occlusion, or a model "
                f"of linear layers, BatchNorm, pooling and pointwise activations"
            )


# ---- multilayer perceptrons ---------------------------------------------------------------------------------------


@dataclass
class _Chain:
    """Linear layers with pointwise activations, and the baselines' pre-activations at each."""

    layers: list[Layer]
    baselines: Tensor
    references: list[Tensor] = field(init=False)
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.references, self.logits = self._forward(self.baselines)

    def _forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        hidden, before = x.flatten(1), []
        for layer in self.layers:
            hidden = F.linear(hidden, layer.weight, layer.bias)
            before.append(hidden)
            hidden = layer.activation(hidden) if layer.activation is not None else hidden
        return before, hidden

    @torch.no_grad()
    def attribute(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Attributions [n, C, H, W] and the score difference [n].

        Phi = x * mean_b(m_b) - mean_b(m_b * b): the multipliers m_b of one baseline are matrix products, and the first
        layer's product with x is needed only once, on their mean.
        """
        flat = x.flatten(1)
        before, logits = self._forward(x)
        outputs = [z if a.activation is None else a.activation(z) for a, z in zip(self.layers, before, strict=True)]
        top = F.one_hot(target, logits.shape[1]).to(x.dtype) - 1.0 / logits.shape[1]
        first, mean, crossed = self.layers[0].weight, None, torch.zeros_like(flat)
        buffer = torch.empty_like(flat)
        for j, baseline in enumerate(self.baselines.flatten(1)):
            signal = top
            for i in range(len(self.layers) - 1, -1, -1):
                activation = self.layers[i].activation
                if activation is not None:
                    smooth = isinstance(activation, _SMOOTH_MODULES)
                    signal = slope(activation, before[i], outputs[i], self.references[i][j], smooth) * signal
                if i:
                    signal = signal @ self.layers[i].weight
            mean = signal.clone() if mean is None else mean.add_(signal)
            crossed.addcmul_(torch.mm(signal, first, out=buffer), baseline)
        assert mean is not None
        phi = torch.mm(mean, first, out=buffer).mul_(flat).sub_(crossed).div_(len(self.baselines))
        reference = self.logits.mean(0, keepdim=True).expand(len(x), -1)
        return phi.view_as(x), target_score(logits, target) - target_score(reference, target)
