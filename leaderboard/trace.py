"""Leads from a table's numbers to the records behind them: ids, seeds and commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from harness.record import Record
from leaderboard.collect import Absence, Entry

SCORES = ("headline", "wga", "aga", "accuracy", "flip_effect", "mu_align", "mu_lift")
_DEPTH = 4  # cells/<suite>/<row>/<seed>-<id>: where a cell lies inside its results folder


def commit(record: Record) -> tuple[str, bool | None]:
    """Commit of the engine's checkout, and whether it had changes; '' and None for an installed copy."""
    git = record.provenance.get("git") or {}
    return str(git.get("commit", "")), git.get("dirty")


def sources(records: Sequence[Record]) -> dict[str, str]:
    """The records behind one line of a table, each column joined by ';' in the order of the seeds.

    record_seeds, record_ids (as in `record.json`; its folder ends in the first twelve characters), and commits, in
    which `+dirty` marks a checkout with changes and `unknown` an installed copy.
    """
    held = sorted(records, key=lambda record: record.seed)
    commits = [(name or "unknown") + ("+dirty" if dirty else "") for name, dirty in map(commit, held)]
    return {
        "record_seeds": ";".join(str(record.seed) for record in held),
        "record_ids": ";".join(record.id for record in held),
        "commits": ";".join(commits),
    }


def cell_frame(entries: Iterable[Entry], track: str) -> pd.DataFrame:
    """One line per cell of a table.

    Columns: block, row, variant, seed, status, reason, record_id, folder (inside the results folder), commit, dirty,
    vabench (its version), candidate, cost_s, the scores (fractions 0..1, empty without numbers) and base_wga. A cell
    without a record has no id and no folder.
    """
    lines: list[dict[str, Any]] = []
    for entry in entries:
        record, stored = entry.record, not isinstance(entry.record.status, Absence)
        name, dirty = commit(record)
        result = record.tracks.get(track)  # type: ignore[call-overload]
        scores = result.metrics if result is not None else {}
        parts = entry.folder.parts[-_DEPTH:] if entry.folder.suffix != ".jsonl" else entry.folder.parts[-1:]
        lines.append(
            {
                "block": record.block,
                "row": record.row,
                "variant": entry.variant,
                "seed": record.seed,
                "status": record.status.value,
                "reason": record.reason,
                "record_id": record.id if stored else "",
                "folder": "/".join(parts) if stored else "",
                "commit": name,
                "dirty": dirty,
                "vabench": record.provenance.get("packages", {}).get("vabench", ""),
                "candidate": result.candidate if result is not None else None,
                "cost_s": result.cost_s if result is not None else None,
                **{score: scores.get(score) for score in SCORES},
                "base_wga": record.base.get("wga"),
            }
        )
    frame = pd.DataFrame(lines)
    return frame.astype({"candidate": "Int64"}) if len(frame) else frame
