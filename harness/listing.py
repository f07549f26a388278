"""What `list` and `status` print. Imports neither torch nor numpy: metadata is readable without loading anything."""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from harness.errors import ComponentError, VabenchError
from harness.memory import remember
from harness.registry import KINDS, Broken, installed_points, origin, registry

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


def component_text(name: str) -> str:
    """All that is known of a component, its parameters with their defaults included. Loads its class.

    Raises:
        ComponentError: no kind has a component of this name (with the nearest ones), or it cannot be loaded.
    """
    found = [kind for kind in KINDS if name in registry(kind).names()]
    if not found:
        known = {other for kind in KINDS for other in registry(kind).names()} | set(KINDS)
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`vabench list` names every component."
        raise ComponentError(f"there is nothing called '{name}' to list; {hint} Kinds known: {', '.join(KINDS)}")
    return "\n\n".join(_component_text(kind, name) for kind in found)


def _component_text(kind: str, name: str) -> str:
    held = registry(kind)
    info = held.info(name)
    about = info.summary + (" [simulated]" if getattr(info, "simulated", False) else "")
    lines = [f"{name} ({held.singular})", about, ""]
    facts = [[title, value] for title, value in _all_facts(kind, info, held.origin(name)) if value]
    lines += [tabulate(facts, tablefmt="plain")]
    if kind in ("presets", "studies"):
        return "\n".join([*lines, "", *_settings(kind, name)])
    factory = held.load(name)
    factory = factory.Config if kind == "methods" else factory
    rows = _parameters(kind, factory, info)
    headers = ["parameter", "default", "meaning"] if any(row[2:] for row in rows) else ["parameter", "default"]
    table = tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True) if rows else "no parameters"
    words = inspect.getdoc(factory) or ""
    written = "" if words.startswith(f"{factory.__name__}(") else words  # a dataclass without a text of its own
    return "\n".join([*lines, "", table, *(["", written] if rows and written else [])])


def _all_facts(kind: str, info: Any, brought_by: str) -> Iterator[tuple[str, str]]:
    """Title and value of everything that metadata says, in the order of the page."""
    if kind in ("methods", "mask_sources"):
        yield "block", info.block
        consumed = [*info.supervision.names(), *(["masks of a source"] if getattr(info, "uses_masks", False) else [])]
        yield "supervision", ", ".join(consumed) or "none of its own"
    if kind == "methods":
        yield "chosen by", f"{info.selection} (tuned track)"
        yield "default masks", info.default_masks or ""
    for title in ("source", "version", "licence", "citation"):
        yield title, getattr(info, title, "")
    for number, deviation in enumerate(getattr(info, "deviations", ())):
        yield "deviations" if number == 0 else " ", deviation
    yield "class" if kind not in ("presets", "studies") else "file", info.factory
    yield "from", brought_by


def _parameters(kind: str, factory: Any, info: Any) -> list[list[str]]:
    """Name, default and, where a suite's metadata says it, meaning of what a component takes by keyword."""
    meanings = getattr(info, "parameters", {})
    rows = []
    for parameter in inspect.signature(factory).parameters.values():
        given_by_engine = kind == "models" and parameter.default is parameter.empty  # image shape and classes
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or given_by_engine:
            continue
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        meaning = [meanings[parameter.name]] if parameter.name in meanings else []
        rows.append([parameter.name, default, *meaning])
    return rows


def _settings(kind: str, name: str) -> list[str]:
    """A preset's or a study's YAML file as its settings."""
    import yaml

    from harness.config import read_values

    values = read_values("presets" if kind == "presets" else "studies", name)
    return yaml.safe_dump(values, sort_keys=False, width=116, default_flow_style=None, allow_unicode=True).splitlines()


def slow_metadata(kinds: list[str]) -> list[str]:
    """A sentence for every metadata module that imports torch and thereby slows each `vabench list`.

    Every module is imported in an interpreter of its own, so that one does not hide another.
    """
    import subprocess
    import sys

    modules: dict[str, str] = {}
    for kind in kinds:
        for point in installed_points(f"vabench.{kind}"):
            modules.setdefault(point.module, origin(point))
    found = []
    for module, brought_by in sorted(modules.items()):
        code = f"import sys, {module}; sys.exit(3 if 'torch' in sys.modules else 0)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        if done.returncode == 3:
            found.append(
                f"{brought_by}: its metadata module '{module}' imports torch, which slows every `vabench list`; keep "
                f"the metadata in a module that does not, apart from the class (docs/add_a_method.md)"
            )
    return found


def group_tables(config: RunConfig) -> list[str]:
    """Group counts of every suite at the first seed, as text; a suite whose data is missing says so."""
    tables = []
    for spec in config.suites:
        suite = registry("suites").create(spec)
        try:
            data = suite.load(config.seeds[0])
        except VabenchError as error:
            tables.append(f"{suite.name}: {error}")
            continue
        remember(suite.name, data)
        counts = data.group_counts()
        groups = list(next(iter(counts.values())))
        rows = [[group, *(counts[split][group] for split in counts)] for group in groups]
        title = f"{suite.name}: images per group (data seed {config.seeds[0]})"
        tables.append(f"{title}\n" + tabulate(rows, headers=["group", *counts], tablefmt="plain"))
    return tables


def status_lines(config: RunConfig, states: list[CellState]) -> list[str]:
    """Totals, then every row that is not done, with the reason; seeds with one reason share a line."""
    from harness.progress import count

    totals = Counter(state.state for state in states)
    lines = [
        f"'{config.name}' in {config.results}/: {count(len(states), 'cell')}: "
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
