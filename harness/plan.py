"""A config becomes a list of cells, each with an identity: the hash of all that can change its result."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.assets import component_files, packaged, path_hash
from harness.config import Row, RunConfig
from harness.errors import ComponentError, ConfigError, DataError, VabenchError
from harness.fingerprint import fingerprint
from harness.record import METRIC_VERSION, Record, Status
from harness.registry import check_parameters, registry
from harness.spec import Spec, parse_spec
from harness.store import Store
from harness.supervision import Supervision
from harness.weights import identity as model_weights
from harness.worker import importing

State = Literal["done", "missing", "stale", "damaged"]


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One cell, ready to run. `config` holds plain values only; `blocked` says why it cannot run at all."""

    suite: Spec
    suite_name: str
    suite_source: str
    row: Row
    row_name: str
    model: Spec
    seed: int
    config: dict[str, Any]
    identity: dict[str, Any]
    blocked: str = ""

    @cached_property
    def id(self) -> str:
        """Content identity, hex."""
        return digest(self.identity)

    def __str__(self) -> str:
        return f"{self.suite_name} · {self.row_name} · seed {self.seed}"


def resolve_row(row: Row) -> Row:
    """The row with its method's default mask source filled in.

    Raises:
        ConfigError: a mask source for a method that takes none.
    """
    info = registry("methods").info(row.method.name)
    if row.masks is not None and not info.uses_masks:
        raise ConfigError(f"the method '{info.name}' takes no masks, so '{row}' makes no sense; write '{row.method}'")
    if info.uses_masks and row.masks is None:
        if info.default_masks is None:
            raise ConfigError(f"the method '{info.name}' needs a mask source: write '{row.method}@source'")
        return row.model_copy(update={"masks": Spec(info.default_masks)})
    return row


def standing(row: Row) -> tuple[str, bool]:
    """Where a table puts a resolved row, and whether its critic is simulated: (block, simulated)."""
    method = registry("methods").info(row.method.name)
    if row.masks is None:
        return row.block or method.block, False
    masks, info = row.masks, registry("mask_sources").info(row.masks.name)
    while info.stands_with_source and "of" in masks.params:
        masks = parse_spec(masks.params["of"])
        info = registry("mask_sources").info(masks.name)
    apart = info.block in ("control", "oracle") and method.block != "control"
    return row.block or (info.block if apart else method.block), bool(info.simulated)


def _row_name(given: Row, resolved: Row) -> str:
    """What the table calls the row: the mask source of a method that only borrows its images is left out."""
    info = registry("methods").info(resolved.method.name)
    return str(given.method) if given.masks is None and info.block in ("control", "reference") else str(resolved)


def source_modules(masks: Spec | None) -> list[str]:
    """Modules of a mask source and of every source that it is `of`."""
    if masks is None:
        return []
    modules = [registry("mask_sources").info(masks.name).factory.partition(":")[0]]
    client = masks.params.get("client")
    if client is not None:
        modules.append(registry("clients").info(parse_spec(client).name).factory.partition(":")[0])
    inner = masks.params.get("of")
    if inner is not None:
        modules += source_modules(parse_spec(inner))
    return modules


def _reads_text(masks: Spec) -> bool:
    """Whether a mask source, or one that it is `of`, is shown class descriptions."""
    inner = masks.params.get("of")
    own = Supervision.TEXT in registry("mask_sources").info(masks.name).supervision
    return own or (inner is not None and _reads_text(parse_spec(inner)))


def check_components(config: RunConfig) -> list[tuple[Row, Row]]:
    """Given and resolved rows; every name in the config is looked up, so that a typo costs no run."""
    registry("models").info(config.model.name)
    registry("samplers").info(config.alignment.sampler.name)
    for explainer in (config.alignment.explainer, *config.metrics.explainers):
        registry("explainers").info(explainer.name)
    rows = [(row, resolve_row(row)) for row in config.methods]
    for _, row in rows:
        source_modules(row.masks)
    return rows


def try_parameters(cells: list[Cell]) -> None:
    """Build every component of the cells once, so that a wrong parameter costs no run. Imports torch.

    A component that cannot be loaded is left to its own cells: it must not stop the others.

    Raises:
        ConfigError: a parameter that a component does not take, or a value that it refuses.
    """
    with importing():
        for row in {str(cell.row): cell.row for cell in cells}.values():
            _try(lambda row=row: _build_method(row.method))  # type: ignore[misc]
            if row.masks is not None:
                _try(lambda row=row: registry("mask_sources").create(row.masks))  # type: ignore[misc]
        for model in {str(cell.model): cell.model for cell in cells}.values():
            from harness.models import build_model

            _try(lambda model=model: build_model(model, (1, 32, 32), 2, 0))  # type: ignore[misc]


def _build_method(spec: Spec) -> None:
    cls = registry("methods").load(spec.name)
    check_parameters(f"the method '{spec.name}'", cls.Config, spec.params)
    try:
        cls.Config(**spec.params)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the method '{spec}' refuses its parameters: {error}") from error


def _try(build: Callable[[], Any]) -> None:
    with contextlib.suppress(ComponentError, DataError):
        build()


