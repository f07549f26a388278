"""Spurious objects cut from one photograph and put into another: placement, blending, removal, placebo.

Blending happens on a canvas that is a whole multiple of the final size; the result is averaged down. Masks go the same
way as pixels: a pixel of the small mask is True where at least half of it was replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.suite import Bool, Int64, UInt8

if TYPE_CHECKING:
    from PIL import Image

PLAN = 32  # side of the coarse grid on which places are compared
TURNS = 8  # quarter turns, each also mirrored
TRIES, OVERLAP = 6, 0.02  # draws per image until less than this share of the lesion is covered
Float = npt.NDArray[np.float32]


def canvas_side(size: int, native: int = 256) -> int:
    """The multiple of `size` that lies nearest to `native` pixels (256 for 32, 64, 128; 224 for 224)."""
    return size * max(1, round(native / size))


def turned(array: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """One of the eight symmetries of a square, for [H, W] or [H, W, C]."""
    array = np.rot90(array, turn % 4)
    return np.ascontiguousarray(array[:, ::-1] if turn >= 4 else array)


def coarse(masks: npt.NDArray[Any]) -> Float:
    """Covered share of the cells of the coarse grid, float32 [N, PLAN, PLAN], from masks [N, H, W] (bool or 0..255)."""
    from PIL import Image

    out = np.empty((len(masks), PLAN, PLAN), dtype=np.float32)
    for k, mask in enumerate(masks):
        byte = mask.astype(np.uint8) * 255 if mask.dtype == np.bool_ else mask
        out[k] = np.asarray(Image.fromarray(byte).resize((PLAN, PLAN), Image.Resampling.BOX)) / np.float32(255)
    return out


@dataclass(frozen=True)
class Donors:
    """Photographs that show the object. pixels: uint8 [D, S, S, 3] on the canvas; masks: uint8 [D, S, S], 0 or 255."""

    pixels: UInt8
    masks: UInt8

    def alpha(self, donor: int, turn: int, blur: float) -> Image.Image:
        """The object's blending weight (its mask blurred), as an image of mode L."""
        from PIL import Image, ImageFilter

        mask = Image.fromarray(turned(self.masks[donor], turn))
        return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask

    def shapes(self) -> Float:
        """Covered share in all eight turns, float32 [D, TURNS, PLAN, PLAN]."""
        plain = coarse(self.masks)
        return np.stack([np.stack([turned(p, t) for t in range(TURNS)]) for p in plain])


@dataclass(frozen=True)
class Placement:
    """Which donor in which turn an image receives: int64 [N] each; overlap: share of the lesion covered, [N]."""

    donor: Int64
    turn: Int64
    overlap: Float


def place(weights: Float, shapes: Float, pool: Int64, rng: np.random.Generator) -> Placement:
    """Draw donors of `pool` until one covers less than OVERLAP of the lesion; after TRIES draws the best of them.

    Args:
        weights: float32 [N, PLAN, PLAN], each image's lesion (or where lesions lie on average); sums to 1 or is 0.
        shapes: float32 [D, TURNS, PLAN, PLAN]. pool: indices of the donors that this split may use.
    """
    n = len(weights)
    donor = pool[rng.integers(0, len(pool), (n, TRIES))]
    turn = rng.integers(0, TURNS, (n, TRIES))
    overlap = np.empty((n, TRIES), dtype=np.float32)
    for k in range(TRIES):
        overlap[:, k] = (weights * shapes[donor[:, k], turn[:, k]]).sum((1, 2))
    good = overlap < OVERLAP
    best = np.where(good.any(1), good.argmax(1), overlap.argmin(1))
    row = np.arange(n)
    return Placement(donor[row, best], turn[row, best], overlap[row, best])


def normalised(lesions: Float, known: Bool) -> Float:
    """Lesions as weights that sum to 1; where a lesion is unknown, the mean of the known ones stands for it."""
    weights = lesions.copy()
    if known.any():
        weights[~known] = lesions[known].mean(0)
    total = weights.sum((1, 2), keepdims=True)
    return weights / np.where(total > 0, total, 1)


