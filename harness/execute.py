"""Where cells run: in this process, or in worker processes of this machine. Cells are idempotent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from harness.errors import ConfigError, VabenchError, first_line
from harness.memory import Room, affordable
from harness.plan import Cell, try_parameters
from harness.record import Status
from harness.worker import worker_cores

TICK_S = 0.5
START_TRIES = 20  # 2 s
_ENVIRONMENT = threading.Lock()  # two threads that run cells would restore each other's variable
RETRIES = 1  # a cell whose worker dies is tried this many times more, then recorded as failed


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its status, and the reason where it is not `done`."""

    cell: Cell
    status: Status
    reason: str
    wall_s: float


class Watcher(Protocol):
    """What a live display listens to."""

    def started(self, slot: int, cell: Cell) -> None:
        """A cell began on a worker slot."""

    def advanced(self, slot: int, phase: str, done: int, total: int) -> None:
        """A phase of the slot's cell moved on."""

    def tick(self) -> None:
        """Called often while cells run; may raise KeyboardInterrupt to end the run."""


class Executor(Protocol):
    """Where cells run. Built from the config's `executor` by the registry; a third party's is an entry point.

    One that has a method `prepare(asked: int, device: str)` is called before `slots`, as soon as it is known that cells
    wait, with the workers that were asked for. One that has a method `try_parameters(cells)` is asked in place of
    `harness.plan.try_parameters`.
    """

    def slots(self, asked: int, cells: int, device: str) -> int:
        """Cells in flight at once; asked = 0: as many as there is room for."""

    def run(self, cells: Sequence[Cell], root: str, device: str, slots: int, watcher: Watcher) -> Iterator[Outcome]:
        """Run cells and yield each outcome as it comes."""


class Local:
    """Worker processes of this machine; one worker means this process."""

    _forks = False

    def prepare(self, asked: int, device: str) -> None:
        """Let the fork server import what workers need while the driver imports for itself."""
        alone = asked == 1 or (asked == 0 and uses_gpu(device))  # then this process runs the cells
        if not alone and context().get_start_method() == "forkserver":
            from multiprocessing.forkserver import ensure_running  # there where a process can fork

            with _own_modules(), _without_ctrl_c():
                ensure_running()
            self._forks = True

    def try_parameters(self, cells: Sequence[Cell]) -> None:
        """Build every component once, where torch is imported anyway: in the fork server's child, not in the driver.

        Raises:
            ConfigError: as in `harness.plan.try_parameters`.
        """
        apart = {(str(cell.row), str(cell.model)): cell for cell in cells}
        if not (self._forks and _tried_by_worker(list(apart.values()))):
            try_parameters(list(apart.values()))

    def slots(self, asked: int, cells: int, device: str) -> int:
        """Worker processes to start: as asked, else one on a GPU, and on CPU one per core, as far as memory allows."""
        if asked == 0:
            gpu = uses_gpu(device)
            wanted = max(1, min(1 if gpu else (os.cpu_count() or 1), cells))
            asked, why = affordable(wanted, gpu=gpu)
            if why:
                print(f"vabench: {asked} of {wanted} workers: {why} (workers=... overrules)", file=sys.stderr)
        return max(1, min(asked, cells))

    def run(self, cells: Sequence[Cell], root: str, device: str, slots: int, watcher: Watcher) -> Iterator[Outcome]:
        """Run cells and yield each outcome as it comes."""
        if slots == 1:
            yield from _inline(cells, root, device, watcher)
        else:
            pool = Pool(root, device, slots)
            try:
                yield from pool.run(cells, watcher)
            finally:
                pool.close()


