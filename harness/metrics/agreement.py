"""How far several judges of the same segments agree, beyond chance, with intervals that cluster by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.metrics.groups import wilson_interval

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Ratio = Callable[[Float], tuple[Float, Float]]

RESAMPLES = 2000
CHUNK = 2**22  # weights that are held at once


class Estimate(NamedTuple):
    """A number with its 95 % interval. hits and of: for a share, its numerator and denominator; NaN for others."""

    value: float
    low: float
    high: float
    hits: float = math.nan
    of: float = math.nan


def divide(part: Array, whole: Array) -> Float:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    shape = np.broadcast_shapes(part.shape, whole.shape)
    out: Float = np.full(shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


# --- coefficients -----------------------------------------------------------------------------------------------------


def pair_table(first: Array, second: Array, categories: int = 2, missing: int = -1) -> Float:
    """Contingency table of two judges for every image.

    Args:
        first, second: int [N, J] in 0..categories-1, or `missing`; a unit that either leaves out counts nowhere.

    Returns:
        float64 [N, categories, categories]: units that the first puts into the row and the second into the column.
    """
    first, second = _ratings(first, categories, missing), _ratings(second, categories, missing)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"two judges of the same units, int [N, J] each: got {first.shape} and {second.shape}")
    kinds = np.arange(categories)
    one, other = ((side[:, :, None] == kinds).astype(np.float64) for side in (first, second))
    return np.asarray(np.einsum("njc,njk->nck", one, other), dtype=np.float64)


def cohen_kappa(table: Array) -> Float:
    """Cohen's (1960) kappa of contingency tables [..., K, K]; NaN where chance alone explains full agreement.

    1: always alike; 0: as often alike as two judges who draw from their own rates; below 0: less often.
    """
    table = np.asarray(table, dtype=np.float64)
    total = table.sum((-2, -1))
    observed = divide(np.trace(table, axis1=-2, axis2=-1), total)
    expected = divide((table.sum(-1) * table.sum(-2)).sum(-1), total**2)
    room = np.where(expected < 1 - 1e-12, 1 - expected, 0.0)
    return np.where(room > 0, (observed - expected) / np.where(room > 0, room, 1.0), np.nan)


def coincidences(ratings: Array, categories: int | None = None, missing: int = -1) -> Float:
    """Coincidence matrix of every unit (Krippendorff 2011, Computing Krippendorff's alpha-reliability, step C).

    Args:
        ratings: int [judges, units] in 0..categories-1, or `missing`. categories: K; None: the largest rating + 1.

    Returns:
        float64 [units, K, K]: pairs of values of different judges, each divided by m - 1, where m judges rated the
        unit. A unit with fewer than two ratings cannot be paired and is all zero.
    """
    ratings = np.asarray(ratings)
    if ratings.ndim != 2:
        raise ValueError(f"ratings must be [judges, units], got {ratings.shape}")
    found = ratings[ratings != missing]
    k = int(found.max()) + 1 if categories is None and found.size else categories or 1
    ratings = _ratings(ratings, k, missing)
    counts = (ratings[:, :, None] == np.arange(k)).sum(0).astype(np.float64)  # [units, K]
    judges = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(k)
    weight = np.where(judges >= 2, 1 / np.maximum(judges - 1, 1), 0.0)
    return np.asarray(pairs * weight[:, None, None], dtype=np.float64)


def alpha_of(coincidence: Array) -> Float:
    """Nominal alpha of coincidence matrices [..., K, K]: 1 - observed / expected disagreement; NaN without variation.

    Where every paired value is the same there is no disagreement to be expected and reliability is undefined, not
    perfect: nobody showed that he can tell the categories apart.
    """
    table = np.asarray(coincidence, dtype=np.float64)
    margin = table.sum(-1)
    n = margin.sum(-1)
    observed = n - np.trace(table, axis1=-2, axis2=-1)
    expected = n**2 - (margin**2).sum(-1)
    return 1 - divide((n - 1) * observed, np.where(expected > 1e-9, expected, 0.0))


def krippendorff_alpha(ratings: Array, missing: int = -1) -> float:
    """Krippendorff's alpha for nominal data, any number of judges, missing ratings allowed.

    1: always alike; 0: as alike as values shuffled over units and judges; below 0: systematic disagreement.

    Args:
        ratings: int [judges, units], categories 0..K-1 (names do not matter), `missing` where a judge gave none.

    Raises:
        ValueError: a rating below 0 that is not `missing`, or not [judges, units].
    """
    return float(alpha_of(coincidences(ratings, missing=missing).sum(0)))


def _ratings(values: Array, categories: int, missing: int) -> Array:
    values = np.asarray(values)
    wrong = (values != missing) & ((values < 0) | (values >= categories))
    if wrong.any():
        raise ValueError(f"ratings lie in 0..{categories - 1} or are {missing}, found {values[wrong][0]}")
    return np.where(values == missing, -1, values)


# --- intervals --------------------------------------------------------------------------------------------------------


def cluster_totals(counts: Array, clusters: Array) -> Float:
    """Counts [N, ...] summed over the rows of every cluster (int [N]): float64 [clusters, ...]."""
    counts = np.asarray(counts, dtype=np.float64)
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    if len(place) != len(counts):
        raise ValueError(f"{len(counts)} rows of counts but {len(place)} cluster names")
    totals = np.zeros((len(names), *counts.shape[1:]))
    np.add.at(totals, place, counts)
    return totals


def resample_clusters(totals: Array, resamples: int = RESAMPLES, seed: int = 0) -> Float:
    """Sums over clusters drawn with replacement: float64 [resamples, ...] from totals [clusters, ...]."""
    totals = np.asarray(totals, dtype=np.float64)
    flat, m = totals.reshape(len(totals), -1), len(totals)
    rng, drawn, rows = np.random.default_rng(seed), np.empty((resamples, flat.shape[1])), max(1, CHUNK // m)
    for start in range(0, resamples, rows):
        weights = rng.multinomial(m, np.full(m, 1 / m), size=min(rows, resamples - start))
        drawn[start : start + rows] = weights.astype(np.float64) @ flat
    return drawn.reshape(resamples, *totals.shape[1:])


def clustered_share(
    counts: Array, clusters: Array, ratio: Ratio, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> Estimate:
    """A share with a percentile bootstrap interval over clusters.

    A share of exactly 0 or 1 has no spread to resample: it gets Wilson's interval with the clusters that have a say as
    its n, which is what could be said of so many independent images.

    Args:
        counts: [N, ...] additive counts. clusters: int [N], equal for rows that resample together (one base image).
        ratio: sums [..., *counts.shape[1:]] to numerator and denominator [...].
    """
    totals = cluster_totals(counts, clusters)
    part, whole = (float(v) for v in ratio(totals.sum(0)))
    if not whole > 0:
        return Estimate(math.nan, math.nan, math.nan, part, whole)
    value = part / whole
    if part in (0, whole):
        voices = int((ratio(totals)[1] > 0).sum())
        low, high = wilson_interval(value * voices, voices, level)
        return Estimate(value, low, high, part, whole)
    low, high = _percentiles(divide(*ratio(resample_clusters(totals, resamples, seed))), level)
    return Estimate(value, low, high, part, whole)


def clustered_coefficient(
    counts: Array,
    clusters: Array,
    coefficient: Callable[[Float], Float],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A coefficient of summed counts (kappa, alpha) with a percentile bootstrap interval over clusters.

    The interval is (NaN, NaN) at exactly 1, where resampling shows no spread and nothing like Wilson's interval exists.
    """
    totals = cluster_totals(counts, clusters)
    value = float(coefficient(totals.sum(0)))
    if math.isnan(value) or value == 1:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *_percentiles(coefficient(resample_clusters(totals, resamples, seed)), level))


def _percentiles(draws: Float, level: float) -> tuple[float, float]:
    """Percentile interval; resamples in which the number is undefined are left out."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return math.nan, math.nan
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
