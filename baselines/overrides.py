"""Settings that a method may change in the preset's training recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.training import TrainRecipe

WEIGHT_DECAY_GRID: tuple[dict[str, Any], ...] = ({"weight_decay": None}, {"weight_decay": 0.1}, {"weight_decay": 1.0})


@dataclass(frozen=True)
class Overrides:
    """None keeps the recipe's own value. steps: optimiser steps of the whole method; lr > 0; weight_decay >= 0."""

    steps: int | None = None
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"lr must be positive, got {self.lr}")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must not be negative, got {self.weight_decay}")

    def apply(self, recipe: TrainRecipe) -> TrainRecipe:
        """The recipe with these settings."""
        changes = {"steps": self.steps, "lr": self.lr, "weight_decay": self.weight_decay}
        return recipe.with_(**{name: value for name, value in changes.items() if value is not None})