def _inline(cells: Sequence[Cell], root: str, device: str, watcher: Watcher) -> Iterator[Outcome]:
    from harness.worker import pick_device, quiet_threads, tune, warm_up

    quiet_threads()
    warm_up()
    from harness.cell import run_cell
    from harness.claims import Claims
    from harness.stages import Stages
    from harness.store import Store

    stages, claims = Stages(Store(root), tune(pick_device(device))), Claims(Path(root))
    ahead = (
        stages.device.type == "cuda"
    )  # on a CPU, loading data beside the work would show in the seconds of its phases
    queue, passed = deque(cells), set[str]()

    def advanced(phase: str, done: int, total: int) -> None:
        watcher.tick()
        watcher.advanced(0, phase, done, total)

    while queue:
        cell = queue.popleft()
        watcher.tick()
        watcher.started(0, cell)
        if ahead and queue:
            stages.prepare(queue[0])
        record = run_cell(
            cell,
            stages,
            advanced,
            claims=claims,
            wait=cell.id in passed,
        )
        if record is None:  # another run has it: ours is the rest, and then its record
            passed.add(cell.id)
            queue.append(cell)
        else:
            yield Outcome(cell, record.status, record.reason, record.wall_s)


@dataclass
class _Slot:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    ready: bool = False


class Pool:
    """Worker processes with one pipe each. A worker that dies is replaced; its cell is tried again."""

    def __init__(self, root: str, device: str, workers: int):
        self._root, self._device = root, device
        # The next cell's data is loaded during this cell's work only where that takes no core from another worker.
        self._ahead = uses_gpu(device) or worker_cores() > workers
        self._passed: set[str] = set()  # cells that another run held; the next time a worker waits for them
        self._slots = [self._start() for _ in range(workers)]

    def run(self, cells: Sequence[Cell], watcher: Watcher) -> Iterator[Outcome]:
        """Run all cells; outcomes come in the order of completion."""
        queue, deaths, open_cells = deque(cells), dict[str, int](), len(cells)
        room = Room(gpu=uses_gpu(self._device))
        while open_cells:
            wait([slot.pipe for slot in self._slots], timeout=TICK_S)
            watcher.tick()
            for number in range(len(self._slots)):
                pid = self._slots[number].process.pid or 0
                for outcome in self._listen(number, self._slots[number], queue, deaths, watcher):
                    open_cells -= 1
                    room.ended(outcome.cell, pid)
                    yield outcome
                slot = self._slots[number]  # a fresh one where the old one died
                if slot.cell is None:
                    room.ended(None, pid)
                pid = slot.process.pid or 0
                if slot.ready and slot.cell is None and queue and room.admits(queue[0], pid):
                    slot.cell = queue.popleft()
                    room.begun(slot.cell, pid)
                    watcher.started(number, slot.cell)
                    with contextlib.suppress(BrokenPipeError):  # it just died: the next turn replaces it
                        coming = queue[0] if queue and self._ahead else None
                        slot.pipe.send((slot.cell, slot.cell.id in self._passed, coming))

    def close(self) -> None:
        """End all workers. A cell in flight loses nothing but its own work: records are written whole."""
        for slot in self._slots:
            slot.pipe.close()
            slot.process.terminate()
        for slot in self._slots:
            slot.process.join(timeout=5)
            if slot.process.is_alive():
                slot.process.kill()

    def _listen(
        self, number: int, slot: _Slot, queue: deque[Cell], deaths: dict[str, int], watcher: Watcher
    ) -> Iterator[Outcome]:
        try:
            while slot.pipe.poll():
                message = slot.pipe.recv()
                if message[0] == "ready":
                    slot.ready = True
                elif message[0] == "progress":
                    watcher.advanced(number, *message[1:])
                elif message[0] == "broken":
                    raise VabenchError(message[1])
                elif message[0] == "claimed" and slot.cell is not None:  # another run has it: ours is the rest first
                    self._passed.add(slot.cell.id)
                    queue.append(slot.cell)
                    slot.cell = None
                elif slot.cell is not None:
                    cell, slot.cell = slot.cell, None
                    yield Outcome(cell, Status(message[1]), message[2], message[3])
        except (EOFError, ConnectionResetError):  # the worker is gone, and all that it sent has been read
            yield from self._replace(number, slot, queue, deaths)

    def _replace(self, number: int, slot: _Slot, queue: deque[Cell], deaths: dict[str, int]) -> Iterator[Outcome]:
        """Put a fresh worker in place of a dead one."""
        slot.process.join(timeout=10)
        code = slot.process.exitcode
        if not slot.ready:
            raise VabenchError(
                f"a worker process ended with code {code} before its first cell; run with workers=1 to see its error"
            )
        slot.pipe.close()
        self._slots[number] = self._start()
        if slot.cell is None:
            return
        deaths[slot.cell.id] = deaths.get(slot.cell.id, 0) + 1
        if deaths[slot.cell.id] <= RETRIES:
            queue.appendleft(slot.cell)
            return
        reason = f"its worker process died {deaths[slot.cell.id]} times (last exit code {code}); out of memory?"
        record_death(slot.cell, self._root, reason)
        yield Outcome(slot.cell, Status.FAILED, reason, 0.0)

    def _start(self) -> _Slot:
        from harness.worker import work

        return _Slot(*_worker(work, self._root, self._device))


