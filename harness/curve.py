"""A training loss as a record keeps it: means over a few equal spans of steps. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from harness.record import Curve

SPANS = 40
DIGITS = 4  # significant ones: a curve is looked at, not computed with


def summarise(losses: Sequence[float]) -> Curve:
    """A curve of at most 40 points from the loss of every step, [S].

    Spans are equal to within one step; with 40 steps or fewer each is a span of its own. A span in which a loss is no
    finite number has None.
    """
    steps = len(losses)
    spans = min(SPANS, steps)
    ends = [k * steps // spans for k in range(spans + 1)] if spans else []
    parts = [losses[start:end] for start, end in itertools.pairwise(ends)]
    return Curve(steps=steps, loss=[_rounded(math.fsum(part) / len(part)) if _finite(part) else None for part in parts])


def _finite(part: Sequence[float]) -> bool:
    return all(map(math.isfinite, part))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
