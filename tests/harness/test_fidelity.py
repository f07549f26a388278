"""Verdict rates and mask quality against scikit-learn and hand counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from harness.metrics import fidelity


def test_verdict_rates_equal_a_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    truth, nonempty = rng.integers(0, 2, (80, 6)), rng.random((80, 6)) < 0.8
    verdicts = np.where(rng.random((80, 6)) < 0.2, 1 - truth, truth)
    verdicts[rng.random((80, 6)) < 0.1] = -1
    truth[~nonempty] = -1
    out = fidelity.verdict_rates(verdicts, truth, nonempty)
    judged = nonempty & (verdicts >= 0)
    tn, fp, fn, tp = sk.confusion_matrix(truth[judged], verdicts[judged]).ravel()
    assert (out["tp"], out["fp"], out["tn"], out["fn"]) == (tp, fp, tn, fn)
    assert out["null"] == (nonempty & (verdicts == -1)).sum() > 0
    assert out["n"] == nonempty.sum() == out["null"] + tp + fp + tn + fn
    assert out["fpr"] == pytest.approx(fp / (fp + tn)) == 1 - out["specificity"]
    assert out["fnr"] == pytest.approx(fn / (fn + tp))
    assert out["precision"] == pytest.approx(sk.precision_score(truth[judged], verdicts[judged]))
    assert out["recall"] == pytest.approx(sk.recall_score(truth[judged], verdicts[judged]))
    assert out["accuracy"] == pytest.approx(sk.accuracy_score(truth[judged], verdicts[judged]))
    ci = binomtest(int(fp), int(fp + tn)).proportion_ci(method="wilson")
    assert (out["fpr_low"], out["fpr_high"]) == (pytest.approx(ci.low), pytest.approx(ci.high))
    ci = binomtest(int(fn), int(fn + tp)).proportion_ci(method="wilson")
    assert (out["fnr_low"], out["fnr_high"]) == (pytest.approx(ci.low), pytest.approx(ci.high))


def test_accuracy_stands_beside_the_all_zero_baseline() -> None:
    """One accuracy hides a useless critic: 9 of 10 segments are genuine, so saying 0 to all scores .9."""
    truth = np.array([[1] + [0] * 9] * 10)
    silent = fidelity.verdict_rates(np.zeros_like(truth), truth, np.ones_like(truth, dtype=bool))
    assert silent["accuracy"] == silent["accuracy_all_zero"] == pytest.approx(0.9)
    assert (silent["fpr"], silent["fnr"], silent["recall"]) == (0.0, 1.0, 0.0)
    assert math.isnan(silent["precision"])
    assert silent["base_rate"] == pytest.approx(0.1)


def test_no_verdict_at_all_gives_no_rates() -> None:
    out = fidelity.verdict_rates(np.full((3, 2), -1), np.ones((3, 2)), np.ones((3, 2), dtype=bool))
    assert out["null"] == out["n"] == 6
    assert all(math.isnan(out[k]) for k in ("fpr", "fnr", "accuracy", "accuracy_all_zero", "fpr_low", "fnr_high"))


def test_impossible_verdicts_are_refused() -> None:
    ones = np.ones((2, 2), dtype=int)
    with pytest.raises(ValueError, match="1, 0 or -1"):
        fidelity.verdict_rates(ones * 2, ones, ones.astype(bool))
    with pytest.raises(ValueError, match="truth of a non-empty"):
        fidelity.verdict_rates(ones, -ones, ones.astype(bool))
    with pytest.raises(ValueError, match="must agree"):
        fidelity.verdict_rates(ones, ones[:1], ones.astype(bool))


def test_mask_quality_equals_pixel_scores() -> None:
    rng = np.random.default_rng(1)
    masks, truth = rng.random((7, 9, 9)) < 0.3, rng.random((7, 9, 9)) < 0.2
    masks[0] = False
    out = fidelity.mask_quality(masks, truth)
    assert out["precision"] == pytest.approx(sk.precision_score(truth.ravel(), masks.ravel()))
    assert out["recall"] == pytest.approx(sk.recall_score(truth.ravel(), masks.ravel()))
    assert out["iou"] == pytest.approx(sk.jaccard_score(truth.ravel(), masks.ravel()))
    assert out["coverage"] == pytest.approx(6 / 7)
    assert "attribution_recall" not in out


def test_attribution_weights_count_every_image_alike() -> None:
    masks, truth = np.zeros((2, 1, 4), dtype=bool), np.zeros((2, 1, 4), dtype=bool)
    masks[:, 0, :2] = True
    truth[:, 0, 1:3] = True
    maps = np.array([[[1.0, 2.0, 1.0, -9.0]], [[100.0, 0.0, 300.0, 0.0]]])  # shares .25 .5 .25 0 and .25 0 .75 0
    out = fidelity.mask_quality(masks, truth, maps)
    assert out["attribution_precision"] == pytest.approx(0.5 / (0.75 + 0.25))
    assert out["attribution_recall"] == pytest.approx(0.5 / (0.75 + 0.75))
    with pytest.raises(ValueError, match="finite maps"):
        fidelity.mask_quality(masks, truth, maps * np.nan)


def test_empty_masks_have_no_precision() -> None:
    nothing, truth = np.zeros((2, 3, 3), dtype=bool), np.ones((2, 3, 3), dtype=bool)
    out = fidelity.mask_quality(nothing, truth)
    assert math.isnan(out["precision"])
    assert (out["recall"], out["iou"], out["coverage"]) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="bool masks"):
        fidelity.mask_quality(nothing.astype(int), truth)


def test_estimates_equal_the_rates_and_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    truth, nonempty = rng.integers(0, 2, (80, 6)), rng.random((80, 6)) < 0.8
    verdicts = np.where(rng.random((80, 6)) < 0.2, 1 - truth, truth)
    verdicts[rng.random((80, 6)) < 0.1] = -1
    truth[~nonempty] = -1
    found = fidelity.verdict_estimates(verdicts, truth, nonempty, np.arange(80) // 2, resamples=300)
    rates = fidelity.verdict_rates(verdicts, truth, nonempty)
    for name in ("accuracy", "precision", "recall", "fpr", "fnr", "base_rate", "accuracy_all_zero"):
        assert found[name].value == pytest.approx(rates[name])
        assert found[name].low < found[name].value < found[name].high
    judged = nonempty & (verdicts >= 0)
    assert found["kappa"].value == pytest.approx(sk.cohen_kappa_score(truth[judged], verdicts[judged]))
    assert found["kappa"].low < found["kappa"].value < found["kappa"].high
    assert (found["null"].hits, found["null"].of) == (rates["null"], rates["n"])


def test_a_silent_critic_has_no_kappa_above_chance() -> None:
    truth = np.array([[1] + [0] * 9] * 10)
    found = fidelity.verdict_estimates(np.zeros_like(truth), truth, truth >= 0, np.arange(10))
    assert found["kappa"].value == 0
    assert found["accuracy"].value == found["accuracy_all_zero"].value == pytest.approx(0.9)
    assert math.isnan(found["precision"].value)


def test_unchanged_counts_what_was_judged_twice() -> None:
    first, second = np.array([[1, 0, -1, 1], [0, 0, 0, 1]]), np.array([[1, 1, 0, -1], [0, 0, 1, 1]])
    among = np.ones((2, 4), dtype=bool)
    among[1, 3] = False
    found = fidelity.unchanged(first, second, among, np.arange(2))
    assert (found.hits, found.of) == (3, 5)
