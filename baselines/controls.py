"""Mask sources without a critic: the ground truth, and the controls against which every critic is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from baselines import mask_info
from harness.errors import ConfigError, NotApplicable
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, MaskSet, MaskSource, mask_from_verdicts
from harness.registry import registry
from harness.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.segment import Segments
    from harness.spec import Spec
    from harness.supervision import Supervision, Task


def _judged(alignment: AlignmentSet, verdicts: Tensor) -> MaskSet:
    """The mask set of int8 verdicts [N, J]; entries of empty segments become -1."""
    segments = alignment.segments
    verdicts = verdicts.to(torch.int8).masked_fill(~segments.nonempty, NO_VERDICT)
    return MaskSet(alignment.index, mask_from_verdicts(segments, verdicts), verdicts)


def _only(segments: Segments, score: Tensor) -> Tensor:
    """Verdicts int8 [N, J]: 1 for the non-empty segment with the highest positive score of its image, else 0."""
    score = score.masked_fill(~segments.nonempty, 0)
    best = torch.zeros_like(score, dtype=torch.int8).scatter_(1, score.argmax(1, keepdim=True), SPURIOUS)
    return best * (score > 0)


class GroundTruth(MaskSource):
    """The suite's masks, of the alignment images or of every image of their split (`images="all"`)."""

    info = mask_info.GROUND_TRUTH

    def __init__(self, images: str = "alignment"):
        if images not in ("alignment", "all"):
            raise ConfigError(f"ground_truth: images must be 'alignment' or 'all', got '{images}'")
        self.images = images

    @property
    def params(self) -> dict[str, Any]:
        """Which images."""
        return {"images": self.images}

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Read the masks; raises NotApplicable where the suite has none."""
        index = alignment.index
        if self.images == "all":
            index = torch.arange(len(alignment.split), device=index.device)
        return MaskSet(index, alignment.split.masks(index))


class _Plain(MaskSource):
    """A source without parameters."""

    @property
    def params(self) -> dict[str, Any]:
        """None."""
        return {}


class AllSegments(_Plain):
    """Every segment is spurious."""

    info = mask_info.ALL_SEGMENTS

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Verdict 1 for every non-empty segment."""
        return _judged(alignment, torch.full_like(alignment.segments.nonempty, SPURIOUS, dtype=torch.int8))


