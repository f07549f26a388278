"""What a study writes: one line per point, row, track and seed; means with intervals; fitted power laws; a figure."""

from __future__ import annotations

import difflib
import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from harness.api import survey
from harness.config import RunConfig
from harness.errors import ComponentError, ConfigError, DataError, VabenchError
from harness.plan import CellState, resolve_row
from harness.record import Record
from harness.statistics import bootstrap_interval
from harness.store import write_bytes
from harness.study import Fit, Grid
from harness.study_contrast import contrasts, sentences
from harness.study_place import place_sentences, placed

HEAD = ("suite", "row", "label", "block", "role", "track", "seed", "status", "reason")
SHOWN = 5  # reasons for cells without numbers that are told


@dataclass(frozen=True)
class Result:
    """What a figure is drawn from.

    frame: `lines`. means: `summarise`. fits: `fit_exponents`, empty without a fit. axes: names of the axes.
    """

    name: str
    summary: str
    axes: list[str]
    measure: list[str]
    frame: pd.DataFrame
    means: pd.DataFrame
    fits: pd.DataFrame


Figure = Callable[..., dict[str, bytes]]
Look = Callable[[RunConfig], list[CellState]]


def write_study(grid: Grid) -> tuple[list[Path], list[str]]:
    """Write the CSV files and the figure of what is stored; returns the files and what a reader must be told.

    Raises:
        ConfigError: a measure that no record has (with the nearest), a figure that cannot be found.
        DataError: no cell has numbers; files of an earlier run stay as they are.
    """
    frame = lines(grid)
    told = _missing(frame)
    if not (frame["track"] != "").any():
        raise DataError(
            " ".join([f"no cell of the study {grid.study.name} has numbers, so nothing was written.", *told[:1]])
        )
    every_cell = grid.folder / f"{grid.file_name}.csv"
    write_bytes(every_cell, _csv(frame))  # before all that may fail: it holds what can be measured
    files, said = derived(grid, frame, partly=grid.cut)
    for name, content in files.items():
        write_bytes(grid.folder / name, content)
    return [every_cell, *(grid.folder / name for name in files)], told + said


def derived(grid: Grid, frame: pd.DataFrame, *, partly: bool = False) -> tuple[dict[str, bytes], list[str]]:
    """Files that follow from `lines`, by name, and what they say in sentences: means, fits, contrasts, figure.

    partly: contrasts of values that the grid does not have are left out, in words, instead of refused.

    Raises:
        ConfigError: as `write_study`.
    """
    study, name = grid.study, grid.file_name
    done = frame[frame["track"] != ""]
    _check_measures(study.name, study.measure, done)
    means = summarise(done, grid.axes, study.measure)
    files, told = {f"{name}-summary.csv": _csv(means)}, []
    fits = fit_exponents(done[done["role"] == "row"], study.fit) if study.fit else pd.DataFrame()
    if study.fit:
        files[f"{name}-fit.csv"] = _csv(fits)
        told += fit_sentences(fits, study.fit)
    if study.contrasts:
        left_out: list[str] = []
        differences = contrasts(done, grid.axes, study.contrasts, left_out if partly else None)
        files[f"{name}-contrasts.csv"] = _csv(differences)
        told += sentences(differences) + left_out
    if study.places:
        predictions = placed(done, study.places)
        files[f"{name}-placed.csv"] = _csv(predictions)
        told += place_sentences(predictions)
    if study.figure:
        options = {key: value for key, value in study.figure.items() if key != "kind"}
        result = Result(study.name, study.summary, grid.axes, study.measure, done, means, fits)
        for ending, content in _draw(study.name, str(study.figure.get("kind", "")), result, options).items():
            files[f"{name}.{ending}"] = content
    return files, told


# --- one line per cell and track --------------------------------------------------------------------------------------


