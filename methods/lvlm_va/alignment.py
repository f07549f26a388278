"""Stages 6 and 7: the verdicts' correction masks and the fine-tuning with RRR's penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import methods
from baselines.rrr import RRR
from harness.errors import NotApplicable
from harness.masks import RELEVANT, SPURIOUS

if TYPE_CHECKING:
    from torch import nn

    from harness.context import RunContext
    from harness.supervision import Task


class LVLMVA(RRR):
    """(Critic and judge: verdicts on segments) x RRR. Config and grid are RRR's."""

    info = methods.LVLM_VA

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Return the repaired model, or `base` where the critic called nothing spurious.

        Raises:
            NotApplicable: the mask source judges no segments (use `rrr` with it).
            VabenchError: training diverged.
        """
        verdicts = task.corrections.verdicts
        if verdicts is None:
            raise NotApplicable(
                "lvlm_va repairs from verdicts on segments, but this mask source gives masks only; pair it with rrr"
            )
        context.note(
            verdicts_spurious=int((verdicts == SPURIOUS).sum()), verdicts_relevant=int((verdicts == RELEVANT).sum())
        )
        return super().fit(task, base, context)
