"""DFR (Kirichenko et al. 2023): retrain the last layer on group-balanced validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from baselines.group_info import DFR
from baselines.groups import balanced_subset, group_sizes
from harness.errors import ComponentError, ConfigError, NotApplicable, VabenchError
from harness.method import Method
from harness.training import to_float

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler

    from harness.context import RunContext
    from harness.supervision import Task

Features = Callable[[Tensor], Tensor]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DfrConfig:
    """c: inverse strength of the l1 penalty on the summed loss; None: chosen from `c_values` by worst-group accuracy on
    one half of val_groups, trained on the balanced other half. refits: group-balanced subsets of all of val_groups
    whose coefficients are averaged. There are no gradient steps, hence no `steps`. The c_values are the published ones.
    """

    c: float | None = None
    c_values: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    refits: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "c_values", tuple(self.c_values))
        if self.refits < 1:
            raise ConfigError(f"refits must be at least 1, got {self.refits}")
        if not self.c_values or any(not c > 0 for c in (*self.c_values, 1.0 if self.c is None else self.c)):
            raise ConfigError(f"c and c_values must be positive, got c={self.c} and c_values={self.c_values}")


@torch.no_grad()
def embed(model: nn.Module, images: Tensor, batch_size: int = 2048) -> Floats:
    """Penultimate features, float64 [N, D], of uint8 images [N, C, H, W], in eval mode and without augmentation."""
    features = cast("Features", model.features)
    parts = [features(to_float(part)).double().cpu() for part in images.split(batch_size)]
    return np.asarray(torch.cat(parts).numpy())


def halves(g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random half of every group and the rest, as int64 indices; an odd image goes to the first half."""
    order = torch.randperm(len(g), generator=generator)
    members = [order[g[order] == k] for k in torch.unique(g)]
    middle = [(len(m) + 1) // 2 for m in members]
    pairs = [(m[:i], m[i:]) for m, i in zip(members, middle, strict=True)]
    return torch.cat([first for first, _ in pairs]), torch.cat([second for _, second in pairs])


class Dfr(Method):
    """Retrain `base.head` on `base.features`; the features themselves stay as they are."""

    info = DFR
    Config = DfrConfig
    grid = ({"c": 1.0}, {"c": 0.3}, {"c": 0.1})

    def __init__(self, config: DfrConfig | None = None):
        super().__init__(config)
        # Here, where no phase is timed and no other row waits for it: scikit-learn takes over a second to import.
        from baselines import l1_regression

        self._regression = l1_regression

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Replace the head's parameters.

        Raises:
            NotApplicable: no class has two groups in val_groups, or a class is missing there.
            ComponentError: the model has no `features` and linear `head`.
            VabenchError: its features are not finite.
        """
        head = getattr(base, "head", None)
        if not hasattr(base, "features") or not isinstance(head, nn.Linear):
            raise ComponentError(f"dfr needs a model with features() and a linear head, got {type(base).__name__}")
        val = task.val_groups
        y, g = val.y.cpu(), val.groups.cpu()
        group_sizes(y, g, task.group_names, context, who=self.info.name, split="val_groups")
        if len(torch.unique(y)) < task.num_classes:
            raise NotApplicable("dfr trains the last layer on val_groups, where at least one class has no image")
        images = task.train.images
        x, scaler = context.once("dfr/features", lambda: self._features(base, images, val.images))
        c = self.config.c if self.config.c is not None else self.tune(x, y, g, task.num_classes, context)
        weight, bias = self.average(x, y, g, task.num_classes, c, context)
        context.note(c=c, refits=self.config.refits)
        weight = weight / scaler.scale_  # w (f - mean) / scale + b, folded into the layer
        write_head(head, weight, bias - weight @ scaler.mean_)
        return base

    def _features(self, base: nn.Module, train: Tensor, val: Tensor) -> tuple[Floats, StandardScaler]:
        """Features of `val`, standardised as those of `train` are, and their scaler."""
        seen, held = embed(base, train), embed(base, val)
        if not (np.isfinite(seen).all() and np.isfinite(held).all()):
            raise VabenchError("dfr: features of the base model are not finite: its training diverged")
        scaler = self._regression.StandardScaler().fit(seen)
        return scaler.transform(held), scaler

    def tune(self, x: Floats, y: Tensor, g: Tensor, num_classes: int, context: RunContext) -> float:
        """The c with the best worst-group accuracy on a held-out half; ties by average group accuracy, then small c."""
        generator = context.generator("dfr/halves")
        first, second = halves(g, generator)
        chosen = first[balanced_subset(g[first], generator)]
        scores = []
        for c in self.config.c_values:
            weight, bias = self._regression.fit_head(
                x[chosen], y[chosen].numpy(), num_classes, c, context.seed("dfr/tune") % 2**31
            )
            hits = (x[second] @ weight.T + bias).argmax(1) == y[second].numpy()
            accuracies = [float(hits[(g[second] == k).numpy()].mean()) for k in torch.unique(g[second])]
            scores.append((min(accuracies), float(np.mean(accuracies)), -c))
        context.note(tuned_wga={f"{-s[2]:g}": s[0] for s in scores})
        return float(-max(scores)[2])

    def average(
        self, x: Floats, y: Tensor, g: Tensor, num_classes: int, c: float, context: RunContext
    ) -> tuple[Floats, Floats]:
        """Mean weights [K, D] and biases [K] over the refits."""
        generator = context.generator("dfr/subsets")
        seed = context.seed("dfr/refits") % 2**31
        heads = []
        for done in range(self.config.refits):
            subset = balanced_subset(g, generator)
            heads.append(self._regression.fit_head(x[subset], y[subset].numpy(), num_classes, c, seed))
            context.report("align", done + 1, self.config.refits)
        context.note(subset_size=len(subset))
        return np.mean([w for w, _ in heads], axis=0), np.mean([b for _, b in heads], axis=0)


@torch.no_grad()
def write_head(head: nn.Linear, weight: Floats, bias: Floats) -> None:
    """Set the layer's weights [K, D] and biases [K] in place."""
    if head.bias is None:
        raise ComponentError("dfr needs a linear head with a bias")
    head.weight.copy_(torch.as_tensor(weight))
    head.bias.copy_(torch.as_tensor(bias))