def lines(grid: Grid, look: Look = survey) -> pd.DataFrame:
    """One line per axis point, suite, row, track and seed; a cell without numbers has one line with an empty track.

    Columns: the axes, HEAD, every scalar metric under its own name, base.* (the base model's scores), cost_s,
    standalone.* and spent.* (seconds by phase), verdicts.* and mask_quality.* (measured on train), id. A reference row
    has the value of an axis only where its cell belongs to that value alone.

    Args:
        look: the state of every cell of a config, as `harness.api.survey` gives it for a results folder.
    """
    found: list[dict[str, Any]] = []
    references: dict[str, tuple[CellState, str, list[dict[str, Any]]]] = {}
    for group in grid.groups:
        states = _by_row(look(group.config))
        for point, row in group.rows:
            for state in states[str(resolve_row(row))]:
                found += [{**point, **line} for line in _lines(state, row.label, "row")]
        for row in group.references:
            for state in states[str(resolve_row(row))]:
                held = references.setdefault(state.cell.id, (state, row.label, []))
                held[2].extend(group.points)
    for state, label, points in references.values():
        common = {name: points[0][name] for name in grid.axes if all(p[name] == points[0][name] for p in points)}
        blank = dict.fromkeys(grid.axes)
        found += [{**blank, **common, **line} for line in _lines(state, label, "reference")]
    frame = pd.DataFrame(found)
    for name in grid.axes:  # a blank of a reference row must not turn 6 into 6.0
        values = [point[name] for group in grid.groups for point in group.points]
        if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            frame[name] = frame[name].astype("Int64")
    return frame


def _by_row(found: Iterable[CellState]) -> dict[str, list[CellState]]:
    """States of cells by resolved row."""
    states: dict[str, list[CellState]] = {}
    for state in found:
        states.setdefault(str(state.cell.row), []).append(state)
    return states


def _lines(state: CellState, label: str, role: str) -> list[dict[str, Any]]:
    cell, record = state.cell, state.record
    head: dict[str, Any] = dict.fromkeys(HEAD, "") | {
        "suite": cell.suite_name,
        "row": cell.row_name,
        "label": label or cell.row_name,
    }
    head |= {"role": role, "seed": cell.seed}
    if record is None:
        return [{**head, "status": state.state, "reason": state.why}]
    head |= {"block": record.block, "status": record.status.value, "reason": record.reason, "id": record.id}
    if not record.tracks:
        return [head]
    shared = _facts(record)
    tracks = []
    for name, track in record.tracks.items():
        scalars = {k: v for k, v in track.metrics.items() if not isinstance(v, list | dict | str)}
        tracks.append({**head, "track": name, **scalars, "cost_s": track.cost_s, "rule": track.rule, **shared})
    return tracks


def _facts(record: Record) -> dict[str, Any]:
    facts: dict[str, Any] = {f"base.{k}": v for k, v in record.base.items()}
    facts |= {f"standalone.{k}": v for k, v in record.standalone.items()}
    facts |= {f"spent.{k}": v for k, v in record.spent.items()}
    for name in ("verdicts", "mask_quality"):
        held = record.audit.get(name)
        facts |= {f"{name}.{k}": v for k, v in held.items()} if isinstance(held, dict) else {}
    return facts


def _missing(frame: pd.DataFrame) -> list[str]:
    """Cells without numbers, by reason."""
    lacking = frame[frame["track"] == ""].drop_duplicates(["suite", "row", "seed", "status", "reason"])
    counts = Counter(zip(lacking["status"], lacking["reason"], strict=True))
    told = [f"{count} cells {status}: {reason}" for (status, reason), count in counts.items()]
    return [*told[:SHOWN], *([f"... and {len(told) - SHOWN} more reasons"] if len(told) > SHOWN else [])]


def _check_measures(name: str, measures: Iterable[str], frame: pd.DataFrame) -> None:
    for measure in measures:
        if measure not in frame or frame[measure].isna().all():
            known = [str(column) for column in frame.select_dtypes("number") if not frame[str(column)].isna().all()]
            near = difflib.get_close_matches(measure, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"the study {name}: no record has the measure '{measure}'; {hint}")


# --- over seeds -------------------------------------------------------------------------------------------------------


