"""Training curves behind a row: the loss of its base models and of the models it reports, a line per seed.

Drawn as paths for the page itself, small enough to stand in every section; what they show is also said in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.record import Curve
from leaderboard.compare import Row

WIDTH, HEIGHT = 240, 70  # of the drawing, in its own units: whole numbers keep the paths short
NOT_RECORDED = "not recorded"
ELSEWHERE = "none: the model was not trained by the common training loop"


@dataclass(frozen=True)
class Drawn:
    """One figure. words: what it shows, or why there is none; seeds: SVG paths, a seed each; mean: over all of them."""

    title: str
    words: str
    seeds: tuple[str, ...] = ()
    mean: str = ""


def curves(row: Row) -> tuple[Drawn, ...]:
    """The base models' curves and those of the row's own candidates; empty for a row without results."""
    if not row.results:
        return ()
    base = {seed: row.entries[seed].record.base_curve for seed in row.results}
    own = {seed: result.curve for seed, result in row.results.items()}
    return (_drawn("training loss", own), _drawn("training loss of the base model", base))


def _drawn(title: str, held: Mapping[int, Curve | None]) -> Drawn:
    known = {seed: curve for seed, curve in held.items() if curve is not None}
    if not known:
        return Drawn(title, NOT_RECORDED)
    shown = {seed: curve for seed, curve in known.items() if any(value is not None for value in curve.loss)}
    if not shown:
        diverged = any(curve.steps for curve in known.values())
        return Drawn(title, "never a finite number" if diverged else ELSEWHERE)
    losses = [curve.loss for curve in shown.values()]
    mean = _mean(losses)
    steps = sorted({curve.steps for curve in shown.values()})
    span = f"{steps[0]:,}" + (f" to {steps[-1]:,}" if len(steps) > 1 else "")
    words = f"{span} step{'' if steps == [1] else 's'}"
    if mean:
        ends = [_number(mean[k]) for k in (0, len(mean) // 2, -1)]
        seeds = f", mean over {len(shown)} seeds" if len(shown) > 1 else ""
        words += f"; {ends[0]} at first, {ends[1]} half way, {ends[2]} at the end{seeds}"
    missing = sorted(held.keys() - shown.keys())
    if missing:
        words += f"; none of seed {', '.join(map(str, missing))}"
    place = _scale([value for loss in losses for value in loss if value is not None])
    lines = tuple(_path(loss, place) for loss in losses)
    return Drawn(title, words, lines, _path(mean, place) if mean and len(lines) > 1 else "")


def _mean(losses: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Span by span over seeds, None where one has none; empty where they have different numbers of spans."""
    if len({len(loss) for loss in losses}) > 1:
        return []
    return [
        math.fsum(values) / len(values) if len(values := [v for v in span if v is not None]) == len(span) else None
        for span in zip(*losses, strict=True)
    ]


def _number(value: float | None) -> str:
    return "no finite number" if value is None else f"{value:.3g}"


def _scale(values: Sequence[float]) -> Callable[[float], int]:
    """Heights of losses: 0, or the smallest where that is below, stands at the bottom."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = high - low
    return lambda value: round(HEIGHT * (1 - (value / room - low / room))) if 0 < room < math.inf else HEIGHT


def _path(loss: Sequence[float | None], place: Callable[[float], int]) -> str:
    """A curve from left to right, broken where there is no number; a single point is a short dash."""
    across = WIDTH / max(len(loss) - 1, 1)
    parts, lifted = [], True
    for k, value in enumerate(loss):
        if value is None:
            lifted = True
            continue
        parts.append(f"{'M' if lifted else 'L'}{round(k * across)} {place(value)}" + ("h2" if lifted else ""))
        lifted = False
    return "".join(parts)
