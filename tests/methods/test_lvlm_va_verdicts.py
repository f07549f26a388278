"""The simulated critics: the truth, errors at the stated rates, and noise that is shared between rates."""

from __future__ import annotations

import pytest
import torch
from mask_toys import toy_alignment, toy_context, toy_split
from torch import Tensor

from harness.errors import ConfigError
from harness.supervision import Supervision
from methods.lvlm_va.verdicts import NoisyOracle, Oracle

N, J = 4000, 6


def truth() -> Tensor:
    g = torch.Generator().manual_seed(5)
    spurious = (torch.rand(N, J, generator=g) < 0.2).to(torch.int8)
    return spurious.masked_fill(torch.rand(N, J, generator=g) < 0.1, -1)


def test_oracle_marks_the_true_object() -> None:
    alignment, task = toy_alignment(blank=4)
    given = Oracle().masks(alignment, task, toy_context())
    assert given.verdicts is not None
    assert given.verdicts[4:].unique(dim=0).tolist() == [[1, 0, 0, -1]]
    assert given.verdicts[:4].unique().tolist() == [-1]
    assert torch.equal(given.masks[4:], toy_split("train", 120, 0).masks[4:60])  # type: ignore[index]
    assert not bool(given.masks[:4].any())
    assert task.ledger.as_dict()["masks/train"] == 60
    assert Oracle().supervision == NoisyOracle().supervision == Supervision.MASKS
    assert Oracle.info.simulated
    assert NoisyOracle.info.simulated


def test_without_errors_the_noisy_oracle_is_the_oracle() -> None:
    alignment, task = toy_alignment()
    perfect = Oracle().masks(alignment, task, toy_context())
    noiseless = NoisyOracle(fpr=0, fnr=0).masks(alignment, task, toy_context())
    assert torch.equal(perfect.masks, noiseless.masks)
    always_wrong = NoisyOracle(fpr=1, fnr=1).masks(alignment, task, toy_context())
    assert torch.equal(always_wrong.masks, (alignment.segments.labels > 0))


@pytest.mark.parametrize(("fpr", "fnr"), [(0.13, 0.13), (0.3, 0.0), (0.0, 0.5)])
def test_errors_come_at_the_stated_rates(fpr: float, fnr: float) -> None:
    given, true = NoisyOracle(fpr, fnr).judge(truth(), toy_context()), truth()
    for value, rate in ((0, fpr), (1, fnr)):
        of = true == value
        measured = float((given[of] != value).double().mean())
        assert abs(measured - rate) <= 4 * (rate * (1 - rate) / int(of.sum())) ** 0.5
    assert torch.equal(given == -1, true == -1)
    assert given.dtype == torch.int8


def test_noise_is_shared_between_rates_and_differs_between_seeds() -> None:
    true = truth()

    def errors(rate: float, seed: int = 0) -> Tensor:
        return NoisyOracle(rate, rate).judge(true, toy_context(seed)) != true

    assert torch.equal(errors(0.1), errors(0.1))
    assert not bool((errors(0.1) & ~errors(0.3)).any())  # every error at 0.1 is one at 0.3
    assert not torch.equal(errors(0.1), errors(0.1, seed=1))
    one, other = NoisyOracle(0.1, 0.5), NoisyOracle(0.1, 0.0)  # changing one rate leaves the other errors alone
    relevant = true == 0
    assert torch.equal(one.judge(true, toy_context())[relevant], other.judge(true, toy_context())[relevant])


def test_errors_are_independent_between_segments_of_an_image() -> None:
    true = torch.zeros(N, J, dtype=torch.int8)
    flips = (NoisyOracle(0.3, 0.3).judge(true, toy_context()) == 1).double()
    correlation = torch.corrcoef(flips.T) - torch.eye(J)
    assert float(correlation.abs().max()) < 0.08


@pytest.mark.parametrize(("fpr", "fnr", "named"), [(-0.1, 0.1, "fpr"), (0.1, 1.2, "fnr")])
def test_rates_outside_zero_and_one_are_refused(fpr: float, fnr: float, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        NoisyOracle(fpr, fnr)


def test_parameters_are_part_of_the_identity() -> None:
    assert NoisyOracle(fpr=0.2).params == {"fpr": 0.2, "fnr": 0.13}
    assert Oracle().params == {}
