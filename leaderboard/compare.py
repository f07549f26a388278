"""Paired comparisons between the rows of one table: against the base model, the best control, and each other."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from harness.errors import NotApplicable
from harness.record import Record, Status, TrackResult
from harness.statistics import (
    Ranking,
    bootstrap_interval,
    holm,
    largest_holm_family,
    rank_biserial,
    shared_ranks,
    smallest_p,
    wilcoxon,
)
from leaderboard.collect import Entry, outcomes

BLOCKS = ("reference", "baseline", "method", "oracle", "control")
RANKED = ("baseline", "method", "oracle")
LOWER_IS_BETTER = (
    *("ece", "nll", "brier", "gap", "flip_effect", "flip_insert", "flip_remove", "flip_placebo", "mu_lift"),
)
NAN = math.nan
MIN_SEEDS = 3  # with two, chance makes the spread between seeds vanish and separates what it should not


@dataclass
class Row:
    """One row of a table: its results by seed, and the cells that ended without numbers."""

    key: str
    head: Record
    entries: dict[int, Entry] = field(default_factory=dict)
    results: dict[int, TrackResult] = field(default_factory=dict)
    without: dict[int, Record] = field(default_factory=dict)
    _values: dict[str, dict[int, float]] = field(default_factory=dict, repr=False, compare=False)

    def values(self, metric: str) -> dict[int, float]:
        """A metric by seed, where it is a finite number; read once all results are in."""
        held = self._values.get(metric)
        if held is None:
            held = _finite((seed, result.metrics.get(metric)) for seed, result in self.results.items())
            self._values[metric] = held
        return held

    def base(self, metric: str) -> dict[int, float]:
        """A score of the base model of the same seed."""
        return _finite((seed, self.entries[seed].record.base.get(metric)) for seed in self.results)

    def mean(self, metric: str) -> float:
        """Mean of a metric over seeds; NaN without numbers."""
        held = list(self.values(metric).values())
        return float(np.mean(held)) if held else NAN

    @cached_property
    def corrects(self) -> bool:
        """Whether the row repairs a model with masks that say something: only those have a gain over controls."""
        return self.head.mask_source is not None and self.head.block in RANKED

    @cached_property
    def is_control(self) -> bool:
        """Whether mask methods are measured against it: a control that does what they do, with masks or without."""
        return self.head.mask_source is not None and self.head.block == "control"


def gather(entries: Iterable[Entry], track: str) -> list[Row]:
    """Rows of a track, in the order in which they first appear."""
    rows: dict[str, Row] = {}
    for entry in entries:
        record = entry.record
        if record.status is Status.DONE and track not in record.tracks:
            continue
        if record.status is not Status.DONE and track not in record.config.get("tracks", [track]):
            continue
        key = f"{record.row} #{entry.variant}" if entry.variant else record.row
        row = rows.setdefault(key, Row(key, record))
        if record.status is Status.DONE:
            row.entries[record.seed] = entry
            row.results[record.seed] = record.tracks[track]  # type: ignore[index]
        else:
            row.without[record.seed] = record
    return list(rows.values())


def _finite(values: Iterable[tuple[int, Any]]) -> dict[int, float]:
    """The finite numbers by seed, in the order of seeds; one pass, since a large report asks for a million."""
    return {
        seed: float(value)
        for seed, value in sorted(values, key=_seed)
        if isinstance(value, _NUMBER) and math.isfinite(value)
    }


_NUMBER = (int, float)
_seed = operator.itemgetter(0)


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float


def estimate(values: Iterable[float]) -> Estimate:
    """Mean with a bootstrap interval over seeds."""
    held = list(values)
    return Estimate(float(np.mean(held)), *bootstrap_interval(np.asarray(held))) if held else Estimate(NAN, NAN, NAN)


@dataclass(frozen=True)
class Comparison:
    """Paired difference to one reference, exact Wilcoxon p (NaN below two seeds) and rank-biserial effect size."""

    difference: Estimate
    p: float
    effect: float
    seeds: int


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison:
    """first - second, paired by seed."""
    d = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
    if len(d) < 2:
        return Comparison(estimate(d), NAN, NAN, len(d))
    return Comparison(estimate(d), wilcoxon(d).p, rank_biserial(d), len(d))


@dataclass(frozen=True)
class Family:
    """Comparisons of several rows with one reference, Holm-adjusted p by row key, and what the seeds can decide."""

    by_row: Mapping[str, Comparison]
    adjusted: Mapping[str, float]

    @property
    def size(self) -> int:
        """Number of hypotheses that share the error."""
        return sum(not math.isnan(p) for p in self.adjusted.values())

    def limits(self) -> str:
        """A sentence where no member can be called different, however large its effect; else empty."""
        rows = f"{self.size} row{'' if self.size == 1 else 's'}"
        n = max((self.by_row[key].seeds for key, p in self.adjusted.items() if not math.isnan(p)), default=0)
        if n < 2 or self.size <= largest_holm_family(n):
            return ""
        needed = next(k for k in range(n, 64) if largest_holm_family(k) >= self.size)
        return (
            f"With {n} seeds the smallest attainable p is {smallest_p(n):.3g}, so Holm over {rows} can call "
            f"none of them different; {needed} seeds could."
        )


def family(comparisons: Mapping[str, Comparison], members: Iterable[str]) -> Family:
    """Holm over the members; other rows keep their raw p and have no adjusted one."""
    chosen = [key for key in members if key in comparisons]
    adjusted = holm(np.array([comparisons[key].p for key in chosen], dtype=np.float64))
    return Family(comparisons, dict(zip(chosen, adjusted.tolist(), strict=True)))


def against_base(rows: Sequence[Row], metric: str = "wga") -> Family:
    """Every row against the base model of its seed; references stand outside the family."""
    found = {row.key: compare(row.values(metric), row.base(metric)) for row in rows if row.results}
    return family(found, [row.key for row in rows if row.head.block != "reference"])


def against_control(rows: Sequence[Row], metric: str = "wga") -> tuple[Family, dict[str, str]]:
    """Every row that corrects with masks against its best control, and which control that is.

    Controls are the control rows of mask methods (`erm_continue` among them, which borrows their images): a row that
    reads no masks is in neither family, whatever its block. The best control has the highest mean over the row's
    seeds, among the controls that share most of them. Both sides show the configuration of the rows' track.
    """
    controls = [row for row in rows if row.is_control and row.values(metric)]
    found: dict[str, Comparison] = {}
    chosen: dict[str, str] = {}
    for row in rows:
        own = row.values(metric)
        shared = {control.key: own.keys() & control.values(metric).keys() for control in controls}
        most = max(map(len, shared.values()), default=0)
        if not row.corrects or not most:
            continue
        able = [control for control in controls if len(shared[control.key]) == most]
        best = max(able, key=lambda control: np.mean([control.values(metric)[seed] for seed in shared[control.key]]))
        found[row.key] = compare(own, best.values(metric))
        chosen[row.key] = best.key
    return family(found, found), chosen


@dataclass(frozen=True)
class Rated:
    """Ranking of the ranked blocks (None: nothing to rank) and how it came about, in a sentence."""

    ranking: Ranking | None
    how: str


def rank_rows(rows: Sequence[Row], metric: str = "wga") -> Rated:
    """Shared ranks of baselines, methods and simulated critics; references and controls are not ranked.

    For `wga` and `aga` images are resampled too, over groups with at least 25 test images; for other metrics, and
    where predictions are not at hand, only seeds vary.
    """
    ranked = [row for row in rows if row.head.block in RANKED and row.results]
    if not ranked:
        return Rated(None, "")
    if max(len(row.results) for row in ranked) < MIN_SEEDS:
        return Rated(None, f"fewer than {MIN_SEEDS} seeds say too little about the spread to rank anything")
    better = metric not in LOWER_IS_BETTER
    why = "for this metric only seeds are resampled"
    if metric in ("wga", "aga"):
        try:
            found = _rank_predictions(ranked, metric)
        except NotApplicable as error:
            return Rated(None, f"No ranks: {error}.")
        if found is not None:
            return Rated(found, "hierarchical bootstrap over seeds and test images")
        why = "over seeds only: the predictions of some cells are not at hand"
    deciding = "wga_deciding" if metric == "wga" and all(row.values("wga_deciding") for row in ranked) else metric
    scores = {row.key: row.values(deciding) for row in ranked}
    scores = {key: values for key, values in scores.items() if values}
    if not scores:
        return Rated(None, f"No ranks: no row has the metric '{metric}'.")
    return Rated(shared_ranks(scores, higher_is_better=better), why)


def _rank_predictions(rows: Sequence[Row], metric: str) -> Ranking | None:
    """Ranks from stored predictions; None where some are not at hand."""
    scores: dict[str, dict[int, Any]] = {row.key: {} for row in rows}
    groups: dict[int, Any] = {}
    ids: dict[int, Any] = {}
    for row in rows:
        for seed, entry in row.entries.items():
            found = outcomes(entry, row.results[seed].candidate)
            if found is None:
                return None
            scores[row.key][seed], groups[seed], ids[seed] = found
    return shared_ranks(scores, groups=groups, ids=ids, statistic="wga" if metric == "wga" else "aga")
