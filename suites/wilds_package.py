"""The `wilds` package, imported without its call home and without torch_scatter, which it uses undeclared."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

_REDUCE = {"sum": "sum", "add": "sum", "mean": "mean", "min": "amin", "max": "amax"}


def _scatter(src: Any, index: Any, dim: int = -1, out: Any = None, dim_size: int | None = None, reduce: str = "sum"):  # type: ignore[no-untyped-def]
    """What wilds asks of torch_scatter: reduce the entries of a vector by their index. Empty places hold 0."""
    size = int(dim_size if dim_size is not None else index.max() + 1)
    return src.new_zeros(size).scatter_reduce(0, index, src, _REDUCE[reduce], include_self=False)


def prepare_import() -> None:
    """Make `import wilds` safe; call it before the import.

    `outdated` asks the package index for a newer release at import: a None in its place lets wilds go on without.
    """
    sys.modules.setdefault("outdated", None)  # type: ignore[arg-type]
    if "torch_scatter" in sys.modules or importlib.util.find_spec("torch_scatter") is not None:
        return
    module = types.ModuleType("torch_scatter")
    module.scatter = _scatter  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("torch_scatter", None)
    sys.modules["torch_scatter"] = module


def wilds_module(name: str) -> Any:
    """A module of the package, e.g. `datasets.waterbirds_dataset`."""
    prepare_import()
    return importlib.import_module(f"wilds.{name}")
