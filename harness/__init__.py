"""The engine of vabench: it plans, runs, measures and stores cells, and knows no method, suite or paper by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the door is typed, yet importing `harness` stays free of torch and pandas
    import pandas as pd

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def run(preset: str = "quickstart", *overrides: str, **settings: Any) -> pd.DataFrame:
    """Run a preset from Python and return its leaderboard frame; see `harness.api.run`."""
    from harness.api import run as run_preset

    return run_preset(preset, *overrides, **settings)
