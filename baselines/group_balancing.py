"""Data balancing (Idrissi et al. 2022): subsample or resample, by group or by class, then train from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from baselines.group_info import RWG, RWY, SUBG, SUBY
from baselines.groups import balanced_subset, group_sizes
from baselines.overrides import WEIGHT_DECAY_GRID, Overrides
from harness.method import Method
from harness.training import class_weights, default_batches, fit, weighted_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.context import RunContext
    from harness.supervision import Task
    from harness.training import Batches, TrainRecipe


class Balancing(Method):
    """Balance the training images over `by_group` groups or classes, by subset (`subsample`) or by sampler.

    Idrissi et al. use SGD with lr 1e-5..1e-3, weight decay 1e-4..1 and up to 360 epochs on Waterbirds; here the
    optimiser and the number of steps are those of the base model.
    """

    Config = Overrides
    grid: ClassVar = WEIGHT_DECAY_GRID
    from_scratch: ClassVar[bool] = True
    by_group: ClassVar[bool]
    subsample: ClassVar[bool]

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Train a fresh model on balanced batches. Raises NotApplicable where groups cannot be balanced (rho = 1)."""
        train = task.train
        recipe = self.config.apply(context.base_recipe)
        labels = train.y
        if self.by_group:
            labels = train.groups
            group_sizes(train.y, labels, task.group_names, context, who=self.info.name, split="train")
        images, y = train.images, train.y
        subset = self.subset(labels, context)
        if subset is not None:
            recipe = recipe.with_(steps=recipe.total_steps(len(y)))  # as many as on all images
            images, y, labels = images[subset], y[subset], labels[subset]
        batches = self.batches(labels, recipe, context)
        return fit(context.fresh_model().to(context.device), images, y, recipe, context, batches=batches)

    def subset(self, labels: Tensor, context: RunContext) -> Tensor | None:
        """The training indices that a method that subsamples keeps, int64; None: all images."""
        if not self.subsample:
            return None
        found = balanced_subset(labels, context.generator("subset"))
        context.note(subset_size=len(found))
        return found

    def batches(self, labels: Tensor, recipe: TrainRecipe, context: RunContext) -> Batches:
        """Endless index batches, every label equally frequent. labels: int64 [N], groups or classes of what is kept."""
        generator = context.generator("batches")
        if not self.subsample:
            return weighted_batches(class_weights(labels), recipe.batch_size, generator)
        # A class-balanced recipe would undo the balance where classes have different numbers of groups.
        return default_batches(labels, recipe.with_(sampling="uniform"), generator)


class SubG(Balancing):
    """SUBG: the smallest non-empty group's size from every group, one subset for the whole run."""

    info = SUBG
    by_group, subsample = True, True


class SubY(Balancing):
    """SUBY: the smallest class's size from every class, one subset for the whole run."""

    info = SUBY
    by_group, subsample = False, True


class RwG(Balancing):
    """RWG: a sampler with probability 1/(group size), with replacement; the loss is the ordinary mean."""

    info = RWG
    by_group, subsample = True, False


class RwY(Balancing):
    """RWY: a sampler with probability 1/(class size), with replacement; the loss is the ordinary mean."""

    info = RWY
    by_group, subsample = False, False
