"""Many seeds of one small model on one device: one after the other, in processes side by side, or stacked in one model.

Measured on ERM's training, so that the winner is kept for the sizes at which it wins.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from harness.context import RunContext, Seeds
from harness.models import build_model, place
from harness.spec import Spec
from harness.training import TrainRecipe, fit, make_optimizer, make_schedule, to_float

Shape = tuple[int, int, int]


def _data(shape: Shape, classes: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random pixels and labels: packing is about speed, and no result is kept."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return images.to(device), torch.randint(0, classes, (n,), generator=generator).to(device)


def train_one(model: Spec, shape: Shape, classes: int, recipe: TrainRecipe, seed: int, n: int, device: Any) -> int:
    """One seed's training with the engine's own loop; returns the images of its batches."""
    images, y = _data(shape, classes, n, device)
    context = RunContext(device, Seeds.all(seed), recipe, recipe)
    fit(place(build_model(model, shape, classes, seed), device), images, y, recipe, context)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return context.images_trained


def sequential(model: Spec, shape: Shape, classes: int, recipe: TrainRecipe, seeds: int, n: int, device: Any) -> float:
    """Images per second over all seeds, one training after the other."""
    train_one(model, shape, classes, recipe.with_(steps=3), 0, n, device)
    start = time.perf_counter()
    images = sum(train_one(model, shape, classes, recipe, seed, n, device) for seed in range(seeds))
    return images / (time.perf_counter() - start)


def _serve(pipe: Connection, words: tuple[Any, ...], device: str) -> None:
    from harness.worker import pick_device, quiet_threads, tune, warm_up

    quiet_threads()
    warm_up()
    model, shape, classes, recipe, n = words
    chosen = tune(pick_device(device))
    train_one(model, shape, classes, recipe.with_(steps=3), 0, n, chosen)
    pipe.send("ready")
    pipe.send(sum(train_one(model, shape, classes, recipe, seed, n, chosen) for seed in pipe.recv()))


def processes(
    model: Spec, shape: Shape, classes: int, recipe: TrainRecipe, seeds: int, n: int, device: Any, workers: int
) -> float:
    """Images per second over the seeds, shared out to `workers` processes on the same device; start-up excluded.

    Every process trains the same number of seeds, rounded up: an idle one at the end would speak of the number alone.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, running = [], []
    for _ in range(workers):
        ours, theirs = spawn.Pipe()
        words = (model, shape, classes, recipe, n)
        running.append(spawn.Process(target=_serve, args=(theirs, words, str(device)), daemon=True))
        running[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        for pipe in pipes:
            pipe.recv()
        start = time.perf_counter()
        each = -(-seeds // workers)
        for k, pipe in enumerate(pipes):
            pipe.send(list(range(k * each, (k + 1) * each)))
        images: int = sum(pipe.recv() for pipe in pipes)
        wall = time.perf_counter() - start
    finally:
        for process in running:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
    return images / wall


def can_stack(module: nn.Module) -> bool:
    """Whether torch.func can train copies of a model at once: BatchNorm's running statistics change in place."""
    return not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def stacked_training(
    model: Spec, shape: Shape, classes: int, recipe: TrainRecipe, seeds: int, images: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Train all seeds as one model with a leading axis of seeds; returns the stacked parameters [S, ...].

    Every seed draws batches of its own. Optimisers act element by element, so the update is each seed's own;
    clip_norm, shift and flips are not supported.

    Raises:
        ValueError: a recipe with clip_norm, shift or flips, or a model with BatchNorm.
    """
    device = images.device
    modules = [build_model(model, shape, classes, seed).to(device) for seed in range(seeds)]
    if not can_stack(modules[0]) or recipe.clip_norm is not None or recipe.shift or recipe.flips:
        raise ValueError("stacking needs a model without BatchNorm and a recipe without clip_norm, shift and flips")
    params, buffers = stack_module_state(modules)
    held = {name: value.detach().requires_grad_() for name, value in params.items()}
    skeleton = modules[0]

    def loss(weights: Any, extra: Any, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (weights, extra), (x,)), target)

    gradient = vmap(grad(loss))
    steps = recipe.total_steps(len(y))
    optimizer = make_optimizer(list(held.values()), recipe)
    schedule = make_schedule(optimizer, recipe, steps)
    batches = [RunContext(device, Seeds.all(s), recipe, recipe).generator("batches") for s in range(seeds)]
    for _ in range(steps):
        drawn = [torch.randint(0, len(y), (recipe.batch_size,), generator=g) for g in batches]
        rows = torch.stack(drawn).to(device, non_blocking=True)
        x = to_float(images[rows])
        found = gradient({name: value.detach() for name, value in held.items()}, buffers, x, y[rows])
        for name, value in held.items():
            value.grad = found[name]
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return {name: value.detach() for name, value in held.items()}


def stacked(model: Spec, shape: Shape, classes: int, recipe: TrainRecipe, seeds: int, n: int, device: Any) -> float:
    """Images per second over all seeds in one stacked model."""
    images, y = _data(shape, classes, n, device)
    stacked_training(model, shape, classes, recipe.with_(steps=3), seeds, images, y)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    stacked_training(model, shape, classes, recipe, seeds, images, y)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return seeds * recipe.total_steps(n) * recipe.batch_size / (time.perf_counter() - start)


def measure_packing(
    model: Spec,
    shape: Shape,
    classes: int,
    recipe: TrainRecipe,
    seeds: int,
    n: int,
    device: Any,
    workers: Sequence[int],
) -> dict[str, Any]:
    """Images per second of the three ways, and the fastest; stacking says why where it cannot be done.

    workers: numbers of processes to try. `fastest_workers`: what `workers=` of a run then is; None where stacking wins.
    """
    recipe = recipe.with_(clip_norm=None, shift=0, flips=False)
    words = (model, shape, classes, recipe, seeds, n, device)
    found: dict[str, Any] = {"model": str(model), "seeds": seeds, "steps": recipe.total_steps(n)}
    found["sequential"] = sequential(*words)
    found["processes"] = {str(count): processes(*words, count) for count in workers}
    try:
        found["stacked"] = stacked(*words)
    except ValueError as error:
        found["stacked"], found["why_not_stacked"] = None, str(error)
    ways: list[tuple[str, int | None, float]] = [("sequential", 1, found["sequential"])]
    ways += [("processes", int(count), rate) for count, rate in found["processes"].items()]
    ways += [("stacked", None, found["stacked"])] if found["stacked"] is not None else []
    name, count, _ = max(ways, key=lambda way: way[2])
    return {**found, "fastest": name, "fastest_workers": count}


def in_words(found: dict[str, Any]) -> str:
    """A measurement as a sentence."""
    parts = [f"{found['sequential']:,.0f} one after the other"]
    parts += [f"{rate:,.0f} in {count} processes" for count, rate in found["processes"].items()]
    parts.append(f"{found['stacked']:,.0f} stacked" if found["stacked"] is not None else "cannot be stacked")
    advice = (
        "stacking, which runs do not use" if found["fastest_workers"] is None else f"workers={found['fastest_workers']}"
    )
    return f"{found['seeds']} seeds of {found['model']}, images per second: {', '.join(parts)}; fastest: {advice}"
