"""`vabench audit`: writes the page on which a person accepts or rejects what a distilled critic calls spurious."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from harness.plan import Cell


def audit(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`, e.g. suites=[...] for one suite."),
    ] = None,
    row: Annotated[str, typer.Option(help="The row: method@distilled(of=...), as in the preset.")] = (
        "lvlm_va@distilled(of=noisy_oracle)"
    ),
    seed: Annotated[int, typer.Option(help="The seed whose alignment set is shown.")] = 0,
    output: Annotated[str, typer.Option("--output", "-o", help="The HTML file.")] = "audit.html",
) -> None:
    """Write the audit page of one row at one seed; base model, maps and segments are those of `vabench run`.

    Open the file, answer for every cluster, save, and name the saved file in the row: `distilled(of=...,
    confirmed=FILE)`. `vabench audit distilled "suites=[decoy_mnist]" --row "lvlm_va@distilled(of=noisy_oracle)"`.
    """
    from pathlib import Path

    from harness.commands import read_words
    from harness.config import load_config
    from harness.errors import ConfigError
    from harness.plan import plan

    preset, overrides = read_words(words)
    config = load_config(preset, [*overrides, f"methods=[{row}]", f"seeds=[{seed}]"])
    cells = plan(config)
    if len(cells) != 1:
        names = ", ".join(cell.suite_name for cell in cells)
        raise ConfigError(f"one suite is audited at a time, but these are planned: {names}; choose with suites=[...]")
    looks = write_page(cells[0], config.results, config.device, Path(output))
    print(f"{output}: {looks} segments to look at; open it in a browser, answer for every cluster, save")


def write_page(cell: Cell, results: str, device: str, output: Path) -> int:
    """Write the audit page of a cell; returns how many segments it shows.

    Raises:
        ConfigError: the row's mask source is not `distilled`. Skipped: the suite's data is missing.
    """
    from harness.cell import CellRun
    from harness.errors import ConfigError, Skipped
    from harness.models import build_model
    from harness.registry import registry
    from harness.stages import Stages
    from harness.store import Store
    from harness.supervision import Supervision, Task
    from harness.worker import pick_device, quiet_threads
    from methods.lvlm_va.audit import write_audit
    from methods.lvlm_va.distilled import Distilled

    quiet_threads()
    if cell.blocked:
        raise Skipped(cell.blocked)
    source = registry("mask_sources").create(cell.row.masks) if cell.row.masks is not None else None
    if not isinstance(source, Distilled):
        raise ConfigError(f"the row '{cell.row}' has no distilled critic; write method@distilled(of=...)")
    stages = Stages(Store(results), pick_device(device))
    context = CellRun(cell, stages).context
    loaded = stages.load(cell, context)
    channels, height, width = (int(size) for size in loaded.splits["train"].images.shape[1:])
    context.build_model = lambda: build_model(
        cell.model, (channels, height, width), len(loaded.data.class_names), context.seed("model", "init")
    ).to(context.device)
    task = Task(
        loaded.splits,
        source.supervision | Supervision.LABELS,
        who=f"mask source '{cell.row.masks}'",
        class_names=loaded.data.class_names,
        group_names=loaded.data.group_names,
        descriptions=loaded.data.descriptions,
        suite=cell.suite.name,
    )
    alignment = stages.alignment(cell, loaded, task.train, stages.base(cell, loaded, context), context)
    found = source.examine(alignment, task, context)
    facts = {
        "Suite": cell.suite_name,
        "Seed": str(cell.seed),
        "Verdicts called spurious": f"{found.facts['rate_before']:.1%} before, {found.facts['rate_after']:.1%} after",
        "Out-of-fold AUC": f"{found.facts['auc']:.3f} (z = {found.facts['z']:.1f})",
    }
    return write_audit(output, alignment, found, context, title=f"Audit: {cell.row_name}", facts=facts).looks
