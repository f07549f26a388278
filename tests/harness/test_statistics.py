"""Tests over seeds against scipy and enumeration; intervals and ranks against simulation with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.errors import NotApplicable
from harness.statistics import (
    bootstrap_interval,
    hierarchical_bootstrap,
    holm,
    largest_holm_family,
    quantiles,
    rank_biserial,
    rank_calibration,
    separation_level,
    shared_ranks,
    smallest_p,
    wilcoxon,
)


def enumerated_p(d: np.ndarray) -> float:
    """Two-sided p by listing every sign pattern of the non-zero differences (Pratt ranks, mid-ranks)."""
    ranks = stats.rankdata(np.abs(d))[d != 0]
    observed = ranks[d[d != 0] > 0].sum()
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))]
    centre = ranks.sum() / 2
    return float(np.mean([abs(w - centre) >= abs(observed - centre) - 1e-9 for w in sums]))


# --- Wilcoxon, rank-biserial, Holm ---


def test_quantiles_are_numpys_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 40, 1000, 10_000):
        values = rng.normal(size=n)
        for levels in ((0.025, 0.975), (0.0, 1.0), (0.5, 0.3)):
            assert quantiles(values, levels).tolist() == np.quantile(values, levels).tolist()


def test_seven_positive_differences_give_the_smallest_p() -> None:
    result = wilcoxon(np.arange(1, 8) / 100)
    assert result.p == 0.015625 == smallest_p(7)
    assert (result.w_plus, result.w_minus, result.zeros, result.ties) == (28, 0, 0, False)
    assert wilcoxon(-np.ones(7)).p == 0.015625


@pytest.mark.parametrize("n", [1, 2, 5, 10, 16, 25])
def test_wilcoxon_equals_scipy_exact_without_ties_and_zeros(n: int) -> None:
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.5):
        d = rng.normal(shift, 1, n)
        expected = stats.wilcoxon(d, method="exact")
        got = wilcoxon(d)
        assert got.p == pytest.approx(float(expected.pvalue), rel=1e-9)
        assert min(got.w_plus, got.w_minus) == pytest.approx(float(expected.statistic))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_wilcoxon_equals_enumeration_with_ties_and_zeros(values: list[int]) -> None:
    d = np.array(values) / 10
    assert wilcoxon(d).p == pytest.approx(enumerated_p(np.round(d, 12)), abs=1e-12)


def test_pratt_keeps_the_ranks_of_zeros() -> None:
    d = np.array([0.0, 0.0, 0.1, 0.2, -0.3])
    result = wilcoxon(d)
    assert (result.w_plus, result.w_minus, result.zeros) == (3 + 4, 5, 2)
    assert wilcoxon(np.zeros(5)).p == 1.0


def test_equal_differences_tie_although_floats_differ() -> None:
    a, b = 0.3 - 0.2, 0.2 - 0.1
    assert a != b
    result = wilcoxon(np.array([a, b, -0.01]))
    assert result.ties
    assert result.w_plus == 5


def test_wilcoxon_refuses_missing_pairs() -> None:
    with pytest.raises(ValueError, match="incomplete pairs"):
        wilcoxon(np.array([0.1, np.nan]))


def test_wilcoxon_is_exact_for_many_seeds_too() -> None:
    d = np.random.default_rng(0).normal(0.2, 1, 60)
    assert wilcoxon(d).p == pytest.approx(float(stats.wilcoxon(d, method="exact").pvalue), rel=1e-6)


def test_smallest_p_and_largest_holm_family() -> None:
    assert [smallest_p(n) for n in (4, 5, 6, 7, 8, 9, 10)] == [0.125, 0.0625, 0.03125, 0.015625, 2**-7, 2**-8, 2**-9]
    assert [largest_holm_family(n) for n in (4, 5, 6, 7, 8, 9, 10)] == [0, 0, 1, 3, 6, 12, 25]
    # the family is attainable and the next larger one is not
    assert holm(np.full(25, smallest_p(10)))[0] < 0.05 < holm(np.full(26, smallest_p(10)))[0]


def test_rank_biserial_formula() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(0.3, 1, 12)
    n, w_minus = 12, wilcoxon(d).w_minus
    assert rank_biserial(d) == pytest.approx(1 - 4 * w_minus / (n * (n + 1)))
    assert rank_biserial(np.ones(4)) == 1.0
    assert rank_biserial(-np.ones(4)) == -1.0
    assert rank_biserial(np.zeros(4)) == 0.0
    assert rank_biserial(np.array([0.0, 1.0, -2.0])) == pytest.approx((2 - 3) / 5)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04])), [0.02, np.nan, 0.04])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert len(holm(np.array([]))) == 0


# --- intervals ---


def test_bootstrap_interval_is_seeded_and_widened() -> None:
    values = np.array([0.71, 0.74, 0.72, 0.78, 0.70])
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    many = np.random.default_rng(0).normal(0.7, 0.1, 10)
    assert bootstrap_interval(many, seed=1) != bootstrap_interval(many, seed=2)
    low, high = bootstrap_interval(values)
    t_half = stats.t.isf(0.025, 4) * values.std(ddof=1) / math.sqrt(5)
    assert (high - low) / 2 == pytest.approx(t_half, rel=0.1)
    assert all(math.isnan(v) for v in bootstrap_interval(np.array([0.5])))
    assert bootstrap_interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(np.array([0.5, np.nan]))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_bootstrap_interval_covers_with_few_seeds(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for trial in range(600):
        low, high = bootstrap_interval(rng.normal(0, 1, n), resamples=1000, seed=trial)
        hits += low <= 0 <= high
    assert 0.92 <= hits / 600 <= 0.98  # three standard errors around .95; the plain percentile gives .76 to .90


Rows = tuple[list[np.ndarray], list[np.ndarray]]


def two_rows(rng: np.random.Generator, seeds: int, n: int, seed_sd: float, same: bool, groups: np.ndarray) -> Rows:
    """Hits of two rows, the second better by .05 in truth; images are hard or easy, more so for one row."""
    image = rng.uniform(-0.15, 0.15, (3, n))
    first, second = [], []
    for _ in range(seeds):
        if not same:
            image = rng.uniform(-0.15, 0.15, (3, n))
        for k, row in enumerate((first, second)):
            p = 0.72 + 0.05 * k + rng.normal(0, seed_sd) + image[0] + 0.7 * image[1 + k] - 0.2 * groups
            row.append(rng.random(n) < p)
    return first, second


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("statistic", ["accuracy", "wga"])
def test_hierarchical_bootstrap_covers(same: bool, seeds: int, statistic) -> None:
    rng = np.random.default_rng(seeds + same)
    groups = np.repeat([0, 1], [200, 80])  # group 1 is worse by .2: WGA is its accuracy
    hits, trials = 0, 400
    for trial in range(trials):
        a, b = two_rows(rng, seeds, 280, 0.015, same, groups)
        ids = None if same else [np.arange(280) + 280 * s for s in range(seeds)]
        found = hierarchical_bootstrap(
            b, a, groups=[groups] * seeds, ids=ids, statistic=statistic, resamples=60, seed=trial
        )
        low, high = found.interval()
        hits += low <= 0.05 <= high
    assert 0.92 <= hits / trials <= 0.985


def test_images_shared_by_the_seeds_widen_the_interval() -> None:
    """Ten seeds on one small test set are not ten test sets: the image noise that they share must be counted."""
    rng = np.random.default_rng(0)
    easy = rng.random((2, 60)) < 0.7  # every seed repeats the same hits up to a few
    rows = [[easy[k] ^ (rng.random(60) < 0.02) for _ in range(10)] for k in range(2)]
    shared = hierarchical_bootstrap(*rows)
    apart = hierarchical_bootstrap(*rows, ids=[np.arange(60) + 60 * s for s in range(10)])
    image_sd = math.sqrt(np.var(easy[0].astype(int) - easy[1].astype(int)) / 60)
    assert shared.estimate == apart.estimate
    assert shared.se > 3 * apart.se
    assert shared.se == pytest.approx(image_sd, rel=0.25)


def test_renderings_of_an_image_are_resampled_together() -> None:
    rng = np.random.default_rng(1)
    a, b = [rng.random(100) < 0.7] * 4, [rng.random(100) < 0.6] * 4
    once = hierarchical_bootstrap(a, b, seed=3)
    repeated = hierarchical_bootstrap(*([np.repeat(v[:, None], 5, axis=1) for v in row] for row in (a, b)), seed=3)
    listed = hierarchical_bootstrap(
        *([np.tile(v, 5) for v in row] for row in (a, b)), ids=[np.tile(np.arange(100), 5)] * 4, seed=3
    )
    assert once.se == pytest.approx(repeated.se, rel=1e-6)
    assert once.se == pytest.approx(listed.se, rel=1e-6)


def test_resampling_is_deterministic_and_paired() -> None:
    rng = np.random.default_rng(2)
    a, b = two_rows(rng, 5, 100, 0.01, True, np.zeros(100))
    assert hierarchical_bootstrap(a, b, seed=1) == hierarchical_bootstrap(a, b, seed=1)
    same = [[v] * 4 for v in (a[0], b[0])]  # seeds without spread: only the image noise is left
    assert hierarchical_bootstrap(*same, seed=1).se != hierarchical_bootstrap(*same, seed=2).se
    itself = hierarchical_bootstrap(a, a)
    assert (itself.estimate, itself.se, itself.p) == (0.0, 0.0, 1.0)
    back = hierarchical_bootstrap(b, a, seed=1)
    assert back.estimate == -hierarchical_bootstrap(a, b, seed=1).estimate


def test_wga_points_are_the_minimum_over_deciding_groups() -> None:
    g = np.repeat([0, 1, 2], [40, 30, 10])
    right = [np.arange(80) % 2 == 0, np.arange(80) % 3 > 0]
    wrong = [np.zeros(80, dtype=bool)] * 2
    found = hierarchical_bootstrap(right, wrong, groups=[g, g], statistic="wga")
    by_hand = [min(r[g == k].mean() for k in (0, 1)) for r in right]
    assert found.estimate == pytest.approx(np.mean(by_hand))
    small = hierarchical_bootstrap(right, wrong, groups=[g, g], statistic="aga", min_count=5)
    assert small.estimate == pytest.approx(np.mean([[r[g == k].mean() for k in range(3)] for r in right]))
    with pytest.raises(NotApplicable, match="25 test images"):
        hierarchical_bootstrap(right, wrong, groups=[np.arange(80) // 20] * 2, statistic="wga")


def test_one_seed_gives_an_estimate_without_an_interval() -> None:
    found = hierarchical_bootstrap([np.ones(50, dtype=bool)], [np.zeros(50, dtype=bool)])
    assert found.estimate == 1.0
    assert math.isnan(found.p)
    assert all(math.isnan(v) for v in found.interval())
    assert math.isnan(found.detectable())


def test_wrong_shapes_are_named() -> None:
    a = [np.ones(50, dtype=bool)] * 2
    with pytest.raises(ValueError, match="got 2 and 1 seeds"):
        hierarchical_bootstrap(a, a[:1])
    with pytest.raises(ValueError, match="all alike"):
        hierarchical_bootstrap(a, [v[:40] for v in a])
    with pytest.raises(ValueError, match="all alike"):
        hierarchical_bootstrap(a, [v.astype(float) for v in a])
    with pytest.raises(ValueError, match="needs the groups"):
        hierarchical_bootstrap(a, a, statistic="wga")


def test_detectable_difference_has_the_stated_power() -> None:
    rng = np.random.default_rng(4)
    alpha, n = 0.01, 6
    x = rng.normal(0, 1, (4000, n))
    found = hierarchical_bootstrap([np.arange(9) < k for k in (1, 4, 5, 7, 2, 6)], [np.zeros(9, dtype=bool)] * n)
    reach = found.detectable(alpha) / found.se / math.sqrt(n)  # in standard deviations of one seed
    p = stats.ttest_1samp(x + reach, 0, axis=1).pvalue
    assert (p < alpha).mean() == pytest.approx(0.8, abs=0.02)


# --- shared ranks ---


def flat(values: dict[str, list[float]]) -> dict[str, dict[int, float]]:
    return {row: dict(enumerate(scores)) for row, scores in values.items()}


def test_ranks_are_shared_unless_the_interval_excludes_zero() -> None:
    noise = np.random.default_rng(0).normal(0, 0.004, (5, 10))
    means = {"a": 0.9, "b": 0.899, "c": 0.8, "d": 0.799, "e": 0.5}
    ranking = shared_ranks(flat({row: list(m + noise[k]) for k, (row, m) in enumerate(means.items())}))
    assert ranking.rank == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}
    assert [row.mean for row in ranking.rows] == sorted((row.mean for row in ranking.rows), reverse=True)
    by_name = {row.row: row for row in ranking.rows}
    assert by_name["d"].best == "c"
    assert by_name["d"].low <= 0 <= by_name["d"].high
    assert math.isnan(by_name["c"].difference)
    assert 0 < ranking.detectable < 0.1


def test_lower_can_be_better() -> None:
    noise = np.random.default_rng(0).normal(0, 0.004, (2, 6))
    rows = flat({"low": list(0.1 + noise[0]), "high": list(0.3 + noise[1])})
    assert shared_ranks(rows, higher_is_better=False).rank == {"low": 1, "high": 2}
    assert shared_ranks(rows).rank == {"low": 2, "high": 1}


def test_plain_numbers_are_compared_by_a_paired_t_interval_with_ddof_one() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.80, 0.03, 5), rng.normal(0.79, 0.03, 5)
    a, b = (a, b) if a.mean() > b.mean() else (b, a)
    worse = shared_ranks(flat({"a": list(a), "b": list(b)})).rows[1]
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval()
    assert worse.p == pytest.approx(float(expected.pvalue), rel=1e-9)
    assert (worse.low, worse.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_a_noisy_row_shares_the_rank_that_a_better_row_misses() -> None:
    rows = flat({"a": [0.90, 0.91, 0.90, 0.91, 0.90], "b": [0.80, 0.81, 0.81, 0.80, 0.805], "c": [0.3, 1, 1, 0.6, 1]})
    assert shared_ranks(rows).rank == {"a": 1, "b": 2, "c": 1}


def test_pairing_by_seed_separates_what_the_spread_between_seeds_hides() -> None:
    seeds = np.random.default_rng(1).normal(0.7, 0.1, 8)
    step = np.random.default_rng(2).normal(0, 0.002, 8)
    rows = flat({"a": list(seeds + 0.02), "b": list(seeds + step)})
    assert shared_ranks(rows).rank == {"a": 1, "b": 2}
    assert shared_ranks({"a": rows["a"], "b": dict(enumerate(reversed(list(rows["b"].values()))))}).rank["b"] == 1


def test_too_few_seeds_separate_nothing() -> None:
    ranking = shared_ranks({"one": {0: 0.99}, "a": {0: 0.9, 1: 0.91}, "b": {2: 0.1, 3: 0.11}})
    assert ranking.rank == {"one": None, "a": 1, "b": 1}  # no interval for one seed, no common seed for a and b
    same_gap = flat({"a": [0.3, 0.4, 0.5], "b": [0.2, 0.3, 0.4]})  # a spread of exactly 0 is no certainty
    assert shared_ranks(same_gap).rank == {"a": 1, "b": 1}
    assert shared_ranks({}).rows == ()


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match="row 'a' has no finite score at seed 1"):
        shared_ranks({"a": {0: 0.5, 1: math.nan}})
    with pytest.raises(ValueError, match="plain numbers at every seed"):
        shared_ranks({"a": {0: 0.5, 1: np.ones(30, dtype=bool)}})


def test_separation_level_is_the_studentised_range() -> None:
    assert separation_level(2) == 0.05
    draws = np.random.default_rng(0).normal(size=(200_000, 10))
    p_best_against_worst = 2 * stats.norm.sf((draws.max(1) - draws.min(1)) / math.sqrt(2))
    assert (p_best_against_worst < separation_level(10)).mean() == pytest.approx(0.05, abs=0.002)
    assert separation_level(10) > 0.05 / 45  # still sharper than Bonferroni over all pairs


def test_ranks_by_worst_group_ignore_small_groups() -> None:
    rng = np.random.default_rng(5)
    g = np.repeat([0, 1, 2], [100, 60, 10])
    rows: dict[str, dict[int, np.ndarray]] = {"good": {}, "bad": {}}
    for s in range(6):
        rows["good"][s] = (rng.random(170) < 0.95) & (g != 2)  # 0 on the small group
        rows["bad"][s] = (rng.random(170) < np.where(g == 1, 0.5, 0.99)) | (g == 2)
    ranking = shared_ranks(rows, groups=dict.fromkeys(range(6), g), statistic="wga")
    assert ranking.rank == {"good": 1, "bad": 2}
    assert {row.row: row.mean for row in ranking.rows}["good"] > 0.85


@pytest.mark.parametrize("seeds", [5, 10])
def test_equal_rows_are_rarely_separated_and_stated_differences_are_found(seeds: int) -> None:
    found = rank_calibration(rows=5, seeds=seeds, images=150, trials=150, resamples=40, seed=seeds)
    assert found.false_separation <= 0.05
    assert found.false_per_row <= found.false_separation
    assert found.power >= 0.80
    assert 0 < found.difference < 0.25


def test_calibration_sees_a_procedure_that_separates_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correcting only for the pairs with the best, as if it were fixed beforehand, fails the criterion above."""
    monkeypatch.setattr("harness.statistics.separation_level", lambda rows, alpha=0.05: alpha / max(rows - 1, 1))
    naive = rank_calibration(rows=20, seeds=10, images=60, trials=60, resamples=2, seed=1, difference=0.05)
    assert naive.false_separation > 0.05
