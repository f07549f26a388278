"""Timing records as tables: methods by devices, images per second with the interval over rounds. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic_core import from_json

from harness.errors import ConfigError, DataError
from harness.throughput.record import (
    RowTiming,
    TimingRecord,
    check_one_column,
    check_one_machine,
    rates,
    read_timing,
    with_compilation,
)

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
    """Every timing record of a results folder (`throughput/*.json`, or the folder itself); other JSON is passed over.

    Raises:
        DataError: there is none, or one is damaged or of a version that counted wrongly.
    """
    found = [read_timing(path) for path in timing_files(folder)]
    if not found:
        raise DataError(f"there are no timing records in {folder}; `vabench throughput` writes them")
    return found


def timing_files(folder: Path) -> list[Path]:
    """The files of a results folder that say that they are timing records."""
    places = (path for where in WHERE for path in sorted((folder / where).glob("*.json")))
    return [path for path in places if _is_timing(path)]


def _is_timing(path: Path) -> bool:
    try:
        held = from_json(path.read_bytes())  # an error, not a recursion, where it is nested too deep
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.get("kind") == "throughput"


def speeds(records: Sequence[TimingRecord]) -> list[Speeds]:
    """Tables of records that were timed alike, devices side by side.

    Raises:
        ConfigError: two records would share a column, but were timed with unequal settings.
    """
    tables: dict[tuple[str, ...], list[TimingRecord]] = {}
    for record in records:
        first = record.rows[0].setting
        size = "x".join(map(str, first.image_shape))
        dtype = first.dtype if first.repair_dtype == first.dtype else f"{first.dtype}, repair {first.repair_dtype}"
        key = (f"{first.suite} ({record.source})", first.model, size, dtype, record.column)
        tables.setdefault(key, []).append(record)
    return [_table(key, held) for key, held in tables.items()]


def _table(key: tuple[str, ...], records: Sequence[TimingRecord]) -> Speeds:
    columns: dict[str, list[TimingRecord]] = {}
    notes: list[str] = []
    lines = []
    for record in records:
        device = _device(record)
        columns.setdefault(device, []).append(record)
        rows = [timing for held in columns[device] for timing in held.rows]
        names = [timing.row for timing in rows]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"'{twice}' was timed twice on {device}: give one record per device, or other folders")
        check_one_column(rows, record.column)
        check_one_machine(columns[device][0], record)
        if record.short:
            notes.append(f"{device}: not for publication, {record.short}.")
        notes += [*_share(record, device), *_compiled(record, device)]
        notes += [f"{device}: {row} was not timed: {why}." for row, why in record.failed.items()]
        lines += [line for timing in record.rows for line in _lines(timing, device)]
    if any(line["mark"] for line in lines):
        notes.append("(!) no round of this row was valid: clock, temperature or other programs moved in all of them.")
    first = records[0].rows[0].setting
    batch = f"batch {first.batch}, repair {first.repair_batch}" if key[-1] == "fixed" else "batch of each row's own"
    title = f"Throughput · {' · '.join(key)} · {batch}; images per second, median [interval over rounds]"
    return Speeds(title, pd.DataFrame(lines), tuple(dict.fromkeys(notes)))


def _lines(timing: RowTiming, device: str) -> list[dict[str, object]]:
    held = rates(timing)

    def energy(phase: str) -> float | None:
        used = [found.energy_j[phase] for found in timing.rounds if phase in found.energy_j and not found.invalid]
        return sum(used) / len(used) if used else None

    return [
        {
            "row": timing.row,
            "device": device,
            "phase": phase,
            **held[phase]._asdict(),
            "batch": timing.setting.batch,
            "valid": timing.valid,
            "peak_memory_bytes": timing.peak_memory(phase),
            "energy_j_per_round": energy(phase),
            "mark": "" if timing.valid else "(!)",
        }
        for phase in PHASES
        if phase in held
    ]


def _share(record: TimingRecord, device: str) -> list[str]:
    """How near plain training comes to the bare loop of the same rounds."""
    erm = next((timing for timing in record.rows if timing.row == "erm"), None)
    if erm is None or record.reference is None:
        return []
    ours, bare = rates(erm)["train"], rates(record.reference)["train"]
    text = f"the bare loop trains {bare.median:.0f} [{bare.low:.0f}, {bare.high:.0f}] images/s in the same rounds"
    return [f"{device}: {text}; erm reaches {ours.median / bare.median:.2f} of it."]


def _compiled(record: TimingRecord, device: str) -> list[str]:
    """What compilation costs where rows were compiled: the columns leave it out, a whole run does not."""
    slowed = {timing.row: (timing.compile_s, with_compilation(timing)) for timing in record.rows}
    told = [f"{row} {rate:.0f} ({s:.1f} s)" for row, (s, rate) in slowed.items() if rate is not None]
    return [f"{device}: images/s of a whole training with its compilation: {', '.join(told)}."] if told else []


def _device(record: TimingRecord) -> str:
    hardware = record.provenance.get("hardware", {})
    gpu = (hardware.get("gpu") or {}).get("name")
    threads = record.rows[0].setting.threads
    return str(gpu or f"{hardware.get('processor', 'CPU')}, {threads} thread{'s' if threads != 1 else ''}")
