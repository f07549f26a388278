"""GroupDRO (Sagawa et al. 2020): minimise the worst mixture of group losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.group_info import GROUP_DRO
from baselines.groups import group_sizes
from baselines.overrides import Overrides
from harness.errors import ConfigError
from harness.method import Method
from harness.training import class_weights, fit, weighted_batches

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.supervision import Task


@dataclass(frozen=True)
class GroupDroConfig(Overrides):
    """eta: step size of the group weights. adjustment: C of the size adjustment C/sqrt(n), 0 = none.

    reweight_groups: batches in which every group is equally likely, as in both published implementations; False: the
    recipe's own batches. Published: eta 0.01, C 0; Waterbirds lr 1e-3 and weight decay 1e-4, or 1e-5 and 1.
    """

    eta: float = 0.01
    adjustment: float = 0.0
    reweight_groups: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eta > 0:
            raise ConfigError(f"eta must be positive, got {self.eta}")
        if not self.adjustment >= 0:
            raise ConfigError(f"adjustment must not be negative, got {self.adjustment}")


class RobustLoss:
    """sum_g q_g loss_g with q_g <- q_g exp(eta (loss_g + C/sqrt(n_g))), normalised (Sagawa et al. 2020, algorithm 1).

    Only groups in the batch are updated and weigh in; empty groups have q = 0. Nothing leaves the device.
    """

    def __init__(self, groups: Tensor, sizes: Tensor, eta: float, adjustment: float):
        self.eta = eta
        self.member = F.one_hot(groups, len(sizes)).to(torch.float32)  # [N, G], made once: a batch takes its rows
        self.adjustment = adjustment / sizes.clamp(min=1).to(torch.float32).sqrt() if adjustment else None
        self.log_q = torch.log((sizes > 0).to(torch.float32) / (sizes > 0).sum())

    @property
    def q(self) -> Tensor:
        """Group weights, float32 [G], summing to 1."""
        return self.log_q.exp()

    def update(self, losses: Tensor, present: Tensor | None) -> None:
        """Move q by the mean losses float [G] of the groups in the batch, `present` bool [G] (None: all of them)."""
        step = losses.detach() if self.adjustment is None else losses.detach() + self.adjustment
        step = step if present is None else torch.where(present, step, 0.0)
        self.log_q = torch.log_softmax(self.log_q + self.eta * step, 0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The robust loss of one batch, after the update of q."""
        losses = F.cross_entropy(model(x), y, reduction="none")
        member = self.member.index_select(0, index)
        counts = member.sum(0)
        # No scatter: deterministic on CUDA. No matrix product: autocast would round the losses to bfloat16.
        means = (losses[:, None] * member).sum(0) / counts.clamp(min=1)
        # Without an adjustment, a loss of 0 moves nothing: there is no need to ask who is absent.
        self.update(means, None if self.adjustment is None else counts > 0)
        return (self.q * means).sum()


class GroupDro(Method):
    """Train a fresh model under the robust loss."""

    info = GROUP_DRO
    Config = GroupDroConfig
    from_scratch: ClassVar[bool] = True
    grid = ({"eta": 0.001}, {"eta": 0.01}, {"eta": 0.1})

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Train from scratch; the final weights are noted. Raises NotApplicable where no class has two groups."""
        config: GroupDroConfig = self.config
        train = task.train
        recipe = config.apply(context.base_recipe)
        groups = train.groups
        sizes = group_sizes(train.y, groups, task.group_names, context, who=self.info.name, split="train")
        loss = RobustLoss(groups, sizes, config.eta, config.adjustment)
        batches = None
        if config.reweight_groups:
            generator = context.generator("batches")
            batches = weighted_batches(class_weights(groups), recipe.batch_size, generator)
        model = context.fresh_model().to(context.device)
        fit(model, train.images, train.y, recipe, context, loss=loss, batches=batches)
        context.note(final_q=dict(zip(task.group_names, loss.q.tolist(), strict=True)))
        return model
