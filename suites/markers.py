"""Side markers on radiographs: letters L and R inserted, natural markers erased.

Letters are drawn from outlines of our own: fonts differ from machine to machine. All lengths are in pixels of a canvas
whose side is a whole multiple of the final size (`suites.transplant.canvas_side`); settings are stated at 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.suite import Bool, UInt8

LETTERS = ("L", "R")
HEIGHT, SPREAD = 30.0, 0.15  # height of a letter at 256 pixels, +- this share
LEFT, TOP = (4, 30), (4, 40)  # where the box's corner lies at 256 pixels
OPACITY = (0.85, 1.0)
BLUR = 0.7  # at 256 pixels
MARGIN = 2.0  # an erased area exceeds the marker's box by this on all sides, at 256 pixels
NOISE = 2.0  # standard deviation in grey values of what fills an erased area
WIDTH = 0.84  # width of a letter, as a share of its height
_INK = 255.0  # lead is white on a film
_FINE = 8  # the outline is drawn so many times larger

Float = npt.NDArray[np.float32]

# Outlines in units of the letter's height: polygons to fill; a bowl is a rectangle with a half disc at its right.
_STEM = 0.22


class Box(NamedTuple):
    """A rectangle in pixels: left, top, width, height. Fractions of a pixel are allowed."""

    x: float
    y: float
    w: float
    h: float

    def scaled(self, across: float, down: float) -> Box:
        """The same rectangle on a frame that was resized by these factors."""
        return Box(self.x * across, self.y * down, self.w * across, self.h * down)

    def grown(self, across: float, down: float) -> Box:
        """Larger by so much on each side."""
        return Box(self.x - across, self.y - down, self.w + 2 * across, self.h + 2 * down)

    def whole(self, side: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom (exclusive) of all pixels that it touches on a square of this side."""
        left, top = max(0, int(np.floor(self.x))), max(0, int(np.floor(self.y)))
        return left, top, min(side, int(np.ceil(self.x + self.w))), min(side, int(np.ceil(self.y + self.h)))


@lru_cache(maxsize=256)
def glyph(letter: str, height: int, blur: float) -> Float:
    """Coverage 0..1 of a letter, float32 [H, W], with a border of one blur width in which it fades."""
    from PIL import Image, ImageDraw, ImageFilter

    border, width = margin_of(blur), round(WIDTH * height)
    fine = height * _FINE
    image = Image.new("L", ((width + 2 * border) * _FINE, (height + 2 * border) * _FINE))
    draw, shift = ImageDraw.Draw(image), border * _FINE

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(shift + x * fine, shift + y * fine) for x, y in points]

    def bowl(left: float, top: float, right: float, bottom: float, value: int) -> None:
        radius = (bottom - top) / 2
        draw.rectangle(at((left, top), (right - radius, bottom)), fill=value)
        draw.ellipse(at((right - 2 * radius, top), (right, bottom)), fill=value)

    if letter == "R":
        draw.polygon(at((0.30, 0.50), (0.56, 0.46), (WIDTH, 1), (0.58, 1)), fill=255)
        bowl(0, 0, 0.78, 0.58, 255)
        bowl(_STEM, 0.17, 0.55, 0.41, 0)
    else:
        draw.rectangle(at((0, 0.81), (0.70, 1)), fill=255)
    draw.rectangle(at((0, 0), (_STEM, 1)), fill=255)
    small = image.resize((width + 2 * border, height + 2 * border), Image.Resampling.BOX)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) / np.float32(255)


def margin_of(blur: float) -> int:
    """Border of a letter's box in pixels: what the blur needs."""
    return max(1, round(blur))


