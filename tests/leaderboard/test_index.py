"""What is remembered of a results folder: the same cells however they are read, and arrays as numpy reads them."""

import io
import os
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import Fabric

from harness.errors import DataError
from harness.schema import seal
from harness.store import Store
from leaderboard import beside, collect, index
from leaderboard.collect import everything
from leaderboard.npz import Archive

ARRAYS: dict[str, Any] = {
    "floats": np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1),
    "by/columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big endian": np.arange(5, dtype=">i4"),
    "booleans": np.array([True, False, True]),
    "empty": np.zeros((0, 3), np.float64),
    "scalar": np.array(4.5),
    "words": np.array(["left", "right"]),
    "columns": np.array([(1, 2.5)], dtype=[("n", "<i8"), ("x", "<f8")]),
}


def packed(arrays: dict[str, Any], *, compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_are_those_of_numpy(compressed: bool) -> None:
    content = packed(ARRAYS, compressed=compressed)
    archive = Archive(content)
    with np.load(io.BytesIO(content)) as reference:
        assert archive.files == reference.files
        for name in reference.files:
            assert archive[name].dtype == reference[name].dtype
            assert archive[name].shape == reference[name].shape
            np.testing.assert_array_equal(archive[name], reference[name])


def test_later_versions_of_the_format_and_other_compressions_are_read() -> None:
    member, buffer = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array(member, np.arange(3), version=(2, 0))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x.npy", member.getvalue())
    np.testing.assert_array_equal(Archive(buffer.getvalue())["x"], np.arange(3))


def damaged(content: bytes, how: str) -> bytes:
    end = content.index(b"PK\x01\x02")  # the directory at the end
    if how == "cut":
        return content[:end]
    if how == "flipped":
        return content[: end - 20] + bytes([content[end - 20] ^ 1]) + content[end - 19 :]
    if how == "claims less":  # size unpacked, in the directory: what is there is not taken on
        return content[: end + 24] + (5).to_bytes(4, "little") + content[end + 28 :]
    return b""


@pytest.mark.parametrize("how", ["cut", "flipped", "claims less", "nothing"])
@pytest.mark.parametrize("compressed", [True, False])
def test_damage_is_an_error(how: str, compressed: bool) -> None:
    with pytest.raises((zipfile.BadZipFile, zlib.error)):
        Archive(damaged(packed({"x": np.arange(500)}, compressed=compressed), how))["x"]


def test_objects_and_missing_arrays_are_not_read() -> None:
    archive = Archive(packed({"x": np.array([{"a": 1}], dtype=object)}))
    with pytest.raises(ValueError, match="Python objects"):
        archive["x"]
    with pytest.raises(KeyError):
        archive["y"]


@pytest.mark.parametrize("shape", [(-1,), (2, -3)])
def test_a_negative_size_is_damage(shape: tuple[int, ...]) -> None:
    member, buffer = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"shape": shape, "fortran_order": False, "descr": "<i8"})
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", member.getvalue() + bytes(64))
    with pytest.raises(ValueError, match="cannot be"):
        Archive(buffer.getvalue())["x"]


def test_no_more_is_unpacked_than_a_member_claims_to_hold() -> None:
    content = packed({"x": np.zeros(2**24, np.uint8)})
    lying = damaged(content, "claims less")
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile):
            Archive(lying)["x"]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_encrypted_member_is_told() -> None:
    content = packed({"x": np.arange(5)})
    place = content.index(b"PK\x01\x02") + 8
    with pytest.raises(RuntimeError, match="encrypted"):
        Archive(content[:place] + bytes([content[place] | 1]) + content[place + 1 :])["x"]


