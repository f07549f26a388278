"""A published study: its definition beside the records of a board, and the files that follow from the two.

Cells of a results folder are known by a hash of code and data, and become stale. A board's records stand as they are: a
point of the study finds its record by what was asked of the cell, with settings that are younger than the record at
their defaults (a default is always what was done before there was the setting).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import ValidationError

from harness.api import survey
from harness.config import Alignment, Metrics, Recipes, RunConfig, Selection
from harness.errors import DataError
from harness.plan import Cell, CellState, digest, plan
from harness.progress import count
from harness.record import Record, Status
from harness.study import Grid, expand, read_study, self_contained
from harness.study_table import derived, lines
from leaderboard.published import STUDY, read_published
from leaderboard.render import EMPTY

OURS = "leaderboard.figures:"
_SECTIONS = {"recipes": Recipes, "alignment": Alignment, "metrics": Metrics, "selection": Selection}


def study_text(name: str, overrides: Sequence[str]) -> tuple[str, list[Record]]:
    """A study's definition for a board, complete in itself, and the records of its cells.

    Where overrides change what is run, its name ends with the same eight hex digits as its files in a results folder.

    Args:
        name: a registered study's name, or its YAML file.
        overrides: as in `vabench study`.

    Raises:
        ConfigError, ComponentError: as `vabench study`. DataError: some of its cells have no record.
    """
    study = read_study(name)
    grid = expand(study, overrides)
    states = {state.cell.id: state for config in grid.configs for state in survey(config)}
    absent = [state for state in states.values() if state.record is None]
    if absent:
        first, command = absent[0], " ".join(["vabench study", name, *overrides])
        raise DataError(
            f"{count(len(absent), 'cell')} of the study {name} have no record in {grid.configs[0].results}/ that fits "
            f"({first.cell}: {first.state}, {first.why}); `{command}` runs them"
        )
    derived(grid, lines(grid))  # what cannot be drawn is not published
    whole = self_contained(study, overrides).model_copy(update={"name": grid.file_name})  # a part is not the whole
    values = whole.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return text, [state.record for state in states.values() if state.record is not None]


def study_files(folder: Path) -> dict[str, bytes]:
    """The means, fits, contrasts and the vector figure of a published study, by name.

    Raises:
        ConfigError: the definition is none. DataError: records are damaged, or do not hold every cell of the study.
    """
    _, files, _ = _rebuilt(folder, _records(folder))
    return {name: content for name, content in files.items() if not name.endswith(".png")}


@dataclass(frozen=True)
class Shown:
    """A published study for the page.

    svg: its figure, empty without one. heads, means: its rows with mean and 95 % interval of every measure, as text.
    said: contrasts, fits, predictions in words. asked: its cells, axes and seeds in a sentence.
    """

    name: str
    summary: str
    svg: str
    heads: tuple[str, ...]
    means: tuple[tuple[str, ...], ...]
    said: tuple[str, ...]
    asked: str


def read_study_board(folder: Path) -> Shown:
    """A published study, drawn again from its records.

    Raises:
        DataError: a record is damaged or missing. ConfigError: the definition is none.
    """
    records = _records(folder)
    grid, files, said = _rebuilt(folder, records)
    svg = files.get(f"{grid.file_name}.svg", b"").decode()
    means = pd.read_csv(io.BytesIO(files[f"{grid.file_name}-summary.csv"]), dtype=dict.fromkeys(grid.axes, str))
    heads, lines = _table(means, grid)
    return Shown(grid.study.name, grid.study.summary, svg, heads, lines, tuple(said), _asked_in_words(grid, records))


def _table(means: pd.DataFrame, grid: Grid) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    extra = [name for name in ("suite", "track") if means[name].nunique() > 1]
    heads = ("row", *grid.axes, *extra, "seeds", *grid.study.measure)

    def spread(line: Any, name: str) -> str:
        mean, low, high = (line[f"{name}{end}"] for end in ("", "_low", "_high"))
        if pd.isna(mean):
            return EMPTY
        return f"{mean:.3f}" if pd.isna(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    lines = []
    for _, line in means.iterrows():
        axes = [EMPTY if pd.isna(line[name]) else str(line[name]) for name in grid.axes]
        numbers = [spread(line, name) for name in grid.study.measure]
        lines.append((str(line["label"]), *axes, *(str(line[name]) for name in extra), str(line["seeds"]), *numbers))
    return heads, tuple(lines)


def _asked_in_words(grid: Grid, records: Sequence[Record]) -> str:
    points = [point for group in grid.groups for point in group.points]
    axes = [f"{name} {', '.join(dict.fromkeys(str(point[name]) for point in points))}" for name in grid.axes]
    seeds = dict.fromkeys(seed for config in grid.configs for seed in config.seeds)
    named = {key for config in grid.configs for key in map(_of_cell, plan(config, data_too=False))}
    idle = sum(_asked(record.suite, record.config, record.seed) not in named for record in records)
    beside = f" {count(idle, 'record')} of the board belong to none of its points." if idle else ""
    size = f"{count(len(seeds), 'seed')}, {count(len(named), 'cell')}."
    return f"{count(len(points), 'point')}: {'; '.join(axes)}. {size}{beside}"


def _records(folder: Path) -> list[Record]:
    records, damaged = read_published(folder)
    if damaged:
        raise DataError(damaged[0])
    return records


def _rebuilt(folder: Path, records: Iterable[Record]) -> tuple[Grid, dict[str, bytes], list[str]]:
    path = folder / STUDY
    study, said = read_study(str(path)), []
    kind = str(study.figure.get("kind", ""))
    if kind and not kind.startswith(OURS):  # a board may be a stranger's: nothing else is called
        study = study.model_copy(update={"figure": {}})
        said = [f"Its figure is drawn by {kind}, which is not vabench's own: a board calls nothing else."]
    grid = expand(study)
    files, told = derived(grid, lines(grid, _look(path, records)))
    return grid, files, [*told, *said]


def _look(path: Path, records: Iterable[Record]) -> Callable[[RunConfig], list[CellState]]:
    held = {_asked(record.suite, record.config, record.seed): record for record in records}

    def look(config: RunConfig) -> list[CellState]:
        found = []
        for cell in plan(config, data_too=False):
            record = held.get(_of_cell(cell))
            if record is None:
                raise DataError(f"the board holds no record of {cell}, which its study {path} names; publish it again")
            done = record.status in (Status.DONE, Status.NOT_APPLICABLE)
            found.append(CellState(cell, "done" if done else "missing", record.reason, record, path.parent))
        return found

    return look


def _of_cell(cell: Cell) -> str:
    return _asked(cell.suite_name, cell.config, cell.seed)


def _asked(suite: str, config: dict[str, Any], seed: int) -> str:
    """Hash of what was asked of a cell, the same for a record made before some setting existed."""
    filled = dict(config)
    for name, section in _SECTIONS.items():
        if name in filled:
            try:
                filled[name] = section.model_validate(filled[name]).model_dump(mode="json")
            except ValidationError:  # of a later vabench, or no record of ours: equal as it stands, or not at all
                continue
    return digest([suite, filled, seed])
