"""A step of training asks the device for nothing: what needs an answer (how many? which?) is known on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from mask_toys import toy_cnn, toy_context, toy_mlp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.alignment_batches import alignment_batches, row_lookup
from baselines.caipi import _SubBatchLoss, _with_counterexamples
from baselines.group_dro import RobustLoss
from baselines.jtt import LoggedPredictions
from baselines.path_rrr import PathLoss
from baselines.rrr import PenalisedLoss
from harness.training import TrainRecipe, cross_entropy, default_batches, fit

CPU, N = torch.device("cpu"), 60
G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (N, 1, 8, 8), generator=G, dtype=torch.uint8)
Y = torch.arange(N) % 3
INDEX = torch.randperm(N, generator=G)[:20]
MASKS = torch.rand(20, 8, 8, generator=G) < 0.2
MASKS[::4] = False
# A size or a value that depends on what a tensor holds: on a GPU all of these wait for it.
ASKING = (
    "aten.nonzero",
    "aten._local_scalar_dense",
    "aten.masked_select",
    "aten.equal",
    "aten.bincount",
    "aten.unique",
)


class Watch(TorchDispatchMode):
    """Notes every operation that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picks = str(func).startswith("aten.index.") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if picks or str(func).startswith(ASKING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Watched:
    """A loss whose own work, from its second step on, is watched."""

    def __init__(self, loss: Any, watch: Watch):
        self.loss, self.watch, self.steps = loss, watch, 0
        if hasattr(loss, "look"):
            self.look = loss.look

    def __call__(self, *args: Any) -> Tensor:
        self.steps += 1
        if self.steps == 1:  # the first penalty is read, as the scale of lambda
            return self.loss(*args)
        with self.watch:
            return self.loss(*args)


def penalised(**settings: Any) -> PenalisedLoss:
    return PenalisedLoss(row_lookup(INDEX, N, CPU), MASKS, 1.0, "sum_log_p", "initial", 0, **settings)


def along_paths(*, partner: bool) -> PathLoss:
    donors = (IMAGES[INDEX], MASKS) if partner else None
    return PathLoss(row_lookup(INDEX, N, CPU), MASKS, 1.0, torch.Generator().manual_seed(0), donors=donors)


LOSSES: dict[str, Callable[[], Any]] = {
    "erm": lambda: cross_entropy,
    "rrr": penalised,
    "path_rrr": lambda: along_paths(partner=False),
    "path_rrr with partners": lambda: along_paths(partner=True),
    "caipi": lambda: _SubBatchLoss(N),
    "jtt": lambda: LoggedPredictions(Y),
    "group_dro": lambda: RobustLoss(Y, torch.bincount(Y), 0.01, 1.0),
}


@pytest.mark.parametrize("model", [toy_mlp, toy_cnn])
@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_asks(name: str, model: Callable[[], torch.nn.Module]) -> None:
    recipe, watch = TrainRecipe(batch_size=12, steps=4, optimizer="sgd", shift=1 if name == "erm" else 0), Watch()
    loss = Watched(LOSSES[name](), watch)
    batches = alignment_batches(Y, INDEX, recipe, 0.5, toy_context())
    fit(model(), IMAGES, Y, recipe, toy_context(), loss=loss, batches=batches)
    assert loss.steps == 4
    assert watch.found == []


def test_the_watch_sees_what_asks() -> None:
    x = torch.arange(4)
    for asks in (lambda: x.nonzero(), lambda: float(x[0]), lambda: x[x > 1], lambda: bool(x.any())):
        with Watch() as watch:
            asks()
        assert watch.found


def test_batches_are_drawn_on_the_cpu_wherever_the_labels_lie() -> None:
    recipe = TrainRecipe(batch_size=12, steps=4, sampling="class_balanced")
    for batches in (
        default_batches(Y, recipe, torch.Generator().manual_seed(0)),
        default_batches(Y, recipe.with_(sampling="uniform"), torch.Generator().manual_seed(0), INDEX),
        alignment_batches(Y, INDEX, recipe, 0.5, toy_context()),
        _with_counterexamples(alignment_batches(Y, INDEX, recipe, 0.5, toy_context()), row_lookup(INDEX, N, CPU), 2),
    ):
        for batch in islice(batches, 8):
            assert batch.device == CPU
            assert batch.dtype == torch.int64


@pytest.mark.parametrize("make", [penalised, lambda: along_paths(partner=True)])
def test_a_look_is_for_the_next_batch_alone(make: Callable[[], Any]) -> None:
    """Whoever calls the loss by itself need not look, and a batch that was looked at and never came changes nothing."""
    first, second = torch.cat([INDEX[:8], torch.arange(8)]), torch.arange(30, 50)
    model = toy_mlp()

    def value(loss: Any, index: Tensor) -> Tensor:
        return loss(model, IMAGES[index].float() / 255, Y[index], index).detach()

    looked, alone = make(), make()
    for index in (first, second, first):
        looked.look(second)
        looked.look(index)
        assert torch.equal(value(looked, index), value(alone, index))
    assert torch.equal(value(looked, second), value(alone, second))
