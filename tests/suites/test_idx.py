"""MNIST-type files: where they are found, how damage and absence are reported."""

import gzip
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from harness.errors import DataError
from suites import idx
from suites.decoy import DecoyMNIST


def packed(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Write a data set of six training and three test images into a folder of the data root."""
    monkeypatch.setenv("VABENCH_DATA", str(tmp_path))
    monkeypatch.setattr(idx, "N_TRAIN", 6)
    monkeypatch.setattr(idx, "N_TEST", 3)

    def no_network(which: str, root: Path) -> None:
        raise URLError("name resolution failed")

    monkeypatch.setattr(idx, "_torchvision_download", no_network)
    contents = {}
    for which, first in (("MNIST", 1), ("FashionMNIST", 2)):
        for name in idx.FILES:
            n = 6 if name.startswith("train") else 3
            array = np.full((n, 28, 28) if "images" in name else (n,), first)
            contents[which, name] = gzip.compress(packed(array), mtime=0)
        sums = {name: idx._md5(contents[which, name]) for name in idx.FILES}
        monkeypatch.setitem(idx.MD5, which, sums)

    def write(folder: str, which: str = "MNIST", plain: bool = False) -> Path:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        for name in idx.FILES:
            raw = contents[which, name]
            (target / (name if plain else f"{name}.gz")).write_bytes(gzip.decompress(raw) if plain else raw)
        return target

    return write


def test_checksums_are_the_published_ones() -> None:
    from torchvision import datasets

    for which, sums in idx.MD5.items():
        assert {f"{name}.gz": md5 for name, md5 in sums.items()} == dict(getattr(datasets, which).resources)


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw", "anything"])
def test_packed_files_are_found(tiny: Callable[..., Path], folder: str) -> None:
    tiny(folder)
    data = idx.load("MNIST")
    assert data.images.shape == (9, 28, 28)
    assert data.labels.tolist() == [1] * 9


def test_plain_files_are_found_in_a_named_folder_and_hash_alike(tiny: Callable[..., Path]) -> None:
    folder = tiny("mnist", plain=True)
    plain = idx.content_hash("MNIST")
    for file in folder.iterdir():
        file.unlink()
    tiny("MNIST/raw")
    assert idx.content_hash("MNIST") == plain


@pytest.mark.parametrize("folders", [("mnist", "fashion"), ("MNIST/raw", "FashionMNIST/raw"), ("b", "a")])
def test_fashion_and_mnist_are_told_apart(tiny: Callable[..., Path], folders: tuple[str, str]) -> None:
    tiny(folders[0], "MNIST")
    tiny(folders[1], "FashionMNIST")
    assert set(idx.load("MNIST").labels) == {1}
    assert set(idx.load("FashionMNIST").labels) == {2}


def test_wrong_set_in_a_named_folder(tiny: Callable[..., Path]) -> None:
    tiny("mnist", "FashionMNIST")
    with pytest.raises(DataError, match="it belongs to FashionMNIST"):
        idx.load("MNIST")


@pytest.mark.parametrize("folder", ["mnist", "anything"])
def test_damaged_packed_file_is_named(tiny: Callable[..., Path], folder: str) -> None:
    path = tiny(folder) / "train-images-idx3-ubyte.gz"
    idx.load("MNIST")  # what is in memory must not hide the damage
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: the MD5 is .*truncated or corrupted; replace"):
        DecoyMNIST().load(0)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz"):
        DecoyMNIST().data_hash()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "6 x 28 x 28 bytes but has 4703: it is truncated or corrupted"),
        (lambda raw: raw + b"x", "but has 4705"),
        (lambda raw: b"<html>not found</html>", "not an idx file of bytes .it starts with 3c68746d"),
        (lambda raw: b"", "starts with nothing"),
        (lambda raw: packed(np.zeros((5, 28, 28))), r"holds an array \(5, 28, 28\)"),
    ],
)
def test_damaged_plain_file_is_named(tiny: Callable[..., Path], damage: Callable[[bytes], bytes], message: str) -> None:
    path = tiny("mnist", plain=True) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        idx.load("MNIST")
    assert str(path) in str(caught.value)


def test_labels_beyond_nine_are_refused(tiny: Callable[..., Path]) -> None:
    path = tiny("mnist", plain=True) / "t10k-labels-idx1-ubyte"
    path.write_bytes(packed(np.array([1, 2, 10])))
    with pytest.raises(DataError, match="label 10"):
        idx.load("MNIST")


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    raw = gzip.compress(packed(np.zeros(100)))
    with pytest.raises(DataError, match=r"x.gz cannot be unpacked .*truncated or corrupted"):
        idx.parse_idx(raw[:-5], tmp_path / "x.gz")


def test_missing_files_without_network(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        DecoyMNIST().data_hash()
    message = str(caught.value)
    assert "name resolution failed" in message
    assert "put train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, " in message
    assert str(tmp_path / "mnist") in message
    assert "VABENCH_DATA" in message
    assert "\n" not in message


def test_a_mistyped_data_folder_is_said_and_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VABENCH_DATA", str(tmp_path / "dta"))
    with pytest.raises(DataError, match=r"VABENCH_DATA is '.*dta', which is no folder"):
        idx.load("MNIST")
    assert not (tmp_path / "dta").exists()


def test_download_fills_the_root(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(idx, "_torchvision_download", lambda which, root: tiny(f"{which}/raw", which) and None)
    assert set(idx.load("FashionMNIST").labels) == {2}
    assert (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").is_file()


def test_download_that_brings_nothing(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_torchvision_download", lambda which, root: None)
    with pytest.raises(DataError, match="still not under"):
        idx.load("MNIST")


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VABENCH_DATA", str(tmp_path))
    assert idx.data_root() == tmp_path
    monkeypatch.delenv("VABENCH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert idx.data_root() == tmp_path / "cache" / "vabench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert idx.data_root() == Path.home() / ".cache" / "vabench"
