import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import DataError
from harness.record import Record, Status
from harness.store import Store, write_bytes


def record(seed: int = 0, identity: str = "ab" * 32) -> Record:
    return Record(
        id=identity,
        status=Status.DONE,
        suite="suite-rho1",
        suite_source="synthetic",
        row="rrr(lam=1)@inverted(of=oracle)",
        method="rrr(lam=1)",
        mask_source="inverted(of=oracle)",
        block="control",
        model="mlp",
        seed=seed,
        config={},
        identity={},
    )


def test_round_trip_and_checksum(tmp_path: Path) -> None:
    store, arrays = Store(tmp_path), {"test/a/0": np.arange(6, dtype=np.float32).reshape(2, 3)}
    store.write(record(), arrays)
    ((folder, held),) = list(store.records())
    assert isinstance(held, Record)
    assert np.array_equal(store.predictions(folder, held)["test/a/0"], arrays["test/a/0"])
    file = folder / "predictions.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert store.intact(folder)[0] is None
    with pytest.raises(DataError, match="differs"):
        store.predictions(folder, held)


def test_equal_arrays_make_equal_files_and_only_what_shrinks_is_packed(tmp_path: Path) -> None:
    arrays = {
        "test/a/0": np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32).T,
        "g/a": np.zeros(500, dtype=np.int64),
        "masks/packed": np.ones((9, 4), dtype=np.uint8),
        "names": np.array(["a", "bcd"]),
    }
    files = []
    for name in ("one", "two"):
        Store(tmp_path / name).write(record(), arrays)
        ((folder, held),) = list(Store(tmp_path / name).records())
        assert isinstance(held, Record)
        found = Store(tmp_path / name).predictions(folder, held)
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in arrays.items())
        files.append(folder / "predictions.npz")
    assert files[0].read_bytes() == files[1].read_bytes()
    with zipfile.ZipFile(files[0]) as archive:
        stored = {info.filename for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED}
        assert stored == {"test/a/0.npy"}
        assert archive.getinfo("g/a.npy").compress_size < 200


@pytest.mark.parametrize("damage", ["", "{", '{"schema_version": 1}', "not json \x00"])
def test_damaged_records_are_told_apart_from_missing_ones(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.write(record(), {})
    ((folder, _),) = list(store.records())
    (folder / "record.json").write_text(damage, encoding="utf-8")
    held, why = store.intact(folder)
    assert held is None
    assert "damaged" in why
    store.set_aside(folder, why)
    assert store.intact(folder) == (None, "")
    assert (folder / "record.json.damaged").read_text(encoding="utf-8") == damage


def test_a_digit_changed_by_hand_or_by_a_bad_disk_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(record(seed=3), {})
    ((folder, _),) = list(store.records())
    text = (folder / "record.json").read_text(encoding="utf-8")
    (folder / "record.json").write_text(text.replace('"seed": 3', '"seed": 4'), encoding="utf-8")
    held, why = store.intact(folder)
    assert held is None
    assert "seal" in why


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_bytes(file, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DataError, match="No space left"):
        write_bytes(file, b"fresh")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_stages_are_made_once_and_remade_when_damaged(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def make() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        calls.append(1)
        return {"w": torch.arange(4.0)}, {"seconds": 1.5}

    first = store.stage("base", "k" * 64, make)
    second = store.stage("base", "k" * 64, make)
    assert (first[2], second[2], len(calls)) == (True, False, 1)
    assert torch.equal(first[0]["w"], second[0]["w"])
    assert second[1] == {"seconds": 1.5}
    (file,) = tmp_path.glob("stages/*.safetensors")
    torn = file.read_bytes()[:-3]
    file.write_bytes(torn)
    assert store.stage("base", "k" * 64, make)[2]
    assert len(calls) == 2
    assert file.with_name(f"{file.name}.damaged").read_bytes() == torn
    assert "does not fit its checksum" in file.with_name(f"{file.name}.damage.txt").read_text()
