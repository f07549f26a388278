"""A suite's images, masks and cores enlarged by a whole factor: the same task at another image size."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from harness.suite import Split, SuiteData

ArrayT = TypeVar("ArrayT", bound=np.generic)


def enlarged(data: SuiteData, factor: int) -> SuiteData:
    """Every pixel becomes factor x factor equal pixels; labels, attributes and ids stay."""

    def grow(split: Split) -> Split:
        masks = None if split.masks is None else _repeat(split.masks, factor)
        core = None if split.core is None else _repeat(split.core, factor)
        return replace(split, images=_repeat(split.images, factor), masks=masks, core=core)

    return replace(
        data,
        train=grow(data.train),
        val=grow(data.val),
        val_groups=None if data.val_groups is None else grow(data.val_groups),
        decorrelated=None if data.decorrelated is None else grow(data.decorrelated),
        test={name: grow(split) for name, split in data.test.items()},
    )


def _repeat(pixels: npt.NDArray[ArrayT], factor: int) -> npt.NDArray[ArrayT]:
    """[..., H, W] to [..., factor H, factor W]."""
    grown: npt.NDArray[ArrayT] = np.repeat(np.repeat(pixels, factor, -1), factor, -2)
    return grown
