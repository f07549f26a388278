"""`vabench report`: prints the tables of a run and writes them as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.config import RunConfig
    from leaderboard.collect import Collection
    from leaderboard.tables import Board

FORMATS = ("md", "tex", "csv")
PIPE_WIDTH = 120  # columns where the output is a file or a pipe


def report(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`. Nothing: the last run."),
    ] = None,
    track: Annotated[str, typer.Option(help="preregistered, tuned or all.")] = "all",
    format: Annotated[str, typer.Option("--format", help="Files to write: md, tex, csv, by comma.")] = "md,tex,csv",
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the files (default RESULTS/report).")] = "",
    metric: Annotated[str, typer.Option(help="Metric that ranks the rows.")] = "wga",
    all_records: Annotated[bool, typer.Option("--all", help="Every record in the folder, of whatever run.")] = False,
    test_selected: Annotated[
        bool, typer.Option("--test-selected", help="Also show what choosing on test would have reported.")
    ] = False,
) -> None:
    """Print and write the tables of the last run, of a preset, or (--all) of every record in the results folder.

    `vabench report`, `vabench report decoys seeds=3 --track tuned`, `vabench report results=published --all`.
    """
    from rich.console import Console

    from harness.errors import ConfigError
    from leaderboard.collect import everything, planned
    from leaderboard.tables import TRACKS

    formats = tuple(part.strip() for part in format.split(",") if part.strip())
    unknown = [part for part in formats if part not in FORMATS]
    if unknown:
        raise ConfigError(f"there is no format '{unknown[0]}'; known: {', '.join(FORMATS)}")
    if track != "all" and track not in TRACKS:
        raise ConfigError(f"there is no track '{track}'; known: {', '.join(TRACKS)}, all")
    config, root = _resolve(words, all_records)
    collection = everything(root) if config is None else planned(config)
    for path in _show(
        collection,
        Console(),
        Path(output) if output else Path(root) / "report",
        formats=formats,
        tracks=None if track == "all" else (track,),
        metric=metric,
        test_selected=test_selected,
    ):
        Console(soft_wrap=True).print(str(path), highlight=False, markup=False)


def publish(config: RunConfig, console: Console) -> list[Path]:
    """Print the tables of a config's cells and write all formats to `<results>/report`; returns the files.

    Raises:
        DataError: none of the cells has a record, or the folder cannot be written.
    """
    from leaderboard.collect import planned

    return _show(planned(config), console, Path(config.results) / "report")


def write_report(found: Sequence[Board], output: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write each table in each format to `<output>/<suite>-<track>.<format>`; returns the files."""
    from harness.store import write_bytes
    from leaderboard.render import FORMATS as WRITERS
    from leaderboard.tables import stems

    paths = []
    for board, stem in zip(found, stems(found), strict=True):
        for name in formats:
            path = output / f"{stem}.{name}"
            write_bytes(path, WRITERS[name](board).encode())
            paths.append(path)
    return paths


def _show(
    collection: Collection,
    console: Console,
    output: Path,
    *,
    formats: Sequence[str] = FORMATS,
    tracks: Sequence[str] | None = None,
    metric: str = "wga",
    test_selected: bool = False,
) -> list[Path]:
    """Print tables, notes and warnings; write the files."""
    from harness.errors import DataError
    from leaderboard.collect import same_test
    from leaderboard.render import LEGEND, cells, to_terminal
    from leaderboard.tables import INTERVALS, best_on_test_board, boards

    found = boards(collection.entries, tracks, seeds=collection.seeds, metric=metric)
    if not found:
        raise DataError(f"no record has results on the {', '.join(tracks or ())} track; see --track")
    if test_selected:
        by = metric if metric in INTERVALS else "wga"  # candidates keep these scores only
        apart = [best_on_test_board(table, metric=by) for table in same_test(collection.entries)]
        found += [board for board in apart if board is not None]
    wide = _wide(console)
    for board in found:
        wide.print(to_terminal(board, wide.width))
        notes = [f"({mark}) {why}" for mark, why in cells(board, terse=True).notes.items()]
        for note in [*notes, *board.notes]:
            wide.print(note, markup=False, highlight=False, style="dim")
        wide.print()
    for note in (*LEGEND, "±: half of that interval; the files give both ends."):
        wide.print(note, markup=False, highlight=False, style="dim")
    for warning in collection.warnings:
        wide.print(warning, markup=False, highlight=False, style="yellow")
    return write_report(found, output, formats)


def _wide(console: Console) -> Console:
    """The console, or a wider one where nobody has said how wide a file or pipe is."""
    import os

    from rich.console import Console

    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(file=console.file, width=PIPE_WIDTH)


def _resolve(words: list[str] | None, all_records: bool) -> tuple[RunConfig | None, str]:
    """The config whose cells are reported (None: every record) and its results folder."""
    from harness.commands import read_words
    from harness.config import load_config

    results = [word.partition("=")[2] for word in words or [] if word.startswith("results=")]
    root = results[-1] if results else "results"
    if all(word.startswith("results=") for word in words or []):
        return (None, root) if all_records else (_last_run(root), root)
    preset, overrides = read_words(words)
    config = load_config(preset, overrides)
    return (None if all_records else config), config.results


def _last_run(root: str) -> RunConfig:
    """The config of the last run in a results folder.

    Raises:
        DataError: there is no such folder, or no run has left its mark there.
    """
    import json

    from harness.api import LAST_RUN
    from harness.config import validate
    from harness.errors import DataError

    path = Path(root) / LAST_RUN
    if not Path(root).is_dir():
        raise DataError(f"there is no results folder {root}; `vabench run` makes it, or name another: results=FOLDER")
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"no run has left {path}; name a preset, or report every record in {root}/ with --all"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); name a preset, or report every record with --all") from error
    return validate(values, str(path)).model_copy(update={"results": root})
