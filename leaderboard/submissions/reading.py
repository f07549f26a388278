"""Reads a stranger's folder or zip: names, sizes and counts first, then no byte beyond what was declared.

Nothing is unpickled and nothing is written; a member's name is a key, never a path that is followed outside.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leaderboard.submissions.faults import (
    MANIFEST,
    MAX_ARRAY,
    MAX_DEPTH,
    MAX_FILES,
    MAX_MANIFEST,
    MAX_RATIO,
    MAX_TOTAL,
    Refused,
    refuse,
)

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")

_TAIL = 22 + 65_535  # the end record and its longest comment
_ENTRY = 46 + 200 + 100  # bytes of one member in the table: fixed part, longest name taken, extra fields


class Members:
    """Names and sizes of a submission's files, all checked; `read` gives their bytes."""

    def __init__(self, path: Path):
        self._zip: zipfile.ZipFile | None = None
        self._root = path
        self._infos: dict[str, zipfile.ZipInfo] = {}
        if path.is_symlink():
            raise refuse(path.name, "is a symbolic link", "give the folder or the zip file itself")
        if path.is_dir():
            self.sizes = self._scan(path)
        elif path.is_file():
            self.sizes = self._open(path)
        else:
            raise refuse(path.name, "is neither a folder nor a zip file", "name what `vabench submit pack` wrote")
        if MANIFEST not in self.sizes:
            raise refuse(path.name, f"holds no {MANIFEST} at its top")
        if self.sizes[MANIFEST] > MAX_MANIFEST:
            raise refuse(MANIFEST, f"has {self.sizes[MANIFEST]:,} bytes, more than {MAX_MANIFEST:,}")
        if sum(self.sizes.values()) > MAX_TOTAL:
            raise refuse(path.name, f"holds more than {MAX_TOTAL:,} bytes", "submit fewer rows at a time")

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def read(self, name: str) -> bytes:
        """Bytes of a member, no more than were declared.

        Raises:
            Refused: it is not there, longer or shorter than declared, or its checksum in the archive is wrong.
        """
        size = self.sizes.get(name)
        if size is None:
            raise refuse(name, "is named in the manifest, but is not there")
        try:
            if self._zip is not None:
                with self._zip.open(self._infos[name]) as file:
                    content = file.read(size + 1)
            else:
                handle = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW)
                with os.fdopen(handle, "rb") as file:
                    content = file.read(size + 1)
        except Exception as error:  # an archive can break in many ways
            raise refuse(name, f"cannot be read ({type(error).__name__}: {error})") from error
        if len(content) != size:
            raise refuse(name, f"holds {'more' if len(content) > size else 'fewer'} bytes than declared ({size:,})")
        return content

    def _open(self, path: Path) -> dict[str, int]:
        _check_directory(path)
        try:
            self._zip = zipfile.ZipFile(path)
            infos = self._zip.infolist()
        except Exception as error:
            raise refuse(path.name, f"is no zip file that can be read ({error})") from error
        if len(infos) > MAX_FILES:
            raise refuse(path.name, f"holds {len(infos):,} members, more than {MAX_FILES:,}")
        sizes: dict[str, int] = {}
        folded: set[str] = set()
        for info in infos:
            name = info.filename
            check_name(name, folded)
            if info.flag_bits & 1:
                raise refuse(name, "is encrypted")
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise refuse(name, "is no regular file (a link or a device)")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise refuse(name, "is compressed in a way that is not read here", "use deflate")
            if info.file_size > MAX_ARRAY:
                raise refuse(name, f"would unpack to {info.file_size:,} bytes, more than {MAX_ARRAY:,}")
            if info.file_size > MAX_RATIO * max(info.compress_size, 1):
                raise refuse(name, f"would unpack to {MAX_RATIO} times its size or more: a zip bomb")
            sizes[name], self._infos[name] = info.file_size, info
        spans = sorted((info.header_offset, info.compress_size) for info in infos)
        if any(a + size > b for (a, size), (b, _) in itertools.pairwise(spans)):
            raise refuse(path.name, "has members that overlap: a zip bomb")
        return sizes

    @staticmethod
    def _scan(root: Path) -> dict[str, int]:
        sizes: dict[str, int] = {}
        folded: set[str] = set()
        waiting = [root]
        while waiting:
            for entry in os.scandir(waiting.pop()):
                name = os.path.relpath(entry.path, root).replace(os.sep, "/")
                check_name(name, folded)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                    continue
                found = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode):
                    raise refuse(name, "is no regular file (a link or a device)")
                if found.st_size > MAX_ARRAY:
                    raise refuse(name, f"has {found.st_size:,} bytes, more than {MAX_ARRAY:,}")
                sizes[name] = found.st_size
                if len(sizes) > MAX_FILES:
                    raise refuse(root.name, f"holds more than {MAX_FILES:,} files")
        return sizes


