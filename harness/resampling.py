"""The hierarchical bootstrap: seeds, then base images within groups, for every row under the same weights.

Rows (methods) are paired twice: by seed, and by the weight that a test image gets in a resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtr, stdtr, stdtrit  # what scipy.stats computes, without its import and its checks

from harness.errors import NotApplicable
from harness.metrics.groups import MIN_DECIDING

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
NO_SPREAD = 1e-12  # a standard error below this is rounding
Statistic = Literal["accuracy", "wga", "aga"]

_REDUCE: dict[str, Callable[[Array], Array]] = {
    "accuracy": lambda acc: acc[0],
    "wga": lambda acc: acc.min(axis=0),
    "aga": lambda acc: acc.mean(axis=0),
}


@dataclass(frozen=True)
class Difference:
    """A paired difference with its standard error and degrees of freedom; NaN where fewer than two seeds are shared."""

    estimate: float
    se: float
    df: float
    seeds: int

    @property
    def p(self) -> float:
        """Two-sided p of no difference; NaN with fewer than two seeds.

        Where all seeds show one same difference (coarse scores, few seeds) only its sign speaks: 2^(1-seeds).
        """
        if self.se == 0:
            return 1.0 if self.estimate == 0 else 2.0 ** (1 - self.seeds)
        return float(2 * stdtr(self.df, -abs(self.estimate) / self.se))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval at the given level, estimate -+ t * se; (NaN, NaN) where the seeds show no spread to judge by."""
        if self.se == 0 and self.estimate != 0:
            return math.nan, math.nan
        half = float(-stdtrit(self.df, 0.5 - level / 2)) * self.se
        return self.estimate - half, self.estimate + half

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """True difference that a two-sided test at `alpha` finds with the given power, at this standard error."""
        if not self.df >= 1:
            return math.nan
        return _noncentrality(round(self.df, 1), alpha, power) * self.se


@cache
def _noncentrality(df: float, alpha: float, power: float) -> float:
    cut = -float(stdtrit(df, alpha / 2))
    return root(lambda shift: 1 - float(nctdtr(df, shift, cut)) - power, 0.0, 3 * cut + 10)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that grows or falls from `low` to `high` is 0, by halving (scipy.optimize takes a quarter of a
    second to import, for every report)."""
    rises = function(high) > 0
    while high - low > 1e-13 * max(1.0, abs(low)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if (function(middle) > 0) == rises else (middle, high)
    return (low + high) / 2


@dataclass(frozen=True)
class Draws:
    """One row: its score at every seed [S], and its resampled scores less their mean [S, B] (B = 0: a plain number)."""

    seeds: tuple[int, ...]
    points: Float
    centred: Float

    @cached_property
    def total(self) -> Float:
        """The sum over seeds [B]: its spread holds all covariances between seeds, and every seed's variance."""
        return np.asarray(self.centred.sum(axis=0))

    def at(self, seeds: tuple[int, ...]) -> Draws:
        """The row at some of its seeds."""
        if seeds == self.seeds:
            return self
        places = [self.seeds.index(seed) for seed in seeds]
        return Draws(seeds, self.points[places], self.centred[places])


def paired_difference(first: Draws, second: Draws) -> Difference:
    """Difference first - second over the seeds that both have; see `hierarchical_bootstrap`."""
    if first.seeds != second.seeds:
        shared = tuple(seed for seed in first.seeds if seed in second.seeds)
        first, second = first.at(shared), second.at(shared)
    s = len(first.seeds)
    points = np.round(first.points - second.points, 12)  # .3 - .2 and .2 - .1 are no spread: NO_SPREAD
    if s < 2:
        return Difference(float(points.mean()) if s else math.nan, math.nan, math.nan, s)
    variance = float(points.var(ddof=1)) / s if np.ptp(points) > 0 else 0.0
    resamples = first.centred.shape[1]
    if resamples > 1:
        apart, together = first.centred - second.centred, first.total - second.total
        covered = float(together @ together - np.vdot(apart, apart)) / (resamples - 1)
        variance += max(0.0, covered / (s * (s - 1)))
    variance = variance if variance > NO_SPREAD**2 else 0.0
    return Difference(float(points.mean()), math.sqrt(variance), s - 1.0, s)


