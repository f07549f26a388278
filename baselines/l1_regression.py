"""DFR's solver: scikit-learn's l1 logistic regression, in a module of its own because of its import."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

__all__ = ["L1", "StandardScaler", "fit_head"]

Floats = npt.NDArray[np.float64]
# scikit-learn 1.8 renamed the switch to l1, and the old one is ignored or warned about.
_PENALTY = inspect.signature(LogisticRegression).parameters["penalty"].default
L1: dict[str, Any] = {"l1_ratio": 1.0} if _PENALTY == "deprecated" else {"penalty": "l1"}


def fit_head(x: Floats, y: npt.NDArray[np.int64], num_classes: int, c: float, seed: int) -> tuple[Floats, Floats]:
    """Weights [K, D] and biases [K] of an l1 logistic regression; for K > 2 one-vs-rest, as liblinear does it."""
    regression = LogisticRegression(**L1, C=c, solver="liblinear", max_iter=1000, random_state=seed)
    if num_classes == 2:
        regression.fit(x, y)
        weight, bias = regression.coef_[0], regression.intercept_[0]
        return np.stack([-weight, weight]) / 2, np.stack([-bias, bias]) / 2
    parts = OneVsRestClassifier(regression).fit(x, y).estimators_
    return np.concatenate([part.coef_ for part in parts]), np.concatenate([part.intercept_ for part in parts])