def plan(config: RunConfig, *, data_too: bool = True) -> list[Cell]:
    """All cells of a config, seeds outermost so that the first results compare all rows.

    Args:
        data_too: look for the suites' data, which may download them. Otherwise the cells say what is asked, and are
            `blocked`.

    Raises:
        ConfigError, ComponentError: a name or parameter that does not exist. Missing data does not raise: its cells
        are `blocked` and end as `skipped`.
    """
    rows = check_components(config)
    shared = config.model_dump(mode="json", include={"tracks", "recipes", "metrics"})
    aligned = config.model_dump(mode="json", include={"alignment", "selection"})
    model_module = registry("models").info(config.model.name).factory.partition(":")[0]
    weights = model_weights(config.model)
    explainers = [registry("explainers").info(s.name).factory.partition(":")[0] for s in config.metrics.explainers]
    cells: list[Cell] = []
    for spec in config.suites:
        info = registry("suites").info(spec.name)
        suite = registry("suites").create(spec)
        data, blocked = "", "" if data_too else "its data were not looked for"
        try:
            data = suite.data_hash() if data_too else ""
        except VabenchError as error:
            blocked = str(error)
        for given, row in rows:
            method = registry("methods").info(row.method.name)
            modules = [
                "harness.cell",
                model_module,
                info.factory.partition(":")[0],
                method.factory.partition(":")[0],
                *explainers,
                *source_modules(row.masks),
            ]
            values = {
                **shared,
                "suite": {"name": spec.name, "params": suite.params},
                "method": row.method.canonical(),
                "masks": row.masks.canonical() if row.masks else None,
                "model": config.model.canonical(),
            }
            if method.uses_masks:
                values |= aligned
                modules.append(registry("samplers").info(config.alignment.sampler.name).factory.partition(":")[0])
                modules.append(registry("explainers").info(config.alignment.explainer.name).factory.partition(":")[0])
            code = fingerprint(modules)
            files = {**weights, **(component_files("mask_sources", row.masks) if row.masks else {})}
            if row.masks and info.descriptions and _reads_text(row.masks):
                files[info.descriptions] = path_hash(packaged(info.descriptions))
            for seed in config.seeds:
                identity = {
                    "config": json.loads(json.dumps(values)),
                    "suite_version": info.version,
                    "data": data,
                    "code": code,
                    "seed": seed,
                    "metric_version": METRIC_VERSION,
                    "schema_version": 1,  # frozen: a record's form (`harness.schema`) says nothing about its numbers
                    **({"files": files} if files else {}),
                }
                cells.append(
                    Cell(
                        suite=spec,
                        suite_name=suite.name,
                        suite_source=info.source,
                        row=row,
                        row_name=_row_name(given, row),
                        model=config.model,
                        seed=seed,
                        config=identity["config"],
                        identity=identity,
                        blocked=blocked,
                    )
                )
    return sorted(cells, key=lambda cell: config.seeds.index(cell.seed))


@dataclass(frozen=True)
class CellState:
    """What is known of a cell on disk, and why it is not done."""

    cell: Cell
    state: State
    why: str
    record: Record | None
    folder: Path


def inspect(cell: Cell, store: Store) -> CellState:
    """Look a cell up. Failed and skipped cells count as missing: the next run tries them again."""
    folder = store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id)
    record, damage = store.intact(folder)
    if damage:
        return CellState(cell, "damaged", damage, None, folder)
    if record is not None:
        if record.id != cell.id:
            return CellState(cell, "damaged", f"the record in {folder} is another cell's", None, folder)
        if record.status in (Status.DONE, Status.NOT_APPLICABLE):
            return CellState(cell, "done", record.reason, record, folder)
        return CellState(cell, "missing", f"{record.status.value} last time: {record.reason}", record, folder)
    if cell.blocked:  # its data are not there: what was run before is no older than they are
        return CellState(cell, "missing", cell.blocked, None, folder)
    for sibling in reversed(store.siblings(cell.suite_name, cell.row_name, cell.seed)):
        held, _ = store.intact(sibling)
        if held is not None:
            return CellState(cell, "stale", explain_difference(held.identity, cell.identity), None, folder)
    return CellState(cell, "missing", "never run", None, folder)


def explain_difference(old: dict[str, Any], current: dict[str, Any]) -> str:
    """What made a stored cell stale, in words."""
    reasons: list[str] = []
    changed = sorted(
        module
        for module in {*old.get("code", {}), *current["code"]}
        if old.get("code", {}).get(module) != current["code"].get(module)
    )
    if changed:
        reasons.append(f"code changed: {', '.join(changed)}")
    if old.get("data") != current["data"]:
        reasons.append("the data changed")
    reasons += [f"file changed: {line}" for line in _leaves(old.get("files", {}), current.get("files", {}))]
    reasons += [f"config: {line}" for line in _leaves(old.get("config", {}), current["config"])]
    reasons += [
        f"{key.replace('_', ' ')}: {old.get(key)} -> {current[key]}"
        for key in ("suite_version", "metric_version", "schema_version")
        if old.get(key) != current[key]
    ]
    return "; ".join(reasons) or "identity changed"


def _leaves(old: Any, current: Any, path: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(current, dict):
        for key in sorted({*old, *current}):
            yield from _leaves(old.get(key), current.get(key), f"{path}.{key}" if path else key)
    elif old != current:
        yield f"{path} {json.dumps(old)} -> {json.dumps(current)}"