def _check_directory(path: Path) -> None:
    """Refuse an archive whose table of members is longer than any honest one, before `zipfile` reads all of it."""
    size = path.stat().st_size
    if size > MAX_TOTAL:
        raise refuse(path.name, f"has {size:,} bytes, more than {MAX_TOTAL:,}", "submit fewer rows at a time")
    with path.open("rb") as file:
        file.seek(max(size - _TAIL, 0))
        tail = file.read(_TAIL)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return  # no zip file: `zipfile` says so
    if tail[max(end - 20, 0) : end].startswith(b"PK\x06\x07"):
        raise refuse(path.name, "is a zip64 archive, which no submission needs")
    table = int.from_bytes(tail[end + 12 : end + 16], "little")
    if table > MAX_FILES * _ENTRY:
        raise refuse(path.name, f"has a table of members of {table:,} bytes, enough for more than {MAX_FILES:,}")


def check_name(name: str, held: set[str]) -> None:
    """Refuse a member's name that could mean a place outside, or another member on some file system."""
    shown = ascii(name[:80])
    if not name or len(name) > 200 or not set(name) <= _NAME:
        raise refuse(shown, "is no name for a member: letters, digits, . _ - and / only")
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise refuse(shown, "points outside the submission, or names a folder")
    if name.casefold() in held:
        raise refuse(shown, "is there twice (capitals do not count)")
    held.add(name.casefold())


def read_manifest(members: Members) -> dict[str, Any]:
    """The manifest as plain JSON values, before its schema is checked.

    Raises:
        Refused: not UTF-8, too deep, a key that is there twice, NaN or infinity, or no JSON object.
    """
    try:
        text = members.read(MANIFEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(MANIFEST, f"is not UTF-8 (byte {error.start})") from error
    _check_depth(text)
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise refuse(MANIFEST, f"is no JSON ({str(error)[:200]})") from error
    if not isinstance(found, dict):
        raise refuse(MANIFEST, "must be a JSON object")
    return found


def _check_depth(text: str) -> None:
    depth, inside, escaped = 0, False, False
    for letter in text:
        if inside:
            inside = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise refuse(MANIFEST, f"has brackets more than {MAX_DEPTH} deep")
        elif letter in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        held: set[str] = set()
        twice = next(name for name, _ in pairs if name in held or held.add(name))  # type: ignore[func-returns-value]
        raise refuse(MANIFEST, f"has the key {twice[:80]!a} twice in one object")
    return found


def _constant(word: str) -> Any:
    raise refuse(MANIFEST, f"holds {word}, which is no number in JSON")


def read_array(name: str, content: bytes, kinds: tuple[str, ...], dimensions: int) -> npt.NDArray[Any]:
    """An array from the bytes of a .npy file, its header checked first: dtype, order, shape against the bytes there.

    Args:
        kinds: dtypes that are taken, such as `<f4`. dimensions: of the array.

    Raises:
        Refused: anything else, objects (pickle) above all.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(stream, max_header_size=2_000)
    except Exception as error:  # the header is a stranger's text
        raise refuse(name, f"has no .npy header that can be read ({type(error).__name__})") from error
    if dtype.hasobject:
        raise refuse(name, "holds Python objects, which would have to be unpickled")
    if dtype.str not in kinds:
        raise refuse(name, f"has dtype {dtype.str}, not {' or '.join(kinds)}")
    if fortran:
        raise refuse(name, "is stored in Fortran order", "np.ascontiguousarray, then save")
    if len(shape) != dimensions or any(not isinstance(n, int) or n < 1 for n in shape):
        raise refuse(name, f"has shape {shape}, not {dimensions} positive numbers")
    count, rest = 1, len(content) - stream.tell()
    for n in shape:
        count *= n
    if count * dtype.itemsize != rest:
        raise refuse(name, f"declares shape {shape}, but holds {rest:,} bytes of data")
    return np.frombuffer(content, dtype, count=count, offset=stream.tell()).reshape(shape)
