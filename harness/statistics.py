"""Intervals, paired tests and shared ranks: how far apart two rows really are, given few seeds and finite test sets.

Everything is paired by seed, and every random number comes from a seed argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit  # scipy.stats takes most of a second to import, for every report

from harness.metrics.groups import MIN_DECIDING
from harness.resampling import (
    Array,
    Difference,
    Float,
    Statistic,
    hierarchical_bootstrap,
    paired_difference,
    resample,
    root,
)

__all__ = [
    "Calibration",
    "Difference",
    "Rank",
    "Ranking",
    "Wilcoxon",
    "bootstrap_interval",
    "hierarchical_bootstrap",
    "holm",
    "largest_holm_family",
    "paired_difference",
    "rank_biserial",
    "rank_calibration",
    "separation_level",
    "shared_ranks",
    "smallest_p",
    "wilcoxon",
]


# --- paired tests over seeds ------------------------------------------------------------------------------------------


class Wilcoxon(NamedTuple):
    """Exact two-sided signed-rank test: rank sums, p, number of pairs, of zero differences, and whether ranks tie."""

    w_plus: float
    w_minus: float
    p: float
    n: int
    zeros: int
    ties: bool


def _signed_ranks(differences: Array) -> tuple[Float, Float]:
    """Differences, and the mid-ranks of their sizes with zeros ranked too (Pratt 1959)."""
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError("paired differences must be finite numbers, one per seed; leave incomplete pairs out")
    d = np.round(d, 12)  # .5 - .475 and .735 - .71 are one tie, not two ranks
    return d, _mid_ranks(np.abs(d))


def _mid_ranks(values: Float) -> Float:
    """Ranks from 1 of values [n]; equal ones share the mean of their places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Float = (last - (counts - 1) / 2)[place]
    return found


def wilcoxon(differences: Array) -> Wilcoxon:
    """Wilcoxon signed-rank test of paired differences [n], exact for every n and every pattern of ties and zeros.

    Sizes are ranked with mid-ranks, zeros included (Pratt), then zeros are dropped. Given the ranks, each sign is a
    fair coin under the null: the distribution of W+ is built by convolution over doubled, hence whole, ranks.
    p = P(|W+ - E| >= observed); 1 where every difference is zero.
    """
    d, ranks = _signed_ranks(differences)
    kept = np.rint(2 * ranks[d != 0]).astype(np.int64)
    w_plus, total = int(kept[d[d != 0] > 0].sum()), int(kept.sum())
    mass = np.ones(1)
    for rank in kept:
        shifted = np.zeros(len(mass) + rank)
        shifted[: len(mass)] += mass / 2
        shifted[rank:] += mass / 2
        mass = shifted
    extreme = np.abs(2 * np.arange(total + 1) - total) >= abs(2 * w_plus - total)
    ties = len(np.unique(kept)) < len(kept)
    p = min(1.0, float(mass[extreme].sum()))
    return Wilcoxon(w_plus / 2, (total - w_plus) / 2, p, len(d), int((d == 0).sum()), ties)


def rank_biserial(differences: Array) -> float:
    """Matched-pairs rank-biserial correlation (W+ - W-) / (W+ + W-), in -1..1 (Kerby 2014); 0 without differences.

    Without zeros it equals 1 - 4 W- / (n (n + 1)).
    """
    d, ranks = _signed_ranks(differences)
    total = ranks[d != 0].sum()
    return float((np.sign(d) * ranks).sum() / total) if total > 0 else 0.0


def smallest_p(n: int) -> float:
    """Smallest two-sided p that n paired seeds can reach: 2^(1-n) (7 seeds: .015625)."""
    return min(1.0, 2.0 ** (1 - n))


def largest_holm_family(n: int, alpha: float = 0.05) -> int:
    """Largest Holm family in which n seeds can reject anything (7: 3, 8: 6, 9: 12, 10: 25)."""
    return int(alpha / smallest_p(n) * (1 + 1e-12))


def holm(p: Array) -> Float:
    """Holm's (1979) step-down adjusted p-values, in the order given. NaN stays NaN and counts in no family."""
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    held = np.flatnonzero(~np.isnan(p))
    order = held[np.argsort(p[held], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return out


# --- intervals --------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: Array, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean over seeds, widened so that it covers at 3 to 10 seeds too; NaN for one seed.

    The plain percentile interval of n values has the spread of ddof = 0 and normal tails, and undercovers (5 seeds: 84
    instead of 95 %). Its distances from the mean are stretched by sqrt(n / (n - 1)) * t_(n-1) / z, which keeps the skew
    of the resamples and gives the width of the t interval (after Hesterberg 2015, section 5.3).
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite, one per seed; leave missing seeds out")
    if n < 2:
        return math.nan, math.nan
    draws = _shares(n, resamples, seed) @ values
    tail = 0.5 - level / 2
    mean = values.mean()
    low, high = mean + _stretch(n, tail) * (quantiles(draws, (tail, 1 - tail)) - mean)
    return float(low), float(high)


@lru_cache(maxsize=256)
def _stretch(n: int, tail: float) -> float:
    return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, tail) / ndtri(tail))


