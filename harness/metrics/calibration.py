"""How well a model's probabilities fit its hits: ECE, negative log-likelihood, Brier score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """log p [N, K] in float64: float32 softmax saturates to exact zeros."""
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, K], got {logits.shape}")
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def ece(logits: Array, y: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017), in 0..1; NaN without images.

    Confidence c = max_k p_k falls into one of `bins` equal-width bins ((b-1)/bins, b/bins]; ECE = sum over bins of
    (images in the bin / N) * |accuracy in the bin - mean confidence in the bin|.
    """
    logp = log_softmax(logits)
    if not len(logp):
        return math.nan
    confidence = np.exp(logp.max(axis=1))
    hit = logp.argmax(axis=1) == np.asarray(y)
    slot = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(slot, weights=hit - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(logp))


def nll(logits: Array, y: Array) -> float:
    """Mean negative log-likelihood of the labels, in nats; NaN without images."""
    logp = log_softmax(logits)
    return float(-logp[np.arange(len(logp)), np.asarray(y)].mean()) if len(logp) else math.nan


def brier(logits: Array, y: Array) -> float:
    """Brier (1950) score: mean over images of sum_k (p_k - 1[y = k])^2, in 0..2; NaN without images."""
    p = np.exp(log_softmax(logits))
    if not len(p):
        return math.nan
    p[np.arange(len(p)), np.asarray(y)] -= 1
    return float((p**2).sum(axis=1).mean())
