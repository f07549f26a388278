"""JTT, DFR, CAIPI and path RRR against the same arithmetic written out by hand, or against a step of ERM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.ratios import compare
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.alignment_batches import alignment_batches
from baselines.groups import balanced_subset
from baselines.l1_regression import L1
from harness.context import RunContext, Seeds
from harness.masks import MaskSet
from harness.models import build_model
from harness.registry import registry
from harness.spec import parse_spec
from harness.supervision import SplitTensors, Task
from harness.training import TrainRecipe, fit

CPU = torch.device("cpu")
REPAIR = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "clip_norm": 1.0}  # the presets' fine-tuning
REFITS, C_VALUES = 5, (1.0, 0.1)


class Setting:
    """Random images in ten classes with a bright corner in 97 of 100; an eighth of them carry a mask of it."""

    def __init__(
        self, method: str, config: dict[str, Any], model: str, n: int, shape: tuple[int, int, int], **recipe: Any
    ):
        g = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8)
        self.y = torch.arange(n) % 10
        self.a = torch.where(torch.rand(n, generator=g) < 0.03, (self.y + 1) % 10, self.y)
        self.g = 2 * self.y + (self.a != self.y)
        for k in range(10):
            self.images[self.a == k, :, :4, :4] = 25 * k
        self.masks = torch.zeros(n // 8, *shape[1:], dtype=torch.bool)
        self.masks[:, :4, :4] = True
        self.index = torch.arange(len(self.masks))
        self.recipe, self.shape, self.spec = TrainRecipe(**recipe), shape, parse_spec(model)
        self.context = RunContext(CPU, Seeds.all(0), self.recipe, self.recipe, build_model=self.fresh)
        found = registry("methods").load(method)
        self.method = found(found.Config(**config))
        split = SplitTensors("train", self.images, self.y, self.a, self.g, None)
        self.task = Task(
            {"train": split, "val_groups": split},
            self.method.info.supervision,
            who=method,
            class_names=tuple("0123456789"),
            group_names=tuple(f"{k}/{kind}" for k in range(10) for kind in ("aligned", "conflicting")),
            corrections=MaskSet(self.index, self.masks),
        )
        self.base = self.fresh()
        self.start = {name: value.clone() for name, value in self.base.state_dict().items()}

    def fresh(self) -> nn.Module:
        return build_model(self.spec, self.shape, 10, 0)

    def begin(self) -> nn.Module:
        self.base.load_state_dict(self.start)
        return self.base.eval()

    def ours(self) -> nn.Module:
        return self.method.fit(self.task, self.begin(), self.context)

    def finetuning(self) -> Any:
        return alignment_batches(self.y, self.index, self.recipe, 0.5, self.context)

    def trained(self, model: nn.Module, x: Tensor, y: Tensor, batches: list[Tensor], cut: int | None = None) -> None:
        """A plain loop over these batches. cut: positions from here on are a mean of their own in the loss."""
        optimizer: torch.optim.Optimizer
        recipe, adam = self.recipe, self.recipe.optimizer == "adamw"
        if adam:
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
            )
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, fused=True)
        model.train()
        for index in batches:
            optimizer.zero_grad()
            logits, target = model(x.index_select(0, index)), y.index_select(0, index)
            if cut is None:
                loss = F.cross_entropy(logits, target)
            else:
                own = int((index < cut).sum())
                loss = F.cross_entropy(logits[:own], target[:own]) + F.cross_entropy(logits[own:], target[own:])
            loss.backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
        model.eval()


def same(ours: nn.Module, theirs: nn.Module, start: nn.Module) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), start.parameters(), strict=True))


class JttSetting(Setting):
    """Two trainings, the second with the errors of the first six times."""

    def __init__(self, model: str, n: int, shape: tuple[int, int, int], **recipe: Any):
        super().__init__("jtt", {"stage1_epochs": 1, "lambda_up": 5}, model, n, shape, **recipe)

    def bare(self) -> nn.Module:
        x, size = self.images.float() / 255, self.recipe.batch_size
        first, model = self.context.generator("jtt/stage1"), self.fresh()
        self.trained(model, x, self.y, list(torch.randperm(len(x), generator=first).split(size)))
        with torch.no_grad():
            wrong = torch.cat([model(part).argmax(1) for part in x.split(2048)]) != self.y
        pool = torch.cat([torch.arange(len(x)), wrong.nonzero().flatten().repeat(5)])
        second, batches = self.context.generator("base", "init"), list[Tensor]()
        steps = self.recipe.total_steps(len(x))
        while len(batches) < steps:
            batches += [pool[i] for i in torch.randperm(len(pool), generator=second).split(size)]
        model = self.fresh()
        self.trained(model, x, self.y, batches[:steps])
        return model

    @property
    def used(self) -> int:
        return (self.recipe.total_steps(len(self.y)) + -(-len(self.y) // self.recipe.batch_size)) * (
            self.recipe.batch_size
        )


class CaipiSetting(Setting):
    """Three noisy copies of every marked image; batches are drawn before the clock, ours draws its own."""

    def __init__(self, model: str, n: int, shape: tuple[int, int, int], **recipe: Any):
        super().__init__("caipi", {"only_if_correct": False}, model, n, shape, **REPAIR, **recipe)
        drawn, n = self.finetuning(), len(self.images)
        self.batches = []
        for _ in range(self.recipe.total_steps(n)):
            batch = next(drawn)
            own = batch[batch < len(self.index)]
            copies = n + 3 * own.repeat_interleave(3) + torch.arange(3).repeat(len(own))
            self.batches.append(torch.cat([batch, copies]))
        self.used = sum(map(len, self.batches))

    def bare(self) -> nn.Module:
        generator, own = self.context.generator("caipi"), self.images[: len(self.masks)]
        noise = [torch.randint(0, 256, own.shape, dtype=torch.uint8, generator=generator) for _ in range(3)]
        copies = torch.stack([torch.where(self.masks[:, None], values, own) for values in noise], 1).flatten(0, 1)
        x = torch.cat([self.images, copies]).float() / 255
        y = torch.cat([self.y, self.y[: len(self.masks)].repeat_interleave(3)])
        model = self.begin()
        self.trained(model, x, y, self.batches, cut=len(self.images))
        return model


class DfrSetting(Setting):
    """Last layer on all images as val_groups: two values of c tried on halves, five subsets averaged."""

    def __init__(self, model: str, n: int, shape: tuple[int, int, int]):
        super().__init__("dfr", {"refits": REFITS, "c_values": C_VALUES}, model, n, shape, epochs=1)

    @torch.no_grad()
    def bare(self) -> nn.Module:
        model: Any = self.begin()
        features = [model.features(part.float() / 255).double() for part in self.images.split(2048)]
        scaler = StandardScaler().fit(torch.cat(features).numpy())
        features = [model.features(part.float() / 255).double() for part in self.images.split(2048)]
        x, y, g = scaler.transform(torch.cat(features).numpy()), self.y.numpy(), self.g.numpy()

        def solved(rows: Tensor, c: float, seed: int) -> tuple[Any, Any]:
            one = LogisticRegression(**L1, C=c, solver="liblinear", max_iter=1000, random_state=seed)
            parts = OneVsRestClassifier(one).fit(x[rows], y[rows]).estimators_
            return np.concatenate([p.coef_ for p in parts]), np.concatenate([p.intercept_ for p in parts])

        half, scores = self.context.generator("dfr/halves"), []
        order = torch.randperm(len(y), generator=half)
        pieces = [order[self.g[order] == k] for k in torch.unique(self.g)]
        first = torch.cat([piece[: (len(piece) + 1) // 2] for piece in pieces])
        second = torch.cat([piece[(len(piece) + 1) // 2 :] for piece in pieces]).numpy()
        chosen = first[balanced_subset(self.g[first], half)]
        for c in C_VALUES:
            weight, bias = solved(chosen, c, self.context.seed("dfr/tune") % 2**31)
            right = (x[second] @ weight.T + bias).argmax(1) == y[second]
            groups = [right[g[second] == k].mean() for k in np.unique(g[second])]
            scores.append((min(groups), float(np.mean(groups)), -c))
        draws, seed, heads = self.context.generator("dfr/subsets"), self.context.seed("dfr/refits") % 2**31, []
        for _ in range(REFITS):
            heads.append(solved(balanced_subset(self.g, draws), -max(scores)[2], seed))
        weight = np.mean([w for w, _ in heads], 0) / scaler.scale_
        model.head.weight.copy_(torch.as_tensor(weight))
        model.head.bias.copy_(torch.as_tensor(np.mean([b for _, b in heads], 0) - weight @ scaler.mean_))
        return self.base


@pytest.mark.parametrize(
    "toy",
    [
        lambda: JttSetting("mlp", 400, (1, 28, 28), epochs=2),
        lambda: CaipiSetting("mlp", 400, (1, 28, 28), steps=5),
        lambda: DfrSetting("mlp", 600, (1, 28, 28)),
    ],
    ids=["jtt", "caipi", "dfr"],
)
def test_the_bare_loop_makes_the_same_model(toy: Any) -> None:
    setting = toy()
    ours = {name: value.clone() for name, value in setting.ours().state_dict().items()}
    theirs = setting.bare()
    mine, start = setting.fresh(), setting.fresh()
    mine.load_state_dict(ours)
    same(mine, theirs, start)


def test_jtt_on_an_mlp(benchmark: Any) -> None:
    setting = JttSetting("mlp", 4000, (1, 28, 28), epochs=4)
    assert compare(benchmark, setting.ours, setting.bare, images=setting.used, rounds=25) >= 0.9


def test_jtt_on_resnet18_at_64_pixels(benchmark: Any) -> None:
    setting = JttSetting("resnet18", 64, (3, 64, 64), batch_size=32, steps=2)
    assert compare(benchmark, setting.ours, setting.bare, images=setting.used, rounds=9) >= 0.9


def test_caipi_on_an_mlp(benchmark: Any) -> None:
    setting = CaipiSetting("mlp", 4000, (1, 28, 28), steps=60)
    assert compare(benchmark, setting.ours, setting.bare, images=setting.used, rounds=25) >= 0.9


def test_caipi_on_resnet18_at_64_pixels(benchmark: Any) -> None:
    setting = CaipiSetting("resnet18", 128, (3, 64, 64), batch_size=16, steps=3)
    assert compare(benchmark, setting.ours, setting.bare, images=setting.used, rounds=9) >= 0.9


def test_dfr_on_an_mlp(benchmark: Any) -> None:
    setting = DfrSetting("mlp", 4000, (1, 28, 28))
    assert compare(benchmark, setting.ours, setting.bare, images=4000, rounds=5) >= 0.9


@pytest.mark.parametrize(
    ("model", "n", "shape", "steps", "batch"),
    [("mlp", 4000, (1, 28, 28), 60, 128), ("resnet18", 64, (3, 64, 64), 3, 16)],
    ids=["mlp", "resnet18"],
)
def test_path_rrr_step(benchmark: Any, model: str, n: int, shape: tuple[int, int, int], steps: int, batch: int) -> None:
    setting = Setting("path_rrr", {}, model, n, shape, **REPAIR, steps=steps, batch_size=batch)

    def erm() -> None:
        fit(setting.begin(), setting.images, setting.y, setting.recipe, setting.context, batches=setting.finetuning())

    assert 1 / compare(benchmark, setting.ours, erm, images=steps * batch, rounds=9) <= 3
