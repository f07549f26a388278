"""The `vabench` command. Its verbs are entry points (group `vabench.commands`), so other rooms bring theirs."""

from __future__ import annotations

import atexit
import codecs
import difflib
import errno
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from harness.registry import installed_points


class _Verbs(TyperGroup):
    """The verbs; a word or an option that there is not gets the one that is meant, in one sentence."""

    _words: list[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._words = list(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from harness.errors import ConfigError

        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"there is no command '{name}'; {hint}known: {', '.join(known)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":  # typer brings a click of its own, or takes the installed one
                raise
            raise self._explained(error) from None

    def _explained(self, error: Any) -> Exception:
        """What to write in place of an option that there is not: `seeds=2` for `--seeds 2`."""
        from harness.errors import ConfigError

        option, command = error.option_name, error.ctx.command
        said = f"`vabench {command.name}` has no option {option}"
        if error.possibilities:
            return ConfigError(f"{said}; did you mean {' or '.join(sorted(error.possibilities))}?")
        settings = any("KEY=VALUE" in str(getattr(param, "metavar", "")) for param in command.params)
        if not settings or not option.startswith("--"):
            return ConfigError(f"{said}; `vabench {command.name} --help` names those that there are")
        given = [*self._words, ""]
        values = [word.partition("=")[2] for word in given if word.startswith(f"{option}=")]
        values += [after for word, after in itertools.pairwise(given) if word == option and after[:1] != "-"]
        key = option.removeprefix("--").replace("-", "_")
        return ConfigError(
            f"{said}; settings are written without dashes: {key}={(values[0] if values else '') or '...'}"
        )


app = typer.Typer(
    name="vabench",
    cls=_Verbs,
    help="Visual Alignment Bench: which shortcut-repair method works, what knowledge it consumes, what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Keep the verbs' names where only one verb is registered: typer would make it the whole program."""


def _collect(first: str | None = None) -> None:
    """Register the verb that is the first word, or every verb: their modules take longer to import than most need.

    A verb that cannot be imported is reported and costs nothing else.
    """
    points = sorted(installed_points("vabench.commands"), key=lambda point: point.name)
    for point in [point for point in points if point.name == first] or points:
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


_IN_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "∅": "0", "·": "-", "–": "-", "—": "-", "…": "...", "Δ": "d", "λ": "lambda", "×": "x"}
)


def _print_anything() -> None:
    """Let a terminal or pipe without Unicode (LC_ALL=C) show a plain character where it lacks one; never die of it."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        text = error.object[error.start : error.end].translate(_IN_ASCII)
        return text.encode("ascii", "replace").decode(), error.end

    codecs.register_error("vabench", replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="vabench")


def console() -> None:
    """Entry point of the console script: `main`, and then an end without delay."""
    try:
        main()
    except SystemExit as end:
        _leave(end.code)
        raise


def main() -> None:
    """The command line: errors meant for people are printed as one sentence, exit code 2.

    Raises:
        SystemExit: always, with the exit code.
    """
    from harness.errors import VabenchError

    # Matrix products of tables are small: beside running cells, numpy's second thread only spins (5 times slower).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _print_anything()
    _collect(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        app()
    except VabenchError as error:
        print(f"vabench: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `vabench list | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"vabench: a path is longer than the file system takes: {str(error.filename)[:60]}...", file=sys.stderr)
        sys.exit(2)


def _leave(code: object) -> None:
    """End the process at once: after a run Python takes a second or more to pull down torch, object by object.

    What was registered for the end is run, and all that was printed is written. Where a thread must be waited for, or
    something was printed that cannot be written, this returns and Python ends in its own way.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if not (code is None or isinstance(code, int)) or any(not thread.daemon for thread in others):
        return
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed from the start: `>&-`
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(code or 0)


if __name__ == "__main__":
    console()
