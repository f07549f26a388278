"""Batches that do not fit into memory. Memory's end is simulated: models and losses that refuse more than n images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.group_dro import RobustLoss
from baselines.jtt import LoggedPredictions
from harness.api import run_config
from harness.config import load_config
from harness.context import RunContext, Seeds
from harness.errors import VabenchError
from harness.explain import InputXGradient
from harness.micro_batch import TrainingStep, in_parts
from harness.record import Record, Status
from harness.store import Store
from harness.training import TrainRecipe, cross_entropy, fit, predict

CPU = torch.device("cpu")


class Small(nn.Module):
    """A model with room for `room` images."""

    def __init__(self, *layers: nn.Module, room: int = 10**9):
        super().__init__()
        self.layers, self.room, self.seen = nn.Sequential(*layers), room, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
        return self.layers(x)


def network(room: int, *extra: nn.Module, dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), *extra, nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return Small(*layers, room=room).to(dtype)


def data(n: int = 50, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 6, 6), generator=draws, dtype=torch.uint8)
    return (images if dtype is None else images.to(dtype) / 255), torch.randint(0, 3, (n,), generator=draws)


def context() -> RunContext:
    recipe = TrainRecipe(epochs=1)
    return RunContext(CPU, Seeds.all(0), recipe, recipe)


def gradients(room: int, loss: Callable[..., Tensor] = cross_entropy, n: int = 50) -> tuple[list[Tensor], TrainingStep]:
    model = network(room, dtype=torch.float64).train()
    x, y = data(n, torch.float64)
    step = TrainingStep(model, loss, low_precision=False)
    step(x, y, torch.arange(n))
    return [p.grad for p in model.parameters() if p.grad is not None], step


@pytest.mark.parametrize("room", [1, 2, 7, 13, 24, 25, 49])
def test_parts_add_up_to_the_gradient_of_the_batch(room: int) -> None:
    """In float64, also where the parts are of unequal size."""
    whole, _ = gradients(50)
    parts, step = gradients(room)
    assert step.size is not None
    assert step.size <= room
    assert len(parts) == len(whole) == 6
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_memory_that_ends_in_the_backward_pass_leaves_no_gradient_behind() -> None:
    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.images = len(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            if ctx.images > 20:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return grads[0]

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(36, 8, dtype=torch.float64), nn.Linear(8, 3, dtype=torch.float64)
            self.full = True

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x.flatten(1))
            return self.last(Full.apply(hidden) if self.full else hidden)  # the last layer's gradient is there by then

    x, y = data(50, torch.float64)
    models = Head(), Head()
    models[1].full = False
    for model in models:
        TrainingStep(model, cross_entropy, low_precision=False)(x, y, torch.arange(50))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-15)


def test_training_in_parts_is_training_and_is_noted() -> None:
    images, y = data()
    recipe = TrainRecipe(optimizer="sgd", lr=0.1, batch_size=32, epochs=3, clip_norm=1.0, freeze_batchnorm=True)

    def train(room: int) -> tuple[Small, RunContext]:
        held = context()
        return fit(network(room, nn.BatchNorm2d(4)), images, y, recipe, held, stream="s"), held  # type: ignore[return-value]

    whole, quiet = train(32)
    parts, noted = train(10)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert quiet.notes == {}
    assert noted.notes == {"micro_batch": {"s": 8}}
    assert parts.seen[:3] == [32, 16, 8]
    assert set(parts.seen[3:]) == {8, 2}  # it stays so: an epoch's last batch has 18 images


def test_the_ordinary_path_is_that_of_a_bare_loop_bit_for_bit() -> None:
    images, y = data()
    recipe = TrainRecipe(batch_size=16, steps=9, lr=0.01)
    ours = fit(network(50), images, y, recipe, context())
    bare, draws = network(50).train(), context().generator("batches")
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01, weight_decay=recipe.weight_decay, fused=True)
    batches = [index for _ in range(3) for index in torch.randperm(50, generator=draws).split(16)][:9]
    for index in batches:
        optimizer.zero_grad()
        F.cross_entropy(bare(images[index].float() / 255), y[index]).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), bare.parameters(), strict=True):
        assert torch.equal(one, other)


def refused(model: nn.Module, loss: Any, n: int = 50) -> str:
    x, y = data(n, torch.float32)
    with pytest.raises(VabenchError) as caught:
        TrainingStep(model.train(), loss, low_precision=False)(x, y, torch.arange(n))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_couples_the_images_of_a_batch_is_not_split() -> None:
    said = refused(network(10, nn.BatchNorm2d(4)), cross_entropy)
    assert said.startswith(
        "a batch of 50 images does not fit into memory (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )
    assert "BatchNorm2d uses the statistics of the batch (freeze_batchnorm=true fixes them); lower the recipe's" in said
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    assert "InstanceNorm2d uses the statistics" in refused(network(10, norm), cross_entropy)
    groups = RobustLoss(torch.zeros(50, dtype=torch.int64), torch.tensor([50, 0]), 0.01, 0.0)
    assert "'RobustLoss' does not say that it is a mean over images" in refused(network(10), groups)
    said = refused(network(10), lambda model, x, y, index: F.cross_entropy(model(x), y))  # nothing declared
    assert "(mean_over_images)" in said


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.1)])
def test_what_draws_random_numbers_is_not_split(layer: nn.Module) -> None:
    assert "draw random numbers" in refused(network(10, layer), cross_entropy)


def test_one_image_that_does_not_fit() -> None:
    assert "not even one image fits into memory" in refused(network(0), cross_entropy)


def test_every_penalty_and_sub_batch_loss_is_left_whole() -> None:
    """They weigh images by how many of their kind a batch holds, or keep the first batch's value."""
    from baselines import caipi, path_rrr, rrr

    for loss in (rrr.PenalisedLoss, path_rrr.PathLoss, caipi._SubBatchLoss, RobustLoss):
        assert not getattr(loss, "mean_over_images", False)


