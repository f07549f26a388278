"""The one training loop, fed from uint8 images that already lie on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import optimizers
from harness.errors import ConfigError
from harness.micro_batch import TrainingStep, in_parts

if TYPE_CHECKING:
    from harness.context import Axis, RunContext

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
Batches = Iterator[Tensor]

PREDICT_VALUES = 2**25  # input values of one forward pass without gradients: a wide network needs 50 times their memory
FLOAT_BYTES = 2**28  # training images up to this size as float32 are converted once, not batch by batch


@dataclass(frozen=True)
class TrainRecipe:
    """How a model is trained. Exactly one of `epochs` and `steps` is set.

    clip_norm: maximum gradient norm, None for no clipping. sampling: `class_balanced` draws with replacement, each
    class equally often. shift: random translation by up to this many pixels, reflected at the border. flips: one of the
    eight symmetries of the square at random, for square images that have no up and no right (skin, tissue, satellite).
    freeze_batchnorm: running statistics and batch statistics of BatchNorm stay those of the given model.
    precision: `bfloat16` computes forward and backward pass under autocast; weights, optimiser and losses that declare
    `full_precision` (penalties on input gradients) stay float32. compile: the passes run under torch.compile, again but
    for `full_precision` losses, whose gradient of a gradient it cannot take; every size of batch is compiled once.
    """

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    batch_size: int = 128
    epochs: int | None = None
    steps: int | None = None
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    clip_norm: float | None = None
    sampling: Literal["uniform", "class_balanced"] = "uniform"
    shift: int = 0
    flips: bool = False
    freeze_batchnorm: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError("a training recipe needs exactly one of `epochs` and `steps`")
        for name in ("lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training recipe: {name} must be positive, got {getattr(self, name)}")

    def total_steps(self, n: int) -> int:
        """Number of optimiser steps on n training images."""
        if self.steps is not None:
            return self.steps
        return int(self.epochs or 0) * max(1, -(-n // self.batch_size))

    def augmentation(self, generator: torch.Generator) -> Augmentation | None:
        """What it does to each batch, drawn from `generator`; None where it leaves images as they are."""
        return Augmentation(self.shift, self.flips, generator) if self.shift or self.flips else None

    def with_(self, **changes: Any) -> TrainRecipe:
        """A copy with some settings changed; setting `steps` clears `epochs` and the other way round."""
        if changes.get("steps") is not None:
            changes.setdefault("epochs", None)
        elif changes.get("epochs") is not None:
            changes.setdefault("steps", None)
        return replace(self, **changes)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def uniform_batches(n: int, batch_size: int, generator: torch.Generator) -> Batches:
    """Endless epochs: a fresh permutation each, the last batch of an epoch is short."""
    while True:
        yield from torch.randperm(n, generator=generator).split(batch_size)


def weighted_batches(weights: Tensor, batch_size: int, generator: torch.Generator) -> Batches:
    """Endless batches drawn with replacement, image i with probability proportional to weights[i] (float [N])."""
    n = len(weights)
    cumulative = weights.detach().to("cpu", torch.float64).cumsum(0)
    while True:
        u = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
        drawn = torch.searchsorted(cumulative, u, right=True).clamp(max=n - 1)
        yield from drawn.split(batch_size)


def class_weights(labels: Tensor) -> Tensor:
    """1 / n_label for every image, float64 [N]; labels may be classes or groups."""
    counts = torch.bincount(labels)
    return counts.to(torch.float64).clamp(min=1).reciprocal()[labels]


def default_batches(
    y: Tensor, recipe: TrainRecipe, generator: torch.Generator, subset: Tensor | None = None
) -> Batches:
    """Batches of training indices, on the CPU, under the recipe's `sampling`; with `subset`, from these alone."""
    labels, kept = (y, None) if subset is None else (y[subset], subset.cpu())
    if recipe.sampling == "class_balanced":
        inner = weighted_batches(class_weights(labels), recipe.batch_size, generator)
    else:
        inner = uniform_batches(len(labels), recipe.batch_size, generator)
    return inner if kept is None else (kept[i] for i in inner)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Mean cross-entropy: the loss of ERM."""
    return F.cross_entropy(model(x), y)


cross_entropy.mean_over_images = True  # type: ignore[attr-defined]  # see harness.micro_batch


def make_optimizer(parameters: Any, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameters`."""
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return optimizers.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)  # type: ignore[no-any-return]
    if recipe.optimizer == "adam":
        return optimizers.Adam(parameters, lr=lr, weight_decay=decay, fused=True)  # type: ignore[no-any-return]
    if recipe.optimizer == "sgd":
        momentum = recipe.momentum
        return optimizers.SGD(parameters, lr=lr, weight_decay=decay, momentum=momentum, fused=True)  # type: ignore[no-any-return]
    raise ConfigError(f"unknown optimizer '{recipe.optimizer}'; known: adamw, adam, sgd")


def make_schedule(optimizer: torch.optim.Optimizer, recipe: TrainRecipe, steps: int) -> Any:
    """A learning-rate scheduler stepped once per optimiser step, or None for a constant rate."""
    if recipe.schedule == "constant":
        return None
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if recipe.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=max(steps, 2))
    raise ConfigError(f"unknown schedule '{recipe.schedule}'; known: constant, cosine, onecycle")


