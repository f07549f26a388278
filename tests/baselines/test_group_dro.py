"""GroupDRO: the group weights against the paper's formula, and the loss that is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from group_toys import context, same, split, splits, task_for
from torch import nn
from torch.nn import functional as F

from baselines.group_dro import GroupDro, GroupDroConfig, RobustLoss
from harness.errors import ConfigError

SIZES = torch.tensor([40, 10, 5, 45])
EVERY = torch.ones(4, dtype=torch.bool)


def robust(eta=0.1, adjustment=0.0, sizes=SIZES):
    groups = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return RobustLoss(groups, sizes, eta, adjustment)


def test_equal_losses_leave_q_unchanged():
    loss = robust()
    loss.update(torch.tensor([0.5, 2.0, 1.0, 0.1]), EVERY)
    before = loss.q
    loss.update(torch.full((4,), 0.7), EVERY)
    assert torch.allclose(loss.q, before, atol=1e-6)


def test_q_follows_the_papers_formula_and_sums_to_one():
    """Against the multiplicative form in float64, with groups missing from some batches."""
    generator = torch.Generator().manual_seed(0)
    loss, c = robust(eta=0.3, adjustment=2.0), 2.0
    q = np.full(4, 0.25)
    for _ in range(50):
        losses, present = torch.rand(4, generator=generator) * 3, torch.rand(4, generator=generator) > 0.3
        q *= np.where(present, np.exp(0.3 * (losses.double().numpy() + c / np.sqrt(SIZES.numpy()))), 1.0)
        q /= q.sum()
        loss.update(losses, present)
        assert float(loss.q.sum()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(loss.q.numpy(), q, rtol=1e-3, atol=1e-6)


def test_absent_groups_keep_their_ratio():
    loss = robust()
    loss.update(torch.tensor([3.0, 0.0, 9.0, 9.0]), torch.tensor([True, True, False, False]))
    q = loss.q
    assert q[0] > q[1]
    assert float(q[1] / q[2]) == pytest.approx(1, abs=1e-5)
    assert float(q[2] / q[3]) == pytest.approx(1, abs=1e-5)


def test_empty_group_has_no_weight():
    loss = robust(sizes=torch.tensor([40, 0, 5, 45]))
    assert loss.q.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    loss.update(torch.tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([True, False, True, True]))
    assert float(loss.q[1]) == 0
    assert float(loss.q.sum()) == pytest.approx(1, abs=1e-6)


def test_batch_loss_is_the_weighted_mean_and_the_adjustment_stays_out_of_it():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    index = torch.tensor([0, 1, 41, 42, 43, 60])  # groups 0, 0, 1, 1, 1, 3; group 2 is absent
    each = F.cross_entropy(model(x), y, reduction="none")
    means = torch.stack([each[:2].mean(), each[2:5].mean(), each[5]])
    for adjustment in (0.0, 5.0):
        loss = robust(adjustment=adjustment)
        value = loss(model, x, y, index).detach()
        assert float(value) == pytest.approx(float((loss.q[[0, 1, 3]] * means.detach()).sum()), abs=1e-6)
    plain, adjusted = robust(), robust(adjustment=5.0)
    plain(model, x, y, index)
    adjusted(model, x, y, index)
    assert adjusted.q[1] / adjusted.q[0] > plain.q[1] / plain.q[0]  # smaller groups are pushed up


def test_gradient_treats_q_as_constant():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    index = torch.tensor([0, 41, 51, 60])
    loss = robust(eta=1.0)
    loss(model, x, y, index).backward()
    got = model.weight.grad.clone()
    model.zero_grad()
    (loss.q * F.cross_entropy(model(x), y, reduction="none")).sum().backward()
    assert torch.allclose(got, model.weight.grad, atol=1e-6)


@pytest.mark.parametrize("reweight", [True, False])
def test_the_hardest_group_ends_with_the_largest_noted_weight(reweight):
    """All groups are easy but one, whose images are pure noise."""
    easy = split("train", (60,) * 6, 1, noise=2.0)
    noise = torch.randint(0, 256, easy.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = torch.where((easy.g == 3)[:, None, None, None], noise, easy.images)
    data, ctx = splits() | {"train": replace(easy, images=images)}, context()
    method = GroupDro(GroupDroConfig(steps=60, eta=0.1, reweight_groups=reweight))
    method.fit(task_for(GroupDro.info, data), ctx.fresh_model(), ctx)
    final = ctx.notes["final_q"]
    assert list(final) == [f"{c}/{kind}" for c in range(3) for kind in ("aligned", "conflicting")]
    assert sum(final.values()) == pytest.approx(1, abs=1e-5)
    assert max(final, key=final.get) == "1/conflicting"


def test_the_balanced_sampler_is_an_option():
    data, models = splits(), []
    for reweight in (True, False):
        ctx = context()
        method = GroupDro(GroupDroConfig(steps=5, reweight_groups=reweight))
        models.append(method.fit(task_for(GroupDro.info, data), ctx.fresh_model(), ctx))
    assert not same(*models)


@pytest.mark.parametrize("change", [{"eta": 0.0}, {"adjustment": -1.0}])
def test_wrong_settings_are_refused(change):
    with pytest.raises(ConfigError):
        GroupDroConfig(**change)
