"""Segments from image content instead of attribution: the ablation of PPEPS-WGM at equal verdicts.

SLIC superpixels (Achanta et al. 2012) in its parameter-free form, by scikit-image. Labels are kept only where the
attribution is positive enough, as in `harness.segment`, so that the same rule judges both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import ConfigError
from harness.segment import CUT, Segments


def content_segments(images: Tensor, maps: Tensor, count: int = 6, support: str = "phi_pos") -> Segments:
    """At most `count` superpixels of every image, ordered by falling share of its positive attribution.

    Args:
        images: uint8 [N, C, H, W]; 3 channels are compared as Lab colours. maps: float [N, H, W].
        support: `phi_pos` labels the pixels with more than CUT of the uniform share of the attribution, `all` every
            pixel.

    Returns:
        Segments on the device of `maps`. loglik is that of the density that is flat in each superpixel, in the units of
        `harness.segment`. An image without positive attribution gets no segments.

    Raises:
        ConfigError: a support that has no meaning without a mixture. ValueError: shapes that do not fit.
    """
    if support not in ("phi_pos", "all"):
        raise ConfigError(f"content segments have no support '{support}'; known: phi_pos, all")
    n, height, width = maps.shape
    if images.shape[0] != n or images.shape[2:] != maps.shape[1:]:
        raise ValueError(f"images {tuple(images.shape)} and maps {tuple(maps.shape)} do not fit")
    labels = np.full((n, height, width), -1, dtype=np.int8)
    share, loglik = np.zeros((n, count), dtype=np.float32), np.zeros(n, dtype=np.float32)
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    positive = maps.double().clamp(min=0).cpu().numpy()
    for k in range(n):
        mass = positive[k].sum()
        if not mass > 0:
            continue
        weights = positive[k] / mass
        raw = _superpixels(pixels[k], count)
        parts = np.bincount(raw.ravel(), weights.ravel(), minlength=count)
        order = np.argsort(-parts, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(count)
        share[k] = parts[order]
        owned = parts > 0
        area = np.bincount(raw.ravel(), minlength=count) / max(height, width) ** 2
        loglik[k] = float((parts[owned] * np.log(parts[owned] / area[owned])).sum())
        keep = weights > CUT / (height * width) if support == "phi_pos" else np.ones_like(raw, dtype=bool)
        labels[k][keep] = rank[raw][keep]
    found = (torch.from_numpy(array).to(maps.device) for array in (labels, share, loglik))
    return Segments(*found)


def _superpixels(image: npt.NDArray[np.uint8], count: int) -> npt.NDArray[Any]:
    """Labels int64 [H, W] in 0..count-1 of an image [H, W, C]; SLIC may give fewer than it is asked for, never more."""
    from skimage.segmentation import slic

    grey = image.shape[2] != 3
    content = image.astype(np.float64).mean(2) / 255 if grey else image
    for asked in range(count, 0, -1):
        found = slic(content, n_segments=asked, slic_zero=True, start_label=0, channel_axis=None if grey else -1)
        if found.max() < count:
            return np.asarray(found, dtype=np.int64)
    return np.zeros(image.shape[:2], dtype=np.int64)
