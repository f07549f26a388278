"""WILDS' own data sets as suites, in fabricated official layouts, and ours as a WILDSDataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from baselines.groups import balanced_subset
from harness.api import records, run_config
from harness.config import load_config
from harness.errors import ConfigError, DataError
from harness.evaluate import score
from harness.record import Status
from harness.registry import registry
from harness.spec import Spec, parse_spec
from suites.data_command import check

OFFICIAL = (3498, 184, 56, 1057)  # Waterbirds' training images: landbird on land and water, waterbird on both


def png(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path)


def waterbirds(parent: Path, train: tuple[int, ...] = (9, 3, 2, 6), other: int = 4) -> Path:
    """A Waterbirds folder of the official layout with grey images; `other` images per group of val and test."""
    root = parent / "waterbirds_v1.0"
    groups = [(y, place) for y in (0, 1) for place in (0, 1)]
    rows = [(0, *group) for group, count in zip(groups, train, strict=True) for _ in range(count)]
    rows += [(split, *group) for split in (1, 2) for group in groups for _ in range(other)]
    table = []
    for k, (split, y, place) in enumerate(rows):
        name = f"{k % 7:03d}.Bird/{k}.png"
        png(root / name, k % 256)
        table.append({"img_id": k, "img_filename": name, "y": y, "split": split, "place": place, "place_filename": "x"})
    pd.DataFrame(table).to_csv(root / "metadata.csv", index=False)
    (root / "RELEASE_v1.0.txt").touch()
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VABENCH_CACHE", str(tmp_path / "cache"))


def make(name: str, **params: object) -> object:
    return registry("suites").create(Spec(name, params))


def test_our_numbers_equal_wilds_own_at_the_official_group_sizes(tmp_path: Path) -> None:
    waterbirds(tmp_path, OFFICIAL, other=30)
    data = make("waterbirds", root=str(tmp_path), size=16).load(0)  # type: ignore[attr-defined]
    assert np.bincount(data.train.g).tolist() == list(OFFICIAL)
    rng = np.random.default_rng(3)
    for _ in range(3):
        logits = rng.normal(size=(len(data.test["natural"]), 2)).astype(np.float32)
        logits[np.arange(len(logits)), data.test["natural"].y] += rng.uniform(0, 1.5, len(logits)).astype(np.float32)
        found = score({"natural": logits}, data)
        assert found["wga"] == pytest.approx(found["official.acc_wg"], abs=1e-6)
        assert found["train_weighted"] == pytest.approx(found["official.adj_acc_avg"], abs=1e-6)
        for k, (label, place) in enumerate((y, a) for y in ("landbird", "waterbird") for a in ("land", "water")):
            theirs = found[f"official.acc_y:{label}_background:{place}"]
            assert found["group_accuracy"][k] == pytest.approx(theirs, abs=1e-6)
    chosen = balanced_subset(torch.from_numpy(data.train.g), torch.Generator().manual_seed(0))
    assert len(chosen) == 224


def test_validation_is_halved_by_group_and_the_seed_decides(tmp_path: Path) -> None:
    waterbirds(tmp_path, other=5)
    suite = make("waterbirds", root=str(tmp_path), size=16, n_train=12)
    data, other = suite.load(0), suite.load(1)  # type: ignore[attr-defined]
    assert np.bincount(data.val.g).tolist() == [3, 3, 3, 3]
    assert np.bincount(data.val_groups.g).tolist() == [2, 2, 2, 2]
    assert not set(data.val.ids) & set(data.val_groups.ids)
    assert len(data.train) == 12
    assert set(data.val.ids) != set(other.val.ids)
    assert np.array_equal(data.test["natural"].ids, other.test["natural"].ids)
    for split in (data.train, data.val, data.val_groups, data.test["natural"]):
        assert np.array_equal(split.images[:, 0, 0, 0], split.ids % 256)  # every image is its own row's


def test_check_passes_and_missing_data_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="download=true"):
        make("waterbirds", root=str(tmp_path)).data_hash()  # type: ignore[attr-defined]
    root = waterbirds(tmp_path)
    suite = make("waterbirds", root=str(tmp_path), size=16)
    assert check(suite, 0, Console(quiet=True), 1)  # type: ignore[arg-type]
    (root / "RELEASE_v1.0.txt").unlink()
    with pytest.raises(DataError, match="complete download"):
        make("waterbirds", root=str(tmp_path)).data_hash()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("y", "2", "column y: '2' is not allowed"),
        ("split", "7", "column split: '7' is not allowed"),
        ("place", "", "column place: the cell is empty"),
        ("img_filename", "000.Bird/gone.png", "there is no file"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, column: str, value: str, said: str) -> None:
    root = waterbirds(tmp_path)
    table = pd.read_csv(root / "metadata.csv", dtype=str)
    table.loc[3, column] = value
    table.to_csv(root / "metadata.csv", index=False)
    console = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the test
    assert not check(make("waterbirds", root=str(tmp_path), size=16), 0, console, 1)  # type: ignore[arg-type]
    text = console.export_text()
    assert said in text
    assert "metadata.csv, line 5" in text


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    root = waterbirds(tmp_path)
    pd.read_csv(root / "metadata.csv").drop(columns="place").to_csv(root / "metadata.csv", index=False)
    with pytest.raises(DataError, match="place"):
        make("waterbirds", root=str(tmp_path)).data_hash()  # type: ignore[attr-defined]


def test_celeba_reads_both_tables(tmp_path: Path) -> None:
    root = tmp_path / "celebA_v1.0"
    rows = [(s, y, a) for s in (0, 1, 2) for y in (-1, 1) for a in (-1, 1) for _ in range(3)]
    names = [f"{k:06d}.png" for k in range(len(rows))]
    for k, name in enumerate(names):
        png(root / "img_align_celeba" / name, k)
    attributes = {"Blond_Hair": [r[1] for r in rows], "Male": [r[2] for r in rows], "Young": [1] * len(rows)}
    pd.DataFrame({"image_id": names, **attributes}).to_csv(root / "list_attr_celeba.csv", index=False)
    shares = pd.DataFrame({"image_id": names, "partition": [r[0] for r in rows]})
    shares.to_csv(root / "list_eval_partition.csv", index=False)
    (root / "RELEASE_v1.0.txt").touch()
    data = make("celeba", root=str(tmp_path), size=16).load(0)  # type: ignore[attr-defined]
    assert data.group_names == ("not blond/female", "not blond/male", "blond/female", "blond/male")
    assert np.bincount(data.train.g).tolist() == [3, 3, 3, 3]
    wrong = np.zeros((12, 2), dtype=np.float32)
    wrong[:, 1] = 1
    found = score({"natural": wrong}, data)
    assert found["official.acc_wg"] == found["wga"] == 0
    assert found["official.acc_avg"] == pytest.approx(found["accuracy"])
    shares.iloc[::-1].to_csv(root / "list_eval_partition.csv", index=False)
    with pytest.raises(DataError, match="another line"):
        make("celeba", root=str(tmp_path)).data_hash()  # type: ignore[attr-defined]


def test_camelyon17_tests_on_a_hospital_that_train_lacks(tmp_path: Path) -> None:
    root = tmp_path / "camelyon17_v1.0"
    table = []
    for center in range(5):
        for k in range(8):
            row = {"patient": f"{center:03d}", "node": 0, "x_coord": k, "y_coord": center, "tumor": k % 2}
            row |= {"slide": center, "center": center, "split": int(k >= 4 and center in (0, 3, 4))}
            stem = f"patient_{row['patient']}_node_0"
            png(root / f"patches/{stem}/patch_{stem}_x_{k}_y_{center}.png", 10 * center + k)
            table.append(row)
    pd.DataFrame(table).to_csv(root / "metadata.csv")
    (root / "RELEASE_v1.0.txt").touch()
    data = make("camelyon17", root=str(tmp_path), size=16).load(0)  # type: ignore[attr-defined]
    assert sorted(np.unique(data.train.a)) == [0, 3, 4]
    assert set(data.val.a) == {0, 3, 4}
    assert set(data.val_groups.a) == {1}
    assert set(data.test["natural"].a) == {2}
    found = score({"natural": np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)}, data)
    assert found["official.acc_avg"] == pytest.approx(found["accuracy"])


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="download"):
        make("waterbirds", download="yes")
    with pytest.raises(ConfigError, match="n_test"):
        make("celeba", n_test=0)
    assert parse_spec("camelyon17").name in registry("suites").names()


def test_a_run_trains_on_waterbirds_and_skips_what_is_missing(tmp_path: Path) -> None:
    waterbirds(tmp_path, other=30)
    words = ["methods=[erm,subg,rrr@ground_truth]", "seeds=1", "workers=1", f"results={tmp_path / 'results'}"]
    words += ["recipes.base.epochs=1", "recipes.finetune.steps=2", "alignment.n=8"]
    suites = f"[waterbirds(root={tmp_path},size=16),celeba(root={tmp_path})]"
    config = load_config("quickstart", [*words, f"suites={suites}"])
    run_config(config, Console(quiet=True))
    held = {(record.suite, record.row): record for _, record in records(config)}
    metrics = held["waterbirds-16px", "subg"].tracks["preregistered"].metrics
    assert metrics["wga"] == pytest.approx(metrics["official.acc_wg"], abs=1e-6)
    assert held["waterbirds-16px", "rrr@ground_truth"].status is not Status.DONE
    assert "mask" in held["waterbirds-16px", "rrr@ground_truth"].reason
    assert held["celeba", "erm"].status is Status.SKIPPED
    assert "celebA_v1.0" in held["celeba", "erm"].reason
