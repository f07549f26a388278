"""RRR: which gradient is penalised, how the two terms are put together, and what fine-tuning with them does."""

from __future__ import annotations

import copy
import math
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from mask_toys import SIZE, Opaque, toy_cnn, toy_context, toy_mlp, toy_split, toy_task, trained, true_masks
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.alignment_batches import alignment_batches, check_finite, row_lookup
from baselines.erm import ErmContinue
from baselines.rrr import FORMS, RRR, PenalisedLoss, RRRConfig, finetune, input_gradient, penalty
from harness.errors import ConfigError, VabenchError
from harness.masks import MaskSet
from harness.training import Augmentation, cross_entropy, fit, predict


def images(n: int, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def loss_and_gradients(loss: Any, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, list[Tensor]]:
    value = loss(model, x, y, index)
    return value.detach(), list(torch.autograd.grad(value, list(model.parameters())))


# Which scalar is differentiated


def jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """p [B, K] and dz/dx [B, K, C, H, W] in float64, one class at a time: an independent route."""
    model, x = copy.deepcopy(model).double(), x.double().requires_grad_(True)
    z = model(x)
    rows = [torch.autograd.grad(z[:, k].sum(), x, retain_graph=True)[0] for k in range(z.shape[1])]
    return z.softmax(1).detach(), torch.stack(rows, 1)


@pytest.mark.parametrize("build", [toy_mlp, toy_cnn])
def test_gradient_of_sum_log_p_matches_its_formula_and_that_of_sum_p_is_zero(build: Any) -> None:
    model, x = build().eval(), images(5)
    p, dz = jacobian(model, x)
    expected = dz.sum(1) - p.shape[1] * (p[:, :, None, None, None] * dz).sum(1)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(input_gradient(model, x).double(), expected, rtol=0, atol=1e-6)
    variable = x.clone().requires_grad_(True)
    (of_sum_p,) = torch.autograd.grad(model(variable).softmax(1).sum(), variable)
    assert of_sum_p.abs().max() < 1e-6


def test_penalty_scales_with_the_inverse_square_of_the_input_range() -> None:
    model, x, mask = toy_mlp(), images(6), images(6, seed=1)[:, 0] > 0.5

    class On255(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x / 255)

    torch.testing.assert_close(penalty(On255(), x * 255, mask), penalty(model, x, mask) * 255.0**-2, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("margin", "of_error", "of_log_p"), [(0, 0.5, 0.0), (1, 0.269, 0.462), (3, 0.0474, 0.905), (10, 4.54e-5, 0.9999)]
)
def test_how_much_signal_each_form_keeps_at_a_margin(margin: float, of_error: float, of_log_p: float) -> None:
    model = toy_mlp(classes=2, widths=())
    x = images(1)
    with torch.no_grad():
        gap = model(x)[0, 1] - model(x)[0, 0]
        model.head.bias += torch.tensor([0.0, margin - float(gap)])
    whole, y = torch.ones(1, SIZE, SIZE), torch.tensor([1])
    reference = penalty(model, x, whole, "margin", create_graph=False).sqrt()
    error = penalty(model, x, whole, "cross_entropy", y=y, create_graph=False).sqrt()
    assert float(error / reference) == pytest.approx(of_error, rel=5e-3)
    log_p = penalty(model, x, whole, create_graph=False).sqrt()
    assert float(log_p / reference) == pytest.approx(of_log_p, rel=2e-3, abs=1e-5)
    if margin == 10:
        assert error < 1e-3 * log_p


def test_margin_is_the_labels_logit_against_the_mean_or_the_difference_of_two() -> None:
    x, y = images(4), torch.tensor([0, 2, 1, 1])
    model = toy_mlp()
    _, dz = jacobian(model, x)
    expected = dz[torch.arange(4), y] - dz.mean(1)
    torch.testing.assert_close(input_gradient(model, x, "margin", y=y).double(), expected, rtol=0, atol=1e-6)
    two = toy_mlp(classes=2)
    _, dz = jacobian(two, x)
    torch.testing.assert_close(input_gradient(two, x, "margin").double(), dz[:, 1] - dz[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "classes", "widths"), [(1, 2, (16,)), (3, 4, (12, 9)), (2, 3, ())])
def test_closed_form_equals_double_backward(form: str, channels: int, classes: int, widths: tuple[int, ...]) -> None:
    model = toy_mlp(3, channels, classes, widths)
    x, mask = images(7, channels), images(7, seed=2)[:, 0] > 0.6
    y = torch.arange(7) % classes
    closed, slow = penalty(model, x, mask, form, y=y), penalty(Opaque(model), x, mask, form, y=y)
    assert closed.shape == (7,)
    torch.testing.assert_close(closed, slow, rtol=1e-4, atol=1e-7)
    parameters = list(model.parameters())
    one = torch.autograd.grad(closed.sum(), parameters, materialize_grads=True, allow_unused=True)
    two = torch.autograd.grad(slow.sum(), parameters, materialize_grads=True, allow_unused=True)
    assert any(gradient.abs().max() > 1e-3 for gradient in one)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_forward_pass_that_does_more_than_its_layers_is_left_to_autograd() -> None:
    class Scaled(type(toy_mlp())):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    plain = toy_mlp()
    scaled = Scaled(plain.backbone, plain.head)
    x, mask = images(3), torch.ones(3, SIZE, SIZE)
    torch.testing.assert_close(penalty(scaled, x, mask), penalty(Opaque(scaled), x, mask))
    assert not torch.allclose(penalty(scaled, x, mask), penalty(plain, x, mask))


def test_penalty_leaves_batchnorm_and_the_input_alone() -> None:
    model, x = toy_cnn().train(), images(6)
    before = copy.deepcopy(model.state_dict())
    together = penalty(model, x, torch.ones(6, SIZE, SIZE))
    alone = penalty(model, x[:1], torch.ones(1, SIZE, SIZE))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-7)  # samples do not mix
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not x.requires_grad


