"""Sentences of a study: differences paired by seed, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from harness.errors import ConfigError
from harness.statistics import bootstrap_interval
from harness.study import Contrast

COLUMNS = ["contrast", "row", "over", "suite", "track", "difference", "low", "high", "seeds"]


class _NotThere(ConfigError):
    """A value that the results do not have."""


def contrasts(
    frame: pd.DataFrame, axes: list[str], wanted: Iterable[Contrast], left_out: list[str] | None = None
) -> pd.DataFrame:
    """One line per contrast, suite and track: difference, its 95 % interval over seeds, and the number of seeds.

    over: the axes with several values that the difference is a mean over, joined by commas. left_out: takes a sentence
    for each contrast of values that are not there, of a study whose axes somebody has cut; it then has no line.

    Raises:
        ConfigError: an axis, value, row or measure that the study does not have.
    """
    found: list[dict[str, Any]] = []
    for contrast in wanted:
        absent: dict[str, list[str]] = {}
        for (suite, track), part in frame.groupby(["suite", "track"], sort=False):
            try:
                differences, over = _difference(part, axes, contrast)
            except _NotThere as error:
                if left_out is None:
                    raise
                absent.setdefault(str(error), []).append(f"{suite}, {track}")
                continue
            by_seed = differences.dropna()
            low, high = bootstrap_interval(by_seed.to_numpy(dtype=float)) if len(by_seed) else (math.nan, math.nan)
            mean = float(by_seed.mean()) if len(by_seed) else math.nan
            line = {
                "contrast": str(contrast),
                "row": contrast.row,
                "over": ", ".join(over),
                "suite": suite,
                "track": track,
            }
            found.append({**line, "difference": mean, "low": low, "high": high, "seeds": len(by_seed)})
        if left_out is not None:
            left_out += [f"{'; '.join(places)}: left out: {why}" for why, places in absent.items()]
    return pd.DataFrame(found, columns=COLUMNS)


def sentences(found: pd.DataFrame) -> list[str]:
    """The contrasts in words."""
    return [
        f"{line.suite}, {line.track}{', ' + str(line.row) if line.row else ''}: {line.contrast}"
        f"{', mean over ' + str(line.over) if line.over else ''} = "
        f"{line.difference:+.3f} [{line.low:+.3f}, {line.high:+.3f}] ({line.seeds} seeds, paired)"
        for line in found.itertuples()
    ]


def _difference(part: pd.DataFrame, axes: list[str], contrast: Contrast) -> tuple[pd.Series[float], list[str]]:
    """The difference of every seed, and the axes that it averages."""
    if contrast.measure not in part:
        raise ConfigError(f"contrast '{contrast}': no record has the measure '{contrast.measure}'")
    own = part[part["role"] == "row"]
    if contrast.row:
        own = _where(own, "label", [contrast.row], contrast)
    for name, value in contrast.where.items():
        if name not in axes:
            raise ConfigError(f"contrast '{contrast}': there is no axis '{name}'; axes: {', '.join(axes)}")
        own = _where(own, name, value if isinstance(value, list) else [value], contrast)
    if contrast.against:
        other = _where(part[part["role"] == "reference"], "row", [contrast.against], contrast)
    else:
        if contrast.axis not in axes:
            raise ConfigError(f"contrast '{contrast}': there is no axis '{contrast.axis}'; axes: {', '.join(axes)}")
        other = _where(own, contrast.axis, [contrast.start], contrast)
        own = _where(own, contrast.axis, [contrast.to], contrast)
    over = [name for name in axes if own[name].nunique() > 1]
    return _by_seed(own, contrast.measure) - _by_seed(other, contrast.measure), over


def _where(frame: pd.DataFrame, column: str, values: list[Any], contrast: Contrast) -> pd.DataFrame:
    kept = frame[frame[column].isin(values)]
    if kept.empty:
        known = ", ".join(str(v) for v in frame[column].dropna().unique())
        raise _NotThere(f"contrast '{contrast}': no results where {column} is {values}; there are: {known}")
    return kept


def _by_seed(frame: pd.DataFrame, measure: str) -> pd.Series[float]:
    return frame.groupby("seed")[measure].mean()
