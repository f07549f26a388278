"""What a segment looks like and where it lies, in numbers: no class label, no output of the model but its attribution.

Source: robust.md's trial (centroid, spread, area, attribution share, pixel statistics, principal components of a crop).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import roi_align

if TYPE_CHECKING:
    from harness.segment import Segments

CROP, COMPONENTS = 8, 8
REACH, NARROWEST = 2.0, 2.0  # half side of a crop: so many standard deviations of the segment, at least so many pixels


def feature_names(channels: int) -> tuple[str, ...]:
    """Names of the columns, for images with this many channels."""
    colours = tuple(f"pixel_mean_{c}" for c in range(channels)) if channels > 1 else ()
    plain = ("x", "y", "var_x", "var_y", "cov_xy", "area", "attribution_share", "pixel_mean", "pixel_std", "pixel_seen")
    return (*plain, *colours, *(f"crop_{k}" for k in range(COMPONENTS)))


def segment_features(images: Tensor, maps: Tensor, segments: Segments) -> tuple[npt.NDArray[np.float64], Tensor]:
    """Features of every non-empty segment, in the order of `segments.nonempty.nonzero()`.

    Args:
        images: uint8 [N, C, H, W], any C. maps: float [N, H, W]. segments: of these maps, J per map.

    Returns:
        float64 [M, F], columns as `feature_names(C)`, and int64 [M, 2], the image (row of `images`) and the segment.
        Places and spreads are fractions of the image's width and height, weighted by the segment's positive attribution
        (by its pixels where it has none); area is the fraction of pixels; attribution_share the fraction of the image's
        positive attribution; pixel values lie in [0, 1], `pixel_seen` weighted by attribution. One grey value per pixel
        (the mean over the channels) stands for colour; the means of the channels are columns of their own.
    """
    n, channels, height, width = images.shape
    where = segments.nonempty.nonzero()
    pixels = images.double() / 255
    grey = pixels.mean(1)
    slot = segments.labels.flatten(1).long() + 1  # 0 collects the pixels in no segment

    def total(values: Tensor) -> Tensor:
        sums = torch.zeros(n, segments.count + 1, dtype=torch.float64, device=images.device)
        return sums.scatter_add_(1, slot, values.flatten(1))[:, 1:]

    area = total(torch.ones_like(grey))
    positive = maps.double().clamp(min=0)
    mass = total(positive)
    held = torch.cat([torch.zeros_like(mass[:, :1]), mass], 1).gather(1, slot).view_as(grey)
    weight = torch.where(held > 0, positive, torch.ones_like(positive))
    scale = torch.where(mass > 0, mass, area.clamp(min=1))

    def mean(values: Tensor) -> Tensor:
        return total(weight * values) / scale

    x = ((torch.arange(width, device=images.device, dtype=torch.float64) + 0.5) / width).expand_as(grey)
    y = ((torch.arange(height, device=images.device, dtype=torch.float64) + 0.5) / height)[:, None].expand_as(grey)
    at_x, at_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - at_x**2, mean(y * y) - at_y**2
    size = area.clamp(min=1)
    plain = total(grey) / size
    deviation = (total(grey**2) / size - plain**2).clamp(min=0).sqrt()
    share = mass / positive.flatten(1).sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    columns = [at_x, at_y, var_x.clamp(min=0), var_y.clamp(min=0), mean(x * y) - at_x * at_y]
    columns += [area / (height * width), share, plain, deviation, mean(grey)]
    if channels > 1:
        columns += [total(pixels[:, c]) / size for c in range(channels)]
    table = torch.stack([column[where[:, 0], where[:, 1]] for column in columns], 1).cpu().numpy()
    half = REACH * torch.maximum(var_x.clamp(min=0).sqrt() * width, var_y.clamp(min=0).sqrt() * height)
    centre = torch.stack([at_x * width, at_y * height, half.clamp(min=NARROWEST)], -1)[where[:, 0], where[:, 1]]
    return np.concatenate([table, principal_components(_crops(grey, where[:, 0], centre))], 1), where


def _crops(grey: Tensor, image: Tensor, centre: Tensor) -> npt.NDArray[np.float64]:
    """Square crops [M, CROP * CROP] around (x, y, half side) in pixels; zero beyond the image."""
    x, y, half = centre.unbind(1)
    boxes = torch.stack([image.double(), x - half, y - half, x + half, y + half], 1)
    crops = roi_align(grey[:, None].float(), boxes.float(), (CROP, CROP), sampling_ratio=2, aligned=True)
    return crops.flatten(1).double().cpu().numpy()


def principal_components(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Coordinates [M, COMPONENTS] on the leading principal axes, each turned so that its largest entry is positive."""
    if len(rows) == 0:
        return np.zeros((0, COMPONENTS))
    centred = rows - rows.mean(0)
    axes = np.linalg.eigh(centred.T @ centred / len(rows))[1][:, ::-1][:, :COMPONENTS]
    largest = np.abs(axes).argmax(0)
    return centred @ (axes * np.sign(axes[largest, np.arange(COMPONENTS)]))
