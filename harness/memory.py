"""How much memory a cell needs and how much is left on this machine, so that local workers do not exhaust it.

What a cell needs is estimated from its suite's size until a worker has run one of its row, then it is what that worker
took at most. Graphics memory is not looked at. Where the system does not say what is free, nothing is held back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.plan import Cell
    from harness.suite import SuiteData

MB, GB = 2**20, 2**30
WORKER = 768 * MB  # a worker that has imported torch and holds nothing yet: 700 MB on Linux
KEPT_SUITES = 2  # harness.stages keeps so many
FLOATS = 2**28  # harness.training converts training images up to this size once
FORWARD = 2**25  # input values of one pass without gradients (harness.training), at most
ACTIVATIONS = 50  # floats that a wide network keeps per input value
SPARE = 1.1  # on top of what was measured


@dataclass(frozen=True)
class SuiteSize:
    """data: bytes of all splits and renderings. train: bytes of the training images. image: values of one image."""

    data: int
    train: int
    image: int


_sizes: dict[str, SuiteSize] = {}


def remember(suite: str, data: SuiteData) -> None:
    """Keep the size of a suite that the driver has loaded anyway."""
    splits = [data.train, data.val, data.val_groups, data.decorrelated, *data.test.values()]
    arrays = [
        array
        for split in splits
        if split is not None
        for array in (split.images, split.y, split.a, split.g, split.ids, split.masks, split.core)
        if array is not None
    ]
    train = data.train.images
    _sizes[suite] = SuiteSize(sum(array.nbytes for array in arrays), train.nbytes, train[0].size if len(train) else 0)


def estimate(suite: str | None, batch_size: int = 128, *, gpu: bool = False) -> int:
    """Bytes that a worker takes for a cell of a suite: itself, the data, the training images as floats, activations.

    Conservative: a small network needs a tenth of these activations. Of a suite that was not loaded here, or without
    a name, the worker alone is counted.
    """
    size = _sizes.get(suite or "")
    if size is None:
        return WORKER
    floats = 0 if gpu or 4 * size.train > FLOATS else 4 * size.train
    values = max(min(2048 * size.image, FORWARD), batch_size * size.image)
    return WORKER + KEPT_SUITES * size.data + floats + (0 if gpu else 4 * ACTIVATIONS * values)


def largest_estimate(*, gpu: bool = False) -> int:
    """The estimate of the largest suite that was loaded here."""
    return max((estimate(suite, gpu=gpu) for suite in _sizes), default=WORKER)


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, or of a control group's limit; None where nobody says.

    root: where `proc` and `sys` lie.
    """
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.strip("/")
        for group in [folder, *folder.parents]:  # a limit holds for all groups below it
            if group == base.parent:
                break
            left = _left(group, *names)
            if left is not None:
                found.append(left)
    return min(found, default=None)


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """What a control group may still take; files that it has cached and does not use can be dropped."""
    try:
        most, now = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):  # no such group here, or its limit is the word `max`
        return None
    stat = dict(line.split() for line in _lines(group / "memory.stat") if len(line.split()) == 2)
    return max(0, most - now + int(stat.get(cache, 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def resident(pid: int, *, peak: bool = False) -> int:
    """Bytes of a process in memory, now or at most so far; 0 where the system does not say."""
    name = "VmHWM:" if peak else "VmRSS:"
    return next(
        (1024 * int(line.split()[1]) for line in _lines(Path(f"/proc/{pid}/status")) if line.startswith(name)), 0
    )


def affordable(workers: int, *, gpu: bool = False) -> tuple[int, str]:
    """Workers that memory allows, at least one and at most as many as given; and why fewer, if fewer."""
    left, each = available(), largest_estimate(gpu=gpu)
    if left is None or workers <= max(1, left // each):
        return workers, ""
    return max(1, left // each), f"{left / GB:.1f} GB of memory are free, and a cell may need {each / GB:.1f} GB"


class Room:
    """Which cells the pool's workers may begin. A cell is held back while others run and memory is short for it."""

    def __init__(self, *, gpu: bool = False):
        self._gpu = gpu
        self._running: dict[int, int] = {}  # process -> bytes that its cell needs
        self._measured: dict[tuple[str, str, str], int] = {}

    def admits(self, cell: Cell, pid: int) -> bool:
        """Whether the worker process may begin the cell now: it fits beside what the running cells have yet to take.

        A cell alone is always admitted: nothing that is waited for would make more room.
        """
        if not self._running:
            return True
        left = available()
        if left is None:
            return True
        promised = sum(max(0, need - resident(other)) for other, need in self._running.items())
        return left - promised >= max(0, self.need(cell) - resident(pid))

    def need(self, cell: Cell) -> int:
        """Bytes of a worker that runs the cell."""
        measured = self._measured.get(_key(cell))
        if measured is not None:
            return int(SPARE * measured)
        recipes = cell.config.get("recipes", {}).values()
        batch = max((recipe.get("batch_size", 128) for recipe in recipes), default=128)
        return estimate(cell.suite_name, batch, gpu=self._gpu)

    def begun(self, cell: Cell, pid: int) -> None:
        """The process runs the cell."""
        self._running[pid] = self.need(cell)

    def ended(self, cell: Cell | None, pid: int) -> None:
        """The process runs nothing any more. cell: what it finished, None where it did not."""
        self._running.pop(pid, None)
        taken = resident(pid, peak=True) if cell is not None else 0
        if cell is not None and taken:
            self._measured[_key(cell)] = max(taken, self._measured.get(_key(cell), 0))


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.suite_name, cell.row_name, str(cell.model)
