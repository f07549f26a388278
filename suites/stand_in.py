"""Random pixels of a stated size: a stand-in that needs no data, for timing alone. Its accuracies mean nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from harness.suite import Int64, Roles, Split, Suite, SuiteData
from suites import STAND_IN
from suites.draws import check_side, check_whole


class StandIn(Suite):
    """Two classes, two attribute values, a square that is white where a = 1 in a share .9 of either class."""

    info = STAND_IN

    def __init__(self, size: int = 64, n: int = 1024, channels: int = 3):
        what = "suite 'stand_in'"
        self.size, self.n = check_side(what, size), check_whole(what, "n", n, 64)
        self.channels = check_whole(what, "channels", channels, 1)

    @property
    def name(self) -> str:
        """E.g. `stand_in-64px`."""
        return f"stand_in-{self.size}px" + (f"-n{self.n}" if self.n != 1024 else "")

    @property
    def params(self) -> dict[str, Any]:
        """size, n, channels."""
        return {"size": self.size, "n": self.n, "channels": self.channels}

    def data_hash(self) -> str:
        """Hash of the parameters: there are no files."""
        return hashlib.sha256(repr(self.params).encode()).hexdigest()

    def load(self, seed: int) -> SuiteData:
        """Train of n images, the other splits of n / 8."""
        rng = np.random.default_rng([seed, 5])
        few = max(16, self.n // 8)
        held = {name: self._split(rng, few, name != "val") for name in ("val", "val_groups", "aligned", "conflicting")}
        decorrelated = self._split(rng, self.n, True)
        return SuiteData(
            train=self._split(rng, self.n, False),
            val=held["val"],
            val_groups=held["val_groups"],
            decorrelated=decorrelated,
            test={"aligned": held["aligned"], "conflicting": held["conflicting"]},
            roles=Roles("conflicting", "aligned", ("aligned", "conflicting"), masked="conflicting"),
            class_names=("class 0", "class 1"),
            group_names=("class 0/dark", "class 0/white", "class 1/dark", "class 1/white"),
        )

    def _split(self, rng: np.random.Generator, n: int, balanced: bool) -> Split:
        images = rng.integers(0, 256, (n, self.channels, self.size, self.size), dtype=np.uint8)
        y: Int64 = np.arange(n, dtype=np.int64) % 2
        a = np.where(np.arange(n) // 2 % (2 if balanced else 10) == 0, 1 - y, y)
        masks = np.zeros((n, self.size, self.size), dtype=np.bool_)
        edge = self.size // 8
        masks[:, :edge, :edge] = True
        images[:, :, :edge, :edge] = np.where(a == 1, 255, 0)[:, None, None, None]
        return Split(images, y, a, 2 * y + a, np.arange(n, dtype=np.int64), masks)
