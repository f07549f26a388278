"""Metadata tables (CSV) with faults that a person can repair: file, line, column and what to write instead.

Readers note faults in a `Faults` and go on, so that `vabench data check` names all of them; whoever needs flawless data
calls `raise_any`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from harness.errors import DataError

SHOWN = 3  # faults that one error message lists
T = TypeVar("T")


@dataclass
class Faults:
    """Sentences about what is wrong with a data set, in the order of discovery, none twice.

    notes: what was repaired by a stated rule, and counted; nothing that a person must mend.
    """

    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Note a fault."""
        if sentence not in self.found:
            self.found.append(sentence)

    def raise_any(self, check: str = "") -> None:
        """Raise DataError with the first faults, if there is any; `check` is the command that lists all."""
        if self.found:
            more = len(self.found) - SHOWN
            rest = f"; and {more} more" + (f" (`{check}` lists all)" if check else "") if more > 0 else ""
            raise DataError("; ".join(self.found[:SHOWN]) + rest)


@dataclass(frozen=True)
class TableRow:
    """One row: where it stands ('metadata.csv, line 7') and its cells, stripped, by column."""

    where: str
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_table(
    path: Path,
    required: Sequence[str],
    faults: Faults,
    *,
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
    delimiter: str = ",",
) -> list[TableRow]:
    """Rows of a CSV file (`.gz`: compressed).

    A missing column is a fault; where another one looks like it, that one is read in its place.

    Args:
        header: column names of a file without header line.

    Raises:
        DataError: the file is missing, is no text, or has no row.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"the table {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}); save it as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path} is not a readable CSV: {error}; save it again with commas") from error
    names = list(header) if header is not None else [cell.strip() for cell in (lines.pop(0)[1] if lines else [])]
    if not lines:
        raise DataError(f"{path} has no rows; copy or download it again")
    names = _columns(path, names, required, optional, delimiter, faults)
    rows = []
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) != len(names):
            faults.add(f"{where}: {len(cells)} cells, but the header has {len(names)}; quote cells that hold commas")
            continue
        rows.append(TableRow(where, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}))
    return rows


def _columns(
    path: Path, names: list[str], required: Sequence[str], optional: Sequence[str], delimiter: str, faults: Faults
) -> list[str]:
    if len(names) == 1 and len(required) > 1:
        other = next((mark for mark in (";", "\t", ",") if mark in names[0] and mark != delimiter), None)
        if other is not None:
            raise DataError(f"{path} separates its cells by {other!r}, not by {delimiter!r}; save it again")
    names, known = list(names), {*required, *optional}
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        faults.add(f"{path}: the column '{name}' stands there twice; drop one")
    names = [name if name not in names[:k] else "" for k, name in enumerate(names)]  # the first one is read
    for wanted in required:
        if wanted in names:
            continue
        near = difflib.get_close_matches(wanted, [n for n in names if n not in known], n=1, cutoff=0.6)
        if near:
            faults.add(f"{path}: there is no column '{wanted}'; did you mean '{near[0]}'? Rename it")
            names[names.index(near[0])] = wanted
        else:
            faults.add(f"{path}: there is no column '{wanted}'; it has {', '.join(names) or 'none'}")
    return names


def choice(row: TableRow, column: str, allowed: Mapping[str, T], faults: Faults) -> T | None:
    """What a cell stands for, or None and a fault where it holds none of the `allowed` words.

    A column that the table lacks is told once, by `read_table`, not again for every row.
    """
    if column not in row.cells:
        return None
    value = row[column]
    if value in allowed:
        return allowed[value]
    near = difflib.get_close_matches(value.lower(), list(allowed), n=1, cutoff=0.5) if value else []
    hint = f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(allowed)}"
    faults.add(f"{row.where}, column {column}: {f'{value!r} is not allowed' if value else 'the cell is empty'}; {hint}")
    return None


def file_in(row: TableRow, column: str, root: Path, faults: Faults) -> Path | None:
    """The file that a cell names relative to `root`; None where it is empty, and with a fault where it is not there."""
    value = row[column]
    if not value:
        return None
    path = root / value
    if not path.resolve().is_relative_to(root.resolve()):
        faults.add(f"{row.where}, column {column}: '{value}' lies outside {root}; move the file there")
    elif not path.is_file():
        faults.add(
            f"{row.where}, column {column}: there is no file '{value}' under {root}; put it back, or drop its row"
        )
    else:
        return path
    return None


def check_unique(rows: Iterable[tuple[str, str]], what: str, faults: Faults) -> None:
    """A fault for every value that stands in two rows. rows: (where, value); empty values are ignored."""
    first: dict[str, str] = {}
    for where, value in rows:
        if value and first.setdefault(value, where) != where:
            faults.add(f"{where}: the {what} '{value}' stands already in {_short(first[value])}; drop one of the rows")


def check_disjoint(rows: Iterable[tuple[str, str, str]], what: str, faults: Faults) -> None:
    """A fault for every unit (patient, lesion, image content) in two splits. rows: (where, unit, split)."""
    first: dict[str, tuple[str, str]] = {}
    told = set()
    for where, unit, split in rows:
        held, at = first.setdefault(unit, (split, where))
        if unit and held != split and unit not in told:
            told.add(unit)
            faults.add(
                f"{where}: the {what} '{unit}' is in {split} and, in {_short(at)}, in {held}; move it to one split, "
                f"or the test measures memory"
            )


def check_groups(counts: Mapping[str, Mapping[str, int]], where: str, faults: Faults) -> None:
    """A fault for every group without image. counts: split -> group -> images that must not be zero."""
    for split, groups in counts.items():
        for group, number in groups.items():
            if not number:
                faults.add(f"{where}: split '{split}' has no image of the group '{group}'; check labels and splits")


def _short(where: str) -> str:
    """'line 7' of '/a/b/metadata.csv, line 7'."""
    return where.rpartition(", ")[2]


def stable_split(unit: str, shares: Mapping[str, float]) -> str:
    """The split of a unit (patient or lesion) from a hash of its name: the same for every seed, machine and subset."""
    place = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8], "big") / 2**64
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    return next(reversed(list(shares)))


def join_units(names: Sequence[str], keys: Callable[[int], Iterable[str]]) -> list[str]:
    """One unit for all rows that share a key, directly or through others (a patient's lesions, marked duplicates).

    Returns:
        for every row the smallest name of its unit.
    """
    parent = list(range(len(names)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    holder: dict[str, int] = {}
    for k in range(len(names)):
        for key in keys(k):
            parent[root(k)] = root(holder.setdefault(key, k))
    least: dict[int, str] = {}
    for k, name in enumerate(names):
        least[root(k)] = min(name, least.get(root(k), name))
    return [least[root(k)] for k in range(len(names))]
