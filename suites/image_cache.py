"""Images decoded and resized once: a memory-mapped uint8 array per request under the user's cache folder.

An entry is keyed by the content of its source files and by the geometry, so a changed file or size makes a new one.
Preparing can be stopped at any time and goes on where it was; a finished entry appears by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.suite import UInt8
from suites import decode
from suites.tables import SHOWN

CHUNK = 16  # files of one task
Progress = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True)
class Geometry:
    """What every file becomes. mode `mask`: the share of a pixel that the mask covers, 0..255.

    fit: `squash` the whole frame onto height x width, or keep the aspect and `pad` with black on both sides.
    """

    height: int
    width: int
    mode: Literal["RGB", "L", "mask"] = "RGB"
    fit: Literal["squash", "pad"] = "squash"

    @property
    def channels(self) -> int:
        """3 for RGB, else 1."""
        return 3 if self.mode == "RGB" else 1


@dataclass(frozen=True)
class CacheItem:
    """One file. like: the image whose size a mask must have (None: any size, it covers the frame)."""

    path: Path
    like: Path | None = None


@dataclass(frozen=True)
class CacheRequest:
    """Files of one kind, in the order of the array's rows. title: what a person calls them, e.g. `isic images`."""

    title: str
    items: tuple[CacheItem, ...]
    geometry: Geometry

    def paths(self) -> list[Path]:
        """The files, in order."""
        return [item.path for item in self.items]


@dataclass(frozen=True)
class Prepared:
    """A finished entry. pixels: uint8 [N, H, W, C], memory-mapped, read-only; repairs: how often each was made."""

    pixels: npt.NDArray[np.uint8]
    repairs: dict[str, int]
    folder: Path
    seconds: float


@dataclass(frozen=True)
class Survey:
    """What decoding every file showed. errors: one sentence per file that cannot be used; repaired: files by repair."""

    errors: tuple[str, ...]
    repaired: dict[str, tuple[str, ...]]