def hierarchical_bootstrap(
    first: Sequence[Array],
    second: Sequence[Array],
    *,
    groups: Sequence[Array] | None = None,
    ids: Sequence[Array] | None = None,
    statistic: Statistic = "accuracy",
    resamples: int = 1000,
    seed: int = 0,
    min_count: int = MIN_DECIDING,
) -> Difference:
    """Paired difference (first - second) of a statistic over seeds and test images; `.interval()` is its 95 % interval.

    Two levels are resampled: seeds, and base images within groups. An image keeps its weight in all its renderings, in
    both rows and in every seed that tests it. The variance is the sum of
    (i) the variance between seeds over the number of seeds, ddof = 1: what resampling seeds gives, times S / (S - 1);
        it already holds the image noise that is independent between seeds, so that is not added a second time;
    (ii) the variance that the seeds share because they test the same images: the mean covariance between seeds under
        one joint resampling of the images. It is near 0 where every seed has its own test images.
    The interval is a t interval on this bootstrap standard error: percentiles of five seeds reach neither the tails nor
    the levels that a correction for many rows asks for. Its S - 1 degrees of freedom are too few for (ii), on purpose:
    Satterthwaite's estimate trusts the seeds most where they agree by chance, and then splits equal rows too often.

    Args:
        first, second: per seed, bool [images] or [images, renderings]: which predictions are right.
        groups: per seed, int of the same shape (or [images]); needed for `wga` and `aga`.
        ids: per seed, the base image of every entry [images]; None: entry i is the same image at every seed.
        statistic: `accuracy` (mean), `wga` or `aga`, over groups with at least `min_count` base images at every seed.

    Raises:
        NotApplicable: no group is large enough.
        ValueError: shapes that do not fit.
    """
    if len(first) != len(second):
        raise ValueError(f"paired by seed: got {len(first)} and {len(second)} seeds")
    rows = {"first": dict(enumerate(first)), "second": dict(enumerate(second))}
    draws = resample(
        rows,
        None if groups is None else dict(enumerate(groups)),
        None if ids is None else dict(enumerate(ids)),
        statistic,
        resamples,
        seed,
        min_count,
    )
    return paired_difference(draws["first"], draws["second"])


def resample(
    rows: Mapping[str, Mapping[int, Any]],
    groups: Mapping[int, Array] | None,
    ids: Mapping[int, Array] | None,
    statistic: Statistic,
    resamples: int,
    seed: int,
    min_count: int,
) -> dict[str, Draws]:
    """Scores and resampled scores of every row, at all its seeds under the same image weights.

    Weights are Poisson(1) counts per base image, normalised within each group: the bootstrap within groups, as matrix
    products. Plain numbers pass through without draws.
    """
    tables: dict[int, _Table] = {}
    plain: dict[str, dict[int, float]] = {row: {} for row in rows}
    for s in sorted({s for scores in rows.values() for s in scores}):
        held = {row: np.asarray(scores[s]) for row, scores in rows.items() if s in scores}
        if all(value.ndim == 0 for value in held.values()):
            for row, value in held.items():
                plain[row][s] = _finite(row, s, float(value))
        else:
            tables[s] = _Table.build(held, s, groups, ids, statistic)
    if not tables:
        return {
            row: Draws(tuple(points), np.array([*points.values()]), np.empty((len(points), 0)))
            for row, points in plain.items()
        }
    if any(plain.values()):
        raise ValueError("scores must be plain numbers at every seed, or predictions at every seed")
    _keep_deciding(tables, statistic, min_count)
    universe = np.unique(np.concatenate([table.ids for table in tables.values()]))
    out = {}
    for row, scores in rows.items():
        seeds = tuple(sorted(scores))
        out[row] = Draws(seeds, np.empty(len(seeds)), np.empty((len(seeds), resamples)))
    slots = {s: np.searchsorted(universe, table.ids) for s, table in tables.items()}
    done = 0
    for weights in _weights(len(universe), resamples, seed):
        by_image = np.ascontiguousarray(weights.T)  # an image's weights lie together: a group's are whole rows
        for s, table in tables.items():
            scored = table.scores(by_image, slots[s], statistic).T
            for k, row in enumerate(table.rows):
                out[row].centred[out[row].seeds.index(s), done : done + len(weights)] = scored[k]
        done += len(weights)
    for s, table in tables.items():
        points = table.scores(np.ones((len(universe), 1), dtype=np.float32), slots[s], statistic)[0]
        for k, row in enumerate(table.rows):
            out[row].points[out[row].seeds.index(s)] = points[k]
    for drawn in out.values():
        if resamples:
            np.subtract(drawn.centred, drawn.centred.mean(axis=1, keepdims=True), out=drawn.centred)
    return out


