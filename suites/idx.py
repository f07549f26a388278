"""MNIST-type files: found in the data root, checked, read; downloaded where they are missing.

The data root is `VABENCH_DATA`, by default the user's cache folder. The four files may lie in it, in a folder of it, or
where torchvision puts them (`MNIST/raw`), as .gz or plain.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import socket
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.suite import Int64, UInt8

# Published MD5 of the .gz files. MNIST and Fashion-MNIST use the same file names: only these tell them apart.
FILES = ("t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "train-images-idx3-ubyte")
_MNIST_MD5 = (
    "ec29112dd5afa0611ce80d1b7f02629c",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
)
_FASHION_MD5 = (
    "bb300cfdad3c16e7a12a480ee83cd310",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
)
MD5 = {
    "MNIST": dict(zip(FILES, _MNIST_MD5, strict=True)),
    "FashionMNIST": dict(zip(FILES, _FASHION_MD5, strict=True)),
}
ALIASES = {"mnist": "MNIST", "fashion": "FashionMNIST", "fashionmnist": "FashionMNIST"}
N_TRAIN, N_TEST, SIDE = 60_000, 10_000, 28
Stamp = tuple[tuple[str, int, int], ...]  # (path, size, mtime in ns) of each file, in the order of FILES


@dataclass(frozen=True)
class IdxData:
    """Training images 0..59,999, then the 10,000 test images: uint8 [70000, 28, 28], int64 [70000]; read-only."""

    images: UInt8
    labels: Int64


def data_root() -> Path:
    """`VABENCH_DATA`, or `vabench` in the user's cache folder. Raises DataError where VABENCH_DATA is no folder."""
    if os.environ.get("VABENCH_DATA"):
        root = Path(os.environ["VABENCH_DATA"]).expanduser()
        if not root.is_dir():
            raise DataError(f"VABENCH_DATA is '{root}', which is no folder; correct it, or make the folder first")
        return root
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vabench"


def load(which: str) -> IdxData:
    """The data set `MNIST` or `FashionMNIST`; kept in memory until its files change.

    Raises:
        DataError: the files are missing and cannot be downloaded, or one of them is not what it should be.
    """
    return _read(which, _stamp(locate(which)))


def content_hash(which: str) -> str:
    """sha256 hex digest of the images and labels: the same for .gz and plain files. Raises DataError as `load`."""
    return _digest(which, _stamp(locate(which)))


def locate(which: str) -> tuple[Path, ...]:
    """Paths of the four files in the order of `FILES`, downloaded if they are nowhere in the data root."""
    root = data_root()
    found = _find(which, root)
    if found is None:
        download(which, root)
        found = _find(which, root)
    if found is None:
        raise DataError(f"the {which} files are still not under {root} after their download; {_advice(which, root)}")
    return found


def download(which: str, root: Path) -> None:
    """Let torchvision download a data set into `root` and check its MD5. Raises DataError where that fails."""
    from filelock import FileLock

    timeout = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{which}.lock"):
            if _find(which, root) is None:  # another process may have fetched it meanwhile
                socket.setdefaulttimeout(30)  # a node behind a firewall should say so, not hang
                _torchvision_download(which, root)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision wraps it in a RuntimeError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the {which} files are not under {root} and could not be downloaded ({reason}); {_advice(which, root)}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _torchvision_download(which: str, root: Path) -> None:
    from torchvision import datasets  # the only place in the suites that reaches torch

    getattr(datasets, which)(str(root), download=True)


def _advice(which: str, root: Path) -> str:
    folder = "mnist" if which == "MNIST" else "fashion"
    names = ", ".join(f"{name}.gz" for name in reversed(FILES))
    return f"put {names} into {root / folder}, or set VABENCH_DATA to the folder above them"


def _find(which: str, root: Path) -> tuple[Path, ...] | None:
    for folder in _folders(root):
        paths = [next((p for p in (folder / f"{n}.gz", folder / n) if p.is_file()), None) for n in FILES]
        files = tuple(path for path in paths if path is not None)
        if len(files) == len(FILES) and _belongs(which, folder, files, root):
            return files
    return None


def _folders(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        return
    yield root
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        yield child
        yield child / "raw"


def _belongs(which: str, folder: Path, files: tuple[Path, ...], root: Path) -> bool:
    """A folder's name decides; where it says nothing, any checksum does (a damaged sibling is then reported)."""
    for part in (*reversed(folder.relative_to(root).parts), root.name):
        named = ALIASES.get(re.sub("[^a-z]", "", part.lower()))
        if named is not None:
            return named == which
    pairs = zip(FILES, files, strict=True)
    return any(path.suffix == ".gz" and _md5(path.read_bytes()) == MD5[which][name] for name, path in pairs)


def _stamp(paths: tuple[Path, ...]) -> Stamp:
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


@lru_cache(maxsize=2)
def _read(which: str, stamp: Stamp) -> IdxData:
    parts = {name: _read_checked(which, name, Path(path)) for name, (path, _, _) in zip(FILES, stamp, strict=True)}
    images = np.concatenate([parts["train-images-idx3-ubyte"], parts["t10k-images-idx3-ubyte"]])
    labels = np.concatenate([parts["train-labels-idx1-ubyte"], parts["t10k-labels-idx1-ubyte"]]).astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return IdxData(images, labels)


@lru_cache(maxsize=4)
def _digest(which: str, stamp: Stamp) -> str:
    data = _read(which, stamp)
    return hashlib.sha256(data.images.tobytes() + data.labels.astype("<i8").tobytes()).hexdigest()


def _read_checked(which: str, name: str, path: Path) -> npt.NDArray[np.uint8]:
    count = N_TRAIN if name.startswith("train") else N_TEST
    shape = (count, SIDE, SIDE) if "images" in name else (count,)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    if path.suffix == ".gz" and (md5 := _md5(raw)) != MD5[which][name]:
        owner = next((other for other, sums in MD5.items() if md5 in sums.values()), None)
        why = f"it belongs to {owner}" if owner else "it is truncated or corrupted"
        raise DataError(
            f"{path}: the MD5 is {md5}, but that of the published {which} file is {MD5[which][name]}: {why}; "
            f"replace it by the original file"
        )
    array = parse_idx(raw, path)
    if array.shape != shape:
        raise DataError(f"{path} holds an array {array.shape}, but that file of {which} has {shape}; replace it")
    if len(shape) == 1 and array.max() > 9:
        raise DataError(f"{path} holds the label {array.max()}, but {which} has classes 0 to 9; replace it")
    return array


def parse_idx(raw: bytes, path: Path) -> npt.NDArray[np.uint8]:
    """Decode the bytes of an idx file of unsigned bytes (gunzipped first where `path` ends in .gz).

    Raises:
        DataError: not an idx file, or shorter or longer than its header says.
    """
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked ({error}): it is truncated or corrupted; replace it") from error
    dims = raw[3] if len(raw) >= 4 and raw[:3] == b"\x00\x00\x08" else 0
    if not 1 <= dims <= 3 or len(raw) < 4 + 4 * dims:
        raise DataError(f"{path} is not an idx file of bytes (it starts with {raw[:4].hex() or 'nothing'}); replace it")
    shape = tuple(int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(dims))
    body = len(raw) - 4 - 4 * dims
    if body != math.prod(shape):
        raise DataError(
            f"{path} says that it holds {' x '.join(map(str, shape))} bytes but has {body}: "
            f"it is truncated or corrupted; replace it"
        )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()
