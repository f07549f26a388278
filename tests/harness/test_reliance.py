"""Reliance metrics against closed forms: uniform, all-in-mask and none-in-mask maps, hand-counted flips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import reliance


def corner(n: int, size: int = 4, side: int = 28) -> np.ndarray:
    masks = np.zeros((n, side, side), dtype=bool)
    masks[:, :size, :size] = True
    return masks


def test_mu_align_of_a_uniform_map_is_its_uniform_level() -> None:
    out = reliance.mu_align(-np.full((5, 28, 28), 3.0), corner(5))
    assert out["mu_align"] == pytest.approx(1 - 16 / 784) == out["uniform_level"]
    assert round(out["uniform_level"], 3) == 0.980
    assert out["lift"] == pytest.approx(1.0)
    assert out["share"] == pytest.approx(out["mask_fraction"])
    assert out["n"] == 5


def test_mu_align_is_zero_with_all_mass_inside_and_one_with_none() -> None:
    masks = corner(3)
    inside = reliance.mu_align(masks * -2.0, masks)
    assert inside["mu_align"] == 0.0
    assert inside["lift"] == pytest.approx(784 / 16)
    outside = reliance.mu_align(~masks * 0.1, masks)
    assert (outside["mu_align"], outside["lift"]) == (1.0, 0.0)


def test_mu_align_uses_absolute_attribution_and_a_mean_of_shares_per_image() -> None:
    masks = np.zeros((2, 2, 2), dtype=bool)
    masks[:, 0, 0] = True
    maps = np.array([[[-1.0, 1.0], [1.0, 1.0]], [[300.0, -100.0], [0.0, 0.0]]])
    assert reliance.mask_share(maps, masks) == pytest.approx([0.25, 0.75])
    assert reliance.mu_align(maps, masks)["mu_align"] == pytest.approx(0.5)


def test_empty_masks_and_zero_maps_are_left_out_and_counted() -> None:
    masks = corner(4)
    masks[0] = False
    maps = np.ones((4, 28, 28))
    maps[1] = 0
    maps[0] = 0  # empty mask: not a skipped zero map, the image was never asked about
    share = reliance.mask_share(maps, masks)
    assert np.isnan(share).tolist() == [True, True, False, False]
    out = reliance.mu_align(maps, masks)
    assert (out["n"], out["skipped_zero_maps"]) == (2, 1)
    assert out["mask_fraction"] == pytest.approx(16 / 784)
    nothing = reliance.mu_align(maps[:1], masks[:1])
    assert nothing["n"] == 0
    assert math.isnan(nothing["mu_align"])


def test_tiny_maps_do_not_underflow() -> None:
    maps = np.full((1, 28, 28), 1e-300)
    assert reliance.mask_share(maps, corner(1)) == pytest.approx([16 / 784])


def test_maps_with_nan_and_wrong_shapes_are_refused() -> None:
    maps = np.ones((2, 28, 28))
    maps[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        reliance.mu_align(maps, corner(2))
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        reliance.mask_share(np.ones((2, 1, 28, 28)), corner(2))
    with pytest.raises(ValueError, match="bool"):
        reliance.mask_share(np.ones((2, 28, 28)), corner(2).astype(int))


def test_epg_counts_positive_attribution_only() -> None:
    masks = np.zeros((2, 2, 2), dtype=bool)
    masks[:, 0, 0] = True
    maps = np.array([[[3.0, 1.0], [-50.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    assert reliance.epg(maps, masks) == pytest.approx(0.75)
    assert math.isnan(reliance.epg(-np.ones((1, 2, 2)), masks[:1]))


def test_wrong_reason_by_hand() -> None:
    masks = np.zeros((2, 2, 2), dtype=bool)
    masks[:, 0, :] = True
    maps = np.array([[[8.0, 0.0], [-5.0, 0.0]], [[2.0, 4.0], [1.0, 0.0]]])
    # normed: 1 0 0 0 and .5 1 .25 0; mean .34375, median .125
    assert reliance.wrong_reason(maps, masks) == pytest.approx((0.5 + 1.0) / 2)
    assert reliance.wrong_reason(maps, masks, "median") == pytest.approx((0.5 + 1.0) / 2)
    masks[1] = [[False, False], [True, True]]
    assert reliance.wrong_reason(maps, masks) == pytest.approx(0.25)
    assert reliance.wrong_reason(maps, masks, "median") == pytest.approx((0.5 + 0.5) / 2)
    collapsed = np.concatenate([maps, np.zeros((1, 2, 2))])  # a model without attribution gains nothing
    assert reliance.wrong_reason(collapsed, np.concatenate([masks, masks[:1]])) == pytest.approx(0.25)
    assert math.isnan(reliance.wrong_reason(np.zeros((1, 2, 2)), masks[:1]))
    with pytest.raises(ValueError, match="mode"):
        reliance.wrong_reason(maps, masks, "mode")


def test_flip_effect_is_insert_minus_placebo() -> None:
    reference = np.array([0, 1, 2, 3, 4])
    out = reliance.flip_effects(
        reference,
        {"insert": np.array([1, 1, 0, 0, 0]), "remove": reference.copy(), "placebo": np.array([0, 1, 2, 3, 0])},
    )
    assert out == {
        "insert": pytest.approx(0.8),
        "remove": 0.0,
        "placebo": pytest.approx(0.2),
        "effect": pytest.approx(0.6),
    }
    assert math.isnan(reliance.flip_effects(reference, {"insert": reference})["effect"])
    with pytest.raises(ValueError, match="swap"):
        reliance.flip_effects(reference, {"swap": reference})
    with pytest.raises(ValueError, match="same images"):
        reliance.flip_rate(reference, reference[:3])


def test_directed_flips_count_only_images_that_could_move() -> None:
    before, after = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 2])
    assert reliance.directed_flip_rate(before, after, 0) == pytest.approx(2 / 4)
    target = np.array([0, 1, 0, 0, 0])  # images 0 and 1 are there already
    assert reliance.directed_flip_rate(before, after, target) == pytest.approx(1 / 3)
    assert math.isnan(reliance.directed_flip_rate(before[:1], after[:1], 0))


def test_gap_is_positive_where_the_shortcut_is_used() -> None:
    assert reliance.gap(0.95, 0.35) == pytest.approx(0.6)


@given(st.floats(0, 1), st.floats(0, 1))
def test_rcs_is_bounded_and_antisymmetric(core: float, spurious: float) -> None:
    value = reliance.rcs(core, spurious)
    assert -1 <= value <= 1
    assert value == pytest.approx(-reliance.rcs(spurious, core), abs=1e-12)


def test_rcs_by_hand() -> None:
    assert reliance.rcs(0.9, 0.5) == pytest.approx(0.4 / (2 * 0.3))
    assert reliance.rcs(1.0, 0.0) == 1.0
    assert reliance.rcs(0.0, 0.6) == -1.0
    assert reliance.rcs(1.0, 1.0) == reliance.rcs(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="accuracy"):
        reliance.rcs(1.2, 0.5)


def noised_pixels(copy: np.ndarray, images: np.ndarray) -> np.ndarray:
    return (copy != images).any(axis=1)


def test_noise_regions_are_equal_in_area_and_inside_their_region() -> None:
    images = np.full((6, 3, 16, 16), 128, dtype=np.uint8)
    region, other = np.zeros((6, 16, 16), dtype=bool), np.zeros((6, 16, 16), dtype=bool)
    region[:, :4, :4] = True
    other[:, 3:, :] = True  # overlaps row 3: these four pixels belong to neither
    other[5] = False
    pair = reliance.noise_regions(images, region, other, 0.5, np.random.default_rng(0))
    assert pair.area.tolist() == [12] * 5 + [0]
    in_region, in_other = (noised_pixels(copy, images) for copy in (pair.in_region, pair.in_other))
    assert not in_region[~(region & ~other)].any()
    assert not in_other[~(other & ~region)].any()
    # a pixel stays as it was with probability (.003)^3 only, so the noised areas are seen exactly
    assert in_region.sum(axis=(1, 2)).tolist() == in_other.sum(axis=(1, 2)).tolist() == pair.area.tolist()
    assert not (in_other[0] == in_other[1]).all()  # thinned afresh per image
    assert (pair.in_region[5] == images[5]).all()


def test_noise_has_the_stated_scale_and_is_seeded() -> None:
    images = np.full((40, 1, 32, 32), 128, dtype=np.uint8)
    half = np.zeros((40, 32, 32), dtype=bool)
    half[:, :16] = True
    first = reliance.noise_regions(images, half, ~half, 0.1, np.random.default_rng(3))
    again = reliance.noise_regions(images, half, ~half, 0.1, np.random.default_rng(3))
    assert (first.in_region == again.in_region).all()
    assert (first.in_other == again.in_other).all()
    delta = first.in_region[:, 0][half].astype(float) / 255 - 128 / 255
    assert delta.std() == pytest.approx(0.1, rel=0.02)
    assert abs(delta.mean()) < 0.002
    with pytest.raises(ValueError, match="uint8"):
        reliance.noise_regions(images.astype(float), half, ~half, 0.1, np.random.default_rng(3))
