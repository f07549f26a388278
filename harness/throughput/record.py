"""What a timing run leaves behind: settings, hardware, raw block rates of every round, and their summary. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import ConfigError, DataError, first_line

SCHEMA_VERSION = 1
Column = Literal["fixed", "best configuration"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Setting(_Model):
    """What must be equal between the rows of one column. steps: of a block; images: given to the other phases.

    batch is that of the base recipe, repair_batch that of fine-tuning. dtype is the autocast precision of training;
    penalties on gradients and attributions are float32 whatever it says.
    """

    suite: str
    model: str
    image_shape: tuple[int, int, int]
    classes: int
    batch: int
    repair_batch: int
    dtype: str
    device: str
    threads: int
    steps: int
    images: int


class Round(_Model):
    """One round of one row: block rates in images per second by phase, and why it does not count ('' = it does)."""

    number: int
    rates: dict[str, list[float]]
    invalid: str = ""
    clock_mhz: tuple[float, float] | None = None
    temperature_c: tuple[float, float] | None = None
    energy_j: float | None = None
    busy: float | None = None  # CPU seconds of the process over wall-clock, on a CPU


class RowTiming(_Model):
    """A row's rounds, what came before them, and its largest memory in bytes (of the device, or of the process)."""

    row: str
    setting: Setting
    rounds: list[Round]
    warmup_s: float
    peak_memory: dict[str, int] = Field(default_factory=dict)


class TimingRecord(_Model):
    """A whole run. extra: packing, bounds and the profile, where they were asked for."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["throughput"] = "throughput"
    preset: str
    column: Column = "fixed"
    source: str  # the suite's: real, synthetic or stand-in
    rows: list[RowTiming]
    failed: dict[str, str] = Field(default_factory=dict)
    wall_s: float
    provenance: dict[str, Any]
    extra: dict[str, Any] = Field(default_factory=dict)


class Rate(NamedTuple):
    """Median over valid rounds of their median block rate, the interval around it, its coverage, and the rounds."""

    median: float
    low: float
    high: float
    coverage: float
    rounds: int


def summarise(values: Sequence[float]) -> Rate:
    """Median and the narrowest interval between order statistics that covers the true median with 95 % or as near as
    the number of rounds allows (5 rounds: smallest to largest, 94 %).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no valid round")
    held, n = sorted(values), len(values)
    best = (0, 1 - 2 * 0.5**n)
    for k in range(n // 2):
        coverage = 1 - 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n
        if coverage >= 0.95:
            best = (k, coverage)
    return Rate(median(held), held[best[0]], held[n - 1 - best[0]], best[1] if n > 1 else 0.0, n)


def rates(timing: RowTiming) -> dict[str, Rate]:
    """Summary by phase over the valid rounds; over all of them where none is valid (the table says so)."""
    valid = [r for r in timing.rounds if not r.invalid] or timing.rounds
    phases = dict.fromkeys(phase for r in valid for phase in r.rates)
    return {phase: summarise([median(r.rates[phase]) for r in valid if r.rates.get(phase)]) for phase in phases}


def check_one_column(timings: Iterable[RowTiming], column: Column) -> None:
    """Refuse rows of unequal settings in one column; the column 'best configuration' may differ in batch sizes.

    Raises:
        ConfigError: names the two rows and what differs.
    """
    held = list(timings)
    free = {"batch", "repair_batch"} if column == "best configuration" else set()
    for other in held[1:]:
        first, second = held[0].setting.model_dump(), other.setting.model_dump()
        different = [name for name in first if name not in free and first[name] != second[name]]
        if different:
            what = ", ".join(f"{name} {first[name]} and {second[name]}" for name in different)
            raise ConfigError(f"'{held[0].row}' and '{other.row}' were not timed alike ({what}): no common column")


def read_timing(path: Path) -> TimingRecord:
    """Read a record. Raises DataError where it is none."""
    try:
        record = TimingRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError) as error:
        raise DataError(f"{path} is no timing record: {first_line(error)}") from error
    check_one_column(record.rows, record.column)
    return record
