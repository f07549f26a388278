"""The choice of the alignment set: unique, seeded, balanced over classes, and unmoved by a shift of the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.errors import ConfigError
from methods.lvlm_va.sampling import HighEntropy, LowEntropy, Random, Sampler, class_quota, entropy

SAMPLERS = [LowEntropy, HighEntropy, Random]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(n: int = 200, k: int = 4, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, k, generator=generator(9)) * scale
    return z, torch.arange(n) % k


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("n", [1, 3, 50, 200])
def test_selection_is_n_unique_training_indices_and_seeded(sampler: type[Sampler], per_class: bool, n: int) -> None:
    z, y = logits()
    chosen = sampler(per_class).select(z, y, n, generator())
    assert chosen.dtype == torch.int64
    assert len(chosen) == len(chosen.unique()) == n
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < 200
    assert torch.equal(chosen, sampler(per_class).select(z, y, n, generator()))


def test_entropy_is_exact_where_float32_saturates() -> None:
    z = torch.tensor([[0.0, 0.0], [40.0, 0.0], [60.0, 0.0], [800.0, 0.0]])
    values = entropy(z)
    assert values.dtype == torch.float64
    assert float(values[0]) == pytest.approx(0.6931471805599453, rel=1e-12)
    assert float(values[1]) == pytest.approx(41 * torch.exp(torch.tensor(-40.0, dtype=torch.float64)).item(), rel=1e-9)
    assert values[1] > values[2] > 0
    assert values[3] == 0
    single = z.log_softmax(1)
    assert float((-(single.exp() * single).sum(1))[2]) < 1e-20  # nearly all of it is lost in float32


def test_low_and_high_entropy_take_the_two_ends() -> None:
    z, y = logits()
    order = entropy(z).argsort()
    low = LowEntropy(per_class=False).select(z, y, 30, generator())
    high = HighEntropy(per_class=False).select(z, y, 30, generator())
    assert set(low.tolist()) == set(order[:30].tolist())
    assert set(high.tolist()) == set(order[-30:].tolist())
    balanced = LowEntropy().select(z, y, 40, generator())
    for k in range(4):
        members = (y == k).nonzero().flatten()
        best = members[entropy(z)[members].argsort()[:10]]
        assert set(balanced[y[balanced] == k].tolist()) == set(best.tolist())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_shift_of_the_logits_changes_nothing(sampler: type[Sampler]) -> None:
    z, y = logits()
    z = (z * 256).round() / 256  # so that float32 holds z + shift exactly
    shift = torch.randint(-64, 64, (200, 1), generator=generator(3)).float()
    assert torch.equal(sampler().select(z, y, 60, generator()), sampler().select(z + shift, y, 60, generator()))


def test_ties_are_broken_by_the_seed_and_not_by_position() -> None:
    z, y = torch.full((400, 2), 0.0), torch.arange(400) // 200
    z[:, 0] = 2000.0  # every entropy is exactly 0
    first, second = (LowEntropy(per_class=False).select(z, y, 100, generator(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    share = y[first].double().mean()
    assert 0.3 < float(share) < 0.7  # by position, all would be of class 0
    audit = LowEntropy().audit(first, y, z)
    assert audit["zero_entropies"] == audit["tied_entropies"] == 400


def test_quota_is_equal_and_a_small_class_gives_its_rest_to_the_others() -> None:
    assert class_quota(torch.tensor([50, 50, 50]), 30, generator()).tolist() == [10, 10, 10]
    assert class_quota(torch.tensor([2, 50, 0, 50]), 30, generator()).tolist() == [2, 14, 0, 14]
    assert class_quota(torch.tensor([3, 4, 5]), 12, generator()).tolist() == [3, 4, 5]
    odd = [tuple(class_quota(torch.tensor([9, 9, 9]), 10, generator(seed)).tolist()) for seed in range(30)]
    assert set(odd) == {(4, 3, 3), (3, 4, 3), (3, 3, 4)}
    assert sum(class_quota(torch.tensor([9] * 10), 3, generator()).tolist()) == 3


def test_audit_counts_what_was_selected() -> None:
    z, y = logits()
    z[:3], z[3:5] = torch.tensor([900.0, 0, 0, 0]), z[5]
    chosen = LowEntropy().select(z, y, 10, generator())
    audit = LowEntropy().audit(chosen, y, z)
    assert audit["n"] == 10
    assert sum(audit["class_histogram"]) == 10
    assert max(audit["class_histogram"]) - min(audit["class_histogram"]) <= 1
    assert audit["zero_entropies"] == 3
    assert audit["tied_entropies"] == 6
    assert audit["entropy_max"] == float(entropy(z)[chosen].max())


@pytest.mark.parametrize("n", [0, 201])
def test_more_images_than_there_are_is_refused(n: int) -> None:
    z, y = logits()
    with pytest.raises(ConfigError, match="between 1 and 200"):
        LowEntropy().select(z, y, n, generator())


def test_parameters_are_part_of_the_identity() -> None:
    assert LowEntropy(per_class=False).params == {"per_class": False}
