"""CAIPI in its batch version (Teso, Kersting 2019): train on counterexamples with the marked pixels replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.alignment_batches import alignment_batches, check_finite, row_lookup
from baselines.mask_info import CAIPI as CAIPI_INFO
from baselines.overrides import Overrides
from harness.errors import ConfigError, NotApplicable
from harness.method import Method
from harness.training import Batches, default_batches, fit, predict

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.supervision import Task
    from harness.training import TrainRecipe

Fill = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
DONOR_DRAWS = 8  # candidates among which `transplant` looks for one that shows no object there


def _noise(images: Tensor, masks: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Independent uniform values 0..255."""
    return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator).to(images.device)


def _color(images: Tensor, masks: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """One uniformly random colour per image."""
    colours = torch.randint(0, 256, (*images.shape[:2], 1, 1), dtype=torch.uint8, generator=generator)
    return colours.to(images.device).expand_as(images)


def _mean(images: Tensor, masks: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The image's mean colour outside its mask (of the whole image where the mask covers it)."""
    outside = (~masks | masks.flatten(1).all(1)[:, None, None])[:, None].float()
    mean = (images.float() * outside).sum((2, 3), keepdim=True) / outside.sum((2, 3), keepdim=True)
    return mean.round().to(torch.uint8).expand_as(images)


def _swap(images: Tensor, masks: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The same pixels of a random corrected image of another class."""
    counts = torch.bincount(y.cpu())
    if int((counts > 0).sum()) < 2:
        raise NotApplicable("CAIPI's fill 'swap' takes pixels from another class, but the corrections show only one")
    order, start, own = y.cpu().argsort(stable=True), counts.cumsum(0) - counts, y.cpu()
    others = len(y) - counts[own]
    place = (torch.rand(len(y), generator=generator, dtype=torch.float64) * others).long()
    partner = order[torch.where(place < start[own], place, place + counts[own])]
    return images[partner.to(images.device)]


def _transplant(images: Tensor, masks: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The same pixels of another corrected image: of several drawn, the one whose own mask covers them least."""
    donor = _other_rows(len(y), generator).to(images.device)
    least = (masks[donor] & masks).flatten(1).sum(1)
    for _ in range(DONOR_DRAWS - 1):
        candidate = _other_rows(len(y), generator).to(images.device)
        overlap = (masks[candidate] & masks).flatten(1).sum(1)
        better = overlap < least
        donor, least = torch.where(better, candidate, donor), torch.where(better, overlap, least)
    return images[donor]


def _other_rows(n: int, generator: torch.Generator) -> Tensor:
    """For every row a uniformly drawn other one, int64 [n]."""
    if n < 2:
        raise NotApplicable("CAIPI takes these pixels from another corrected image, but there is only one")
    return (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n


def _with_objects(altered: Tensor, images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """`altered` with another image's marked pixels pasted at their own place into each image, with probability 1/2.

    Donors are drawn uniformly from the images with a mask that is not empty, never an image from itself: the only
    marked image of a set receives nothing.
    """
    marked = masks.flatten(1).any(1).cpu()
    donors, others = marked.nonzero().flatten(), marked.sum() - marked.long()
    if not bool((others > 0).any()):
        raise NotApplicable("CAIPI's fill 'paste' takes an object from another corrected image, but none shows one")
    place = (torch.rand(len(masks), generator=generator, dtype=torch.float64) * others).long()
    place += marked & (place >= marked.long().cumsum(0) - 1)  # step over the image itself
    donor = donors[place.clamp(max=len(donors) - 1)].to(images.device)
    given = ((torch.rand(len(masks), generator=generator) < 0.5) & (others > 0)).to(images.device)
    return torch.where((masks[donor] & given[:, None, None])[:, None], images[donor], altered)


FILLS: dict[str, Fill] = {
    "noise": _noise,
    "color": _color,
    "mean": _mean,
    "swap": _swap,
    "transplant": _transplant,
    "paste": _mean,
}


def counterexamples(images: Tensor, masks: Tensor, y: Tensor, fill: str, c: int, generator: torch.Generator) -> Tensor:
    """c altered copies of every image; every pixel outside the mask is the image's own.

    `paste` alone also writes outside it: after filling the mask with the mean colour it pastes, with probability 1/2,
    another marked image's object at its own place, so that the object appears under labels that never had it.

    Args:
        images: uint8 [N, C, H, W]. masks: bool [N, H, W]. y: int64 [N]. fill: a name in FILLS. c: copies, >= 1.

    Returns:
        uint8 [N * c, C, H, W], the c copies of an image side by side.
    """
    copies = []
    for _ in range(c):
        altered = torch.where(masks[:, None], FILLS[fill](images, masks, y, generator), images)
        copies.append(_with_objects(altered, images, masks, generator) if fill == "paste" else altered)
    return torch.stack(copies, 1).flatten(0, 1)


@dataclass(frozen=True)
class CAIPIConfig(Overrides):
    """c: counterexamples per image. fill: what replaces the marked pixels (FILLS). only_if_correct: only for images
    that the base model classifies correctly. start, ratio: as in RRR.
    """

    c: int = 3
    fill: str = "noise"
    only_if_correct: bool = True
    start: Literal["base", "scratch"] = "base"
    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c < 1:
            raise ConfigError(f"c, the number of counterexamples per image, must be at least 1, got {self.c}")
        if self.fill not in FILLS:
            raise ConfigError(f"there is no fill '{self.fill}'; known: {', '.join(FILLS)}")
        if self.start not in ("base", "scratch"):
            raise ConfigError(f"start '{self.start}' is not one of base, scratch")
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio must lie in [0, 1], got {self.ratio}")


class CAIPI(Method):
    """Every corrected image of a batch brings its c counterexamples with it, under the image's own label.

    The loss is the mean cross-entropy of the originals plus that of the counterexamples (weight 1 per sub-batch, as in
    Friedrich et al. 2023). Nothing to correct returns the base model unchanged.
    """

    info = CAIPI_INFO
    Config = CAIPIConfig
    grid = ({"c": 1}, {"c": 3}, {"c": 5})

    @classmethod
    def tuned(cls, params: dict[str, Any], settings: dict[str, Any], budget_steps: int) -> list[dict[str, Any]]:
        """One candidate per c; a row that trains from scratch gets the whole budget."""
        steps = {"steps": budget_steps} if params.get("start") == "scratch" else {}
        return [{**params, **steps, **override} for override in cls.grid]

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Return the repaired model, or `base` where no counterexample arises.

        Raises:
            VabenchError: training diverged. NotApplicable: a fill that needs a second image or class finds none.
        """
        config: CAIPIConfig = self.config
        index, masks = self._corrected(task, base, context)
        context.note(abstained=len(index) == 0, fill=config.fill, c=config.c, counterexamples=len(index) * config.c)
        if len(index) == 0:
            return base
        images, y = task.train.images, task.train.y
        made = counterexamples(images[index], masks, y[index], config.fill, config.c, context.generator("caipi"))
        from_scratch = config.start == "scratch"
        recipe = config.apply(context.base_recipe if from_scratch else context.finetune_recipe)
        model = context.fresh_model().to(context.device) if from_scratch else base
        stream = "scratch" if from_scratch else "finetune"
        batches = self._batches(task, context, index, recipe, stream)
        context.note(
            start=config.start,
            ratio=None if from_scratch else config.ratio,
            reduction="mean over originals + mean over counterexamples",
            mask_fraction=float(masks.double().mean()),
        )
        fit(
            model,
            torch.cat([images, made]),
            torch.cat([y, y[index].repeat_interleave(config.c)]),
            recipe.with_(steps=recipe.total_steps(len(y))),  # counterexamples buy no additional steps
            context,
            loss=_SubBatchLoss(len(y)),
            batches=batches,
            stream=stream,
        )
        return check_finite(model, f"CAIPI with fill '{config.fill}'")

    def _corrected(self, task: Task, base: nn.Module, context: RunContext) -> tuple[Tensor, Tensor]:
        """Index [M] and masks [M, H, W] of the images that get counterexamples."""
        y = task.train.y
        index, masks = task.corrections.index.to(y.device), task.corrections.masks.to(y.device)
        marked = masks.flatten(1).any(1)
        if self.config.fill == "paste" and bool(marked.any()):  # unmarked images receive another image's object
            marked = torch.ones_like(marked)
        keep = marked.clone()
        if self.config.only_if_correct and bool(marked.any()):
            keep &= predict(base, task.train.images[index]).argmax(1) == y[index]
        context.note(excluded_without_mask=int((~marked).sum()), excluded_wrong=int((marked & ~keep).sum()))
        if not bool(masks[keep].any()):  # nothing marked is left
            keep = torch.zeros_like(keep)
        return index[keep], masks[keep]

    def _batches(self, task: Task, context: RunContext, index: Tensor, recipe: TrainRecipe, stream: str) -> Batches:
        """Batches of the repair, each followed by the counterexamples of its images."""
        y = task.train.y
        if self.config.start == "scratch":
            originals = default_batches(y, recipe, context.generator(stream))
        else:
            originals = alignment_batches(y, task.corrections.index, recipe, self.config.ratio, context, stream)
        return _with_counterexamples(originals, row_lookup(index, len(y), torch.device("cpu")), self.config.c)


def _with_counterexamples(originals: Batches, lookup: Tensor, c: int) -> Iterator[Tensor]:
    """Append to each batch the positions, behind the N training images, of its images' c counterexamples.

    All of it on the CPU: a batch's size depends on how many of its images have counterexamples.
    """
    copies = torch.arange(c)
    for batch in originals:
        rows = lookup[batch]
        rows = rows[rows >= 0]
        yield torch.cat([batch, len(lookup) + (rows[:, None] * c + copies).flatten()])


class _SubBatchLoss:
    """Mean cross-entropy of the originals (positions below n) + mean cross-entropy of the counterexamples."""

    def __init__(self, n: int):
        self.n = n

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        losses, original = F.cross_entropy(model(x), y, reduction="none"), index < self.n
        weight = torch.where(original, 1.0 / original.sum().clamp(min=1), 1.0 / (~original).sum().clamp(min=1))
        return (losses * weight).sum()
