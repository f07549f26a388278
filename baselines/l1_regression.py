"""DFR's solver: scikit-learn's l1 logistic regression, in a module of its own because of its import."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

__all__ = ["L1", "StandardScaler", "fit_head"]

Floats = npt.NDArray[np.float64]
# scikit-learn 1.8 renamed the switch to l1, and the old one is ignored or warned about.
_PENALTY = inspect.signature(LogisticRegression).parameters["penalty"].default
L1: dict[str, Any] = {"l1_ratio": 1.0} if _PENALTY == "deprecated" else {"penalty": "l1"}


def fit_head(x: Floats, y: npt.NDArray[np.int64], num_classes: int, c: float, seed: int) -> tuple[Floats, Floats]:
    """Weights [K, D] and biases [K] of an l1 logistic regression; for K > 2 one-vs-rest, as liblinear does it.

    x: finite; looking for NaN and at the parameters takes a fifth of the time of so small a fit.
    """
    regression = LogisticRegression(**L1, C=c, solver="liblinear", max_iter=1000, random_state=seed)
    weights, biases = [], []
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for label in [1] if num_classes == 2 else range(num_classes):
            regression.fit(x, (y == label).astype(np.int64))
            weights.append(regression.coef_[0])
            biases.append(regression.intercept_[0])
    if num_classes == 2:
        weights, biases = [-weights[0] / 2, weights[0] / 2], [-biases[0] / 2, biases[0] / 2]
    return np.stack(weights), np.stack(biases)
