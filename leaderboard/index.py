"""What a results folder holds, remembered: `vabench report` reads again only the cells that have changed.

The file `<results>/report/index.sqlite` is a cache. It may be deleted at any time, and is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.record import SCHEMA_VERSION, Record
from harness.store import Store
from leaderboard.beside import PAYS, each
from leaderboard.npz import Archive

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]
Outcome = tuple[Bool, Int, Int]
Held = tuple[str, str, bytes]  # mark of a cell's files, its record as JSON, its outcomes packed
FILE = "report/index.sqlite"
SHARED = 2**26  # bytes of groupings that stay unpacked: cells come row by row, and every seed may have its own
PART = 100  # cells that a process reads at a time
_LAYOUT = f"1.{SCHEMA_VERSION}"  # the first number changes with the tables below
PREDICTIONS = "predictions.npz"
_CLOSED = "no permission"  # in place of a mark
_NO_FILE = ",-1,-1,-1"  # end of a mark without predictions
_TABLES = """
CREATE TABLE IF NOT EXISTS layout (version TEXT);
CREATE TABLE IF NOT EXISTS cells (path TEXT PRIMARY KEY, mark TEXT, record TEXT, outcomes BLOB);
CREATE TABLE IF NOT EXISTS arrays (key TEXT PRIMARY KEY, shape TEXT, content BLOB);
"""


class IndexedStore(Store):
    """A results folder whose records, once read and found whole, are kept with the outcomes of their predictions.

    A cell counts as unchanged while size and time of its files stay what they were. Use it as a context manager:
    what was read is kept at the end, where the folder can be written to.
    """

    def __init__(self, root: str | Path):
        super().__init__(root)
        self._held: dict[str, Held] = {}
        self._arrays: dict[str, Int] = {}
        self._fresh: dict[str, Held] = {}
        self._stored: set[str] = set()
        self._closed: set[str] = set()  # folders that may not be listed
        self._same: dict[str, str] = {}  # marks of cells that `prepare` found unchanged: good for one look
        self._ready: dict[str, tuple[str, Record]] = {}  # what `prepare` has read in this process, with its mark
        with contextlib.suppress(sqlite3.Error, OSError):
            self._load()

    def __enter__(self) -> IndexedStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fresh:
            with contextlib.suppress(sqlite3.Error, OSError):  # a folder that cannot be written to is still reported
                self._keep()

    def prepare(self, folders: Sequence[Path], meanwhile: Callable[[], object] | None = None) -> None:
        """Read the cells that have changed, in processes beside each other where there are many of them.

        meanwhile: done in this process where others have begun to read.
        """
        changed: list[tuple[Path, str]] = []
        for folder in folders:
            name = self._name(folder)
            mark, held = _mark(folder), self._held.get(name)
            if held and held[0] == mark:
                self._same[name] = mark
            elif mark not in ("", _CLOSED) and not mark.endswith(_NO_FILE):
                changed.append((folder, mark))
        if len(changed) < PAYS:
            return
        parts = [changed[k : k + PART] for k in range(0, len(changed), PART)]
        for fresh, arrays in each(len(parts), lambda k: self._read_part(parts[k]), len(changed), meanwhile):
            self._fresh |= fresh
            self._arrays |= arrays

    def _read_part(self, cells: Sequence[tuple[Path, str]]) -> tuple[dict[str, Held], dict[str, Int]]:
        """What is kept of these cells. A damaged one is read again when it is asked for, and says why then."""
        fresh: dict[str, Held] = {}
        arrays: dict[str, Int] = {}
        for folder, mark in cells:  # marks from before reading: what changes in between is read again
            record, _, packed = self._read(folder, arrays)
            if record is not None:
                fresh[self._name(folder)] = (mark, record.model_dump_json(), packed)
                self._ready[self._name(folder)] = mark, record  # lost where another process did it
        return fresh, arrays

    def intact(self, folder: Path) -> tuple[Record | None, str]:
        """As in `Store`; an unchanged cell is not read again."""
        return self._intact(folder, self._look(folder))

    def _look(self, folder: Path) -> str:
        """The cell's mark; one that was taken a moment ago will do where nothing is read but the index."""
        if str(folder) in self._closed:
            return _CLOSED
        return self._same.pop(self._name(folder), "") or _mark(folder)

    def _intact(self, folder: Path, mark: str) -> tuple[Record | None, str]:
        path = self._name(folder)
        ready = self._ready.pop(path, None)
        if ready is not None and ready[0] == mark:
            return ready[1], ""
        held = self._fresh.get(path) or self._held.get(path)
        if mark and held and held[0] == mark:
            return Record.trusted(held[1]), ""
        if not mark:
            return None, ""
        if mark == _CLOSED:
            return None, f"{folder} cannot be read: permission denied"
        record, problem, packed = self._read(folder, self._arrays)
        if record is not None:
            self._fresh[path] = (mark, record.model_dump_json(), packed)
        return record, problem

    def _read(self, folder: Path, arrays: dict[str, Int]) -> tuple[Record | None, str, bytes]:
        """A cell from its files, as `Store.intact`, with its outcomes; what cells share goes to `arrays`."""
        record, problem, content = self.whole(folder)
        if record is None:
            return None, problem, b""
        try:
            return record, "", _pack(folder, record, content, arrays)
        except DataError as error:
            return None, str(error), b""

    def found(self, folder: Path) -> tuple[Record | None, str]:
        """As `intact`, and a record without predictions, as some archives hold it, counts too."""
        mark = self._look(folder)
        if not mark.endswith(_NO_FILE):
            return self._intact(folder, mark)
        try:
            return self.read(folder), ""
        except DataError as error:
            return None, str(error)

    def folders(self) -> list[Path]:
        """Folders of every cell, in the order of their names; some may hold no record yet."""
        places = [str(self.root / "cells")]
        for _ in ("suite", "row", "seed and identity"):
            places = [inner for place in places for inner in self._folders_in(place)]
        return [Path(place) for place in places]

    def outcomes(self, folder: Path, candidate: int) -> Outcome | None:
        """Which predictions are right, bool [N, R] over the R grouped renderings, groups [N, R] and base images [N].

        None where the predictions are not at hand (a published record without them).

        Raises:
            DataError: the file cannot be read, or lacks what its record describes.
        """
        path = self._name(folder)
        if path not in self._fresh and path not in self._held:
            _, problem = self.intact(folder)
            if problem:
                raise DataError(problem)
        held = self._fresh.get(path) or self._held.get(path)
        packed = json.loads(held[2]) if held and held[2] else {}
        if str(candidate) not in packed.get("right", {}):
            return None
        groups, ids = (self._arrays[packed[name]] for name in ("groups", "ids"))
        bits = np.frombuffer(bytes.fromhex(packed["right"][str(candidate)]), np.uint8)
        return np.unpackbits(bits, count=groups.size).reshape(groups.shape).astype(np.bool_), groups, ids

    def _folders_in(self, place: str) -> list[str]:
        """Folders in a folder; one that may not be listed stands for what is in it, and is named when it is read."""
        if place in self._closed:
            return [place]
        try:
            with os.scandir(place) as entries:
                return sorted(entry.path for entry in entries if entry.is_dir())
        except PermissionError:
            self._closed.add(place)
            return [place]
        except OSError:
            return []

    def _name(self, folder: Path) -> str:
        return "/".join(str(folder).rsplit(os.sep, 3)[-3:])  # <suite>/<row>/<seed>-<id>

    def _load(self) -> None:
        if not (self.root / FILE).exists():
            return
        with contextlib.closing(sqlite3.connect(self.root / FILE, timeout=10)) as base:
            if base.execute("SELECT version FROM layout").fetchall() != [(_LAYOUT,)]:
                return
            cells = base.execute("SELECT path, mark, record, outcomes FROM cells").fetchall()
            arrays = base.execute("SELECT key, shape, content FROM arrays").fetchall()
        for key, shape, content in arrays:
            self._arrays[key] = np.frombuffer(content, np.int64).reshape(json.loads(shape))
        self._stored = set(self._arrays)
        self._held = {path: (mark, record, outcomes) for path, mark, record, outcomes in cells}

    def _keep(self) -> None:
        (self.root / FILE).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.root / FILE, timeout=10)) as base, base:
            base.executescript(_TABLES)
            if base.execute("SELECT version FROM layout").fetchall() != [(_LAYOUT,)]:
                for table in ("layout", "cells", "arrays"):
                    base.execute(f"DELETE FROM {table}")
                base.execute("INSERT INTO layout VALUES (?)", (_LAYOUT,))
                self._stored = set()
            base.executemany(
                "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?)",
                [(k, json.dumps(a.shape), a.tobytes()) for k, a in self._arrays.items() if k not in self._stored],
            )
            base.executemany(
                "INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?)",
                [(path, *held) for path, held in self._fresh.items()],
            )


