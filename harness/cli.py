"""The `vabench` command. Its verbs are entry points (group `vabench.commands`), so other rooms bring theirs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import typer

app = typer.Typer(
    name="vabench",
    help="Visual Alignment Bench: which shortcut-repair method works, what knowledge it consumes, what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _collect() -> None:
    """Register every verb; one that cannot be imported is reported and costs nothing else."""
    for point in sorted(entry_points(group="vabench.commands"), key=lambda point: point.name):
        try:
            app.command(point.name)(_answer_interrupts(point.load()))
        except Exception as error:  # a stranger's import may raise anything
            print(f"vabench: the command '{point.name}' cannot be loaded: {error}", file=sys.stderr)


def _answer_interrupts(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, with a sentence where Ctrl-C stops it (typer would end without a word)."""

    @functools.wraps(verb)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except KeyboardInterrupt:
            print("vabench: stopped; finished cells are kept, the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None

    return guarded


def main() -> None:
    """Entry point of the console script: errors meant for people are printed as one sentence, exit code 2."""
    from harness.errors import VabenchError

    _collect()
    try:
        app()
    except VabenchError as error:
        print(f"vabench: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `vabench list | head`
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
