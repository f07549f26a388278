"""A toy task with a strong shortcut: the class sits in noisy rows, the attribute in a clear corner pixel."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from harness.context import RunContext, Seeds
from harness.masks import MaskSet
from harness.method import MethodInfo
from harness.supervision import SplitTensors, Supervision, Task
from harness.training import TrainRecipe, fit, predict

SIDE = 6
BASE = TrainRecipe(lr=1e-2, batch_size=32, steps=120)
FINETUNE = TrainRecipe(optimizer="sgd", lr=0.05, batch_size=16, steps=20, clip_norm=1.0)
BIASED = {2: (180, 12, 12, 180), 3: (120, 12, 120, 12, 120, 12)}  # images per group, (class, aligned or conflicting)
EVEN = {2: (40, 40, 40, 40), 3: (30,) * 6}


class Net(nn.Module):
    """A two-layer classifier with `features` and `head`."""

    def __init__(self, classes: int, bias: bool = True):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.ReLU())
        self.head = nn.Linear(16, classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def split(name: str, sizes: tuple[int, ...], seed: int, noise: float = 40.0) -> SplitTensors:
    """Images per group in order (class 0 aligned, class 0 conflicting, class 1 aligned, ...), shuffled."""
    generator = torch.Generator().manual_seed(seed)
    classes = len(sizes) // 2
    g = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    g = g[torch.randperm(len(g), generator=generator)]
    y = g // 2
    a = (y + g % 2) % classes
    images = 100 + noise * torch.randn(len(g), 1, SIDE, SIDE, generator=generator)
    rows = torch.arange(len(g))
    images[rows, 0, 2 + y] += 40
    images[:, 0, 0, 0] = 20 + 200 * a / max(classes - 1, 1)
    return SplitTensors(name, images.clamp(0, 255).to(torch.uint8), y, a, g, None)


def splits(classes: int = 3, train: tuple[int, ...] | None = None, **changes: SplitTensors) -> dict[str, SplitTensors]:
    even = EVEN[classes]
    made = {
        "train": split("train", train or BIASED[classes], 1),
        "val": split("val", BIASED[classes], 2),
        "val_groups": split("val_groups", even, 3),
        "decorrelated": split("decorrelated", even, 4),
    }
    return made | changes


def task(data: dict[str, SplitTensors], supervision: Supervision, corrections: MaskSet | None = None) -> Task:
    classes = int(data["train"].y.max()) + 1
    names = [f"{c}/{kind}" for c, kind in itertools.product(range(classes), ("aligned", "conflicting"))]
    return Task(
        data,
        supervision,
        who="the method under test",
        class_names=tuple(str(c) for c in range(classes)),
        group_names=tuple(names),
        corrections=corrections,
    )


def task_for(info: MethodInfo, data: dict[str, SplitTensors]) -> Task:
    """A task that admits exactly what `info` declares."""
    index = torch.arange(0, len(data["train"].y), 5)
    masks = torch.zeros(len(index), SIDE, SIDE, dtype=torch.bool)
    masks[:, 0, 0] = True
    return task(data, info.supervision, MaskSet(index, masks) if info.uses_masks else None)


def context(classes: int = 3, seed: int = 0, recipe: TrainRecipe = BASE) -> RunContext:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Net(classes)

    return RunContext(torch.device("cpu"), Seeds.all(seed), recipe, FINETUNE, build_model=build)


def base_model(data: dict[str, SplitTensors], ctx: RunContext) -> nn.Module:
    """The engine's base model: plain ERM on the stream `base` of the `init` axis."""
    train = data["train"]
    return fit(ctx.fresh_model(), train.images, train.y, ctx.base_recipe, ctx, stream="base", axis="init")


def same(one: nn.Module, other: nn.Module) -> bool:
    """Equal parameters, bit for bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def worst_group(model: nn.Module, classes: int = 3) -> float:
    test = split("test", (100,) * 2 * classes, 99)
    hits = (predict(model, test.images).argmax(1) == test.y).double()
    return min(float(hits[test.g == k].mean()) for k in range(2 * classes))
