"""A method: only the last layer is trained."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from harness.context import RunContext
from harness.method import Method
from harness.supervision import Task
from harness.training import class_weights, fit, weighted_batches
from stranger import HEAD_ONLY


@dataclass(frozen=True)
class HeadOnlyConfig:
    """Learning rate of the last layer."""

    lr: float = 0.05


class HeadOnly(Method):
    """Freezes the features and goes on with the head."""

    info = HEAD_ONLY
    Config = HeadOnlyConfig
    grid = ({"lr": 0.01}, {"lr": 0.05}, {"lr": 0.1})

    def fit(self, task: Task, base: Any, context: RunContext) -> nn.Module:
        """Train the head on class-balanced batches."""
        for parameter in base.backbone.parameters():
            parameter.requires_grad_(False)
        recipe = context.finetune_recipe.with_(lr=self.config.lr)
        weights = class_weights(task.train.y)
        batches = weighted_batches(weights, recipe.batch_size, context.generator("head"))
        return fit(base, task.train.images, task.train.y, recipe, context, batches=batches)
