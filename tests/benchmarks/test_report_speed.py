"""Reading a results folder for a report, and writing a cell, against json and numpy on the same content."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.ratios import compare
from fabricated import Fabric

from harness.record import Record
from harness.store import Store
from leaderboard import index
from leaderboard.collect import everything

SEEDS = tuple(range(20))


def folder_of_cells(root: Path) -> Path:
    """300 cells of 15 rows, 400 images each."""
    fabric = Fabric(root, n=400, seeds=SEEDS)
    for k in range(15):
        fabric.row(f"rrr(lam={k})@ground_truth" if k else "erm", 0.3 + 0.02 * k, block="baseline" if k else "reference")
    return root


def plain(root: Path) -> list[tuple[str, float]]:
    """Row and accuracy in every rendering: what a short script would do, damage looked for."""
    found = []
    for path in sorted(root.glob("cells/*/*/*/record.json")):
        record = json.loads(path.read_bytes())
        content = path.with_name("predictions.npz").read_bytes()
        if hashlib.sha256(content).hexdigest() != record["predictions_sha256"]:
            raise ValueError(f"the predictions of {path} are damaged")
        with np.load(io.BytesIO(content)) as archive:
            groups = [name[2:] for name in archive.files if name.startswith("g/")]
            right = np.stack([archive[f"test/{name}/0"].argmax(1) == archive["y"] for name in groups], 1)
            where = np.stack([archive[f"g/{name}"] for name in groups], 1)
            assert len(archive["ids"]) == len(where)
        found.append((record["row"], float(right.mean())))
    return found


def accuracies(root: Path) -> list[tuple[str, float]]:
    found = []
    for entry in everything(root).entries:
        assert entry.store is not None
        outcomes = entry.store.outcomes(entry.folder, 0)
        assert outcomes is not None
        found.append((entry.record.row, float(outcomes[0].mean())))
    return found


def test_both_read_the_same(tmp_path: Path) -> None:
    assert sorted(accuracies(folder_of_cells(tmp_path))) == sorted(plain(tmp_path))


@pytest.mark.parametrize(("remembered", "bound"), [(False, 1.2), (True, 4)], ids=["first", "again"])
def test_reading_cells(benchmark: Any, tmp_path: Path, remembered: bool, bound: float) -> None:
    folder_of_cells(tmp_path)

    def read() -> None:
        if not remembered:
            (tmp_path / index.FILE).unlink(missing_ok=True)
        accuracies(tmp_path)

    read()
    assert compare(benchmark, read, lambda: plain(tmp_path), images=300, rounds=9) >= bound


def test_writing_a_cell(benchmark: Any, tmp_path: Path) -> None:
    """Three candidates of 2000 images in three renderings, against numpy's own way to write them small."""
    fabric = Fabric(tmp_path / "given", n=400, seeds=(0,))
    (entry,) = fabric.row("erm", 0.4)
    rng, names = np.random.default_rng(0), ("aligned", "conflicting", "clean")
    arrays: dict[str, np.ndarray[Any, Any]] = {
        f"test/{name}/{k}": rng.standard_normal((2000, 10)).astype(np.float32) for name in names for k in range(3)
    }
    arrays |= {"y": rng.integers(0, 10, 2000), "ids": np.arange(2000), "masks/packed": np.zeros((400, 98), np.uint8)}
    place = tmp_path / "plain"
    place.mkdir()

    def plain() -> None:
        np.savez_compressed(place / "predictions.npz", **arrays)  # type: ignore[arg-type]
        digest = hashlib.sha256((place / "predictions.npz").read_bytes()).hexdigest()
        held = {**json.loads(entry.record.model_dump_json()), "predictions_sha256": digest}
        (place / "record.json").write_text(json.dumps(held, indent=1), encoding="utf-8")

    store = Store(tmp_path / "ours")
    assert compare(benchmark, lambda: store.write(entry.record, arrays), plain, images=1, rounds=9) >= 2
    ((_, held),) = list(store.records())
    assert isinstance(held, Record)
    assert held.row == "erm"
