"""Tables worked out beside each other, in forked processes, where there are enough cells for that to pay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from harness.worker import worker_cores

PAYS = 1000  # cells: forking takes as long as judging some hundred of them
T = TypeVar("T")
_task: list[Callable[[int], Any]] = []  # what the forked processes inherit; they are sent numbers only


def each(number: int, task: Callable[[int], T], cells: int) -> list[T]:
    """`task` of 0 to number - 1, in order. What a task changes may be lost; its result and its error come back.

    Forks only on Linux, in a process without other threads: a fork takes none of them along, and so may hang elsewhere.
    """
    processes = min(worker_cores(), number)
    alone = sys.platform != "linux" or threading.active_count() > 1 or os.environ.get("OPENBLAS_NUM_THREADS") != "1"
    if processes < 2 or cells < PAYS or alone:
        return [task(k) for k in range(number)]
    _task.append(task)
    try:
        with multiprocessing.get_context("fork").Pool(processes, _leave_interrupts) as pool:
            return pool.map(_run, range(number), chunksize=1)
    finally:
        _task.pop()


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


def _run(number: int) -> Any:
    return _task[-1](number)
