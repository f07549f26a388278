"""What an array task of `harness.slurm_executor` does on its node, and the two files through which both meet.

The pack, JSON, holds the task's cells; the driver writes it. The journal, JSON lines beside it, says which cells began
and how they ended; the task writes it. The cells' records and predictions go into the results folder, as ever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import Row
from harness.drivers import Driver
from harness.errors import DataError, VabenchError, first_line
from harness.execute import Pool
from harness.fingerprint import fingerprint
from harness.plan import Cell
from harness.record import Status
from harness.spec import Spec, parse_spec

ENGINE = ("harness.cell",)
LOOK_EVERY_S = 5.0  # for `vabench cancel`; a thousand tasks ask the same file server
WARNING_S = 90  # Slurm warns a task so long before its time is over, at most a minute earlier


def write_cells(cells: Iterable[Cell]) -> bytes:
    """A pack's content."""
    rows = [
        {
            "suite": _plain(cell.suite),
            "suite_name": cell.suite_name,
            "suite_source": cell.suite_source,
            "method": _plain(cell.row.method),
            "masks": None if cell.row.masks is None else _plain(cell.row.masks),
            "label": cell.row.label,
            "block": cell.row.block,
            "row_name": cell.row_name,
            "model": _plain(cell.model),
            "identity": cell.identity,
            "blocked": cell.blocked,
            "id": cell.id,
        }
        for cell in cells
    ]
    return json.dumps({"code": fingerprint(ENGINE), "cells": rows}).encode()


def read_cells(content: bytes) -> list[Cell]:
    """The cells of a pack.

    Raises:
        VabenchError: this installation's engine is not the driver's. DataError: the pack is damaged.
    """
    try:
        pack = json.loads(content)
        if pack["code"] != fingerprint(ENGINE):
            raise VabenchError("this node has another version of vabench than the driver: install the same one")
        cells = [_cell(held) for held in pack["cells"]]
        ids = [held["id"] for held in pack["cells"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the pack of cells is damaged ({first_line(error)})") from error
    if [cell.id for cell in cells] != ids:
        raise DataError("the pack of cells is damaged: a cell is not what its id says")
    return cells


def _cell(held: Mapping[str, Any]) -> Cell:
    masks = None if held["masks"] is None else parse_spec(held["masks"])
    row = Row(method=parse_spec(held["method"]), masks=masks, label=held["label"], block=held["block"])
    return Cell(
        suite=parse_spec(held["suite"]),
        suite_name=held["suite_name"],
        suite_source=held["suite_source"],
        row=row,
        row_name=held["row_name"],
        model=parse_spec(held["model"]),
        seed=held["identity"]["seed"],
        config=held["identity"]["config"],
        identity=held["identity"],
        blocked=held["blocked"],
    )


def _plain(value: Any) -> Any:
    """A spec as JSON that `parse_spec` reads back; unlike `Spec.canonical` it leaves 1.0 a float."""
    if isinstance(value, Spec):
        return {"name": value.name, "params": {key: _plain(held) for key, held in value.params.items()}}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass
class Journal:
    """A task's journal. One process writes it at a time; any may read on from where it was.

    started: ids of the cells that the task's present run began and did not end. ended: id -> status, reason, seconds.
    over: why the task ended (empty: its work is done), None while it has not.
    """

    path: Path
    started: list[str] = field(default_factory=list)
    ended: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    over: str | None = None
    _read: int = 0

    def write(self, **line: Any) -> None:
        """Append a line. It is closed each time, so that other machines see it."""
        text = json.dumps(line) + "\n"
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                text = text if file.read(1) == b"\n" else "\n" + text  # a task was killed in the middle of a line
            file.write(text.encode())

    def read(self) -> list[dict[str, Any]]:
        """New whole lines, taken into account here. A line that is no JSON is passed over."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._read += len(whole) + len(newline)
        found = []
        for text in whole.splitlines():
            try:
                line = json.loads(text)
                self._take(line)
            except (KeyError, TypeError, ValueError):
                continue
            found.append(line)
        return found

    def _take(self, line: dict[str, Any]) -> None:
        if "begin" in line:
            self.started, self.over = [], None
        elif "started" in line:
            self.started.append(str(line["started"]))
        elif "ended" in line:
            self.ended[str(line["ended"])] = (Status(line["status"]).value, str(line["reason"]), float(line["wall_s"]))
            self.started = [held for held in self.started if held != line["ended"]]
        elif "over" in line:
            self.over = str(line["over"])


class _Reporter:
    """Watcher of the task's own pool: writes down what begins, and asks now and then whether to stop."""

    def __init__(self, journal: Journal, driver: Driver):
        self._journal, self._driver, self._looked = journal, driver, time.monotonic()

    def started(self, slot: int, cell: Cell) -> None:
        self._journal.write(started=cell.id)

    def advanced(self, slot: int, phase: str, done: int, total: int) -> None:
        pass  # a file server is no place for progress bars

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._driver.look()


@dataclass(frozen=True)
class Task:
    """The callable that submitit pickles: texts and numbers, nothing else.

    Cells run in worker processes of the task, never in its own: what a cell does to its process does not reach the
    other cells, and submitit's answer to Slurm's signals does not break into a cell.

    root: results folder. pack: file of the cells. workers: worker processes. limit_s: the task's time limit in seconds.
    """

    root: str
    pack: str
    device: str
    workers: int
    limit_s: float

    def __call__(self) -> None:
        """Run the pack's cells that have not ended yet. A task that is pre-empted and requeued comes here again."""
        journal = self.journal()
        journal.read()
        journal.write(begin=time.time())
        try:
            cells = [cell for cell in read_cells(Path(self.pack).read_bytes()) if cell.id not in journal.ended]
            self._run(cells, journal)
        except SystemExit:  # submitit has requeued the task
            raise
        except BaseException as error:
            journal.read()
            if journal.over is None:
                journal.write(over=first_line(error))
            raise
        journal.write(over="")

    def _run(self, cells: list[Cell], journal: Journal) -> None:
        if not cells:
            return
        with Driver(self.root) as driver:  # so that `vabench cancel` also reaches a task whose driver is gone
            pool = Pool(self.root, self.device, min(self.workers, len(cells)))
            try:
                for outcome in pool.run(cells, _Reporter(journal, driver)):
                    status = outcome.status.value
                    journal.write(ended=outcome.cell.id, status=status, reason=outcome.reason, wall_s=outcome.wall_s)
            finally:
                pool.close()

    def journal(self) -> Journal:
        """The pack's journal, not read yet."""
        return Journal(Path(self.pack).with_suffix(".journal"))

    def checkpoint(self) -> Any:
        """submitit's question what to requeue: the task as it is, because cells that ended stay ended.

        None, which ends the task, where a whole time limit went by without one cell ending: the next would go by too.
        """
        from submitit.helpers import DelayedSubmission

        begun, ended = 0.0, 0
        for line in self.journal().read():
            begun, ended = (line["begin"], 0) if "begin" in line else (begun, ended + ("ended" in line))
        if ended or time.time() - begun < self.limit_s - WARNING_S - 60:
            return DelayedSubmission(self)
        self.journal().write(
            over=f"no cell ended within the time limit of {self.limit_s / 60:g} min; raise slurm(time=...)"
        )
        return None
