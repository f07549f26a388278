"""Cells as job arrays on a Slurm cluster (Yoo et al. 2003), submitted and requeued through submitit.

Driver and nodes share the results folder: records and predictions come back in it. Each array task gets a pack of
cells (`harness.slurm_task`) and says in a journal beside it how they ended. Nothing that a job leaves is unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, DataError, VabenchError, first_line
from harness.execute import TICK_S, Outcome, Watcher, record_death
from harness.plan import Cell, inspect
from harness.record import Status
from harness.slurm_task import WARNING_S, Journal, Task, write_cells
from harness.store import Store, write_bytes

FOLDER = "slurm"
COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")
ARRAY = 1000  # tasks of one array: Slurm's own limit (MaxArraySize) is 1001 where nobody changed it
REQUEUES = 10**6  # submitit's limit on time-outs; ours is that a whole time limit must not go by without a cell
LOOK_S = 2.0  # between two looks at the journals, more where there are many
ASK_S = 30.0  # between two questions to sacct
PATIENCE_S = 300.0  # a pre-empted task that is not queued again by then will not be
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}


@dataclass(eq=False)
class _Pack:
    """Cells of one array task on their way. losses: how often tasks with these cells ended before one of them began."""

    cells: list[Cell]
    losses: int = 0
    job: Any = None
    journal: Journal = field(default_factory=lambda: Journal(Path()))
    over_since: float | None = None


class Slurm:
    """The executor. The cluster's default holds where a setting is empty or 0.

    Args:
        partition, account, qos, constraint: as sbatch takes them.
        time: minutes that a task may take. One that runs out of them is requeued and goes on, if a cell ended in them.
        memory: GB of a task. gpus: GPUs of a task. cpus: cores of each of its workers.
        cells: cells packed into a task. workers: worker processes in which a task runs them.
        retries: how often a cell whose task was lost is tried again before it is recorded as failed.
    """

    def __init__(
        self,
        partition: str = "",
        account: str = "",
        qos: str = "",
        constraint: str = "",
        time: int = 60,
        memory: float = 0,
        gpus: int = 0,
        cpus: int = 1,
        cells: int = 10,
        workers: int = 1,
        retries: int = 1,
    ):
        for name, value, least in (
            ("time", time, 1),
            ("gpus", gpus, 0),
            ("cpus", cpus, 1),
            ("cells", cells, 1),
            ("workers", workers, 1),
            ("retries", retries, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not isinstance(memory, int | float) or not memory >= 0:
            raise ValueError(f"memory must be a number of GB, got {memory!r}")
        self.named = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
        self.time, self.memory, self.gpus, self.cpus = time, memory, gpus, cpus
        self.cells, self.workers, self.retries = cells, workers, retries

    def slots(self, asked: int, cells: int, device: str) -> int:
        """Cells in flight at once: as asked, else all that the tasks can hold; Slurm decides how many tasks run.

        Raises:
            ConfigError: submitit or Slurm's commands are missing here.
        """
        _submitit()
        return max(1, min(asked or self.workers * -(-cells // self.cells), cells))

    def run(self, cells: Sequence[Cell], root: str, device: str, slots: int, watcher: Watcher) -> Iterator[Outcome]:
        """Run cells and yield each outcome as it comes.

        Raises:
            ConfigError: submitit or Slurm's commands are missing. VabenchError: sbatch refuses the array.
        """
        yield from _Run(self, root, device, slots, watcher).run(cells)


class _Run:
    """One call of `Slurm.run`."""

    def __init__(self, executor: Slurm, root: str, device: str, slots: int, watcher: Watcher):
        self._submitit = _submitit()
        self._executor, self._device, self._watcher = executor, device, watcher
        self._store, self._root = Store(root), str(Path(root).resolve())
        self._folder = Path(self._root) / FOLDER / secrets.token_hex(6)
        self._workers = min(executor.workers, slots)
        self._parallel = max(1, slots // self._workers)  # tasks at once
        self._packs: list[_Pack] = []
        self._deaths: dict[str, int] = {}
        self._free, self._shown = list(range(slots))[::-1], dict[str, int]()
        self._numbers = iter(range(10**9))
        self._lost, self._asked = False, time.monotonic()

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        size = self._executor.cells
        waiting = deque(_Pack(list(cells[k : k + size])) for k in range(0, len(cells), size))
        looked = 0.0
        try:
            self._folder.mkdir(parents=True)
            self._folder.chmod(0o700)  # submitit's jobs are pickles: nobody else may write them
        except OSError as error:
            raise DataError(f"cannot write into {self._root}: {error.strerror or error}") from error
        try:
            while waiting or self._packs:
                if waiting:
                    self._submit([waiting.popleft() for _ in range(min(ARRAY, len(waiting)))])
                self._watcher.tick()
                if time.monotonic() - looked < max(LOOK_S, len(self._packs) / 100):
                    time.sleep(TICK_S / 2)
                    continue
                gone = self._gone()
                for pack in list(self._packs):
                    yield from self._listen(pack)
                    if pack.journal.over is not None or pack.job.job_id in gone:
                        self._packs.remove(pack)
                        yield from self._settle(pack, gone.get(pack.job.job_id, ""), waiting)
                looked = time.monotonic()
            self._tidy()
        finally:
            self._cancel(self._packs)

    def _submit(self, packs: list[_Pack]) -> None:
        """One array of a task per pack."""
        executor, tasks = self._executor, []
        cores = executor.cpus * self._workers
        for pack in packs:
            path = self._folder / f"pack-{next(self._numbers):06d}.json"
            write_bytes(path, write_cells(pack.cells))
            task = Task(self._root, str(path), self._device, self._workers, 60.0 * executor.time)
            pack.journal, pack.over_since = task.journal(), None
            tasks.append(task)
        settings: dict[str, Any] = {name: value for name, value in executor.named.items() if value}
        settings |= {"mem": f"{round(1024 * executor.memory)}M"} if executor.memory else {}
        settings |= {"gpus_per_node": executor.gpus} if executor.gpus else {}
        try:
            queue = self._submitit.SlurmExecutor(self._folder / "jobs", max_num_timeout=REQUEUES)
            queue.update_parameters(
                job_name="vabench",
                time=executor.time,
                cpus_per_task=cores,
                srun_args=[f"--cpus-per-task={cores}"],  # since Slurm 22.05 srun does not take it from sbatch
                signal_delay_s=WARNING_S,
                array_parallelism=self._parallel,
                additional_parameters={"requeue": True},
                **settings,
            )
            jobs = queue.submit_array(tasks)
        except (OSError, RuntimeError) as error:  # submitit's own errors are RuntimeErrors
            raise VabenchError(f"sbatch refuses the job array: {first_line(error)}") from error
        for pack, job in zip(packs, jobs, strict=True):
            pack.job = job
        self._packs += packs

    def _listen(self, pack: _Pack) -> Iterator[Outcome]:
        """What is new in a pack's journal."""
        cells = {cell.id: cell for cell in pack.cells}
        for line in pack.journal.read():
            if line.get("started") in cells:
                cell = cells[line["started"]]
                if cell.id not in self._shown and self._free:
                    self._shown[cell.id] = self._free.pop()
                    self._watcher.started(self._shown[cell.id], cell)
            elif line.get("ended") in cells:
                cell = cells[line["ended"]]
                pack.cells.remove(cell)
                status, reason, seconds = pack.journal.ended[cell.id]
                yield self._outcome(cell, Status(status), reason, seconds)

    def _gone(self) -> dict[str, str]:
        """Job id -> Slurm's state, of the packs whose job is over; sacct is asked now and then."""
        if time.monotonic() - self._asked < ASK_S:
            return {}
        self._asked = now = time.monotonic()
        states, found = self._states(), {}
        for pack in self._packs:
            name = pack.job.job_id
            state = states.get(name, "")
            pack.over_since = (pack.over_since or now) if state == "PREEMPTED" else None
            if state in OVER or (pack.over_since is not None and now - pack.over_since >= PATIENCE_S):
                found[name] = state
        return found

    def _states(self) -> dict[str, str]:
        """Job id -> Slurm's state in one word, of the jobs that sacct knows; empty where it does not answer.

        submitit's own watcher is not asked: it takes a suspended job for one that is over.
        """
        ids = sorted({pack.job.job_id.partition("_")[0] for pack in self._packs})
        try:
            command = ["sacct", "-X", "--parsable2", "-o", "JobID,State", "-j", ",".join(ids)]
            answer = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout
        except (OSError, subprocess.SubprocessError):
            return {}
        found = self._submitit.SlurmJob.watcher.read_info(answer)
        return {name: held["State"].split(" ")[0].rstrip("+").upper() for name, held in found.items() if held["State"]}

    def _settle(self, pack: _Pack, state: str, waiting: deque[_Pack]) -> Iterator[Outcome]:
        """A task is over: what it did not end is tried again, or recorded as failed."""
        yield from self._listen(pack)  # what it wrote last
        for cell in list(pack.cells):  # the record counts, not the journal
            found = inspect(cell, self._store)
            if found.state == "done" and found.record is not None:
                pack.cells.remove(cell)
                yield self._outcome(cell, found.record.status, found.record.reason, found.record.wall_s)
        if not pack.cells:
            return
        self._lost = True
        self._cancel([pack])  # Slurm must not requeue it beside the new one
        why = pack.journal.over or f"Slurm says {state or 'nothing of it'}"
        limit = 0 if state == "CANCELLED" else self._executor.retries  # somebody wanted it to stop
        begun = [cell for cell in pack.cells if cell.id in pack.journal.started]
        rest = [cell for cell in pack.cells if cell not in begun]
        for cell in begun:
            self._deaths[cell.id] = self._deaths.get(cell.id, 0) + 1
            if self._deaths[cell.id] > limit:
                yield self._failed(cell, self._deaths[cell.id], why)
            else:
                waiting.append(_Pack([cell]))  # alone: if it is the cell's doing, no other is lost with it
        losses = pack.losses + (not begun)
        if state == "CANCELLED" or losses > limit:
            for cell in rest:
                yield self._failed(cell, losses, why)
        elif rest:
            waiting.append(_Pack(rest, losses))

    def _failed(self, cell: Cell, times: int, why: str) -> Outcome:
        reason = f"its Slurm task was lost {times} {'time' if times == 1 else 'times'} ({why}); logs in "
        reason += f"{FOLDER}/{self._folder.name}/jobs of the results folder"
        record_death(cell, str(self._store.root), reason)
        return self._outcome(cell, Status.FAILED, reason, 0.0)

    def _outcome(self, cell: Cell, status: Status, reason: str, seconds: float) -> Outcome:
        slot = self._shown.pop(cell.id, None)
        if slot is not None:
            self._free.append(slot)
        return Outcome(cell, status, reason, seconds)

    def _cancel(self, packs: list[_Pack]) -> None:
        """Cancel jobs; a whole array by one id where none of its tasks is to go on."""
        kept = {pack.job.job_id.partition("_")[0] for pack in self._packs if pack not in packs}
        ids = {pack.job.job_id for pack in packs}
        ids = {name if name.partition("_")[0] in kept else name.partition("_")[0] for name in ids}
        for start in range(0, len(ids), 100):
            with contextlib.suppress(OSError):
                subprocess.run(["scancel", *sorted(ids)[start : start + 100]], capture_output=True, check=False)

    def _tidy(self) -> None:
        """Remove the folder of packs, journals and logs, unless a task was lost or is still writing its last lines."""
        deadline = time.monotonic() + 10
        jobs = self._folder / "jobs"
        while len(list(jobs.glob("*_result.pkl"))) < len(list(jobs.glob("*_submitted.pkl"))):
            if self._lost or time.monotonic() > deadline:
                return
            self._watcher.tick()
            time.sleep(TICK_S)
        if not self._lost:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._folder.parent.rmdir()  # the last run's


def _submitit() -> Any:
    """submitit, quiet, where there is a Slurm.

    Raises:
        ConfigError: it is not installed, or this machine has none of Slurm's commands.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("executor=slurm needs submitit: pip install 'vabench[slurm]'") from error
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"executor=slurm needs Slurm's commands, and there is no {', '.join(missing)} here: start the run on a "
            f"login node of the cluster, or use executor=local"
        )
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return submitit