def test_unknown_form_and_missing_labels_are_refused() -> None:
    x, mask = images(2), torch.ones(2, SIZE, SIZE)
    with pytest.raises(ConfigError, match=r"sum_p.*sum_log_p"):
        penalty(toy_mlp(), x, mask, "sum_p")
    with pytest.raises(ValueError, match="labels"):
        penalty(toy_mlp(), x, mask, "cross_entropy")


# The loss of a step


def penalised(masks: MaskSet, lam: float, n: int = 120, **changes: Any) -> PenalisedLoss:
    settings = {"form": "sum_log_p", "normalise": "none", "warmup": 0, **changes}
    return PenalisedLoss(row_lookup(masks.index, n, torch.device("cpu")), masks.masks, lam, **settings)


@pytest.mark.parametrize("build", [toy_mlp, toy_cnn])
def test_zero_masks_give_the_loss_and_gradients_of_cross_entropy(build: Any) -> None:
    model, x, y, index = build().eval(), images(9), torch.arange(9) % 3, torch.arange(9)
    zero = MaskSet(torch.arange(9), torch.zeros(9, SIZE, SIZE, dtype=torch.bool))
    one = MaskSet(torch.arange(9), torch.ones(9, SIZE, SIZE, dtype=torch.bool))
    expected, expected_gradients = loss_and_gradients(cross_entropy, model, x, y, index)
    value, gradients = loss_and_gradients(penalised(zero, 10.0), model, x, y, index)
    assert torch.equal(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))
    value, gradients = loss_and_gradients(penalised(one, 10.0), model, x, y, index)
    assert value > expected
    assert not any(torch.equal(a, b) for a, b in zip(gradients[:1], expected_gradients[:1], strict=True))


