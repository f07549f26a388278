"""Training: `fit` against a bare loop, and RRR's step against that of ERM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.ratios import compare
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.alignment_batches import alignment_batches, row_lookup
from baselines.rrr import PenalisedLoss
from harness.context import RunContext, Seeds
from harness.models import build_model
from harness.spec import parse_spec
from harness.training import TrainRecipe, fit, predict

CPU = torch.device("cpu")
REPAIR = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "clip_norm": 1.0}  # the presets' fine-tuning


class Setting:
    """Synthetic images, one model and its start; every call of `erm`, `bare` or `rrr` trains it from that start."""

    def __init__(
        self, model: str, n: int, shape: tuple[int, int, int], *, masked: float = 1.0, ratio: float = 0.5, **recipe: Any
    ):
        g = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8)
        self.y = torch.randint(0, 10, (n,), generator=g)
        self.masks = torch.rand(round(masked * n), *shape[1:], generator=g) < 0.2
        self.index, self.ratio = torch.arange(len(self.masks)), ratio
        self.recipe = TrainRecipe(**recipe)
        self.context = RunContext(CPU, Seeds.all(0), self.recipe, self.recipe)
        self.model = build_model(parse_spec(model), shape, 10, 0)
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.used = self.recipe.total_steps(n) * self.recipe.batch_size

    def begin(self) -> nn.Module:
        self.model.load_state_dict(self.start)
        return self.model

    def batches(self) -> Any:
        return alignment_batches(self.y, self.index, self.recipe, self.ratio, self.context)

    def erm(self) -> nn.Module:
        return fit(self.begin(), self.images, self.y, self.recipe, self.context, batches=self.batches())

    def rrr(self) -> nn.Module:
        loss = PenalisedLoss(row_lookup(self.index, len(self.y), CPU), self.masks, 0.1, "sum_log_p", "none", 0)
        model = self.begin()
        return fit(model, self.images, self.y, self.recipe, self.context, batches=self.batches(), loss=loss)

    def plain_fit(self) -> nn.Module:
        return fit(self.begin(), self.images, self.y, self.recipe, self.context)

    def bare(self, x: Tensor) -> nn.Module:
        """The same arithmetic with nothing around it, on images that already are floats."""
        model, recipe, stream = self.begin(), self.recipe, self.context.generator("batches")
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        for _ in range(recipe.epochs or 0):
            for index in torch.randperm(len(x), generator=stream).split(recipe.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(x.index_select(0, index)), self.y.index_select(0, index)).backward()
                optimizer.step()
        return model


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_the_bare_loop_does_the_same_arithmetic() -> None:
    toy = Setting("mlp", 200, (1, 28, 28), epochs=2)
    ours, theirs = weights(toy.plain_fit()), weights(toy.bare(toy.images.float() / 255))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], toy.start["backbone.1.weight"])


@pytest.mark.parametrize("model", ["mlp", "small_cnn"])
def test_the_penalty_is_that_of_plain_double_backward(model: str) -> None:
    toy = Setting(model, 40, (1, 12, 12), masked=0.5, batch_size=16, steps=3, optimizer="sgd")
    found = weights(toy.rrr())
    net, batches = toy.begin(), toy.batches()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        index = next(batches)
        x = (toy.images[index].float() / 255).requires_grad_()
        logits, own = net(x), index < len(toy.masks)
        (gradient,) = torch.autograd.grad(logits.log_softmax(1).sum(), x, create_graph=True)
        inside = toy.masks[index.clamp(max=len(toy.masks) - 1)] & own[:, None, None]
        loss = F.cross_entropy(logits, toy.y[index]) + 0.1 * (gradient * inside[:, None]).square().sum() / own.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(found, weights(net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_erm_speed(benchmark: Any) -> None:
    setting = Setting("mlp", 4000, (1, 28, 28), epochs=5)
    x = setting.images.float() / 255
    ratio = compare(benchmark, setting.plain_fit, lambda: setting.bare(x), images=5 * 4000, rounds=25)
    assert ratio >= 0.9


def test_erm_speed_on_resnet18_at_64_pixels(benchmark: Any) -> None:
    setting = Setting("resnet18", 192, (3, 64, 64), batch_size=32, epochs=1)
    x = setting.images.float() / 255
    assert compare(benchmark, setting.plain_fit, lambda: setting.bare(x), images=192, rounds=5) >= 0.95


@pytest.mark.parametrize("views", [{"shift": 4}, {"flips": True}], ids=["shift", "flips"])
def test_augmentation_beside_a_step_of_resnet18(benchmark: Any, views: dict[str, Any]) -> None:
    plain = Setting("resnet18", 96, (3, 64, 64), batch_size=32, epochs=1)
    moved = Setting("resnet18", 96, (3, 64, 64), batch_size=32, epochs=1, **views)
    assert compare(benchmark, moved.plain_fit, plain.plain_fit, images=96, rounds=9) >= 0.95


@pytest.mark.parametrize(("model", "n", "shape"), [("mlp", 20_000, (1, 28, 28)), ("resnet18", 128, (3, 64, 64))])
def test_inference_speed(benchmark: Any, model: str, n: int, shape: tuple[int, int, int]) -> None:
    setting = Setting(model, n, shape, epochs=1)
    net, size = setting.begin().eval(), 2048

    @torch.no_grad()
    def bare() -> Tensor:
        return torch.cat([net(part.float() / 255) for part in setting.images.split(size)])

    assert torch.allclose(predict(net, setting.images), bare(), atol=1e-4)
    assert compare(benchmark, lambda: predict(net, setting.images), bare, images=n, rounds=9) >= 0.9


@pytest.mark.parametrize(("masked", "ratio"), [(0.125, 0.5), (1.0, 0.0)], ids=["alignment-set", "all-images"])
def test_rrr_step_on_the_mlp(benchmark: Any, masked: float, ratio: float) -> None:
    setting = Setting("mlp", 4000, (1, 28, 28), masked=masked, ratio=ratio, steps=100, **REPAIR)
    assert 1 / compare(benchmark, setting.rrr, setting.erm, images=setting.used, rounds=25) <= 2.2


@pytest.mark.parametrize(
    ("masked", "ratio", "frozen"),
    [(0.125, 0.5, False), (1.0, 0.0, True)],
    ids=["alignment-set", "all-images-frozen-batchnorm"],
)
def test_rrr_step_on_resnet18(benchmark: Any, masked: float, ratio: float, frozen: bool) -> None:
    recipe = {**REPAIR, "batch_size": 16, "steps": 3, "freeze_batchnorm": frozen}
    setting = Setting("resnet18", 64, (3, 64, 64), masked=masked, ratio=ratio, **recipe)
    assert 1 / compare(benchmark, setting.rrr, setting.erm, images=setting.used, rounds=5) <= 2.6
