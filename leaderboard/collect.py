"""Finds the records that a report is about, and says which cells it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.errors import DataError
from harness.plan import CellState, digest, inspect, plan, standing
from harness.record import Record, Status
from leaderboard.index import IndexedStore, Outcome, read_outcomes
from leaderboard.published import RECORDS, STUDY, read_published

TRACKS = {"preregistered": "pre-registered track", "tuned": "tuned track"}
SHOWN = 8  # lines of one kind of warning
FEW = 3  # rows that a warning names; more are counted


class Absence(StrEnum):
    """Why a planned cell has no record that counts: what a table shows in place of its numbers."""

    STALE = "stale"
    MISSING = "not run"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Entry:
    """A stored cell and its folder. `variant` tells rows of one name and different settings apart, else empty.

    The record of a planned cell without one is a placeholder: its status is an `Absence`, and it holds no numbers.
    """

    folder: Path
    record: Record
    variant: str = ""
    store: IndexedStore | None = field(default=None, compare=False, repr=False)  # where its outcomes are remembered


@dataclass(frozen=True)
class Collection:
    """Cells of a report; the seeds that were planned (None: unknown); what is missing, in sentences.

    studies: folders of published studies that belong to it.
    """

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = field(default=())
    studies: tuple[Path, ...] = ()


def planned(config: RunConfig) -> Collection:
    """The cells that a config plans: their records, and placeholders where a suite has records but a cell has none.

    Raises:
        DataError: there is no results folder, or none of the cells has a record.
    """
    with _store(config.results) as store:
        cells = plan(config)
        store.prepare([store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id) for cell in cells], _tables)
        states = [inspect(cell, store) for cell in cells]
    absent = [state for state in states if state.record is None]
    lines = _absences(absent)
    if len(absent) == len(states):
        more = f"; other reasons: {len(lines) - 1}" if lines[1:] else ""
        raise DataError(
            f"none of the {len(states)} cells of '{config.name}' has a record in {config.results}/ that fits it: "
            f"{lines[0] if lines else 'nothing is planned'}{more}; "
            f"`vabench status` says more, `vabench run` runs them, and --all takes what lies there as it is"
        )
    begun = {state.cell.suite_name for state in states if state.record is not None}
    entries = [
        Entry(state.folder, state.record, store=store) if state.record is not None else _placeholder(state)
        for state in states
        if state.cell.suite_name in begun
    ]
    head = f"{len(absent)} of {len(states)} planned cells have no record that fits (`vabench run` makes them)"
    return Collection(tuple(entries), config.seeds, _listed(head, lines))


def _absences(absent: list[CellState]) -> list[str]:
    """What `vabench status` says of cells without a record; cells with one reason share a line."""
    shared: dict[str, list[CellState]] = {}
    for state in absent:
        shared.setdefault(f"{state.state}: {state.why}", []).append(state)
    lines = []
    for what, states in shared.items():
        rows = dict.fromkeys(f"{state.cell.suite_name} · {state.cell.row_name}" for state in states)
        seeds = ", ".join(map(str, dict.fromkeys(state.cell.seed for state in states)))
        who = ", ".join(rows) if len(rows) <= FEW else f"{len(rows)} rows"
        lines.append(f"{what}: {who} (seed {seeds})")
    return lines


def _placeholder(state: CellState) -> Entry:
    """What a table says of a planned cell without a record: the row where it belongs, and why it has no numbers."""
    cell, kind = state.cell, {"stale": Absence.STALE, "damaged": Absence.DAMAGED}.get(state.state, Absence.MISSING)
    block, simulated = standing(cell.row)
    record = Record.model_construct(
        id=cell.id,
        status=kind,
        reason="no record" if kind is Absence.MISSING else state.why,
        suite=cell.suite_name,
        suite_source=cell.suite_source,
        row=cell.row_name,
        label=cell.row.label,
        method=str(cell.row.method),
        mask_source=str(cell.row.masks) if cell.row.masks else None,
        block=block,
        simulated=simulated,
        model=str(cell.model),
        seed=cell.seed,
        config=cell.config,
        identity=cell.identity,
    )
    return Entry(state.folder, record)


def everything(root: str | Path) -> Collection:
    """Every readable record under a results folder; rows of one name but different settings stay apart.

    Boards published into the folder, or into folders of it, are part of it. Published studies are named apart: rows
    of a grid of settings do not compete with the rows of a board, unless the folder is that study's own.

    Raises:
        DataError: there is no such folder, or neither a readable record in it nor a published study.
    """
    found: list[Entry] = []
    boards = sorted(path.parent for path in Path(root).glob(f"*/{RECORDS}"))
    studies = sorted(path.parent for part in (STUDY, f"*/{STUDY}") for path in Path(root).glob(part) if path.is_file())
    damaged: list[str] = []
    with _store(root) as store:
        folders = store.folders()
        store.prepare(folders, _tables)
        for folder in folders:
            record, problem = store.found(folder)
            if record is not None:
                found.append(Entry(folder, record, store=store))
            elif problem:
                damaged.append(problem)
    # A board that was published here, and a collection of such boards, one folder each.
    for place in (Path(root), *(board for board in boards if board not in studies)):
        public, broken = read_published(place)
        found += [Entry(place / RECORDS, record) for record in public]
        damaged += broken
    if not found and (damaged or not studies):
        raise DataError(
            f"no record in {root}/ can be read: {damaged[0]}" if damaged else f"there are no records in {root}/ yet"
        )
    entries, superseded = _tell_apart(found)
    warnings = _listed(f"{len(damaged)} damaged records are left out", damaged)
    warnings += _listed(
        f"{len(superseded)} cells without numbers are left out, as their rows have numbers with other settings",
        superseded,
    )
    return Collection(tuple(entries), None, warnings, tuple(studies))


def _store(root: str | Path) -> IndexedStore:
    if not Path(root).is_dir():
        raise DataError(f"there is no results folder {root}; `vabench run` makes it, or name another: results=FOLDER")
    return IndexedStore(root)


def _tables() -> None:
    """Import what the tables need, most of a second: beside the processes that read."""
    import leaderboard.render
    import leaderboard.tables  # noqa: F401


def _listed(head: str, lines: list[str]) -> tuple[str, ...]:
    if not lines:
        return ()
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return (f"{head}:", *(f"  {line}" for line in [*lines[:SHOWN], *more]))


def _tell_apart(entries: Iterable[Entry]) -> tuple[list[Entry], list[str]]:
    """Entries with their variant set where a row was run with several settings, and the cells left out for that."""
    rows: dict[tuple[str, str, str], dict[str, list[Entry]]] = {}
    for entry in entries:
        record = entry.record
        variant = digest({key: value for key, value in record.identity.items() if key != "seed"})[:6]
        key = (record.suite, record.row, record.model)
        rows.setdefault(key, {}).setdefault(variant, []).append(entry)
    kept: list[Entry] = []
    superseded: list[str] = []
    for variants in rows.values():
        numbers = {name for name, held in variants.items() if any(e.record.status is Status.DONE for e in held)}
        for name, held in variants.items():
            if numbers and name not in numbers:
                superseded += [f"{e.record.suite} · {e.record.row} · seed {e.record.seed}" for e in held]
            else:
                said = name if len(numbers or variants) > 1 else ""
                kept += [e if e.variant == said else replace(e, variant=said) for e in held]
    return kept, superseded


def same_test(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries that may share a table: one suite, source, model, suite version and data. Order is kept."""
    tables: dict[tuple[Any, ...], list[Entry]] = {}
    without_data: list[Entry] = []
    for entry in entries:
        record = entry.record
        data = record.identity.get("data", "")
        key = (record.suite, record.suite_source, record.model, record.identity.get("suite_version"), data)
        if record.status is not Status.DONE and not data:  # it ended because the data were missing
            without_data.append(entry)
        else:
            tables.setdefault(key, []).append(entry)
    for entry in without_data:
        record = entry.record
        head = (record.suite, record.suite_source, record.model)
        homes = [held for key, held in tables.items() if key[:3] == head] or [tables.setdefault((*head, None, ""), [])]
        for held in homes:
            held.append(entry)
    return list(tables.values())


def outcomes(entry: Entry, candidate: int) -> Outcome | None:
    """Which predictions are right, bool [N, R] over the R grouped renderings, groups [N, R] and base images [N].

    None where the predictions are not at hand (a published record without them).

    Raises:
        DataError: the file cannot be read, or lacks what its record describes.
    """
    if entry.store is not None:
        return entry.store.outcomes(entry.folder, candidate)
    found = read_outcomes(entry.folder, [candidate])
    return None if found is None else (found[0][candidate], found[1], found[2])
