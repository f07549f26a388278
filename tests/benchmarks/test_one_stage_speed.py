"""One-stage methods against bare loops that do the same arithmetic on tensors, with nothing around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from benchmarks.ratios import compare
from torch import Tensor, nn
from torch.nn import functional as F

from harness.context import RunContext, Seeds
from harness.models import build_model
from harness.registry import registry
from harness.spec import parse_spec
from harness.supervision import SplitTensors, Task
from harness.training import TrainRecipe

CPU = torch.device("cpu")
METHODS = ["erm_decorrelated", "suby", "rwy", "subg", "rwg", "group_dro"]


class Setting:
    """4,000 random images with the groups of `decoy_mnist(rho=0.97)`: ten classes, aligned or conflicting."""

    def __init__(
        self, method: str, model: str = "mlp", n: int = 4000, shape: tuple[int, ...] = (1, 28, 28), **recipe: Any
    ):
        g = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8)
        self.y = torch.arange(n) % 10
        self.a = torch.where(torch.rand(n, generator=g) < 0.03, (self.y + 1) % 10, self.y)
        self.g = 2 * self.y + (self.a != self.y)
        self.recipe = TrainRecipe(**recipe)
        self.shape, self.spec = shape, parse_spec(model)
        self.method = registry("methods").create(parse_spec(method))
        split = SplitTensors("train", self.images, self.y, self.a, self.g, None)
        self.task = Task(
            {"train": split, "decorrelated": split},
            self.method.info.supervision,
            who=method,
            class_names=tuple("0123456789"),
            group_names=tuple(f"{k}/{kind}" for k in range(10) for kind in ("aligned", "conflicting")),
        )
        self.context = RunContext(CPU, Seeds.all(0), self.recipe, self.recipe, build_model=self.fresh)
        self.base = self.fresh()  # made once: these methods train a fresh model and leave the base model alone
        self.used = self.recipe.total_steps(n) * self.recipe.batch_size

    def fresh(self) -> nn.Module:
        return build_model(self.spec, self.shape, 10, 0)

    def ours(self) -> nn.Module:
        return self.method.fit(self.task, self.base, self.context)

    def bare(self) -> nn.Module:
        """Balanced draws, training and the robust loss written out by hand."""
        name, stream = self.method.info.name, self.context.generator("batches")
        labels = self.g if name in ("subg", "rwg", "group_dro") else self.y
        x, y = self.images, self.y
        if name in ("suby", "subg"):
            order = torch.randperm(len(labels), generator=self.context.generator("subset"))
            counts = torch.bincount(labels)
            smallest = int(counts[counts > 0].min())
            shuffled = labels[order]
            kept = torch.cat([order[shuffled == k][:smallest] for k in range(len(counts)) if counts[k]])
            x, y = x[kept], y[kept]
        x = x.float() / 255
        model = self.fresh().train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.recipe.lr, weight_decay=self.recipe.weight_decay, fused=True
        )
        batches = self.drawn(labels, len(y), stream, resampled=name in ("rwy", "rwg", "group_dro"))
        one_hot, q = F.one_hot(self.g, 20).float(), torch.bincount(self.g, minlength=20).sign() / 20
        for _ in range(self.recipe.total_steps(len(self.y))):
            index = next(batches)
            optimizer.zero_grad()
            logits = model(x.index_select(0, index))
            target = y.index_select(0, index)
            if name == "group_dro":
                losses = F.cross_entropy(logits, target, reduction="none")
                member = one_hot.index_select(0, index)
                means = (losses[:, None] * member).sum(0) / member.sum(0).clamp(min=1)
                q = q * (0.01 * means.detach()).exp()
                q /= q.sum()
                loss = (q * means).sum()
            else:
                loss = F.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
        return model

    def drawn(self, labels: Tensor, kept: int, stream: torch.Generator, *, resampled: bool) -> Iterator[Tensor]:
        n, size = len(labels), self.recipe.batch_size
        cumulative = (1 / torch.bincount(labels).double())[labels].cumsum(0)
        while True:
            if resampled:
                u = torch.rand(n, generator=stream, dtype=torch.float64) * cumulative[-1]
                epoch = torch.searchsorted(cumulative, u, right=True).clamp(max=n - 1)
            else:
                epoch = torch.randperm(kept, generator=stream)
            yield from epoch.split(size)


@pytest.mark.parametrize("method", METHODS)
def test_the_bare_loop_trains_the_same_model(method: str) -> None:
    toy = Setting(method, n=400, epochs=2)
    ours, theirs = toy.ours(), toy.bare()
    start = toy.fresh()
    for a, b, before in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.equal(a, before)


@pytest.mark.parametrize("method", METHODS)
def test_speed_on_an_mlp(benchmark: Any, method: str) -> None:
    setting = Setting(method, epochs=5)
    assert compare(benchmark, setting.ours, setting.bare, images=setting.used, rounds=25) >= 0.9


@pytest.mark.parametrize("method", METHODS)
def test_speed_on_resnet18_at_64_pixels(benchmark: Any, method: str) -> None:
    setting = Setting(method, "resnet18", 256, (3, 64, 64), batch_size=32, steps=3)
    assert compare(benchmark, setting.ours, setting.bare, images=setting.used, rounds=11) >= 0.95
