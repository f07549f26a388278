"""The diagnosis gate: a repair can only be judged where the base model is good on average and demonstrably biased.

Its numbers are the base model's own test scores. They decide whether a suite can show a repair, never which method
wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import VabenchError
from harness.plan import Cell
from harness.record import Record, Status
from harness.registry import registry
from harness.spec import parse_spec

GOOD = 0.75  # train-weighted accuracy at least
GAP = 0.10  # train-weighted accuracy minus that of the worst group that decides, at least
RELIANCE = 0.05  # share of test decisions that the object changes beyond its placebo, at least
MIN_SEEDS = 3  # from here on the lower end of a 95 % interval over seeds must lie above 0 as well
NOT_BIASED, NOT_GOOD = "base model not biased", "base model not good on average"


@dataclass(frozen=True)
class Diagnosis:
    """What the base model of a suite shows: verdict and figures, means over seeds in 0..1 (NaN: cannot be measured).

    accuracy: train-weighted. gap: accuracy minus WGA over groups of at least 25 test images. reliance: flips by
    inserting (or else by removing) the object minus flips by the placebo.
    """

    seeds: int
    accuracy: float
    gap: float
    reliance: float
    good: bool
    biased: bool

    @property
    def passes(self) -> bool:
        """Whether a repair can be judged here."""
        return self.good and self.biased

    def sentence(self) -> str:
        """The verdict with its figures and limits."""
        verdict = "base model biased" if self.passes else NOT_BIASED if self.good else NOT_GOOD
        shown = "no intervention measures its reliance" if math.isnan(self.reliance) else f"flips {self.reliance:.3f}"
        return (
            f"{verdict}: train-weighted accuracy {self.accuracy:.3f} (at least {GOOD}), worst group "
            f"{self.gap:.3f} below it (at least {GAP:.2f}), {shown} (at least {RELIANCE}); {self.seeds} seeds"
        )


def diagnose(records: Iterable[Record]) -> Diagnosis | None:
    """Diagnosis of one suite and model from the records of rows that return the base model; None without any."""
    found = [scores for record in records if (scores := _scores(record)) is not None]
    if not found:
        return None
    accuracy, gap, reliance = (np.array([scores[k] for scores in found]) for k in range(3))
    measured = reliance[~np.isnan(reliance)]
    return Diagnosis(
        seeds=len(found),
        accuracy=float(accuracy.mean()),
        gap=float(gap.mean()),
        reliance=float(measured.mean()) if len(measured) else math.nan,
        good=bool(accuracy.mean() >= GOOD),
        biased=_above(gap, GAP) and (not len(measured) or _above(measured, RELIANCE)),
    )


def _scores(record: Record) -> tuple[float, float, float] | None:
    """Accuracy, gap and reliance (or NaN) of a base model's record."""
    if record.status is not Status.DONE or not record.tracks:
        return None
    metrics: dict[str, Any] = next(iter(record.tracks.values())).metrics
    worst = metrics.get("wga_deciding")
    worst = metrics.get("wga") if worst is None else worst
    accuracy = metrics.get("train_weighted")
    if accuracy is None or worst is None:
        return None
    placebo = metrics.get("flip_placebo")
    changed = [metrics.get(name) for name in ("flip_insert", "flip_remove")]
    effect = next((value - placebo for value in changed if value is not None and placebo is not None), math.nan)
    return accuracy, accuracy - worst, effect


def _above(values: np.ndarray[Any, Any], limit: float) -> bool:
    from harness.statistics import bootstrap_interval  # scipy takes half a second to import

    low = bootstrap_interval(values)[0] if len(values) >= MIN_SEEDS else math.inf
    return bool(values.mean() >= limit and low > 0)


def returns_base(method: str) -> bool:
    """Whether a row's method, as its record writes it, returns the base model unchanged; False for one unknown here."""
    try:
        return bool(registry("methods").info(parse_spec(method).name).returns_base)
    except VabenchError:
        return False


def needs_bias(cell: Cell) -> bool:
    """Whether a cell repairs something: every method but the references, wherever the table puts its row."""
    return bool(registry("methods").info(cell.row.method.name).block != "reference")


def was_gated(record: Record | None) -> bool:
    """Whether a record is the gate's: its cell is open again where there are more seeds, or no gate."""
    marks = (NOT_BIASED, NOT_GOOD)
    return record is not None and record.status is Status.NOT_APPLICABLE and record.reason.startswith(marks)
