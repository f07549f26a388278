"""Path RRR: penalise what filling the marked object in does to the logits, not how they slope where the object is.

The local slope says little about a large smooth object: a model reads it by what it is, and pixels inside it may have
an input gradient like any other. The derivative along the path from the image to one without the object integrates to
the object's whole effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from baselines.alignment_batches import alignment_batches, check_finite, row_lookup
from baselines.mask_info import PATH_RRR as PATH_RRR_INFO
from baselines.overrides import Overrides
from baselines.rrr import PenalisedLoss, RRRConfig, _collapse, _scale_facts, choose_lam, input_gradient
from harness.errors import ConfigError
from harness.method import Method
from harness.training import Augmentation, cross_entropy, fit, predict, to_float

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.supervision import Task

LAM, LAM_GRID = 10.0, (1.0, 10.0, 100.0)  # multiples of the first batch's penalty, those of the image presets


def mean_outside(x: Tensor, masks: Tensor) -> Tensor:
    """Mean colour of each image outside its mask, or of all of it where the mask covers everything.

    Args:
        x: float [B, C, H, W]. masks: bool [B, H, W].

    Returns:
        float [B, C, 1, 1].
    """
    outside = (~masks | masks.flatten(1).all(1)[:, None, None])[:, None].to(x.dtype)
    return (x * outside).sum((2, 3), keepdim=True) / outside.sum((2, 3), keepdim=True)


def fill_direction(x: Tensor, masks: Tensor) -> Tensor:
    """From each image to the one with its marked pixels in the mean colour outside: float [B, C, H, W], 0 outside."""
    return (mean_outside(x, masks) - x) * masks[:, None]


def paste_direction(x: Tensor, donors: Tensor, masks: Tensor) -> Tensor:
    """From each image to the one with the donor's marked pixels pasted at their place: float [B, C, H, W].

    Args:
        x, donors: float [B, C, H, W]. masks: bool [B, H, W], the donors' own.
    """
    return (donors - x) * masks[:, None]


def path_derivative(
    model: nn.Module,
    x: Tensor,
    direction: Tensor,
    y: Tensor | None = None,
    *,
    create_graph: bool = True,
    layers: list[nn.Module] | Literal["find"] | None = "find",
) -> Tensor:
    """d/da S(x + a * direction) at a = 0, float32 [B], differentiable in the weights where `create_graph`.

    S is the logit margin: z_1 - z_0 for two classes, else the label's logit minus the mean logit. Reverse mode: with
    a second derivative it is faster here than forward mode (docs/path_rrr.md). BatchNorm uses its running statistics.

    Args:
        x, direction: float [B, C, H, W]. y: int64 [B], needed with more than two classes. layers: as `input_gradient`.
    """
    gradient = input_gradient(model, x, "margin", y=y, create_graph=create_graph, layers=layers)
    return (gradient * direction).flatten(1).sum(1)


class PathLoss(PenalisedLoss):
    """Cross-entropy of the batch + lambda * mean over its alignment samples of the squared path derivative.

    The derivative is taken at x + a * direction, a drawn from U(0, 1) per sample and step. Images with an empty mask
    contribute exactly 0, or with `donors` (uint8 [D, C, H, W] with masks bool [D, H, W]) the path on which a donor's
    object is pasted into them. `draws` gives a and the donors; the rest is PenalisedLoss.
    """

    def __init__(
        self,
        lookup: Tensor,
        masks: Tensor,
        lam: float,
        draws: torch.Generator,
        *,
        normalise: str = "initial",
        warmup: int = 0,
        donors: tuple[Tensor, Tensor] | None = None,
        augment: Augmentation | None = None,
    ):
        self.draws, self.donors = draws, donors
        super().__init__(lookup, masks, lam, "margin", normalise, warmup, augment)

    def _carry_penalty(self) -> Tensor:
        return super()._carry_penalty() if self.donors is None else self.lookup >= 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The loss of one step, a scalar."""
        lam, chosen = self._next_lam(), self._chosen(index)
        error = cross_entropy(model, x, y, index)
        if lam == 0:
            return error
        rows = self.lookup[index]
        aligned, marked = rows >= 0, self._marked[rows]
        masks = self._masks(rows, chosen)  # asked for in every step, so that it moves along with the images
        if len(chosen) == 0:
            return error
        own = x[chosen]
        direction = self._direction(own, masks, marked[chosen])
        a = torch.rand(len(chosen), generator=self.draws).to(x.device, non_blocking=True)[:, None, None, None]
        layers = self._mlp(model, x)
        values = path_derivative(model, own + a * direction, direction, y[chosen], layers=layers).square()
        mean = values.sum() / aligned.sum()
        return error + lam * self._scale(mean) * mean

    def _direction(self, x: Tensor, masks: Tensor, marked: Tensor) -> Tensor:
        direction = fill_direction(x, masks)
        if self.donors is None:
            return direction
        images, donor_masks = self.donors
        row = torch.randint(len(images), (len(x),), generator=self.draws).to(x.device, non_blocking=True)
        pasted = paste_direction(x, to_float(images[row]), donor_masks[row])
        return torch.where(marked[:, None, None, None], direction, pasted)