def summarise(frame: pd.DataFrame, axes: list[str], measures: list[str]) -> pd.DataFrame:
    """Mean and 95 % interval over seeds (`harness.statistics.bootstrap_interval`) of every measure.

    One line per point, suite, row, role and track; columns measure, measure_low, measure_high, and seeds, their number.
    """
    keys = [*axes, "suite", "row", "label", "role", "track"]
    found = []
    for key, part in frame.groupby(keys, sort=False, dropna=False):
        line = dict(zip(keys, key, strict=True))
        line["seeds"] = part["seed"].nunique()
        for measure in measures:
            values = part[measure].dropna().to_numpy(dtype=float)
            low, high = bootstrap_interval(values)
            line |= {measure: values.mean() if len(values) else math.nan}
            line |= {f"{measure}_low": low, f"{measure}_high": high}
        found.append(line)
    return pd.DataFrame(found)


def fit_exponents(frame: pd.DataFrame, fit: Fit) -> pd.DataFrame:
    """Power laws y = scale * x^exponent by least squares in logarithms, through the medians over seeds (and rows).

    Medians, because a machine only ever disturbs seconds upwards (a process's first training imports and warms up).
    low and high: 95 % t interval of the exponent. It knows scatter, not curvature: a fixed cost beside a growing one
    bends the line and shows as an exponent between the two. Without two different x and three values: NaN.
    """
    missing = [name for name in (fit.x, *fit.y, *fit.by) if name not in frame]
    if missing:
        raise ConfigError(f"fit: there is no axis or measure '{missing[0]}'")
    groups = frame.groupby(list(fit.by), sort=False, dropna=False) if fit.by else [((), frame)]
    found = []
    for key, part in groups:
        for y in fit.y:
            numbers = part[[fit.x, y]].astype(float)
            numbers = numbers[(numbers > 0).all(axis=1)].groupby(fit.x, as_index=False).median()
            law = power_law(numbers[fit.x].to_numpy(), numbers[y].to_numpy())
            found.append({**dict(zip(fit.by, key, strict=True)), "against": fit.x, "measure": y, **law})
    return pd.DataFrame(found)


def fit_sentences(fits: pd.DataFrame, fit: Fit) -> list[str]:
    """What every fit found, in words; a measure that stands still, or one that cannot be fitted, has no sentence."""
    found = []
    for _, line in fits.iterrows():
        if math.isnan(line["exponent"]) or line["low"] <= 0 <= line["high"]:
            continue
        part = ", ".join(str(line[name]) for name in fit.by)
        where = f" ({part})" if part else ""
        law = f"{line['measure']} goes as {line['against']}^{line['exponent']:.2f}{where}"
        found.append(f"{law}, 95 % interval of the exponent [{line['low']:.2f}, {line['high']:.2f}]")
    return found


def power_law(x: Any, y: Any, level: float = 0.95) -> dict[str, float]:
    """exponent, low, high, scale, r2 and the number of values of y = scale * x^exponent; x, y positive, [n]."""
    nan = math.nan
    if len(set(x)) < 2 or len(x) < 3:
        return {"exponent": nan, "low": nan, "high": nan, "scale": nan, "r2": nan, "values": len(x)}
    u, v = np.log(x), np.log(y)
    du, dv = u - u.mean(), v - v.mean()
    exponent = float(du @ dv / (du @ du))
    residual = dv - exponent * du
    spread = math.sqrt(float(residual @ residual) / (len(x) - 2) / float(du @ du))
    reach = float(student.isf(0.5 - level / 2, len(x) - 2)) * spread
    r2 = 1 - float(residual @ residual) / float(dv @ dv) if dv.any() else nan
    scale = math.exp(float(v.mean()) - exponent * float(u.mean()))
    found = {"exponent": exponent, "low": exponent - reach, "high": exponent + reach}
    return {**found, "scale": scale, "r2": r2, "values": len(x)}


# --- files ------------------------------------------------------------------------------------------------------------


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def _draw(name: str, kind: str, result: Result, options: dict[str, Any]) -> dict[str, bytes]:
    module, _, attribute = kind.partition(":")
    try:
        figure: Figure = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a stranger's import may raise anything
        raise ComponentError(
            f"the study {name}: its figure '{kind}' cannot be loaded ({type(error).__name__}: {error}); "
            f"write kind: package.module:function"
        ) from error
    try:
        return figure(result, **options)
    except VabenchError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"the study {name}: its figure '{kind}' refuses its options: {error}") from error
