"""Stage 1: which training images are shown to the critic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from harness.errors import ConfigError


def entropy(logits: Tensor) -> Tensor:
    """Predictive entropy in nats, float64 [N], of logits [N, K]; float64 because float32 ties confident images at 0."""
    exact = logits.double()
    log_p = (exact - exact.amax(1, keepdim=True)).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


class Sampler(ABC):
    """Base of the samplers. `per_class` gives every class the same number of images, as far as it has them."""

    def __init__(self, per_class: bool = True):
        self.per_class = bool(per_class)

    @property
    def params(self) -> dict[str, Any]:
        """All parameters: part of a cell's identity."""
        return {"per_class": self.per_class}

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """float64 [N], lower is chosen first."""

    def select(self, logits: Tensor, y: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose n images.

        Args:
            logits: float [N, K] of the base model in eval mode. y: int64 [N]. n: 1..N. generator: on the CPU; it breaks
                ties and hands out what is left of the quota.

        Returns:
            int64 [n] unique positions, ascending, on the device of y.

        Raises:
            ConfigError: n is not in 1..N.
        """
        if not 1 <= n <= len(y):
            raise ConfigError(f"the alignment set must hold between 1 and {len(y)} images (all there are), got {n}")
        order = torch.randperm(len(y), generator=generator)
        order = order[self.score(logits).cpu()[order].argsort(stable=True)]
        if not self.per_class:
            return order[:n].sort().values.to(y.device)
        labels = y.cpu()[order]
        quota = class_quota(torch.bincount(labels), n, generator)
        parts = [order[labels == k][: int(q)] for k, q in enumerate(quota)]
        return torch.cat(parts).sort().values.to(y.device)

    def audit(self, index: Tensor, y: Tensor, logits: Tensor) -> dict[str, Any]:
        """Facts about a selection for the record, JSON-serialisable.

        zero_entropies, tied_entropies: among all N candidates, how many are exactly 0 and how many share their value.
        """
        values = entropy(logits).cpu()
        counts = values.unique(return_counts=True)[1]
        chosen = values[index.cpu()]
        return {
            "n": len(index),
            "per_class": self.per_class,
            "class_histogram": torch.bincount(y.cpu()[index.cpu()], minlength=logits.shape[1]).tolist(),
            "entropy_min": float(chosen.min()),
            "entropy_max": float(chosen.max()),
            "entropy_mean_all": float(values.mean()),
            "zero_entropies": int((values == 0).sum()),
            "tied_entropies": int(counts[counts > 1].sum()),
        }


def class_quota(counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """How many of n images each class gives, int64 [K]: as equal as its images allow, the remainder by lot."""
    quota = torch.zeros_like(counts)
    while (left := n - int(quota.sum())) > 0:
        able = (counts > quota).nonzero().flatten()
        each = left // len(able)
        if each == 0:
            quota[able[torch.randperm(len(able), generator=generator)[:left]]] += 1
        else:
            quota[able] += (counts - quota)[able].clamp(max=each)
    return quota


class LowEntropy(Sampler):
    """The most confident images (LVLM-VA, stage 1): where a shortcut works, it makes the model confident."""

    def score(self, logits: Tensor) -> Tensor:
        """The entropy."""
        return entropy(logits)


class HighEntropy(Sampler):
    """The least confident images."""

    def score(self, logits: Tensor) -> Tensor:
        """The entropy, negated."""
        return -entropy(logits)


class Random(Sampler):
    """Images by lot."""

    def score(self, logits: Tensor) -> Tensor:
        """All equal."""
        return torch.zeros(len(logits), dtype=torch.float64)