def random_shift(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Translate each image of x [B, C, H, W] by up to `limit` pixels in both directions, reflecting the border."""
    b, _, h, w = x.shape
    padded = F.pad(x, (limit,) * 4, mode="reflect")
    dy, dx = torch.randint(0, 2 * limit + 1, (2, b), generator=generator).to(x.device, non_blocking=True)
    # Every window of every image as a view, of which one each is copied: several times faster than indices per pixel.
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # [B, C, 2 limit + 1, 2 limit + 1, H, W]
    return windows[torch.arange(b, device=x.device), :, dy, dx]


def random_symmetry(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror and transpose each image of x [B, C, S, S] at random: all eight symmetries are equally likely.

    Raises:
        ConfigError: the images are not square.
    """
    if x.shape[2] != x.shape[3]:
        raise ConfigError(f"recipes: flips=true needs square images, these have {x.shape[2]} x {x.shape[3]} pixels")
    b, c, side, _ = x.shape
    down, right, across = torch.randint(0, 2, (3, b), generator=generator).to(x.device, non_blocking=True)
    # Where each pixel comes from under all eight, and one copy, instead of one per mirror.
    places = torch.arange(side * side, device=x.device).view(1, side, side)
    places = torch.cat([places, places.flip(1)])
    places = torch.cat([places, places.flip(2)])
    places = torch.cat([places, places.transpose(1, 2)]).flatten(1)  # [8, S * S]
    source = places[down + 2 * right + 4 * across]
    return x.flatten(2).gather(2, source[:, None].expand(b, c, side * side)).view_as(x)


@dataclass(frozen=True)
class Augmentation:
    """Random views of a batch. Two of them with generators in the same state move images and masks alike."""

    shift: int
    flips: bool
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, C, H, W], each image moved by itself; B draws are taken whatever the images are."""
        if self.shift:
            x = random_shift(x, self.shift, self.generator)
        return random_symmetry(x, self.generator) if self.flips else x


def set_train_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Train mode, with BatchNorm left in eval mode where it is frozen."""
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def fit(
    model: nn.Module,
    images: Tensor,
    y: Tensor,
    recipe: TrainRecipe,
    context: RunContext,
    *,
    loss: Loss = cross_entropy,
    batches: Batches | None = None,
    stream: str = "batches",
    axis: Axis = "method",
    phase: str = "align",
    on_step: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Train `model` in place and return it in eval mode.

    A batch that does not fit into memory runs in parts where that gives the same gradient (`harness.micro_batch`), and
    the record's notes then say `micro_batch`: by stream, the images of a part.

    Args:
        images: uint8 [N, C, H, W] on the device. y: int64 [N].
        loss: (model, x float [B, C, H, W] in [0, 1], y [B], index [B]) -> scalar, differentiable. Where it has a method
            `look`, that gets each batch's indices on the CPU before: what follows from them alone, such as how many
            images carry a mask, is known there, and a step need not wait for the device to learn it.
        batches: endless iterator of index batches, best on the CPU: they are copied without waiting for the device.
            Default: the recipe's sampling, on the stream `stream`.
        stream, axis: the random stream of batches and augmentation. Two runs with equal streams see equal batches.
        phase: label of the live progress.
        on_step: called after each optimiser step with the model and the number of steps done.

    The loss of every step, as it was before the step, goes to `context.keep_losses`.

    Raises:
        VabenchError: a batch does not fit into memory and must not be split.
    """
    generator = context.generator(stream, axis)
    batches = batches if batches is not None else default_batches(y, recipe, generator)
    augment = recipe.augmentation(context.generator(stream + "/shift", axis))
    steps = recipe.total_steps(len(y))
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters, recipe)
    schedule = make_schedule(optimizer, recipe, steps)
    set_train_mode(model, recipe.freeze_batchnorm)
    # Equal bit for bit, and worth it only where an image is used more than once.
    reused = 4 * images.numel() <= FLOAT_BYTES and steps * recipe.batch_size > len(images)
    source = to_float(images) if reused else images
    plain = not getattr(loss, "full_precision", False)
    passes: Any = torch.compile(model, dynamic=False) if recipe.compile and plain else model
    add_gradient = TrainingStep(passes, loss, low_precision=recipe.precision == "bfloat16" and plain)
    compiled: set[int] | None = set() if passes is not model else None  # sizes of batches
    losses = torch.zeros(steps, device=images.device)  # read once, at the end: a look at every step would wait for it
    slots = losses.unbind()
    look = getattr(loss, "look", None)
    for step in range(steps):
        drawn = next(batches)
        index = drawn.to(images.device, non_blocking=True)
        if look is not None:
            look(drawn.cpu())
        x = source.index_select(0, index)  # several times faster than source[index]
        x = x if reused else to_float(x)
        if augment is not None:
            x = augment(x)
        for parameter in parameters:  # what zero_grad does, without 20 us of bookkeeping
            parameter.grad = None
        if compiled is None or len(index) in compiled:
            slots[step].copy_(add_gradient(x, y.index_select(0, index), index))
        else:
            compiled.add(len(index))
            with context.compiling():
                slots[step].copy_(add_gradient(x, y.index_select(0, index), index))
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if on_step is not None:
            on_step(model, step + 1)
        context.images_trained += len(index)
        context.report(phase, step + 1, steps)
    if add_gradient.size is not None:
        context.notes.setdefault("micro_batch", {})[stream] = add_gradient.size
    context.keep_losses(model, losses)
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits float32 [N, K] of uint8 images [N, C, H, W], in eval mode; every module's own mode is put back.

    batch_size: images per forward pass; None means 2048, or fewer where they are large. Fewer, too, where so many do
    not fit into memory.
    """
    batch_size = batch_size or max(1, min(2048, PREDICT_VALUES // max(1, images[0].numel() if len(images) else 1)))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    out = in_parts(lambda part: model(to_float(part)).float(), images, batch_size)
    for module, training in modes:
        module.training = training
    return out
