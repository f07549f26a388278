"""How good a critic is: verdicts against the truth of their segments, correction masks against the ground truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.metrics.agreement import Estimate, clustered_coefficient, clustered_share, cohen_kappa
from harness.metrics.groups import wilson_interval

Array = npt.NDArray[Any]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def verdict_rates(verdicts: Array, truth: Array, nonempty: Array) -> dict[str, float]:
    """Confusion of verdicts with the truth (1 spurious, 0 relevant, -1 no verdict), over the non-empty segments.

    A null verdict is counted (`null`) and enters no rate. The Wilson intervals treat segments as independent: they are
    too narrow where one image's segments fail together.

    Args:
        verdicts, truth: int [N, J] (truth: 1 if half of the segment's positive attribution lies in the ground-truth
            mask). nonempty: bool [N, J].

    Returns:
        fpr, fnr with _low and _high (95 %), precision, recall, specificity, accuracy, accuracy_all_zero (what calling
        every judged segment relevant scores), base_rate, the counts tp, fp, tn, fn, null and n (non-empty segments).
    """
    verdicts, truth, nonempty = (np.asarray(v) for v in (verdicts, truth, nonempty))
    if not verdicts.shape == truth.shape == nonempty.shape:
        raise ValueError(f"verdicts {verdicts.shape}, truth {truth.shape} and nonempty {nonempty.shape} must agree")
    verdict, real = verdicts[nonempty.astype(bool)], truth[nonempty.astype(bool)]
    if not (np.isin(verdict, (-1, 0, 1)).all() and np.isin(real, (0, 1)).all()):
        raise ValueError("verdicts must be 1, 0 or -1, and the truth of a non-empty segment 1 or 0")
    tp, fp = int(((verdict == 1) & (real == 1)).sum()), int(((verdict == 1) & (real == 0)).sum())
    fn, tn = int(((verdict == 0) & (real == 1)).sum()), int(((verdict == 0) & (real == 0)).sum())
    fpr_low, fpr_high = wilson_interval(fp, fp + tn)
    fnr_low, fnr_high = wilson_interval(fn, fn + tp)
    judged = tp + fp + tn + fn
    return {
        "fpr": _ratio(fp, fp + tn),
        "fpr_low": fpr_low,
        "fpr_high": fpr_high,
        "fnr": _ratio(fn, fn + tp),
        "fnr_low": fnr_low,
        "fnr_high": fnr_high,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "accuracy": _ratio(tp + tn, judged),
        "accuracy_all_zero": _ratio(tn + fp, judged),
        "base_rate": _ratio(tp + fn, judged),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "null": int((verdict == -1).sum()),
        "n": int(verdict.size),
    }


def mask_quality(masks: Array, truth: Array, maps: Array | None = None) -> dict[str, float]:
    """Correction masks against the ground-truth masks, both bool [N, H, W]; pixels pooled over all images.

    Returns:
        precision, recall, iou (NaN where undefined), coverage = share of images with a non-empty correction mask; with
        attribution maps [N, H, W] also attribution_precision and attribution_recall, in which a pixel weighs its share
        of the image's positive attribution (an image without any weighs nothing).
    """
    masks, truth = np.asarray(masks), np.asarray(truth)
    if masks.shape != truth.shape or masks.ndim != 3 or masks.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"need bool masks [N, H, W], got {masks.dtype} {masks.shape} and {truth.dtype} {truth.shape}")
    both = masks & truth
    out = {
        "precision": _ratio(both.sum(), masks.sum()),
        "recall": _ratio(both.sum(), truth.sum()),
        "iou": _ratio(both.sum(), (masks | truth).sum()),
        "coverage": _ratio(masks.any(axis=(1, 2)).sum(), len(masks)),
    }
    if maps is not None:
        weight = np.maximum(np.asarray(maps, dtype=np.float64), 0)
        if weight.shape != masks.shape or not np.isfinite(weight).all():
            raise ValueError(f"need finite maps {masks.shape}, got {weight.shape}")
        total = weight.sum(axis=(1, 2), keepdims=True)
        share = weight / np.where(total > 0, total, 1)
        out["attribution_precision"] = _ratio(share[both].sum(), share[masks].sum())
        out["attribution_recall"] = _ratio(share[both].sum(), share[truth].sum())
    return out


CONFUSION = ("tn", "fp", "fn", "tp", "null")  # columns of `confusion_counts`
_SHARES = {  # measure -> columns of numerator and denominator
    "accuracy": ((0, 3), (0, 1, 2, 3)),
    "precision": ((3,), (1, 3)),
    "recall": ((3,), (2, 3)),
    "fpr": ((1,), (0, 1)),
    "fnr": ((2,), (2, 3)),
    "base_rate": ((2, 3), (0, 1, 2, 3)),
    "accuracy_all_zero": ((0, 1), (0, 1, 2, 3)),
    "null": ((4,), (0, 1, 2, 3, 4)),
}


def confusion_counts(verdicts: Array, truth: Array, nonempty: Array) -> npt.NDArray[np.int64]:
    """Confusion of every image's verdicts, int64 [N, 5] with the columns CONFUSION; arguments as in `verdict_rates`."""
    verdicts, truth, nonempty = (np.asarray(v) for v in (verdicts, truth, nonempty))
    there = nonempty.astype(bool)
    kinds = [(there & (verdicts == v) & (truth == t)).sum(1) for t in (0, 1) for v in (0, 1)]
    return np.stack([*kinds, (there & (verdicts == -1)).sum(1)], 1).astype(np.int64)


