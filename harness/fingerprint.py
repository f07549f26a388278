"""Fingerprint of the code that can change a result: the sources that a component reaches by import.

Found by reading import statements, without running them, so that `status` needs no torch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from harness.registry import KINDS, installed_points

# Rooms of the engine that decide when and where a cell runs and how it is shown, never what it computes.
_INERT = """api assets claims cli commands config contract diagnosis drivers errors execute execute_info fingerprint
listing memory plan progress provenance ray_executor record registry schema slurm_executor
slurm_task spec store watch worker"""
INERT = frozenset(f"harness.{name}" for name in _INERT.split())


@cache
def _source(module: str) -> Path | None:
    """Source file of a module, found on disk: asking importlib for a submodule would import its parent."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        for path in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if path.is_file():
                return path
    return None


@cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """sha256 of a module's source, and the modules of the same top-level packages that it names in imports."""
    path = _source(module)
    if path is None:
        return "", ()
    content = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return hashlib.sha256(content).hexdigest()[:16], tuple(sorted(found))


@cache
def _component_packages() -> frozenset[str]:
    """Top-level packages that bring components, and the engine itself."""
    points = [point for kind in KINDS for point in installed_points(f"vabench.{kind}")]
    return frozenset({"harness", *(point.module.partition(".")[0] for point in points)})


def fingerprint(modules: Iterable[str]) -> dict[str, str]:
    """Module -> source hash, for the modules given and all that they reach inside their own packages and the engine."""
    queue, seen = list(modules), dict[str, str]()
    roots = _component_packages() | {module.partition(".")[0] for module in queue}
    while queue:
        module = queue.pop()
        if module in seen or module in INERT or module.partition(".")[0] not in roots or _source(module) is None:
            continue
        seen[module], imports = _read(module)
        queue += imports
    return dict(sorted(seen.items()))
