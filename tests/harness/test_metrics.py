"""Group metrics and calibration against scikit-learn, hand values and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn import metrics as sk

from harness.metrics import calibration, groups

WATERBIRDS_TRAIN = np.array([3498, 184, 56, 1057])


def random_task(seed: int, n: int = 400, k: int = 4):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    logits = rng.normal(0, 1.5, (n, k)) + 1.2 * np.eye(k)[y]
    return logits, y, rng.integers(0, 2 * k, n)


def test_group_accuracy_counts_every_group_and_marks_the_empty_one() -> None:
    g = np.array([0, 0, 1, 3, 3, 3])
    correct = np.array([True, False, True, True, True, False])
    assert groups.group_counts(g, 4).tolist() == [2, 1, 0, 3]
    np.testing.assert_allclose(groups.group_accuracy(correct, g, 4), [0.5, 1.0, np.nan, 2 / 3])
    with pytest.raises(ValueError, match=r"0\.\.2"):
        groups.group_counts(g, 3)
    with pytest.raises(ValueError, match="-1"):
        groups.group_counts(np.array([-1, 0]), 3)
    with pytest.raises(ValueError, match="one entry per image"):
        groups.group_accuracy(correct[:5], g, 4)


def test_worst_group_is_the_minimum_over_non_empty_groups_only() -> None:
    acc, counts = np.array([0.9, np.nan, 0.4, 0.3]), np.array([100, 0, 30, 24])
    assert groups.worst_group(acc, counts) == (0.3, 3, 24)
    assert groups.worst_group(acc, counts, groups.MIN_DECIDING) == (0.4, 2, 30)
    wga, group, n = groups.worst_group(np.array([np.nan]), np.array([0]))
    assert math.isnan(wga)
    assert (group, n) == (-1, 0)


def test_train_weighted_average_equals_the_hand_value_of_waterbirds() -> None:
    acc = np.array([0.99, 0.80, 0.60, 0.95])
    by_hand = (3498 * 0.99 + 184 * 0.80 + 56 * 0.60 + 1057 * 0.95) / 4795  # 0.96936...
    assert groups.train_weighted_accuracy(acc, WATERBIRDS_TRAIN) == pytest.approx(by_hand, abs=1e-15)
    assert by_hand == pytest.approx(0.9693368, abs=1e-7)
    assert groups.average_group_accuracy(acc) == pytest.approx(0.835)


def test_a_group_without_test_images_leaves_the_averages_and_the_share_says_so() -> None:
    acc, counts = np.array([0.9, np.nan, 0.5, 0.8]), np.array([10, 0, 10, 10])
    kept = (3498 * 0.9 + 56 * 0.5 + 1057 * 0.8) / (3498 + 56 + 1057)
    assert groups.train_weighted_accuracy(acc, WATERBIRDS_TRAIN) == pytest.approx(kept)
    assert groups.tested_train_share(counts, WATERBIRDS_TRAIN) == pytest.approx(1 - 184 / 4795)
    assert groups.average_group_accuracy(acc) == pytest.approx((0.9 + 0.5 + 0.8) / 3)
    assert math.isnan(groups.train_weighted_accuracy(np.array([np.nan, 0.5]), np.array([7, 0])))
    assert math.isnan(groups.average_group_accuracy(np.array([np.nan])))
    with pytest.raises(ValueError, match="training counts"):
        groups.train_weighted_accuracy(acc, WATERBIRDS_TRAIN[:3])


@pytest.mark.parametrize("seed", range(5))
def test_class_metrics_equal_scikit_learn(seed: int) -> None:
    logits, y, _ = random_task(seed)
    pred = logits.argmax(1)
    assert groups.balanced_accuracy(pred, y) == pytest.approx(sk.balanced_accuracy_score(y, pred), abs=1e-12)
    assert groups.worst_class_accuracy(pred, y) == pytest.approx(sk.recall_score(y, pred, average=None).min())
    assert groups.macro_f1(pred, y) == pytest.approx(sk.f1_score(y, pred, average="macro"), abs=1e-12)
    assert groups.auroc(logits, y) == pytest.approx(
        sk.roc_auc_score(y, softmax(logits, axis=1), multi_class="ovr", average="macro"), abs=1e-12
    )
    two = logits[y < 2][:, :2].round(1)  # rounding makes ties
    expected = sk.roc_auc_score(y[y < 2], (two[:, 1] - two[:, 0]).round(6))
    assert groups.auroc(two.round(6), y[y < 2]) == pytest.approx(expected, abs=2e-3)


def test_class_metrics_where_classes_are_missing() -> None:
    y, pred = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 0])
    assert groups.balanced_accuracy(pred, y) == pytest.approx(0.5)
    assert groups.macro_f1(pred, y) == pytest.approx(sk.f1_score(y, pred, average="macro", zero_division=0))
    assert math.isnan(groups.auroc(np.eye(3)[pred], y))
    assert math.isnan(groups.auroc(np.zeros((3, 2)), np.ones(3, dtype=int)))
    nothing = np.zeros(0, dtype=int)
    assert all(math.isnan(f(nothing, nothing)) for f in (groups.balanced_accuracy, groups.macro_f1))


def test_auroc_keeps_ties_of_three_classes() -> None:
    """The same three logits in another order: the odds of a class do not hang on the order of the others."""
    swapped = groups._log_odds(np.array([[-0.7, -0.1, 0.8], [-0.7, 0.8, -0.1]]))
    assert swapped[0, 0] == swapped[0, 1]
    assert swapped[1, 0] == swapped[2, 1]
    grid = np.array([[a, b, c] for a in (0, 0.5, 1) for b in (0, 0.5, 1) for c in (0, 0.5, 1)])
    for k in range(3):
        others = np.sort(np.delete(grid, k, 1) - grid[:, [k]], axis=1)  # what the odds are a function of
        _, same = np.unique(others, axis=0, return_inverse=True)
        found = groups._log_odds(grid)[k]
        assert len(np.unique(found)) == same.max() + 1


def test_auroc_survives_saturated_probabilities() -> None:
    logits, y = np.array([[0.0, 60.0], [0.0, 80.0], [50.0, 0.0], [0.0, 70.0]]), np.array([0, 1, 0, 1])
    assert sk.roc_auc_score(y, softmax(logits, axis=1)[:, 1]) == pytest.approx(0.75)  # three probabilities are 1.0
    assert groups.auroc(logits, y) == 1.0
    third = np.concatenate([np.c_[logits, [-90.0] * 4], [[0.0, 0.0, 200.0], [0.0, -90.0, 90.0]]])
    odds = [third[:, k] - np.logaddexp.reduce(np.delete(third, k, 1), 1) for k in range(3)]
    expected = np.mean([sk.roc_auc_score(np.r_[y, 2, 2] == k, odds[k]) for k in range(3)])
    assert groups.auroc(third, np.r_[y, 2, 2]) == pytest.approx(expected)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (449, 642), (1, 3)])
def test_wilson_interval_equals_scipy(k: int, n: int) -> None:
    for level in (0.8, 0.95):
        expected = binomtest(k, n).proportion_ci(level, method="wilson")
        np.testing.assert_allclose(groups.wilson_interval(k, n, level), expected, atol=1e-9)


def test_wilson_half_widths_and_edges() -> None:
    for n, half in ((20, 0.187), (56, 0.117), (100, 0.088), (200, 0.063), (642, 0.035)):
        low, high = groups.wilson_interval(0.7 * n, n)
        assert (high - low) / 2 == pytest.approx(half, abs=6e-4)
    assert all(math.isnan(v) for v in groups.wilson_interval(0, 0))
    with pytest.raises(ValueError, match="no proportion"):
        groups.wilson_interval(4, 3)


def test_ece_equals_the_definition_written_as_a_loop() -> None:
    logits, y, _ = random_task(3)
    p = softmax(logits, axis=1)
    conf, hit = p.max(1), p.argmax(1) == y
    total = 0.0
    for b in range(15):
        inside = (conf > b / 15) & (conf <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - conf[inside].mean())
    assert calibration.ece(logits, y) == pytest.approx(total, abs=1e-12)


def test_ece_by_hand() -> None:
    sure_and_wrong = np.array([[50.0, 0.0]] * 4)
    assert calibration.ece(sure_and_wrong, np.array([1, 1, 1, 1])) == pytest.approx(1.0)
    top_bin = np.array([[800.0, 0.0], [math.log(0.97 / 0.03), 0.0]])  # confidence 1.0 shares the bin of .97
    assert calibration.ece(top_bin, np.array([1, 0])) == pytest.approx(abs(1 - 1.97) / 2)
    coin = np.zeros((4, 2))
    assert calibration.ece(coin, np.array([0, 0, 1, 1])) == pytest.approx(0.0)
    assert math.isnan(calibration.ece(np.zeros((0, 2)), np.zeros(0, dtype=int)))


def test_nll_and_brier_equal_references() -> None:
    logits, y, _ = random_task(4)
    p = softmax(logits, axis=1)
    assert calibration.nll(logits, y) == pytest.approx(sk.log_loss(y, p), abs=1e-12)
    assert calibration.brier(logits, y) == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1).mean(), abs=1e-12)
    np.testing.assert_allclose(calibration.log_softmax(logits), log_softmax(logits, axis=1), atol=1e-12)
    assert calibration.nll(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1])) == pytest.approx(1000)


def test_summary_agrees_with_its_parts() -> None:
    logits, y, g = random_task(5)
    train = np.arange(1, 9) * 10
    out = groups.summary(logits, y, g, 8, train)
    correct = logits.argmax(1) == y
    by_group = [correct[g == k].mean() for k in range(8)]
    worst = int(np.argmin(by_group))
    assert out["accuracy"] == pytest.approx(correct.mean())
    assert (out["wga"], out["worst_group"]) == (pytest.approx(min(by_group)), worst)
    assert out["n_worst"] == (g == worst).sum() == out["group_counts"][worst]
    assert out["aga"] == pytest.approx(np.mean(by_group))
    assert out["train_weighted"] == pytest.approx(np.average(by_group, weights=train))
    assert out["train_weighted_share"] == 1.0
    hits = int(correct[g == worst].sum())
    ci = binomtest(hits, out["n_worst"]).proportion_ci(method="wilson")
    assert (out["wga_low"], out["wga_high"]) == (pytest.approx(ci.low), pytest.approx(ci.high))
    assert out["group_accuracy"] == pytest.approx(by_group)
    assert out["auroc"] == pytest.approx(sk.roc_auc_score(y, softmax(logits, axis=1), multi_class="ovr"))


def test_small_groups_are_shown_but_do_not_decide() -> None:
    y = np.zeros(54, dtype=int)
    g = np.array([0] * 30 + [1] * 24)
    logits = np.zeros((54, 2))
    logits[:, 0] = np.where(np.arange(54) < 40, 1.0, -1.0)  # group 0: 30 of 30, group 1: 10 of 24
    out = groups.summary(logits, y, g, 3, np.array([1, 1, 1]))
    assert out["group_decides"] == [True, False, False]
    assert out["wga"] == pytest.approx(10 / 24)
    assert out["wga_deciding"] == 1.0
    assert out["train_weighted_share"] == pytest.approx(2 / 3)


def test_renderings_of_one_image_never_inflate_n() -> None:
    logits, y, g = random_task(6, n=200)
    once = groups.summary(logits, y, g, 8, np.ones(8), np.arange(200))
    thrice = groups.summary(
        *(np.tile(v, (3, 1)[: v.ndim]) for v in (logits, y, g)), 8, np.ones(8), np.tile(np.arange(200), 3)
    )
    naive = groups.summary(*(np.tile(v, (3, 1)[: v.ndim]) for v in (logits, y, g)), 8, np.ones(8))
    assert once["group_counts"] == thrice["group_counts"]
    assert (thrice["wga_low"], thrice["wga_high"]) == (pytest.approx(once["wga_low"]), pytest.approx(once["wga_high"]))
    assert naive["wga_high"] - naive["wga_low"] < 0.7 * (once["wga_high"] - once["wga_low"])


def test_average_can_rise_while_the_worst_group_falls() -> None:
    """Rank reversals must be visible: the summary keeps both numbers apart."""
    y, g = np.zeros(100, dtype=int), np.array([0] * 70 + [1] * 30)
    before, after = np.zeros((100, 2)), np.zeros((100, 2))
    before[:, 1] = np.where(np.arange(100) % 2, 1, -1)
    after[:, 1] = np.where(g == 0, -1, 1)
    first, second = (groups.summary(v, y, g, 2, np.array([9, 1])) for v in (before, after))
    assert second["accuracy"] > first["accuracy"]
    assert second["wga"] < first["wga"]


def test_summary_refuses_logits_of_a_diverged_model_and_wrong_shapes() -> None:
    logits, y, g = random_task(7)
    logits[5, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 400 images are not finite"):
        groups.summary(logits, y, g, 8, np.ones(8))
    with pytest.raises(ValueError, match="same 400 images"):
        groups.summary(logits[:399], y, g, 8, np.ones(8))
    with pytest.raises(ValueError, match="7 training counts"):
        groups.summary(np.nan_to_num(logits), y, g, 8, np.ones(7))