def verdict_estimates(
    verdicts: Array, truth: Array, nonempty: Array, images: Array, resamples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Rates of verdicts with 95 % intervals that cluster by image: segments of one image may fail together.

    Several alignment sets (seeds) are pooled by stacking their rows; an image that stands in several of them is one
    cluster. Percentile bootstrap over clusters; a share of exactly 0 or 1 gets Wilson's interval with images as units.

    Args:
        verdicts, truth, nonempty: [N, J] as in `verdict_rates`. images: int [N], the base image of every row.

    Returns:
        accuracy, precision, recall, fpr, fnr, kappa (Cohen's, against the truth), base_rate, accuracy_all_zero (calling
        every judged segment relevant; its kappa is 0 by definition) and null (segments without a verdict, of all).
    """
    rates = verdict_rates(verdicts, truth, nonempty)  # checks the values
    counts = confusion_counts(verdicts, truth, nonempty)
    if counts.sum() != rates["n"]:
        raise RuntimeError("the counts by image do not add up to the segments")
    found: dict[str, Estimate] = {}
    for name, (part, whole) in _SHARES.items():

        def ratio(sums: Array, part: tuple[int, ...] = part, whole: tuple[int, ...] = whole) -> tuple[Array, Array]:
            return sums[..., list(part)].sum(-1), sums[..., list(whole)].sum(-1)

        found[name] = clustered_share(counts, images, ratio, resamples, seed)
    table = counts[:, :4].reshape(-1, 2, 2)  # rows: truth 0, 1; columns: verdict 0, 1
    found["kappa"] = clustered_coefficient(table, images, cohen_kappa, resamples, seed)
    return found


def unchanged(
    first: Array, second: Array, among: Array, images: Array, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Share of verdicts that are alike in two rounds, over segments of `among` (bool [N, J]) judged in both.

    first, second: int [N, J] in 1, 0, -1 (no verdict). images: int [N], clusters of the interval.
    """
    both = np.asarray(among).astype(bool) & (np.asarray(first) >= 0) & (np.asarray(second) >= 0)
    alike = both & (np.asarray(first) == np.asarray(second))
    counts = np.stack([alike.sum(1), both.sum(1)], 1)
    return clustered_share(counts, images, lambda sums: (sums[..., 0], sums[..., 1]), resamples, seed)
