"""Ranks over suites: Friedman's test of equal methods and Nemenyi's critical difference (Demsar 2006).

Suites are the units here, not seeds. A few suites separate next to nothing, and `AverageRanks.limits` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, rankdata, studentized_range
from scipy.stats import f as fisher

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AverageRanks:
    """Rows over suites: ranks [suites, rows], 1 for the best, ties share their mean rank."""

    rows: tuple[str, ...]
    suites: tuple[str, ...]
    ranks: Float

    @property
    def mean(self) -> dict[str, float]:
        """Average rank of each row, best first."""
        means = self.ranks.mean(axis=0)
        return {self.rows[k]: float(means[k]) for k in np.argsort(means, kind="stable")}

    @cached_property
    def friedman(self) -> float:
        """Friedman's chi-squared with k - 1 degrees of freedom, corrected for ties; NaN where nothing can differ."""
        n, k = self.ranks.shape
        if n < 2 or k < 2:
            return math.nan
        spread = float(np.square(self.ranks - (k + 1) / 2).sum())  # n k (k + 1) (k - 1) / 12 without ties
        between = float(np.square(self.ranks.sum(axis=0) - n * (k + 1) / 2).sum())
        return (k - 1) * between / spread if spread > 0 else math.nan

    @property
    def p(self) -> float:
        """Asymptotic p of Friedman's test (chi-squared)."""
        return float(chi2.sf(self.friedman, len(self.rows) - 1))

    @property
    def p_f(self) -> float:
        """p of Iman and Davenport's F (1980), which is less timid with few suites; 0 where all suites agree fully."""
        n, k = self.ranks.shape
        left = n * (k - 1) - self.friedman
        if math.isnan(self.friedman):
            return math.nan
        return float(fisher.sf((n - 1) * self.friedman / left, k - 1, (k - 1) * (n - 1))) if left > 1e-9 else 0.0

    def critical_difference(self, alpha: float = 0.05) -> float:
        """Nemenyi: average ranks that differ by less are not apart; q_alpha sqrt(k (k + 1) / (6 n))."""
        n, k = self.ranks.shape
        if n < 2 or k < 2:
            return math.nan
        return float(studentized_range.isf(alpha, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))

    def nemenyi(self) -> Float:
        """Pairwise p [rows, rows] of Nemenyi's test; 1 on the diagonal."""
        n, k = self.ranks.shape
        means = self.ranks.mean(axis=0)
        q = np.abs(means[:, None] - means[None]) / math.sqrt(k * (k + 1) / (6 * n)) * math.sqrt(2)
        p = np.asarray(studentized_range.sf(q, k, np.inf), dtype=np.float64)
        np.fill_diagonal(p, 1.0)
        return np.clip(p, 0.0, 1.0)

    def limits(self, alpha: float = 0.05) -> str:
        """A sentence: what the suites can and cannot tell apart."""
        n, k = self.ranks.shape
        if n < 2 or k < 2:
            return "Average ranks need two suites and two rows that are in both."
        widest, cd = k - 1.0, self.critical_difference(alpha)
        head = f"Average ranks over {n} suites; Friedman p = {self.p:.2g}; Nemenyi's critical difference is {cd:.2f}"
        if cd > widest:
            return f"{head}, more than {k} rows can ever be apart: these suites separate no two of them."
        return f"{head}: rows whose average ranks differ by less are not told apart at {alpha:.0%}."


def average_ranks(scores: Mapping[str, Mapping[str, float]], *, higher_is_better: bool = True) -> AverageRanks:
    """Ranks per suite of the rows that every suite has, from suite -> row -> score.

    Raises:
        ValueError: a score is not finite.
    """
    suites = tuple(scores)
    first: Sequence[str] = list(next(iter(scores.values()), {}))
    rows = tuple(row for row in first if all(row in held for held in scores.values()))
    table = np.array([[scores[suite][row] for row in rows] for suite in suites], dtype=np.float64)
    table = table.reshape(len(suites), len(rows))
    if not np.isfinite(table).all():
        raise ValueError("ranks need finite scores; leave a row without numbers out of its suite")
    table = np.round(-table if higher_is_better else table, 12)  # .3 - .2 and .1 are one score
    ranks = np.array([rankdata(line) for line in table], dtype=np.float64).reshape(table.shape)
    return AverageRanks(rows, suites, ranks)
