"""A study: a named grid of configs and rows in a YAML file, plus one figure. docs/add_a_study.md shows how to add one.

Every point of the grid fills the templates of `set` and `rows`; points whose configs are equal share one config with
many rows. Cells, identities and stored results are those of an ordinary run.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.config import Row, RunConfig, merge, parse_rows, read_values
from harness.errors import ConfigError, first_line
from harness.plan import digest

if TYPE_CHECKING:
    from rich.console import Console

    from harness.api import Summary
    from harness.plan import Cell

# Columns that a study's files and figures have anyway.
RESERVED = {"suite", "row", "label", "block", "role", "track", "seed", "seeds", "status", "reason", "id", "rule"}
RESERVED |= {"measure", "value", "low", "high", "panel", "category"}
WHERE_AND_HOW = ("results", "workers", "device", "executor")  # settings that change no number
TEMPLATE = re.compile(r"\{([A-Za-z_]\w*)\}")


class Fit(BaseModel):
    """Power laws y = c x^b to be fitted: `x` is an axis, `y` measures, `by` axes that tell the fits apart."""

    model_config = ConfigDict(extra="forbid")
    x: str
    y: tuple[str, ...] = Field(min_length=1)
    by: tuple[str, ...] = ()


Value = bool | int | float | str


class Contrast(BaseModel):
    """One difference, for every track and suite.

    Either `axis`, `from` and `to`: the mean over all other axes at one value minus that at the other; or `against`: a
    reference row, subtracted from the mean over the points at which `where` holds (axis -> value or list of values).
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    measure: str
    axis: str = ""
    start: Value | None = Field(None, alias="from")
    to: Value | None = None
    against: str = ""
    where: dict[str, Value | list[Value]] = {}
    row: str = ""  # label of the study's row; '' where it has one only

    @model_validator(mode="after")
    def _one_kind(self) -> Contrast:
        within = bool(self.axis) and self.start is not None and self.to is not None
        if within == bool(self.against):
            raise ValueError("a contrast has either axis, from and to, or against")
        return self

    def __str__(self) -> str:
        held = "".join(f", {name} = {value}" for name, value in self.where.items())
        if self.against:
            return f"{self.measure}{held}: minus {self.against}"
        return f"{self.measure}{held}: {self.axis} = {self.to} minus {self.axis} = {self.start}"


class Place(BaseModel):
    """A reference row placed on the grid: `at` maps every axis to the measure that says where the row lies on it."""

    model_config = ConfigDict(extra="forbid")
    row: str
    at: dict[str, str] = Field(min_length=1)
    measure: str


class Study(BaseModel):
    """What a study's YAML file holds.

    preset or config: what every point starts from. set: settings over it, by dotted name; `{axis}` is filled in.
    axes: axis -> values (all combinations), or a list of such mappings (one grid after the other; a single value need
    not be a list). rows, reference_rows: as in a preset; `{axis}` is filled in the former. measure: columns of
    `harness.study_table.lines`. figure: `kind: package.module:function` and its options. contrasts: differences to be
    told in words. places: reference rows whose result the grid predicts, by interpolation.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    summary: str = ""
    preset: str = ""
    config: dict[str, Any] = {}
    set: dict[str, Any] = {}
    axes: dict[str, list[Any]] | list[dict[str, Any]] = Field(min_length=1)
    rows: list[Any] = Field(min_length=1)
    reference_rows: list[Any] = []
    measure: list[str] = Field(min_length=1)
    figure: dict[str, Any] = {}
    fit: Fit | None = None
    contrasts: list[Contrast] = []
    places: list[Place] = []

    @property
    def axis_names(self) -> list[str]:
        """Names of the axes, in the order written."""
        return list(self.axes if isinstance(self.axes, dict) else self.axes[0])


@dataclass
class Group:
    """One config with the rows of all points that share it."""

    config: RunConfig
    points: list[dict[str, Any]] = field(default_factory=list)
    rows: list[tuple[dict[str, Any], Row]] = field(default_factory=list)  # which row stands for which point
    references: list[Row] = field(default_factory=list)


@dataclass
class Grid:
    """An expanded study. variant: 8 hex digits where overrides change what is run, else ''. cut: of an axis."""

    study: Study
    groups: list[Group]
    axes: list[str]
    variant: str = ""
    cut: bool = False

    @property
    def configs(self) -> list[RunConfig]:
        """The configs to run."""
        return [group.config for group in self.groups]

    @property
    def folder(self) -> Path:
        """Where the study's own files go."""
        return Path(self.groups[0].config.results) / "studies"

    @property
    def file_name(self) -> str:
        """Start of its files' names: a changed study never writes over the study as it stands."""
        return f"{self.study.name}-{self.variant}" if self.variant else self.study.name


