"""What is wrong with a submission, in sentences; and the limits that are checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import VabenchError

MANIFEST = "manifest.json"
MAX_FILES = 20_000
MAX_MANIFEST = 16 * 2**20  # bytes
MAX_ARRAY = 64 * 2**20
MAX_TOTAL = 1024 * 2**20
MAX_RATIO = 200  # of a zip member's size to what it takes in the archive
MAX_DEPTH = 16  # brackets within brackets in the manifest
MAX_CELLS = 5_000


@dataclass(frozen=True)
class Fault:
    """One reason to refuse: where (a member or `cell 3`), what is wrong, and what to do about it."""

    where: str
    what: str
    remedy: str = "pack it again with `vabench submit pack`"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


class Refused(VabenchError):
    """A submission that cannot even be looked through."""

    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


def refuse(where: str, what: str, remedy: str = "pack it again with `vabench submit pack`") -> Refused:
    """The error to raise."""
    return Refused(Fault(where, what, remedy))
