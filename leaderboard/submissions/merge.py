"""Puts verified submissions on a board: recomputed numbers in the columns, reported ones beside them and named so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.record import METRIC_VERSION, Candidate, Record, Status, TrackResult
from leaderboard.published import read_published, write_published
from leaderboard.submissions.manifest import Claimed, Manifest
from leaderboard.submissions.verify import Suites, Verified


def merge(found: Verified, suites: Suites, board: Path) -> tuple[int, int]:
    """Add an accepted submission's cells to `<board>/records.jsonl`; what is there already stays as it is.

    Returns:
        cells added, and cells that were there (merging twice adds nothing).

    Raises:
        DataError: the submission was not accepted, the board is damaged, or it holds other numbers under a cell's id.
    """
    if found.manifest is None or not found.accepted:
        raise DataError("only a submission that passed `vabench submit verify` can be merged")
    with _alone(board):
        return _merge(found, found.manifest, suites, board)


def _merge(found: Verified, manifest: Manifest, suites: Suites, board: Path) -> tuple[int, int]:
    held, damaged = read_published(board)
    if damaged:
        raise DataError(f"{damaged[0]}; nothing was merged")
    known = {(record.id, record.provenance.get("submission")): record for record in held}
    added = []
    for k, cell in enumerate(manifest.cells):
        record = to_record(k, cell, found, suites)
        there = known.get((record.id, manifest.name))
        if there is None:
            added.append(record)
        elif there.tracks != record.tracks:
            raise DataError(
                f"the board holds other numbers of {record.suite} · {record.row} · seed {record.seed} from "
                f"'{manifest.name}'; nothing was merged: submit under another name"
            )
    if added:
        write_published([*held, *added], board)
    return len(added), len(manifest.cells) - len(added)


@contextlib.contextmanager
def _alone(board: Path) -> Iterator[None]:
    """Let no other process change the board between reading and writing it, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        board.mkdir(parents=True, exist_ok=True)
        handle = os.open(board, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot write into {board}: {error.strerror or error}") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def to_record(k: int, cell: Claimed, found: Verified, suites: Suites) -> Record:
    """A cell as a record: what predictions determine is recomputed, the rest is marked as reported."""
    manifest = found.manifest
    assert manifest is not None
    record = Record(
        id=cell.id,
        status=Status.DONE,
        suite=cell.suite,
        suite_source=suites.known[cell.suite].info.source,
        row=f"{cell.row} [{manifest.name}]",
        label=f"{cell.label or cell.row} [{manifest.name}]",
        method=cell.method,
        mask_source=cell.mask_source,
        block=cell.block,
        simulated=cell.simulated,
        model=cell.model,
        seed=cell.seed,
        config={**cell.config, "tracks": list(cell.tracks)},
        identity={
            "data": cell.data,
            "suite_version": cell.suite_version,
            "seed": cell.seed,
            "metric_version": METRIC_VERSION,
            "schema_version": 1,
            "submission": manifest.name,
        },
        base=dict(cell.base),
        groups=found.counts[k],
        provenance=_provenance(manifest),
    )
    checked: dict[str, Any] = {}
    for name, claim in cell.tracks.items():
        recomputed = found.scores[k, name]
        record.tracks[name] = TrackResult(
            candidate=claim.candidate,
            rule=claim.rule,
            supervision=list(claim.supervision),
            ledger=dict(claim.ledger),
            cost_s=claim.cost_s,
            metrics={**claim.metrics, **recomputed},
        )
        checked[name] = {
            "recomputed": sorted(key for key in recomputed if key in claim.metrics),
            "reported": sorted({*claim.metrics.keys() - recomputed.keys(), "cost_s", "base"}),
            "external": {},
        }
    tried = max(claim.tried for claim in cell.tracks.values())
    configs = {claim.candidate: claim.config for claim in cell.tracks.values()}
    record.candidates = [Candidate(config=configs.get(j, {}), seconds=0.0) for j in range(tried)]
    record.audit = {"submission": checked}
    return record


def confirm(board: Path, records: list[Record]) -> int:
    """Write a rerun's numbers beside those of a submission, as `external`; returns the number of cells confirmed.

    A rerun is a record of the same id: the same config, code and data, on another machine. A submission's id is a
    claim, so the cell must also be the one that the board names.

    Raises:
        DataError: none of the records belongs to a submission on the board, or an id stands for another cell here.
    """
    with _alone(board):
        return _confirm(board, records)


def _confirm(board: Path, records: list[Record]) -> int:
    held, damaged = read_published(board)
    if damaged:
        raise DataError(f"{damaged[0]}; nothing was changed")
    again = {record.id: record for record in records if record.status is Status.DONE}
    count = 0
    for record in held:
        rerun = again.get(record.id)
        if rerun is None or "submission" not in record.audit:
            continue
        for field in ("suite", "method", "mask_source", "model", "seed"):
            if getattr(rerun, field) != getattr(record, field):
                raise DataError(
                    f"{record.row} · seed {record.seed} claims the id {record.id[:12]}, which belongs to another cell: "
                    f"{field} {getattr(record, field)} there, {getattr(rerun, field)} in the rerun; nothing was changed"
                )
        for name, checked in record.audit["submission"].items():
            if name in rerun.tracks:
                numbers = rerun.tracks[name].metrics.items()
                checked["external"] = {key: value for key, value in numbers if isinstance(value, int | float)}
                checked["external"]["cost_s"] = rerun.tracks[name].cost_s
                count += 1
    if not count:
        raise DataError("none of these records is a rerun of a submitted cell: config, code and data must be the same")
    write_published(held, board)
    return count


def _provenance(manifest: Manifest) -> dict[str, Any]:
    hardware = {key: value for key, value in manifest.hardware.items() if key != "device"}
    return {
        "submission": manifest.name,
        "packages": dict(manifest.packages),
        "git": {"commit": manifest.commit, "dirty": manifest.dirty},
        "hardware": hardware,
        "device": str(manifest.hardware.get("device", "")),
    }
