"""Cells as tasks on a Ray cluster (Moritz et al. 2018): placed by what they need, tried again where a node dies.

Nodes that share the results folder write into it, with the claims and shared stages of any run there. Others work in a
folder of their own and send records and predictions back, and the driver writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, VabenchError
from harness.execute import RETRIES, TICK_S, Outcome, Watcher, record_death
from harness.fingerprint import fingerprint
from harness.plan import Cell
from harness.record import Status

ENVIRONMENT = ("VABENCH_DATA", "HF_HOME", "TORCH_HOME")  # what a node needs to find the data and the weights


@dataclass(frozen=True)
class Job:
    """All that a task is told besides its cell. mark: a file in the driver's folder by which a node knows that folder.

    code: fingerprint of the engine; a node with another one would give other numbers.
    """

    root: str
    mark: str
    device: str
    folder: str
    code: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """How a task ended. kind: `finished`, or `claimed` where another run has the cell. files: of a node on its own."""

    kind: str
    status: str = ""
    reason: str = ""
    wall_s: float = 0.0
    record: bytes = b""
    predictions: bytes = b""


class Ray:
    """The executor.

    Args:
        address: of a cluster (`auto` finds one on this machine, `ray://...` and `host:port` name one); empty: one is
            started here, with all cores, and ends with the run. RAY_ADDRESS counts where it is empty.
        cpus, gpus: what a cell needs; a quarter of a GPU lets four small models share one.
    """

    def __init__(self, address: str = "", cpus: float = 1, gpus: float = 0):
        if cpus <= 0 or gpus < 0:
            raise ValueError("a cell needs more than 0 cpus and at least 0 gpus")
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def slots(self, asked: int, cells: int, device: str) -> int:
        """Cells in flight at once: as asked, else as many as the cluster holds by what they need."""
        if asked == 0:
            held = _connect(self.address).cluster_resources()
            fits = [held.get("CPU", 0) / self.cpus]
            if self.gpus:
                fits.append(held.get("GPU", 0) / self.gpus)
            if min(fits) < 1:
                raise ConfigError(
                    f"no node of the Ray cluster can run a cell that needs {self.cpus:g} CPUs and {self.gpus:g} GPUs; "
                    f"it has {held.get('CPU', 0):g} and {held.get('GPU', 0):g}"
                )
            asked = int(min(fits))
        return max(1, min(asked, cells))

    def run(self, cells: Sequence[Cell], root: str, device: str, slots: int, watcher: Watcher) -> Iterator[Outcome]:
        """Run cells and yield each outcome as it comes."""
        from harness.store import Store, write_bytes

        ray = _connect(self.address)
        mark = f".ray-{os.getpid()}-{os.urandom(4).hex()}"
        place = str(Path(root).resolve())
        job = Job(place, mark, device, os.getcwd(), fingerprint(("harness.cell",)))
        write_bytes(Path(root) / mark, b"")
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(run_task)
        store = Store(root)

        def submit(cell: Cell, wait: bool) -> Any:
            return task.remote(cell, job, wait)

        def keep(cell: Cell, answer: Answer) -> None:
            folder = store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id)
            if answer.predictions:
                write_bytes(folder / "predictions.npz", answer.predictions)
            if answer.record:
                write_bytes(folder / "record.json", answer.record)

        try:
            yield from drive(ray, cells, submit, keep, root, slots, watcher)
        finally:
            with contextlib.suppress(OSError):
                (Path(root) / mark).unlink()


def drive(
    ray: Any,
    cells: Sequence[Cell],
    submit: Callable[[Cell, bool], Any],
    keep: Callable[[Cell, Answer], None],
    root: str,
    slots: int,
    watcher: Watcher,
) -> Iterator[Outcome]:
    """Keep `slots` tasks in flight until every cell has an outcome.

    A task whose node or worker dies is submitted once more, then its cell is recorded as failed; a cell that another
    run holds comes last. What a task itself raises (a folder that cannot be written) ends the run.
    """
    queue, free = deque(cells), list(range(slots))[::-1]
    flying: dict[Any, tuple[int, Cell]] = {}
    deaths: dict[str, int] = {}
    passed: set[str] = set()
    try:
        while queue or flying:
            while queue and free:
                cell, slot = queue.popleft(), free.pop()
                watcher.started(slot, cell)
                flying[submit(cell, cell.id in passed)] = (slot, cell)
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=TICK_S)
            watcher.tick()
            for reference in ready:
                slot, cell = flying.pop(reference)
                free.append(slot)
                try:
                    answer: Answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise VabenchError(f"{cell}: {error.cause or error}") from error
                except ray.exceptions.RayError as error:
                    deaths[cell.id] = deaths.get(cell.id, 0) + 1
                    if deaths[cell.id] <= RETRIES:
                        queue.appendleft(cell)
                        continue
                    reason = f"its worker or node died {deaths[cell.id]} times ({type(error).__name__}); out of memory?"
                    record_death(cell, root, reason)
                    yield Outcome(cell, Status.FAILED, reason, 0.0)
                    continue
                if answer.kind == "claimed":
                    passed.add(cell.id)
                    queue.append(cell)
                    continue
                keep(cell, answer)
                yield Outcome(cell, Status(answer.status), answer.reason, answer.wall_s)
    finally:
        for reference in flying:
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=True)


def run_task(cell: Cell, job: Job, wait: bool) -> Answer:
    """What a task does, on its node."""
    from harness.cell import run_cell
    from harness.worker import quiet_threads

    if fingerprint(("harness.cell",)) != job.code:
        raise VabenchError("this node has another version of vabench than the driver: install the same one everywhere")
    if Path(job.folder).is_dir():
        os.chdir(job.folder)  # where relative paths of a config lead
    quiet_threads()
    shared = (Path(job.root) / job.mark).exists()
    name = hashlib.sha256(job.root.encode()).hexdigest()[:16]
    root = job.root if shared else str(Path(tempfile.gettempdir()) / f"vabench-ray-{name}")
    stages = _stages(root, job.device)
    record = run_cell(cell, stages, wait=wait)
    if record is None:
        return Answer("claimed")
    answer = Answer("finished", record.status.value, record.reason, record.wall_s)
    if shared:
        return answer
    folder = stages.store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id)
    held = folder / "predictions.npz"
    files = ((folder / "record.json").read_bytes(), held.read_bytes() if held.exists() else b"")
    return Answer(answer.kind, answer.status, answer.reason, answer.wall_s, *files)


@cache
def _stages(root: str, device: str) -> Any:
    from harness.stages import Stages
    from harness.store import Store
    from harness.worker import pick_device, tune, warm_up

    warm_up()
    return Stages(Store(root), tune(pick_device(device)))


def _connect(address: str) -> Any:
    """Ray, connected.

    Raises:
        ConfigError: it is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor=ray needs Ray: pip install 'vabench[ray]'") from error
    if not ray.is_initialized():
        variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        variables |= {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        named = address or os.environ.get("RAY_ADDRESS", "")
        if not named:
            settings["include_dashboard"] = False
        host, _, port = named.removeprefix("ray://").rpartition(":")
        try:
            if port.isdigit():  # Ray itself would go on trying for minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address=address or None, runtime_env={"env_vars": variables}, **settings)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"there is no Ray cluster at '{address or 'this machine'}': {error}") from error
    return ray
