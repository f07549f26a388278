"""The simulated critics: the truth, errors at the stated rates, and noise that is shared between rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from mask_toys import toy_alignment, toy_context, toy_split
from torch import Tensor

from harness.errors import ConfigError
from harness.supervision import Supervision
from methods.lvlm_va.verdicts import NoisyOracle, Oracle, RepeatedOracle, SystematicOracle, brightest, brightness

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


def majority(rate: float, repeats: int, correlation: float) -> float:
    """Error rate of the majority, from the definition."""
    wrong = range(repeats // 2 + 1, repeats + 1)
    independent = sum(math.comb(repeats, k) * rate**k * (1 - rate) ** (repeats - k) for k in wrong)
    return correlation * rate + (1 - correlation) * independent


@pytest.mark.parametrize(("repeats", "correlation"), [(5, 0.5), (5, 0.0), (9, 0.8)])
def test_the_majority_errs_as_often_as_its_definition_says(repeats: int, correlation: float) -> None:
    given, true = RepeatedOracle(0.3, 0.2, repeats, correlation).judge(truth(), toy_context()), truth()
    for value, rate in ((0, 0.3), (1, 0.2)):
        of, expected = true == value, majority(rate, repeats, correlation)
        measured = float((given[of] != value).double().mean())
        assert abs(measured - expected) <= 4 * (expected * (1 - expected) / int(of.sum())) ** 0.5
    assert torch.equal(given == -1, true == -1)


def test_one_answer_or_equal_answers_are_the_noisy_oracle() -> None:
    noisy = NoisyOracle(0.3, 0.2).judge(truth(), toy_context())
    for repeats, correlation in ((1, 0.5), (7, 1.0)):
        repeated = RepeatedOracle(0.3, 0.2, repeats, correlation).judge(truth(), toy_context())
        assert torch.equal(repeated, noisy)
    assert not torch.equal(RepeatedOracle(0.3, 0.2, 7, 0.5).judge(truth(), toy_context()), noisy)


def test_class_rule_errs_on_the_chosen_classes_only() -> None:
    alignment, task = toy_alignment()
    context = toy_context()
    given = SystematicOracle("class", fpr=1, fnr=1, share=1 / 3).masks(alignment, task, context)
    perfect = Oracle().masks(alignment, task, context)
    wrong = (given.verdicts != perfect.verdicts).any(1)  # type: ignore[union-attr]
    (chosen,) = context.notes["systematic_classes"]
    assert torch.equal(wrong, task.train.y[:60] == chosen)
    chosen_by_seed = set()
    for seed in range(6):
        other = toy_context(seed)
        SystematicOracle("class", share=1 / 3).masks(alignment, task, other)
        chosen_by_seed |= set(other.notes["systematic_classes"])
    assert len(chosen_by_seed) > 1


def test_appearance_rule_errs_on_the_brightest_relevant_segments() -> None:
    alignment, task = toy_alignment()
    given = SystematicOracle("appearance", fpr=1, share=0.25).masks(alignment, task, toy_context()).verdicts
    perfect = Oracle().masks(alignment, task, toy_context()).verdicts
    assert given is not None
    assert perfect is not None
    wrong = given != perfect
    relevant = perfect == 0
    values = torch.zeros(60, 4, dtype=torch.float64)
    for i in range(60):
        for j in range(4):
            inside = alignment.segments.labels[i] == j
            values[i, j] = alignment.images[i, 0][inside].double().mean() / 255 if bool(inside.any()) else 0.0
    assert torch.allclose(brightness(alignment.images, alignment.segments), values)
    assert not bool((wrong & ~relevant).any())
    assert int(wrong.sum()) == round(0.25 * int(relevant.sum()))
    assert float(values[wrong].min()) >= float(values[relevant & ~wrong].max())


def test_appearance_rule_at_half_the_rate_errs_on_half_of_them() -> None:
    prone = brightest(truth(), torch.rand(N, J, generator=torch.Generator().manual_seed(1)), 0.5)
    for value in (0, 1):
        of = truth() == value
        assert int(prone[of].sum()) == round(0.5 * int(of.sum()))
    assert not bool(prone[truth() == -1].any())
    alignment, task = toy_alignment(n=100)
    given = SystematicOracle("appearance", fpr=0.5, fnr=0.5, share=1).masks(alignment, task, toy_context()).verdicts
    assert torch.equal(given, NoisyOracle(0.5, 0.5).masks(alignment, task, toy_context()).verdicts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepeatedOracle(repeats=4), "odd whole number"),
        (lambda: RepeatedOracle(correlation=1.1), "repeated_oracle: correlation"),
        (lambda: SystematicOracle(rule="colour"), "'class' or 'appearance', not 'colour'"),
        (lambda: SystematicOracle(share=2), "systematic_oracle: share"),
        (lambda: SystematicOracle(fpr=-1), "systematic_oracle: fpr"),
    ],
)
def test_wrong_structures_are_refused(make: Callable[[], Oracle], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_structures_say_that_they_are_simulated_and_what_they_read() -> None:
    assert RepeatedOracle.info.simulated
    assert SystematicOracle.info.simulated
    assert SystematicOracle().supervision == Supervision.MASKS | Supervision.LABELS
    assert SystematicOracle("class", share=0.2).params == {"rule": "class", "fpr": 1.0, "fnr": 0.0, "share": 0.2}
    assert RepeatedOracle().params == {"fpr": 0.13, "fnr": 0.13, "repeats": 5, "correlation": 0.5}
