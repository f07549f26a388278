"""A suite: stripes for decoys."""

import hashlib
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from harness.suite import Roles, Split, Suite, SuiteData
from stranger import STRIPED_DIGITS


class StripedDigits(Suite):
    """8 x 8 digits on 16 x 16, with a bright one-pixel column at x = label in a share rho of the training images."""

    info = STRIPED_DIGITS

    def __init__(self, rho: float = 0.9):
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must be in 0..1, got {rho}")
        self.rho = rho

    @property
    def name(self) -> str:
        """Name with its parameter."""
        return f"striped_digits-rho{self.rho:g}"

    @property
    def params(self) -> dict[str, Any]:
        """The one parameter."""
        return {"rho": self.rho}

    def data_hash(self) -> str:
        """Hash of scikit-learn's digits."""
        return hashlib.sha256(load_digits().data.tobytes()).hexdigest()

    def load(self, seed: int) -> SuiteData:
        """600 training, 200 validation, 200 decorrelated and 700 test images."""
        digits = load_digits()
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(digits.target))
        parts = dict(zip(("train", "val", "val_groups", "test"), np.split(order, [600, 800, 1000]), strict=True))

        def make(ids: Any, rho: float | None) -> Split:
            y = digits.target[ids].astype(np.int64)
            images = np.zeros((len(ids), 1, 16, 16), np.uint8)
            images[:, 0, 4:12, 4:12] = digits.images[ids] * 6
            other = (y + rng.integers(1, 10, len(y))) % 10
            a = np.full(len(y), -1) if rho is None else np.where(rng.random(len(y)) < rho, y, other)
            masks = np.zeros((len(ids), 16, 16), bool)
            striped = np.flatnonzero(a >= 0)
            masks[striped, :, a[striped]] = True
            images[masks[:, None]] = 255
            g = 2 * y + (a != y)
            core = (images[:, 0] > 20) & ~masks
            return Split(images, y, a.astype(np.int64), g.astype(np.int64), ids.astype(np.int64), masks, core)

        names = tuple(f"{k}/{kind}" for k in range(10) for kind in ("aligned", "conflicting"))
        test = {"aligned": make(parts["test"], 1.0), "conflicting": make(parts["test"], 0.0)}
        test["clean"] = make(parts["test"], None)
        return SuiteData(
            train=make(parts["train"], self.rho),
            val=make(parts["val"], self.rho),
            val_groups=make(parts["val_groups"], 0.5),
            decorrelated=make(parts["train"], 0.1),
            test=test,
            roles=Roles(
                "conflicting",
                "clean",
                ("aligned", "conflicting"),
                "aligned",
                "conflicting",
                "clean",
                None,
                "conflicting",
            ),
            class_names=tuple(map(str, range(10))),
            group_names=names,
        )