def read_study(name: str) -> Study:
    """A study by its registered name or from a YAML file.

    Raises:
        ConfigError: no such file, no YAML, a field that does not exist or does not fit. ComponentError: no such name.
    """
    values = read_values("studies", name)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"the study {name}: it needs {path} (docs/add_a_study.md shows a whole one)") from None
        if path.startswith("axes"):
            raise ConfigError(
                f"the study {name}: axes is a mapping of names to lists of values, `axes: {{steps: [25, 50]}}`, or a "
                f"list of such mappings"
            ) from None
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path, Study.model_fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(Study.model_fields)}"
            raise ConfigError(f"the study {name}: there is no field '{path}'; {hint}") from None
        raise ConfigError(f"the study {name}: {path}: {first['msg']}") from None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", study.name):
        raise ConfigError(f"the study {name}: its name {study.name!r} names files: letters, digits, - _ .")
    return study


def self_contained(study: Study, overrides: Sequence[str] = ()) -> Study:
    """The same study with its preset and all overrides of what is run written out: it depends on no other file.

    Raises:
        ConfigError: as `expand`.
    """
    _expand(study, overrides)  # what is refused there is refused here
    study, settings = _with_axes(study, overrides)
    given = [setting.partition("=")[0] for setting in settings]
    kept = [word for word, key in zip(settings, given, strict=True) if key not in WHERE_AND_HOW]
    config = _deep(read_values("presets", study.preset) if study.preset else {}, study.config)
    for key in (*WHERE_AND_HOW, "name", "methods"):
        config.pop(key, None)
    changes = {key: value for word in kept for key, value in _setting(word).items()}
    rest = {key: value for key, value in study.set.items() if key not in changes}
    return study.model_copy(update={"preset": "", "config": config, "set": {**rest, **changes}})


def _setting(word: str) -> dict[str, Any]:
    """`key=value` as the value that OmegaConf reads."""
    from omegaconf import OmegaConf

    key, _, text = word.partition("=")
    held: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    return {key: held["value"]}


def expand(study: Study, overrides: Sequence[str] = ()) -> Grid:
    """All points of a study, grouped by config.

    Args:
        overrides: settings for every config (`seeds=1`), or other values of an axis (`axes.lam=[0.1,1]`).

    Raises:
        ConfigError: a template names no axis, an axis is used nowhere, an override sets what an axis sets.
    """
    grid = _expand(study, overrides)
    if overrides and _content(grid) != _content(_expand(study, ())):
        grid.variant = digest(_content(grid))[:8]
        grid.cut = any(override.startswith("axes.") for override in overrides)
    return grid


def _content(grid: Grid) -> list[Any]:
    """What is run, not where and how."""
    return [[g.config.model_dump(mode="json", exclude=set(WHERE_AND_HOW)), g.points] for g in grid.groups]


def _expand(study: Study, overrides: Sequence[str]) -> Grid:
    study, settings = _with_axes(study, overrides)
    points = _points(study)
    _check_use(study, points)
    _check_overrides(study, settings)
    base = read_values("presets", study.preset) if study.preset else {}
    if not base and not study.config:
        raise ConfigError(f"the study {study.name}: it names neither a preset nor a config to start from")
    base = _deep(base, study.config)
    references = _parse(study, study.reference_rows)
    groups: dict[str, Group] = {}
    for point in points:
        rows = _parse(study, _fill(study.rows, point, f"the study {study.name}: rows"))
        values = _deep(base, _fill(study.set, point, f"the study {study.name}: set"))
        values |= {"name": study.name, "methods": rows}
        config = merge({**values, "methods": [str(row) for row in rows]}, settings, f"the study {study.name}")
        key = digest(config.model_dump(mode="json", exclude={"methods"}))
        group = groups.setdefault(key, Group(config, references=references))
        group.points.append(point)
        group.rows += [(point, row) for row in rows]
    for group in groups.values():
        unique = {str(row): row for row in (*(row for _, row in group.rows), *references)}
        group.config = group.config.model_copy(update={"methods": tuple(unique.values())})
    return Grid(study, list(groups.values()), study.axis_names)


def run_study(grid: Grid, console: Console) -> Summary:
    """Run what is missing, all configs in one pool."""
    from harness.api import run_configs

    def announce(todo: list[Cell]) -> None:
        points = sum(len(group.points) for group in grid.groups)
        console.print(
            f"study '{grid.study.name}': {len(todo)} cells to run ({points} points of {', '.join(grid.axes)}; "
            f"{len(grid.groups)} configs), results in {grid.configs[0].results}/",
            highlight=False,
            markup=False,
        )

    return run_configs(grid.configs, console, announce)


def _parse(study: Study, rows: Any) -> list[Row]:
    try:
        return parse_rows(rows)
    except ConfigError as error:
        raise ConfigError(f"the study {study.name}: {error}") from None


