"""CAIPI: what a counterexample may change, which images get one, and what training on them does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mask_toys import CLASSES, SIZE, toy_context, toy_mlp, toy_split, toy_task, trained, true_masks
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.caipi import CAIPI, FILLS, CAIPIConfig, _SubBatchLoss, _with_counterexamples, counterexamples
from harness.errors import ConfigError, NotApplicable, VabenchError
from harness.masks import MaskSet
from harness.training import fit, predict

STAYS_INSIDE = sorted(set(FILLS) - {"paste"})


def made(fill: str, c: int = 3, seed: int = 0, n: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    split, g = toy_split("train", 120, 0), torch.Generator().manual_seed(seed)
    images, masks, y = split.images[:n], split.masks[:n], split.y[:n]  # type: ignore[index]
    return counterexamples(images, masks, y, fill, c, g), images, masks, y


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("fill", STAYS_INSIDE)
def test_pixels_outside_the_mask_are_bit_identical_and_those_inside_change(fill: str) -> None:
    altered, images, masks, _ = made(fill)
    assert altered.shape == (120, 1, SIZE, SIZE)
    assert altered.dtype == torch.uint8
    originals, marked = images.repeat_interleave(3, 0), masks.repeat_interleave(3, 0)[:, None]
    assert torch.equal(altered[~marked], originals[~marked])
    changed = ((altered != originals) & marked).flatten(1).any(1)
    assert changed.double().mean() > 0.9
    again, other = made(fill)[0], made(fill, seed=1)[0]
    assert torch.equal(altered, again)
    assert torch.equal(altered, other) is (fill == "mean")


def test_noise_covers_the_whole_range_independently_and_a_colour_is_one_per_image() -> None:
    noise, _, masks, _ = made("noise", c=50)
    inside = noise[:, 0][masks.repeat_interleave(50, 0)].view(-1, 4).double()
    assert inside.min() == 0
    assert inside.max() == 255
    assert abs(float(inside.mean()) - 127.5) < 2
    assert abs(float(torch.corrcoef(inside.T)[0, 1])) < 0.06
    colour = made("color", c=50)[0][:, 0][masks.repeat_interleave(50, 0)].view(-1, 4)
    assert bool((colour == colour[:, :1]).all())
    assert len(colour[:, 0].unique()) > 200
    rgb = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    ones = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    pixel = counterexamples(rgb, ones, torch.arange(2), "color", 1, torch.Generator().manual_seed(0))[:, :, 0, 0]
    assert len(pixel.unique()) > 3


def test_mean_is_the_colour_outside_the_mask() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    images[0, 0, :2], images[0, 0, 2:], images[1] = 200, 60, 90
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1] = True, True
    altered = counterexamples(images, masks, torch.arange(2), "mean", 1, torch.Generator())
    assert bool((altered[0] == 60).all())
    assert bool((altered[1] == 90).all())  # a mask that covers everything leaves the image's own mean


def test_swap_takes_the_same_pixels_from_another_class() -> None:
    n = 60
    y = torch.arange(n) % 3
    images = (torch.arange(n) * 4).to(torch.uint8)[:, None, None, None].expand(n, 1, 4, 4).contiguous()
    masks = torch.zeros(n, 4, 4, dtype=torch.bool)
    masks[:, 0, 0] = True
    altered = counterexamples(images, masks, y, "swap", 20, torch.Generator().manual_seed(0)).view(n, 20, 4, 4)
    donor = altered[:, :, 0, 0].long() // 4
    assert bool((y[donor] != y[:, None]).all())
    assert len(donor.unique()) == n  # every image serves
    counts = torch.bincount(donor.flatten(), minlength=n)
    assert counts.max() < 3 * counts.double().mean()
    with pytest.raises(NotApplicable, match="only one"):
        counterexamples(images, masks, torch.zeros(n, dtype=torch.int64), "swap", 1, torch.Generator())


def test_transplant_shows_what_other_images_have_there_without_their_object() -> None:
    images = torch.full((30, 1, 4, 4), 10, dtype=torch.uint8)
    masks = torch.zeros(30, 4, 4, dtype=torch.bool)
    masks[:15, :2], masks[15:, 2:] = True, True
    images[masks[:, None]] = 250
    altered = counterexamples(images, masks, torch.arange(30) % 2, "transplant", 2, torch.Generator().manual_seed(0))
    assert float((altered == 10).all(3).all(2).all(1).double().mean()) > 0.95
    with pytest.raises(NotApplicable, match="only one"):
        counterexamples(images[:1], masks[:1], torch.zeros(1, dtype=torch.int64), "transplant", 1, torch.Generator())


def test_paste_brings_the_object_to_half_of_the_images_at_its_own_place() -> None:
    images = torch.full((400, 1, 4, 4), 10, dtype=torch.uint8)
    masks = torch.zeros(400, 4, 4, dtype=torch.bool)
    masks[:200, :2], masks[200:, 2:] = True, True
    images[masks[:, None]] = 250
    altered = counterexamples(images, masks, torch.arange(400) % 2, "paste", 1, torch.Generator().manual_seed(0))[:, 0]
    bright = altered == 250
    shows = bright.flatten(1).any(1)
    assert 0.42 < float(shows.double().mean()) < 0.58
    assert set(bright[shows].flatten(1).sum(1).tolist()) == {8}  # one whole object, never two
    assert bool((altered[~bright] == 10).all())


def test_paste_takes_objects_from_other_marked_images_alone() -> None:
    n, marked = 600, 6
    images = torch.full((n, 1, 4, 4), 10, dtype=torch.uint8)
    masks = torch.zeros(n, 4, 4, dtype=torch.bool)
    masks[:marked, :2] = True
    images[:marked, 0, :2] = (100 + 20 * torch.arange(marked)).to(torch.uint8)[:, None, None]
    altered = counterexamples(images, masks, torch.arange(n) % 2, "paste", 9, torch.Generator().manual_seed(0))
    top = altered.view(n, 9, 4, 4)[:, :, 0, 0].long()
    assert bool((altered[:, 0, 2:] == 10).all())
    assert set(top.unique().tolist()) == {10, *range(100, 220, 20)}  # every marked image serves
    assert 0.47 < float((top > 10).double().mean()) < 0.53  # unmarked images never serve: they would show as 10
    counts = torch.bincount(top[top > 10])[100:220:20]
    assert counts.max() < 1.3 * counts.min()
    assert not bool((top[:marked] == images[:marked, 0, :1, 0].long()).any())  # nor does an image serve itself


def test_the_only_marked_image_gives_its_object_and_gets_none() -> None:
    images = torch.full((40, 1, 4, 4), 10, dtype=torch.uint8)
    masks = torch.zeros(40, 4, 4, dtype=torch.bool)
    masks[7, :2], images[7, 0, :2] = True, 250
    top = counterexamples(images, masks, torch.arange(40) % 2, "paste", 8, torch.Generator().manual_seed(0))
    shown = (top.view(40, 8, 4, 4)[:, :, 0, 0] == 250).double().mean(1)
    assert shown[7] == 0
    assert 0.4 < float(shown.sum() / 39) < 0.6
    with pytest.raises(NotApplicable, match="none shows one"):
        counterexamples(images[7:8], masks[7:8], torch.zeros(1, dtype=torch.int64), "paste", 1, torch.Generator())


def test_each_batch_is_followed_by_the_counterexamples_of_its_images() -> None:
    lookup = torch.tensor([-1, 0, -1, 1, 2])
    batches = _with_counterexamples(iter([torch.tensor([3, 0, 1, 3]), torch.tensor([0, 2])]), lookup, 2)
    assert next(batches).tolist() == [3, 0, 1, 3, 7, 8, 5, 6, 7, 8]
    assert next(batches).tolist() == [0, 2]


def test_loss_weights_the_two_sub_batches_equally() -> None:
    model, x, y = toy_mlp(), torch.rand(7, 1, SIZE, SIZE), torch.arange(7) % 3
    index = torch.tensor([0, 5, 9, 10, 11, 12, 13])
    expected = F.cross_entropy(model(x[:3]), y[:3]) + F.cross_entropy(model(x[3:]), y[3:])
    torch.testing.assert_close(_SubBatchLoss(10)(model, x, y, index), expected)
    torch.testing.assert_close(_SubBatchLoss(99)(model, x, y, index), F.cross_entropy(model(x), y))


def capture(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def spy(model: Any, images: Tensor, y: Tensor, recipe: Any, context: Any, **rest: Any) -> Any:
        seen.update(images=images, y=y, recipe=recipe)
        return fit(model, images, y, recipe, context, **rest)

    monkeypatch.setattr("baselines.caipi.fit", spy)
    return seen


@pytest.mark.parametrize("only_if_correct", [True, False])
def test_labels_are_kept_and_wrong_predictions_get_no_counterexample(
    monkeypatch: pytest.MonkeyPatch, only_if_correct: bool
) -> None:
    seen, split = capture(monkeypatch), toy_split("train", 120, 0)
    base = trained(steps=12)  # half-trained: some images are still wrong
    right = predict(base, split.images[:40]).argmax(1) == split.y[:40]
    assert 5 < int((~right).sum()) < 35
    marked = true_masks()
    marked.masks[:6] = False
    context = toy_context(steps=3)
    CAIPI(CAIPIConfig(c=2, only_if_correct=only_if_correct)).fit(toy_task(marked), base, context)
    keep = torch.arange(40) >= 6
    keep &= right if only_if_correct else torch.ones_like(right)
    assert torch.equal(seen["images"][:120], split.images)
    assert len(seen["images"]) == 120 + 2 * int(keep.sum())
    assert torch.equal(seen["y"][120:], split.y[:40][keep].repeat_interleave(2))
    outside = ~marked.masks[keep].repeat_interleave(2, 0)[:, None]
    kept = split.images[:40][keep].repeat_interleave(2, 0)
    assert torch.equal(seen["images"][120:][outside], kept[outside])
    assert context.notes["excluded_without_mask"] == 6
    assert context.notes["excluded_wrong"] == (int((~right)[6:].sum()) if only_if_correct else 0)
    assert context.notes["counterexamples"] == 2 * int(keep.sum())


def test_nothing_to_correct_returns_the_base_model_unchanged() -> None:
    base = trained()
    empty = MaskSet(torch.arange(5), torch.zeros(5, SIZE, SIZE, dtype=torch.bool))
    context = toy_context()
    assert same(CAIPI().fit(toy_task(empty), copy.deepcopy(base), context), base)
    assert context.notes["abstained"] is True
    assert context.notes["counterexamples"] == 0

    class AlwaysWrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight + torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)

    only_first = true_masks()
    wrong = toy_split("train", 120, 0).y[:40] != 2
    context, model = toy_context(), AlwaysWrong()
    CAIPI().fit(toy_task(MaskSet(only_first.index[wrong], only_first.masks[wrong])), model, context)
    assert model.weight.item() == 0
    assert context.notes["excluded_wrong"] == int(wrong.sum())


@pytest.mark.parametrize("start", ["base", "scratch"])
@pytest.mark.parametrize("fill", ["color", "noise"])
def test_repair_makes_the_model_depend_less_on_the_marked_pixels(fill: str, start: Any) -> None:
    base, held_out = trained(), toy_split("val", 200, 9)
    greys = [255 - 120 * k for k in range(CLASSES)]
    mask = held_out.masks[:, None]  # type: ignore[index]
    variants = [torch.where(mask, torch.full_like(held_out.images, grey), held_out.images) for grey in greys]

    def flips(model: nn.Module) -> float:
        answers = torch.stack([predict(model, variant).argmax(1) for variant in variants])
        return float((answers != answers[0]).any(0).double().mean())

    everything = MaskSet(torch.arange(120), toy_split("train", 120, 0).masks)  # type: ignore[arg-type]
    config = CAIPIConfig(fill=fill, c=3, start=start, steps=400 if start == "scratch" else 200)
    repaired = CAIPI(config).fit(toy_task(everything), copy.deepcopy(base), toy_context())
    assert flips(base) > 0.5
    assert flips(repaired) < 0.5 * flips(base)


@pytest.mark.parametrize("fill", sorted(FILLS))
def test_fits_are_deterministic(fill: str) -> None:
    base, task = trained(), toy_task(true_masks())
    config = CAIPIConfig(fill=fill, c=1)
    first, second, other = (
        CAIPI(config).fit(task, copy.deepcopy(base), toy_context(seed, steps=5)) for seed in (0, 0, 1)
    )
    assert same(first, second)
    assert not same(first, other)


def test_counterexamples_buy_no_additional_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = capture(monkeypatch)
    context = toy_context(steps=None, epochs=2)
    CAIPI(CAIPIConfig(c=5)).fit(toy_task(true_masks()), trained(), context)
    assert seen["recipe"].total_steps(10**6) == context.finetune_recipe.total_steps(120)


def test_divergence_is_a_typed_failure() -> None:
    with pytest.raises(VabenchError, match="diverged"):
        CAIPI(CAIPIConfig(lr=1e30)).fit(toy_task(true_masks()), trained(), toy_context(clip_norm=None))


def test_tuned_track_varies_c() -> None:
    assert CAIPI.tuned({"fill": "mean"}, {}, 90) == [{"fill": "mean", "c": c} for c in (1, 3, 5)]
    assert CAIPI.tuned({"start": "scratch"}, {}, 90)[0] == {"start": "scratch", "steps": 90, "c": 1}


@pytest.mark.parametrize("wrong", [{"c": 0}, {"fill": "inpaint"}, {"start": "middle"}, {"ratio": -0.1}, {"lr": 0.0}])
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CAIPIConfig(**wrong)