@pytest.mark.parametrize("wrap", [lambda m: m, Opaque])
def test_loss_is_error_plus_lambda_times_the_mean_over_alignment_samples(wrap: Any) -> None:
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 3:5] = masks[2, 0, 0] = True  # the fourth alignment image has an empty mask
    given = MaskSet(torch.tensor([3, 7, 11, 20]), masks)
    inner = toy_mlp()
    model, x, index = wrap(inner), images(6), torch.tensor([7, 50, 20, 3, 51, 7])  # 11 is not in the batch, 7 twice
    y = torch.arange(6) % 3
    each = penalty(Opaque(inner), x, masks[[1, 0, 3, 0, 0, 1]])
    expected = F.cross_entropy(inner(x), y) + 0.3 * (each[0] + each[3] + each[5]) / 4
    value, gradients = loss_and_gradients(penalised(given, 0.3), model, x, y, index)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-7)
    for a, b in zip(gradients, torch.autograd.grad(expected, list(inner.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_batch_without_alignment_samples_has_no_penalty() -> None:
    model, x, y, index = toy_mlp(), images(3), torch.arange(3), torch.tensor([70, 71, 72])
    assert torch.equal(penalised(true_masks(), 5.0)(model, x, y, index), cross_entropy(model, x, y, index))


def test_initial_normalisation_makes_the_first_penalty_equal_to_lambda() -> None:
    model, x, y, index = toy_mlp(), images(3), torch.arange(3), torch.arange(3)
    loss = penalised(true_masks(), 7.0, normalise="initial")
    first = loss(model, x, y, index) - cross_entropy(model, x, y, index)
    assert first.item() == pytest.approx(7.0, rel=1e-4)
    assert loss.initial == pytest.approx(penalty(model, x, true_masks().masks[:3]).mean().item(), rel=1e-4)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    later = loss(model, x, y, index) - cross_entropy(model, x, y, index)
    assert 0 < later.item() < 7.0


def test_warm_up_rises_evenly_in_the_logarithm_and_ends_at_lambda() -> None:
    model, x, y, index = toy_mlp(), images(3), torch.arange(3), torch.arange(3)
    loss = penalised(true_masks(), 2.0, warmup=3)
    error = cross_entropy(model, x, y, index).item()
    added = [loss(model, x, y, index).item() - error for _ in range(5)]
    full = penalised(true_masks(), 2.0)(model, x, y, index).item() - error
    assert added[2:] == pytest.approx([full] * 3, rel=1e-5)
    assert added[1] / added[0] == pytest.approx(10.0, rel=1e-2)
    assert added[2] / added[1] == pytest.approx(10.0, rel=1e-2)


@pytest.mark.parametrize("moves", [{"shift": 2}, {"flips": True}, {"shift": 2, "flips": True}])
def test_masks_move_with_their_images(moves: dict[str, Any]) -> None:
    """Images that are white exactly on their masks: after every move the masks must still lie on the white."""
    g = torch.Generator().manual_seed(0)
    masks = torch.rand(20, SIZE, SIZE, generator=g) < 0.2
    pictures, y = (masks[:, None] * 255).to(torch.uint8), torch.arange(20) % 3
    context = toy_context(steps=6, **moves)
    recipe = context.finetune_recipe
    lookup = row_lookup(torch.arange(20), 20, torch.device("cpu"))
    augment = Augmentation(recipe.shift, recipe.flips, context.generator("s/shift"))
    loss = PenalisedLoss(lookup, masks, 0.1, "sum_log_p", "none", 0, augment)
    seen = []

    def compare(model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        state = augment.generator.get_state()
        moved = loss._masks(loss.lookup[index], torch.arange(len(index)))
        augment.generator.set_state(state)
        seen.append((torch.equal(moved, x[:, 0] > 0), torch.equal(moved, masks[index])))
        return loss(model, x, y, index)

    fit(toy_mlp(), pictures, y, recipe, context, loss=compare, stream="s")
    assert [together for together, _ in seen] == [True] * 6
    assert not any(still for _, still in seen)


# Batches


def test_batches_have_one_size_and_a_fixed_share_of_alignment_images() -> None:
    y, index = torch.arange(50) % 3, torch.tensor([4, 9, 17, 23, 31])
    recipe = toy_context().finetune_recipe.with_(batch_size=12)
    first = list(islice(alignment_batches(y, index, recipe, 0.25, toy_context()), 40))
    assert {len(batch) for batch in first} == {12}
    own = torch.cat([batch[:3] for batch in first])
    assert set(own.tolist()) == set(index.tolist())
    assert set(Counter(own.tolist()).values()) == {24}  # epochs over the set: 120 draws, equally often
    rest = torch.cat([batch[3:] for batch in first])
    assert set(Counter(rest[:350].tolist()).values()) == {7}  # epochs over all images, short batches filled up
    again = list(islice(alignment_batches(y, index, recipe, 0.25, toy_context()), 40))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = list(islice(alignment_batches(y, index, recipe, 0.25, toy_context(seed=1)), 40))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_alignment_set_of_everything_leaves_the_sampling_alone() -> None:
    y = (torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.1).long()
    recipe = toy_context().finetune_recipe.with_(batch_size=20, sampling="class_balanced")
    drawn = torch.cat(list(islice(alignment_batches(y, torch.arange(60), recipe, 0.5, toy_context()), 50)))
    assert 0.4 < float(y[drawn].double().mean()) < 0.6
    with pytest.raises(ConfigError, match="share"):
        next(alignment_batches(y, torch.arange(3), recipe, 1.5, toy_context()))


# The repair


@pytest.mark.parametrize("moves", [{}, {"shift": 1}, {"shift": 1, "flips": True}])
def test_lambda_zero_is_erm_continue_bit_for_bit(moves: dict[str, Any]) -> None:
    base, task = trained(), toy_task(true_masks())
    zero = RRR(RRRConfig(lam=0.0)).fit(task, copy.deepcopy(base), toy_context(**moves))
    control = ErmContinue().fit(task, copy.deepcopy(base), toy_context(**moves))
    assert same(zero, control)
    assert not same(zero, base)
    one = RRR(RRRConfig(lam=0.1)).fit(task, copy.deepcopy(base), toy_context(**moves))
    assert not same(one, control)


def test_empty_masks_return_the_base_model_unchanged() -> None:
    base = trained()
    empty = MaskSet(torch.arange(5), torch.zeros(5, SIZE, SIZE, dtype=torch.bool))
    context = toy_context()
    assert same(RRR().fit(toy_task(empty), copy.deepcopy(base), context), base)
    assert context.notes == {"abstained": True}


def insert(split_images: Tensor, masks: Tensor, grey: int) -> Tensor:
    return torch.where(masks[:, None], torch.full_like(split_images, grey), split_images)


@pytest.mark.parametrize("start", ["base", "scratch"])
@pytest.mark.parametrize("wrap", [lambda m: m, Opaque])
def test_repair_makes_the_model_ignore_the_marked_pixels(start: str, wrap: Any) -> None:
    base = trained(wrap(toy_mlp()))
    held_out = toy_split("val", 200, 9)
    variants = [insert(held_out.images, held_out.masks, grey) for grey in (255, 135, 15)]

    def flips(model: nn.Module) -> float:
        answers = torch.stack([predict(model, variant).argmax(1) for variant in variants])
        return float((answers != answers[0]).any(0).double().mean())

    task = toy_task(true_masks(n=60))
    context = toy_context(steps=150)
    context.build_model = lambda: wrap(toy_mlp())
    repaired = RRR(RRRConfig(lam=1.0, start=start)).fit(task, copy.deepcopy(base), context)  # type: ignore[arg-type]
    control = ErmContinue().fit(task, copy.deepcopy(base), toy_context(steps=150))
    assert min(flips(base), flips(control)) > 0.5
    assert flips(repaired) < 0.25
    accuracy = (predict(repaired, held_out.images).argmax(1) == held_out.y).double().mean()
    assert accuracy > 0.6
    notes = context.notes
    assert notes["abstained"] is False
    assert notes["collapsed"] is False
    assert notes["mask_fraction"] == pytest.approx(4 / SIZE**2)
    assert notes["lam_scale_free"] == pytest.approx(notes["penalty_initial"] / math.log(3))
    assert notes["penalty_initial"] > 0


def test_fits_are_deterministic() -> None:
    base, task = trained(), toy_task(true_masks())
    first, second, other = (
        RRR(RRRConfig(lam=0.1)).fit(task, copy.deepcopy(base), toy_context(seed)) for seed in (0, 0, 1)
    )
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize(
    ("changes", "uniform"), [({}, True), ({"clip_norm": None, "optimizer": "adam", "lr": 1e-2}, False)]
)
def test_too_large_a_lambda_is_seen_as_a_collapse(changes: dict[str, Any], uniform: bool) -> None:
    context = toy_context(steps=300, **changes)
    RRR(RRRConfig(lam=1e5)).fit(toy_task(true_masks()), trained(), context)
    assert (context.notes["alignment_entropy"] > 0.9) is uniform  # Adam ends at one confident answer for all
    assert context.notes["collapsed"] is True


def test_early_stopping_keeps_the_weights_that_are_best_on_validation() -> None:
    def accuracy(early_stopping: str) -> float:
        context, task = toy_context(steps=300), toy_task(true_masks())
        config = RRRConfig(lam=100.0, early_stopping=early_stopping)  # type: ignore[arg-type]
        model = RRR(config).fit(task, trained(), context)
        return float((predict(model, task.val.images).argmax(1) == task.val.y).double().mean())

    assert accuracy("val") > accuracy("none")


def test_early_stopping_keeps_frozen_batchnorm_frozen() -> None:
    model = toy_cnn()
    before = model.backbone[1].running_mean.clone()
    config = RRRConfig(lam=0.1, early_stopping="val", batchnorm="frozen")
    RRR(config).fit(toy_task(true_masks()), model, toy_context())
    assert torch.equal(model.backbone[1].running_mean, before)
    RRR(RRRConfig(lam=0.1, batchnorm="train")).fit(toy_task(true_masks()), model, toy_context())
    assert not torch.equal(model.backbone[1].running_mean, before)


def test_divergence_is_a_typed_failure() -> None:
    with pytest.raises(VabenchError, match=r"diverged.*lower the penalty weight"):
        RRR(RRRConfig(lam=1.0, lr=1e12)).fit(toy_task(true_masks()), trained(), toy_context(clip_norm=None))
    model = toy_mlp()
    assert check_finite(model, "it") is model


def test_lambda_form_and_normalisation_come_from_the_preset_unless_given() -> None:
    settings = {"lam": 0.03, "penalty": {"form": "margin", "normalise": "initial"}}
    context = toy_context(settings=settings, steps=3)
    RRR().fit(toy_task(true_masks()), trained(), context)
    assert {k: context.notes[k] for k in ("lam", "form", "normalise")} == {
        "lam": 0.03,
        "form": "margin",
        "normalise": "initial",
    }
    context = toy_context(settings=settings, steps=3)
    RRR(RRRConfig(lam=0.5, form="sum_log_p", normalise="none")).fit(toy_task(true_masks()), trained(), context)
    assert (context.notes["lam"], context.notes["form"], context.notes["normalise"]) == (0.5, "sum_log_p", "none")
    everything = MaskSet(torch.arange(120), toy_split("train", 120, 0).masks)
    context = toy_context(settings={"lam": 1.0, "lam_all": 0.1}, steps=3)
    RRR().fit(toy_task(everything), trained(), context)
    assert context.notes["lam"] == 0.1


def test_the_presets_normalisation_is_not_applied_to_an_untrained_model() -> None:
    context = toy_context(settings={"penalty": {"normalise": "initial"}})
    RRR(RRRConfig(start="scratch", steps=3)).fit(toy_task(true_masks()), trained(), context)
    assert context.notes["normalise"] == "none"
    RRR(RRRConfig(start="scratch", steps=3, normalise="initial")).fit(toy_task(true_masks()), trained(), context)
    assert context.notes["normalise"] == "initial"


def test_tuned_track_takes_the_presets_grid_and_the_whole_budget_from_scratch() -> None:
    assert RRR.tuned({"lam": 9.0}, {"lam_grid": (1, 10)}, 500) == [{"lam": 1.0}, {"lam": 10.0}]
    assert RRR.tuned({"start": "scratch"}, {}, 500)[0] == {"start": "scratch", "steps": 500, "lam": 0.01}
    assert len(RRR.tuned({}, {}, 500)) == 3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lam": -1.0}, "lam"),
        ({"lam": math.inf}, "lam"),
        ({"ratio": 2.0}, "ratio"),
        ({"warmup": -1}, "warmup"),
        ({"form": "sum_p"}, "form"),
        ({"normalise": "always"}, "normalise"),
        ({"start": "middle"}, "start"),
        ({"early_stopping": "test"}, "early_stopping"),
        ({"batchnorm": "off"}, "batchnorm"),
        ({"steps": 0}, "steps"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RRRConfig(**wrong)


def test_finetune_can_be_called_without_a_config() -> None:
    given, context = true_masks(), toy_context()
    model = finetune(trained(), toy_task(given), context, index=given.index, masks=given.masks, lam=0.1)
    assert not model.training
    assert weights(model)[0].isfinite().all()
    assert context.notes["steps"] == 30