class AllOnes(_Plain):
    """Every pixel is spurious, segment or not."""

    info = mask_info.ALL_ONES

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Masks full of ones."""
        n, _, h, w = alignment.images.shape
        return MaskSet(alignment.index, torch.ones(n, h, w, dtype=torch.bool, device=alignment.index.device))


class LargestSegment(_Plain):
    """The segment with the largest share of the positive attribution is spurious (the first of equal ones)."""

    info = mask_info.LARGEST_SEGMENT

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """One verdict 1 per image that has a segment."""
        return _judged(alignment, _only(alignment.segments, alignment.segments.share))


class BorderSegment(MaskSource):
    """The segment that lies most on the border is spurious.

    Most: the largest share of the segment's own positive attribution lies in the outermost ring of the image, whose
    width is `ring` of the shorter side (at least one pixel). An image in which no segment reaches it gets no mask.
    """

    info = mask_info.BORDER_SEGMENT

    def __init__(self, ring: float = 1 / 14):
        if not 0 < ring <= 0.5:
            raise ConfigError(f"border_segment: ring must lie in (0, 0.5], got {ring}")
        self.ring = ring

    @property
    def params(self) -> dict[str, Any]:
        """Width of the ring."""
        return {"ring": self.ring}

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """At most one verdict 1 per image."""
        segments, maps = alignment.segments, alignment.maps
        _, h, w = maps.shape
        width = max(1, round(self.ring * min(h, w)))
        border = torch.ones(h, w, dtype=torch.bool, device=maps.device)
        border[width : h - width, width : w - width] = False
        weight = maps.clamp(min=0).flatten(1) * (segments.labels.flatten(1) >= 0)
        slot = segments.labels.flatten(1).long().clamp(min=0)
        total = maps.new_zeros(len(maps), segments.count).scatter_add_(1, slot, weight)
        edge = torch.zeros_like(total).scatter_add_(1, slot, weight * border.flatten())
        return _judged(alignment, _only(segments, edge / total.clamp(min=torch.finfo(total.dtype).tiny)))


class _Imitation(MaskSource):
    """A control made from another source: it sees, and is charged for, what that source sees."""

    def __init__(self, of: str | Mapping[str, Any] | Spec = "oracle"):
        self.of: MaskSource = registry("mask_sources").create(parse_spec(of))

    @property
    def supervision(self) -> Supervision:
        """What the imitated source reads."""
        return self.info.supervision | self.of.supervision

    @property
    def params(self) -> dict[str, Any]:
        """The imitated source with all its parameters."""
        return {"of": {"name": self.of.info.name, "params": self.of.params}}


class RandomVerdicts(_Imitation):
    """Chance verdicts: each non-empty segment is spurious with the imitated source's own rate over these segments."""

    info = mask_info.RANDOM_VERDICTS

    def __init__(self, of: str | Mapping[str, Any] | Spec = "oracle"):
        super().__init__(of)
        if not self.of.info.verdicts:
            raise ConfigError(
                f"random_verdicts needs a source that judges segments, but '{self.of.info.name}' gives masks only; "
                f"its chance control is translated(of={self.of.info.name})"
            )

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Draw the verdicts; the rate goes to the record."""
        verdicts, nonempty = _verdicts(self.of.masks(alignment, task, context), self.of), alignment.segments.nonempty
        rate = float((verdicts[nonempty] == SPURIOUS).double().mean()) if bool(nonempty.any()) else 0.0
        context.note(random_verdict_rate=rate)
        draws = torch.rand(verdicts.shape, generator=context.generator("random_verdicts"), dtype=torch.float64)
        return _judged(alignment, (draws < rate).to(verdicts.device))


def _verdicts(given: MaskSet, source: MaskSource) -> Tensor:
    if given.verdicts is None:
        raise NotApplicable(f"the mask source '{source.info.name}' gave no verdicts on segments")
    return given.verdicts


class Inverted(_Imitation):
    """Spurious for relevant and the other way round; no verdict stays none. Plain masks are complemented."""

    info = mask_info.INVERTED

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Invert."""
        given = self.of.masks(alignment, task, context)
        if given.verdicts is None:
            return MaskSet(given.index, ~given.masks)
        return _judged(alignment, torch.where(given.verdicts == NO_VERDICT, NO_VERDICT, 1 - given.verdicts))


class Shuffled(_Imitation):
    """Right critiques, wrong images: every image gets another image's verdicts (or, of plain masks, its mask).

    A non-empty segment whose namesake in the other image is empty counts as relevant.
    """

    info = mask_info.SHUFFLED

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Permute; raises NotApplicable with fewer than two images."""
        given = self.of.masks(alignment, task, context)
        order = derangement(len(given.index), context.generator("shuffled")).to(given.masks.device)
        if given.verdicts is None:
            return MaskSet(given.index, given.masks[order])
        nonempty = alignment.segments.nonempty
        verdicts = given.verdicts[order].masked_fill(~nonempty[order], RELEVANT)
        return _judged(alignment, verdicts)


def derangement(n: int, generator: torch.Generator) -> Tensor:
    """A random permutation, int64 [n], that leaves nothing in its place (one cycle through all)."""
    if n < 2:
        raise NotApplicable(f"shuffling critiques between images needs at least two images, got {n}")
    cycle = torch.randperm(n, generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


class Translated(_Imitation):
    """Every mask moved by a random offset within its image: same area, same shape, wrong place.

    The move is cyclic (what leaves at one border enters at the opposite one) and never zero.
    """

    info = mask_info.TRANSLATED

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Move the masks; they no longer follow segments, so there are no verdicts."""
        given = self.of.masks(alignment, task, context)
        n, h, w = given.masks.shape
        offset = torch.randint(1, h * w, (n,), generator=context.generator("translated")).to(given.masks.device)
        grid = torch.arange(h * w, device=given.masks.device)
        rows = (grid // w - (offset // w)[:, None]) % h
        columns = (grid % w - (offset % w)[:, None]) % w
        moved = given.masks.flatten(1).gather(1, rows * w + columns)
        return MaskSet(given.index, moved.view(n, h, w))
