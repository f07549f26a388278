"""Batches that do not fit into memory run in smaller parts, but only where that gives the same result.

Without gradients (and for explanations, image by image) parts are always the same. A training step may be split where
its loss is a mean over images and the model treats each image by itself; elsewhere the cell ends with what to change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import VabenchError, first_line

Forward = Callable[[Tensor], Tensor]
ADVICE = "lower the recipe's batch_size, or choose a smaller model or a device with more memory"


class TrainingStep:
    """Forward and backward pass of a training step. Once a batch did not fit, it and those after it run in parts.

    A loss says that it may be split by an attribute `mean_over_images = True`: it is the mean over the batch of terms
    that depend on one image each, draws nothing at random, and calling it again for the same batch changes nothing. One
    with a method `look`, which is shown whole batches, is never split.

    size: images of a part, None as long as every batch has fitted.
    """

    def __init__(self, model: nn.Module, loss: Any, *, low_precision: bool):
        self.model, self.loss, self.low = model, loss, low_precision
        self.size: int | None = None

    def __call__(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Add the gradient of the batch's loss to the parameters', which must be empty; returns that loss, detached.

        Args:
            x: float [B, C, H, W] in [0, 1]. y, index: int64 [B].

        Raises:
            VabenchError: the batch does not fit into memory and must not be split, or not even one image fits.
        """
        if self.size is None or len(x) <= self.size:
            try:
                return self._run(x, y, index)
            except torch.OutOfMemoryError as error:
                fault = first_line(error)  # the error itself holds on to the failed pass, and thereby to its memory
            self._halve(len(x), fault)
        while True:
            try:
                return self._in_parts(x, y, index)
            except torch.OutOfMemoryError as error:
                fault = first_line(error)
            self._halve(int(self.size or 1), fault)

    def _run(self, x: Tensor, y: Tensor, index: Tensor, weight: float | None = None) -> Tensor:
        kind = x.device.type
        if self.low or torch.is_autocast_enabled(kind):  # else the context would cost, and do nothing
            with torch.autocast(kind, torch.bfloat16, enabled=self.low):
                value: Tensor = self.loss(self.model, x, y, index)
        else:
            value = self.loss(self.model, x, y, index)
        value = value if weight is None else value * weight
        value.backward()
        return value.detach()

    def _in_parts(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The same gradient up to rounding: every part weighs as many images as it has."""
        size, total = self.size or len(x), x.new_zeros(())
        for start in range(0, len(x), size):
            before, rows = _random_states(x.device), slice(start, start + size)
            total += self._run(x[rows], y[rows], index[rows], len(x[rows]) / len(x))
            if any(not torch.equal(a, b) for a, b in zip(before, _random_states(x.device), strict=True)):
                raise VabenchError(
                    f"a batch of {len(x)} images does not fit into memory, and it is not split, because model or loss "
                    f"draw random numbers, which would be others in parts; {ADVICE}"
                )
        return total

    def _halve(self, held: int, fault: str) -> None:
        """Forget the failed pass and take half of the `held` images that did not fit."""
        for parameter in self.model.parameters():
            parameter.grad = None
        why = _why_whole(self.model, self.loss)
        if why:
            raise VabenchError(
                f"a batch of {held} images does not fit into memory ({fault}), and it is not split, because {why}; "
                f"{ADVICE}"
            )
        if held == 1:
            raise VabenchError(
                f"not even one image fits into memory ({fault}); choose a smaller model or another device"
            )
        self.size = -(-held // 2)
        _release()


def _why_whole(model: nn.Module, loss: Any) -> str:
    """Why parts of a batch would not give the batch's gradient; empty where they do."""
    for module in model.modules():
        batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm)
        running = isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
        if module.training and (batch_statistics or running):
            name = type(module).__name__
            return f"the model's {name} uses the statistics of the batch (freeze_batchnorm=true fixes them)"
    if hasattr(loss, "look"):
        return f"the loss '{type(loss).__name__}' looks at whole batches"
    if not getattr(loss, "mean_over_images", False):
        name = getattr(loss, "__name__", type(loss).__name__)
        return f"the loss '{name}' does not say that it is a mean over images (mean_over_images)"
    return ""


def _random_states(device: torch.device) -> list[Tensor]:
    """torch's own generators. Read only where memory has run out: on a GPU this waits for it."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _release() -> None:
    """Give cached blocks back, so that smaller ones can be made of them."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_parts(forward: Forward, images: Tensor, size: int) -> Tensor:
    """`forward` of parts of at most `size` images, joined; halves that do not fit into memory are halved again.

    Args:
        forward: treats every image by itself and keeps no gradients. images: [N, ...], N may be 0.

    Raises:
        torch.OutOfMemoryError: not even one image fits.
    """
    waiting, out = list(images.split(size))[::-1], []
    while waiting:
        part = waiting.pop()
        try:
            out.append(forward(part))
            continue
        except torch.OutOfMemoryError:
            if len(part) <= 1:
                raise
        _release()
        half = -(-len(part) // 2)
        waiting = [piece for held in (*waiting, part) for piece in held.split(half)[::-1]]
    return torch.cat(out)