@dataclass(frozen=True)
class PathRRRConfig(Overrides):
    """lam: penalty weight >= 0, None takes the preset's where its penalties are scaled in the same way, else 10.

    partner: images with an empty mask get a path too, on which another alignment image's object is pasted into them.
    normalise: `initial` divides by the first penalty that is not 0. ratio, warmup: as in RRR.
    """

    lam: float | None = None
    partner: bool = False
    normalise: Literal["none", "initial"] = "initial"
    ratio: float = 0.5
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam is not None and not (self.lam >= 0 and math.isfinite(self.lam)):
            raise ConfigError(f"lam must be a finite number that is not negative, got {self.lam}")
        if not isinstance(self.partner, bool):
            raise ConfigError(f"partner must be true or false, got {self.partner!r}")
        if self.normalise not in ("none", "initial"):
            raise ConfigError(f"normalise '{self.normalise}' is not one of none, initial")
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio must lie in [0, 1], got {self.ratio}")
        if self.warmup < 0:
            raise ConfigError(f"warmup must not be negative, got {self.warmup}")


def _lam_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The preset's lambdas where they are multiples of a first penalty: on any other scale they mean nothing here."""
    if (settings.get("penalty") or {}).get("normalise") == "initial":
        return {"lam": LAM, "lam_grid": LAM_GRID, **settings}
    return {"lam": LAM, "lam_grid": LAM_GRID}


class PathRRR(Method):
    """Penalise the derivative along the path that fills the marked object in. Empty masks return the base model."""

    info = PATH_RRR_INFO
    Config = PathRRRConfig
    grid = tuple({"lam": lam} for lam in LAM_GRID)

    @classmethod
    def tuned(cls, params: dict[str, Any], settings: dict[str, Any], budget_steps: int) -> list[dict[str, Any]]:
        """One candidate per lambda of the grid."""
        return [{**params, "lam": float(lam)} for lam in _lam_settings(settings)["lam_grid"]]

    @classmethod
    def settled(cls, params: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Config with the preset's lambda in it."""
        values = super().settled(params, settings)
        return {**values, "lam": float(_lam_settings(settings)["lam"])} if values["lam"] is None else values

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Return the repaired model, or `base` where no pixel is marked.

        Raises:
            VabenchError: training diverged.
        """
        config: PathRRRConfig = self.config
        corrections = task.corrections
        context.note(abstained=corrections.empty())
        if corrections.empty():
            return base
        images, y = task.train.images, task.train.y
        index, masks = corrections.index.to(y.device), corrections.masks.to(y.device)
        recipe, stream = config.apply(context.finetune_recipe), "finetune"
        everything = len(index) == len(y)  # a preset may name another lambda for that
        lam = choose_lam(RRRConfig(lam=config.lam), _lam_settings(context.settings), everything=everything)
        marked = masks.flatten(1).any(1)
        loss = PathLoss(
            row_lookup(index, len(y), y.device),
            masks,
            lam,
            context.generator(f"{stream}/path"),
            normalise=config.normalise,
            warmup=config.warmup,
            donors=(images[index[marked]], masks[marked]) if config.partner else None,
            augment=recipe.augmentation(context.generator(f"{stream}/shift")),
        )
        batches = alignment_batches(y, index, recipe, config.ratio, context, stream)
        fit(base, images, y, recipe, context, loss=loss, batches=batches, stream=stream)
        check_finite(base, f"path RRR at lambda {lam:g}")
        logits = predict(base, images[index])
        facts = {
            **_scale_facts(loss, logits.shape[1]),
            "reduction": "mean over the batch's alignment samples of the squared path derivative",
        }
        context.note(
            ratio=config.ratio,
            steps=recipe.total_steps(len(y)),
            partner=config.partner,
            **facts,
            **_collapse(logits, y[index]),
        )
        return base
