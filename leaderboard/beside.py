"""Tables worked out beside each other, in forked processes, where there are enough cells for that to pay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from harness.worker import worker_cores

PAYS = 1000  # cells: forking takes as long as judging some hundred of them
T = TypeVar("T")


def each(number: int, task: Callable[[int], T], cells: int) -> list[T]:
    """`task` of 0 to number - 1, in order. What a task changes may be lost; its result and its error come back.

    Forks only on Linux, in a process without other threads: a fork takes none of them along, and so may hang elsewhere.
    What a process that dies or cannot be started (out of memory) had to do is done here.
    """
    processes = min(worker_cores(), number)
    alone = sys.platform != "linux" or threading.active_count() > 1 or os.environ.get("OPENBLAS_NUM_THREADS") != "1"
    if processes < 2 or cells < PAYS or alone:
        return [task(k) for k in range(number)]
    shares = [range(k, number, processes) for k in range(processes)]
    fork = multiprocessing.get_context("fork")
    pipes: list[Connection | None] = []
    children: list[Any] = []
    try:
        # Ctrl-C is this process' to answer, and is kept for it until all the others ignore it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for share in shares[1:]:
                ours, theirs = fork.Pipe(duplex=False)
                child = fork.Process(target=_answer, args=(theirs, task, share), daemon=True)
                try:
                    child.start()
                except OSError:
                    pipes.append(None)
                    continue
                finally:
                    theirs.close()
                pipes.append(ours)
                children.append(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        found = dict(zip(shares[0], [task(k) for k in shares[0]], strict=True))
        for share, pipe in zip(shares[1:], pipes, strict=True):
            results = _received(pipe)
            found |= zip(share, [task(k) for k in share] if results is None else results, strict=True)
        return [found[k] for k in range(number)]
    finally:
        for child in children:
            child.kill()
            child.join()


def _answer(pipe: Connection, task: Callable[[int], Any], numbers: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer = True, [task(k) for k in numbers]
    except Exception as error:
        answer = False, error  # type: ignore[assignment]
    try:
        pipe.send(answer)
    except Exception:  # it cannot be sent, or nobody waits: the other end sees the pipe end
        os._exit(1)


def _received(pipe: Connection | None) -> list[Any] | None:
    """A process' results, None where it died or never was. Raises what a task raised."""
    if pipe is None:
        return None
    try:
        good, value = pipe.recv()
    except EOFError:
        return None
    if not good:
        raise value
    return list(value)
