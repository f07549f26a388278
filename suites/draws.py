"""What a data seed draws in every suite of real images: who carries the attribute, which split a patient belongs to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.errors import ConfigError
from harness.suite import Int64


def check_fraction(what: str, name: str, value: Any) -> float:
    """`value` as a fraction. Raises ConfigError where it is no number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{what}: {name} is the fraction of aligned training images, 0 to 1, not {value!r}")
    return float(value)


def check_whole(what: str, name: str, value: Any, low: int) -> int:
    """`value` as a whole number. Raises ConfigError where it is none, or smaller than `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{what}: {name} must be a whole number of at least {low}, not {value!r}")
    return value


def check_side(what: str, value: Any) -> int:
    """`value` as the side of an image in pixels. Raises ConfigError outside 16 to 1024."""
    if isinstance(value, bool) or not isinstance(value, int) or not 16 <= value <= 1024:
        raise ConfigError(f"{what}: size is a side in pixels, 16 to 1024, not {value!r}")
    return value


def correlated(y: Int64, usual: Int64, rho: float, rng: np.random.Generator) -> Int64:
    """Attributes int64 [N] of which in either class round(rho n) are the usual one, the others 1 minus it.

    Args:
        y: int64 [N], class 0 or 1. usual: int64 [N], the attribute (0 or 1) that is aligned with each image's class.
    """
    a = usual.copy()
    for c in (0, 1):
        held = rng.permutation(np.flatnonzero(y == c))
        flipped = held[: len(held) - round(rho * len(held))]
        a[flipped] = 1 - usual[flipped]
    return a


def halves(index: Int64, y: Int64, units: Mapping[int, str], rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Two random halves, each with half of either class; images of one unit (patient, lesion) stay together."""
    order = np.concatenate([rng.permutation(index[y[index] == c]) for c in (0, 1)])
    chosen = set(list(dict.fromkeys(units[k] for k in order.tolist()))[::2])
    first = np.array([units[k] in chosen for k in order.tolist()], dtype=np.bool_)
    return order[first], order[~first]


def drawn_splits(
    units: Sequence[str], kinds: Sequence[Hashable], shares: Mapping[str, float], rng: np.random.Generator
) -> list[str]:
    """A split for every image: units stay together, and every split gets its share of every kind of unit.

    Args:
        units: patient of each image. kinds: what should be equally frequent in all splits (label, grade, ...); units
        are shared out within each set of kinds that they show. shares: split -> share of the images; they sum to 1.
    """
    shown: dict[str, set[Hashable]] = {}
    size: dict[str, int] = {}
    for unit, kind in zip(units, kinds, strict=True):
        shown.setdefault(unit, set()).add(kind)
        size[unit] = size.get(unit, 0) + 1
    strata: dict[tuple[str, ...], list[str]] = {}
    for unit in sorted(shown):
        strata.setdefault(tuple(sorted(map(str, shown[unit]))), []).append(unit)
    found: dict[str, str] = {}
    names, edges = list(shares), np.cumsum(list(shares.values()))
    for key in sorted(strata):
        order = [strata[key][k] for k in rng.permutation(len(strata[key]))]
        counts = np.array([size[unit] for unit in order], dtype=np.float64)
        middle = (np.cumsum(counts) - counts / 2) / counts.sum()  # where the unit lies in its stratum, 0..1
        part = np.minimum(np.searchsorted(edges, middle), len(names) - 1)
        found |= {unit: names[k] for unit, k in zip(order, part.tolist(), strict=True)}
    return [found[unit] for unit in units]


def subsampled(y: Int64, a: Int64, usual: Int64, rho: float, rng: np.random.Generator) -> Int64:
    """Positions of as many images as possible of which in either class a share rho shows the usual attribute.

    For attributes that cannot be inserted: the correlation comes from which images are taken. The number of the rarer
    kind is rounded to the nearest; a class keeps at least one image.
    """
    kept = []
    for c in (0, 1):
        hit, miss = (rng.permutation(np.flatnonzero((y == c) & ((a == usual) == same))) for same in (True, False))
        total = min(len(hit) / rho if rho > 0 else np.inf, len(miss) / (1 - rho) if rho < 1 else np.inf)
        n_hit, n_miss = min(len(hit), round(total * rho)), min(len(miss), round(total * (1 - rho)))
        kept += [hit[:n_hit], miss[:n_miss]]
    return np.sort(np.concatenate(kept)).astype(np.int64)
