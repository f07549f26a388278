"""The live display of a run: every worker's cell and phase, the total, and the time left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness.execute import Outcome
from harness.plan import Cell
from harness.record import Status

PIPE_WIDTH = 160  # columns of everything that is printed into a file or a pipe
_MARK = {Status.DONE: "✓", Status.SKIPPED: "–", Status.NOT_APPLICABLE: "∅", Status.FAILED: "✗"}


def wide_console() -> Console:
    """The console of all verbs: as wide as the terminal (or COLUMNS says), else of one width that fits a table."""
    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=PIPE_WIDTH)


def count(number: int, what: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class Display:
    """Bars on a terminal; one line per finished cell where the output is a file or a pipe."""

    def __init__(self, console: Console, total: int, workers: int, look: Callable[[], None] = lambda: None):
        self.tick = look  # raises where somebody asked the run to stop
        self._console, self._total, self._workers = console, total, workers
        self._done, self._start = 0, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
        )
        self._task: TaskID = self._bar.add_task("cells", total=total, left="")
        self._lines = [Text("starting", style="dim") for _ in range(workers)]
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)
        self._names: dict[int, str] = {}

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def started(self, slot: int, cell: Cell) -> None:
        """A cell began on a worker slot."""
        self._names[slot] = str(cell)
        self.advanced(slot, "", 0, 0)

    def advanced(self, slot: int, phase: str, done: int, total: int) -> None:
        """A phase of the slot's cell moved on."""
        share = f" {100 * done // total:3d} %" if total else ""
        self._lines[slot] = Text(f"  {self._names.get(slot, '')}  {phase}{share}", style="dim", overflow="ellipsis")
        if self._console.is_terminal:
            self._live.update(self._render())

    def finished(self, outcome: Outcome) -> None:
        """A cell ended: keep its line if it has no numbers, or if there is no terminal to redraw."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, left=self._left())
        reason = f": {outcome.reason}" if outcome.reason else ""
        line = f"{_MARK[outcome.status]} {outcome.cell} ({outcome.wall_s:.1f} s){reason}"
        if not self._console.is_terminal:
            self._console.print(
                f"[{self._done}/{self._total}] {line} {self._left()}", markup=False, highlight=False, soft_wrap=True
            )
        elif outcome.status is Status.FAILED:
            self._console.print(line, markup=False, highlight=False, style="red")

    def _left(self) -> str:
        if self._done < min(2 * self._workers + 1, self._total):  # the first ones held the imports
            return ""
        seconds = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _render(self) -> Group:
        return Group(self._bar, *self._lines)
