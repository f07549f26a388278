"""Path RRR: its derivative adds up to the object's effect, its loss is put together as said, and it repairs a toy."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from mask_toys import CLASSES, SIZE, Net, toy_cnn, toy_context, toy_mlp, toy_split, toy_task, trained, true_masks
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from baselines.caipi import counterexamples
from baselines.erm import ErmContinue
from baselines.path_rrr import PathLoss, PathRRR, PathRRRConfig, fill_direction, paste_direction, path_derivative
from baselines.rrr import RRR, RRRConfig, scalar
from harness.errors import ConfigError, VabenchError
from harness.masks import MaskSet
from harness.supervision import SplitTensors, Supervision, Task
from harness.training import Augmentation, cross_entropy, fit, predict, random_shift, to_float


def toys(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Images float [n, 1, 8, 8], labels and true masks."""
    split = toy_split("train", 120, 0)
    assert split.masks is not None
    return to_float(split.images[:n]), split.y[:n], split.masks[:n]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def path_loss(masks: Tensor, lam: float = 2.0, seed: int = 0, **rest: Any) -> PathLoss:
    return PathLoss(torch.arange(len(masks)), masks, lam, seeded(seed), **{"normalise": "none", **rest})


# The path and its derivative


def test_the_fill_is_the_mean_colour_outside_the_mask_as_in_caipi() -> None:
    g = seeded()
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    masks = torch.rand(5, SIZE, SIZE, generator=g) < 0.4
    masks[0] = True  # no outside: the image's own mean
    x = to_float(images)
    direction = fill_direction(x, masks)
    assert float(direction[(~masks)[:, None].expand_as(direction)].abs().max()) == 0
    filled = counterexamples(images, masks, torch.zeros(5, dtype=torch.int64), "mean", 1, g)
    torch.testing.assert_close((x + direction) * 255, filled.float(), rtol=0, atol=0.51)
    torch.testing.assert_close(x[0] + direction[0], x[0].mean((1, 2), keepdim=True).expand_as(x[0]))


