"""Our statistics against somebody else's: scipy, statsmodels, scikit-posthocs, and values printed in papers."""

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.friedman import average_ranks
from harness.metrics.groups import wilson_interval
from harness.resampling import Difference, Draws, paired_difference
from harness.statistics import _mid_ranks, holm, separation_level, shared_ranks, wilcoxon


def table(seed: int, suites: int, rows: int, *, ties: bool = False) -> dict[str, dict[str, float]]:
    scores = np.random.default_rng(seed).normal(np.linspace(0, 1.5, rows), 1.0, (suites, rows))
    scores = np.round(scores) if ties else scores
    return {f"s{i}": {f"r{k}": float(v) for k, v in enumerate(line)} for i, line in enumerate(scores)}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("suites", "rows"), [(3, 3), (5, 8), (12, 4)])
def test_friedman_equals_scipy(suites: int, rows: int, ties: bool) -> None:
    scores = table(suites, suites, rows, ties=ties)
    found = average_ranks(scores)
    columns = [[held[f"r{k}"] for held in scores.values()] for k in range(rows)]
    expected = stats.friedmanchisquare(*columns)
    assert found.friedman == pytest.approx(expected.statistic, rel=1e-10)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_nemenyi_equals_scikit_posthocs(ties: bool) -> None:
    scores = table(7, 9, 5, ties=ties)
    found = average_ranks(scores)
    matrix = np.array([[held[row] for row in found.rows] for held in scores.values()])
    expected = scikit_posthocs.posthoc_nemenyi_friedman(matrix).to_numpy()
    np.testing.assert_allclose(found.nemenyi(), expected, atol=1e-4)
    assert found.nemenyi().min() < 0.5  # the comparison is of p-values that say something


@pytest.mark.parametrize(  # q_0.05 of Demsar 2006, table 5a
    ("rows", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)]
)
def test_critical_difference_has_the_published_quantiles(rows: int, q: float) -> None:
    found = average_ranks(table(1, 14, rows)).critical_difference()
    assert found / np.sqrt(rows * (rows + 1) / (6 * 14)) == pytest.approx(q, abs=1e-3)


def test_ranks_start_at_the_best_and_leave_out_rows_that_a_suite_lacks() -> None:
    found = average_ranks({"a": {"x": 0.9, "y": 0.5, "z": 0.5}, "b": {"x": 0.2, "y": 0.4, "z": 0.1, "w": 0.3}})
    assert found.rows == ("x", "y", "z")
    np.testing.assert_array_equal(found.ranks, [[1, 2.5, 2.5], [2, 1, 3]])
    assert list(found.mean) == ["x", "y", "z"]
    lower = average_ranks({"a": {"x": 0.9, "y": 0.5}, "b": {"x": 0.9, "y": 0.5}}, higher_is_better=False)
    assert lower.mean == {"y": 1.0, "x": 2.0}


def test_too_few_suites_say_that_they_separate_nothing() -> None:
    assert "separate no two" in average_ranks(table(0, 2, 3)).limits()
    assert "not told apart" in average_ranks(table(0, 30, 3)).limits()
    assert "need two suites" in average_ranks(table(0, 1, 3)).limits()
    with pytest.raises(ValueError, match="finite"):
        average_ranks({"a": {"x": float("nan")}})


@pytest.mark.parametrize("n", [5, 9, 14])
def test_wilcoxon_equals_scipy(n: int) -> None:
    d = np.random.default_rng(n).normal(0.5, 1.0, n)
    assert wilcoxon(d).p == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, rel=1e-12)


@pytest.mark.parametrize("n", [1, 4, 11, 30])
def test_holm_equals_statsmodels(n: int) -> None:
    p = np.random.default_rng(n).beta(0.5, 4.0, n)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize(  # Newcombe 1998 (Stat. Med. 17:857), table I, method 3
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_has_the_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(k, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("rows", [3, 4, 10, 40, 100])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_separation_level_equals_scipy_s_studentised_range(rows: int, alpha: float) -> None:
    cut = stats.studentized_range.isf(alpha, rows, np.inf)
    assert separation_level(rows, alpha) == pytest.approx(2 * stats.norm.sf(cut / np.sqrt(2)), rel=1e-8)


@pytest.mark.parametrize("df", [1.0, 2.0, 4.0, 9.0, 49.0])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_detectable_difference_equals_scipy_s_noncentral_t(df: float, alpha: float) -> None:
    found = Difference(0.0, 1.0, df, int(df) + 1).detectable(alpha, 0.8)
    assert stats.nct.sf(stats.t.isf(alpha / 2, df), df, found) == pytest.approx(0.8, abs=1e-9)


def test_mid_ranks_equal_scipy_s() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 5, 30).astype(float), rng.normal(size=30), np.zeros(4), np.empty(0)):
        np.testing.assert_array_equal(_mid_ranks(values), stats.rankdata(values))


def test_the_shared_variance_is_the_covariance_between_seeds() -> None:
    """Against numpy's covariance matrix: the mean of what stands beside its diagonal."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 400)) + rng.normal(size=(2, 1, 400))
    points = rng.normal(size=(2, 5))
    rows = [
        Draws(tuple(range(5)), point, draws - draws.mean(axis=1, keepdims=True))
        for point, draws in zip(points, (first, second), strict=True)
    ]
    covariance = np.cov(first - second)
    shared = (covariance.sum() - np.trace(covariance)) / 20
    between = np.round(points[0] - points[1], 12).var(ddof=1) / 5
    assert shared > 0
    assert paired_difference(*rows).se == pytest.approx(np.sqrt(between + shared), rel=1e-10)
    fewer = paired_difference(rows[0], rows[1].at((0, 2, 3)))  # rows are paired by the seeds that both have
    assert fewer == paired_difference(rows[0].at((0, 2, 3)), rows[1].at((0, 2, 3)))
    assert fewer.seeds == 3


def test_no_spread_stays_none_where_rounding_would_make_some() -> None:
    """Rows that are right on the same images at every seed: the spread is 0, however the resamples are summed."""
    groups = {s: np.repeat(np.arange(6), 30) for s in range(5)}
    first = {s: groups[s] < 5 for s in groups}
    second = {s: groups[s] < 2 for s in groups}
    ranking = shared_ranks({"a": first, "b": second}, groups=groups, statistic="aga")
    assert ranking.rank == {"a": 1, "b": 1}  # five seeds that show one difference: only its sign speaks, p = .0625
    assert ranking.rows[1].p == 2.0**-4
