"""What a suite on image files declares for `vabench data check | prepare | describe`: its files, sizes and manifest."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import DataError, first_line
from harness.suite import Suite
from suites.image_cache import CacheRequest, Prepared, file_digests, prepare
from suites.tables import Faults, check_disjoint


@dataclass(frozen=True)
class ManifestPart:
    """A published part of a data set. files: glob below the root; count, sha256: of the copy that was checked."""

    files: str
    licence: str
    count: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """Where a data set comes from. get: one sentence that tells how to get it."""

    title: str
    get: str
    citation: str
    mirrors: tuple[str, ...]
    parts: tuple[ManifestPart, ...]


class ImageSuite(Suite):
    """Base of the suites that read image files. A subclass gives the table, the requests and `load`."""

    @property
    @abstractmethod
    def root(self) -> Path:
        """Folder of the data set."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """Source, licence and checksums of the layout in use."""

    @abstractmethod
    def inspect(self, faults: Faults) -> None:
        """Read the tables and note everything that is wrong in them. Raises DataError where nothing can be read."""

    @abstractmethod
    def requests(self) -> Mapping[str, CacheRequest]:
        """The files that `load` needs, by kind, in the sizes that it needs."""

    @abstractmethod
    def survey_requests(self, faults: Faults) -> Mapping[str, CacheRequest]:
        """As `requests`, of the files that can be found although the tables have faults."""

    @abstractmethod
    def table_files(self) -> list[Path]:
        """The tables that `load` reads."""

    def data_hash(self) -> str:
        """sha256 over the bytes of all tables and images. Raises DataError that tells how to get what is missing."""
        self.require_root()
        paths = sorted({*self.table_files(), *(p for r in self.requests().values() for p in r.paths())})
        lines = [f"{digest} {path.name}" for digest, path in zip(file_digests(paths), paths, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def repairs(self) -> list[str]:
        """Sentences on what `load` repairs by a stated rule, beyond decoding, with how often."""
        return []

    def require_root(self) -> None:
        """Raise DataError with the manifest's sentence where the data set is not there."""
        if not self.root.is_dir():
            raise DataError(f"{self.manifest().title} is not at {self.root}: {self.manifest().get}")

    def prepared(self, kind: str) -> Prepared:
        """A request's array, from the cache or made now (in this process: `vabench data prepare` uses all cores)."""
        return prepare(self.requests()[kind])


def check_contents(rows: Sequence[tuple[str, Path, str]], faults: Faults) -> None:
    """A fault for every image whose bytes lie in two splits. rows: (where, file, split); missing files are ignored."""
    there = [row for row in rows if row[1].is_file()]
    digests = file_digests([path for _, path, _ in there])
    named = [(f"{where} ({path.name})", split) for where, path, split in there]
    check_disjoint(
        [(where, digest[:16], split) for (where, split), digest in zip(named, digests, strict=True)],
        "image content (sha256)",
        faults,
    )


def read_manifest(path: Path, name: str) -> Manifest:
    """The entry `name` of a manifest file.

    Raises:
        DataError: no such entry, or a field is missing.
    """
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"the manifest {path} cannot be read: {first_line(error)}") from error
    try:
        entry = values[name]
        parts = tuple(ManifestPart(**part) for part in entry["parts"])
        return Manifest(entry["title"], entry["get"], entry["citation"], tuple(entry["mirrors"]), parts)
    except (KeyError, TypeError) as error:
        raise DataError(f"the manifest {path} has no complete entry '{name}' ({error})") from error


def part_digest(root: Path, files: str) -> tuple[int, str]:
    """Number of files of a part, and sha256 over `<sha256>  <path below root>` lines sorted by path."""
    paths = sorted(path for path in root.glob(files) if path.is_file())
    lines = [
        f"{digest}  {path.relative_to(root).as_posix()}\n"
        for digest, path in zip(file_digests(paths), paths, strict=True)
    ]
    return len(paths), hashlib.sha256("".join(lines).encode()).hexdigest()
