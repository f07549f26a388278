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
from harness.throughput.record import Round, RowTiming, Setting, TimingRecord, check_one_column

MIN_ROUNDS, MIN_STEPS = 5, 20
SETUP_LIMIT_S = 1800


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
        """What keeps these figures from being published, or ''."""
        lacks = [f"{self.rounds} rounds instead of {MIN_ROUNDS}"] * (self.rounds < MIN_ROUNDS)
        lacks += [f"blocks of {self.steps} steps instead of {MIN_STEPS}"] * (self.steps < MIN_STEPS)
        return ", ".join(lacks)


class _Timer:
    """One row's process."""

    def __init__(self, cell: Cell, root: str, device: str, effort: Effort):
        self.row = cell.row_name
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, cell, root, device, effort), daemon=True)
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


def serve(pipe: Connection, cell: Cell, root: str, device: str, effort: Effort) -> None:
    """Body of a row's process: set up, then a round for every number received, until the pipe closes."""
    from harness.worker import pick_device, quiet_threads, tune, warm_up

    quiet_threads()
    warm_up()
    try:
        from harness.stages import Stages
        from harness.store import Store
        from harness.throughput.timed import TimedRow

        row = TimedRow(cell, Stages(Store(root), tune(pick_device(device))), effort.steps, effort.blocks, effort.images)
        pipe.send(("ready", (row.setting(), row.warmup_s)))
        while True:
            word = pipe.recv()
            if word == "memory":
                pipe.send(("memory", row.peak_memory()))
            else:
                pipe.send(("round", row.one_round(word)))
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
    failed: dict[str, str] = {}
    timings: dict[str, RowTiming] = {}
    with tempfile.TemporaryDirectory(prefix="vabench-throughput-") as root:
        try:
            for cell in cells:  # one after the other: set-up must not disturb a neighbour's warm-up round
                timer = _Timer(cell, root, config.device, effort)
                timers.append(timer)
                try:
                    setting, warmup = timer.wait()
                    timings[timer.row] = RowTiming(row=timer.row, setting=setting, rounds=[], warmup_s=warmup)
                    say(f"{timer.row}: ready after {warmup:.1f} s")
                except VabenchError as error:
                    failed[timer.row] = str(error)
                    say(f"{timer.row}: cannot be timed: {error}")
            _rounds(timers, timings, failed, effort, start, say)
        finally:
            for timer in timers:
                timer.close()
    if not any(timing.rounds for timing in timings.values()):
        raise ConfigError(f"no row could be timed: {next(iter(failed.values()), 'the budget was spent on set-up')}")
    rows = [timing for timing in timings.values() if timing.rounds]
    check_one_column(rows, "fixed")
    from harness.provenance import provenance

    return TimingRecord(
        preset=config.name,
        source=cells[0].suite_source,
        rows=rows,
        failed=failed,
        wall_s=time.perf_counter() - start,
        provenance={**provenance(), "device": rows[0].setting.device},
        extra={"short": effort.short()} if effort.short() else {},
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
                _memory(timers, timings, failed)
                return
            try:
                found: Round = timer.ask(number)
            except VabenchError as error:
                failed[timer.row] = str(error)
                continue
            timings[timer.row].rounds.append(found)
        invalid = sum(bool(t.rounds and t.rounds[-1].invalid) for t in timings.values())
        say(f"round {number + 1}: {len(left)} rows" + (f", {invalid} invalid" if invalid else ""))
    _memory(timers, timings, failed)


def _wants(timing: RowTiming, effort: Effort) -> bool:
    return sum(not found.invalid for found in timing.rounds) < effort.rounds


def _memory(timers: Sequence[_Timer], timings: dict[str, RowTiming], failed: dict[str, str]) -> None:
    for timer in timers:
        if timer.row in timings and timer.row not in failed:
            timings[timer.row].peak_memory = timer.ask("memory")


def best_configuration(found: Sequence[TimingRecord]) -> TimingRecord:
    """The column "best configuration": every row at the batch size that trains or aligns it fastest.

    Raises:
        ConfigError: the records differ in more than batch sizes.
    """
    from harness.throughput.record import rates

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
    return first.model_copy(update={"column": "best configuration", "rows": rows, "wall_s": wall, "extra": {}})


__all__ = ["Effort", "Setting", "best_configuration", "measure"]
