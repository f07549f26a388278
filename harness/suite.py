"""What a suite is: its metadata, its splits as numpy arrays, and the named renderings of its test images.

A suite imports no torch: the engine moves its arrays to the device once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.suite_info import Source, SuiteInfo

__all__ = ["Bool", "Int64", "Roles", "Source", "Split", "Suite", "SuiteData", "SuiteInfo", "UInt8"]

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Images of one split or rendering.

    images: uint8 [N, C, H, W] in 0..255; y: class in 0..K-1; a: spurious attribute (-1 = none); g: group index into
    `SuiteData.group_names`; masks: bool [N, H, W], True on the spurious object (None where the suite has no masks);
    core: bool [N, H, W], True on the object that defines the class (None where unknown); ids: the base image, the unit
    of every bootstrap.
    """

    images: UInt8
    y: Int64
    a: Int64
    g: Int64
    ids: Int64
    masks: Bool | None = None
    core: Bool | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {self.images.shape}")
        for name in ("y", "a", "g", "ids"):
            value = getattr(self, name)
            if value.shape != (n,) or value.dtype != np.int64:
                raise ValueError(f"{name} must be int64 [{n}], got {value.dtype} {value.shape}")
        for name in ("masks", "core"):
            value = getattr(self, name)
            if value is not None and (value.dtype != np.bool_ or value.shape != (n, *self.images.shape[2:])):
                raise ValueError(f"{name} must be bool [{n}, H, W], got {value.dtype} {value.shape}")

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Roles:
    """Which test rendering plays which part in the metrics; None where the suite cannot render it.

    headline: the one whose accuracy is the first column; average: raw test accuracy; aligned: the reference in which
    the shortcut holds; grouped: the renderings pooled for per-group accuracies; insert, remove, placebo: the
    interventions, each compared with `aligned` image by image; masked: the rendering on which mu_Align is measured.
    """

    headline: str
    average: str
    grouped: tuple[str, ...]
    aligned: str | None = None
    insert: str | None = None
    remove: str | None = None
    placebo: str | None = None
    masked: str | None = None


@dataclass(frozen=True)
class SuiteData:
    """A suite at one data seed. Every test rendering shows the same base images in the same order."""

    train: Split
    val: Split
    test: Mapping[str, Split]
    roles: Roles
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    val_groups: Split | None = None
    decorrelated: Split | None = None
    descriptions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # preset -> class name -> sentence
    # The data set's own metrics of predictions int64 [N] on the headline rendering, under its own names.
    official: Callable[[Int64], Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        named = {r for r in (self.roles.headline, self.roles.average, *self.roles.grouped) if r not in self.test}
        optional = (self.roles.aligned, self.roles.insert, self.roles.remove, self.roles.placebo, self.roles.masked)
        named |= {r for r in optional if r is not None and r not in self.test}
        if named:
            raise ValueError(f"roles name renderings that the suite does not give: {', '.join(sorted(named))}")

    def group_counts(self) -> dict[str, dict[str, int]]:
        """Images per group, by split and by pooled test rendering: the table that is printed before a run."""
        splits: dict[str, Split | None] = {"train": self.train, "val": self.val, "val_groups": self.val_groups}
        splits |= {f"test/{name}": self.test[name] for name in self.roles.grouped}
        return {
            name: {label: int((split.g == k).sum()) for k, label in enumerate(self.group_names)}
            for name, split in splits.items()
            if split is not None
        }


class Suite(ABC):
    """Base of every suite. The constructor takes the suite's parameters by keyword and validates them."""

    info: ClassVar[SuiteInfo]

    @property
    @abstractmethod
    def name(self) -> str:
        """Full name with every parameter that changes the data, e.g. `decoy_mnist-ross-rho0.97`."""

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """All parameters with their values (defaults included), JSON-serialisable: part of a cell's identity."""

    @abstractmethod
    def data_hash(self) -> str:
        """sha256 hex digest of the raw data that `load` reads. Raises DataError where the data is missing."""

    @abstractmethod
    def load(self, seed: int) -> SuiteData:
        """Build the splits of one data seed; equal seeds give equal arrays.

        May run in a thread while another cell works: draw from generators of your own, never from the global ones.
        """
