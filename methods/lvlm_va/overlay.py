"""What a critic is shown: the image, its coloured segment map, and the overlay of both (LVLM-VA, arXiv:2512.21985)."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError

RGB = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int8]
Order = npt.NDArray[np.int64]
OPACITY = 0.5  # of the colour in the overlay


class Colour(NamedTuple):
    """A colour by the name that a question uses for it."""

    name: str
    rgb: tuple[int, int, int]


# Okabe and Ito (2008), "Color universal design", without black: tellable apart with any common colour blindness.
PALETTE = (
    Colour("orange", (230, 159, 0)),
    Colour("sky blue", (86, 180, 233)),
    Colour("green", (0, 158, 115)),
    Colour("yellow", (240, 228, 66)),
    Colour("blue", (0, 114, 178)),
    Colour("red", (213, 94, 0)),
    Colour("pink", (204, 121, 167)),
)


def colour_names(count: int) -> tuple[str, ...]:
    """Names of the palette indices 0..count-1. Beyond the palette's size colours repeat, and every name gets a number.

    The number is the one that `render(marks=True)` draws on the segment, counted from 1.
    """
    names = [PALETTE[k % len(PALETTE)].name for k in range(count)]
    return tuple(names if count <= len(PALETTE) else [f"{name} {k + 1}" for k, name in enumerate(names)])


def render(
    images: npt.NDArray[np.uint8],
    labels: Labels,
    *,
    size: int,
    order: Order | None = None,
    marks: bool = False,
) -> list[tuple[RGB, RGB, RGB]]:
    """Draw every image, its segment map on black, and the overlay of both.

    Args:
        images: uint8 [N, C, H, W], grey (C = 1) or RGB (C = 3). labels: int8 [N, H, W] in -1..J-1, -1 = no segment.
        size: side of the pictures. Images are enlarged by the largest whole factor that fits (28 stays 28 at size 32)
            and centred on black; larger ones are reduced. Both by nearest neighbour, so that colours stay pure.
        order: int64 [N, J], palette index of every segment; default: segment j has index j.
        marks: draw each segment's number (palette index + 1) on the map and on the overlay (set-of-mark prompting,
            Yang et al. 2023); wants pictures large enough to read it, say 224.

    Returns:
        N tuples (original, map, overlay) of RGB uint8 [size, size, 3].

    Raises:
        ConfigError: a size that is not positive. ValueError: shapes that do not belong together.
    """
    original, plain, overlay = render_stacked(images, labels, size=size, order=order)
    if marks:
        where = _resize(np.asarray(labels), size, -1)
        for n in range(len(where)):
            for number, centre in _centres(where[n], None if order is None else order[n]):
                plain[n] = _write(plain[n], number, centre)
                overlay[n] = _write(overlay[n], number, centre)
    return list(zip(original, plain, overlay, strict=True))


def render_stacked(
    images: npt.NDArray[np.uint8], labels: Labels, *, size: int, order: Order | None = None
) -> tuple[RGB, RGB, RGB]:
    """As `render` without marks, each kind of picture stacked: three times uint8 [N, size, size, 3]."""
    images, labels = np.asarray(images), np.asarray(labels)
    _check(images, labels, size, order)
    longest = int(labels.max(initial=-1)) + 1
    colours = np.array([PALETTE[k % len(PALETTE)].rgb for k in range(max(128, longest))], dtype=np.uint8)
    index = labels.clip(min=0).astype(np.int64)
    if order is not None:
        index = np.take_along_axis(order, index.reshape(len(index), -1), 1).reshape(labels.shape)
    held = labels >= 0
    rgb = np.ascontiguousarray(np.broadcast_to(images.transpose(0, 2, 3, 1), (*labels.shape, 3)))
    plain = np.where(held[..., None], colours[index], np.uint8(0))
    blended = np.rint(OPACITY * plain + (1 - OPACITY) * rgb.astype(np.float32)).astype(np.uint8)
    overlay = np.where(held[..., None], blended, rgb)
    return _resize(rgb, size, 0), _resize(plain, size, 0), _resize(overlay, size, 0)


def data_uri(pixels: RGB) -> str:
    """PNG data URI of RGB pixels uint8 [H, W, 3], in grey or with a palette where that says the same."""
    from PIL import Image

    image = Image.fromarray(pixels)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    if (pixels == pixels[..., :1]).all():
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    elif len(colours) <= 64:
        index = (pixels[:, :, None] == colours).all(-1).argmax(-1).astype(np.uint8)
        image = Image.fromarray(index)
        image.putpalette(colours.flatten().tobytes(), "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _check(images: npt.NDArray[np.uint8], labels: Labels, size: int, order: Order | None) -> None:
    if size < 1:
        raise ConfigError(f"the side of an overlay must be positive, got {size}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 [N, 1 or 3, H, W], got {images.dtype} {images.shape}")
    if labels.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"labels {labels.shape} do not fit images {images.shape}")
    if order is not None and (order.ndim != 2 or len(order) != len(images) or order.shape[1] <= labels.max(initial=-1)):
        raise ValueError(f"order {order.shape} does not name a colour for every segment of {len(images)} images")


def _resize(pixels: npt.NDArray[np.generic], size: int, fill: int) -> npt.NDArray[np.generic]:
    """Nearest neighbour to the largest whole multiple that fits (or down to `size`), centred on `fill`."""
    height, width = pixels.shape[1:3]
    longest = max(height, width)
    tall, wide = (
        (side * (size // longest) if longest <= size else max(1, round(side * size / longest)))
        for side in (height, width)
    )
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in ((tall, height), (wide, width))
    )
    out = np.full((len(pixels), size, size, *pixels.shape[3:]), fill, dtype=pixels.dtype)
    top, left = (size - tall) // 2, (size - wide) // 2
    out[:, top : top + tall, left : left + wide] = pixels[:, rows[:, None], columns]
    return out


def _centres(labels: npt.NDArray[np.generic], order: Order | None) -> list[tuple[int, tuple[int, int]]]:
    """(number, (row, column)) of each segment: its own pixel nearest to its centre of gravity, so never beside it."""
    found = []
    for j in np.unique(labels[labels >= 0]).tolist():
        points = np.argwhere(labels == j)
        nearest = points[np.square(points - points.mean(0)).sum(1).argmin()]
        found.append(((j if order is None else int(order[j])) + 1, (int(nearest[0]), int(nearest[1]))))
    return found


def _write(picture: RGB, number: int, centre: tuple[int, int]) -> RGB:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(picture)
    font = ImageFont.load_default(size=max(10, len(picture) // 16))
    place = (centre[1], centre[0])
    ImageDraw.Draw(canvas).text(
        place, str(number), fill=(255, 255, 255), stroke_fill=(0, 0, 0), stroke_width=2, font=font, anchor="mm"
    )
    return np.asarray(canvas)
