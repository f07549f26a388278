"""Packs stored cells as a submission: a manifest and plain .npy files, in a folder or a zip."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import ConfigError, DataError
from harness.record import Record, Status
from harness.store import Store, slug, write_bytes
from leaderboard.collect import Entry
from leaderboard.submissions.faults import MANIFEST
from leaderboard.submissions.manifest import FORMAT, VERSION, Array, Claim, Claimed, Manifest, parse


def pack(entries: Sequence[Entry], name: str, out: Path) -> tuple[Manifest, int]:
    """Write the cells that have numbers to `out` (a zip where the name ends in .zip, else a folder that is empty).

    Returns:
        the manifest, and the number of bytes written.

    Raises:
        ConfigError: `out` exists and is not empty, or `name` is none that a submission can have.
        DataError: no cell has numbers, or one lacks its predictions.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another name, or remove it")
    done = [entry for entry in entries if entry.record.status is Status.DONE]
    if not done:
        raise DataError("there is nothing to submit: none of these cells has numbers")
    files: dict[str, bytes] = {}
    cells = [_cell(k, entry, files) for k, entry in enumerate(done)]
    newest = done[-1].record.provenance
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "vabench": newest.get("packages", {}).get("vabench", ""),
        "commit": (newest.get("git") or {}).get("commit", ""),
        "dirty": bool((newest.get("git") or {}).get("dirty", False)),
        "hardware": {**newest.get("hardware", {}), "device": str(newest.get("device", ""))},
        "packages": newest.get("packages", {}),
        "seeds": sorted({entry.record.seed for entry in done}),
        "cells": [cell.model_dump(mode="json") for cell in cells],
    }
    held, faults = parse(manifest)
    if held is None:
        raise ConfigError(f"these cells cannot be submitted: {faults[0]}")
    files[MANIFEST] = (held.model_dump_json(indent=1) + "\n").encode()
    return held, _write(files, out)


def _cell(k: int, entry: Entry, files: dict[str, bytes]) -> Claimed:
    record = entry.record
    if not (entry.folder / "predictions.npz").exists():
        raise DataError(f"{entry.folder} holds no predictions; a published board cannot be submitted, its run can")
    arrays = Store(entry.folder.parents[3]).predictions(entry.folder, record)
    renderings = sorted({key.split("/")[1] for key in arrays if key.startswith("test/")})

    def keep(place: str, values: Any) -> Array:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)
        content = stream.getvalue()
        name = f"{k:05d}/{place}.npy"
        files[name] = content
        return Array(file=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    tracks = {
        track: Claim(
            rule=result.rule,
            candidate=result.candidate,
            tried=max(1, len(record.candidates)),
            config=record.candidates[result.candidate].config if record.candidates else {},
            supervision=result.supervision,
            ledger=result.ledger,
            cost_s=result.cost_s,
            metrics={key: _real(value) for key, value in result.metrics.items() if not isinstance(value, list | dict)},
            logits={
                name: keep(f"{track}-{slug(name)}", arrays[f"test/{name}/{result.candidate}"].astype("<f4"))
                for name in renderings
            },
        )
        for track, result in record.tracks.items()
    }
    return Claimed(**_head(record), ids=keep("ids", arrays["ids"].astype("<i8")), tracks=tracks)


def _head(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "suite": record.suite,
        "suite_version": str(record.identity.get("suite_version", "")),
        "data": str(record.identity.get("data", "")),
        "row": record.row,
        "label": record.label,
        "method": record.method,
        "mask_source": record.mask_source,
        "block": record.block,
        "simulated": record.simulated,
        "model": record.model,
        "seed": record.seed,
        "config": record.config,
        "base": {key: _real(value) for key, value in record.base.items()},
    }


def _real(value: Any) -> float | None:
    return None if value is None else float(value)


def _write(files: dict[str, bytes], out: Path) -> int:
    if out.suffix == ".zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)  # dateless: same file again
        write_bytes(out, stream.getvalue())
        return len(stream.getvalue())
    for name, content in files.items():
        write_bytes(out / name, content)
    return sum(map(len, files.values()))
