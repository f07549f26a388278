"""Metadata of the mask-based baselines, of the ground-truth masks and of the control mask sources; imports no torch."""

from __future__ import annotations

from harness.masks import MaskSourceInfo
from harness.method import MethodInfo
from harness.supervision import Supervision

_NO_PAPER = "none: a control of this benchmark"
_WRONG_SCALE = (
    "Both loss terms are means (cross-entropy over the batch, the penalty over its alignment samples) where the paper "
    "sums, and inputs lie in [0, 1] where it uses 0..255: lambda is not the paper's."
)

RRR = MethodInfo(
    name="rrr",
    summary="Fine-tune with a penalty on the input gradient inside the correction mask (right for the right reasons).",
    factory="baselines.rrr:RRR",
    citation="Ross, Hughes, Doshi-Velez 2017, Right for the right reasons (IJCAI)",
    supervision=Supervision.LABELS,
    selection="masked_val",
    uses_masks=True,
    default_masks="ground_truth",
    deviations=(
        _WRONG_SCALE,
        "Repairs the trained base model by default (start=base); the paper trains from scratch (start=scratch).",
        "The paper's l2 term is the optimiser's weight decay.",
        "On image presets the penalised scalar is the logit margin, scaled by the penalty's first value.",
    ),
)
CAIPI = MethodInfo(
    name="caipi",
    summary="Train on counterexamples too: images whose marked pixels are replaced while the label is kept.",
    factory="baselines.caipi:CAIPI",
    citation="Teso, Kersting 2019, Explanatory interactive machine learning (AIES)",
    supervision=Supervision.LABELS,
    selection="masked_val",
    uses_masks=True,
    default_masks="ground_truth",
    deviations=(
        "The batch version: all corrections are given at once, without the interactive query loop.",
        "The two loss terms are means over originals and over counterexamples, each with weight 1.",
        "Fine-tunes the base model by default (start=base) instead of refitting from scratch.",
    ),
)
PATH_RRR = MethodInfo(
    name="path_rrr",
    summary="Fine-tune with a penalty on the derivative along the path that fills the marked object in.",
    factory="baselines.path_rrr:PathRRR",
    citation="none: this benchmark's variant of Ross, Hughes, Doshi-Velez 2017 for large smooth objects",
    supervision=Supervision.LABELS,
    selection="masked_val",
    uses_masks=True,
    default_masks="ground_truth",
    deviations=(
        "Penalises the squared derivative of the logit margin along one direction instead of the input gradient.",
        "The penalty is scaled by its first value: lambda is neither the paper's nor that of an unscaled RRR.",
    ),
)

GROUND_TRUTH = MaskSourceInfo(
    name="ground_truth",
    summary="The suite's own pixel masks of the spurious object.",
    factory="baselines.controls:GroundTruth",
    supervision=Supervision.MASKS,
    block="reference",
    verdicts=False,
)


def _control(name: str, cls: str, summary: str, *, verdicts: bool = True) -> MaskSourceInfo:
    return MaskSourceInfo(
        name=name,
        summary=summary,
        factory=f"baselines.controls:{cls}",
        supervision=Supervision.NONE,
        block="control",
        verdicts=verdicts,
        citation=_NO_PAPER,
    )


ALL_SEGMENTS = _control("all_segments", "AllSegments", "Calls every segment spurious: no critic at all.")
ALL_ONES = _control("all_ones", "AllOnes", "Marks every pixel: plain input-gradient regularisation.", verdicts=False)
RANDOM_VERDICTS = _control(
    "random_verdicts", "RandomVerdicts", "Chance verdicts with the rate of the source that it imitates."
)
INVERTED = _control("inverted", "Inverted", "The opposite of another source's verdicts (or of its mask).")
SHUFFLED = _control("shuffled", "Shuffled", "Another source's critiques, each given to a wrong image.")
TRANSLATED = _control(
    "translated",
    "Translated",
    "Another source's masks, each moved to a random place of the same image.",
    verdicts=False,
)
LARGEST_SEGMENT = _control(
    "largest_segment", "LargestSegment", "Calls the segment with the largest share of attribution spurious."
)
BORDER_SEGMENT = _control(
    "border_segment", "BorderSegment", "Calls the segment that lies most on the image border spurious."
)
