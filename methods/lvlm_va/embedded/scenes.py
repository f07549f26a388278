"""Pictures to train the embedded critic on: glyphs drawn here, and an object beside the digit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.suite import Bool, Int64, UInt8
from suites.decoy import CLASSES, INK, SIDE, grey_of

Points = tuple[tuple[float, float], ...]
SQUARE, DISC, CROSS = 0, 1, 2
STYLES = ("strokes", "angular", "bitmap")  # drawn for training; the style "type" (a font of outlines) never is
_SCALE = 4  # glyphs are drawn this much larger, then averaged

# Pen paths in the unit square, x to the right and y down.
_PATHS: tuple[tuple[Points, ...], ...] = (
    (((0.5, 0.0), (0.1, 0.25), (0.1, 0.75), (0.5, 1.0), (0.9, 0.75), (0.9, 0.25), (0.5, 0.0)),),
    (((0.3, 0.2), (0.55, 0.0), (0.55, 1.0)),),
    (((0.1, 0.25), (0.3, 0.0), (0.75, 0.05), (0.8, 0.4), (0.1, 1.0), (0.9, 1.0)),),
    (((0.1, 0.1), (0.6, 0.0), (0.85, 0.25), (0.45, 0.48), (0.9, 0.72), (0.6, 1.0), (0.1, 0.9)),),
    (((0.6, 0.0), (0.1, 0.6), (0.9, 0.6)), ((0.65, 0.3), (0.65, 1.0))),
    (((0.85, 0.0), (0.2, 0.0), (0.18, 0.45), (0.6, 0.4), (0.9, 0.7), (0.6, 1.0), (0.1, 0.9)),),
    (((0.75, 0.0), (0.25, 0.4), (0.12, 0.75), (0.5, 1.0), (0.85, 0.75), (0.5, 0.5), (0.15, 0.7)),),
    (((0.1, 0.0), (0.9, 0.0), (0.4, 1.0)),),
    (
        (
            (0.5, 0.48), (0.15, 0.25), (0.5, 0.0), (0.85, 0.25), (0.5, 0.48), (0.1, 0.75), (0.5, 1.0), (0.9, 0.75),
            (0.5, 0.48),
        ),
    ),
    (((0.85, 0.3), (0.5, 0.5), (0.15, 0.25), (0.5, 0.0), (0.85, 0.2), (0.8, 0.6), (0.6, 1.0)),),
)  # fmt: skip


class Picture(NamedTuple):
    """Images with an object, and where object and digit lie.

    images: uint8 [N, 28, 28]. thing, core: bool [N, 28, 28], disjoint. y: int64 [N]. shape: int64 [N], into
    `phrases.SHAPES`. Without an object `thing` is empty.
    """

    images: UInt8
    thing: Bool
    core: Bool
    y: Int64
    shape: Int64


def glyphs(count: int, style: str, rng: np.random.Generator) -> tuple[UInt8, Int64]:
    """White digits on black that no data set holds: uint8 [N, 28, 28] and labels int64 [N].

    style: `strokes` (smooth pen paths with jitter), `angular` (the same paths, straight), `bitmap` (Pillow's small
    raster font, enlarged), `type` (Pillow's outline font, kept for the evaluation).
    """
    y = rng.integers(0, CLASSES, count)
    images = np.stack([_glyph(int(k), style, rng) for k in y]) if count else np.zeros((0, SIDE, SIDE), np.uint8)
    return images, y


def _glyph(y: int, style: str, rng: np.random.Generator) -> UInt8:
    from PIL import Image, ImageFilter

    big = _outline(y, style, rng) if style in ("bitmap", "type") else _pen(y, style == "strokes", rng)
    turned = big.rotate(float(rng.normal(0, 8)), resample=Image.Resampling.BILINEAR)
    turned = turned.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.5 * _SCALE))))
    small = turned.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    shift = rng.integers(-2, 3, 2)
    pixels = np.roll(pixels, shift, (0, 1)) * (rng.uniform(0.5, 1.0) * 255 / max(float(pixels.max()), 1.0))
    return np.rint(pixels).astype(np.uint8)


def _pen(y: int, smooth: bool, rng: np.random.Generator) -> object:
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (SIDE * _SCALE, SIDE * _SCALE))
    draw = ImageDraw.Draw(canvas)
    width, height = rng.uniform(9, 16), rng.uniform(16, 20)
    pen, slant = rng.uniform(1.4, 3.6) * _SCALE, rng.normal(0, 0.15)
    for path in _PATHS[y]:
        points = np.array(path) + rng.normal(0, 0.05 if smooth else 0.02, (len(path), 2))
        points = _rounded(points) if smooth else points
        x = SIDE / 2 + (points[:, 0] - 0.5 - slant * (points[:, 1] - 0.5)) * width
        spots = np.stack([x, SIDE / 2 + (points[:, 1] - 0.5) * height], 1) * _SCALE
        draw.line([tuple(p) for p in spots.tolist()], fill=255, width=round(pen), joint="curve")
        for px, py in spots[[0, -1]].tolist():
            draw.ellipse((px - pen / 2, py - pen / 2, px + pen / 2, py + pen / 2), fill=255)
    return canvas


def _rounded(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Three rounds of Chaikin's corner cutting; the ends stay."""
    for _ in range(3):
        first, second = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        points = np.concatenate([points[:1], np.stack([first, second], 1).reshape(-1, 2), points[-1:]])
    return points


def _outline(y: int, style: str, rng: np.random.Generator) -> object:
    from PIL import Image, ImageDraw, ImageFont

    side = SIDE * _SCALE
    if style == "bitmap":
        font = ImageFont.load_default_imagefont()
        box = font.getbbox(str(y))
        small = Image.new("L", (round(box[2]), round(box[3])))
        ImageDraw.Draw(small).text((0, 0), str(y), fill=255, font=font)
        small = small.crop(small.getbbox())
        size = (round(rng.uniform(9, 16) * _SCALE), round(rng.uniform(15, 20) * _SCALE))
        letter = small.resize(size, rng.choice([Image.Resampling.NEAREST, Image.Resampling.BILINEAR]))
        canvas = Image.new("L", (side, side))
        canvas.paste(letter, ((side - size[0]) // 2, (side - size[1]) // 2))
        return canvas
    canvas = Image.new("L", (side, side))
    face = ImageFont.load_default(size=rng.uniform(19, 26) * _SCALE)
    stroke = float(rng.uniform(0, 0.6) * _SCALE)
    ImageDraw.Draw(canvas).text((side / 2, side / 2), str(y), fill=255, font=face, anchor="mm", stroke_width=stroke)
    return canvas


def objects(count: int, rng: np.random.Generator, shape: Int64, side: Int64, loose: bool) -> Bool:
    """One object in a random corner of every image, bool [N, 28, 28]; `loose`: up to one pixel off the corner."""
    corner = rng.integers(0, 2, (2, count))
    off = rng.integers(0, 2, (2, count)) if loose else np.zeros((2, count), dtype=np.int64)
    return _stamp(np.where(corner == 0, off, SIDE - side - off), shape, side)


def _stamp(place: Int64, shape: Int64, side: Int64) -> Bool:
    """Objects with their upper left corner at `place` [2, N]."""
    row, column = (np.arange(SIDE)[None] - p[:, None] for p in place)
    inside = [(k >= 0) & (k < side[:, None]) for k in (row, column)]
    square = inside[0][:, :, None] & inside[1][:, None, :]
    middle = ((side - 1) / 2)[:, None]
    dy, dx = np.abs(row - middle)[:, :, None], np.abs(column - middle)[:, None, :]
    radius = (side / 2)[:, None, None]
    disc = square & (dy**2 + dx**2 <= (radius + 0.1) ** 2)
    cross = square & (np.minimum(dy, dx) <= 0.5)
    chosen = shape[:, None, None]
    return np.where(chosen == DISC, disc, np.where(chosen == CROSS, cross, square))


def compose(
    base: UInt8,
    y: Int64,
    grey: UInt8,
    rng: np.random.Generator,
    *,
    shape: Int64 | None = None,
    side: Int64 | None = None,
    loose: bool = False,
    absent: float = 0.0,
    placebo: float = 0.0,
) -> Picture:
    """Put an object into every image.

    Args:
        base: uint8 [N, 28, 28]. y: int64 [N]. grey: uint8 [N] of the object. shape, side: int64 [N]; default: the
            square of the suites (4 pixels). loose: see `objects`. absent: fraction of images without an object.
        placebo: fraction of images with a second object on the border between corners, of any grey; it is neither the
            object nor the digit.
    """
    n = len(y)
    shape = np.zeros(n, dtype=np.int64) if shape is None else shape
    side = np.full(n, 4, dtype=np.int64) if side is None else side
    thing = objects(n, rng, shape, side, loose) & (rng.random(n) >= absent)[:, None, None]
    images, core = base.copy(), (base > INK) & ~thing
    if placebo:
        along, edge = rng.integers(8, SIDE - 8 - side, n), rng.integers(0, 2, n) * (SIDE - side)
        swap = rng.random(n) < 0.5
        second = _stamp(np.where(swap, (along, edge), (edge, along)), shape, side)
        second &= (rng.random(n) < placebo)[:, None, None]
        images[second] = np.broadcast_to(grey_of(rng.integers(0, CLASSES, n))[:, None, None], second.shape)[second]
        core &= ~second
    images[thing] = np.broadcast_to(grey[:, None, None], thing.shape)[thing]
    return Picture(images, thing, core, y, shape)
