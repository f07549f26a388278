"""How much a model relies on the spurious object: attribution inside its mask, reaction to interventions, noise.

Maps are attributions [N, H, W] (channels summed), masks are bool [N, H, W] with True on the object in question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]


def _check(maps: Array, masks: Array) -> tuple[Float, Bool]:
    maps, masks = np.asarray(maps, dtype=np.float64), np.asarray(masks)
    if maps.ndim != 3 or maps.shape != masks.shape or masks.dtype != np.bool_:
        raise ValueError(f"need maps [N, H, W] and bool masks like them, got {maps.shape}, {masks.dtype} {masks.shape}")
    if not np.isfinite(maps).all():
        raise ValueError("attribution maps hold NaN or infinity; the explainer failed on this model")
    return maps, masks


def mask_share(maps: Array, masks: Array) -> Float:
    """Share of |attribution| inside the mask, float64 [N] in 0..1; NaN for an all-zero map or an empty mask."""
    maps, masks = _check(maps, masks)
    weight = np.abs(maps)
    # dividing by the maximum first keeps denormal maps from underflowing
    weight /= np.maximum(weight.max(axis=(1, 2), keepdims=True, initial=0), np.finfo(np.float64).tiny)
    total = weight.sum(axis=(1, 2))
    defined = (total > 0) & masks.any(axis=(1, 2))
    return np.where(defined, (weight * masks).sum(axis=(1, 2)) / np.where(total > 0, total, 1), np.nan)


def mu_align(maps: Array, masks: Array) -> dict[str, float]:
    """mu_Align (LVLM-VA; protocol.md): 1 - mean share of |attribution| inside the ground-truth mask.

    The mean runs over images with a non-empty mask; all-zero maps among them are skipped and counted.

    Returns:
        mu_align; uniform_level = 1 - mask_fraction, what a uniform map scores; share; mask_fraction (both means over
        the same images); lift = share / mask_fraction, 1 for a uniform map; n images used; skipped_zero_maps.
    """
    maps, masks = _check(maps, masks)
    share = mask_share(maps, masks)
    used = ~np.isnan(share)
    zero = masks.any(axis=(1, 2)) & (maps == 0).all(axis=(1, 2))
    mean = float(share[used].mean()) if used.any() else math.nan
    fraction = float(masks[used].mean()) if used.any() else math.nan
    return {
        "mu_align": 1 - mean,
        "uniform_level": 1 - fraction,
        "lift": mean / fraction,
        "share": mean,
        "mask_fraction": fraction,
        "n": int(used.sum()),
        "skipped_zero_maps": int(zero.sum()),
    }


def epg(maps: Array, masks: Array) -> float:
    """Energy pointing game: mean over images of the share of positive attribution inside the mask.

    Images with an empty mask or without positive attribution are left out; NaN if none remains.
    """
    maps, masks = _check(maps, masks)
    share = mask_share(np.maximum(maps, 0), masks)
    used = ~np.isnan(share)
    return float(share[used].mean()) if used.any() else math.nan


def wrong_reason(maps: Array, masks: Array, threshold: str = "mean") -> float:
    """Wrong-reason score of the XIL typology (Friedrich et al. 2023): mean over images of |active in mask| / |mask|.

    Positive attribution is min-max normalised per image; a pixel is active above the mean (or `median`) over the data
    set. Images without positive attribution are left out (they would score 0), and so are empty masks.
    """
    maps, masks = _check(maps, masks)
    if threshold not in ("mean", "median"):
        raise ValueError(f"threshold must be 'mean' or 'median', not '{threshold}'")
    positive = np.maximum(maps, 0)
    low = positive.min(axis=(1, 2), keepdims=True, initial=np.inf)
    spread = positive.max(axis=(1, 2), keepdims=True, initial=-np.inf) - low
    alive = spread[:, 0, 0] > 0
    if not (alive & masks.any(axis=(1, 2))).any():
        return math.nan
    normed = (positive[alive] - low[alive]) / spread[alive]
    cut = normed.mean() if threshold == "mean" else np.median(normed)
    area = masks[alive].sum(axis=(1, 2))
    hit = ((normed > cut) & masks[alive]).sum(axis=(1, 2))
    return float((hit[area > 0] / area[area > 0]).mean())


def flip_rate(pred_a: Array, pred_b: Array) -> float:
    """Share of images whose prediction differs between two renderings of the same images [N]; NaN without images."""
    pred_a, pred_b = np.asarray(pred_a), np.asarray(pred_b)
    if pred_a.shape != pred_b.shape or pred_a.ndim != 1:
        raise ValueError(f"need predictions of the same images, got {pred_a.shape} and {pred_b.shape}")
    return float((pred_a != pred_b).mean()) if len(pred_a) else math.nan


def flip_effects(pred_reference: Array, interventions: Mapping[str, Array]) -> dict[str, float]:
    """Flip rates against the reference rendering under `insert`, `remove` and `placebo`, those that are given.

    `effect` = insert - placebo (protocol.md), NaN where one of the two is missing.

    Raises:
        ValueError: another intervention, or predictions of other images.
    """
    unknown = set(interventions) - {"insert", "remove", "placebo"}
    if unknown:
        raise ValueError(f"unknown intervention {', '.join(sorted(unknown))}; known: insert, remove, placebo")
    rates = {name: flip_rate(pred_reference, pred) for name, pred in interventions.items()}
    return {**rates, "effect": rates.get("insert", math.nan) - rates.get("placebo", math.nan)}


def directed_flip_rate(pred_before: Array, pred_after: Array, shortcut_class: Array) -> float:
    """P[prediction after = shortcut class | prediction before != shortcut class]; NaN if the condition never holds.

    shortcut_class: the class that the inserted attribute points to, int [N] or one int.
    """
    before, after = np.asarray(pred_before), np.asarray(pred_after)
    target = np.broadcast_to(np.asarray(shortcut_class), before.shape)
    free = before != target
    return float((after == target)[free].mean()) if free.any() else math.nan


def gap(acc_aligned: float, acc_conflicting: float) -> float:
    """Aligned minus conflicting accuracy: positive where the shortcut is used."""
    return acc_aligned - acc_conflicting


def rcs(acc_core: float, acc_spurious: float) -> float:
    """Relative core sensitivity (Singla et al. 2022; methods.md 6.12), in -1..1; negative: relies on the spurious part.

    RCS = (acc_core - acc_spurious) / (2 min(m, 1 - m)) with m their mean, 0 where m is 0 or 1.

    Args:
        acc_core: accuracy with noise only in the spurious region. acc_spurious: with noise only in the core region.
    """
    for value in (acc_core, acc_spurious):
        if not (math.isnan(value) or 0 <= value <= 1):
            raise ValueError(f"{value} is not an accuracy in 0..1")
    mean = (acc_core + acc_spurious) / 2
    if mean in (0.0, 1.0):
        return 0.0
    return max(-1.0, min(1.0, (acc_core - acc_spurious) / (2 * min(mean, 1 - mean))))


class NoisedPair(NamedTuple):
    """Two copies of the images, uint8 [N, C, H, W], noised in `region` and in `other`; area: noised pixels, int [N]."""

    in_region: npt.NDArray[np.uint8]
    in_other: npt.NDArray[np.uint8]
    area: npt.NDArray[np.int64]


def noise_regions(images: Array, region: Array, other: Array, sigma: float, rng: np.random.Generator) -> NoisedPair:
    """Gaussian noise in either region, with equal noised areas in each image (protocol.md).

    The larger region is thinned at random to the area of the smaller; pixels in both regions belong to neither. Both
    copies see the same noise field. Leave images with area 0 out of the accuracies.

    Args:
        images: uint8 [N, C, H, W]. region, other: bool [N, H, W]. sigma: on the scale 0..1 (0.25 in Salient ImageNet).
    """
    images, region, other = np.asarray(images), np.asarray(region), np.asarray(other)
    spatial = (len(images), *images.shape[2:])
    if images.dtype != np.uint8 or region.shape != spatial or other.shape != spatial:
        raise ValueError(f"need uint8 images and regions {spatial}, got {images.dtype}, {region.shape}, {other.shape}")
    region, other = region & ~other, other & ~region
    area = np.minimum(region.sum(axis=(1, 2)), other.sum(axis=(1, 2)))
    noisy = images + 255 * sigma * rng.standard_normal(images.shape, dtype=np.float32)
    noisy = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    first, second = (np.where(_thin(part, area, rng)[:, None], noisy, images) for part in (region, other))
    return NoisedPair(first, second, area)


def _thin(region: Bool, area: npt.NDArray[np.int64], rng: np.random.Generator) -> Bool:
    """Keep `area` random pixels of every image's region."""
    keys = np.where(region, rng.random(region.shape), 2.0).reshape(len(region), -1)
    bounds = np.concatenate([np.full((len(keys), 1), -1.0), np.sort(keys, axis=1)], axis=1)
    return np.asarray(keys <= np.take_along_axis(bounds, area[:, None], axis=1)).reshape(region.shape)
