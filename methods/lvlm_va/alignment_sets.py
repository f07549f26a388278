"""One row's alignment set as its cell would see it, for the verbs that look at verdicts without repairing a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from harness.cell import CellRun
from harness.config import RunConfig, load_config, parse_row
from harness.errors import ConfigError, Skipped
from harness.masks import MaskSource
from harness.models import build_model
from harness.plan import Cell, plan, resolve_row
from harness.registry import registry
from harness.stages import Loaded, Stages
from harness.store import Store
from harness.supervision import Supervision, Task
from harness.worker import pick_device, quiet_threads

if TYPE_CHECKING:
    from harness.config import Row
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.spec import Spec

SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class JudgedCell:
    """All that a mask source is given in one cell, from the shared stages of the results folder.

    context: the cell's random streams, and `recordings`, so that a critic's stored answers are replayed without calls.
    base: the base model, in eval mode on the device.
    """

    config: RunConfig
    cell: Cell
    source: MaskSource
    stages: Stages
    context: RunContext
    loaded: Loaded
    base: nn.Module

    def task(self, supervision: Supervision | None = None) -> Task:
        """The guarded task with a ledger of its own; by default with what the source declares, as in the cell."""
        allowed = self.source.supervision if supervision is None else supervision
        return Task(
            self.loaded.splits,
            allowed | Supervision.LABELS,
            who=f"mask source '{self.cell.row.masks}'",
            class_names=self.loaded.data.class_names,
            group_names=self.loaded.data.group_names,
            descriptions=self.loaded.data.descriptions,
            suite=self.cell.suite.name,
        )

    def alignment(self, task: Task, split: SplitName = "train") -> AlignmentSet:
        """The alignment set: on train the sampler's choice of images, on val all of them."""
        view = task.train if split == "train" else task.val
        return self.stages.alignment(self.cell, self.loaded, view, self.base, self.context)


def judged_cell(
    preset: str = "quickstart",
    overrides: Sequence[str] = (),
    *,
    row: str | None = None,
    suite: str | None = None,
    seed: int | None = None,
) -> JudgedCell:
    """Build what one cell of a preset would build before its mask source is asked; equal verdicts follow.

    Args:
        preset, overrides: as on the command line (`harness.commands.read_words`).
        row: `method@source`, also one that the preset does not hold; default: the first that judges segments.
        suite: a suite's spec or name among those of the preset; default: the first. seed: default: the first.

    Raises:
        ConfigError: no such suite, or a row without a mask source that judges segments. Skipped: its data is missing.
    """
    config = load_config(preset, overrides)
    chosen = _row(config, row)
    config = config.model_copy(
        update={
            "methods": (chosen,),
            "suites": (_suite(config, suite),),
            "seeds": (config.seeds[0] if seed is None else seed,),
        }
    )
    (cell,) = plan(config)
    if cell.blocked:
        raise Skipped(cell.blocked)
    source: MaskSource = registry("mask_sources").create(cell.row.masks)
    quiet_threads()  # as a run does: the base model made here is the run's, bit for bit
    stages = Stages(Store(config.results), pick_device(config.device))
    context = CellRun(cell, stages).context
    loaded = stages.load(cell, context)
    channels, height, width = (int(size) for size in loaded.splits["train"].images.shape[1:])
    context.build_model = lambda: build_model(
        cell.model, (channels, height, width), len(loaded.data.class_names), context.seed("model", "init")
    ).to(context.device)
    return JudgedCell(config, cell, source, stages, context, loaded, stages.base(cell, loaded, context))


def _judges(row: Row) -> bool:
    """A row with a mask source that gives verdicts on segments, and a method that reads them."""
    if row.masks is None or registry("methods").info(row.method.name).block == "control":
        return False
    return bool(registry("mask_sources").info(row.masks.name).verdicts)


def _row(config: RunConfig, wanted: str | None) -> Row:
    if wanted is not None:
        given = parse_row(wanted)
        if not _judges(resolve_row(given)):
            raise ConfigError(f"the row '{wanted}' judges no segments; name one such as lvlm_va@oracle")
        return given
    for given in config.methods:
        if registry("methods").info(given.method.name).uses_masks and _judges(resolve_row(given)):
            return given
    raise ConfigError(f"no row of '{config.name}' judges segments; name one with --row, e.g. --row lvlm_va@oracle")


def _suite(config: RunConfig, wanted: str | None) -> Spec:
    known = {name: spec for spec in config.suites for name in (spec.name, str(spec))}
    if wanted is not None and wanted not in known:
        names = ", ".join(str(spec) for spec in config.suites)
        raise ConfigError(f"'{config.name}' has no suite '{wanted}'; it has {names} (choose others with suites=[...])")
    return config.suites[0] if wanted is None else known[wanted]
