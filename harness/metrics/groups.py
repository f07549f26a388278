"""Accuracies by group and class, their intervals, and the summary of one rendering that a record stores."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.metrics import calibration

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

MIN_DECIDING = 25  # protocol.md: a smaller group is shown but never decides a rank


class WorstGroup(NamedTuple):
    """Worst-group accuracy, the group (-1 if there is none) and its number of test images."""

    wga: float
    group: int
    n_worst: int


def group_counts(g: Array, n_groups: int) -> Int:
    """Images per group, int64 [n_groups], from group indices g [N].

    Raises:
        ValueError: an index outside 0..n_groups-1.
    """
    g = np.asarray(g)
    if g.size and (g.min() < 0 or g.max() >= n_groups):
        raise ValueError(f"group indices must lie in 0..{n_groups - 1}, found {g.min()}..{g.max()}")
    return np.bincount(g.astype(np.int64), minlength=n_groups).astype(np.int64)


def group_accuracy(correct: Array, g: Array, n_groups: int) -> Float:
    """Accuracy in every group, float64 [n_groups], NaN where the group is empty. correct: bool [N]; g: int [N]."""
    correct, counts = np.asarray(correct), group_counts(g, n_groups)
    if correct.shape != np.shape(g):
        raise ValueError(f"correct {correct.shape} and g {np.shape(g)} must have one entry per image")
    hits = np.bincount(np.asarray(g, dtype=np.int64), weights=correct.astype(np.float64), minlength=n_groups)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def worst_group(acc: Array, counts: Array, min_count: int = 1) -> WorstGroup:
    """WGA = min acc_g over groups with at least `min_count` test images (methods.md 6.1); NaN if there is none.

    The minimum of noisy group estimates is biased downwards, more so with more and smaller groups.
    """
    acc, counts = np.asarray(acc, dtype=np.float64), np.asarray(counts)
    admitted = np.flatnonzero(counts >= max(min_count, 1))
    if not len(admitted):
        return WorstGroup(math.nan, -1, 0)
    group = int(admitted[np.argmin(acc[admitted])])
    return WorstGroup(float(acc[group]), group, int(counts[group]))


def average_group_accuracy(acc: Array) -> float:
    """AGA: unweighted mean accuracy over the non-empty groups (SubpopBench calls it adjusted accuracy)."""
    acc = np.asarray(acc, dtype=np.float64)
    held = acc[~np.isnan(acc)]
    return float(held.mean()) if len(held) else math.nan


def train_weighted_accuracy(acc: Array, train_counts: Array) -> float:
    """Adjusted average of Sagawa et al. (2020) and WILDS: sum_g n_g^train acc_g / sum_g n_g^train.

    A group without test images has no accuracy: it is left out and the weights are renormalised over the others
    (`tested_train_share` says how much weight that is). NaN if no group with training images is tested.
    """
    acc, weight = np.asarray(acc, dtype=np.float64), np.asarray(train_counts, dtype=np.float64)
    if acc.shape != weight.shape:
        raise ValueError(f"{acc.shape} accuracies but {weight.shape} training counts")
    weight = np.where(np.isnan(acc), 0.0, weight)
    return float((weight * np.nan_to_num(acc)).sum() / weight.sum()) if weight.sum() > 0 else math.nan


def tested_train_share(counts: Array, train_counts: Array) -> float:
    """Share of the training images whose group has test images: the weight behind `train_weighted_accuracy`."""
    train = np.asarray(train_counts, dtype=np.float64)
    return float(train[np.asarray(counts) > 0].sum() / train.sum()) if train.sum() > 0 else math.nan


def _recalls(pred: Array, y: Array) -> Float:
    """Recall of every class that occurs in y."""
    _, label = np.unique(y, return_inverse=True)
    return group_accuracy(np.asarray(pred) == np.asarray(y), label, int(label.max(initial=-1)) + 1)


def balanced_accuracy(pred: Array, y: Array) -> float:
    """Mean recall over the classes that occur in y [N]; NaN without images."""
    recalls = _recalls(pred, y)
    return float(recalls.mean()) if len(recalls) else math.nan


def worst_class_accuracy(pred: Array, y: Array) -> float:
    """Smallest recall over the classes that occur in y [N]; NaN without images."""
    recalls = _recalls(pred, y)
    return float(recalls.min()) if len(recalls) else math.nan


def macro_f1(pred: Array, y: Array) -> float:
    """Unweighted mean F1 = 2 TP / (2 TP + FP + FN) over the classes that occur in y or in pred."""
    pred, y = np.asarray(pred), np.asarray(y)
    classes = np.union1d(pred, y)
    if not len(classes):
        return math.nan
    scores = [2 * ((pred == k) & (y == k)).sum() / ((pred == k).sum() + (y == k).sum()) for k in classes]
    return float(np.mean(scores))


def auroc(logits: Array, y: Array) -> float:
    """Area under the ROC curve from logits [N, K]: of class 1 for K = 2, macro one-vs-rest for K > 2.

    The score of class k is its log-odds, monotone in p_k and free of softmax saturation (saturated probabilities tie).
    NaN if one of the K classes has no image, or all images.
    """
    logits, y = np.asarray(logits, dtype=np.float64), np.asarray(y)
    k = logits.shape[1]
    if k == 2:
        return _mann_whitney(logits[:, 1] - logits[:, 0], y == 1)
    odds = _log_odds(logits)
    return float(np.mean([_mann_whitney(odds[c], y == c) for c in range(k)]))


def _log_odds(logits: Float) -> Float:
    """z_c - log sum over the other classes of exp z for every class c, [K, N], of logits [N, K]."""
    if not len(logits):
        return np.zeros(logits.T.shape)
    every, first = np.arange(len(logits)), logits.argmax(axis=1)
    below = logits - logits[every, first][:, None]
    share = np.exp(below)
    others = np.zeros_like(share)  # sums of what lies before and after: a difference from the total would lose digits
    others[:, 1:] += share.cumsum(axis=1)[:, :-1]
    others[:, :-1] += share[:, ::-1].cumsum(axis=1)[:, -2::-1]
    odds = below - np.log(np.maximum(others, np.finfo(np.float64).tiny))
    # The largest logit's others may be too small for its own scale: once more on theirs.
    rest = logits.copy()
    rest[every, first] = -np.inf
    second = rest.max(axis=1)
    odds[every, first] = logits[every, first] - second - np.log(np.exp(rest - second[:, None]).sum(axis=1))
    return np.ascontiguousarray(odds.T)


def _mann_whitney(score: Float, positive: npt.NDArray[np.bool_]) -> float:
    """Share of pairs in which the positive one scores higher, ties counting half."""
    above, below = score[positive], np.sort(score[~positive])
    p, n = len(above), len(below)
    if p == 0 or n == 0:
        return math.nan
    above = np.sort(above)  # neighbouring look-ups then share their cache lines
    wins = np.searchsorted(below, above, "left").sum() + np.searchsorted(below, above, "right").sum()
    return float(wins / 2 / (p * n))


def wilson_interval(k: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion with k hits of n; (NaN, NaN) for n = 0.

    k may be fractional: several renderings of one image count as one unit with the mean of their hits.
    """
    if n <= 0:
        return math.nan, math.nan
    if not 0 <= k <= n * (1 + 1e-12):
        raise ValueError(f"{k} hits of {n} is no proportion")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _distinct_counts(g: Array, ids: Array, n_groups: int) -> Int:
    """Distinct base images per group: several renderings of one image never inflate n."""
    images, image = np.unique(ids, return_inverse=True)
    pairs = np.unique(np.asarray(g).astype(np.int64) * max(1, len(images)) + image)
    return group_counts(pairs // max(1, len(images)), n_groups)


def summary(
    logits: Array, y: Array, g: Array, n_groups: int, train_counts: Array, ids: Array | None = None
) -> dict[str, Any]:
    """All accuracies of one (pooled) rendering.

    Args:
        logits: float [N, K]. y, g: class and group, int [N]. train_counts: training images per group [n_groups].
        ids: base image of every row [N]; group counts and intervals then count base images. None: every row is one.

    Returns:
        accuracy, wga, worst_group, n_worst, wga_low/high (95 % Wilson), wga_deciding (over groups of at least 25
        images), aga, train_weighted, train_weighted_share, balanced_accuracy, worst_class, macro_f1, auroc, ece, nll,
        brier, and the lists group_accuracy, group_counts, group_decides.

    Raises:
        ValueError: shapes that do not fit, or logits that are not finite.
    """
    logits, y, g = np.asarray(logits), np.asarray(y), np.asarray(g)
    n = len(y)
    if logits.ndim != 2 or len(logits) != n or g.shape != (n,) or (ids is not None and np.shape(ids) != (n,)):
        raise ValueError(f"logits {logits.shape}, y {y.shape}, g {g.shape} and ids must describe the same {n} images")
    if len(train_counts) != n_groups:
        raise ValueError(f"{len(train_counts)} training counts for {n_groups} groups")
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        raise ValueError(f"the logits of {bad} of {n} images are not finite: the model diverged")
    pred = logits.argmax(axis=1)
    counts = group_counts(g, n_groups) if ids is None else _distinct_counts(g, ids, n_groups)
    acc = group_accuracy(pred == y, g, n_groups)
    worst = worst_group(acc, counts)
    low, high = wilson_interval(worst.wga * worst.n_worst, worst.n_worst)
    return {
        "accuracy": float((pred == y).mean()) if n else math.nan,
        "wga": worst.wga,
        "worst_group": worst.group,
        "n_worst": worst.n_worst,
        "wga_low": low,
        "wga_high": high,
        "wga_deciding": worst_group(acc, counts, MIN_DECIDING).wga,
        "aga": average_group_accuracy(acc),
        "train_weighted": train_weighted_accuracy(acc, train_counts),
        "train_weighted_share": tested_train_share(counts, train_counts),
        "balanced_accuracy": balanced_accuracy(pred, y),
        "worst_class": worst_class_accuracy(pred, y),
        "macro_f1": macro_f1(pred, y),
        "auroc": auroc(logits, y),
        "ece": calibration.ece(logits, y),
        "nll": calibration.nll(logits, y),
        "brier": calibration.brier(logits, y),
        "group_accuracy": acc.tolist(),
        "group_counts": counts.tolist(),
        "group_decides": (counts >= MIN_DECIDING).tolist(),
    }
