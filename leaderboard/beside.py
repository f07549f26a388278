"""Tables worked out beside each other, in forked processes, where there are enough cells for that to pay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from harness.worker import worker_cores

PAYS = 1000  # cells: forking takes as long as judging some hundred of them
_TICKETS = 500  # of 8 bytes: the smallest pipe holds a page before its writer waits for a reader
T = TypeVar("T")


def each(number: int, task: Callable[[int], T], cells: int, meanwhile: Callable[[], object] | None = None) -> list[T]:
    """`task` of 0 to number - 1, in order. What a task changes may be lost; its result and its error come back.

    Forks only on Linux, in a process without other threads: a fork takes none of them along, and so may hang elsewhere.
    Whoever is free does the next task. What a process that dies or cannot be started (out of memory) had to do is done
    here. meanwhile: done here first, where others have begun on the tasks.
    """
    processes = min(worker_cores(), number)
    alone = sys.platform != "linux" or threading.active_count() > 1 or os.environ.get("OPENBLAS_NUM_THREADS") != "1"
    if processes < 2 or cells < PAYS or alone:
        return [task(k) for k in range(number)]
    fork = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    children: list[Any] = []
    try:
        tickets = _Tickets(number)
    except OSError:  # no descriptors left
        return [task(k) for k in range(number)]
    try:
        # Ctrl-C is this process' to answer, and is kept for it until all the others ignore it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(processes - 1):
                try:
                    ours, theirs = fork.Pipe(duplex=False)
                except OSError:
                    break
                child = fork.Process(target=_answer, args=(theirs, task, tickets), daemon=True)
                try:
                    child.start()
                except OSError:
                    continue
                finally:
                    theirs.close()
                pipes.append(ours)
                children.append(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if meanwhile is not None and children:
            meanwhile()
        found = {k: task(k) for k in tickets}
        for pipe in pipes:
            found |= _received(pipe)
        return [found[k] if k in found else task(k) for k in range(number)]
    finally:
        tickets.close()
        for child in children:
            child.kill()
            child.join()


class _Tickets:
    """Numbers 0 to n - 1, each for the one process that asks first: they lie in a pipe that all of them read."""

    def __init__(self, number: int):
        self._number, self._step = number, -(-number // _TICKETS)
        self._held, feed = os.pipe()
        os.write(feed, b"".join(first.to_bytes(8, "little") for first in range(0, number, self._step)))
        os.close(feed)

    def __iter__(self) -> Iterator[int]:
        while ticket := os.read(self._held, 8):
            first = int.from_bytes(ticket, "little")
            yield from range(first, min(first + self._step, self._number))

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._held)


def _answer(pipe: Connection, task: Callable[[int], Any], tickets: _Tickets) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer: tuple[bool, Any] = True, {k: task(k) for k in tickets}
    except Exception as error:
        answer = False, error
    try:
        pipe.send(answer)
    except Exception:  # it cannot be sent, or nobody waits: the other end sees the pipe end
        os._exit(1)


def _received(pipe: Connection) -> dict[int, Any]:
    """A process' results, none where it died. Raises what a task raised."""
    try:
        good, value = pipe.recv()
    except (EOFError, OSError):  # also in the middle of an answer
        return {}
    if not good:
        raise value
    return dict(value)