def read_outcomes(folder: Path, candidates: Iterable[int]) -> tuple[dict[int, Bool], Int, Int] | None:
    """Which predictions of a stored cell are right, by candidate, with groups and ids as in `IndexedStore.outcomes`.

    Raises:
        DataError: the file cannot be read, or lacks what its record describes.
    """
    found = _read_outcomes(folder, candidates)
    return None if found is None else (found[0], found[1].groups, found[1].ids)


def _read_outcomes(folder: Path, candidates: Iterable[int]) -> tuple[dict[int, Bool], _Grouping] | None:
    try:
        content = (folder / PREDICTIONS).read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # a published record has a file of all records in its place
        return None
    except OSError as error:
        raise _unreadable(folder, error) from error
    return _outcomes(folder, content, candidates)


@dataclass(frozen=True, eq=False)
class _Grouping:
    """What cells of one suite and seed share: labels [N], groups [N, R] of the renderings, base images [N]."""

    y: Int
    groups: npt.NDArray[Any]
    ids: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.y.nbytes + self.groups.nbytes + self.ids.nbytes

    @cached_property
    def kept(self) -> tuple[tuple[str, Int], tuple[str, Int]]:
        """Groups and ids as they are kept, each with its key.

        Raises:
            ValueError, TypeError: they are no numbers.
        """
        return _keyed(self.groups), _keyed(self.ids)


