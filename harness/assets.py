"""Hashes of the files that decide what a component answers (weights, wording, a person's verdicts): for identities."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import ComponentError, ConfigError
from harness.registry import registry
from harness.spec import Spec, parse_spec

WHOLE = 64 * 2**20  # larger files are known by their size, their first and their last MiB
EDGE = 2**20
NESTED = ("of", "client")  # parameters that hold another component's spec: one of the same kind, or a client


def path_hash(path: str | Path) -> str:
    """sha256 over the names and contents of a file, or of all files of a folder (hidden ones left out).

    Raises:
        ConfigError: there is nothing at this path, or it cannot be read.
    """
    root = Path(path)
    if not root.exists():
        raise ConfigError(f"there is no file or folder '{path}'")
    members = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    total = hashlib.sha256()
    for member in members:
        name = member.relative_to(root).as_posix() if root.is_dir() else ""
        if any(part.startswith(".") or part == "__pycache__" for part in name.split("/")) and name:
            continue
        stat = member.stat()
        try:
            total.update(f"{name}\0{_content(str(member), stat.st_size, stat.st_mtime_ns)}\n".encode())
        except OSError as error:
            raise ConfigError(f"cannot read '{member}': {error.strerror}") from error
    return total.hexdigest()


@cache
def _content(path: str, size: int, mtime: int) -> str:
    """Hash of one file; `mtime` makes the cache forget a file that was written again."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            digest.update(str(size).encode() + file.read(EDGE))
            file.seek(-EDGE, 2)
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def packaged(reference: str) -> Path:
    """Path of a component's own data: `package:relative/path`, found without importing the package.

    Raises:
        ComponentError: the package is not installed, or has no such file.
    """
    package, _, relative = reference.partition(":")
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *rest, relative)
        if path.exists():
            return path
    raise ComponentError(f"the file {reference} is missing from its package; install it again")


def component_files(kind: str, spec: Spec) -> dict[str, str]:
    """Hashes of all files that a component and those inside its parameters read: label -> sha256."""
    info = registry(kind).info(spec.name)
    found = {reference: path_hash(packaged(reference)) for reference in getattr(info, "files", ())}
    for name in getattr(info, "file_params", ()):
        value = spec.params.get(name)
        if isinstance(value, str) and Path(value).exists():  # a hub id is no file: its name is its identity
            found[f"{spec.name}.{name}"] = path_hash(value)
    for name in NESTED:
        inner: Any = spec.params.get(name)
        if inner is not None:
            found |= component_files("clients" if name == "client" else kind, parse_spec(inner))
    return dict(sorted(found.items()))
