"""A reference row placed on a study's grid by its own measurements: what the grid predicts for it, and what it did."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import RegularGridInterpolator

from harness.errors import ConfigError
from harness.statistics import bootstrap_interval
from harness.study import Place


def placed(frame: pd.DataFrame, wanted: Iterable[Place]) -> pd.DataFrame:
    """One line per place, suite and track, paired by seed.

    Columns: where the row lies (mean over seeds of each measure of `at`), `predicted` and `observed` (means), and
    `difference` = observed - predicted with its 95 % interval over seeds. Each seed's prediction is read off that
    seed's own grid by multilinear interpolation; a measurement outside the grid is moved to its edge and counted.

    Raises:
        ConfigError: a row, axis or measure that the study does not have, or a grid with holes.
    """
    found: list[dict[str, Any]] = []
    for place in wanted:
        missing = [name for name in (*place.at, *place.at.values(), place.measure) if name not in frame]
        if missing:
            raise ConfigError(f"place '{place.row}': there is no axis or measure '{missing[0]}'")
        own = frame[(frame["role"] == "reference") & (frame["row"] == place.row)]
        for (suite, track), part in own.groupby(["suite", "track"], sort=False):
            grid = frame[(frame["role"] == "row") & (frame["suite"] == suite) & (frame["track"] == track)]
            found.append({"row": place.row, "suite": suite, "track": track, **_place(grid, part, place)})
    return pd.DataFrame(found)


def place_sentences(found: pd.DataFrame) -> list[str]:
    """The places in words."""
    return [
        f"{line['suite']}, {line['track']}: {line['row']} at {line['where']} is predicted at {line['predicted']:.3f} "
        f"and observed at {line['observed']:.3f}: {line['difference']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}] "
        f"({line['seeds']} seeds, paired)"
        for line in found.to_dict("records")
    ]


def _place(grid: pd.DataFrame, own: pd.DataFrame, place: Place) -> dict[str, Any]:
    predicted, observed, outside = [], [], 0
    own = own.dropna(subset=[place.measure, *place.at.values()])
    for seed, lines in own.groupby("seed"):
        part = grid[grid["seed"] == seed]
        if part.empty:
            continue
        surface, edges = _surface(part, place)
        raw = lines[list(place.at.values())].to_numpy(dtype=float).mean(0)
        inside = np.clip(raw, edges[:, 0], edges[:, 1])
        outside += bool((inside != raw).any())
        predicted.append(float(surface(inside[None])[0]))
        observed.append(float(lines[place.measure].mean()))
    difference = np.array(observed) - np.array(predicted)
    low, high = bootstrap_interval(difference) if len(difference) else (math.nan, math.nan)
    where = {axis: float(own[measure].mean()) for axis, measure in place.at.items()}
    return {
        "where": ", ".join(f"{axis} {value:.3f}" for axis, value in where.items()),
        **where,
        "predicted": float(np.mean(predicted)) if predicted else math.nan,
        "observed": float(np.mean(observed)) if observed else math.nan,
        "difference": float(difference.mean()) if len(difference) else math.nan,
        "low": low,
        "high": high,
        "outside": outside,
        "seeds": len(difference),
    }


def _surface(part: pd.DataFrame, place: Place) -> tuple[RegularGridInterpolator, np.ndarray[Any, Any]]:
    """Interpolator of the measure over the axes, and each axis' ends [A, 2]."""
    axes = list(place.at)
    means = part.groupby(axes)[place.measure].mean()
    ticks = [np.unique(part[axis].to_numpy(dtype=float)) for axis in axes]
    full = pd.MultiIndex.from_product(ticks, names=axes) if len(axes) > 1 else pd.Index(ticks[0], name=axes[0])
    values = means.reindex(full)
    if values.isna().any() or any(len(t) < 2 for t in ticks):
        raise ConfigError(f"place '{place.row}': the grid over {' x '.join(axes)} has holes or a single value")
    shape = tuple(len(t) for t in ticks)
    surface = RegularGridInterpolator(ticks, values.to_numpy(dtype=float).reshape(shape))
    return surface, np.array([[t[0], t[-1]] for t in ticks])
