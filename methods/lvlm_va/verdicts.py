"""Stage 5 without a language model: verdicts on segments from simulated critics.

A verdict is 1 = spurious (penalise), 0 = relevant, -1 = none (an empty segment, or a critic's answer that could not be
used: no penalty, counted). `noisy_oracle` errs independently, `repeated_oracle` is asked several times and repeats its
errors, `systematic_oracle` errs on certain segments only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import methods
from harness.errors import ConfigError
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, MaskSet, MaskSource, mask_from_verdicts, segment_truth

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.segment import Segments
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
        _check_rates(self.info.name, fpr=fpr, fnr=fnr)
        self.fpr, self.fnr = float(fpr), float(fnr)

    @property
    def params(self) -> dict[str, Any]:
        """The two error rates."""
        return {"fpr": self.fpr, "fnr": self.fnr}

    def judge(self, truth: Tensor, context: RunContext) -> Tensor:
        """Flip the truth at the two rates."""
        return _flip(truth, self._errors(truth, _draws(truth, context)))

    def _errors(self, truth: Tensor, draws: Tensor) -> Tensor:
        """Where uniform draws [..., N, J] fall below the rate of their segment's truth; bool [..., N, J]."""
        return draws < torch.where(truth == SPURIOUS, self.fnr, self.fpr)


class RepeatedOracle(NoisyOracle):
    """The majority of k answers to the same question, each with the two error rates, their errors correlated.

    repeats: k, odd. correlation: of any two answers' errors at one segment. With this probability a segment gets the
    same error (or none) in all k answers, else they err independently; so the correlation of two error indicators is
    exactly `correlation`, and at error rate e the majority errs at rate c e + (1 - c) P(Binomial(k, e) > k / 2). The
    first answer is `noisy_oracle`'s at that seed: with one repeat, or correlation 1, the two are equal.
    """

    info = methods.REPEATED_ORACLE

    def __init__(self, fpr: float = 0.13, fnr: float = 0.13, repeats: int = 5, correlation: float = 0.5):
        super().__init__(fpr, fnr)
        _check_rates(self.info.name, correlation=correlation)
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1 or repeats % 2 == 0:
            raise ConfigError(f"repeated_oracle: repeats is an odd whole number, so that none ties, not {repeats!r}")
        self.repeats, self.correlation = repeats, float(correlation)

    @property
    def params(self) -> dict[str, Any]:
        """The error rates, the number of answers and the correlation of their errors."""
        return {**super().params, "repeats": self.repeats, "correlation": self.correlation}

    def judge(self, truth: Tensor, context: RunContext) -> Tensor:
        """Flip the truth where most answers are wrong."""
        first = _draws(truth, context)
        generator = context.generator("repeated_oracle")
        repeats = torch.rand((self.repeats, *truth.shape), generator=generator, dtype=torch.float64).to(truth.device)
        alike = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(truth.device) < self.correlation
        repeats[0] = first
        wrong = self._errors(truth, torch.where(alike, first, repeats)).sum(0)
        return _flip(truth, 2 * wrong > self.repeats)


class SystematicOracle(NoisyOracle):
    """Errors that are a function of what is seen: on some segments at the two rates, on all others never.

    rule "class": on the segments of round(share x classes) classes, drawn by lot from the seed.
    rule "appearance": on the brightest `share` of the relevant segments (at fpr) and the brightest `share` of the
    spurious ones (at fnr); a segment's brightness is the mean of the pixels in it, all channels, ranked in the set of
    images that is judged.
    """

    info = methods.SYSTEMATIC_ORACLE

    def __init__(self, rule: str = "appearance", fpr: float = 1.0, fnr: float = 0.0, share: float = 0.13):
        super().__init__(fpr, fnr)
        _check_rates(self.info.name, share=share)
        if rule not in ("class", "appearance"):
            raise ConfigError(f"systematic_oracle: rule is 'class' or 'appearance', not {rule!r}")
        self.rule, self.share = rule, float(share)

    @property
    def params(self) -> dict[str, Any]:
        """The rule, the rates where it applies, and to which share it applies."""
        return {"rule": self.rule, **super().params, "share": self.share}

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Judge every non-empty segment; the labels are read by the rule `class`."""
        segments = alignment.segments
        truth = segment_truth(segments, alignment.maps, alignment.split.masks(alignment.index))
        if self.rule == "class":
            order = torch.randperm(task.num_classes, generator=context.generator("systematic_oracle"))
            hit = order[: round(self.share * task.num_classes)].to(truth.device)
            context.note(systematic_classes=sorted(hit.tolist()))
            prone = torch.isin(alignment.split.y[alignment.index], hit)[:, None].expand_as(truth)
        else:
            prone = brightest(truth, brightness(alignment.images, segments), self.share)
        verdicts = _flip(truth, prone & self._errors(truth, _draws(truth, context)))
        return MaskSet(alignment.index, mask_from_verdicts(segments, verdicts), verdicts)


def brightness(images: Tensor, segments: Segments) -> Tensor:
    """Mean pixel of every segment, all channels, in [0, 1]: float64 [N, J], 0 for an empty segment."""
    slot = segments.labels.flatten(1).long() + 1
    grey = images.double().mean(1).flatten(1) / 255
    total = grey.new_zeros(len(grey), segments.count + 1).scatter_add_(1, slot, grey)
    area = torch.zeros_like(total).scatter_add_(1, slot, torch.ones_like(grey))
    return (total / area.clamp(min=1))[:, 1:]


def brightest(truth: Tensor, values: Tensor, share: float) -> Tensor:
    """bool [N, J]: round(share n) of the n segments of each truth that have the highest values, first come on ties."""
    chosen = torch.zeros_like(truth, dtype=torch.bool)
    for kind in (RELEVANT, SPURIOUS):
        rows = (truth == kind).flatten().nonzero().flatten()
        order = values.flatten()[rows].argsort(descending=True, stable=True)
        chosen.view(-1)[rows[order[: round(share * len(rows))]]] = True
    return chosen


def _draws(truth: Tensor, context: RunContext) -> Tensor:
    """The seed's uniform draws, one per segment, the same for every simulated critic."""
    draws = torch.rand(truth.shape, generator=context.generator("noisy_oracle"), dtype=torch.float64)
    return draws.to(truth.device)


def _flip(truth: Tensor, errors: Tensor) -> Tensor:
    return torch.where(errors & (truth != NO_VERDICT), 1 - truth, truth)


def _check_rates(source: str, **rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ConfigError(f"{source}: {name} is a rate in [0, 1], got {rate}")
