"""Published records: `records.jsonl` without predictions, one line per cell, and the tables that follow from them.

Only statistics over images leave a results folder: licensed images, and logits on them, stay where they are. Without
predictions ranks resample seeds alone, and the tables say so.

The first line of `records.jsonl` says what the board holds. Then come the parts that records share
(`leaderboard.sharing`), then the records; those of a large board stand in `records/`, a file per suite or several.
Boards of before had whole records in every line and no first line that says so; they are still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from harness.errors import DataError, first_line
from harness.record import Record, Status
from harness.schema import read_record, seal
from harness.store import slug, write_bytes
from leaderboard.sharing import Shared, compact, share

RECORDS = "records.jsonl"
STUDY = "study.yaml"  # beside the records of a published study: `leaderboard.study_board`
PARTS = "records"  # folder of a large board's records
FORMAT, VERSION = "vabench-board", 2
MAX_FILE = 1_400_000  # bytes: what is larger is a burden to a repository, and few sites show it
_PATH = re.compile(r"(?<![\w:/])(?:/[\w.+-]+){2,}")  # an absolute path in a sentence: nobody else has it


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._=+-]{0,119}\.jsonl$")]
    records: Annotated[int, Field(ge=1)]


class _Head(BaseModel):
    """The first line of a board. shared, records: lines that follow in the same file; files: further ones, in order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["vabench-board"] = FORMAT
    version: Literal[2] = VERSION
    shared: Annotated[int, Field(ge=0)]
    records: Annotated[int, Field(ge=0)]
    files: Annotated[list[_File], Field(max_length=1000)] = []


def write_published(records: Iterable[Record], folder: Path) -> int:
    """Write the records of a board, sorted, with traces left out and absolute paths cut to their last part.

    Returns:
        number of records.

    Raises:
        DataError: none of the records has numbers, or the folder cannot be written.
    """
    held = sorted(records, key=lambda record: (record.suite, record.row, record.seed, record.id))
    if not any(record.status is Status.DONE for record in held):
        raise DataError("there is nothing to publish: none of these cells has numbers")
    values = [from_json(seal(_public(record)).model_dump_json()) for record in held]
    shared, lines = share(values)
    _check(shared, lines, values)
    files = _files([record.suite for record in held], shared, lines)
    before = _named(folder)
    for name, content in reversed(files.items()):  # the head last: it names the others
        write_bytes(folder / name, content)
    for name in before - files.keys():
        (folder / name).unlink(missing_ok=True)
    return len(held)


def _named(folder: Path) -> set[str]:
    """Further files of the board that is there: nobody else's are ever removed."""
    try:
        head = _head(_lines(folder / RECORDS)[0])
    except (OSError, ValueError, IndexError):
        return set()
    return {f"{PARTS}/{part.file}" for part in head.files} if head else set()


def _check(shared: list[str], lines: list[str], values: list[Any]) -> None:
    """A board that does not come back as it was is not written."""
    parts = Shared()
    try:
        for line in shared:
            parts.add(from_json(line), len(line))
        same = all(parts.whole(from_json(line), len(line)) == value for line, value in zip(lines, values, strict=True))
    except ValueError as error:
        raise DataError(f"these records cannot be written as one board ({error}); publish fewer at a time") from error
    if not same:
        raise RuntimeError("the records that were to be written do not come back as they were")


def _files(suites: list[str], shared: list[str], lines: list[str]) -> dict[str, bytes]:
    """Content by path: all in one file where it fits, else a file per suite, several where its records are many."""
    whole = _text([*shared, *lines])
    if len(whole) <= MAX_FILE:
        return {RECORDS: _text([compact(_Head(shared=len(shared), records=len(lines)).model_dump()), *shared, *lines])}
    contents: dict[str, list[str]] = {}
    previous, size, path = "", 0, ""
    for suite, line in zip(suites, lines, strict=True):
        length = len(line.encode()) + 1
        if suite != previous or size + length > MAX_FILE:
            path, size, previous = _free(slug(suite), contents), 0, suite
        contents.setdefault(path, []).append(line)
        size += length
    files = [_File(file=name, records=len(held)) for name, held in contents.items()]
    head = _Head(shared=len(shared), records=0, files=files)
    return {
        RECORDS: _text([compact(head.model_dump()), *shared]),
        **{f"{PARTS}/{name}": _text(held) for name, held in contents.items()},
    }