def quantiles(values: Float, levels: Sequence[float]) -> Float:
    """numpy's linear quantiles [levels] of finite values [N], bit for bit, without its checks: a report asks for
    thousands."""
    places = np.asarray(levels) * (len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    parted = np.sort(values)  # vectorised, twice as fast as numpy's partition of a thousand values
    a, b, t = parted[below], parted[above], places - below
    step = b - a
    found: Float = np.where(t < 0.5, a + step * t, b - step * (1 - t))
    return found


@lru_cache(maxsize=32)
def _shares(n: int, resamples: int, seed: int) -> Float:
    """Share of each of n values in every resample [resamples, n]: the same draws serve all rows and metrics."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    counts = np.bincount((np.arange(resamples)[:, None] * n + drawn).ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n) / n


# --- shared ranks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """A row's place. difference, low, high and p compare it with `best`, the row that opens its rank (NaN for itself).

    low and high stand at the corrected level, so they hold 0 exactly where the row shares its rank. detectable: the
    difference to the first row that would have been found with 80 % power. rank is None for a row with one seed.
    """

    row: str
    rank: int | None
    mean: float
    seeds: int
    best: str
    difference: float
    low: float
    high: float
    p: float
    detectable: float


@dataclass(frozen=True)
class Ranking:
    """Rows from best to worst, and the median difference to the best row that is detectable with 80 % power."""

    rows: tuple[Rank, ...]
    detectable: float

    @property
    def rank(self) -> dict[str, int | None]:
        """Rank by row name."""
        return {row.row: row.rank for row in self.rows}


@cache
def separation_level(rows: int, alpha: float = 0.05) -> float:
    """Level at which one pair is tested so that the range of `rows` equal ones exceeds it with probability alpha.

    The best of m rows is chosen on the data that then compare it, so a correction for m - 1 comparisons is too weak:
    30 equal rows at 10 seeds would be split in 22 % of all cases. This is Tukey's studentised range expressed as a
    two-sided level of one pair (2 rows: alpha); with few seeds it errs on the safe side.
    """
    if rows <= 2:
        return alpha
    cut = root(lambda q: _range_tail(q, rows) - alpha, 0.0, 40.0)
    return float(2 * ndtr(-cut / math.sqrt(2)))


def _range_tail(q: float, rows: int) -> float:
    """P(range of `rows` standard normals > q): 1 - m int phi(z) (Phi(z) - Phi(z - q))^(m - 1) dz."""
    nodes, weights = _legendre()
    half = (18 + q) / 2  # from -9 to 9 + q, beyond which phi(z) or Phi(z) - Phi(z - q) is nothing
    z = half * nodes + q / 2
    inside = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (ndtr(z) - ndtr(z - q)) ** (rows - 1)
    return 1 - rows * half * float(weights @ inside)


@cache
def _legendre() -> tuple[Float, Float]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return nodes, weights


def shared_ranks(
    scores: Mapping[str, Mapping[int, Any]],
    *,
    groups: Mapping[int, Array] | None = None,
    ids: Mapping[int, Array] | None = None,
    statistic: Statistic = "accuracy",
    alpha: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
    min_count: int = MIN_DECIDING,
    higher_is_better: bool = True,
) -> Ranking:
    """Ranks that rows share unless the data separate them (protocol.md, Statistics).

    Rows are ordered by their mean over seeds. The best opens rank 1; every row that is not separated from it shares
    the rank, even past rows that are; the best of the others opens the next rank, and so on. Two rows are separated if
    the interval of their paired difference (`hierarchical_bootstrap`) excludes 0 at Holm's steps over the pairs with
    that best, each step at `separation_level` of the rows left.

    Args:
        scores: row -> seed -> bool [images] or [images, renderings], or one number (then only seeds vary).
        groups, ids: by seed, as in `hierarchical_bootstrap`.

    Raises:
        NotApplicable: no group is large enough to decide a rank.
        ValueError: shapes that do not fit, a score that is not finite.
    """
    draws = resample(scores, groups, ids, statistic, resamples, seed, min_count)
    means = {row: float(held.points.mean()) for row, held in draws.items() if held.seeds}
    ordered = sorted(means, key=lambda row: (-means[row] if higher_is_better else means[row], row))
    left = [row for row in ordered if len(draws[row].seeds) > 1]
    total, top = len(left), left[0] if left else ""
    found: dict[str, Rank] = {}
    rank = 0
    while left:
        rank, best = rank + 1, left[0]
        pairs = {row: paired_difference(draws[row], draws[best]) for row in left[1:]}
        apart, level = _separated(pairs, alpha)
        for row in left:
            if row not in apart:
                to_top = pairs[row] if best == top and row in pairs else paired_difference(draws[row], draws[top])
                reach = math.nan if row == top else to_top.detectable(separation_level(total, alpha))
                pair = pairs.get(row, Difference(math.nan, math.nan, math.nan, 0))
                low, high = pair.interval(1 - level)
                seeds = len(draws[row].seeds)
                found[row] = Rank(row, rank, means[row], seeds, best, pair.estimate, low, high, pair.p, reach)
        left = [row for row in left if row in apart]
    nan = math.nan
    rows = [found.get(r) or Rank(r, None, means[r], len(draws[r].seeds), "", nan, nan, nan, nan, nan) for r in ordered]
    reached = [row.detectable for row in rows if not math.isnan(row.detectable)]
    return Ranking(tuple(rows), float(np.median(reached)) if reached else nan)


def _separated(pairs: Mapping[str, Difference], alpha: float) -> tuple[set[str], float]:
    """Rows apart from the best by Holm's steps, and the level at which the others were not.

    After k rows fell away at most rows - k can be equal to the best, so the next step needs only their level.
    """
    p = {row: pair.p for row, pair in pairs.items() if not math.isnan(pair.p)}
    apart: set[str] = set()
    for row in sorted(p, key=lambda r: p[r]):
        if p[row] >= separation_level(len(pairs) + 1 - len(apart), alpha):
            break
        apart.add(row)
    return apart, separation_level(max(2, len(pairs) + 1 - len(apart)), alpha)


@dataclass(frozen=True)
class Calibration:
    """Simulated behaviour of `shared_ranks`.

    false_separation: share of trials in which equal rows did not all share rank 1. false_per_row: share of such rows.
    difference, power: share of worse rows found apart from one that is better by `difference`.
    """

    false_separation: float
    false_per_row: float
    difference: float
    power: float
    trials: int


def rank_calibration(
    *,
    rows: int = 8,
    seeds: int = 10,
    images: int = 500,
    difference: float | None = None,
    seed_sd: float = 0.01,
    image_sd: float = 0.1,
    accuracy: float = 0.8,
    trials: int = 200,
    resamples: int = 100,
    same_images: bool = True,
    seed: int = 0,
) -> Calibration:
    """How often `shared_ranks` separates equal rows, and how often it finds a row that is better by `difference`.

    An image is right with probability accuracy + seed + row-by-seed (both N(0, seed_sd)) + image + row-by-image (both
    uniform with sd image_sd, the latter halved), clipped to 0..1. Image terms persist over seeds if `same_images`.

    Args:
        difference: in accuracy; None: what the null trials call detectable (the root mean square over trials).
    """
    rng = np.random.default_rng(seed)

    def trial(lead: float) -> Ranking:
        def image_part() -> Array:
            width = math.sqrt(3) * image_sd
            return rng.uniform(-width, width, images) + rng.uniform(-width, width, (rows, images)) / 2

        fixed, scores = image_part(), {f"row{k}": dict[int, Array]() for k in range(rows)}
        for s in range(seeds):
            part = fixed if same_images else image_part()
            level = accuracy + rng.normal(0, seed_sd) + rng.normal(0, seed_sd, (rows, 1)) + part
            level[0] += lead
            right = rng.random((rows, images)) < level
            for k in range(rows):
                scores[f"row{k}"][s] = right[k]
        ids = None if same_images else {s: np.arange(images) + s * images for s in range(seeds)}
        return shared_ranks(scores, ids=ids, resamples=resamples, seed=int(rng.integers(2**32)))

    null = [trial(0.0) for _ in range(trials)]
    lost = np.array([sum(row.rank != 1 for row in ranking.rows) for ranking in null])
    if difference is None:
        difference = math.sqrt(float(np.mean([ranking.detectable**2 for ranking in null])))
    lead = [trial(difference).rank for _ in range(trials)]
    found = np.mean([[rank[f"row{k}"] != rank["row0"] for k in range(1, rows)] for rank in lead])
    return Calibration(float((lost > 0).mean()), float(lost.mean() / rows), difference, float(found), trials)
