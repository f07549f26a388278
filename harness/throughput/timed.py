"""One row in its own process: the engine's own phases on real code, timed block by block."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.cell import CellRun
from harness.context import RunContext
from harness.explain import draw_baselines
from harness.plan import Cell
from harness.registry import registry
from harness.segment import segment
from harness.spec import parse_spec
from harness.stages import Loaded, Stages
from harness.supervision import Supervision
from harness.throughput.hardware import Sensors, why_invalid
from harness.throughput.record import Round, Setting, without_folders
from harness.training import fit, predict

if TYPE_CHECKING:
    from harness.method import Method

LASTS_S = 0.05  # a phase that is over sooner is repeated within its block: a clock's grain is no rate
Phases = Mapping[str, Callable[[], list[float]]]


class Meter:
    """Marks the device's time and the images trained on every `steps` optimiser steps; the first block of every
    training is warm-up."""

    def __init__(self, device: torch.device, steps: int):
        self.device, self.steps = device, steps
        self.marks: list[Any] = []
        self.total: int | None = None  # steps of a training that counts; None: any
        self.images: Callable[[], int] = lambda: 0
        self._before = 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Called by the training loop after each step. A new training (fewer steps done than before) starts afresh."""
        if self.total is not None and total != self.total:  # progress of something else than optimiser steps
            return
        if done < self._before:
            self.marks.append(None)
        self._before = done
        if done % self.steps == 0:
            self.marks.append((mark(self.device), self.images()))

    def rates(self) -> list[float]:
        """Images per second of the blocks between marks. Synchronises once."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        found = [(b[1] - a[1]) / between(a[0], b[0]) for a, b in pairs if a is not None and b is not None]
        self.marks, self._before = [], 0
        return found


def mark(device: torch.device) -> Any:
    """Now, on the device: an event on a GPU, else the clock."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    return time.perf_counter()


def between(first: Any, second: Any) -> float:
    """Seconds between two marks; events must have been synchronised."""
    return float(first.elapsed_time(second)) / 1000 if isinstance(first, torch.cuda.Event) else second - first