def _free(stem: str, taken: Iterable[str]) -> str:
    """`STEM.jsonl`, `STEM-2.jsonl`, ...: the first that no file has, on systems too that ignore case."""
    stem = stem if re.match(r"[A-Za-z0-9_]", stem) else f"_{stem}"
    used = {name.lower() for name in taken}
    names = (f"{stem}{f'-{k}' if k > 1 else ''}.jsonl" for k in range(1, len(used) + 2))
    return next(name for name in names if name.lower() not in used)


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def read_published(folder: Path) -> tuple[list[Record], list[str]]:
    """Records of a published board, and what is wrong with lines that are none.

    A board is a stranger's file: what its references come to is bounded (`leaderboard.sharing`), and no file outside
    the folder is opened by a name that it gives.
    """
    path = folder / RECORDS
    if not path.exists():
        return [], []
    found: list[Record] = []
    damaged: list[str] = []
    try:
        lines = _lines(path)
        head = _head(lines[0] if lines else "")
        if head is None:
            _read(path, enumerate(lines, start=1), None, found, damaged)
            return found, damaged
    except (OSError, ValueError) as error:
        return [], [f"{path} cannot be read ({first_line(error)})"]
    parts, rest = Shared(), list(enumerate(lines, start=1))[1:]
    for number, line in rest[: head.shared]:
        try:
            values = from_json(line)
            parts.add(values if isinstance(values, dict) else {}, len(line))
        except ValueError as error:
            damaged.append(f"{path}, line {number}, is no shared part ({first_line(error)})")
    _expect(path, len(lines), 1 + head.shared + head.records, damaged)
    _read(path, rest[head.shared :], parts, found, damaged)
    for part in head.files:
        place = folder / PARTS / part.file
        try:
            if not place.is_file():
                raise OSError("it is missing, or no file")
            lines = _lines(place)
        except (OSError, ValueError) as error:
            damaged.append(f"{place}, with {part.records} records, cannot be read ({first_line(error)})")
            continue
        _expect(place, len(lines), part.records, damaged)
        _read(place, enumerate(lines, start=1), parts, found, damaged)
    return found, damaged


def _lines(path: Path) -> list[str]:
    """Lines of a file; texts in it may hold any character that only some call the end of a line."""
    text = path.read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n") if text else []


def _head(line: str) -> _Head | None:
    """What a board says of itself; None for a board of before, whose first line is a record.

    Raises:
        ValueError: it is no board that this vabench reads.
    """
    try:
        values = from_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or "format" not in values:
        return None
    version = values.get("version")
    if values["format"] == FORMAT and isinstance(version, int) and version > VERSION:
        raise ValueError(f"it is a board of version {version}, and this vabench reads up to {VERSION}: update vabench")
    try:
        head = _Head.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise ValueError(f"its first line is no board's: {place}: {problem['msg']}") from error
    if len({part.file.lower() for part in head.files}) != len(head.files):
        raise ValueError("its first line names a file twice")
    return head


def _expect(path: Path, lines: int, expected: int, damaged: list[str]) -> None:
    if lines != expected:
        damaged.append(
            f"{path} has {lines} lines where the board says {expected}: it was cut off, or written by an interrupted "
            f"`vabench publish`; publish it again, or take it from where you got it"
        )


def _read(
    path: Path, lines: Iterable[tuple[int, str]], parts: Shared | None, found: list[Record], damaged: list[str]
) -> None:
    for number, record in _each(lines, parts):
        if isinstance(record, Record):
            found.append(record)
        else:
            damaged.append(
                f"{path}, line {number}, is no record ({first_line(record)}): publish it again, or take it from where "
                f"you got it"
            )


def _each(lines: Iterable[tuple[int, str]], parts: Shared | None) -> Iterator[tuple[int, Record | Exception]]:
    for number, line in lines:
        try:
            text = line if parts is None else json.dumps(parts.whole(from_json(line), len(line)))
            yield number, read_record(text)
        except ValueError as error:  # pydantic's is one too
            yield number, error


def _public(record: Record) -> Record:
    reason = _PATH.sub(lambda match: match[0].rsplit("/", 1)[-1], record.reason)
    provenance = json.loads(_PATH.sub(lambda match: match[0].rsplit("/", 1)[-1], json.dumps(record.provenance)))
    return record.model_copy(update={"trace": "", "reason": reason, "provenance": provenance})
