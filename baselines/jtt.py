"""JTT (Liu et al. 2021): train briefly, then train a fresh model with the errors of the first one up-weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.group_info import JTT
from baselines.overrides import Overrides
from harness.errors import ConfigError
from harness.method import Method
from harness.training import TrainRecipe, cross_entropy, default_batches, fit, predict

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.supervision import SplitView, Task


@dataclass(frozen=True)
class JttConfig(Overrides):
    """stage1_epochs: T. lambda_up: weight of the error set.

    convention: `official` appends the error set lambda_up times (1 + lambda_up copies of an error), `balancing` gives
    lambda_up copies (Idrissi et al. 2022). errors: `final` = predictions in eval mode after stage 1; `logged` = those
    made in train mode during the last epoch, while the weights move (the published code). steps: both stages together;
    None: stage 2 has the base recipe's length, and stage 1 comes on top.

    Published (T, lambda_up, lr, weight decay): Waterbirds 60, 100, 1e-5, 1; CelebA 1, 50, 1e-5, 0.1. With weak
    regularisation the error set of such long first stages is empty; the defaults here suit small suites.
    """

    stage1_epochs: int = 2
    lambda_up: int = 5
    convention: Literal["official", "balancing"] = "official"
    errors: Literal["final", "logged"] = "final"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage1_epochs < 1 or self.lambda_up < 1:
            raise ConfigError(
                f"stage1_epochs and lambda_up must be at least 1, got {self.stage1_epochs} and {self.lambda_up}"
            )
        if self.convention not in ("official", "balancing"):
            raise ConfigError(f"convention must be 'official' or 'balancing', got '{self.convention}'")
        if self.errors not in ("final", "logged"):
            raise ConfigError(f"errors must be 'final' or 'logged', got '{self.errors}'")


class LoggedPredictions:
    """Cross-entropy that remembers the latest prediction for every training image; unseen ones count as correct."""

    mean_over_images = True  # a prediction that is logged twice is the same one

    def __init__(self, y: Tensor):
        self.predictions = y.clone()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the batch."""
        logits = model(x)
        self.predictions[index] = logits.detach().argmax(1)
        return F.cross_entropy(logits, y)


def upweighted(errors: Tensor, lambda_up: int, convention: Literal["official", "balancing"]) -> Tensor:
    """Training indices with copies of the errors (bool [N]): 1 + lambda_up (`official`) or lambda_up (`balancing`)."""
    everything = torch.arange(len(errors), device=errors.device)
    kept = everything if convention == "official" else everything[~errors]
    return torch.cat([kept, everything[errors].repeat(lambda_up)])


class Jtt(Method):
    """Two trainings from the same initialisation. After `fit`, `audit_index["error_set"]` holds the error set."""

    info = JTT
    Config = JttConfig
    from_scratch: ClassVar[bool] = True
    grid = (
        {"stage1_epochs": 2, "lambda_up": 5},
        {"stage1_epochs": 5, "lambda_up": 5},
        {"stage1_epochs": 5, "lambda_up": 20},
    )

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Train twice. The error set's size and classes are noted; its groups are not read here."""
        config: JttConfig = self.config
        train = task.train
        first, second = self.recipes(context.base_recipe, len(train))
        errors = self.error_set(train, first, context)
        index = errors.nonzero().flatten()
        self.audit_index = {"error_set": index}
        histogram = torch.bincount(train.y[index], minlength=task.num_classes).tolist()
        context.note(error_set_size=len(index), error_set_classes=dict(zip(task.class_names, histogram, strict=True)))
        if not len(index):
            context.note(warning="JTT's error set is empty: stage 2 repeats the training of the base model")
        pool = upweighted(errors, config.lambda_up, config.convention)
        # The base model's own stream: an empty error set gives the base model again, bit for bit.
        batches = default_batches(train.y, second, context.generator("base", "init"), pool)
        model = context.fresh_model().to(context.device)
        return fit(model, train.images, train.y, second, context, batches=batches, stream="base", axis="init")

    def recipes(self, base: TrainRecipe, n: int) -> tuple[TrainRecipe, TrainRecipe]:
        """The recipes of both stages on n training images. Raises ConfigError where stage 1 eats all the steps."""
        config: JttConfig = self.config
        recipe = config.apply(base)
        first = recipe.with_(epochs=config.stage1_epochs)
        if config.steps is None:
            return first, recipe
        left = config.steps - first.total_steps(n)
        if left < 1:
            raise ConfigError(
                f"jtt: stage1_epochs={config.stage1_epochs} takes {first.total_steps(n)} of {config.steps} steps and "
                f"leaves none for stage 2; raise steps or lower stage1_epochs"
            )
        return first, recipe.with_(steps=left)

    def error_set(self, train: SplitView, recipe: TrainRecipe, context: RunContext) -> Tensor:
        """Training images that the stage-1 model gets wrong, bool [N]."""
        model = context.fresh_model().to(context.device)
        logged = LoggedPredictions(train.y) if self.config.errors == "logged" else None
        loss = logged or cross_entropy
        fit(model, train.images, train.y, recipe, context, loss=loss, stream="jtt/stage1")
        if logged is not None:
            return logged.predictions != train.y
        return predict(model, train.images).argmax(1) != train.y