def _keep_deciding(tables: Mapping[int, _Table], statistic: Statistic, min_count: int) -> None:
    """Drop the groups that have too few base images at some seed: they never decide a rank."""
    if statistic == "accuracy":
        return
    width = min(len(table.groups) for table in tables.values())
    sizes = np.min([table.sizes()[:width] for table in tables.values()], axis=0)
    columns = np.flatnonzero(sizes >= max(min_count, 1))
    if not len(columns):
        raise NotApplicable(f"no group has {min_count} test images at every seed: {statistic} decides no rank")
    for table in tables.values():
        table.groups = [table.groups[g] for g in columns]


def _finite(row: str, seed: int, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"row '{row}' has no finite score at seed {seed}; leave that cell out")
    return value


def _weights(images: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Poisson(1) image weights in chunks [draws, images] of 100 draws or 4 MB, so that large test sets fit in memory.

    The draws are the same however they are cut.
    """
    rng, size = np.random.default_rng(seed), max(100, 1_000_000 // max(images, 1))
    for start in range(0, resamples, size):
        yield rng.poisson(1.0, (min(size, resamples - start), images)).astype(np.float32)


@dataclass
class _Table:
    """One seed: the images of every group, their hits there, and the base image [images] behind each.

    groups: per group, which images it holds [k], in how many renderings [k], and in how many of those each row is
    right [k, rows]. An image lies in few groups, so products by group are a tenth of one over all groups.
    """

    rows: tuple[str, ...]
    groups: list[tuple[Array, Float32, Float32]]
    ids: Array

    @classmethod
    def build(
        cls,
        held: Mapping[str, Array],
        seed: int,
        groups: Mapping[int, Array] | None,
        ids: Mapping[int, Array] | None,
        statistic: Statistic,
    ) -> _Table:
        shape = next(iter(held.values())).shape
        if any(value.shape != shape or value.dtype != np.bool_ or value.ndim not in (1, 2) for value in held.values()):
            seen = ", ".join(f"{row}: {value.dtype} {value.shape}" for row, value in held.items())
            raise ValueError(
                f"rows at seed {seed} must be bool [images] or [images, renderings], all alike; got {seen}"
            )
        n, renderings = len(next(iter(held.values()))), int(np.prod(shape[1:], dtype=int))
        own = np.arange(n) if ids is None else np.asarray(ids[seed])
        if own.shape != (n,):
            raise ValueError(f"ids at seed {seed} must be [{n}], got {own.shape}")
        g = np.zeros((n, 1), dtype=np.int64)
        if statistic != "accuracy":
            if groups is None:
                raise ValueError(f"'{statistic}' needs the groups of the test images")
            g = np.asarray(groups[seed]).reshape(n, -1)
        member = np.broadcast_to(g, (n, renderings))
        right = np.stack([value.reshape(n, renderings) for value in held.values()], axis=2)  # [n, renderings, rows]
        found = []
        for group in range(int(g.max(initial=0)) + 1):
            inside = member == group
            images = np.flatnonzero(inside.any(axis=1))
            inside = inside[images]
            hits = (right[images] & inside[:, :, None]).sum(axis=1).astype(np.float32)
            found.append((images, inside.sum(axis=1).astype(np.float32), hits))
        return cls(tuple(held), found, own)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Distinct base images per group."""
        return np.array([len(np.unique(self.ids[images])) for images, _, _ in self.groups])

    def scores(self, weights: Float32, slots: Array, statistic: Statistic) -> Array:
        """Statistic per draw and row [B, rows] under the weights [universe, B] of base images; slots: theirs here.

        Weights and hits are whole numbers, so float32 sums of them are exact, in whatever order.
        """
        accuracy = np.empty((len(self.groups), weights.shape[1], len(self.rows)))
        for k, (images, renderings, hits) in enumerate(self.groups):
            drawn = weights[slots[images]].T
            total = np.maximum(drawn @ renderings, 1e-9).astype(np.float64)
            np.divide(drawn @ hits, total[:, None], out=accuracy[k])
        return _REDUCE[statistic](accuracy)
