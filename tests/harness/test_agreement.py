"""Kappa against scikit-learn, alpha against Krippendorff's own examples, clustered intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from harness.metrics import agreement
from harness.metrics.groups import wilson_interval


def rows(*judges: str) -> np.ndarray:
    """Ratings from one line per judge; '.' is missing, any other letter a category."""
    names = sorted({value for judge in judges for value in judge.split()} - {"."})
    return np.array([[-1 if v == "." else names.index(v) for v in judge.split()] for judge in judges])


# Krippendorff 2011, Computing Krippendorff's alpha-reliability, sections A, B and C.
BINARY = rows("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")
TWO_JUDGES = rows("a a b b d c c c e d d a", "b a b b b c c c e d d d")
MISSING = rows(
    "1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."
)


@pytest.mark.parametrize(("ratings", "published"), [(BINARY, 0.095), (TWO_JUDGES, 0.692), (MISSING, 0.743)])
def test_alpha_equals_the_published_examples(ratings: np.ndarray, published: float) -> None:
    assert agreement.krippendorff_alpha(ratings) == pytest.approx(published, abs=5e-4)


def test_coincidences_equal_the_published_matrix() -> None:
    table = agreement.coincidences(MISSING).sum(0)
    published = [[7, 4 / 3, 1 / 3, 1 / 3, 0], [4 / 3, 10, 4 / 3, 1 / 3, 0], [1 / 3, 4 / 3, 8, 1 / 3, 0]]
    published += [[1 / 3, 1 / 3, 1 / 3, 4, 0], [0, 0, 0, 0, 3]]
    assert np.allclose(table, published)
    assert table.sum() == pytest.approx(40)  # the last unit has one rating only and cannot be paired


def test_alpha_at_its_limits() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 20_000)
    assert agreement.krippendorff_alpha(np.stack([truth, truth, truth])) == 1
    assert agreement.krippendorff_alpha(np.stack([truth, 1 - truth])) == pytest.approx(-1, abs=0.01)
    assert agreement.krippendorff_alpha(rng.integers(0, 2, (3, 20_000))) == pytest.approx(0, abs=0.02)
    assert math.isnan(agreement.krippendorff_alpha(np.zeros((2, 9), dtype=int)))  # nothing varies
    assert math.isnan(agreement.krippendorff_alpha(np.array([[0, -1], [-1, 1]])))  # nothing can be paired
    assert agreement.krippendorff_alpha(np.where(truth == 1, 4, 2)[None].repeat(2, 0)) == 1  # names do not matter
    with pytest.raises(ValueError, match=r"lie in 0\.\.1"):
        agreement.krippendorff_alpha(np.array([[0, 1], [-2, 1]]))


def test_kappa_equals_scikit_learn_and_its_limits() -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(-1, 2, (300, 6))
    second = np.where(rng.random((300, 6)) < 0.3, rng.integers(-1, 2, (300, 6)), first)
    both = (first >= 0) & (second >= 0)
    table = agreement.pair_table(first, second)
    assert table.shape == (300, 2, 2)
    assert table.sum() == both.sum()
    ours = float(agreement.cohen_kappa(table.sum(0)))
    assert ours == pytest.approx(cohen_kappa_score(first[both], second[both]))
    assert float(agreement.cohen_kappa(np.diag([5.0, 7.0]))) == 1
    assert float(agreement.cohen_kappa(np.array([[0, 5], [5, 0]]))) == -1
    assert float(agreement.cohen_kappa(np.array([[9, 0], [3, 0]]))) == 0  # the second never varies
    assert math.isnan(float(agreement.cohen_kappa(np.array([[9, 0], [0, 0]]))))


def test_intervals_cover_where_segments_fail_together() -> None:
    """Six segments of an image share their luck: clusters cover at about 95 %, independent segments would not."""
    rng, truth, images, segments = np.random.default_rng(2), 0.2, 120, 6
    covered = naive = 0
    for trial in range(200):
        rate = rng.beta(0.2, 0.8, images)  # mean 0.2, strongly clustered
        hits = rng.binomial(segments, rate)
        counts = np.stack([hits, np.full(images, segments)], 1)
        found = agreement.clustered_share(counts, np.arange(images), lambda s: (s[..., 0], s[..., 1]), 500, trial)
        covered += found.low <= truth <= found.high
        low, high = wilson_interval(int(hits.sum()), images * segments)
        naive += low <= truth <= high
        assert (found.hits, found.of) == (hits.sum(), images * segments)
    assert covered / 200 >= 0.9
    assert naive / 200 < 0.75


def test_an_image_of_several_seeds_is_one_cluster() -> None:
    """The same 40 images four times over hold the information of 40."""
    rng = np.random.default_rng(3)
    counts = np.stack([rng.integers(0, 2, 40), np.ones(40, dtype=int)], 1)

    def ratio(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return s[..., 0], s[..., 1]

    once = agreement.clustered_share(counts, np.arange(40), ratio)
    copied = agreement.clustered_share(np.tile(counts, (4, 1)), np.tile(np.arange(40), 4), ratio)
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))
    apart = agreement.clustered_share(np.tile(counts, (4, 1)), np.arange(160), ratio)
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_a_share_of_one_is_no_certainty() -> None:
    counts = np.array([[3, 3]] * 50 + [[0, 0]] * 10)  # ten images without a say
    found = agreement.clustered_share(counts, np.arange(60), lambda s: (s[..., 0], s[..., 1]))
    assert (found.value, (found.low, found.high)) == (1, wilson_interval(50, 50))
    nothing = agreement.clustered_share(counts * 0, np.arange(60), lambda s: (s[..., 0], s[..., 1]))
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    perfect = agreement.clustered_coefficient(np.array([np.diag([2.0, 1.0])] * 9), np.arange(9), agreement.cohen_kappa)
    assert perfect.value == 1
    assert math.isnan(perfect.low)
    with pytest.raises(ValueError, match="cluster names"):
        agreement.cluster_totals(counts, np.arange(59))