def one_round(number: int, phases: Phases, sensors: Sensors, device: torch.device) -> Round:
    """All phases once; the sensors are read at the start and after each of them."""
    readings, cpu, wall = [sensors.read()], time.process_time(), time.perf_counter()
    rates, peaks = {}, {}
    for phase, work in phases.items():
        _forget_peak(device)
        rates[phase] = work()
        peaks[phase] = _peak(device)
        readings.append(sensors.read())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    busy = None if device.type == "cuda" else cpu / wall
    energy = [reading.energy_j for reading in readings]
    used = {
        phase: after - before
        for phase, before, after in zip(phases, energy, energy[1:], strict=False)
        if before is not None and after is not None
    }
    return Round(
        number=number,
        rates={phase: values for phase, values in rates.items() if values},
        invalid=why_invalid(readings, busy),
        clock_mhz=_range([reading.clock_mhz for reading in readings]),
        temperature_c=_range([reading.temperature_c for reading in readings]),
        energy_j=used,
        peak_memory=peaks,
        busy=busy,
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux: the high-water mark of resident memory starts again
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Largest memory in bytes since `_forget_peak`; where the system cannot forget it, since the process began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _range(values: list[float | None]) -> tuple[float, float] | None:
    held = [value for value in values if value is not None]
    return (min(held), max(held)) if held else None


def setting_of(
    cell: Cell, context: RunContext, loaded: Loaded, device: torch.device, steps: int, images: int
) -> Setting:
    """What other rows must equal."""
    shape = tuple(loaded.splits["train"].images.shape[1:])
    recipes = {"base": context.base_recipe, "finetune": context.finetune_recipe}
    apart = ("batch_size", "precision", "steps", "epochs")
    return Setting(
        suite=cell.suite_name,
        model=without_folders(str(cell.model)),
        image_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        classes=len(loaded.data.class_names),
        batch=context.base_recipe.batch_size,
        repair_batch=context.finetune_recipe.batch_size,
        dtype=context.base_recipe.precision,
        repair_dtype=context.finetune_recipe.precision,
        device=device.type,
        threads=torch.get_num_threads(),
        steps=steps,
        images=images,
        recipes={name: {k: v for k, v in asdict(held).items() if k not in apart} for name, held in recipes.items()},
        alignment=without_folders(cell.config.get("alignment", {})),
    )


class TimedRow:
    """A row, set up once (data, base model, masks: warm-up) and timed round by round.

    steps: optimiser steps of a block, at least 20 for a published figure; blocks: timed blocks of a training.
    images: what explain and segment are given; critique gets the alignment set, infer `steps` batches.
    """

    def __init__(self, cell: Cell, stages: Stages, steps: int, blocks: int, images: int):
        start = time.perf_counter()
        self.cell, self.device, self.steps, self.images = cell, stages.device, steps, images
        self.meter, self.sensors = Meter(stages.device, steps), Sensors(stages.device)
        self.run = CellRun(cell, stages, self.meter)
        context = self.run.context
        context.recordings = None  # a critic that replays its answers would be timed reading a file
        self.meter.images = lambda: context.images_trained
        whole = context.base_recipe, context.finetune_recipe
        short = {"steps": steps * (blocks + 1), "epochs": None}
        context.base_recipe, context.finetune_recipe = (recipe.with_(**short) for recipe in whole)
        self.loaded, self.base, self.corrections = self.run.prepare()
        self.model: nn.Module = self.base
        self.method_class: type[Method] = registry("methods").load(self.run.info.name)
        self._repeats: dict[str, int] = {}
        if self.run.info.uses_masks:
            self.alignment = self._alignment()
        # The base model's training is the row's own where the row trains from scratch, and has compiled it already.
        earlier, before = 0.0 if self._trains() else context.compile_s, context.images_trained
        self.one_round(-1)
        self.compile_s, taken = context.compile_s - earlier, context.images_trained - before
        asked = whole[0] if self._trains() else whole[1]
        self.whole_images = taken / (steps * (blocks + 1)) * asked.total_steps(len(self.loaded.splits["train"].y))
        self.warmup_s = time.perf_counter() - start

    def setting(self) -> Setting:
        """What other rows must equal."""
        return setting_of(self.cell, self.run.context, self.loaded, self.device, self.steps, self.images)

    def one_round(self, number: int) -> Round:
        """All phases once."""
        return one_round(number, self._phases(), self.sensors, self.device)

    # -- phases -------------------------------------------------------------------------------------------------------

    def _phases(self) -> Phases:
        fits = "train" if self._trains() else "align"
        phases: dict[str, Callable[[], list[float]]] = {fits: self._fit, "infer": self._infer}
        if self.run.info.uses_masks:
            phases = {"explain": self._explain, "segment": self._segment, "critique": self._critique, **phases}
        return phases

    def _trains(self) -> bool:
        return self.run.info.returns_base or self.method_class.from_scratch

    def _fit(self) -> list[float]:
        context, train = self.run.context, self.loaded.splits["train"]
        recipe = context.base_recipe
        if self.run.info.returns_base:
            self.meter.total = None
            self.model = context.fresh_model()
            fit(self.model, train.images, train.y, recipe, context, stream="base", axis="init")
            return self.meter.rates()
        recipe = recipe if self.method_class.from_scratch else context.finetune_recipe
        self.meter.total = None if self.method_class.from_scratch else recipe.total_steps(len(train.y))
        start = mark(self.device)
        params = dict(self.cell.row.method.params)
        fitted = self.run.fit_candidate(self.method_class, params, self.loaded, self.base, self.corrections)
        end = mark(self.device)
        self.model, self.meter.total, found = fitted.model, None, self.meter.rates()
        if not any(found):  # no optimiser steps of the engine's loop (DFR's solver): the whole fit, per training image
            return [len(train.y) / between(start, end)]
        return found

    def _alignment(self) -> Any:
        source, task = self.run.source(), self.run.task
        view = task(self.loaded, source.supervision | Supervision.LABELS, "throughput").train
        return self.run.stages.alignment(self.cell, self.loaded, view, self.base, self.run.context)

    def _explain(self) -> list[float]:
        settings, context = self.cell.config["alignment"], self.run.context
        train = self.loaded.splits["train"]
        chosen = self.alignment.index[: self.images]
        baselines = draw_baselines(
            train.images,
            settings["baselines"],
            context.generator("explain/baselines", "data"),
            settings["baseline_kind"],
        )
        explainer = registry("explainers").create(parse_spec(settings["explainer"]))
        x, y = train.images[chosen], train.y[chosen]
        return self._block("explain", lambda: explainer(self.base, x, y, baselines), len(chosen))

    def _segment(self) -> list[float]:
        settings = dict(self.cell.config["alignment"]["segments"])
        if settings.pop("kind", "ppeps_wgm") != "ppeps_wgm":
            return []
        maps = self.alignment.maps[: self.images]
        generator = self.run.context.generator("throughput/segment")
        return self._block("segment", lambda: segment(maps, **settings, generator=generator), len(maps))

    def _critique(self) -> list[float]:
        source = self.run.source()
        task = self.run.task(self.loaded, source.supervision | Supervision.LABELS, "throughput")
        _ = self.alignment.segments  # made already: its cost is the phase `segment`
        work = lambda: source.masks(self.alignment, task, self.run.context)  # noqa: E731
        return self._block("critique", work, len(self.alignment.index))

    def _infer(self) -> list[float]:
        held = self.loaded.test_images[self.loaded.data.roles.headline]
        size = self.run.context.base_recipe.batch_size
        batches = [held[torch.arange(k * size, (k + 1) * size) % len(held)] for k in range(self.steps)]
        self.model.eval()
        return self._block("infer", lambda: [predict(self.model, batch) for batch in batches], size * self.steps)

    def _block(self, phase: str, work: Callable[[], Any], images: int) -> list[float]:
        """One block: the work, as often as it takes to last; the first round finds out how often that is."""
        if not images:
            return []
        first = mark(self.device)
        for _ in range(self._repeats.get(phase, 1)):
            work()
        last = mark(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.meter.rates()  # a mask source may have trained something: not this phase's blocks
        seconds = between(first, last)
        found = images * self._repeats.get(phase, 1) / seconds
        self._repeats.setdefault(phase, max(1, math.ceil(LASTS_S / seconds)))
        return [found]
