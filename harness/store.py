"""Records and shared stages on disk: written whole or not at all, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from pydantic import ValidationError

from harness.errors import DataError, first_line
from harness.record import Record
from harness.schema import read_record, seal

if TYPE_CHECKING:
    from torch import Tensor

Arrays = Mapping[str, np.ndarray[Any, Any]]


os.umask(_UMASK := os.umask(0o022))  # there is no other way to read it


def slug(text: str) -> str:
    """A folder name for a row's label; the label itself stands in the record. Never empty, and never a way up."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("_").lstrip(".")[:80] or "_"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    Raises:
        DataError: the folder cannot be written (full, read-only).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # mkstemp's files are private; a page is for others too
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
            _settle(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; finished cells are safe, free space or choose "
            f"another folder with results=..., then run the same command again"
        ) from error


def _settle(folder: Path) -> None:
    """Make a rename outlive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _npz(arrays: Arrays) -> bytes:
    """An npz file. Logits are noise to a packer, which takes a tenth of a cell's time to save a fourteenth of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            array = np.asanyarray(arrays[name])
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980: equal arrays make equal files
            member.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


class Store:
    """The results folder: `cells/<suite>/<row>/<seed>-<id>/record.json` and `stages/`."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def folder(self, suite: str, row: str, seed: int, identity: str) -> Path:
        """Folder of one cell."""
        return self.root / "cells" / slug(suite) / slug(row) / f"{seed}-{identity[:12]}"

    def write(self, record: Record, arrays: Arrays) -> None:
        """Store a cell. The record is written last: its presence says that the cell is complete."""
        folder = self.folder(record.suite, record.row, record.seed, record.id)
        if arrays:
            content = _npz(arrays)
            record = record.model_copy(update={"predictions_sha256": hashlib.sha256(content).hexdigest()})
            write_bytes(folder / "predictions.npz", content)
        write_bytes(folder / "record.json", (seal(record).model_dump_json(indent=1) + "\n").encode())

    def read(self, folder: Path) -> Record:
        """Read a cell's record.

        Raises:
            DataError: it is missing, torn, or does not fit the schema.
        """
        path = folder / "record.json"
        try:
            return read_record(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"there is no record in {folder}") from None
        except (ValidationError, ValueError, OSError) as error:
            first = first_line(error)
            raise DataError(f"the record {path} is damaged or of another schema ({first})") from error

    def predictions(self, folder: Path, record: Record) -> dict[str, np.ndarray[Any, Any]]:
        """The stored logits of a cell, checked against the record's checksum.

        Raises:
            DataError: the file is missing or is not the one that the record describes.
        """
        path = folder / "predictions.npz"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != record.predictions_sha256:
            raise DataError(f"{path} differs from what its record describes; delete the folder and run the cell again")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # a zip file can break in many ways
            raise DataError(f"{path} cannot be read ({first_line(error)}); delete the folder and run again") from error

    def intact(self, folder: Path) -> tuple[Record | None, str]:
        """The record if the cell is complete and undamaged, else None and the reason ('' if there is nothing)."""
        record, problem, _ = self.whole(folder)
        return record, problem

    def whole(self, folder: Path) -> tuple[Record | None, str, bytes | None]:
        """As `intact`, and the content of the cell's predictions, None where its record has none."""
        if not (folder / "record.json").exists():
            return None, "", None
        try:
            record = self.read(folder)
            held = record.predictions_sha256
            return record, "", None if held is None else self._verified(folder, held)
        except DataError as error:
            return None, str(error), None

    def records(self) -> Iterator[tuple[Path, Record | DataError]]:
        """Every stored cell, damaged ones as the error."""
        for path in sorted(self.root.glob("cells/*/*/*/record.json")):
            try:
                yield path.parent, self.read(path.parent)
            except DataError as error:
                yield path.parent, error

    def siblings(self, suite: str, row: str, seed: int) -> list[Path]:
        """Folders of any identity at one address (suite, row, seed)."""
        return sorted((self.root / "cells" / slug(suite) / slug(row)).glob(f"{seed}-*"))

    def set_aside(self, folder: Path, reason: str) -> None:
        """Rename a damaged record so that it is kept, and the cell counts as missing."""
        for name in ("record.json", "predictions.npz"):
            if (folder / name).exists():
                os.replace(folder / name, folder / f"{name}.damaged")
        write_bytes(folder / "damage.txt", (reason + "\n").encode())

    def stage(
        self, kind: str, key: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        """Tensors and facts of a shared stage, made once: other processes wait for the first and read its result.

        Args:
            kind: e.g. `base`. key: hex identity of everything that the stage depends on.
            make: returns tensors (contiguous, on the CPU) and JSON-serialisable facts.

        Returns:
            tensors, facts, and whether this call made them.
        """
        from safetensors.torch import save

        path = self.root / "stages" / f"{kind}-{key[:20]}.safetensors"
        held = self._read_stage(path)
        if held is not None:
            return *held, False
        with self._lock(path):
            held = self._read_stage(path)
            if held is not None:
                return *held, False
            self._set_stage_aside(path)
            tensors, facts = make()
            tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            content = save(tensors, {"facts": json.dumps(facts)})
            write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            return tensors, facts, True

    @staticmethod
    def _lock(path: Path) -> FileLock:
        """A lock that the kernel frees when its holder dies."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".lock").touch()
        except OSError as error:
            raise DataError(f"cannot write into {path.parent}: {error.strerror or error}") from error
        return FileLock(path.with_suffix(".lock"))

    @staticmethod
    def _verified(folder: Path, expected: str) -> bytes:
        try:
            content = (folder / "predictions.npz").read_bytes()
        except OSError as error:
            raise DataError(f"{folder / 'predictions.npz'} is missing or unreadable ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(f"{folder / 'predictions.npz'} differs from what its record describes")
        return content

    @staticmethod
    def _set_stage_aside(path: Path) -> None:
        """Keep a damaged stage under another name, with a note, before it is made again."""
        with contextlib.suppress(OSError):  # nothing there, or a disk that takes no files: writing the stage says so
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            note = "its content does not fit its checksum; it was made again\n"
            write_bytes(path.with_name(f"{path.name}.damage.txt"), note.encode())

    @staticmethod
    def _read_stage(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A stage from disk; None where it is missing or damaged (it is then made again)."""
        from safetensors.torch import load

        try:
            digest, _, content = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest().encode() != digest:
            return None
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return load(content), json.loads(header["__metadata__"]["facts"])
