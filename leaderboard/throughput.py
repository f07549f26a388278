"""Timing records as tables: methods by devices, images per second with the interval over rounds. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.errors import ConfigError, DataError
from harness.throughput.record import RowTiming, TimingRecord, check_one_column, rates, read_timing

PHASES = ("train", "align", "explain", "segment", "critique", "infer")
WHERE = ("throughput", ".")  # inside a results folder, and the folder itself


@dataclass(frozen=True)
class Speeds:
    """One table: `frame` has a line per row, device and phase (median, low, high, rounds, valid), notes are sentences.

    What the rows were timed on stands in the title: suite, model, image size, dtype and batch are equal throughout.
    """

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def wide(self) -> pd.DataFrame:
        """Text for people: a line per row, a column per device and phase."""
        text = self.frame.assign(
            cell=[
                f"{line.median:.0f} [{line.low:.0f}, {line.high:.0f}]" + (f" {line.mark}" if line.mark else "")
                for line in self.frame.itertuples()
            ],
            head=self.frame["device"] + " · " + self.frame["phase"],
        )
        order, heads = list(dict.fromkeys(text["row"])), list(dict.fromkeys(text["head"]))
        return text.pivot(index="row", columns="head", values="cell").reindex(order)[heads].fillna("–").reset_index()


def read_timings(folder: Path) -> list[TimingRecord]:
    """Every timing record of a results folder (`throughput/*.json`, or the folder itself); others are passed over.

    Raises:
        DataError: there is none.
    """
    found = []
    for path in (path for where in WHERE for path in sorted((folder / where).glob("*.json"))):
        try:
            found.append(read_timing(path))
        except DataError:
            continue  # another kind of JSON file
    if not found:
        raise DataError(f"there are no timing records in {folder}; `vabench throughput` writes them")
    return found


def speeds(records: Sequence[TimingRecord]) -> list[Speeds]:
    """Tables of records that were timed alike, devices side by side.

    Raises:
        ConfigError: two records would share a column, but were timed with unequal settings.
    """
    tables: dict[tuple[str, ...], list[TimingRecord]] = {}
    for record in records:
        first = record.rows[0].setting
        size = "x".join(map(str, first.image_shape))
        key = (f"{first.suite} ({record.source})", first.model, size, first.dtype, record.column)
        tables.setdefault(key, []).append(record)
    return [_table(key, held) for key, held in tables.items()]


def _table(key: tuple[str, ...], records: Sequence[TimingRecord]) -> Speeds:
    columns: dict[str, list[RowTiming]] = {}
    notes: list[str] = []
    lines = []
    for record in records:
        device = _device(record)
        columns.setdefault(device, []).extend(record.rows)
        names = [timing.row for timing in columns[device]]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"'{twice}' was timed twice on {device}: give one record per device, or other folders")
        check_one_column(columns[device], record.column)
        if "short" in record.extra:
            notes.append(f"{device}: not for publication, {record.extra['short']}.")
        notes += [f"{device}: {row} was not timed: {why}." for row, why in record.failed.items()]
        lines += [line for timing in record.rows for line in _lines(timing, device)]
    if any(line["mark"] for line in lines):
        notes.append("(!) no round of this row was valid: clock, temperature or other programs moved in all of them.")
    first = records[0].rows[0].setting
    batch = f"batch {first.batch}, repair {first.repair_batch}" if key[-1] == "fixed" else "batch of each row's own"
    title = f"Throughput · {' · '.join(key)} · {batch}; images per second, median [interval over rounds]"
    return Speeds(title, pd.DataFrame(lines), tuple(dict.fromkeys(notes)))


def _lines(timing: RowTiming, device: str) -> list[dict[str, object]]:
    valid = sum(not found.invalid for found in timing.rounds)
    peak = max(timing.peak_memory.values(), default=0)
    energy = [found.energy_j for found in timing.rounds if found.energy_j is not None and not found.invalid]
    held = rates(timing)
    return [
        {
            "row": timing.row,
            "device": device,
            "phase": phase,
            **held[phase]._asdict(),
            "batch": timing.setting.batch,
            "valid": valid,
            "peak_memory_bytes": peak,
            "energy_j_per_round": sum(energy) / len(energy) if energy else None,
            "mark": "" if valid else "(!)",
        }
        for phase in PHASES
        if phase in held
    ]


def _device(record: TimingRecord) -> str:
    hardware = record.provenance.get("hardware", {})
    gpu = (hardware.get("gpu") or {}).get("name")
    threads = record.rows[0].setting.threads
    return str(gpu or f"{hardware.get('processor', 'CPU')}, {threads} thread{'s' if threads != 1 else ''}")
