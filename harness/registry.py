"""One typed registry per kind of component, fed by entry points: built-ins and third parties share a door.

An entry point `name = "package.module:INFO"` in the group `vabench.<kind>` points to a metadata object; the class
behind its `factory` is imported on first use. A component that cannot be loaded is reported, never fatal to the others.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, Protocol, TypeVar, cast

from harness.errors import ComponentError, ConfigError
from harness.spec import Spec

KINDS = (
    *("methods", "suites", "mask_sources", "samplers", "explainers", "models", "clients", "presets", "studies"),
    "executors",
)


class Info(Protocol):
    """What every metadata object has."""

    @property
    def name(self) -> str:
        """Name in the registry."""

    @property
    def summary(self) -> str:
        """One line for `vabench list`."""

    @property
    def factory(self) -> str:
        """`package.module:Class`."""


@dataclass(frozen=True)
class ComponentInfo:
    """Metadata of a sampler, an explainer, a model, a preset or a study."""

    name: str
    summary: str
    factory: str  # "package.module:Class"; for a preset or a study "package:file.yaml"
    citation: str = ""


InfoT = TypeVar("InfoT", bound=Info)


@dataclass(frozen=True)
class Broken:
    """An entry point whose metadata could not be read."""

    name: str
    origin: str
    error: str


class Registry(Generic[InfoT]):
    """Components of one kind by name."""

    def __init__(self, kind: str, extra: Mapping[str, InfoT] | None = None):
        self.kind = kind
        self._points: dict[str, EntryPoint] = {}
        self._extra: dict[str, InfoT] = dict(extra or {})
        self.clashes: list[Broken] = []
        for point in sorted(installed_points(f"vabench.{kind}"), key=_builtin_first):
            held = self._points.setdefault(point.name, point)
            if held.value != point.value:
                self.clashes.append(Broken(point.name, origin(point), f"the name is taken by {origin(held)}"))

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._points, *self._extra})

    def info(self, name: str) -> InfoT:
        """Metadata of a component, without loading it.

        Raises:
            ComponentError: unknown name (with the nearest ones), or its metadata cannot be imported.
        """
        if name in self._extra:
            return self._extra[name]
        if name not in self._points:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self.names())}"
            own = "; one of your own needs an entry point (docs/add_a_method.md)" if not near else ""
            if self.singular in ("preset", "study"):
                file = f"{name}.yaml"
                own = f"; one of your own is named by its file: {file}" if not near or os.path.isfile(file) else ""
            raise ComponentError(f"there is no {self.singular} called '{name}'; {hint}{own}")
        point = self._points[name]
        try:
            info: InfoT = point.load()
        except Exception as error:  # a stranger's import may raise anything
            raise ComponentError(
                f"the {self.singular} '{name}' from {origin(point)} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not all(isinstance(getattr(info, field, None), str) for field in ("name", "summary", "factory")):
            raise ComponentError(
                f"the {self.singular} '{name}' from {origin(point)} is a {type(info).__name__}, not a metadata object "
                f"with name, summary and factory (docs/add_a_method.md)"
            )
        if info.name != name:
            raise ComponentError(f"the entry point '{name}' from {origin(point)} holds metadata named '{info.name}'")
        return info

    def origin(self, name: str) -> str:
        """Distribution that brought the component."""
        return origin(self._points[name]) if name in self._points else "this process"

    def load(self, name: str) -> Any:
        """The class (or function) behind a component.

        Raises:
            ComponentError: unknown, or its module cannot be imported, or the module lacks the name.
        """
        info = self.info(name)
        module, _, attribute = info.factory.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise ComponentError(
                f"the {self.singular} '{name}' ({info.factory}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def create(self, spec: Spec) -> Any:
        """Build a component from its spec by keyword.

        Raises:
            ConfigError: a parameter that it does not take, or a value that it refuses.
        """
        factory = self.load(spec.name)
        check_parameters(f"{self.singular} '{spec.name}'", factory, spec.params)
        try:
            return factory(**spec.params)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.singular} '{spec}': {error}") from error

    def broken(self) -> list[Broken]:
        """Entry points whose metadata cannot be read, and names claimed twice."""
        found = list(self.clashes)
        for name, point in self._points.items():
            try:
                self.info(name)
            except ComponentError as error:
                found.append(Broken(name, origin(point), str(error)))
        return found

    @property
    def singular(self) -> str:
        """The kind in words, singular."""
        return "study" if self.kind == "studies" else self.kind.removesuffix("s").replace("_", " ")


def check_parameters(what: str, factory: Any, params: Mapping[str, Any], given: tuple[str, ...] = ()) -> None:
    """Raise ConfigError where `factory` does not take one of `params` (with the nearest), or needs one that is absent,
    or gets a text where it takes a number.

    given: parameters that the caller fills in itself.
    """
    taken = {
        p.name: p
        for p in inspect.signature(factory).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    known = list(taken)
    needed = [name for name, p in taken.items() if p.default is p.empty]
    missing = [name for name in needed if name not in params and name not in given]
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(f'{name}=...' for name in missing)}")
    for key, value in params.items():
        if key in taken and isinstance(value, str) and _takes_a_number(taken[key].annotation):
            raise ConfigError(f"{what}: {key} must be a number, got '{value}'")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes: {', '.join(known) or 'nothing'}"
            raise ConfigError(f"{what} has no parameter '{key}'; {hint}")


def _takes_a_number(annotation: Any) -> bool:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    kinds = {part.strip() for part in text.split("|")} - {"None"}
    return bool(kinds) and kinds <= {"int", "float"}


@cache
def _all_points() -> EntryPoints:
    return cast(EntryPoints, entry_points())  # Python 3.11's own type has the same `select`


def installed_points(group: str) -> EntryPoints:
    """Entry points of a group. All installed distributions are read once a process: a reading takes 20 ms."""
    return _all_points().select(group=group)


def origin(point: EntryPoint) -> str:
    """Name of the distribution behind an entry point."""
    return _distribution_name(point.dist) if point.dist is not None else "an unknown distribution"


@cache  # by identity: one scan shares the object among a distribution's points, and each reading parses its metadata
def _distribution_name(distribution: Distribution) -> str:
    return distribution.name


def _builtin_first(point: EntryPoint) -> tuple[bool, str]:
    return (origin(point) != "vabench", origin(point))


@cache
def registry(kind: str) -> Registry[Any]:
    """The process-wide registry of a kind (see KINDS)."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; known: {', '.join(KINDS)}")
    return Registry(kind)
