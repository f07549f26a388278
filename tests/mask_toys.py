"""Toy suite, segments and contexts for the mask-based methods: 8x8 images whose class is also a grey corner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.context import RunContext, Seeds
from harness.masks import AlignmentSet, MaskSet
from harness.supervision import SplitTensors, Supervision, Task
from harness.training import TrainRecipe, fit

SIZE, CLASSES = 8, 3


@dataclass(frozen=True)
class ToySegments:
    labels: Tensor
    share: Tensor

    @property
    def count(self) -> int:
        return self.share.shape[1]

    @property
    def nonempty(self) -> Tensor:
        return torch.stack([(self.labels == j).flatten(1).any(1) for j in range(self.count)], 1)


class Net(nn.Module):
    """The shape of harness.models.Classifier."""

    def __init__(self, backbone: nn.Module, head: nn.Linear):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Opaque(nn.Module):
    """The same function without a visible structure: only autograd can differentiate it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def toy_mlp(
    seed: int = 0, channels: int = 1, classes: int = CLASSES, widths: tuple[int, ...] = (16,), size: int = SIZE
) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        last = channels * size * size
        for width in widths:
            layers += [nn.Linear(last, width), nn.ReLU()]
            last = width
        return Net(nn.Sequential(*layers), nn.Linear(last, classes))


def toy_cnn(seed: int = 0, channels: int = 1, classes: int = CLASSES) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return Net(nn.Sequential(*body, nn.Flatten()), nn.Linear(24, classes))


def toy_split(name: str, n: int, seed: int) -> SplitTensors:
    """Weak class signal in the middle rows, strong class-coded grey in a random 2x2 corner."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=g)
    images = torch.randint(0, 120, (n, 1, SIZE, SIZE), generator=g, dtype=torch.uint8)
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    for i in range(n):
        images[i, 0, 3 + int(y[i]) // 2, 2 : 5 + int(y[i])] += 90
        corner = int(torch.randint(0, 4, (1,), generator=g))
        top, left = (corner // 2) * (SIZE - 2), (corner % 2) * (SIZE - 2)
        masks[i, top : top + 2, left : left + 2] = True
    grey = (255 - 120 * y).to(torch.uint8)
    images = torch.where(masks[:, None], grey[:, None, None, None].expand_as(images), images)
    return SplitTensors(name, images, y, y.clone(), 2 * y, masks)


def toy_task(
    corrections: MaskSet | None = None, n: int = 120, supervision: Supervision = Supervision.LABELS, seed: int = 0
) -> Task:
    splits = {"train": toy_split("train", n, seed), "val": toy_split("val", 40, seed + 1)}
    names = tuple(f"class {k}" for k in range(CLASSES))
    return Task(
        splits, supervision, who="a test", class_names=names, group_names=("a", "c") * CLASSES, corrections=corrections
    )


def toy_context(seed: int = 0, settings: dict[str, Any] | None = None, **recipe: Any) -> RunContext:
    changes = {"optimizer": "sgd", "lr": 0.1, "batch_size": 16, "steps": 30, "clip_norm": 1.0, **recipe}
    base = TrainRecipe(lr=1e-2, batch_size=16, steps=120)
    return RunContext(
        torch.device("cpu"), Seeds.all(seed), base, TrainRecipe(**changes), dict(settings or {}), build_model=toy_mlp
    )


def trained(model: nn.Module | None = None, steps: int = 120) -> nn.Module:
    """A base model that has learned the grey."""
    context = toy_context()
    split = toy_split("train", 120, 0)
    recipe = context.base_recipe.with_(steps=steps)
    return fit(model or toy_mlp(), split.images, split.y, recipe, context, stream="base")


def true_masks(n: int = 40, total: int = 120) -> MaskSet:
    """Ground truth of the first n training images."""
    return MaskSet(torch.arange(n), toy_split("train", total, 0).masks[:n])


def toy_alignment(n: int = 60, seed: int = 0, blank: int = 0) -> tuple[AlignmentSet, Task]:
    """Images 0..n-1 with four segments: the decoy's corner, two patches in the middle, and one that is always empty.

    The first `blank` images have no positive attribution, thus no segment at all.
    """
    task = toy_task(supervision=Supervision.LABELS | Supervision.MASKS)
    index = torch.arange(n)
    truth = toy_split("train", 120, 0).masks[index]
    labels = torch.full((n, SIZE, SIZE), -1, dtype=torch.int8)
    labels[truth] = 0
    labels[:, 3, 2:5] = 1
    labels[:, 4, 2:7] = 2
    g = torch.Generator().manual_seed(seed)
    maps = torch.rand(n, SIZE, SIZE, generator=g) + 0.1
    maps[labels < 0] *= -1
    maps[:blank], labels[:blank] = -1.0, -1
    share = torch.stack([(maps * (labels == j)).flatten(1).sum(1) for j in range(4)], 1)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-9)
    segments = ToySegments(labels, share)
    return AlignmentSet(task.train, index, lambda: maps, lambda: segments), task  # type: ignore[arg-type, return-value]
