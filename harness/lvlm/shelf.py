"""Recorded answers on disk: append-only JSON lines with checksums, one file per writing process and model."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.lvlm.client import Usage

FORMAT = "vabench answers 1"


@dataclass(frozen=True)
class Entry:
    """A recorded answer. key: `Query.key` of the question. at: when it arrived (Unix seconds)."""

    key: str
    text: str
    usage: Usage
    at: float = field(default_factory=time.time)


def checksum(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of a line's content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_line(content: Mapping[str, Any]) -> bytes:
    """A line with its checksum."""
    return (json.dumps({**content, "sum": checksum(content)}, separators=(",", ":")) + "\n").encode()


def from_line(line: bytes) -> dict[str, Any] | None:
    """A line's content, or None if it is torn, altered or not ours."""
    try:
        content = json.loads(line)
        if not isinstance(content, dict) or content.pop("sum") != checksum(content):
            return None
    except (ValueError, KeyError, RecursionError):
        return None
    return content


@dataclass
class _File:
    """How far a file has been read."""

    offset: int = 0  # bytes up to the last whole line
    size: int = 0
    damaged: int = 0


class Shelf:
    """The recording in one folder: an index in memory that grows with the files, and this process's own file.

    Get it from `shelf_of`, so that all clients of a process share it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.identities: list[dict[str, Any]] = []
        self._entries: dict[str, Entry] = {}
        self._files: dict[str, _File] = {}
        self._own: dict[str, Path] = {}  # identity -> file of this process
        self._process = os.getpid()
        self._lock = threading.RLock()

    @property
    def damaged(self) -> int:
        """Lines ignored so far; a last line without its end counts (its writer died, or is writing right now)."""
        return sum(file.damaged + (file.size > file.offset) for file in self._files.values())

    def get(self, key: str) -> Entry | None:
        """The answer to a question, or None. Of several that processes recorded at once, the earliest."""
        return self._entries.get(key)

    def refresh(self) -> Shelf:
        """Read what files have gained since the last time; start over if one shrank or went."""
        with self._lock:
            try:
                sizes = {file.name: file.stat().st_size for file in sorted(self.folder.glob("*.jsonl"))}
            except OSError as error:
                raise DataError(f"cannot read the recording in {self.folder}: {error.strerror or error}") from error
            if any(sizes.get(name, -1) < file.size for name, file in self._files.items()):
                self._entries, self._files, self.identities = {}, {}, []
            for name, size in sizes.items():
                known = self._files.setdefault(name, _File())
                if size > known.size:
                    self._read(self.folder / name, known)
        return self

    def put(self, identity: Mapping[str, Any], entry: Entry) -> None:
        """Write an answer down; it is on the disk when this returns.

        Raises:
            DataError: the folder cannot be written (full, read-only).
        """
        content = {
            "key": entry.key,
            "text": entry.text,
            "usage": entry.usage.as_dict(),
            "at": entry.at,
        }
        with self._lock:
            if os.getpid() != self._process:  # a forked child has its parent's index, but a file of its own
                self._process, self._own = os.getpid(), {}
            name = checksum(identity)
            try:
                path = self._own.get(name)
                if path is None or not self._is_whole(path):
                    path = self._own[name] = self._begin(identity)
                _append(path, to_line(content))
            except OSError as error:
                self._own.pop(name, None)  # its last line may be torn: go on in a new file
                raise DataError(
                    f"cannot write the recording in {self.folder}: {error.strerror or error}; answers so far are safe, "
                    f"free space or choose another folder, then run the same command again"
                ) from error
            self._read(path, self._files.setdefault(path.name, _File()))  # index what the disk holds, nothing else

    def _is_whole(self, path: Path) -> bool:
        """True if the file is as this process left it: a line after a torn one would be lost with it."""
        known = self._files.get(path.name, _File())
        return path.exists() and path.stat().st_size == known.offset

    def _begin(self, identity: Mapping[str, Any]) -> Path:
        """A new file whose first line says whose answers follow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{checksum(identity)[:8]}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        with open(path, "xb"):
            pass
        _append(path, to_line({"format": FORMAT, "identity": dict(identity)}))
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the file's name, too, survives a power cut
        finally:
            os.close(folder)
        return path

    def _read(self, path: Path, known: _File) -> None:
        try:
            with open(path, "rb") as file:
                file.seek(known.offset)
                content = file.read()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        whole = content.rfind(b"\n") + 1
        for line in content[:whole].splitlines():
            known.damaged += not self._take(from_line(line))
        known.size = known.offset + len(content)
        known.offset += whole

    def _take(self, content: Mapping[str, Any] | None) -> bool:
        """Index a line; False if it is none of ours."""
        if content is None:
            return False
        if content.get("format") == FORMAT and isinstance(content.get("identity"), dict):
            if content["identity"] not in self.identities:
                self.identities.append(content["identity"])
            return True
        try:
            key, text, at = content["key"], content["text"], float(content["at"])
            usage = Usage(**content["usage"])
        except (KeyError, TypeError, ValueError):
            return False
        self._keep(Entry(str(key), str(text), usage, at))
        return True

    def _keep(self, entry: Entry) -> None:
        held = self._entries.get(entry.key)
        if held is None or (entry.at, entry.text) < (held.at, held.text):
            self._entries[entry.key] = entry


def _append(path: Path, line: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(handle, line) != len(line):
            raise OSError("the disk is full")
        os.fsync(handle)
    finally:
        os.close(handle)


def shelf_of(folder: Path) -> Shelf:
    """The process's one shelf of a folder."""
    return _shelf(folder.resolve())


@cache
def _shelf(folder: Path) -> Shelf:
    return Shelf(folder)
