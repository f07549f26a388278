"""What `list` and `status` print. Imports neither torch nor numpy: metadata is readable without loading anything."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from harness.errors import ComponentError, VabenchError
from harness.registry import Broken, registry

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.plan import CellState


def component_tables(kinds: list[str], load: bool) -> tuple[str, list[Broken]]:
    """Text tables of all components by kind, and what is broken; with `load`, every class is imported too."""
    parts, broken = [], list[Broken]()
    for kind in kinds:
        found = registry(kind)
        faults = {fault.name: fault for fault in found.broken()}
        broken += faults.values()
        rows = []
        for name in found.names():
            try:
                info = found.info(name)
                if load:
                    _load(kind, name)
            except ComponentError as error:
                if name not in faults:
                    broken.append(Broken(name, found.origin(name), str(error)))
                rows.append({"name": name, "about": "cannot be loaded (see below)", "from": found.origin(name)})
                continue
            rows.append({"name": name, **_facts(kind, info), "from": found.origin(name)})
        title = kind.replace("_", " ")
        parts.append(f"{title}\n{'-' * len(title)}\n" + tabulate(rows, headers="keys", tablefmt="plain"))
    return "\n\n".join(parts), broken


def _load(kind: str, name: str) -> None:
    if kind == "presets":
        from harness.config import load_config

        load_config(name)
    elif kind == "studies":
        from harness.study import expand, read_study

        expand(read_study(name))
    else:
        registry(kind).load(name)


def _facts(kind: str, info: Any) -> dict[str, str]:
    about = info.summary + (" [simulated]" if getattr(info, "simulated", False) else "")
    if kind == "methods":
        consumed = [*info.supervision.names(), *(["masks of a source"] if info.uses_masks else [])]
        return {"block": info.block, "supervision": ", ".join(consumed), "about": about}
    if kind == "mask_sources":
        consumed = [*info.supervision.names()]
        return {"block": info.block, "supervision": ", ".join(consumed) or "none of its own", "about": about}
    if kind == "suites":
        return {"source": info.source, "licence": info.licence, "about": about}
    return {"about": about}


def group_tables(config: RunConfig) -> list[str]:
    """Group counts of every suite at the first seed, as text; a suite whose data is missing says so."""
    tables = []
    for spec in config.suites:
        suite = registry("suites").create(spec)
        try:
            counts = suite.load(config.seeds[0]).group_counts()
        except VabenchError as error:
            tables.append(f"{suite.name}: {error}")
            continue
        groups = list(next(iter(counts.values())))
        rows = [[group, *(counts[split][group] for split in counts)] for group in groups]
        title = f"{suite.name}: images per group (data seed {config.seeds[0]})"
        tables.append(f"{title}\n" + tabulate(rows, headers=["group", *counts], tablefmt="plain"))
    return tables


def status_lines(config: RunConfig, states: list[CellState]) -> list[str]:
    """Totals, then every row that is not done, with the reason; seeds with one reason share a line."""
    totals = Counter(state.state for state in states)
    lines = [
        f"'{config.name}' in {config.results}/: {len(states)} cells: "
        + ", ".join(f"{totals.get(state, 0)} {state}" for state in ("done", "missing", "stale", "damaged"))
    ]
    reasons: dict[tuple[str, str, str, str], list[int]] = {}
    for state in states:
        if state.state != "done" or state.why:
            key = (
                "not applicable" if state.state == "done" else state.state,
                state.cell.suite_name,
                state.cell.row_name,
                state.why,
            )
            reasons.setdefault(key, []).append(state.cell.seed)
    for (kind, suite, row, why), seeds in reasons.items():
        lines.append(f"  {kind}: {suite} · {row} · seed {', '.join(map(str, seeds))}: {why}")
    return lines
