"""`vabench report`: prints the tables of a run and writes them as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.config import RunConfig
    from leaderboard.collect import Collection
    from leaderboard.gallery import Gallery
    from leaderboard.study_board import Shown
    from leaderboard.tables import Board
    from leaderboard.throughput import Speeds

FORMATS = ("md", "tex", "csv")
KNOWN = (*FORMATS, "parquet", "html", "figures")
EVERYTHING = "all-records"  # folder of `--all`, which is no selection


def report(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`. Nothing: the last run."),
    ] = None,
    track: Annotated[str, typer.Option(help="preregistered, tuned or all.")] = "all",
    format: Annotated[
        str,
        typer.Option(
            "--format", help="Files to write: md, tex, csv, parquet, html (one page), figures (SVG, PNG); by comma."
        ),
    ] = "md,tex,csv",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder for the files (default: RESULTS/report/...).")
    ] = "",
    metric: Annotated[str, typer.Option(help="Metric that ranks the rows.")] = "wga",
    all_records: Annotated[bool, typer.Option("--all", help="Every record in the folder, of whatever run.")] = False,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Put the pictures of `vabench gallery` on the page: images of the suites.")
    ] = False,
    test_selected: Annotated[
        bool, typer.Option("--test-selected", help="Also show what choosing on test would have reported.")
    ] = False,
) -> None:
    """Print and write the tables of the last run, of a preset, or (--all) of every record in the results folder.

    The files of every selection have a folder of their own: the preset's name, and a hash where anything is changed.
    `vabench report`, `vabench report decoys seeds=3 --track tuned`, `vabench report results=published --all`.
    """
    import gc

    # Thousands of records, none of them garbage: looking for some takes a fifth of the time.
    gc.set_threshold(1_000_000)
    from harness.errors import ConfigError
    from harness.progress import wide_console
    from leaderboard.collect import TRACKS, everything, planned

    formats = tuple(part.strip() for part in format.split(",") if part.strip())
    unknown = [part for part in formats if part not in KNOWN]
    if unknown:
        raise ConfigError(f"there is no format '{unknown[0]}'; known: {', '.join(KNOWN)}")
    if track != "all" and track not in TRACKS:
        raise ConfigError(f"there is no track '{track}'; known: {', '.join(TRACKS)}, all")
    config, root = _resolve(words, all_records)
    collection = everything(root) if config is None else planned(config)
    _check_metric(metric, collection)
    console = wide_console()
    for path in _show(
        collection,
        console,
        Path(output) if output else report_folder(root, config, metric),
        formats=formats,
        tracks=None if track == "all" else (track,),
        metric=metric,
        test_selected=test_selected,
        root=Path(root),
        gallery=gallery,
    ):
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def collect(words: list[str] | None, all_records: bool) -> Collection:
    """The cells that words of the command line name, as `vabench report` takes them."""
    from leaderboard.collect import everything, planned

    config, root = _resolve(words, all_records)
    return everything(root) if config is None else planned(config)


def publish(config: RunConfig, console: Console) -> list[Path]:
    """Print the tables of a config's cells and write all formats to its `report_folder`; returns the files.

    Raises:
        DataError: none of the cells has a record, or the folder cannot be written.
    """
    from leaderboard.collect import planned

    return _show(planned(config), console, report_folder(config.results, config))


def report_folder(root: str, config: RunConfig | None, metric: str = "wga") -> Path:
    """Where the files of a selection go: no other selection of suites, rows, seeds or settings writes there.

    `<root>/report/<preset>` for a registered preset as it stands, `<preset>-<8 hex digits>` where anything is changed
    and for a preset file, `all-records` without a config; `-by-<metric>` follows where another metric ranks.
    """
    from harness.store import slug

    ranked = "" if metric == "wga" else f"-by-{metric}"
    if config is None:
        return Path(root) / "report" / f"{EVERYTHING}{ranked}"
    own, changed = _selection(config), True
    try:
        from harness.config import load_config
        from harness.errors import VabenchError

        changed = _selection(load_config(config.name)) != own
    except VabenchError:  # no registered preset of this name: a file
        pass
    return Path(root) / "report" / f"{slug(config.name)}{f'-{own[:8]}' if changed else ''}{ranked}"


def _selection(config: RunConfig) -> str:
    """Hash of what is run, not of where and how."""
    from harness.api import remember
    from harness.plan import digest

    return digest(
        {k: v for k, v in remember(config).items() if k not in ("name", "results", "workers", "device", "executor")}
    )


def _check_metric(metric: str, collection: Collection) -> None:
    """Raise ConfigError, with the names that there are, where no record has the metric."""
    import difflib

    from harness.errors import ConfigError
    from leaderboard.compare import LOWER_IS_BETTER
    from leaderboard.tables import INTERVALS, MEANS

    held = {
        name
        for entry in collection.entries
        for result in entry.record.tracks.values()
        for name, value in result.metrics.items()
        if value is not None
    }
    known = [name for name in dict.fromkeys((*INTERVALS, *MEANS, *LOWER_IS_BETTER)) if name in held]
    if metric not in known and known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"--metric: no record has a metric '{metric}' to rank by; {hint}known: {', '.join(known)}")


def write_report(
    found: Sequence[Board],
    output: Path,
    formats: Sequence[str] = FORMATS,
    warnings: Sequence[str] = (),
    timings: Sequence[Speeds] = (),
    galleries: Mapping[str, Gallery] | None = None,
    studies: Sequence[Shown] = (),
) -> list[Path]:
    """Write each table in each format to `<output>/<suite>-<track>.<format>`; returns the files.

    With `csv` come `<suite>-<track>-cells.csv`, one line per cell with its seed, record, commit and scores, and
    `<suite>-<track>-costs.csv`, what a row costs by part. `html` is one page of all tables (and timings), `index.html`;
    `figures` are `<suite>-<track>-<figure>.svg` and `.png`.
    """
    from harness.store import write_bytes
    from leaderboard.beside import each
    from leaderboard.tables import stems

    names = stems(found)
    parts = each(len(found), lambda k: _files(found[k], names[k], formats), sum(len(board.cells) for board in found))
    files = {name: content for part in parts for name, content in part.items()}
    if "html" in formats:
        from leaderboard.page import to_html

        page = to_html(found, warnings=warnings, timings=timings, galleries=galleries, studies=studies)
        files["index.html"] = page.encode()
    for name, content in files.items():
        write_bytes(output / name, content)
    return [output / name for name in files]


def _files(board: Board, stem: str, formats: Sequence[str]) -> dict[str, bytes]:
    """A table's own files, by name."""
    from leaderboard.render import FORMATS as WRITERS

    files = {f"{stem}.{name}": WRITERS[name](board) for name in formats if name in WRITERS}
    if "csv" in formats:
        from leaderboard.costs import costs

        files[f"{stem}-costs.csv"] = costs(board).to_csv(index=False, lineterminator="\n").encode()
    if "csv" in formats and len(board.cells):
        files[f"{stem}-cells.csv"] = board.cells.to_csv(index=False, lineterminator="\n").encode()
    if "figures" in formats:
        from leaderboard.charts import draw, png

        for name, svg in draw(board).items():
            files |= {f"{stem}-{name}.svg": svg.encode(), f"{stem}-{name}.png": png(svg)}
    return files


