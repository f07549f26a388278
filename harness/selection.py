"""The tuned track's choice among candidates: each rule reads only what its class may read (protocol.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.context import RunContext
from harness.masks import MaskSet
from harness.metrics.groups import group_accuracy, group_counts, worst_group
from harness.supervision import Supervision, Task
from harness.training import predict

RULES = ("val_accuracy", "val_groups", "masked_val")


def rule_supervision(rule: str) -> Supervision:
    """What a rule reads beyond the candidates."""
    return Supervision.LABELS | (Supervision.VAL_GROUPS if rule == "val_groups" else Supervision.NONE)


def fill_masked(images: Tensor, masks: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """Replace the marked pixels by random content: one `colour` per image, or `noise` per pixel.

    Args:
        images: uint8 [N, C, H, W]. masks: bool [N, H, W].
    """
    n, c, h, w = images.shape
    size = (n, c, 1, 1) if fill == "colour" else (n, c, h, w)
    content = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).to(images.device)
    return torch.where(masks[:, None], content.expand_as(images), images)


def scores(
    rule: str,
    models: Sequence[nn.Module],
    task: Task,
    masked: Callable[[], MaskSet],
    fill: str,
    context: RunContext,
) -> list[float]:
    """A candidate's score under a rule, higher is better.

    Args:
        task: guarded; the rule's reads are charged to its ledger.
        masked: gives the source's masks on validation; called by `masked_val` alone.
    """
    if rule == "val_accuracy":
        return [_accuracy(model, task.val.images, task.val.y) for model in models]
    if rule == "val_groups":
        view = task.val_groups
        return [_worst_group(model, view.images, view.y, view.groups, len(task.group_names)) for model in models]
    if rule == "masked_val":
        found = masked()
        images, y = task.val.images[found.index], task.val.y[found.index]
        filled = fill_masked(images, found.masks, fill, context.generator("selection/fill"))
        return [_accuracy(model, filled, y) for model in models]
    raise ValueError(f"unknown selection rule '{rule}'; known: {', '.join(RULES)}")


def choose(values: Sequence[float], ties: Sequence[float]) -> int:
    """Index of the best score; ties go to the higher tie-breaker, then to the earlier candidate."""
    keys = [(round(v, 12), round(t, 12), -k) for k, (v, t) in enumerate(zip(values, ties, strict=True))]
    return -max(keys)[2]


def _accuracy(model: nn.Module, images: Tensor, y: Tensor) -> float:
    return float((predict(model, images).argmax(1) == y).double().mean())


def _worst_group(model: nn.Module, images: Tensor, y: Tensor, g: Tensor, n_groups: int) -> float:
    correct: np.ndarray[Any, Any] = (predict(model, images).argmax(1) == y).cpu().numpy()
    groups = g.cpu().numpy()
    return worst_group(group_accuracy(correct, groups, n_groups), group_counts(groups, n_groups))[0]