def _keyed(array: npt.NDArray[Any]) -> tuple[str, Int]:
    held = np.ascontiguousarray(array, dtype=np.int64)
    return hashlib.sha256(str(held.shape).encode() + held.tobytes()).hexdigest()[:32], held


_groupings: OrderedDict[tuple[Any, ...], _Grouping] = OrderedDict()  # the last few, by what they are packed as


def _grouping(archive: Archive, names: Sequence[str]) -> _Grouping:
    """Unpacked once for the cells of one suite and seed, whose files say the same in the same bytes."""
    members = [*(f"g/{name}" for name in names), "y", "ids"]
    key = tuple(archive.fingerprint(member) for member in members)
    if key not in _groupings:
        *groups, y, ids = (archive[member] for member in members)
        _groupings[key] = _Grouping(y, np.stack(groups, axis=1), ids)
        while len(_groupings) > 1 and sum(held.nbytes for held in _groupings.values()) > SHARED:
            _groupings.popitem(last=False)
    _groupings.move_to_end(key)
    return _groupings[key]


def _outcomes(folder: Path, content: bytes, candidates: Iterable[int]) -> tuple[dict[int, Bool], _Grouping] | None:
    try:
        archive = Archive(content)
        names = sorted(name[2:] for name in archive.files if name.startswith("g/"))
        if not names:
            return None
        shared = _grouping(archive, names)
        right = {
            k: np.stack([archive[f"test/{name}/{k}"].argmax(axis=1) == shared.y for name in names], axis=1)
            for k in candidates
        }
        return right, shared
    except Exception as error:  # a zip file can break in many ways
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder / PREDICTIONS} cannot be read ({error}); delete {folder} and run `vabench run` again")


def _pack(folder: Path, record: Record, content: bytes | None, arrays: dict[str, Int]) -> bytes:
    """Outcomes of the candidates that tracks report; groups and ids, which rows share, are kept once, in `arrays`.

    content: of the cell's predictions, None where the record does not describe any.
    """
    wanted = sorted({track.candidate for track in record.tracks.values()})
    if not wanted:
        return b""
    # A record that does not describe its predictions cannot vouch for them; they are taken as they lie there.
    found = _read_outcomes(folder, wanted) if content is None else _outcomes(folder, content, wanted)
    if found is None:
        return b""
    right, shared = found
    try:
        kept = shared.kept
    except (ValueError, TypeError) as error:  # groups or ids that are no numbers
        raise _unreadable(folder, error) from error
    for key, array in kept:
        arrays.setdefault(key, array)
    bits = {str(k): np.packbits(value).tobytes().hex() for k, value in right.items()}
    return json.dumps({"groups": kept[0][0], "ids": kept[1][0], "right": bits}).encode()


def _mark(folder: Path) -> str:
    """Sizes and times of a cell's files; '' without a record, `_CLOSED` where it is not ours to see."""
    found: list[int] = []
    for name in ("record.json", PREDICTIONS):
        try:
            held = os.stat(f"{folder}{os.sep}{name}")
            found += [held.st_size, held.st_mtime_ns, held.st_ino]
        except OSError as error:
            if name == "record.json":
                return _CLOSED if isinstance(error, PermissionError) else ""
            found += [-1, -1, -1]
    return ",".join(map(str, found))
