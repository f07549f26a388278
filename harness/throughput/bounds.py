"""What the device could do: its measured matrix rate, the best bare loop, the profile of a training block."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from harness.cell import CellRun
from harness.models import build_model, place
from harness.plan import Cell
from harness.stages import Stages
from harness.throughput.hardware import Sensors
from harness.throughput.record import Round, Setting
from harness.throughput.timed import between, mark, one_round, setting_of
from harness.training import FLOAT_BYTES, TrainRecipe, make_optimizer, make_schedule, to_float


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of a piece of work after one warm-up call."""
    work()
    _sync(device)
    found = []
    for _ in range(repeats):
        first = mark(device)
        work()
        last = mark(device)
        _sync(device)
        found.append(between(first, last))
    return median(found)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Floating-point operations per second of a square matrix product (8192 on a GPU, 1024 on a CPU)."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / seconds_of(lambda: a @ a, device, 10)


def training_flops(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Floating-point operations of one forward and backward pass, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def bare_blocks(
    model: nn.Module, images: Tensor, y: Tensor, recipe: TrainRecipe, steps: int, blocks: int, *, compiled: bool = False
) -> tuple[list[float], float]:
    """Images per second of `blocks` blocks of the shortest loop with the recipe's optimiser, precision and sizes of
    batches, and the seconds of its first three steps, compilation among them. A block before them is warm-up.

    No shift, no sampler beyond a permutation an epoch, no callback, no losses kept: what a person would write by hand,
    with the images converted once where float32 has room.
    """
    device = images.device
    total = steps * (blocks + 1) + 3
    optimizer = make_optimizer(model.parameters(), recipe)
    schedule = make_schedule(optimizer, recipe, total)
    low = recipe.precision == "bfloat16"
    model.train()
    forward: Any = torch.compile(model) if compiled else model
    held = to_float(images) if 4 * images.numel() <= FLOAT_BYTES else images
    epoch = -(-len(y) // recipe.batch_size)
    orders = [torch.randperm(len(y), device=device).split(recipe.batch_size) for _ in range(-(-total // epoch))]
    batches = [index for order in orders for index in order]

    def step(index: Tensor) -> None:
        x = held.index_select(0, index)
        x = x if held is not images else to_float(x)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            loss = F.cross_entropy(forward(x), y.index_select(0, index))
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()

    start = time.perf_counter()
    for index in batches[:3]:
        step(index)
    _sync(device)
    first_s = time.perf_counter() - start
    marks = []
    for k in range(blocks + 1):
        for index in batches[3 + k * steps : 3 + (k + 1) * steps]:
            step(index)
        marks.append(mark(device))
    _sync(device)
    sizes = [sum(len(index) for index in batches[3 + k * steps : 3 + (k + 1) * steps]) for k in range(1, blocks + 1)]
    return [n / between(a, b) for n, a, b in zip(sizes, marks, marks[1:], strict=False)], first_s


class TimedLoop:
    """The bare loop on a row's data, model and recipe, in a process of its own and in the rounds of the rows."""

    def __init__(self, cell: Cell, stages: Stages, steps: int, blocks: int, images: int):
        start = time.perf_counter()
        self.device, self.sensors = stages.device, Sensors(stages.device)
        self._run, self._steps, self._blocks = CellRun(cell, stages), steps, blocks
        context = self._run.context
        loaded = stages.load(cell, context)
        self._setting = setting_of(cell, context, loaded, self.device, steps, images)
        self._shape, self._classes, self._model = self._setting.image_shape, self._setting.classes, cell.model
        self._images, self._y = loaded.splits["train"].images, loaded.splits["train"].y
        self.compile_s, self.whole_images = 0.0, 0.0
        self.one_round(-1)
        self.warmup_s = time.perf_counter() - start

    def setting(self) -> Setting:
        """What rows must equal."""
        return self._setting

    def one_round(self, number: int) -> Round:
        """A training of `blocks` timed blocks."""
        return one_round(number, {"train": self._train}, self.sensors, self.device)

    def _train(self) -> list[float]:
        model = place(build_model(self._model, self._shape, self._classes, 0), self.device)
        recipe = self._run.context.base_recipe
        return bare_blocks(model, self._images, self._y, recipe, self._steps, self._blocks)[0]


def profile(work: Callable[[], Any], device: torch.device, top: int = 12) -> list[dict[str, Any]]:
    """The operations that take most of a block's time on the device: name, share of the total, calls."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch_profile(activities=activities) as found:
        work()
        _sync(device)
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = found.key_averages()
    total = sum(getattr(event, own) for event in averages) or 1
    ordered = sorted(averages, key=lambda event: -getattr(event, own))[:top]
    return [{"name": e.key[:80], "share": getattr(e, own) / total, "calls": e.count} for e in ordered]
