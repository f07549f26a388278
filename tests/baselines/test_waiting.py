"""A step of training asks the device for nothing: what needs an answer (how many? which?) is known on the CPU.

Twice: on the CPU, where operations whose answer a GPU would be waited for are noted, and on tensors that only claim to
lie on a GPU (torch's fake tensors), which hold no values, so that nothing can be read, and do not mix with the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mask_toys import toy_cnn, toy_context, toy_mlp
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from baselines import caipi
from baselines.alignment_batches import alignment_batches, row_lookup
from baselines.caipi import _SubBatchLoss
from baselines.group_dro import RobustLoss
from baselines.jtt import LoggedPredictions
from baselines.path_rrr import PathLoss
from baselines.rrr import PenalisedLoss, mlp_layers
from harness.micro_batch import _why_whole
from harness.training import TrainRecipe, cross_entropy, default_batches, fit

CPU, N = torch.device("cpu"), 60
G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (N, 1, 8, 8), generator=G, dtype=torch.uint8)
Y = torch.arange(N) % 3
INDEX = torch.randperm(N, generator=G)[:20]
MASKS = torch.rand(20, 8, 8, generator=G) < 0.2
MASKS[::4] = False
OTHERS = (~torch.isin(torch.arange(N), INDEX)).nonzero().flatten()
# A size or a value that depends on what a tensor holds: on a GPU all of these wait for it.
ASKING = (
    "aten.nonzero.",
    "aten._local_scalar_dense",
    "aten.masked_select",
    "aten.equal",
    "aten.bincount",
    "aten._unique",
)


class Watch(TorchDispatchMode):
    """Notes operations that would wait for a GPU; copies, too, where tensors claim to lie on one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picks = str(func).startswith("aten.index.") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        kwargs = kwargs or {}
        if picks or str(func).startswith(ASKING):
            self.found.append(str(func))
        if str(func).startswith("aten._to_copy") and kwargs.get("device") is not None:
            moved = (args[0].device.type, torch.device(kwargs["device"]).type)
            if moved == ("cuda", "cpu") or (moved == ("cpu", "cuda") and not kwargs.get("non_blocking")):
                self.found.append(f"copy from {moved[0]} to {moved[1]}")
        return func(*args, **kwargs)


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


FAKE = FakeTensorMode(allow_non_fake_inputs=True)
GPU = torch.device("cuda:0")  # nothing is ever there


def on_gpu(value: Tensor) -> Tensor:
    """A tensor of this shape and type that claims to lie on a GPU."""
    with FAKE:
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)


def claimed(loss: Any) -> Any:
    """The loss with its tensors on a GPU, but for those that it keeps on the CPU on purpose."""
    for name, value in list(getattr(loss, "__dict__", {}).items()):
        if isinstance(value, Tensor) and name != "_penalised":
            setattr(loss, name, on_gpu(value))
    if getattr(loss, "donors", None):
        loss.donors = tuple(map(on_gpu, loss.donors))
    return loss


def stepped(loss: Any, index: Tensor) -> list[str]:
    """What one later step of a loss asks for, on an MLP: other networks need autograd's engine, which needs a GPU."""
    model = toy_mlp()
    layers = mlp_layers(model, IMAGES[:2].float())
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(on_gpu(value)))
    loss = claimed(loss)
    if isinstance(loss, PenalisedLoss):  # what the first step finds out
        loss.initial, loss._steps, loss._layers = 1.0, 1, layers
    if hasattr(loss, "look"):
        loss.look(index)
    with FAKE, Watch() as watch:
        x = torch.empty(len(index), 1, 8, 8, device=GPU)
        y, moved = (torch.empty(len(index), dtype=torch.int64, device=GPU) for _ in range(2))
        assert loss(model, x, y, moved).device == GPU
    return watch.found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("index", [INDEX[:12], OTHERS[:12]], ids=["with masks", "without"])
def test_no_loss_asks_a_gpu(name: str, index: Tensor) -> None:
    assert stepped(LOSSES[name](), index) == []


def test_a_loss_that_asks_a_gpu_is_seen() -> None:
    def asks(what: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
        def loss(model: Any, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
            what(index)
            return model(x).sum()

        return loss

    assert stepped(asks(lambda index: index.cpu()), INDEX) == ["copy from cuda to cpu"]
    assert stepped(asks(lambda index: torch.arange(3).to(index.device)), INDEX) == ["copy from cpu to cuda"]
    for what in (lambda i: i.nonzero(), lambda i: float(i[0]), lambda i: i[i > 0], lambda i: i + torch.arange(20)):
        with pytest.raises(Exception, match=r"aten|same device"):
            stepped(asks(what), INDEX)
    blind = penalised()
    blind.look = lambda index: None  # type: ignore[method-assign]
    with pytest.raises(Exception, match=r"aten|fake"):
        stepped(blind, INDEX)


def test_batches_are_drawn_on_the_cpu_wherever_the_labels_lie() -> None:
    recipe = TrainRecipe(batch_size=12, steps=4)
    with FAKE:
        for batches in (
            default_batches(on_gpu(Y), recipe, torch.Generator().manual_seed(0), on_gpu(INDEX)),
            alignment_batches(on_gpu(Y), on_gpu(INDEX), recipe, 0.5, toy_context()),
        ):
            for batch in islice(batches, 8):
                assert batch.device == CPU
                assert batch.dtype == torch.int64


def test_a_lookup_of_counterexamples_lies_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def seen(index: Tensor, n: int, device: torch.device) -> Tensor:
        asked.append(device)
        return row_lookup(INDEX, n, CPU)

    monkeypatch.setattr(caipi, "row_lookup", seen)
    task: Any = SimpleNamespace(train=SimpleNamespace(y=on_gpu(Y)), corrections=SimpleNamespace(index=on_gpu(INDEX)))
    recipe = TrainRecipe(batch_size=12, steps=4)
    caipi.CAIPI()._batches(task, toy_context(), on_gpu(INDEX), recipe, "finetune")
    assert asked == [CPU]


@pytest.mark.parametrize("make", [penalised, lambda: along_paths(partner=True)])
def test_a_look_at_other_images_changes_nothing(make: Callable[[], Any]) -> None:
    """Whoever calls the loss by itself need not look, and a batch that was looked at and never came is forgotten."""
    first, second = torch.cat([INDEX[:8], torch.arange(8)]), torch.arange(30, 50)
    model = toy_mlp()

    def value(loss: Any, index: Tensor) -> Tensor:
        return loss(model, IMAGES[index].float() / 255, Y[index], index).detach()

    looked, alone = make(), make()
    for seen, index in ((first, first), (second, first), (INDEX[:3], second), (second, second)):
        looked.look(seen)
        assert torch.equal(value(looked, index), value(alone, index))
    assert torch.equal(value(looked, second), value(alone, second))


def test_a_penalty_of_no_images_is_not_asked_for() -> None:
    loss, watch, model = penalised(), Watch(), toy_cnn()
    for _ in range(3):
        loss.look(OTHERS)
        with watch:
            loss(model, IMAGES[OTHERS].float() / 255, Y[OTHERS], OTHERS)
    assert watch.found == []
    assert loss.initial is None


def test_a_loss_that_looks_is_not_split() -> None:
    loss = penalised()
    loss.mean_over_images = True  # type: ignore[attr-defined]
    assert "looks at whole batches" in _why_whole(toy_mlp(), loss)
