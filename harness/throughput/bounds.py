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

from harness.throughput.timed import between, mark
from harness.training import TrainRecipe, make_optimizer, make_schedule, to_float


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


def bare_loop(
    model: nn.Module, images: Tensor, y: Tensor, recipe: TrainRecipe, steps: int, *, compiled: bool = False
) -> tuple[float, float]:
    """Images per second of the shortest loop with the recipe's optimiser and precision, and seconds of compilation.

    No shift, no sampler beyond one permutation, no callback: what a person would write by hand.
    """
    device = images.device
    optimizer = make_optimizer(model.parameters(), recipe)
    schedule = make_schedule(optimizer, recipe, 3 * steps + 4)
    low = recipe.precision == "bfloat16"
    model.train()
    order = torch.randperm(len(y), device=device).repeat(-(-recipe.batch_size * steps // len(y)))
    batches = order.split(recipe.batch_size)
    forward: Any = torch.compile(model) if compiled else model

    def step(index: Tensor) -> None:
        x = to_float(images.index_select(0, index))
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
    compile_s = time.perf_counter() - start
    rates = []
    for _ in range(3):
        first = mark(device)
        for index in batches[:steps]:
            step(index)
        last = mark(device)
        _sync(device)
        rates.append(steps * recipe.batch_size / between(first, last))
    return median(rates), compile_s if compiled else 0.0


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
