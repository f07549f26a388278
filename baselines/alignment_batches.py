"""What every fine-tuning on an alignment set shares: its batches, its lookup from image to mask, its final check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, VabenchError
from harness.training import Batches, default_batches, uniform_batches

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.training import TrainRecipe


def alignment_batches(
    y: Tensor, index: Tensor, recipe: TrainRecipe, ratio: float, context: RunContext, stream: str = "finetune"
) -> Iterator[Tensor]:
    """Endless batches of exactly `recipe.batch_size` training indices, on the CPU, a fixed share alignment images.

    The first round(ratio * batch_size) of each batch run through epochs of `index` (an image may come twice in a batch
    where the set is smaller than that), the rest is drawn from all training images under `recipe.sampling`. An empty
    set, or one that holds every training image, leaves the recipe's sampling alone. Equal streams give equal batches.

    Args:
        y: int64 [N] labels of the training split. index: int64 [M] alignment images. ratio: share in [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"the share of alignment images in a batch must lie in [0, 1], got {ratio}")
    index = index.cpu()
    own = 0 if len(index) in (0, len(y)) else round(ratio * recipe.batch_size)
    parts: list[Batches] = []
    if own:
        generator = context.generator(f"{stream}/alignment")
        epochs = uniform_batches(len(index), own, generator)
        parts.append(_of_size((index[rows] for rows in epochs), own))
    if own < recipe.batch_size:
        rest = recipe.batch_size - own
        all_images = default_batches(y, recipe.with_(batch_size=rest), context.generator(stream))
        parts.append(_of_size(all_images, rest))
    while True:
        yield torch.cat([next(part) for part in parts])


def _of_size(batches: Batches, size: int) -> Batches:
    """The same stream of indices cut into pieces of equal size: short batches at the end of an epoch are filled up."""
    held = next(batches)
    while True:
        while len(held) < size:
            held = torch.cat([held, next(batches)])
        yield held[:size]
        held = held[size:]


def row_lookup(index: Tensor, n: int, device: torch.device) -> Tensor:
    """int64 [n]: the row of `index` that holds training image i, or -1."""
    lookup = torch.full((n,), -1, dtype=torch.int64, device=device)
    lookup[index.to(device)] = torch.arange(len(index), device=device)
    return lookup


def check_finite(model: nn.Module, what: str) -> nn.Module:
    """Return the model, or raise VabenchError if training has diverged to a weight that is not a number."""
    bad = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if bad:
        raise VabenchError(
            f"{what} diverged: {len(bad)} of the model's weights are not finite (first: {bad[0]}); "
            f"lower the penalty weight or the learning rate, or set clip_norm in the recipe"
        )
    return model
