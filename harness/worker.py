"""A worker process: gets cells through a pipe, runs them, sends progress and outcomes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

REPORT_EVERY_S = 0.1


def quiet_threads() -> None:
    """One torch thread and passive waiting: spinning OpenMP threads cost five to ten times under load."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


def warm_up() -> None:
    """One step of a toy model: torch's first optimiser imports half of torch, which is no cell's cost."""
    import torch

    toy = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(toy.parameters(), fused=True)
    toy(torch.zeros(1, 1)).sum().backward()
    optimizer.step()


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
    """Let cuDNN time its kernels and keep the fastest per shape: shapes repeat for thousands of steps."""
    import torch

    torch.backends.cudnn.benchmark = device.type == "cuda"
    return device


def work(pipe: Connection, root: str, device: str) -> None:
    """Body of a worker process: until the pipe closes, receive a cell, run it, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    quiet_threads()
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
            cell, wait = pipe.recv()
            try:
                record = run_cell(cell, stages, progress, claims=claims, wait=wait)
                if record is None:
                    pipe.send(("claimed",))
                else:
                    pipe.send(("finished", record.status.value, record.reason, record.wall_s))
            except Exception as error:  # the store failed: the driver decides
                pipe.send(("broken", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone; every finished cell is on disk


def _die_with_driver() -> None:
    """End this process soon after its parent is killed, also in the middle of a cell."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
