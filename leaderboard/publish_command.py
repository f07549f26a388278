"""`vabench publish`: the records of a board without predictions, and the tables that anybody can rebuild from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leaderboard.tables import Board

TABLES = ("md", "csv")


def publish_board(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench report`. Nothing: the last run."),
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Folder of the board.")] = "",
    all_records: Annotated[bool, typer.Option("--all", help="Every record in the results folder.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Only write the tables again, from the records that the folder holds.")
    ] = False,
) -> None:
    """Write a board to publish: records.jsonl (statistics only: no predictions, no images) and its tables.

    Ranks resample seeds alone, as the predictions stay behind. `vabench report results=FOLDER --all` reads it.
    """
    from harness.errors import ConfigError
    from harness.progress import wide_console
    from harness.store import write_bytes
    from leaderboard.collect import Absence
    from leaderboard.command import collect
    from leaderboard.published import RECORDS, write_published

    if not to:
        raise ConfigError("say where the board goes: --to FOLDER")
    console, folder = wide_console(), Path(to)
    if not rebuild:
        collection = collect(words, all_records)
        for warning in collection.warnings:
            console.print(warning, markup=False, highlight=False, style="yellow")
        held = [entry.record for entry in collection.entries if not isinstance(entry.record.status, Absence)]
        count = write_published(held, folder)
        console.print(f"{folder / RECORDS}: {count} records", highlight=False, markup=False, soft_wrap=True)
    for path, content in board_files(folder).items():
        write_bytes(folder / path, content)
        console.print(str(folder / path), highlight=False, markup=False, soft_wrap=True)


def board_files(folder: Path) -> dict[str, bytes]:
    """Every file that follows from a board's records, by path: what `--rebuild` writes and what CI compares.

    Raises:
        DataError: the folder holds no records.
    """
    from leaderboard.render import FORMATS
    from leaderboard.tables import stems

    found = published_boards(folder)
    return {
        f"tables/{stem}.{name}": FORMATS[name](board)
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