def cache_root() -> Path:
    """`VABENCH_CACHE`, or `vabench` in the user's cache folder."""
    if os.environ.get("VABENCH_CACHE"):
        return Path(os.environ["VABENCH_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vabench"


# -- content of the sources -------------------------------------------------------------------------------------------


def file_digests(paths: Sequence[Path]) -> list[str]:
    """sha256 of every file; remembered in the cache folder by path, size and modification time.

    Raises:
        DataError: a file is missing.
    """
    memo_file = cache_root() / "digests" / f"{_digest(str(_common(paths)))[:20]}.json"
    memo: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        memo = json.loads(memo_file.read_text(encoding="utf-8"))
    found, changed = [], False
    for path in paths:
        try:
            stat = path.stat()
            held = memo.get(str(path), [0, 0, ""])
            if held[:2] != [stat.st_size, stat.st_mtime_ns]:
                with open(path, "rb") as file:
                    held = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
                memo[str(path)], changed = held, True
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); put it back, or drop its row") from error
        found.append(str(held[2]))
    if changed:
        with contextlib.suppress(OSError):  # a memo that cannot be kept costs time, nothing else
            _write_atomically(memo_file, json.dumps(memo))
    return found


def request_key(request: CacheRequest, digests: Sequence[str]) -> str:
    """Identity of an entry: file contents in order, geometry, and the decoder's version."""
    parts = [asdict(request.geometry), decode.VERSION, list(digests), [item.like is not None for item in request.items]]
    return _digest(json.dumps(parts))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _common(paths: Sequence[Path]) -> str:
    return os.path.commonpath([str(path.parent) for path in paths]) if paths else ""


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# -- one file ---------------------------------------------------------------------------------------------------------


def render(item: CacheItem, geometry: Geometry) -> tuple[UInt8, tuple[str, ...]]:
    """A file in the geometry, uint8 [H, W, C], with its repairs. Raises DataError."""
    from PIL import Image

    if geometry.mode == "mask":
        size = decode.image_size(item.like) if item.like is not None else None
        mask, repairs = decode.read_mask(item.path, size)
        image, filter_ = Image.fromarray(mask.astype(np.uint8) * 255), Image.Resampling.BOX
    else:
        decoded = decode.read_image(item.path, geometry.mode)
        image, repairs, filter_ = Image.fromarray(decoded.pixels), decoded.repairs, Image.Resampling.BILINEAR
    target = (geometry.width, geometry.height)
    if geometry.fit == "pad":
        scale = min(geometry.width / image.width, geometry.height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        padded = Image.new(image.mode, target)
        corner = ((geometry.width - inner[0]) // 2, (geometry.height - inner[1]) // 2)
        padded.paste(image if image.size == inner else image.resize(inner, filter_), corner)
        image = padded
    elif image.size != target:
        image = image.resize(target, filter_)
    return np.asarray(image).reshape(geometry.height, geometry.width, geometry.channels), repairs


def _chunk(items: Sequence[tuple[int, CacheItem]], geometry: Geometry, target: str) -> list[tuple[int, list[str], str]]:
    """Write rows of the array `target` (nothing if it is empty): (row, repairs, error) of each."""
    array = np.lib.format.open_memmap(target, mode="r+") if target else None
    results = []
    for row, item in items:
        try:
            pixels, repairs = render(item, geometry)
        except DataError as error:
            results.append((row, [], str(error)))
            continue
        if array is not None:
            array[row] = pixels
        results.append((row, list(repairs), ""))
    if array is not None:
        array.flush()
    return results


def _work(
    request: CacheRequest, rows: Sequence[int], target: str, workers: int
) -> Iterator[list[tuple[int, list[str], str]]]:
    """Results chunk by chunk, as they arrive. A stop (Ctrl-C) waits for the chunks at work, not for the others."""
    items = [(row, request.items[row]) for row in rows]
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    if workers <= 1 or len(chunks) < 2:
        yield from (_chunk(chunk, request.geometry, target) for chunk in chunks)
        return
    # not forked: a process that has loaded torch holds threads and locks
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        for future in as_completed([pool.submit(_chunk, chunk, request.geometry, target) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# -- requests ---------------------------------------------------------------------------------------------------------


def survey(request: CacheRequest, progress: Progress | None = None, workers: int = 1) -> Survey:
    """Decode every file, keep nothing: all files that cannot be used, and all repairs."""
    present = [row for row, item in enumerate(request.items) if item.path.is_file()]
    errors = {k: f"there is no file {item.path}" for k, item in enumerate(request.items) if not item.path.is_file()}
    repaired: dict[str, list[str]] = {}
    done = 0
    for results in _work(request, present, "", workers):
        for row, repairs, error in results:
            if error:
                errors[row] = error
            for name in repairs:
                repaired.setdefault(name, []).append(request.items[row].path.name)
        done += len(results)
        if progress is not None:
            progress(done, len(present))
    return Survey(
        tuple(errors[row] for row in sorted(errors)), {name: tuple(sorted(held)) for name, held in repaired.items()}
    )


def cached(request: CacheRequest) -> Prepared | None:
    """The finished entry of a request, or None where there is none. Raises DataError where a source file is missing."""
    return _open(_folder(request, file_digests(request.paths())), len(request.items), request.geometry)


def prepare(request: CacheRequest, progress: Progress | None = None, workers: int = 1) -> Prepared:
    """The entry of a request, made now if it is not there. More than one worker needs a guarded script (`__main__`).

    Raises:
        DataError: files that are missing or cannot be used (the others are kept for the next try).
    """
    from filelock import FileLock

    digests = file_digests(request.paths())
    folder = _folder(request, digests)
    held = _open(folder, len(request.items), request.geometry)
    if held is not None:
        return held
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        held = _open(folder, len(request.items), request.geometry)  # another process may have made it meanwhile
        if held is None:
            _make(request, digests, folder, progress, workers)
            held = _open(folder, len(request.items), request.geometry)
    if held is None:
        raise DataError(f"the cache entry {folder} cannot be read after it was written; is the disk full?")
    return held


def _folder(request: CacheRequest, digests: Sequence[str]) -> Path:
    g = request.geometry
    label = "-".join([*request.title.lower().split(), f"{g.width}x{g.height}", request_key(request, digests)[:16]])
    return cache_root() / "images" / label


def _open(folder: Path, rows: int, geometry: Geometry) -> Prepared | None:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        if not _untouched(folder / "pixels.npy", index["array"]):
            return None
        repairs = Counter(name for file in index["files"] for name in file.get("repairs", ()))
        seconds = float(index["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # cut short or damaged: it is made again
        return None
    if pixels.shape != (rows, geometry.height, geometry.width, geometry.channels) or pixels.dtype != np.uint8:
        return None
    return Prepared(pixels, dict(sorted(repairs.items())), folder, seconds)


def _seal(path: Path) -> dict[str, int]:
    """What tells later whether a finished array is still as it was written: size, time of change, checksum."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "crc32": _crc32(path)}


def _untouched(path: Path, seal: dict[str, int]) -> bool:
    """By size and time of change; where only the time differs (a copied cache), by the checksum of the content."""
    stat = path.stat()
    if stat.st_size != seal["bytes"]:
        return False
    return stat.st_mtime_ns == seal["mtime_ns"] or _crc32(path) == seal["crc32"]


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**22):
            value = zlib.crc32(block, value)
    return value


def _make(request: CacheRequest, digests: Sequence[str], folder: Path, progress: Progress | None, workers: int) -> None:
    """Fill the half-made entry beside `folder`, then rename it."""
    partial = folder.with_name(f"{folder.name}.partial")
    done, before = _resume(partial, request)
    todo = [row for row in range(len(request.items)) if row not in done]
    errors: dict[int, str] = {}
    start = time.perf_counter()
    with open(partial / "done.jsonl", "w", encoding="utf-8") as journal:
        journal.writelines(json.dumps([row, repairs]) + "\n" for row, repairs in done.items())  # no line cut short
        journal.flush()
        try:
            for results in _work(request, todo, str(partial / "pixels.npy"), workers):
                for row, repairs, error in results:
                    if error:
                        errors[row] = error
                    else:
                        done[row] = repairs
                        journal.write(json.dumps([row, repairs]) + "\n")
                journal.flush()
                if progress is not None:
                    progress(len(done) + len(errors), len(request.items))
        finally:
            spent = before + time.perf_counter() - start
            (partial / "seconds").write_text(str(spent), encoding="utf-8")
    if errors:
        first = "; ".join(errors[row] for row in sorted(errors)[:SHOWN])
        more = f"; and {len(errors) - SHOWN} more files (`vabench data check` lists all)" if len(errors) > SHOWN else ""
        raise DataError(first + more)
    files = [
        {"name": item.path.name, "sha256": digest, **({"repairs": done[row]} if done[row] else {})}
        for row, (item, digest) in enumerate(zip(request.items, digests, strict=True))
    ]
    with open(partial / "pixels.npy", "rb+") as file:
        os.fsync(file.fileno())
    index = {"decoder": decode.VERSION, "geometry": asdict(request.geometry), "seconds": spent, "files": files}
    index["array"] = _seal(partial / "pixels.npy")
    _write_atomically(partial / "index.json", json.dumps(index))
    shutil.rmtree(folder, ignore_errors=True)  # a damaged entry
    os.replace(partial, folder)


def _resume(partial: Path, request: CacheRequest) -> tuple[dict[int, list[str]], float]:
    """Rows that a stopped run has written (row -> repairs) and its seconds; a fresh array where there is none."""
    g = request.geometry
    shape = (len(request.items), g.height, g.width, g.channels)
    done: dict[int, list[str]] = {}
    try:
        if np.load(partial / "pixels.npy", mmap_mode="r").shape != shape:
            raise ValueError("another shape")
        for line in (partial / "done.jsonl").read_text(encoding="utf-8").splitlines():
            row, repairs = json.loads(line)  # the last line may be cut short: its row is made again
            done[row] = repairs
        return done, float((partial / "seconds").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if done:
            return done, 0.0
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.lib.format.open_memmap(partial / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
    return {}, 0.0


def total_bytes(requests: Iterable[CacheRequest]) -> int:
    """Size of the arrays of some requests, in bytes."""
    return sum(len(r.items) * r.geometry.height * r.geometry.width * r.geometry.channels for r in requests)
