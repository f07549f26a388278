"""The engine's own verbs: run, list, status, study, check. Heavy imports stay inside: `--help` answers at once."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from harness.config import RunConfig
    from harness.plan import Cell

    Publisher = Callable[[RunConfig, Console], list[Path]]

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="A preset's name or YAML file, then overrides."),
]


def read_words(words: list[str] | None) -> tuple[str, list[str]]:
    """Split command-line words into preset and overrides.

    Raises:
        ConfigError: more than one word without '=', or one that is a path.
    """
    from harness.errors import ConfigError

    names = [word for word in words or [] if "=" not in word.split("(")[0]]
    if len(names) > 1:
        raise ConfigError(f"two presets are named, '{names[0]}' and '{names[1]}'; write overrides as key=value")
    if names and _is_path(names[0]):
        raise ConfigError(f"'{names[0]}' is no preset but a path; a results folder is named results={names[0]}")
    return (names[0] if names else "quickstart"), [word for word in words or [] if word not in names]


def _is_path(name: str) -> bool:
    """Whether a word in a preset's place looks like a folder; a preset's own name and its YAML file never do."""
    from pathlib import Path

    from harness.registry import registry

    if name.endswith((".yaml", ".yml")) or name in registry("presets").names():
        return False
    return "/" in name or Path(name).is_dir()


def only_folder(words: list[str] | None) -> str | None:
    """The results folder where words name nothing else (default: `results`); None where they select something."""
    held = words or []
    if not all(word.startswith("results=") for word in held):
        return None
    return held[-1].partition("=")[2] if held else "results"


def named_config(words: list[str] | None) -> RunConfig:
    """The config that words mean to a command that looks at results: the last run's where they select nothing.

    Raises:
        ConfigError, ComponentError: as in `harness.config.load_config`. DataError: there was no last run.
    """
    root = only_folder(words)
    if root is not None:
        from harness.api import last_run

        return last_run(root)
    from harness.config import load_config

    preset, overrides = read_words(words)
    return load_config(preset, overrides)


def run(words: Words = None) -> None:
    """Run a preset's missing cells, then print its leaderboard. Ctrl-C loses nothing that is finished.

    Presets: quickstart (the default), decoys; `vabench list presets` names all. Examples:
    `vabench run seeds=1`, `vabench run decoys methods=[erm,rrr] seeds=3`, `vabench run my_preset.yaml`.
    """
    from harness.api import failures, run_config
    from harness.config import load_config
    from harness.progress import count, wide_console
    from harness.record import Status

    console = wide_console()
    preset, overrides = read_words(words)
    config = load_config(preset, overrides)
    publishers = functools.cache(_publishers)

    summary = run_config(config, console, lambda todo: _announce(config, todo, console), publishers)
    if not summary.outcomes:
        what = "the one cell" if summary.total == 1 else f"all {summary.total} cells"
        verb = "is" if summary.total == 1 else "are"
        console.print(f"nothing to do: {what} of '{config.name}' {verb} done", highlight=False)
    else:
        counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.counts().items()))
        held = f"; {summary.already} done before" if summary.already else ""
        ran = count(len(summary.outcomes), "cell")
        console.print(f"{ran} in {summary.seconds:.0f} s: {counts}{held}", highlight=False)
    ended = {outcome.status for outcome in summary.outcomes}
    if summary.already == 0 and ended == {Status.SKIPPED}:
        print(f"vabench: no cell could run: {summary.outcomes[0].reason}", file=sys.stderr)
        raise typer.Exit(1)
    for publish in publishers():
        for path in publish(config, console):
            console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    broken = failures(summary)
    if broken:
        for outcome in broken[:5]:
            print(f"vabench: failed: {outcome.cell}: {outcome.reason}", file=sys.stderr)
        _say_failed(len(broken))
        raise typer.Exit(1)


def _say_failed(number: int) -> None:
    one = number == 1
    print(
        f"vabench: {number} {'cell' if one else 'cells'} failed; the {'record holds the trace' if one else ''}"
        f"{'' if one else 'records hold the traces'}, the next run tries {'it' if one else 'them'} again",
        file=sys.stderr,
    )


def _announce(config: RunConfig, todo: list[Cell], console: Console) -> None:
    """Say what is about to run, with the group counts that every number depends on."""
    from harness.listing import group_tables
    from harness.progress import count

    suites = {cell.suite_name for cell in todo}
    rows = {cell.row_name for cell in todo}
    console.print(
        f"'{config.name}': {count(len(todo), 'cell')} to run ({count(len(rows), 'row')} x "
        f"{count(len(config.seeds), 'seed')} x {count(len(suites), 'suite')}), results in {config.results}/",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for table in group_tables(config):
        console.print(table)


def _publishers() -> list[Publisher]:
    """What prints the leaderboard: whatever brings the hook `vabench.publishers`, with all that it imports."""
    from harness.registry import installed_points

    found = []
    for point in installed_points("vabench.publishers"):
        try:
            found.append(point.load())
        except Exception as error:  # a stranger's import may raise anything, and it must cost no cell
            print(f"vabench: the publisher '{point.name}' cannot be loaded: {error}", file=sys.stderr)
    return found


def status(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`. Nothing: the last run."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow a run in another terminal until it ends.")] = False,
) -> None:
    """Say which cells of the last run, or of a preset, are done, missing, stale or damaged, and why."""
    from harness.api import survey
    from harness.listing import status_lines
    from harness.progress import wide_console

    config = named_config(words)
    console = wide_console()
    if watch:
        from harness.watch import follow

        for line in follow(config):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    for line in status_lines(config, survey(config)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def cancel(
    words: Annotated[list[str] | None, typer.Argument(metavar="[results=FOLDER]", help="Default: results.")] = None,
) -> None:
    """Stop every run that works in a results folder, on this machine or another. Finished cells are kept."""
    from pathlib import Path

    from harness.drivers import cancel as stop
    from harness.errors import ConfigError, DataError
    from harness.progress import count

    wrong = [word for word in words or [] if not word.startswith("results=")]
    if wrong or len(words or []) > 1:
        raise ConfigError("give the results folder alone: vabench cancel results=FOLDER")
    root = (words or ["results="])[0].partition("=")[2] or "results"
    if not Path(root).is_dir():
        raise DataError(f"there is no results folder {root}")
    asked, left = stop(root)
    print(f"{count(asked, 'run')} in {root}/ asked to stop" + (f"; {left} did not within 30 s" if left else ""))
    if not asked:
        print("a run that was started some seconds ago may not be seen yet: it imports and plans first")
    if left:
        raise typer.Exit(1)


def study(
    name: Annotated[str, typer.Argument(help="A study's name (`vabench list studies`) or YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For all points; axes.NAME=[...] for an axis.")
    ] = None,
    draw_only: Annotated[bool, typer.Option("--draw-only", help="Run nothing: write what is stored.")] = False,
) -> None:
    """Run a study's missing cells, then write its CSV files and its figure to RESULTS/studies/.

    Examples: `vabench study fpr-fnr seeds=1`, `vabench study ross-curve workers=1`, `vabench study mine.yaml`.
    """
    from harness.errors import ConfigError
    from harness.progress import count, wide_console
    from harness.study import expand, read_study, run_study

    wrong = [word for word in overrides or [] if "=" not in word]
    if wrong:
        raise ConfigError(f"'{wrong[0]}' is not an override; write key=value, for example seeds=3")
    console, grid = wide_console(), expand(read_study(name), overrides or [])
    broken = 0
    if not draw_only:
        summary = run_study(grid, console)
        counts = summary.counts()
        broken = counts.get("failed", 0)
        did = ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "nothing to do"
        cells = count(summary.total, "cell")
        console.print(f"{cells} in {summary.seconds:.0f} s: {did}; {summary.already} done before", highlight=False)
    from harness.study_table import write_study

    files, told = write_study(grid)
    for line in told:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for path in files:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    if broken:
        _say_failed(broken)
        raise typer.Exit(1)


def list_components(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND or NAME]",
            help="methods, suites, mask_sources, samplers, explainers, models, clients, presets, studies, "
            "executors; or a component's name, which shows its parameters.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load every component; report what fails and what slows `list`.")
    ] = False,
) -> None:
    """List methods, suites, mask sources and the rest, with the supervision that each consumes.

    `vabench list methods` lists one kind; `vabench list noisy_oracle` shows one component with its parameters.
    """
    from harness.listing import component_tables, component_text, slow_metadata
    from harness.registry import KINDS

    if what is not None and what not in KINDS:
        print(component_text(what))
        return
    kinds = [what] if what else list(KINDS)
    text, broken = component_tables(kinds, check)
    print(text)
    for fault in broken:
        print(f"vabench: {fault.origin}: {fault.error}", file=sys.stderr)
    for slow in slow_metadata(kinds) if check else ():
        print(f"vabench: {slow}", file=sys.stderr)
    if check and broken:
        raise typer.Exit(1)


def check(
    target: Annotated[str, typer.Argument(help="package.module:Class of a method, mask source or suite.")],
) -> None:
    """Contract test for a method, mask source or suite of one's own."""
    from harness.contract import check_target

    results = check_target(target)
    for result in results:
        print(f"{'pass' if result.passed else 'FAIL'}  {result.name}" + (f": {result.detail}" if result.detail else ""))
    failed = [result for result in results if not result.passed]
    print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    if failed:
        raise typer.Exit(1)
