"""Every number that test logits and a suite's labels decide. No torch: whoever checks a submission needs none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.metrics import groups, reliance
from harness.record import plain
from harness.suite import SuiteData


def score(logits: Mapping[str, npt.NDArray[np.float32]], data: SuiteData) -> dict[str, Any]:
    """Metrics that logits alone decide: accuracies by rendering and group, gap, flips. No model is needed."""
    roles, test = data.roles, data.test
    accuracy = {name: float((logits[name].argmax(1) == test[name].y).mean()) for name in test}
    train_counts = groups.group_counts(data.train.g, len(data.group_names))
    pooled = groups.summary(
        np.concatenate([logits[name] for name in roles.grouped]),
        np.concatenate([test[name].y for name in roles.grouped]),
        np.concatenate([test[name].g for name in roles.grouped]),
        len(data.group_names),
        train_counts,
        np.concatenate([test[name].ids for name in roles.grouped]),
    )
    found: dict[str, Any] = {**pooled, "headline": accuracy[roles.headline], "accuracy": accuracy[roles.average]}
    found |= {f"accuracy.{name}": value for name, value in accuracy.items()}
    if data.official is not None:
        theirs = data.official(logits[roles.headline].argmax(1).astype(np.int64))
        found |= {f"official.{name}": value for name, value in theirs.items()}
    if roles.aligned is not None:
        found["gap"] = reliance.gap(accuracy[roles.aligned], accuracy[roles.headline])
        changed = {"insert": roles.insert, "remove": roles.remove, "placebo": roles.placebo}
        predictions = {role: logits[name].argmax(1) for role, name in changed.items() if name is not None}
        effects = reliance.flip_effects(logits[roles.aligned].argmax(1), predictions)
        found |= {f"flip_{role}": value for role, value in effects.items()}
    return dict(plain(found))