def test_what_cells_share_is_unpacked_once_and_never_in_place_of_something_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"y": np.arange(9), "ids": np.arange(9), "g/a": np.arange(9) % 2, "test/a/0": np.eye(9, dtype=np.float32)}
    good = packed(given)
    monkeypatch.setattr(index, "_groupings", OrderedDict())
    first, again = (index._outcomes(tmp_path, good, [0]) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first[1] is again[1]
    assert first[0][0].all()
    for place in (good.index(b"g/a.npy") + 60, good.index(b"PK\x01\x02") + 8):  # packed bytes; the bit for "encrypted"
        broken = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        with pytest.raises(DataError, match="cannot be read"):
            index._outcomes(tmp_path, broken, [0])
    monkeypatch.setattr(index, "SHARED", 0)
    for k in range(3):
        index._outcomes(tmp_path, packed({**given, "ids": np.arange(9) + k}), [0])
    assert len(index._groupings) == 1


@pytest.fixture
def results(tmp_path: Path) -> Path:
    fabric = Fabric(tmp_path, n=60, seeds=(0, 1, 2))
    fabric.row("erm", 0.4, block="reference")
    fabric.row("rwg", 0.6)
    return tmp_path


def read(root: Path) -> tuple[Any, ...]:
    found = everything(root)
    outcomes = [[a.tolist() for a in e.store.outcomes(e.folder, 0) or ()] for e in found.entries if e.store]
    return [e.record for e in found.entries], outcomes, found.warnings


@pytest.mark.skipif(sys.platform != "linux", reason="cells are read by forked processes on Linux only")
def test_cells_read_beside_each_other_are_the_same_cells(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(results.glob("cells/*/rwg/1-*"))
    (folder / "predictions.npz").write_bytes(b"torn")
    alone = read(results)
    assert len(alone[0]) == 5
    assert "differs from what its record describes" in alone[2][1]
    for module in (beside, index):
        monkeypatch.setattr(module, "PAYS", 2)
    monkeypatch.setattr(index, "PART", 2)
    monkeypatch.setattr(beside, "worker_cores", lambda: 2)
    monkeypatch.setattr(beside.threading, "active_count", lambda: 1)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    here, asked, there = os.getpid(), [], results.parent / f"{results.name}-asked-by-others"

    def noted(self: Store, path: Path, old: Any = Store.read) -> Any:
        if os.getpid() == here:
            asked.append(path)
        else:
            with there.open("a", encoding="utf-8") as file:
                file.write(f"{path.name}\n")
        return old(self, path)

    def until_all_is_read() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and (not there.exists() or there.read_text(encoding="utf-8").count("\n") < 6):
            time.sleep(0.01)

    monkeypatch.setattr(Store, "read", noted)
    monkeypatch.setattr(collect, "_tables", until_all_is_read)
    (results / index.FILE).unlink()
    assert read(results) == alone
    assert asked == [folder]  # the other process was free for all of them; the damaged cell once more, for its reason
    asked.clear()
    assert read(results) == alone  # all that is whole is remembered
    assert len(asked) == 1


@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize("closed", ["rwg", "rwg/1-*"])
def test_a_folder_that_may_not_be_read_is_named(
    results: Path, monkeypatch: pytest.MonkeyPatch, closed: str, entered: bool
) -> None:
    if entered and closed != "rwg":
        pytest.skip("what is known by name may be read")
    folder = next(results.glob(f"cells/*/{closed}"))

    def refusing(call: Any) -> Any:
        def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
            if f"{path}/".startswith(f"{folder}/"):
                raise PermissionError(13, "Permission denied")
            return call(path, *args, **kwargs)

        return refuse

    with monkeypatch.context() as patch:  # a test that runs as root may read everything
        if not entered:
            patch.setattr(index.os, "stat", refusing(os.stat))
        patch.setattr(index.os, "scandir", refusing(os.scandir))
        found = everything(results)
    assert len(found.entries) == (3 if closed == "rwg" else 5)
    assert found.warnings == ("1 damaged records are left out:", f"  {folder} cannot be read: permission denied")
    assert len(everything(results).entries) == 6


def test_a_cell_that_changes_while_it_is_read_is_read_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(results.glob("cells/*/erm/0-*"))
    monkeypatch.setattr(index, "PAYS", 0)
    whole = Store.whole

    def meanwhile(self: Store, path: Path) -> Any:
        found = whole(self, path)
        if path == folder:
            (path / "predictions.npz").write_bytes(b"written by another process")
        return found

    monkeypatch.setattr(Store, "whole", meanwhile)
    found = everything(results)
    assert len(found.entries) == 5
    assert found.warnings[0] == "1 damaged records are left out:"


def test_outcomes_without_a_description_are_taken_as_they_lie(results: Path) -> None:
    folder = next(results.glob("cells/*/erm/0-*"))
    record = Store(results).read(folder).model_copy(update={"predictions_sha256": None})
    (folder / "record.json").write_bytes(seal(record).model_dump_json().encode())
    store = index.IndexedStore(results)
    assert store.outcomes(folder, 0) is not None


def test_ids_that_are_no_numbers_are_damage(results: Path) -> None:
    folder = next(results.glob("cells/*/erm/0-*"))
    with np.load(folder / "predictions.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    content = packed({**arrays, "ids": arrays["ids"].astype(str) + "a"})
    (folder / "predictions.npz").write_bytes(content)
    record = Store(results).read(folder).model_copy(update={"predictions_sha256": sha256(content).hexdigest()})
    (folder / "record.json").write_bytes(seal(record).model_dump_json().encode())
    found = everything(results)
    assert len(found.entries) == 5
    assert "predictions.npz cannot be read" in found.warnings[1]


def test_outcomes_of_a_file_that_cannot_be_read_say_so(results: Path) -> None:
    folder = next(results.glob("cells/*/erm/0-*"))
    (folder / "predictions.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cannot be read .*; delete .* and run `vabench run` again"):
        index.read_outcomes(folder, [0])
    (folder / "predictions.npz").unlink()
    assert index.read_outcomes(folder, [0]) is None
