"""Stage 5 without a language model: verdicts on segments from simulated critics.

A verdict is 1 = spurious (penalise), 0 = relevant, -1 = none (an empty segment, or a critic's answer that could not be
used: no penalty, counted).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import methods
from harness.errors import ConfigError
from harness.masks import NO_VERDICT, SPURIOUS, MaskSet, MaskSource, mask_from_verdicts, segment_truth

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.supervision import Task


class Oracle(MaskSource):
    """The segments' truth (protocol.md): a critic that makes no errors. It reads the ground-truth masks."""

    info = methods.ORACLE

    @property
    def params(self) -> dict[str, Any]:
        """None: the truth of a segment has one definition."""
        return {}

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Judge every non-empty segment."""
        segments = alignment.segments
        truth = segment_truth(segments, alignment.maps, alignment.split.masks(alignment.index))
        verdicts = self.judge(truth, context)
        return MaskSet(alignment.index, mask_from_verdicts(segments, verdicts), verdicts)

    def judge(self, truth: Tensor, context: RunContext) -> Tensor:
        """Verdicts int8 [N, J] on segments of this truth (-1 for an empty segment)."""
        return truth


class NoisyOracle(Oracle):
    """The oracle with independent errors per segment.

    fpr: P(verdict 1 | truth 0). fnr: P(verdict 0 | truth 1). All noisy oracles of one seed compare the same uniform
    draws with their rates, so a curve over the rates is not blurred by new noise at every point.
    """

    info = methods.NOISY_ORACLE

    def __init__(self, fpr: float = 0.13, fnr: float = 0.13):
        for name, rate in (("fpr", fpr), ("fnr", fnr)):
            if not 0 <= rate <= 1:
                raise ConfigError(f"noisy_oracle: {name} is a rate in [0, 1], got {rate}")
        self.fpr, self.fnr = float(fpr), float(fnr)

    @property
    def params(self) -> dict[str, Any]:
        """The two error rates."""
        return {"fpr": self.fpr, "fnr": self.fnr}

    def judge(self, truth: Tensor, context: RunContext) -> Tensor:
        """Flip the truth at the two rates."""
        draws = torch.rand(truth.shape, generator=context.generator("noisy_oracle"), dtype=torch.float64)
        rate = torch.where(truth == SPURIOUS, self.fnr, self.fpr)
        flip = (draws.to(truth.device) < rate) & (truth != NO_VERDICT)
        return torch.where(flip, 1 - truth, truth)