def _worker(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A process that runs `target(pipe, environment, folder, *arguments)`, and our end of the pipe.

    A fork server keeps the environment and folder of its own start: what they are now goes along.
    """
    ours, theirs = context().Pipe()
    everything = (theirs, dict(os.environ), os.getcwd(), *arguments)
    process = context().Process(target=target, args=everything, daemon=True)
    _start_process(process)
    theirs.close()
    return process, ours


def _tried_by_worker(cells: list[Cell]) -> bool:
    """Whether a worker process has tried the cells' parameters, and nothing is to be shown.

    Raises:
        ConfigError: they are not good.
    """
    from harness.worker import answer_trial

    process, pipe = _worker(answer_trial, cells)
    try:
        said: str | None = pipe.recv()
    except (EOFError, ConnectionResetError):  # a component ended its process: its own cells will end so, no others
        return True
    finally:
        pipe.close()
        process.kill()  # it has answered, or nobody waits for it any more
        process.join()
    if said:
        raise ConfigError(said)
    return said is not None


def _start_process(process: BaseProcess) -> None:
    """Start a worker. A fork server that was killed a moment ago may still count as running and refuse: it is asked
    again until it is found dead, which starts another.

    Raises:
        VabenchError: it is neither dead nor there.
    """
    for left in reversed(range(START_TRIES)):
        try:
            with _own_modules():  # it starts a fork server where there is none
                process.start()
            return
        except (ConnectionError, EOFError) as error:
            if not left:
                why = first_line(error) or type(error).__name__
                raise VabenchError(f"no worker process can be started ({why}); workers=1 needs none") from error
            time.sleep(TICK_S / 5)


@contextlib.contextmanager
def _own_modules() -> Iterator[None]:
    """A fork server that starts here does not look into the working folder for modules, as `python -c` does: a folder
    `harness` of another project would be taken for this one. Its workers get the driver's module path."""
    with _ENVIRONMENT:
        held = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield
        finally:
            if held is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = held


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """For starting the fork server, which inherits this until `harness.preload` lets it ignore Ctrl-C. One that comes
    meanwhile is answered here, afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> Any:
    """How worker processes start: forked from a server that has imported torch once for all of them, where the system
    can fork; that server has touched no GPU and runs no threads. Elsewhere each is spawned and imports for itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["harness.preload"])
    return found


def record_death(cell: Cell, root: str, reason: str) -> None:
    """Write a failed record for a cell whose workers died, unless a record is there by now."""
    from harness.cell import CellRun
    from harness.stages import Stages
    from harness.store import Store
    from harness.worker import pick_device

    stages = Stages(Store(root), pick_device("cpu"))
    held, _ = stages.store.intact(stages.store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id))
    if held is not None and held.status is Status.DONE:
        return
    record = CellRun(cell, stages).blank()
    record.reason = reason
    stages.store.write(record, {})


def uses_gpu(device: str) -> bool:
    """Whether `device` seems to mean a GPU, without importing torch into the driver; workers ask torch."""
    return device.startswith("cuda") or (device == "auto" and Path("/dev/nvidia0").exists())
