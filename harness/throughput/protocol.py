"""Interleaved rounds: every row in a process of its own, which stays alive and pauses while the others are timed."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from harness.config import RunConfig
from harness.errors import ConfigError, DataError, VabenchError
from harness.plan import Cell, plan
from harness.throughput.record import (
    MIN_ROUNDS,
    Round,
    RowTiming,
    Setting,
    TimingRecord,
    check_one_column,
    rates,
    too_few,
    without_folders,
)

MIN_STEPS = 20
SETUP_LIMIT_S = 1800
REFERENCE = "bare loop"


@dataclass(frozen=True)
class Effort:
    """How much is measured. rounds: valid ones wanted (at most twice as many are tried); budget_s: stop before the next
    round once this wall-clock is spent (0: no limit). A published figure needs 5 rounds and blocks of 20 steps."""

    rounds: int = MIN_ROUNDS
    steps: int = MIN_STEPS
    blocks: int = 3
    images: int = 64
    budget_s: float = 0.0

    def short(self) -> str:
        """What keeps figures of this effort from being published, or ''; the rounds are counted when they are over."""
        lacks = [f"blocks of {self.steps} steps instead of {MIN_STEPS}"] * (self.steps < MIN_STEPS)
        lacks += [f"{self.images} images explained instead of {MIN_STEPS}"] * (self.images < MIN_STEPS)
        return ", ".join(lacks)


class _Timer:
    """One row's process, or (`bare`) that of the bare loop on a row's data."""

    def __init__(self, cell: Cell, root: str, device: str, effort: Effort, *, bare: bool = False):
        self.row = REFERENCE if bare else cell.row_name
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, cell, root, device, effort, bare), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, word: Any) -> Any:
        """Send a word and wait for the answer. Raises VabenchError where the process failed or died."""
        try:
            self.pipe.send(word)
            return self.wait()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise VabenchError(f"its process is gone (exit code {self.process.exitcode})") from error

    def wait(self) -> Any:
        """The next answer."""
        try:
            if not self.pipe.poll(SETUP_LIMIT_S):
                raise VabenchError(f"no answer within {SETUP_LIMIT_S} s")
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(timeout=5)
            raise VabenchError(f"its process died (exit code {self.process.exitcode}); out of memory?") from error
        if kind == "failed":
            raise VabenchError(value)
        return value

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()


def serve(pipe: Connection, cell: Cell, root: str, device: str, effort: Effort, bare: bool) -> None:
    """Body of a row's process: set up, then a round for every number received, until the pipe closes."""
    from harness.worker import pick_device, quiet_threads, tune, warm_up

    quiet_threads()
    warm_up()
    try:
        from harness.stages import Stages
        from harness.store import Store
        from harness.throughput.bounds import TimedLoop
        from harness.throughput.timed import TimedRow

        kind = TimedLoop if bare else TimedRow
        row = kind(cell, Stages(Store(root), tune(pick_device(device))), effort.steps, effort.blocks, effort.images)
        ready = RowTiming(
            row=REFERENCE if bare else cell.row_name,
            setting=row.setting(),
            rounds=[],
            warmup_s=row.warmup_s,
            compile_s=row.compile_s,
            whole_images=row.whole_images,
        )
        pipe.send(("ready", (ready, row.sensors.missing)))
        while True:
            pipe.send(("round", row.one_round(pipe.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:  # a stranger's method may raise anything
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def measure(config: RunConfig, effort: Effort, say: Callable[[str], None]) -> TimingRecord:
    """Time every row of a config that has one suite; seed and track are the first ones.

    Raises:
        ConfigError: several suites, or no row could be timed alike. DataError: the data are missing.
    """
    if len(config.suites) != 1:
        raise ConfigError("throughput is measured on one suite at a time: suites=[...]")
    start = time.perf_counter()
    one = config.model_copy(update={"seeds": config.seeds[:1], "tracks": ("preregistered",)})
    cells = plan(one)
    if cells[0].blocked:
        raise DataError(cells[0].blocked)
    timers: list[_Timer] = []
    blind: list[str] = []
    failed: dict[str, str] = {}
    timings: dict[str, RowTiming] = {}
    with tempfile.TemporaryDirectory(prefix="vabench-throughput-") as root:
        try:
            for cell in (*cells, None):  # one after the other: set-up must not disturb a neighbour's warm-up round
                timer = _Timer(cell or cells[0], root, config.device, effort, bare=cell is None)
                timers.append(timer)
                try:
                    timings[timer.row], missing = timer.wait()
                    blind += [missing] * bool(missing)
                    say(f"{timer.row}: ready after {timings[timer.row].warmup_s:.1f} s")
                except VabenchError as error:
                    failed[timer.row] = str(error)
                    say(f"{timer.row}: cannot be timed: {error}")
            _rounds(timers, timings, failed, effort, start, say)
        finally:
            for timer in timers:
                timer.close()
    reference = timings.pop(REFERENCE, None)
    rows = [timing for timing in timings.values() if timing.rounds]
    if not rows:
        raise ConfigError(f"no row could be timed: {next(iter(failed.values()), 'the budget was spent on set-up')}")
    check_one_column(rows, "fixed")
    from harness.provenance import provenance

    return TimingRecord(
        preset=config.name,
        source=cells[0].suite_source,
        rows=rows,
        reference=reference if reference is not None and reference.rounds else None,
        config=without_folders(config.model_dump(mode="json", exclude={"results", "workers", "executor"})),
        short="; ".join(filter(None, [effort.short(), too_few(rows), *dict.fromkeys(blind)])),
        failed=failed,
        wall_s=time.perf_counter() - start,
        provenance={**provenance(), "device": rows[0].setting.device},
    )


def _rounds(
    timers: Sequence[_Timer],
    timings: dict[str, RowTiming],
    failed: dict[str, str],
    effort: Effort,
    start: float,
    say: Callable[[str], None],
) -> None:
    """Rounds in turns, the order reversed every time, until every row has as many valid ones as wanted."""
    for number in range(2 * effort.rounds):
        left = [t for t in timers if t.row in timings and t.row not in failed and _wants(timings[t.row], effort)]
        if not left:
            break
        for timer in left if number % 2 == 0 else reversed(left):
            if effort.budget_s and time.perf_counter() - start > effort.budget_s:
                say(f"the budget of {effort.budget_s:.0f} s is spent after round {number}")
                return
            try:
                found: Round = timer.ask(number)
            except VabenchError as error:
                failed[timer.row] = str(error)
                continue
            timings[timer.row].rounds.append(found)
        invalid = sum(bool(t.rounds and t.rounds[-1].invalid) for t in timings.values())
        say(f"round {number + 1}: {len(left)} rows" + (f", {invalid} invalid" if invalid else ""))


def _wants(timing: RowTiming, effort: Effort) -> bool:
    return timing.valid < effort.rounds


def best_configuration(found: Sequence[TimingRecord]) -> TimingRecord:
    """The column "best configuration": every row at the batch size that trains or aligns it fastest.

    Raises:
        ConfigError: the records differ in more than batch sizes.
    """
    best: dict[str, tuple[float, RowTiming]] = {}
    for record in found:
        for timing in record.rows:
            held = rates(timing)
            speed = next(held[phase].median for phase in ("train", "align", "infer") if phase in held)
            if timing.row not in best or speed > best[timing.row][0]:
                best[timing.row] = (speed, timing)
    rows = [timing for _, timing in best.values()]
    check_one_column(rows, "best configuration")
    first = found[0]
    wall = sum(record.wall_s for record in found)
    short = "; ".join(dict.fromkeys(record.short for record in found if record.short))
    changes = {"column": "best configuration", "rows": rows, "wall_s": wall, "short": short}
    return first.model_copy(update={**changes, "reference": None, "extra": {}})


__all__ = ["Effort", "Setting", "best_configuration", "measure"]
