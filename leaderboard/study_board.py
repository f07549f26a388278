"""A published study: its definition beside the records of a board, and the files that follow from the two.

Cells of a results folder are known by a hash of code and data, and become stale. A board's records stand as they are: a
point of the study finds its record by what was asked of the cell, with settings that are younger than the record at
their defaults (a default is always what was done before there was the setting).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.config import Alignment, Metrics, Recipes, RunConfig, Selection
from harness.errors import DataError
from harness.plan import CellState, digest, plan
from harness.record import Record, Status
from harness.study import Grid, expand, read_study, self_contained
from harness.study_table import derived, lines
from leaderboard.published import STUDY, read_published

OURS = "leaderboard.figures:"
_SECTIONS = {"recipes": Recipes, "alignment": Alignment, "metrics": Metrics, "selection": Selection}


def study_text(name: str, overrides: Sequence[str]) -> tuple[str, list[RunConfig]]:
    """A study's definition for a board, complete in itself, and its configs in the results folder that is given.

    Args:
        name: a registered study's name, or its YAML file.
        overrides: as in `vabench study`.

    Raises:
        ConfigError, ComponentError: as `vabench study`.
    """
    study = read_study(name)
    whole = self_contained(study, overrides).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None), expand(
        study, overrides
    ).configs


def study_files(folder: Path) -> dict[str, bytes]:
    """The means, fits, contrasts and the vector figure of a published study, by name.

    Raises:
        ConfigError: the definition is none. DataError: records are damaged, or do not hold every cell of the study.
    """
    _, files, _ = _rebuilt(folder, _records(folder))
    return {name: content for name, content in files.items() if not name.endswith(".png")}


@dataclass(frozen=True)
class Shown:
    """A published study for the page. svg: its figure, empty without one. said: contrasts, fits, predictions."""

    name: str
    summary: str
    cells: int
    svg: str
    said: tuple[str, ...]


def read_study_board(folder: Path) -> Shown:
    """A published study, drawn again from its records.

    Raises:
        DataError: a record is damaged or missing. ConfigError: the definition is none.
    """
    records = _records(folder)
    grid, files, said = _rebuilt(folder, records)
    svg = files.get(f"{grid.file_name}.svg", b"").decode()
    return Shown(grid.study.name, grid.study.summary, len(records), svg, tuple(said))


def _records(folder: Path) -> list[Record]:
    records, damaged = read_published(folder)
    if damaged:
        raise DataError(damaged[0])
    return records


def _rebuilt(folder: Path, records: Iterable[Record]) -> tuple[Grid, dict[str, bytes], list[str]]:
    path = folder / STUDY
    study = read_study(str(path))
    if not str(study.figure.get("kind", "")).startswith(OURS):  # a board may be a stranger's: nothing else is called
        study = study.model_copy(update={"figure": {}})
    grid = expand(study)
    return grid, *derived(grid, lines(grid, _look(path, records)))


def _look(path: Path, records: Iterable[Record]) -> Callable[[RunConfig], list[CellState]]:
    held = {_asked(record.suite, record.config, record.seed): record for record in records}

    def look(config: RunConfig) -> list[CellState]:
        found = []
        for cell in plan(config, data_too=False):
            record = held.get(_asked(cell.suite_name, cell.config, cell.seed))
            if record is None:
                raise DataError(f"the board holds no record of {cell}, which its study {path} names; publish it again")
            done = record.status in (Status.DONE, Status.NOT_APPLICABLE)
            found.append(CellState(cell, "done" if done else "missing", record.reason, record, path.parent))
        return found

    return look


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