@pytest.mark.parametrize("kind", ["fill", "paste"])
@pytest.mark.parametrize("build", [toy_mlp, toy_cnn])
def test_the_derivative_adds_up_to_the_effect_of_the_whole_path(build: Any, kind: str) -> None:
    model = trained(build(), steps=60)
    x, y, masks = toys()
    direction = fill_direction(x, masks) if kind == "fill" else paste_direction(x, x.roll(1, 0), masks.roll(1, 0))
    points = 4000
    total = torch.zeros(len(x), dtype=torch.float64)
    for part in ((torch.arange(points) + 0.5) / points).split(500):
        along = (x[:, None] + part[:, None, None, None] * direction[:, None]).flatten(0, 1)
        repeated = direction.repeat_interleave(len(part), 0)
        slopes = path_derivative(model, along, repeated, y.repeat_interleave(len(part)), create_graph=False)
        total += slopes.view(len(x), -1).double().sum(1)
    with torch.no_grad():
        effect = scalar(model(x + direction), y, "margin") - scalar(model(x), y, "margin")
    assert effect.abs().min() > 0.01
    assert effect.abs().max() > 1.0
    torch.testing.assert_close(total / points, effect.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("classes", [2, CLASSES])
def test_one_point_is_exact_for_a_linear_model(classes: int) -> None:
    model = toy_mlp(classes=classes, widths=())
    x, y, masks = toys()
    y, direction = y % classes, fill_direction(x, masks)
    logits = model(x + direction) - model(x)
    effect = logits[:, 1] - logits[:, 0] if classes == 2 else logits[torch.arange(6), y] - logits.mean(1)
    for a in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            path_derivative(model, x + a * direction, direction, y), effect, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("build", [toy_mlp, toy_cnn])
def test_reverse_mode_equals_forward_mode_in_value_and_in_the_weights_gradient(build: Any) -> None:
    model = trained(build(), steps=30)
    x, y, masks = toys()
    direction = fill_direction(x, masks)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
    expected = tangent.gather(1, y[:, None]).squeeze(1) - tangent.mean(1)
    found = path_derivative(model, x, direction, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = [w for w in model.parameters() if w.ndim > 1]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_derivative_leaves_batchnorm_alone() -> None:
    model, (x, y, masks) = toy_cnn().train(), toys()
    before = copy.deepcopy(model)
    together = path_derivative(model, x, fill_direction(x, masks), y)
    alone = path_derivative(model, x[:1], fill_direction(x, masks)[:1], y[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-7)
    assert same(model, before)
    assert all(module.training for module in model.modules())


# The loss


def test_the_loss_is_the_mean_over_alignment_samples_of_the_squared_derivative() -> None:
    model, (x, y, masks) = trained(), toys(8)
    masks[2:4] = False
    lookup = torch.tensor([0, -1, 2, 3, 4, 5, -1, 7])  # rows 2 and 3 are empty: they count, and add nothing
    loss = PathLoss(lookup, masks, 2.0, seeded(), normalise="none")
    value = loss(model, x, y, torch.arange(8))
    paths = torch.tensor([0, 4, 5, 7])
    a = torch.rand(4, generator=seeded())[:, None, None, None]
    direction = fill_direction(x, masks)[paths]
    slopes = path_derivative(model, x[paths] + a * direction, direction, y[paths])
    expected = F.cross_entropy(model(x), y) + 2.0 * slopes.square().sum() / 6
    torch.testing.assert_close(value, expected)
    scaled = PathLoss(lookup, masks, 2.0, seeded())
    torch.testing.assert_close(scaled(model, x, y, torch.arange(8)), F.cross_entropy(model(x), y) + 2.0)
    assert scaled.initial == pytest.approx(float(slopes.detach().square().sum() / 6), rel=1e-5)


def test_empty_masks_cost_nothing_unless_a_partner_lends_its_object() -> None:
    model, (x, y, masks) = trained(), toys(8)
    donors, index = ((x * 255).round().to(torch.uint8)[:4], masks[:4]), torch.arange(4, 8)
    masks = masks.clone()
    masks[4:] = False
    error = cross_entropy(model, x[4:], y[4:], index)
    assert torch.equal(path_loss(masks)(model, x[4:], y[4:], index), error)
    value = path_loss(masks, donors=donors)(model, x[4:], y[4:], index)
    draws = seeded()
    row = torch.randint(4, (4,), generator=draws)
    a = torch.rand(4, generator=draws)[:, None, None, None]
    direction = paste_direction(x[4:], to_float(donors[0][row]), donors[1][row])
    slopes = path_derivative(model, x[4:] + a * direction, direction, y[4:])
    torch.testing.assert_close(value, error + 2.0 * slopes.square().mean())
    assert value - error > 1e-3


def test_a_marked_image_is_filled_whether_or_not_there_are_partners() -> None:
    x, _, masks = toys(8)
    donors = ((x[:5] * 255).round().to(torch.uint8), masks[:5])
    marked = torch.arange(8) < 5
    shown = masks & marked[:, None, None]
    found = path_loss(shown, donors=donors)._direction(x, shown, marked)
    assert torch.equal(found[:5], fill_direction(x, masks)[:5])
    ends = (x + found)[5:]
    pasted = (ends - x[5:]).abs().flatten(1).sum(1) > 0
    assert bool(pasted.all())


def test_a_model_blind_to_the_masked_pixels_gets_no_gradient_from_the_penalty() -> None:
    x, y, masks = toys(8)
    masks = masks[:1].expand(8, -1, -1).contiguous()

    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_cnn().eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * ~masks[:1, None])

    model = Blind()
    parameters = list(model.parameters())
    value = path_loss(masks, lam=1e6)(model, x, y, torch.arange(8))
    plain = F.cross_entropy(model(x), y)
    assert torch.equal(value, plain)
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(plain, parameters, allow_unused=True, materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_masks_move_along_with_shifted_images() -> None:
    model, (x, y, masks) = trained(), toys(8)
    moved, moved_masks = random_shift(x, 1, seeded(5)), random_shift(masks[:, None].float(), 1, seeded(5))[:, 0] > 0
    assert not torch.equal(masks, moved_masks)
    assert bool(moved_masks.flatten(1).any(1).all())
    index = torch.arange(8)
    with_shift = path_loss(masks, augment=Augmentation(1, False, seeded(5)))(model, moved, y, index)
    torch.testing.assert_close(with_shift, path_loss(moved_masks)(model, moved, y, index))


# The method


@pytest.mark.parametrize("partner", [False, True])
def test_lambda_zero_is_erm_continue_bit_for_bit(partner: bool) -> None:
    base, masks = trained(), true_masks()
    context, control = toy_context(shift=1), toy_context(shift=1)
    repaired = PathRRR(PathRRRConfig(lam=0.0, partner=partner)).fit(toy_task(masks), copy.deepcopy(base), context)
    assert same(repaired, ErmContinue().fit(toy_task(masks), copy.deepcopy(base), control))
    assert not same(repaired, base)


def test_nothing_marked_returns_the_base_model_unchanged() -> None:
    base, context = trained(), toy_context()
    empty = MaskSet(torch.arange(5), torch.zeros(5, SIZE, SIZE, dtype=torch.bool))
    assert same(PathRRR(PathRRRConfig(partner=True)).fit(toy_task(empty), copy.deepcopy(base), context), base)
    assert context.notes == {"abstained": True}


@pytest.mark.parametrize("partner", [False, True])
def test_fits_are_deterministic_and_recorded(partner: bool) -> None:
    base, half = trained(), true_masks()
    half.masks[::2] = False
    config = PathRRRConfig(partner=partner)
    contexts = [toy_context(seed, steps=5) for seed in (0, 0, 1)]
    first, second, other = (PathRRR(config).fit(toy_task(half), copy.deepcopy(base), c) for c in contexts)
    assert same(first, second)
    assert not same(first, other)
    notes = contexts[0].notes
    assert notes["partner"] is partner
    assert notes["images_with_mask"] == 20
    assert notes["normalise"] == "initial"
    assert notes["penalty_initial"] > 0
    assert notes["lam_scale_free"] == pytest.approx(10 / math.log(CLASSES))
    assert "path derivative" in notes["reduction"]


def test_lambda_comes_from_a_preset_that_scales_its_penalty_in_the_same_way() -> None:
    images = {"lam": 3.0, "lam_grid": [2, 20], "penalty": {"form": "margin", "normalise": "initial"}}
    decoys = {"lam": 1.0, "lam_grid": [0.01, 0.1, 1.0], "penalty": {"form": "sum_log_p", "normalise": "none"}}
    assert PathRRR.tuned({"partner": True}, images, 9) == [{"partner": True, "lam": lam} for lam in (2.0, 20.0)]
    assert [c["lam"] for c in PathRRR.tuned({}, decoys, 9)] == [1.0, 10.0, 100.0]
    for settings, given, lam in ((images, None, 3.0), (decoys, None, 10.0), (images, 0.5, 0.5)):
        context = toy_context(settings=settings, steps=1)
        PathRRR(PathRRRConfig(lam=given)).fit(toy_task(true_masks()), toy_mlp(), context)
        assert context.notes["lam"] == lam


def test_divergence_is_a_typed_failure() -> None:
    with pytest.raises(VabenchError, match=r"path RRR.*diverged"):
        PathRRR(PathRRRConfig(lr=1e30)).fit(toy_task(true_masks()), trained(), toy_context(clip_norm=None))


@pytest.mark.parametrize(
    "wrong",
    [{"lam": -1.0}, {"lam": math.nan}, {"partner": "yes"}, {"normalise": "mean"}, {"ratio": 1.5}, {"warmup": -1}],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PathRRRConfig(**wrong)


# A large smooth object, present or absent

SIDE, RHO = 20, 0.9


def disc_split(name: str, n: int, seed: int, present: bool | None = None) -> SplitTensors:
    """Faint horizontal or vertical stripes say the class; a disc of one colour shows it on 90 % of the images.

    present: the same images all with, or all without the disc.
    """
    g = seeded(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    y = draw(0, 2, n)
    a = torch.where(torch.rand(n, generator=g) < RHO, 1 - y, y)
    a = a if present is None else torch.full_like(a, int(present))
    stripes = (torch.arange(SIDE) // 2) % 2 * 10 - 5
    across = torch.where(y[:, None, None] == 1, stripes[:, None], stripes[None, :])[:, None]
    images = 150 + draw(-20, 21, n, 3, 1, 1) + draw(-60, 61, n, 3, SIDE, SIDE) + across
    radius, top, left = draw(4, 6, n, 1, 1), draw(5, SIDE - 5, n, 1, 1), draw(5, SIDE - 5, n, 1, 1)
    grid = torch.arange(SIDE)
    disc = (grid[:, None] - top) ** 2 + (grid[None, :] - left) ** 2 <= radius**2
    masks = disc & (a == 1)[:, None, None]
    colour = torch.stack([draw(20, 60, n), draw(100, 200, n), draw(150, 240, n)], 1)[:, :, None, None]
    images = torch.where(masks[:, None], colour, images).clamp(0, 255).to(torch.uint8)
    return SplitTensors(name, images, y, a, 2 * y + a, masks)


def disc_cnn(seed: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU()]
        body += [nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return Net(nn.Sequential(*body), nn.Linear(24, 2))


def worst_group_and_flips(model: nn.Module, seed: int) -> tuple[float, float]:
    """Worst-group accuracy over class x disc, and the share of images whose class changes with the disc."""
    without, with_disc = (disc_split("val", 400, 100 + seed, present) for present in (False, True))
    answers = [predict(model, split.images).argmax(1) for split in (without, with_disc)]
    right = [(answer == without.y)[without.y == k].double().mean() for answer in answers for k in (0, 1)]
    return float(min(right)), float((answers[0] != answers[1]).double().mean())


@pytest.mark.parametrize("seed", [1, 2])
def test_it_repairs_a_large_smooth_object_which_rrr_does_not(seed: int) -> None:
    train = disc_split("train", 600, seed)
    assert train.masks is not None
    settings = {"lam": 10, "penalty": {"form": "margin", "normalise": "initial"}}
    recipe = {"lr": 0.02, "batch_size": 64, "steps": 150, "schedule": "cosine"}
    context = toy_context(seed, settings, **recipe)
    base_recipe = context.base_recipe.with_(lr=5e-3, batch_size=64, steps=150)
    base = fit(disc_cnn(seed), train.images, train.y, base_recipe, context, stream="base")
    names = {"class_names": ("a", "b"), "group_names": ("a0", "a1", "b0", "b1")}
    corrections = MaskSet(torch.arange(200), train.masks[:200])
    splits = {"train": train, "val": disc_split("val", 100, 50 + seed)}
    task = Task(splits, Supervision.LABELS, who="a test", corrections=corrections, **names)  # type: ignore[arg-type]
    found = {"base": worst_group_and_flips(base, seed)}
    methods = {
        "continued": PathRRR(PathRRRConfig(lam=0.0)),
        "rrr": RRR(RRRConfig()),
        "path": PathRRR(),
        "partner": PathRRR(PathRRRConfig(partner=True)),
    }
    for name, method in methods.items():
        repaired = method.fit(task, copy.deepcopy(base), toy_context(seed, settings, **recipe))
        found[name] = worst_group_and_flips(repaired, seed)
    assert found["base"][0] < 0.6
    for name in ("path", "partner"):
        assert found[name][0] > 0.85, found
        assert found[name][1] < 0.1, found
    assert found["path"][0] > max(found[name][0] for name in ("base", "continued", "rrr")) + 0.1, found
