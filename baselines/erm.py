"""ERM and its two companions: more steps on the repair's batches, and training data without the shortcut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.alignment_batches import alignment_batches
from baselines.group_info import ERM, ERM_CONTINUE, ERM_DECORRELATED
from baselines.overrides import WEIGHT_DECAY_GRID, Overrides
from harness.errors import ConfigError
from harness.method import Method
from harness.training import fit

if TYPE_CHECKING:
    from torch import nn

    from harness.context import RunContext
    from harness.supervision import Task


class Erm(Method):
    """The base model unchanged. It has no grid: every other row is compared with this very model."""

    info = ERM

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Return `base`."""
        return base


@dataclass(frozen=True)
class ContinueConfig(Overrides):
    """ratio: share of each batch that comes from the alignment set, as in the repair that this row controls for."""

    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio must lie in [0, 1], got {self.ratio}")


class ErmContinue(Method):
    """Fine-tune the base model on the repair's batches with plain cross-entropy: the repair at lambda 0."""

    info = ERM_CONTINUE
    Config = ContinueConfig
    grid = ({"lr": None}, {"lr": 0.03}, {"lr": 0.01})

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Train `base` further under `context.finetune_recipe`; equal, bit for bit, to the repair at lambda 0."""
        config: ContinueConfig = self.config
        recipe = config.apply(context.finetune_recipe)
        train = task.train
        batches = alignment_batches(train.y, task.corrections.index, recipe, config.ratio, context)
        return fit(base, train.images, train.y, recipe, context, batches=batches, stream="finetune")


class ErmDecorrelated(Method):
    """The base recipe on training images whose spurious attribute says nothing about the label."""

    info = ERM_DECORRELATED
    Config = Overrides
    grid: ClassVar = WEIGHT_DECAY_GRID
    from_scratch: ClassVar[bool] = True

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Train a fresh model on `task.decorrelated`. Raises NotApplicable where the suite cannot give it."""
        data = task.decorrelated
        model, recipe = context.fresh_model().to(context.device), self.config.apply(context.base_recipe)
        return fit(model, data.images, data.y, recipe, context)
