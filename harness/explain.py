"""Attribution maps in batches: the explainer contract, baselines, occlusion and input x gradient.

Every explainer explains one scalar, the target's logit minus the mean logit, and says how far its map is from adding
up to what it explains.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.chain import Layer, chain_of, logits_above
from harness.errors import ConfigError
from harness.explain_info import INPUT_X_GRADIENT, OCCLUSION
from harness.registry import ComponentInfo

BaselineKind = Literal["train", "zeros", "blur"]
GAP_FLOOR = 0.1  # protocol.md: a gap is relative to max(|f(x) - f(b)|, 0.1)


@dataclass(frozen=True)
class Explanation:
    """Attribution maps and how complete they are.

    maps: float32 [N, H, W], channels summed. gap: float [N], |sum of the map - d| / max(|d|, 0.1), where d is the score
    of the image minus its reference score (see each explainer for the reference).
    """

    maps: Tensor
    gap: Tensor


class Explainer(ABC):
    """Base of every explainer. The constructor takes the explainer's parameters by keyword and validates them.

    baselines: how many baseline images the caller should draw (`draw_baselines`).
    """

    info: ClassVar[ComponentInfo]
    baselines: int = 0

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """All parameters with their values, JSON-serialisable: part of a cell's identity."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        target: Tensor,
        baselines: Tensor,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Explanation:
        """Explain `logit[target] - mean logit` of every image, in eval mode; the model is left as it was.

        Args:
            model: float [B, C, H, W] in [0, 1] to logits [B, K]. Its parameters' dtype is the dtype of the computation.
            images: uint8 [N, C, H, W] (or float in [0, 1]). target: int64 [N].
            baselines: uint8 (or float in [0, 1]) [B, C, H, W].
            generator: random stream of an explainer that samples; the built-in ones do not.
            batch_size: images per forward pass; None chooses it from the image size and the device. It is halved where
                memory runs out.

        Raises:
            ValueError: shapes that do not belong together. NotApplicable: a model that the explainer cannot handle.
        """
        if images.ndim != 4 or target.shape != (len(images),):
            raise ValueError(
                f"images {tuple(images.shape)} and target {tuple(target.shape)}: want [N, C, H, W] and [N]"
            )
        if baselines.ndim != 4 or (len(baselines) and baselines.shape[1:] != images.shape[1:]):
            raise ValueError(f"baselines {tuple(baselines.shape)} do not fit images {tuple(images.shape)}")
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        step = batch_size or _batch_size(images)
        maps = torch.empty((len(images), *images.shape[2:]), device=images.device)
        gap = torch.empty(len(images), device=images.device)
        with evaluating(model):
            state = self._prepare(model, as_float(baselines, dtype).to(images.device), step)
            start = 0
            while start < len(images):
                part = slice(start, min(start + step, len(images)))
                try:
                    phi, delta = self._attribute(model, as_float(images[part], dtype), target[part], state)
                except torch.OutOfMemoryError:
                    if part.stop - start == 1:
                        raise
                    step = -(-(part.stop - start) // 2)
                    continue
                maps[part] = phi.sum(1)
                gap[part] = completeness_gap(phi, delta)
                start = part.stop
        return Explanation(maps, gap)

    def _prepare(self, model: nn.Module, baselines: Tensor, batch_size: int) -> Any:
        """What is computed once from the baselines, float [B, C, H, W] in [0, 1]; handed to `_attribute`."""
        return baselines

    @abstractmethod
    def _attribute(self, model: nn.Module, x: Tensor, target: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """Attributions [n, C, H, W] of x and the score difference [n] that they should add up to."""


def draw_baselines(images: Tensor, count: int, generator: torch.Generator, kind: BaselineKind = "train") -> Tensor:
    """Baseline images, uint8 [B, C, H, W], from uint8 images [M, C, H, W].

    train: `count` different images. blur: the same, blurred with a Gaussian of 1/8 of the shorter side. zeros: one
    black image, whatever the count (copies would only repeat the work). A count of 0 gives an empty tensor.

    Raises:
        ConfigError: an unknown kind, a negative count, or more baselines than images.
    """
    if kind not in ("train", "zeros", "blur"):
        raise ConfigError(f"unknown kind of baselines '{kind}'; known: train, zeros, blur")
    if not 0 <= count <= len(images):
        raise ConfigError(f"cannot draw {count} baselines from {len(images)} images")
    if kind == "zeros":
        return torch.zeros_like(images[: min(count, 1)])
    drawn = images[torch.randperm(len(images), generator=generator)[:count].to(images.device)]
    return _blur(drawn) if kind == "blur" and count else drawn


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 0..255 to [0, 1]; floating images keep their values."""
    return images.to(dtype) if images.is_floating_point() else images.to(dtype).div_(255.0)


def target_score(logits: Tensor, target: Tensor) -> Tensor:
    """The explained scalar [n]: logit of the target minus the mean logit; logits [n, K], target [n]."""
    return logits.gather(1, target[:, None]).squeeze(1) - logits.mean(1)


def completeness_gap(phi: Tensor, delta: Tensor) -> Tensor:
    """|sum of phi - delta| / max(|delta|, 0.1) for phi [n, ...] and delta [n] (protocol.md)."""
    return (phi.flatten(1).sum(1) - delta).abs() / delta.abs().clamp(min=GAP_FLOOR)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every module's mode is restored after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Occlusion(Explainer):
    """Occlusion (Zeiler and Fergus 2014): how much the score drops when a window shows the mean baseline instead.

    A pixel's value is the mean drop over the windows that hold it, divided by the window's area. Windows start every
    `stride` pixels, and one more ends flush with the border where the stride does not. The fill is the mean baseline,
    pixel by pixel: a constant grey would itself look like a decoy on a black border. The gap's reference is the score
    of the fill; occlusion is complete for additive models only, so expect it to be large. The first layer of a plain
    multilayer perceptron is given the window's own pixels, where that is faster: equal up to rounding.
    """

    info = OCCLUSION

    def __init__(self, *, window: int = 4, stride: int = 2, baselines: int = 20):
        self.window = positive("occlusion", "window", window)
        self.stride = positive("occlusion", "stride", stride)
        self.baselines = positive("occlusion", "baselines", baselines)

    @property
    def params(self) -> dict[str, Any]:
        """window and stride in pixels; number of baselines behind the fill."""
        return {"window": self.window, "stride": self.stride, "baselines": self.baselines}

    def _prepare(self, model: nn.Module, baselines: Tensor, batch_size: int) -> tuple[Tensor, list[Layer] | None]:
        if len(baselines) == 0:
            raise ValueError("occlusion needs at least one baseline for its fill")
        return baselines.mean(0), chain_of(model)

    @torch.no_grad()
    def _attribute(
        self, model: nn.Module, x: Tensor, target: Tensor, state: tuple[Tensor, list[Layer] | None]
    ) -> tuple[Tensor, Tensor]:
        (fill, layers), (height, width) = state, x.shape[2:]
        tops, lefts = (_starts(size, self.window, self.stride) for size in (height, width))
        tall, wide = min(self.window, height), min(self.window, width)
        columns = torch.tensor(lefts, device=x.device)
        score = target_score(model(x), target)
        total = x.new_zeros(len(x), height, width)
        count = x.new_zeros(height, width)
        each = target.repeat(len(lefts))
        if layers is not None and self._closed_pays(layers[0], x):
            filled = self._filled_chain(layers, x, fill)
        else:
            filled = self._filled(model, x, fill)
        for top, logits in zip(tops, filled, strict=True):
            drop = score[:, None] - target_score(logits.flatten(0, 1), each).view(len(lefts), -1).T
            line, hits = x.new_zeros(len(x), width), x.new_zeros(width)
            for k in range(wide):  # the k-th columns of all windows of the row, none of them twice
                line[:, columns + k] += drop
                hits[columns + k] += 1
            total[:, top : top + tall] += line[:, None]
            count[top : top + tall] += hits
        reference = target_score(model(fill[None]).expand(len(x), -1), target)
        return (total / (count * (tall * wide))).unsqueeze(1), score - reference

    def _closed_pays(self, first: Layer, x: Tensor) -> bool:
        """Whether a window's own weights are gathered faster than all are multiplied, and take at most 64 MiB."""
        n, channels, height, width = x.shape
        window = min(self.window, height) * min(self.window, width)
        gathered = len(_starts(width, self.window, self.stride)) * channels * window * len(first.weight)
        return (n + 200) * window <= n * height * width and gathered * x.element_size() <= 2**26  # 200: measured

    def _filled(self, model: nn.Module, x: Tensor, fill: Tensor) -> Iterator[Tensor]:
        """Logits [windows of a row, n, K] of the images with one window filled, row by row of windows."""
        height, width = x.shape[2:]
        x = x.clone()
        for top in _starts(height, self.window, self.stride):
            found = []
            for left in _starts(width, self.window, self.stride):
                rows, columns = slice(top, top + self.window), slice(left, left + self.window)
                kept = x[:, :, rows, columns].clone()
                x[:, :, rows, columns] = fill[:, rows, columns]
                found.append(model(x))
                x[:, :, rows, columns] = kept
            yield torch.stack(found)

    def _filled_chain(self, layers: list[Layer], x: Tensor, fill: Tensor) -> Iterator[Tensor]:
        """As `_filled`: a window changes the first layer's output by its own pixels' share, the others are left out."""
        height, width = x.shape[2:]
        wide, first = min(self.window, width), layers[0].weight
        lefts = torch.tensor(_starts(width, self.window, self.stride), device=x.device)
        before = F.linear(x.flatten(1), first, layers[0].bias)
        change, weight = fill - x, first.view(-1, *x.shape[1:])
        for top in _starts(height, self.window, self.stride):
            rows = slice(top, top + self.window)
            pixels, weights = (part[:, :, rows].unfold(3, wide, 1)[:, :, :, lefts] for part in (change, weight))
            pixels = pixels.permute(3, 0, 1, 2, 4).flatten(2)  # [windows, n, pixels of one]
            yield logits_above(layers, before + pixels @ weights.permute(3, 1, 2, 4, 0).flatten(1, 3))


class InputXGradient(Explainer):
    """Input times the gradient of the score (Shrikumar et al. 2016). Ignores the baselines.

    The gap's reference is the score of a black image; it is zero for linear models only.
    """

    info = INPUT_X_GRADIENT

    @property
    def params(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    def _attribute(self, model: nn.Module, x: Tensor, target: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            score = target_score(model(x), target)
            (gradient,) = torch.autograd.grad(score.sum(), x)
        with torch.no_grad():
            black = target_score(model(torch.zeros_like(x[:1])).expand(len(x), -1), target)
            return x.detach() * gradient, score.detach() - black


def positive(who: str, name: str, value: int) -> int:
    """`value` if it is a positive whole number, else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"explainer '{who}': {name} must be a positive whole number, got {value!r}")
    return value


def _starts(size: int, window: int, stride: int) -> list[int]:
    last = max(size - window, 0)
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def _batch_size(images: Tensor) -> int:
    pixels = images.shape[2] * images.shape[3]
    budget = 2**18 if images.device.type == "cpu" else 2**22
    return int(min(max(budget // pixels, 4), 256 if images.device.type == "cpu" else 1024))


def _blur(images: Tensor) -> Tensor:
    channels, sigma = images.shape[1], min(images.shape[2:]) / 8
    radius = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    x = F.pad(images.to(torch.float32), (radius,) * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, kernel[:, :, :, None], groups=channels), kernel[:, :, None, :], groups=channels)
    return x.round_().clamp_(0, 255).to(torch.uint8)