def test_logged_predictions_are_those_of_the_whole_batch() -> None:
    y = data()[1]
    logs = [LoggedPredictions(y), LoggedPredictions(y)]
    for loss, room in zip(logs, (50, 9), strict=True):
        gradients(room, loss)
    assert torch.equal(logs[0].predictions, logs[1].predictions)
    assert not torch.equal(logs[0].predictions, y)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_predictions_in_parts(n: int) -> None:
    images = data(50)[0][:n]
    whole, small = network(50), network(6)
    assert predict(small, images).shape == (n, 3)
    torch.testing.assert_close(predict(small, images), predict(whole, images))


def test_parts_keep_their_order() -> None:
    calls = []

    def forward(part: Tensor) -> Tensor:
        calls.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("no")
        return part

    assert torch.equal(in_parts(forward, torch.arange(23), 10), torch.arange(23))
    assert calls == [10, 5, 3, 2, 3, 2, 3, 2, 3, 2, 3]
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(lambda part: forward(part.repeat(4)), torch.arange(2), 2)


def test_explanations_in_parts() -> None:
    images, y = data(20)
    whole = InputXGradient()(network(10**6), images, y, images[:2], batch_size=16)
    model = network(5)
    parts = InputXGradient()(model, images, y, images[:2], batch_size=16)
    torch.testing.assert_close(parts.maps, whole.maps)
    torch.testing.assert_close(parts.gap, whole.gap)
    assert model.seen[0] == 16
    with pytest.raises(torch.OutOfMemoryError):
        InputXGradient()(network(0), images, y, images[:2])


def test_a_cell_says_that_it_ran_in_parts_and_one_that_cannot_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole cells, the end of memory simulated in the loss and in GroupDRO's."""
    words = ["methods=[erm,erm_continue,group_dro]", "seeds=1", "workers=1", "recipes.base.epochs=1"]
    words += ["recipes.finetune.steps=3", "metrics.attribution_images=4", "alignment.n=16", "model=mlp(hidden=8)"]
    words += ['suites=["decoy_digits(rho=0.9,n_train=200,n_val=40,n_val_groups=40,n_test=60)"]', f"results={tmp_path}"]
    real = F.cross_entropy

    def full(logits: Tensor, *rest: Any, **more: Any) -> Tensor:
        if torch.is_grad_enabled() and len(logits) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(logits, *rest, **more)

    monkeypatch.setattr(F, "cross_entropy", full)
    run_config(load_config("quickstart", words), Console(file=io.StringIO()))
    records = {r.row: r for _, r in Store(tmp_path).records() if isinstance(r, Record)}
    assert len(records) == 3
    for row in ("erm", "erm_continue"):  # the second finds the base model made
        assert records[row].status is Status.DONE
        assert 0 < records[row].audit["micro_batch"]["base"] <= 20
    assert 0 < records["erm_continue"].candidates[0].notes["micro_batch"]["finetune"] <= 20
    assert records["group_dro"].status is Status.FAILED
    assert "'RobustLoss' does not say that it is a mean over images" in records["group_dro"].reason