def shrink(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Mean over blocks: from the canvas to the final size."""
    factor = image.width // size
    return np.asarray(image.reduce(factor) if factor > 1 else image)


def transplant(
    base: npt.NDArray[np.uint8], donors: Donors, placement: Placement, row: int, size: int, blur: float
) -> tuple[UInt8, Bool]:
    """`base` (uint8 [S, S, 3]) with its donor's object: uint8 [size, size, 3] and the object's mask [size, size]."""
    from PIL import Image

    donor, turn = int(placement.donor[row]), int(placement.turn[row])
    alpha, image = donors.alpha(donor, turn, blur), Image.fromarray(base)
    image.paste(Image.fromarray(turned(donors.pixels[donor], turn)), mask=alpha)
    return shrink(image, size), shrink(alpha, size) >= 128


def mean_colour(pixels: npt.NDArray[np.uint8], outside: Bool) -> npt.NDArray[np.uint8]:
    """Mean colour uint8 [3] of the pixels [H, W, 3] in `outside` (of all where that is empty)."""
    chosen = pixels[outside] if outside.any() else pixels.reshape(-1, pixels.shape[-1])
    return (chosen.mean(0) + 0.5).astype(np.uint8)


def fill(base: npt.NDArray[np.uint8], mask: UInt8, avoid: Bool, size: int, blur: float) -> tuple[UInt8, Bool]:
    """`base` with the area of `mask` (0 or 255) in the mean colour of what is neither in it nor in `avoid`."""
    from PIL import Image, ImageFilter

    hard = Image.fromarray(mask)
    alpha = hard.filter(ImageFilter.GaussianBlur(blur)) if blur else hard
    image = Image.fromarray(base)
    colour = mean_colour(base, (mask < 128) & ~avoid)
    image.paste(tuple(int(c) for c in colour), mask=alpha)
    return shrink(image, size), shrink(alpha, size) >= 128


def free_place(shape: Bool, weight: Float, taken: Float, usual: Float) -> Bool:
    """The same shape in the turn and at the place that meets least of the lesion and of the object itself.

    Among places that meet equally little, one where objects of other images seldom lie.

    Args:
        shape: bool [H, H], the object's mask. weight: the lesion, [PLAN, PLAN], sums to 1. taken: the object on the
        coarse grid. usual: how often objects cover each cell, 0..1.

    Returns:
        bool [H, H] of exactly the area of `shape` (which must not be empty).
    """
    side = len(shape)
    cost = weight + taken / max(float(taken.sum()), 1e-6) + 0.01 * usual / max(float(usual.sum()), 1e-6)
    total = np.pad(cost, ((1, 0), (1, 0))).astype(np.float64)
    best: tuple[float, Bool, int, int] | None = None
    spectrum = np.fft.rfft2(total[1:, 1:], (2 * PLAN, 2 * PLAN))
    for turn in range(TURNS):
        form = turned(shape, turn)
        rows, columns = np.flatnonzero(form.any(1)), np.flatnonzero(form.any(0))
        box = form[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        small = coarse(_in_corner(box, side)[None])[0]
        met = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(small, (2 * PLAN, 2 * PLAN))), (2 * PLAN, 2 * PLAN))
        down, right = ((side - extent) * PLAN // side for extent in box.shape)
        met = met[: down + 1, : right + 1]
        top, left = np.unravel_index(int(met.argmin()), met.shape)
        if best is None or met[top, left] < best[0]:
            best = (float(met[top, left]), box, int(top), int(left))
    assert best is not None  # TURNS > 0
    _, box, top, left = best
    out = np.zeros_like(shape)
    top, left = top * side // PLAN, left * side // PLAN
    out[top : top + box.shape[0], left : left + box.shape[1]] = box
    return out


def _in_corner(box: Bool, side: int) -> Bool:
    out = np.zeros((side, side), dtype=np.bool_)
    out[: box.shape[0], : box.shape[1]] = box
    return out
