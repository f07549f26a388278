"""Transplanting: the mask says where pixels changed, a placebo stays off lesion and patch, placement avoids lesions."""

import numpy as np
import pytest
from PIL import Image

from suites.transplant import (
    TURNS,
    Donors,
    Placement,
    canvas_side,
    coarse,
    fill,
    free_place,
    mean_colour,
    normalised,
    place,
    transplant,
    turned,
)

CANVAS, SIZE = 128, 32


def corner_donors() -> Donors:
    """Two donors: a blue quarter disc in the upper left corner, a green bar along the left border."""
    rows, columns = np.mgrid[:CANVAS, :CANVAS]
    shapes = np.stack([rows**2 + columns**2 < 50**2, columns < 23])
    pixels = np.full((2, CANVAS, CANVAS, 3), 90, dtype=np.uint8)
    pixels[0][shapes[0]], pixels[1][shapes[1]] = (0, 0, 255), (0, 255, 0)
    return Donors(pixels, np.where(shapes, 255, 0).astype(np.uint8))


def skin(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(180, 230, (CANVAS, CANVAS, 3), dtype=np.uint8)


def at(donor: int, turn: int) -> Placement:
    return Placement(np.array([donor]), np.array([turn]), np.zeros(1, dtype=np.float32))


def shrunk(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).reduce(CANVAS // SIZE))


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    h, w = mask.shape
    return np.logical_or.reduce([padded[r : r + h, c : c + w] for r in range(3) for c in range(3)])


@pytest.mark.parametrize("donor", [0, 1])
@pytest.mark.parametrize("turn", range(TURNS))
def test_the_mask_is_where_at_least_half_of_the_pixel_is_the_object(donor: int, turn: int) -> None:
    base, donors = skin(), corner_donors()
    image, mask = transplant(base, donors, at(donor, turn), 0, SIZE, blur=0.0)
    hard = turned(donors.masks[donor], turn) == 255
    covered = hard.reshape(SIZE, 4, SIZE, 4).mean((1, 3))
    np.testing.assert_array_equal(mask, covered >= 0.5)
    changed = (image != shrunk(base)).any(-1)
    np.testing.assert_array_equal(changed, covered > 0)  # nothing but the object's pixels, and all of them
    colour = [(0, 0, 255), (0, 255, 0)][donor]
    assert (image[covered == 1] == colour).all()  # the donor's own colour, not a mixture


def test_a_blurred_edge_reaches_no_further_than_the_next_pixel() -> None:
    base, donors = skin(), corner_donors()
    image, mask = transplant(base, donors, at(0, 3), 0, SIZE, blur=CANVAS / 256)
    changed = (image != shrunk(base)).any(-1)
    assert mask.sum() > 100
    assert changed[mask].all()
    assert not (changed & ~grown(mask)).any()


def test_the_eight_turns_are_different_and_keep_the_area() -> None:
    mask = corner_donors().masks[1].copy()
    mask[:60] = 0  # without any symmetry
    forms = {turned(mask, turn).tobytes() for turn in range(TURNS)}
    assert len(forms) == 8
    assert {int((turned(mask, turn) > 0).sum()) for turn in range(TURNS)} == {int((mask > 0).sum())}


def test_placement_uses_its_pool_alone_and_avoids_the_lesion() -> None:
    donors = corner_donors()
    shapes, n = donors.shapes(), 200
    lesion = np.zeros((n, CANVAS, CANVAS), dtype=np.bool_)
    lesion[:, :50, :50] = True  # under the quarter disc unless it is turned
    weights = normalised(coarse(lesion), np.ones(n, dtype=np.bool_))
    placed = place(weights, shapes, np.array([0]), np.random.default_rng(0))
    assert set(placed.donor) == {0}
    assert (placed.overlap < 0.02).mean() > 0.95  # one quarter of the turns covers the lesion: six draws suffice
    blind = place(np.zeros_like(weights), shapes, np.array([0]), np.random.default_rng(0))
    met = (weights * shapes[0, blind.turn]).sum((1, 2))
    assert (met > 0.5).mean() > 0.15  # without the lesion the same draws do cover it
    again = place(weights, shapes, np.array([0]), np.random.default_rng(0))
    np.testing.assert_array_equal(again.turn, placed.turn)


def test_where_every_turn_covers_the_lesion_the_least_bad_draw_is_taken() -> None:
    shapes = np.full((2, TURNS, 32, 32), 0.9, dtype=np.float32)
    shapes[1] = 0.5
    weights = np.full((50, 32, 32), 1 / 1024, dtype=np.float32)
    placed = place(weights, shapes, np.array([0, 1]), np.random.default_rng(1))
    assert (placed.donor == 1).mean() > 0.9  # six draws, half of them donor 1
    np.testing.assert_allclose(placed.overlap[placed.donor == 1], 0.5, rtol=1e-4)


def test_an_unknown_lesion_counts_as_the_mean_of_the_known_ones() -> None:
    lesions = np.zeros((3, 32, 32), dtype=np.float32)
    lesions[0, :4, :4], lesions[1, 28:, 28:] = 1, 1
    weights = normalised(lesions, np.array([True, True, False]))
    np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[2], (lesions[0] + lesions[1]) / 32, rtol=1e-5)
    assert not normalised(np.zeros_like(lesions), np.zeros(3, dtype=np.bool_)).any()  # no lesion known: no preference


def test_a_placebo_has_the_patchs_area_and_misses_lesion_and_patch() -> None:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    shape = rows**2 + columns**2 < 10**2
    lesion = (rows - 16) ** 2 + (columns - 16) ** 2 < 6**2
    weight = normalised(coarse(lesion[None]), np.array([True]))[0]
    usual = coarse(shape[None])[0]
    where = free_place(shape, weight, coarse(shape[None])[0], usual)
    assert where.sum() == shape.sum()
    assert not (where & lesion).any()
    assert not (where & shape).any()


def test_the_placebo_moves_when_the_lesion_lies_where_it_would_go() -> None:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    shape, nothing = rows**2 + columns**2 < 10**2, np.zeros((32, 32), dtype=np.float32)
    taken = coarse(shape[None])[0]
    first = free_place(shape, nothing, taken, nothing)
    weight = normalised(coarse(first[None]), np.array([True]))[0]
    second = free_place(shape, weight, taken, nothing)
    assert not (first & second).any()


def test_a_fill_takes_the_mean_colour_outside_mask_and_lesion() -> None:
    base = np.full((CANVAS, CANVAS, 3), (200, 150, 130), dtype=np.uint8)
    mask, lesion = np.zeros((CANVAS, CANVAS), dtype=np.uint8), np.zeros((CANVAS, CANVAS), dtype=np.bool_)
    mask[:32, :32], lesion[64:96, 64:96] = 255, True
    base[:32, :32], base[64:96, 64:96] = (0, 0, 255), (30, 20, 10)
    image, small = fill(base, mask, lesion, SIZE, blur=0.0)
    assert (image[:8, :8] == (200, 150, 130)).all()  # neither the patch nor the lesion tints the fill
    assert (image[16:24, 16:24] == (30, 20, 10)).all()
    assert small[:8, :8].all()
    assert small.sum() == 64
    assert list(mean_colour(base, mask == 255)) == [0, 0, 255]
    two = np.array([[[0, 9, 200], [4, 9, 100]]], dtype=np.uint8)
    assert list(mean_colour(two, np.zeros((1, 2), dtype=np.bool_))) == [2, 9, 150]  # nothing is outside: all pixels


@pytest.mark.parametrize(("size", "canvas"), [(32, 256), (64, 256), (128, 256), (224, 224), (96, 288), (512, 512)])
def test_the_canvas_is_the_multiple_of_the_size_that_is_nearest_to_256(size: int, canvas: int) -> None:
    assert canvas_side(size) == canvas
