"""Which runs are working in a results folder, from any terminal, and how one asks them to stop.

Every run holds a lock on a file of its own in `RESULTS/drivers/`; the kernel drops it when the run ends, however it
ends. A request to stop is a file beside it, so it reaches a run on another machine that shares the folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from types import TracebackType

from harness.errors import DataError

FOLDER = "drivers"
LOOK_EVERY_S = 0.5


class Cancelled(KeyboardInterrupt):
    """Somebody asked this run to stop (`vabench cancel`): it ends as with Ctrl-C."""


class Driver:
    """This run's mark in the folder, for as long as the block lasts."""

    def __init__(self, root: str | Path):
        self._path = Path(root) / FOLDER / f"{secrets.token_hex(6)}.lock"
        self._handle: int | None = None
        self._looked = 0.0

    def __enter__(self) -> Driver:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"cannot write into {self._path.parent}: {error.strerror or error}") from error
        _lock(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in (self._path, self._path.with_suffix(".cancel")):
            with contextlib.suppress(OSError):
                path.unlink()
        if self._handle is not None:
            os.close(self._handle)

    def look(self) -> None:
        """Raise Cancelled where a request lies there. Cheap: looks twice a second at most."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if self._path.with_suffix(".cancel").exists():
                raise Cancelled


def running(root: str | Path) -> list[Path]:
    """Marks of the runs that work in this folder; those that dead runs left are removed."""
    found = []
    for path in sorted((Path(root) / FOLDER).glob("*.lock")):
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:  # it has just ended
            continue
        try:
            if not _lock(handle):
                found.append(path)
                continue
            for left in (path, path.with_suffix(".cancel")):
                with contextlib.suppress(OSError):
                    left.unlink()
        finally:
            os.close(handle)
    return found


def cancel(root: str | Path, patience_s: float = 30.0) -> tuple[int, int]:
    """Ask every run in the folder to stop, and wait.

    Returns:
        runs that were asked, and those that had not stopped after `patience_s` seconds.

    Raises:
        DataError: the folder cannot be written.
    """
    asked = running(root)
    for path in asked:
        try:
            path.with_suffix(".cancel").touch()
        except OSError as error:
            raise DataError(f"cannot write into {path.parent}: {error.strerror or error}") from error
    deadline = time.monotonic() + patience_s
    left = asked
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        here = running(root)
        left = [path for path in left if path in here]
    return len(asked), len(left)


def _lock(handle: int) -> bool:
    """Take the file's lock; False where another process has it. Without such locks nobody is ever seen to run."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        return not isinstance(error, BlockingIOError)
    return True
