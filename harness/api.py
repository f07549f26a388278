"""Runs a config to its end: plan, leave out what is done, execute, summarise. For `vabench run` and `harness.run`."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.config import RunConfig, load_config, validate
from harness.diagnosis import diagnose, needs_bias, returns_base, was_gated
from harness.drivers import Driver
from harness.errors import DataError
from harness.execute import Executor, Outcome
from harness.plan import Cell, CellState, inspect, plan, try_parameters
from harness.progress import Display
from harness.record import Record, Status, frame
from harness.registry import registry
from harness.store import Store, write_bytes
from harness.worker import pick_device

if TYPE_CHECKING:
    import pandas as pd

LAST_RUN = "last_run.json"


@dataclass
class Summary:
    """What a run did."""

    total: int
    already: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def counts(self) -> dict[str, int]:
        """Outcomes of this run by status."""
        return dict(Counter(outcome.status.value for outcome in self.outcomes))


def survey(config: RunConfig) -> list[CellState]:
    """The state of every planned cell."""
    store = Store(config.results)
    return [inspect(cell, store) for cell in plan(config)]


def run_config(
    config: RunConfig,
    console: Console,
    before: Callable[[list[Cell]], None] | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Summary:
    """Run what is missing of a config. KeyboardInterrupt passes through; every finished cell is on disk by then.

    Args:
        before: called with the cells to run, if there are any, before the first one starts.
        meanwhile: called while workers get ready, if cells wait.
    """
    executor, states = _begin([config], meanwhile)

    def numbers() -> None:
        write_bytes(Path(config.results) / LAST_RUN, json.dumps(remember(config), indent=1).encode())

    return _run(states, config, executor, console, before, numbers)


def _begin(
    configs: Sequence[RunConfig], meanwhile: Callable[[], object] = lambda: None
) -> tuple[Executor, list[CellState]]:
    """The first config's executor and the states of all cells, with the parameters of those that wait tried.

    As soon as it is known that cells wait the executor hears so, and prepares workers beside the driver's own work.
    """
    first = configs[0]
    executor: Executor = registry("executors").create(first.executor)
    prepare = getattr(executor, "prepare", lambda asked, device: None)
    states: dict[str, CellState] = {}
    for config in configs:
        for state in survey(config):
            states.setdefault(state.cell.id, state)
    waiting = [state.cell for state in states.values() if state.state != "done"]
    if waiting:
        prepare(first.workers, first.device)
    _try_device(first.device)
    if waiting:
        meanwhile()
    getattr(executor, "try_parameters", try_parameters)(waiting)
    return executor, list(states.values())


def _try_device(device: str) -> None:
    """A GPU that was asked for and is not there ends a run before it begins, not in its first worker."""
    if device not in ("auto", "cpu"):  # only then torch is worth its import here
        pick_device(device)


def run_configs(
    configs: Sequence[RunConfig], console: Console, before: Callable[[list[Cell]], None] | None = None
) -> Summary:
    """Run what is missing of several configs in one pool, seed by seed; a cell that several of them plan runs once.

    Results folder, workers and device are those of the first config.
    """
    executor, states = _begin(configs)
    order = list(dict.fromkeys(seed for config in configs for seed in config.seeds))
    by_seed = sorted(states, key=lambda state: order.index(state.cell.seed))
    return _run(by_seed, configs[0], executor, console, before)


def _run(
    states: Sequence[CellState],
    config: RunConfig,
    executor: Executor,
    console: Console,
    before: Callable[[list[Cell]], None] | None,
    numbers: Callable[[], None] = lambda: None,
) -> Summary:
    """`numbers` is called once, as soon as a cell has numbers: a run that is killed later can still be reported."""
    start = time.monotonic()
    todo = [state.cell for state in states if state.state != "done" or was_gated(state.record)]
    store = Store(config.results)
    for state in states:
        if state.state == "damaged":
            console.print(f"set aside: {state.why}", markup=False, style="yellow")
            store.set_aside(state.folder, state.why)
    summary = Summary(total=len(states), already=len(states) - len(todo))
    known = bool(summary.already)
    if known:
        numbers()
    waiting = [cell for cell in todo if config.diagnosis and needs_bias(cell)]
    todo = [cell for cell in todo if cell not in waiting]
    with Driver(config.results) if todo or waiting else contextlib.nullcontext() as driver:
        for cells in (todo, waiting):
            if cells is waiting:
                cells = _diagnosed(waiting, states, store, console, summary)
            if not cells or driver is None:
                continue
            if before is not None:
                before(cells)
            workers = executor.slots(config.workers, len(cells), config.device)
            with Display(console, len(cells), workers, driver.look) as display:
                for outcome in executor.run(cells, config.results, config.device, workers, display):
                    display.finished(outcome)
                    summary.outcomes.append(outcome)
                    if not known and outcome.status is Status.DONE:
                        known = True
                        numbers()
    summary.seconds = time.monotonic() - start
    return summary


def _diagnosed(
    waiting: list[Cell], states: Sequence[CellState], store: Store, console: Console, summary: Summary
) -> list[Cell]:
    """The waiting cells that may run; the others get a record that says why the suite cannot judge a repair."""
    if not waiting:
        return []
    from harness.cell import CellRun
    from harness.stages import Stages

    passed, stages = [], Stages(store, pick_device("cpu"))
    for suite, model in dict.fromkeys((cell.suite_name, str(cell.model)) for cell in waiting):
        cells = [cell for cell in waiting if (cell.suite_name, str(cell.model)) == (suite, model)]
        looked_up = [inspect(s.cell, store).record for s in states if _is_base(s.cell, suite, model)]
        found = diagnose(record for record in looked_up if record is not None)
        if found is None or found.passes:
            passed += cells
            if found is not None:
                console.print(f"{suite}: {found.sentence()}", markup=False, highlight=False, soft_wrap=True)
            continue
        for cell in cells:
            record = CellRun(cell, stages).blank()
            record.status, record.reason = Status.NOT_APPLICABLE, found.sentence()
            store.write(record, {})
            summary.outcomes.append(Outcome(cell, record.status, record.reason, 0.0))
        said = f"{suite}: {found.sentence()}; {len(cells)} repair cells are not applicable (diagnosis=false runs them)"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    return passed


def _is_base(cell: Cell, suite: str, model: str) -> bool:
    return (cell.suite_name, str(cell.model)) == (suite, model) and returns_base(str(cell.row.method))


def remember(config: RunConfig) -> dict[str, Any]:
    """A config as plain values that `harness.config.validate` reads back."""
    values = config.model_dump(mode="json")
    values["methods"] = [{"row": str(row), "label": row.label, "block": row.block} for row in config.methods]
    return values


def last_run(root: str) -> RunConfig:
    """The config of the last run in a results folder.

    Raises:
        DataError: there is no such folder, or no run has left its mark there.
    """
    path = Path(root) / LAST_RUN
    if not Path(root).is_dir():
        raise DataError(f"there is no results folder {root}; `vabench run` makes it, or name another: results=FOLDER")
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"no run has left {path} (it is written with a run's first numbers); name a preset, or take every record "
            f"in {root}/ with --all where the command has it"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); name a preset") from error
    return validate(values, str(path)).model_copy(update={"results": root})


def records(config: RunConfig) -> list[tuple[Path, Record]]:
    """Stored records of a config's cells, whatever their outcome; cells that never ran are left out."""
    return [(state.folder, state.record) for state in survey(config) if state.record is not None]


def run(preset: str = "quickstart", *overrides: str, **settings: Any) -> pd.DataFrame:
    """Run a preset and return one row per cell and track (`harness.record.frame`).

    Args:
        preset: a preset's name or a YAML file.
        overrides: as on the command line, e.g. "methods=[erm,rrr]".
        settings: the same by keyword, e.g. seeds=3, workers=2. Without `workers` everything runs in this process:
            worker processes need a script to be guarded by `if __name__ == "__main__"`.

    Raises:
        ConfigError, ComponentError: as on the command line.
    """
    settings.setdefault("workers", 1)
    words = [f"{key}={_word(value)}" for key, value in settings.items()]
    config = load_config(preset, [*overrides, *words])
    run_config(config, Console(stderr=True))
    return frame(record for _, record in records(config))


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(_word(item) for item in value) + "]"
    return str(value)


def failures(summary: Summary) -> list[Outcome]:
    """Cells that ended as failed."""
    return [outcome for outcome in summary.outcomes if outcome.status is Status.FAILED]
