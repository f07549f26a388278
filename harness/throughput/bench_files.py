"""Two pytest-benchmark files side by side. Ratios are compared where a benchmark has one: the machine cancels out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError


@dataclass(frozen=True)
class Compared:
    """One benchmark in both files: its ratio to a bare reference, or (higher is better too) 1 / median seconds."""

    name: str
    before: float | None
    after: float | None
    ratio: bool
    fell: bool

    def cells(self) -> tuple[str, str, str, str, str]:
        """The line of a table."""
        shown = ["-" if value is None else f"{value:.3g}" for value in (self.before, self.after)]
        change = f"{self.after / self.before - 1:+.1%}" if self.before and self.after else ""
        said = (
            ("gone" if self.after is None else "fell") if self.fell else "" if self.ratio else "wall-clock: no verdict"
        )
        return self.name, *shown, change, said  # type: ignore[return-value]


def compared(before: Path, after: Path, tolerance: float) -> list[Compared]:
    """All benchmarks of two files; `fell` where a ratio is below (1 - tolerance) of what it was, or is gone.

    Raises:
        DataError: a file is no pytest-benchmark file.
    """
    old, young = _read(before), _read(after)
    found = []
    for name in dict.fromkeys((*old, *young)):
        (a, first), (b, second) = old.get(name, (None, True)), young.get(name, (None, True))
        ratio = first and second
        fell = ratio and a is not None and (b is None or b < (1 - tolerance) * a)
        found.append(Compared(name, a, b, ratio, fell))
    return found


def _read(path: Path) -> dict[str, tuple[float, bool]]:
    """Benchmark -> (value, whether it is a ratio)."""
    try:
        benchmarks = json.loads(path.read_bytes())["benchmarks"]
        found = {}
        for entry in benchmarks:
            ratio = entry.get("extra_info", {}).get("ratio")
            value = float(ratio) if ratio is not None else 1 / float(entry["stats"]["median"])
            found[str(entry["fullname"])] = (value, ratio is not None)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{path} is no file of pytest-benchmark ({error}); write it with --benchmark-json") from error
    return found
