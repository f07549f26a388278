"""A worker process: gets cells through a pipe, runs them, sends progress and outcomes back."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.plan import Cell

REPORT_EVERY_S = 0.1


def quiet_threads() -> None:
    """One torch thread and passive waiting: spinning OpenMP threads cost five to ten times under load."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For imports of torch, whose objects all stay: the garbage collector looks through them in vain for 0.3 s."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def warm_up() -> None:
    """One step of a toy parameter: what torch does once, at the first step of all, is no cell's cost.

    Its gradient is set by hand: a backward pass would start autograd's threads, and no process could be forked then.
    """
    import torch

    from harness.optimizers import AdamW

    toy = torch.nn.Parameter(torch.zeros(1))
    toy.grad = torch.zeros(1)
    AdamW([toy], fused=True).step()


def pick_device(name: str) -> Any:
    """`auto` is the GPU where there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    import torch

    from harness.errors import ConfigError, first_line

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name}: {first_line(error)}; device=cpu works everywhere") from error
    return device


def worker_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune(device: Any) -> Any:
    """Let cuDNN time its kernels and keep the fastest per shape: shapes repeat for thousands of steps.

    A GPU that was named becomes this process' current one: events and kernels without a device of their own go there.
    """
    import torch

    torch.backends.cudnn.benchmark = device.type == "cuda"
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _enter(environment: Mapping[str, str], folder: str) -> None:
    """Take over the driver's environment variables and working folder, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    quiet_threads()


def answer_trial(pipe: Connection, environment: Mapping[str, str], folder: str, cells: list[Cell]) -> None:
    """Body of a process that tries the parameters of cells: answers "" where they are good, else what is wrong, and
    None where a component raised anything else, which is then the driver's to show."""
    from harness.errors import ConfigError
    from harness.plan import try_parameters

    _enter(environment, folder)
    _die_with_driver()
    said: str | None = ""
    try:
        try_parameters(cells)
    except ConfigError as error:
        said = str(error)
    except BaseException:  # a stranger's constructor may raise anything
        said = None
    with contextlib.suppress(OSError):  # the driver is gone
        pipe.send(said)


def work(pipe: Connection, environment: Mapping[str, str], folder: str, root: str, device: str) -> None:
    """Body of a worker process: until the pipe closes, receive a cell, run it, answer.

    Args:
        environment, folder: the driver's environment variables and working folder.
    """
    _enter(environment, folder)
    from harness.cell import run_cell
    from harness.claims import Claims
    from harness.stages import Stages
    from harness.store import Store

    _die_with_driver()
    if hasattr(signal, "SIGUSR2"):  # Slurm's warning goes to all of a task's processes; it is the task's to answer
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    warm_up()
    stages, claims = Stages(Store(root), tune(pick_device(device))), Claims(Path(root))
    last = 0.0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY_S:
            last = now
            pipe.send(("progress", phase, done, total))

    try:
        pipe.send(("ready",))
        while True:
            cell, patient, coming = pipe.recv()
            try:
                if coming is not None:
                    stages.prepare(coming)
                record = run_cell(cell, stages, progress, claims=claims, wait=patient)
                if record is None:
                    pipe.send(("claimed",))
                else:
                    pipe.send(("finished", record.status.value, record.reason, record.wall_s))
            except Exception as error:  # the store failed: the driver decides
                pipe.send(("broken", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone; every finished cell is on disk


def _die_with_driver() -> None:
    """End this process as soon as its driver is killed, also in the middle of a cell."""
    driver = parent_process()
    if driver is None:
        return

    def watch() -> None:
        wait([driver.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
