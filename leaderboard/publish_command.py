"""`vabench publish`: the records of a board without predictions, and the tables that anybody can rebuild from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.record import Record
    from leaderboard.tables import Board

TABLES = ("md", "csv")
TABLES_FOLDER, STUDY_FOLDER = "tables", "study"
ENDINGS = (".md", ".csv", ".svg")
Address = tuple[str, str, int]  # suite, row, seed


def publish_board(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench report`. Nothing: the last run."),
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Folder of the board.")] = "",
    all_records: Annotated[bool, typer.Option("--all", help="Every record in the results folder.")] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Take the records that the folder holds: write them in today's form, and the tables again.",
        ),
    ] = False,
    study: Annotated[
        str,
        typer.Option("--study", help="A study's name or YAML file: its cells, its definition, its means and figure."),
    ] = "",
) -> None:
    """Write a board to publish: records.jsonl (statistics only: no predictions, no images) and its tables.

    The board holds afterwards what was named here and nothing else; what that adds, replaces and removes is said.
    `vabench publish --study cost results=FOLDER --to BOARD` publishes a study, with the words of `vabench study`.

    Ranks resample seeds alone, as the predictions stay behind. `vabench report results=FOLDER --all` reads it.
    """
    from harness.errors import ConfigError, DataError
    from harness.progress import count, wide_console
    from harness.store import write_bytes
    from leaderboard.collect import Absence
    from leaderboard.command import collect
    from leaderboard.published import RECORDS, STUDY, read_published, write_published

    if not to:
        raise ConfigError("say where the board goes: --to FOLDER")
    if study and (all_records or rebuild):
        raise ConfigError("--study names the cells itself: leave out --all and --rebuild")
    console, folder = wide_console(), Path(to)
    before, damaged = read_published(folder)
    definition = None
    if rebuild:
        if damaged or not before:
            raise DataError(damaged[0] if damaged else f"there are no records in {folder}/ to rebuild from")
        held = before
    elif study:
        from leaderboard.study_board import study_text

        definition, held = study_text(study, words or [])
    else:
        collection = collect(words, all_records)
        for warning in collection.warnings:
            console.print(warning, markup=False, highlight=False, style="yellow")
        held = [entry.record for entry in collection.entries if not isinstance(entry.record.status, Absence)]
    write_published(held, folder)
    gone = not rebuild and definition is None and (folder / STUDY).exists()
    if not rebuild:
        (folder / STUDY).unlink(missing_ok=True)
    if definition is not None:
        write_bytes(folder / STUDY, definition.encode())
    lines = [f"{folder / RECORDS}: {count(len(held), 'record')}"]
    if damaged:
        lines.append(f"  what was there could not be read in full ({damaged[0]}), and is replaced")
    lines += [f"  {line}" for line in changes(before, read_published(folder)[0])]
    if gone:
        lines.append("  the study that was published here is gone; --study publishes one")
    files = board_files(folder)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for path, content in files.items():
        write_bytes(folder / path, content)
        console.print(str(folder / path), highlight=False, markup=False, soft_wrap=True)
    for place in (place for part in (TABLES_FOLDER, STUDY_FOLDER) for place in (folder / part).glob("*")):
        if place.suffix in ENDINGS and place.relative_to(folder).as_posix() not in files:
            place.unlink()  # of what the board held before


def changes(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """What a board holds now against before, in lines: rows added, replaced and removed, with seeds; how many are kept.

    A cell is replaced where its suite, row and seed were there with other content. Where a row was run with several
    settings at one seed, as in a study, its name is followed by a hash of them.
    """
    from harness.progress import count

    several = _several(before) | _several(after)
    held, now = _by_address(before, several), _by_address(after, several)
    kinds: dict[str, list[Address]] = {"added": [], "replaced": [], "kept": [], "removed": []}
    for address, records in now.items():
        kinds["added" if address not in held else "kept" if held[address] == records else "replaced"].append(address)
    kinds["removed"] = [address for address in held if address not in now]
    lines = []
    for kind, addresses in kinds.items():
        rows: dict[tuple[str, str], list[int]] = {}
        for suite, row, seed in addresses:
            rows.setdefault((suite, row), []).append(seed)
        if kind == "kept" and rows:
            lines.append(f"kept: {count(len(rows), 'row')}, {count(len(addresses), 'cell')}")
        elif rows:
            lines += [f"{kind}: {suite} · {row} · seed {_spans(seeds)}" for (suite, row), seeds in rows.items()]
    return lines


def _several(records: Sequence[Record]) -> set[Address]:
    """Addresses (suite, row, seed) at which several cells stand."""
    counts = Counter((record.suite, record.row, record.seed) for record in records)
    return {address for address, number in counts.items() if number > 1}


def _by_address(records: Sequence[Record], several: set[Address]) -> dict[Address, list[str]]:
    """Records as text by suite, row and seed."""
    from harness.plan import digest

    rows = {address[:2] for address in several}
    found: dict[Address, list[str]] = {}
    for record in records:
        row = record.row
        if (record.suite, row) in rows:
            row += f" #{digest(record.config)[:6]}"
        text = record.model_dump_json(exclude={"seal", "schema_version"})
        found.setdefault((record.suite, row, record.seed), []).append(text)
    return found


def _spans(numbers: Sequence[int]) -> str:
    """`0-4, 7`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in spans)


def board_files(folder: Path) -> dict[str, bytes]:
    """Every file that follows from a board's records, by path: what `--rebuild` writes and what CI compares.

    These are tables, or, where a study was published, its means and figure: rows of a grid of settings do not compete.

    Raises:
        DataError: the folder holds no records, or a line is damaged.
    """
    from leaderboard.published import STUDY
    from leaderboard.render import FORMATS
    from leaderboard.study_board import study_files
    from leaderboard.tables import stems

    if (folder / STUDY).is_file():
        return {f"{STUDY_FOLDER}/{name}": content for name, content in study_files(folder).items()}
    found = published_boards(folder)
    return {
        f"{TABLES_FOLDER}/{stem}.{name}": FORMATS[name](board)
        for board, stem in zip(found, stems(found), strict=True)
        for name in TABLES
    }


def published_boards(folder: Path) -> list[Board]:
    """Tables of a published board; all of its records count, and damaged lines are an error.

    Raises:
        DataError: the folder holds no records, or a line is damaged.
    """
    from harness.errors import DataError
    from leaderboard.collect import everything
    from leaderboard.published import read_published
    from leaderboard.tables import boards

    damaged = read_published(folder)[1]
    if damaged:
        raise DataError(damaged[0])
    return boards(everything(folder).entries)
