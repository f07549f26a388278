"""What a timing run leaves behind: settings, hardware, raw block rates of every round, and their summary. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from harness.errors import ConfigError, DataError, first_line

SCHEMA_VERSION: Literal[2] = 2  # 1 counted every batch as a full one
MIN_ROUNDS = 5  # valid ones of every row, for a published figure
_FOLDERS = re.compile(r"(?<![\w:])[~/](?:[^/\s,()\"'=]*/)+")
Column = Literal["fixed", "best configuration"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Setting(_Model):
    """What must be equal between the rows of one column. steps: of a block; images: given to explain and segment.

    batch is that of the base recipe, repair_batch that of fine-tuning; dtype and repair_dtype are their autocast
    precision; penalties on gradients, attributions and inference are float32 whatever they say. recipes: the rest of
    both recipes, without their length. alignment: that section of the config, empty for a row without masks.
    """

    suite: str
    model: str
    image_shape: tuple[int, int, int]
    classes: int
    batch: int
    repair_batch: int
    dtype: str
    repair_dtype: str
    device: str
    threads: int
    steps: int
    images: int
    recipes: dict[str, dict[str, Any]]
    alignment: dict[str, Any]


class Round(_Model):
    """One round of one row: block rates in images per second by phase, and why it does not count ('' = it does).

    peak_memory: largest memory in bytes by phase, allocated on a GPU, else resident. energy_j: by phase, where a GPU
    counts it. clock_mhz, temperature_c: smallest and largest reading, at the round's start and after every phase.
    """

    number: int
    rates: dict[str, list[float]]
    invalid: str = ""
    clock_mhz: tuple[float, float] | None = None
    temperature_c: tuple[float, float] | None = None
    energy_j: dict[str, float] = Field(default_factory=dict)
    peak_memory: dict[str, int] = Field(default_factory=dict)
    busy: float | None = None  # CPU seconds of the process over wall-clock, on a CPU


class RowTiming(_Model):
    """A row's rounds, and the seconds of its set-up: data, base model, masks and a first round of every phase.

    compile_s: seconds of the set-up's training steps that were compiled. whole_images: images of the whole training or
    repair that the preset asks for (not of a round); 0 where it takes no steps.
    """

    row: str
    setting: Setting
    rounds: list[Round]
    warmup_s: float
    compile_s: float = 0.0
    whole_images: float = 0.0

    @property
    def valid(self) -> int:
        """Rounds that count."""
        return sum(not found.invalid for found in self.rounds)

    def peak_memory(self, phase: str) -> int:
        """Largest memory of a phase over all rounds in bytes; 0 where none was read."""
        return max((found.peak_memory.get(phase, 0) for found in self.rounds), default=0)


class TimingRecord(_Model):
    """A whole run. reference: the bare loop, timed in the same rounds. config: what was timed, without folders. short:
    what keeps the figures from being published, or ''. extra: packing, bounds and the profile, where asked for."""

    schema_version: Literal[2] = SCHEMA_VERSION
    kind: Literal["throughput"] = "throughput"
    preset: str
    column: Column = "fixed"
    source: str  # the suite's: real, synthetic or stand-in
    rows: list[RowTiming]
    reference: RowTiming | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    short: str = ""
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


def with_compilation(timing: RowTiming) -> float | None:
    """Images per second of the preset's whole training or repair, compilation included; None where none was compiled
    or it takes no steps."""
    held = rates(timing)
    rate = held.get("train") or held.get("align")
    if not timing.compile_s or not timing.whole_images or rate is None:
        return None
    return timing.whole_images / (timing.whole_images / rate.median + timing.compile_s)


def rates(timing: RowTiming) -> dict[str, Rate]:
    """Summary by phase over the valid rounds; over all of them where none is valid (the table says so)."""
    valid = [r for r in timing.rounds if not r.invalid] or timing.rounds
    phases = dict.fromkeys(phase for r in valid for phase in r.rates)
    return {phase: summarise([median(r.rates[phase]) for r in valid if r.rates.get(phase)]) for phase in phases}


def without_folders(value: Any) -> Any:
    """Plain nested values with every path cut to its last part: a path may name a person."""
    if isinstance(value, dict):
        return {key: without_folders(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(held) for held in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def too_few(timings: Iterable[RowTiming]) -> str:
    """A sentence where rows have fewer valid rounds than a published figure needs; else ''."""
    few = [f"{timing.row} {timing.valid}" for timing in timings if timing.valid < MIN_ROUNDS]
    return f"fewer than {MIN_ROUNDS} valid rounds: {', '.join(few)}" if few else ""


def machine(record: TimingRecord) -> dict[str, Any]:
    """Facts of hardware and software that two records of one column must share, by dotted name."""
    held = record.provenance
    facts = {f"hardware.{key}": value for key, value in (held.get("hardware") or {}).items()}
    facts |= {f"packages.{key}": value for key, value in (held.get("packages") or {}).items()}
    return {**facts, "python": held.get("python"), "commit": (held.get("git") or {}).get("commit")}


def check_one_machine(first: TimingRecord, second: TimingRecord) -> None:
    """Refuse two records of one device whose machines or versions differ.

    Raises:
        ConfigError: names what differs.
    """
    one, other = machine(first), machine(second)
    different = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if different:
        what = ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in different[:3])
        raise ConfigError(f"'{first.preset}' and '{second.preset}' were not timed alike ({what}): no common column")


def check_one_column(timings: Iterable[RowTiming], column: Column) -> None:
    """Refuse rows of unequal settings in one column; the column 'best configuration' may differ in batch sizes.

    Raises:
        ConfigError: names the two rows and what differs.
    """
    held = list(timings)
    free = {"batch", "repair_batch"} if column == "best configuration" else set()
    aligned = next((timing for timing in held if timing.setting.alignment), None)
    for other in held[1:]:
        first, second = held[0].setting.model_dump(), other.setting.model_dump()
        if aligned is not None and second["alignment"]:
            first["alignment"] = aligned.setting.alignment
        else:
            first["alignment"] = second["alignment"]
        different = [name for name in first if name not in free and first[name] != second[name]]
        if different:
            what = ", ".join(f"{name} {first[name]} and {second[name]}" for name in different)
            raise ConfigError(f"'{held[0].row}' and '{other.row}' were not timed alike ({what}): no common column")


def read_timing(path: Path) -> TimingRecord:
    """Read a record. Raises DataError where it is none."""
    try:
        content = path.read_bytes()
        if from_json(content).get("schema_version") == 1:
            raise DataError(f"{path} counted short batches as full ones (before version 2): measure again")
        record = TimingRecord.model_validate_json(content)
    except (OSError, ValidationError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no timing record: {first_line(error)}") from error
    check_one_column(record.rows, record.column)
    return record
