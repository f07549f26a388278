"""One row in its own process: the engine's own phases on real code, timed block by block."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from harness.cell import CellRun
from harness.explain import draw_baselines
from harness.plan import Cell
from harness.registry import registry
from harness.segment import segment
from harness.spec import parse_spec
from harness.stages import Stages
from harness.supervision import Supervision
from harness.throughput.hardware import Sensors, why_invalid
from harness.throughput.record import Round, Setting
from harness.training import fit, predict

if TYPE_CHECKING:
    from harness.method import Method


class Meter:
    """Marks the device's time every `steps` optimiser steps; the first block of every training is warm-up."""

    def __init__(self, device: torch.device, steps: int):
        self.device, self.steps = device, steps
        self.marks: list[Any] = []
        self.total: int | None = None  # steps of a training that counts; None: any
        self._before = 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Called by the training loop after each step. A new training (fewer steps done than before) starts afresh."""
        if self.total is not None and total != self.total:  # progress of something else than optimiser steps
            return
        if done < self._before:
            self.marks.append(None)
        self._before = done
        if done % self.steps == 0:
            self.marks.append(mark(self.device))

    def seconds(self) -> list[float]:
        """Seconds of the blocks between marks. Synchronises once."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        found = [between(a, b) for a, b in pairs if a is not None and b is not None]
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


class TimedRow:
    """A row, set up once (data, base model, masks: warm-up) and timed round by round.

    steps: optimiser steps of a block, at least 20 for a published figure; blocks: timed blocks of a round.
    images: what explain, segment, critique and infer are given.
    """

    def __init__(self, cell: Cell, stages: Stages, steps: int, blocks: int, images: int):
        start = time.perf_counter()
        self.cell, self.device, self.steps, self.images = cell, stages.device, steps, images
        self.meter, self.sensors = Meter(stages.device, steps), Sensors(stages.device)
        self.run = CellRun(cell, stages, self.meter)
        context = self.run.context
        short = {"steps": steps * (blocks + 1), "epochs": None}
        context.base_recipe, context.finetune_recipe = (
            recipe.with_(**short) for recipe in (context.base_recipe, context.finetune_recipe)
        )
        self.loaded, self.base, self.corrections = self.run.prepare()
        self.method_class: type[Method] = registry("methods").load(self.run.info.name)
        if self.run.info.uses_masks:
            self.alignment = self._alignment()
        self.one_round(-1)
        self.warmup_s = time.perf_counter() - start

    def setting(self) -> Setting:
        """What other rows must equal."""
        context, shape = self.run.context, tuple(self.loaded.splits["train"].images.shape[1:])
        return Setting(
            suite=self.cell.suite_name,
            model=str(self.cell.model),
            image_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            classes=len(self.loaded.data.class_names),
            batch=context.base_recipe.batch_size,
            repair_batch=context.finetune_recipe.batch_size,
            dtype=context.base_recipe.precision,
            device=self.device.type,
            threads=torch.get_num_threads(),
            steps=self.steps,
            images=self.images,
        )

    def one_round(self, number: int) -> Round:
        """All phases once."""
        before, cpu, wall = self.sensors.read(), time.process_time(), time.perf_counter()
        rates = {phase: work() for phase, work in self._phases().items()}
        wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, self.sensors.read()
        busy = None if self.device.type == "cuda" else cpu / wall
        used = after.energy_j - before.energy_j if after.energy_j is not None and before.energy_j is not None else None
        return Round(
            number=number,
            rates={phase: values for phase, values in rates.items() if values},
            invalid=why_invalid(before, after, busy),
            clock_mhz=_pair(before.clock_mhz, after.clock_mhz),
            temperature_c=_pair(before.temperature_c, after.temperature_c),
            energy_j=used,
            busy=busy,
        )

    def peak_memory(self) -> dict[str, int]:
        """Largest memory so far in bytes."""
        found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if self.device.type == "cuda":
            found["device"] = torch.cuda.max_memory_allocated(self.device)
        return found

    # -- phases -------------------------------------------------------------------------------------------------------

    def _phases(self) -> dict[str, Callable[[], list[float]]]:
        trains = self.run.info.returns_base or self.method_class.from_scratch
        phases: dict[str, Callable[[], list[float]]] = {"train" if trains else "align": self._fit, "infer": self._infer}
        if self.run.info.uses_masks:
            phases = {"explain": self._explain, "segment": self._segment, "critique": self._critique, **phases}
        return phases

    def _fit(self) -> list[float]:
        context, train = self.run.context, self.loaded.splits["train"]
        recipe = context.base_recipe
        if self.run.info.returns_base:
            self.meter.total = None
            fit(context.fresh_model(), train.images, train.y, recipe, context, stream="base", axis="init")
            return [self.steps * recipe.batch_size / s for s in self.meter.seconds()]
        recipe = recipe if self.method_class.from_scratch else context.finetune_recipe
        self.meter.total = None if self.method_class.from_scratch else recipe.total_steps(len(train.y))
        start = mark(self.device)
        params = dict(self.cell.row.method.params)
        self.run.fit_candidate(self.method_class, params, self.loaded, self.base, self.corrections)
        end = mark(self.device)
        self.meter.total, seconds = None, self.meter.seconds()
        if not seconds:  # no optimiser steps (DFR, a source that marks nothing): the whole fit, per training image
            return [len(train.y) / between(start, end)]
        return [self.steps * recipe.batch_size / s for s in seconds]

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
        return self._once(lambda: explainer(self.base, train.images[chosen], train.y[chosen], baselines), len(chosen))

    def _segment(self) -> list[float]:
        settings = dict(self.cell.config["alignment"]["segments"])
        if settings.pop("kind", "ppeps_wgm") != "ppeps_wgm":
            return []
        maps = self.alignment.maps[: self.images]
        generator = self.run.context.generator("throughput/segment")
        return self._once(lambda: segment(maps, **settings, generator=generator), len(maps))

    def _critique(self) -> list[float]:
        source = self.run.source()
        task = self.run.task(self.loaded, source.supervision | Supervision.LABELS, "throughput")
        _ = self.alignment.segments  # made already: its cost is the phase `segment`
        return self._once(lambda: source.masks(self.alignment, task, self.run.context), len(self.alignment.index))

    def _infer(self) -> list[float]:
        images = self.loaded.test_images[self.loaded.data.roles.headline][: self.images]
        return self._once(lambda: predict(self.base, images), len(images))

    def _once(self, work: Callable[[], Any], images: int) -> list[float]:
        first = mark(self.device)
        work()
        last = mark(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.meter.seconds()  # a mask source may have trained something: not this phase's blocks
        return [images / between(first, last)] if images else []


def _pair(first: float | None, second: float | None) -> tuple[float, float] | None:
    return (first, second) if first is not None and second is not None else None