def _with_axes(study: Study, overrides: Sequence[str]) -> tuple[Study, list[str]]:
    """The study with the axes that overrides replace, and the other overrides."""
    from omegaconf import OmegaConf

    rest = [override for override in overrides if not override.startswith("axes.")]
    chosen = [override for override in overrides if override.startswith("axes.")]
    if not chosen:
        return study, rest
    if not isinstance(study.axes, dict):
        raise ConfigError(f"the study {study.name} lists its points; change them in a copy of its file")
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(chosen))
    except Exception as error:  # a YAML error in a value
        raise ConfigError(f"{' '.join(chosen)}: not a value: {first_line(error)}") from error
    axes = dict(study.axes)
    for name, values in given["axes"].items():
        if name not in axes:
            raise ConfigError(f"the study {study.name} has no axis '{name}'; {_hint(name, axes)}")
        axes[name] = values if isinstance(values, list) else [values]
    return study.model_copy(update={"axes": axes}), rest


def _points(study: Study) -> list[dict[str, Any]]:
    """Axis -> value for every point; an axis may be filled from the other axes of its point."""
    blocks = [study.axes] if isinstance(study.axes, dict) else study.axes
    names, found = study.axis_names, []
    taken = sorted(RESERVED & set(names))
    if taken:
        raise ConfigError(f"the study {study.name}: no axis can be called '{taken[0]}', its table has such a column")
    for block in blocks:
        if set(block) != set(names):
            raise ConfigError(
                f"the study {study.name}: every entry of axes must name the same axes, but one has "
                f"{', '.join(block)} and the first {', '.join(names)}"
            )
        values = [held if isinstance(held, list) else [held] for held in (block[name] for name in names)]
        if not all(values):
            raise ConfigError(f"the study {study.name}: axis '{names[values.index([])]}' has no values")
        for combination in itertools.product(*values):
            point = dict(zip(names, combination, strict=True))
            point = {k: _fill(v, point, f"the study {study.name}: axis '{k}'") for k, v in point.items()}
            if point not in found:
                found.append(point)
    return found


def _fill(value: Any, point: Mapping[str, Any], where: str) -> Any:
    """Nested plain values with every `{axis}` replaced; a text that is one template alone takes the axis' type."""
    if isinstance(value, dict):
        return {key: _fill(held, point, f"{where}.{key}") for key, held in value.items()}
    if isinstance(value, list):
        return [_fill(held, point, where) for held in value]
    if not isinstance(value, str):
        return value

    def lookup(found: re.Match[str]) -> Any:
        name = found[1]
        if name not in point:
            raise ConfigError(f"{where}: '{value}' uses the axis '{name}', which does not exist; {_hint(name, point)}")
        return point[name]

    whole = TEMPLATE.fullmatch(value)
    return lookup(whole) if whole else TEMPLATE.sub(lambda found: _text(lookup(found)), value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


def _named(value: Any) -> set[str]:
    """All axes that templates in nested values name."""
    if isinstance(value, dict):
        return set().union(*map(_named, value.values()))
    if isinstance(value, list):
        return set().union(*map(_named, value))
    return set(TEMPLATE.findall(value)) if isinstance(value, str) else set()


def _check_use(study: Study, points: list[dict[str, Any]]) -> None:
    """An axis that nothing uses is a slip, unless the points are listed: then it may be a label."""
    _fill(study.rows, points[0], f"the study {study.name}: rows")  # a name that is no axis is the likelier slip
    _fill(study.set, points[0], f"the study {study.name}: set")
    used = _named(study.set) | _named(study.rows)
    for name in study.axis_names if isinstance(study.axes, dict) else []:
        if name not in used and len({str(point[name]) for point in points}) > 1:
            raise ConfigError(f"the study {study.name}: axis '{name}' is used nowhere; write {{{name}}} in rows or set")
    wrong = sorted(_named(study.reference_rows))
    if wrong:
        raise ConfigError(f"the study {study.name}: reference_rows hold {{{wrong[0]}}}, but no axis reaches them")


def _check_overrides(study: Study, overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key.startswith("axis."):
            raise ConfigError(f"'{override}': an axis is set by axes.{key.removeprefix('axis.')}=[...]")
        if key in ("methods", "name"):
            raise ConfigError(f"'{override}': a study has its own {'rows' if key == 'methods' else key}; copy its file")
        for name, axes in _flat(study.set):
            if axes and (f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")):
                raise ConfigError(
                    f"'{override}': the study {study.name} sets {name} by its axis '{min(axes)}'; "
                    f"write axes.{min(axes)}=[...] or copy its file"
                )


def _flat(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, set[str]]]:
    """Dotted name and named axes of every leaf."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", _named(value)


def _deep(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with `changes`, whose keys may be dotted; mappings merge, all else is replaced."""
    merged = copy.deepcopy(dict(values))
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            value = {rest: value}
        held = merged.get(head)
        inside = held if isinstance(held, dict) else {}
        merged[head] = _deep(inside, value) if isinstance(value, dict) else copy.deepcopy(value)
    return merged
