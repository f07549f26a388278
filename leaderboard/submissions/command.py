"""`vabench submit pack | verify | merge | confirm | init-board`: results from elsewhere on a board that stands up."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leaderboard.submissions.verify import Suites


class Action(StrEnum):
    """What to do."""

    pack = "pack"
    verify = "verify"
    merge = "merge"
    confirm = "confirm"
    init_board = "init-board"


def submit(
    action: Annotated[Action, typer.Argument(help="pack, verify, merge, confirm or init-board.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...",
            help="pack: as in `vabench report`. verify: SUBMISSION... merge: SUBMISSION... confirm: as in `report`. "
            "init-board: FOLDER.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="pack: the name under which the rows are shown.")] = "",
    out: Annotated[str, typer.Option("--out", "-o", help="pack: folder or .zip to write.")] = "",
    board: Annotated[str, typer.Option(help="merge, confirm: folder of the board.")] = "",
    suite: Annotated[
        list[str] | None, typer.Option(help="verify, merge: a suite that is taken (default: those of all presets).")
    ] = None,
    all_records: Annotated[bool, typer.Option("--all", help="pack, confirm: every record in the folder.")] = False,
) -> None:
    """Pack results, check those of others as hostile input, and put them on a board.

    `vabench submit pack results=results --all --name my-lab -o my-lab.zip`, `vabench submit verify my-lab.zip`,
    `vabench submit merge my-lab.zip --board board`, `vabench submit init-board board`.
    """
    given = list(words or [])
    if action is Action.pack:
        _pack(given, name, out, all_records)
    elif action is Action.verify:
        _verify(given, suite)
    elif action is Action.merge:
        _merge(given, board, suite)
    elif action is Action.confirm:
        _confirm(given, board, all_records)
    else:
        _init(given)


def _pack(words: list[str], name: str, out: str, all_records: bool) -> None:
    from harness.errors import ConfigError
    from leaderboard.command import collect
    from leaderboard.submissions.pack import pack

    if not name or not out:
        raise ConfigError("say under which name and where: --name my-lab --out my-lab.zip")
    collection = collect(words, all_records)
    for warning in collection.warnings:
        typer.echo(warning, err=True)
    manifest, size = pack(collection.entries, name, Path(out))
    typer.echo(f"{out}: {len(manifest.cells)} cells, {len(manifest.seeds)} seeds, {size:,} bytes")


def taken_suites(specs: list[str] | None) -> Suites:
    """The suites that are verified: the ones named, else those of every registered preset."""
    from harness.config import load_config
    from harness.registry import registry
    from leaderboard.submissions.verify import Suites

    if specs:
        return Suites(specs)
    found: dict[str, None] = {}
    for preset in registry("presets").names():
        found |= dict.fromkeys(str(spec) for spec in load_config(preset).suites)
    return Suites(found)


def _verify(paths: list[str], suite: list[str] | None) -> None:
    from harness.errors import ConfigError
    from leaderboard.submissions.verify import verify

    if not paths:
        raise ConfigError("name what `vabench submit pack` wrote")
    suites, refused = taken_suites(suite), 0
    for path in paths:
        found = verify(Path(path), suites)
        for fault in found.faults:
            typer.echo(f"  {fault}")
        if found.accepted and found.manifest is not None:
            cells = len(found.manifest.cells)
            typer.echo(f"{path}: accepted, {cells} cells recomputed from their predictions")
        else:
            refused += 1
            typer.echo(f"{path}: refused, {len(found.faults)} faults")
    if refused:
        raise typer.Exit(1)


def _merge(paths: list[str], board: str, suite: list[str] | None) -> None:
    from harness.errors import ConfigError, DataError
    from leaderboard.submissions.merge import merge
    from leaderboard.submissions.verify import verify

    if not paths or not board:
        raise ConfigError("name submissions and the board: vabench submit merge my-lab.zip --board FOLDER")
    suites = taken_suites(suite)
    for path in paths:
        found = verify(Path(path), suites)
        if not found.accepted:
            raise DataError(f"{path} is refused: {found.faults[0]} (`vabench submit verify` lists all)")
        added, there = merge(found, suites, Path(board))
        typer.echo(f"{path}: {added} cells added to {board}" + (f", {there} were there" if there else ""))


def _confirm(words: list[str], board: str, all_records: bool) -> None:
    from harness.errors import ConfigError
    from leaderboard.command import collect
    from leaderboard.submissions.merge import confirm

    if not board:
        raise ConfigError("name the board: --board FOLDER")
    count = confirm(Path(board), [entry.record for entry in collect(words, all_records).entries])
    typer.echo(f"{board}: {count} results confirmed by a rerun")


def _init(words: list[str]) -> None:
    from harness.errors import ConfigError
    from leaderboard.submissions.board import init_board

    if len(words) != 1:
        raise ConfigError("name one folder: vabench submit init-board FOLDER")
    for path in init_board(Path(words[0])):
        typer.echo(str(path))
