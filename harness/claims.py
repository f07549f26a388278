"""Who runs which cell, among all processes that share a results folder: locks that end with their owner.

One file, one byte per cell: `fcntl` record locks, which the kernel drops when their process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness.errors import DataError

FILE = "claims.lock"
_PLACES = 2**40  # two cells at one place only wait for each other


class Claims:
    """Claims of this process on the cells of one results folder. Where the system has no such locks, all are free."""

    def __init__(self, root: Path):
        self.path = root / FILE
        self._handle: int | None = None

    @classmethod
    @cache
    def of(cls, root: Path) -> Claims:
        """This process's claims on a folder: one object, so one handle, per folder."""
        return cls(root)

    @contextlib.contextmanager
    def claim(self, cell_id: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold the cell inside the block; False where another process holds it (with `wait`: until it no longer does).

        Raises:
            DataError: the folder cannot be written.
        """
        try:
            import fcntl
        except ImportError:  # no such system
            yield True
            return
        place = int(cell_id[:16], 16) % _PLACES
        handle = self._open()
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place, os.SEEK_SET)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:  # a file system without locks: run as if alone
            yield True
            return
        try:
            yield True
        finally:
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, place, os.SEEK_SET)

    def _open(self) -> int:
        """One handle for good: closing any handle of the file would drop all of this process's locks."""
        if self._handle is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise DataError(f"cannot write into {self.path.parent}: {error.strerror or error}") from error
        return self._handle