@dataclass(frozen=True)
class Letters:
    """Where each image's letter lies and how it looks; L and R share place, box and opacity.

    left, top: int64 [N], corner of the box; height: int64 [N], of the letter without border; opacity: float64 [N].
    """

    left: npt.NDArray[np.int64]
    top: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    opacity: npt.NDArray[np.float64]
    side: int  # of the canvas

    @property
    def blur(self) -> float:
        """Blur on this canvas, in pixels."""
        return BLUR * self.side / 256

    def box(self, row: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom (exclusive) of a letter's box on the canvas."""
        border, height = margin_of(self.blur), int(self.height[row])
        left, top = int(self.left[row]), int(self.top[row])
        return left, top, left + round(WIDTH * height) + 2 * border, top + height + 2 * border


def draw_letters(n: int, side: int, rng: np.random.Generator) -> Letters:
    """Places, heights and opacities for n images on a canvas of this side."""
    scale = side / 256
    left, top = (np.rint(rng.uniform(*span, n) * scale).astype(np.int64) for span in (LEFT, TOP))
    height = np.rint(HEIGHT * scale * rng.uniform(1 - SPREAD, 1 + SPREAD, n)).astype(np.int64)
    return Letters(left, top, np.maximum(height, 4), rng.uniform(*OPACITY, n), side)


def cells(box: tuple[int, int, int, int], factor: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of the final image that a box on the canvas touches. factor: canvas pixels per final pixel."""
    left, top, right, bottom = box
    return slice(top // factor, min(size, -(-bottom // factor))), slice(left // factor, min(size, -(-right // factor)))


def stamp(small: UInt8, canvas: UInt8, letters: Letters, row: int, letter: str) -> None:
    """Write one image's letter into its final version, in place; nothing outside `cells` of the letter's box changes.

    Args:
        small: uint8 [size, size], the image without letter. canvas: uint8 [S, S], the same on the canvas.
    """
    size, factor = len(small), len(canvas) // len(small)
    box = letters.box(row)
    rows, columns = cells(box, factor, size)
    top, left = rows.start * factor, columns.start * factor
    block = canvas[top : rows.stop * factor, left : columns.stop * factor].astype(np.float32)
    alpha = np.float32(letters.opacity[row]) * glyph(letter, int(letters.height[row]), letters.blur)
    part = block[box[1] - top : box[3] - top, box[0] - left : box[2] - left]
    alpha = alpha[: part.shape[0], : part.shape[1]]
    part += alpha * (np.float32(_INK) - part)
    small[rows, columns] = _averaged(block, factor)


def _averaged(block: Float, factor: int) -> UInt8:
    """Mean over squares of `factor` pixels, rounded."""
    shape = (block.shape[0] // factor, factor, block.shape[1] // factor, factor)
    return np.asarray(block.reshape(shape).mean((1, 3)) + 0.5, dtype=np.uint8)


def box_mask(box: tuple[int, int, int, int], factor: int, size: int) -> Bool:
    """bool [size, size], True on every final pixel that a box on the canvas touches."""
    mask = np.zeros((size, size), dtype=np.bool_)
    mask[cells(box, factor, size)] = True
    return mask


def erase(canvas: UInt8, box: Box, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Fill a natural marker, in place: each row goes evenly from what lies left of the area to what lies right of it.

    Noise of sd NOISE covers the evenness. The area is the box and MARGIN pixels (at 256) around it.

    Args:
        canvas: uint8 [S, S]. box: the marker on the canvas.

    Returns:
        the area: left, top, right, bottom (exclusive).
    """
    side = len(canvas)
    margin = MARGIN * side / 256
    left, top, right, bottom = area = box.grown(margin, margin).whole(side)
    if right <= left or bottom <= top:
        return area
    rim = max(1, round(3 * side / 256))
    held = canvas.astype(np.float32)
    before = held[top:bottom, max(0, left - rim) : left]
    after = held[top:bottom, right : right + rim]
    if not before.shape[1] and not after.shape[1]:  # the whole width: what lies above or below
        rows = held[max(0, top - rim) : top] if top else held[bottom : bottom + rim]
        value = float(rows.mean()) if rows.size else float(held.mean())
        ends = np.full((2, bottom - top), value, dtype=np.float32)
    else:  # at the film's border there is one side only
        ends = np.stack([_mean(before, after), _mean(after, before)])
    step = (np.arange(right - left, dtype=np.float32) + 1) / np.float32(right - left + 1)
    filled = ends[0][:, None] * (1 - step) + ends[1][:, None] * step
    filled = filled + rng.normal(0, NOISE, filled.shape)
    canvas[top:bottom, left:right] = (np.clip(filled, 0, 255) + 0.5).astype(np.uint8)
    return area


def _mean(first: Float, otherwise: Float) -> Float:
    return np.asarray((first if first.shape[1] else otherwise).mean(1))


def blank(small: UInt8, box: tuple[int, int, int, int], factor: int) -> Bool:
    """A placebo, in place: the letter's box mirrored to the other upper corner, in the image's mean grey.

    Returns:
        bool [size, size], the changed area: as many pixels as `box_mask` has.
    """
    area = box_mask(box, factor, len(small))[:, ::-1]
    small[area] = np.uint8(float(small.mean()) + 0.5)
    return area
