"""SUBG, SUBY, RWG, RWY: subset sizes, shares, randomness of the draw."""

from __future__ import annotations

import itertools

import pytest
import torch
from group_toys import context

from baselines.group_balancing import RwG, RwY, SubG, SubY
from baselines.groups import balanced_subset, group_sizes
from harness.errors import NotApplicable
from harness.supervision import SplitTensors, Supervision, Task

WATERBIRDS = (3498, 184, 56, 1057)
NAMES = ("land/land", "land/water", "water/land", "water/water")


def labels(sizes):
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def shares(batches, g, draws):
    drawn = torch.cat(list(itertools.islice(batches, draws)))
    return torch.bincount(g[drawn]).double() / len(drawn)


def test_subg_on_waterbirds_keeps_224_images():
    g = labels(WATERBIRDS)
    data = SplitTensors("train", torch.zeros(len(g), 1, 6, 6, dtype=torch.uint8), g // 2, g % 2, g, None)
    flags = Supervision.LABELS | Supervision.TRAIN_GROUPS
    view = Task({"train": data}, flags, who="subg", class_names=("land", "water"), group_names=NAMES)
    ctx = context(classes=2)
    SubG(SubG.Config(steps=1)).fit(view, ctx.fresh_model(), ctx)
    assert ctx.notes["subset_size"] == 224
    assert ctx.notes["smallest_group"] == {"water/land": 56}


def test_subset_is_balanced_without_repeats_and_random():
    g = labels(WATERBIRDS)
    subset = balanced_subset(g, torch.Generator().manual_seed(0))
    assert torch.bincount(g[subset]).tolist() == [56] * 4
    assert len(subset.unique()) == 224
    first = torch.cat([torch.nonzero(g == k).flatten()[:56] for k in range(4)])
    assert not set(subset.tolist()) <= set(first.tolist())
    assert set(subset.tolist()) != set(balanced_subset(g, torch.Generator().manual_seed(1)).tolist())


def test_subset_ignores_an_empty_group():
    g = labels((30, 0, 5, 20))
    assert torch.bincount(g[balanced_subset(g, torch.Generator().manual_seed(0))]).tolist() == [5, 0, 5, 5]


def test_subg_draws_from_one_fixed_subset():
    g, ctx = labels(WATERBIRDS), context()
    subset = SubG().subset(g, ctx)
    batches = SubG().batches(g[subset], ctx.base_recipe, ctx)
    epochs = [subset[torch.cat(list(itertools.islice(batches, 7)))] for _ in range(2)]
    assert set(epochs[0].tolist()) == set(epochs[1].tolist())
    assert len(epochs[0]) == 224
    assert epochs[0].tolist() != epochs[1].tolist()


def test_rwg_draws_a_quarter_from_each_group():
    g, ctx = labels(WATERBIRDS), context()
    got = shares(RwG().batches(g, ctx.base_recipe, ctx), g, 1200)  # 38,400 draws: std of a share 0.0022
    assert torch.allclose(got, torch.full((4,), 0.25, dtype=torch.float64), atol=0.01)


def test_class_methods_balance_classes_not_groups():
    g, ctx = labels(WATERBIRDS), context()
    y = g // 2
    for method in (SubY(), RwY()):
        subset = method.subset(y, ctx)
        kept = torch.arange(len(y)) if subset is None else subset
        batches = method.batches(y[kept], ctx.base_recipe, ctx)
        drawn = kept[torch.cat(list(itertools.islice(batches, 700)))]
        by_class = torch.bincount(y[drawn]).double() / len(drawn)
        assert torch.allclose(by_class, torch.full((2,), 0.5, dtype=torch.float64), atol=0.02)
        assert (g[drawn] == 2).double().mean() < 0.05


def test_group_sizes_names_what_is_empty():
    g = labels((30, 0, 5, 20))
    ctx = context()
    sizes = group_sizes(g // 2, g, NAMES, ctx, who="rwg", split="train")
    assert sizes.tolist() == [30, 0, 5, 20]
    assert ctx.notes == {"empty_groups": ["land/water"], "smallest_group": {"water/land": 5}}
    g = labels((30, 0, 0, 20))
    with pytest.raises(NotApplicable, match=r"rwg .*'train'.*land/water, water/land"):
        group_sizes(g // 2, g, NAMES, ctx, who="rwg", split="train")