def _show(
    collection: Collection,
    console: Console,
    output: Path,
    *,
    formats: Sequence[str] = FORMATS,
    tracks: Sequence[str] | None = None,
    metric: str = "wga",
    test_selected: bool = False,
    root: Path | None = None,
    gallery: bool = False,
) -> list[Path]:
    """Print tables, notes and warnings; write the files."""
    from harness.errors import DataError
    from leaderboard.collect import same_test
    from leaderboard.render import LEGEND, cells, to_terminal
    from leaderboard.tables import INTERVALS, best_on_test_board, boards

    found = boards(collection.entries, tracks, seeds=collection.seeds, metric=metric)
    if not found and collection.studies and "html" not in formats:
        raise DataError("there are published studies alone here: --format html writes a page of them")
    if not found and not collection.studies:
        raise DataError(f"no record has results on the {', '.join(tracks or ())} track; see --track")
    if test_selected:
        by = metric if metric in INTERVALS else "wga"  # candidates keep these scores only
        apart = [best_on_test_board(table, metric=by) for table in same_test(collection.entries)]
        found += [board for board in apart if board is not None]
    for board in found:
        console.print(to_terminal(board, console.width))
        notes = [f"({mark}) {why}" for mark, why in cells(board, terse=True).notes.items()]
        for note in [*notes, *board.notes]:
            console.print(note, markup=False, highlight=False, style="dim")
        console.print()
    for note in LEGEND:
        console.print(note, markup=False, highlight=False, style="dim")
    galleries, warnings = _galleries(root, found, formats) if gallery else ({}, [])
    studies, undrawn = _studies(collection) if "html" in formats else ([], [])
    timings, untimed = _timings(root) if "html" in formats else ([], [])
    warnings = [*collection.warnings, *warnings, *undrawn, *untimed]
    for warning in warnings:
        console.print(warning, markup=False, highlight=False, style="yellow")
    return write_report(found, output, formats, warnings, timings, galleries, studies)


def _galleries(
    root: Path | None, found: Sequence[Board], formats: Sequence[str]
) -> tuple[Mapping[str, Gallery], list[str]]:
    """Galleries of the tables' records.

    Raises:
        ConfigError: there is no page to put them on, or none was drawn for these records.
    """
    from harness.errors import ConfigError
    from leaderboard.gallery import read_galleries

    if "html" not in formats:
        raise ConfigError("--gallery goes with the page: add --format html")
    held, damaged = read_galleries(root or Path())
    ids = {entry.record.id for board in found for row in board.rows for entry in row.entries.values()}
    if not damaged and not ids & held.keys():
        raise ConfigError(f"{root}/gallery holds no gallery of these records; `vabench gallery` draws them")
    return held, damaged


def _studies(collection: Collection) -> tuple[list[Shown], list[str]]:
    """Published studies of a collection, and what is wrong with those that cannot be drawn."""
    from harness.errors import VabenchError
    from leaderboard.study_board import read_study_board

    shown, warnings = [], []
    for folder in collection.studies:
        try:
            shown.append(read_study_board(folder))
        except VabenchError as error:
            warnings.append(f"the study in {folder} is left out: {error}")
    return shown, warnings


def _timings(root: Path | None) -> tuple[list[Speeds], list[str]]:
    """Timing records of a results folder as tables, and why they are left out where they do not fit together."""
    from harness.errors import VabenchError
    from leaderboard.throughput import read_timings, speeds, timing_files

    if root is None or not timing_files(root):
        return [], []
    try:
        return speeds(read_timings(root)), []
    except VabenchError as error:
        return [], [f"the timing records are left out: {error}"]


def _resolve(words: list[str] | None, all_records: bool) -> tuple[RunConfig | None, str]:
    """The config whose cells are reported (None: every record) and its results folder."""
    from harness.commands import named_config, only_folder

    root = only_folder(words)
    if root is not None and all_records:
        return None, root
    config = named_config(words)
    return (None if all_records else config), config.results
