"""Radiographs with an inserted letter: L or R in the upper left corner, which one tells the class in a share rho.

Groups are g = 2 y + a with a = 0 for L and 1 for R; aligned is R on class 1. Every image has a letter, and both letters
of an image lie in the same box, so a pair of renderings differs there alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.errors import ConfigError
from harness.suite import Bool, Int64, Roles, Split, SuiteData, UInt8
from suites.draws import check_fraction, check_whole, correlated, halves
from suites.markers import LETTERS, Letters, blank, box_mask, draw_letters, stamp
from suites.radiographs import RadiographSuite, rng_of


class Scene(NamedTuple):
    """A split's films both ways. clean: uint8 [N, size, size]; lettered: uint8 [2, N, size, size]; mask: bool [N, ...].

    letters: places on the canvas, by row; core: boxes of the finding, or None.
    """

    clean: UInt8
    lettered: UInt8
    mask: Bool
    core: Bool | None
    y: Int64
    ids: Int64
    letters: Letters

    def shown(self, a: Int64, rows: Int64 | None = None) -> Split:
        """Films `rows` (default: all) with L (0), R (1) or no letter (-1); a: int64 [len(rows)].

        A film without letter counts to the group that its class usually is in; no metric by group reads that.
        """
        rows = np.arange(len(self.y)) if rows is None else rows
        images = self.clean[rows].copy()
        on = a >= 0
        images[on] = self.lettered[a[on], rows[on]]
        y = self.y[rows]
        mask = self.mask[rows] & on[:, None, None]
        core = self.core[rows] & ~mask if self.core is not None else None
        return Split(images[:, None], y, a, 2 * y + np.where(on, a, y), self.ids[rows], mask, core)

    def twice(self) -> Split:
        """Every film with either letter, side by side under one id."""
        rows = np.repeat(np.arange(len(self.y)), 2)
        return self.shown(np.arange(len(rows)) % 2, rows)


class MarkerSuite(RadiographSuite):
    """Base of the suites with inserted letters. Natural markers whose box is known are erased first.

    Half of the validation patients are `val` (at rho), the other half `val_groups`, whose films appear with both
    letters. The data seed draws splits (see `RadiographSuite.assigned`), places of letters, and which film has which.
    """

    def __init__(
        self, rho: float, size: int, n_train: int | None, layout: str, root: str | Path | None, split: str
    ) -> None:
        super().__init__(size, layout, root, split)
        what = f"suite '{self.info.name}'"
        self.rho = check_fraction(what, "rho", rho)
        self.n_train = check_whole(what, "n_train", n_train, 2) if n_train is not None else None

    @property
    def params(self) -> dict[str, Any]:
        """As of the base class, with rho and n_train."""
        return {"rho": self.rho, "n_train": self.n_train, **super().params}

    def _rho_part(self) -> list[str]:
        return [f"rho{self.rho}", *([f"n{self.n_train}"] if self.n_train is not None else [])]

    @property
    def group_names(self) -> tuple[str, ...]:
        """class/letter in the order g = 2 y + a."""
        return tuple(f"{c}/{letter}" for c in self.class_names for letter in LETTERS)

    def draw(self, seed: int) -> dict[str, Int64]:
        """Films (positions in `films`) of train, val, val_groups and test at a data seed."""
        index = self.assigned(seed)
        index["val"], index["val_groups"] = halves(index["val"], self.y, self.units(), rng_of(seed, "val_groups"))
        if self.n_train is not None:
            if self.n_train > len(index["train"]):
                raise ConfigError(f"suite '{self.info.name}': n_train is at most {len(index['train'])} here")
            index["train"] = index["train"][: self.n_train]
        return index

    def load(self, seed: int) -> SuiteData:
        """Draw, erase, insert, and render test in all groups. Raises DataError naming file and line."""
        index = self.draw(seed)
        scenes = {
            split: self._scene(held, index["test"], rng_of(seed, split, "letters")) for split, held in index.items()
        }
        train, val = scenes["train"], scenes["val"]
        return SuiteData(
            train=train.shown(correlated(train.y, train.y, self.rho, rng_of(seed, "train", "attribute"))),
            val=val.shown(correlated(val.y, val.y, self.rho, rng_of(seed, "val", "attribute"))),
            val_groups=scenes["val_groups"].twice(),
            decorrelated=train.shown(rng_of(seed, "decorrelated").integers(0, 2, len(train.y))),
            test=self._renderings(scenes["test"], seed),
            roles=Roles(
                headline="conflicting",
                average="random",
                grouped=("aligned", "conflicting"),
                aligned="aligned",
                insert="conflicting",
                remove="clean",
                placebo="placebo",
                masked="conflicting",
            ),
            class_names=self.class_names,
            group_names=self.group_names,
            descriptions=self._descriptions(),
        )

    def _scene(self, index: Int64, test: Int64, rng: np.random.Generator) -> Scene:
        letters = draw_letters(len(index), self.canvas, rng)
        shape = (len(index), self.size, self.size)
        clean, mask = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.bool_)
        lettered = np.empty((len(LETTERS), *shape), dtype=np.uint8)
        for row, k in enumerate(index.tolist()):
            canvas = self.erased(k)
            clean[row] = self.small(canvas)
            mask[row] = box_mask(letters.box(row), self.factor, self.size)
            for a, letter in enumerate(LETTERS):
                lettered[a, row] = clean[row]
                stamp(lettered[a, row], canvas, letters, row, letter)
        return Scene(clean, lettered, mask, self.cores(index, test), self.y[index], index, letters)

    def _renderings(self, scene: Scene, seed: int) -> dict[str, Split]:
        y = scene.y
        aligned = scene.shown(y.copy())
        placebo = aligned.images.copy()
        for row in range(len(y)):  # letters never lie in the right corner
            blank(placebo[row, 0], scene.letters.box(row), self.factor)
        return {
            "conflicting": scene.shown(1 - y),
            "aligned": aligned,
            "random": scene.shown(rng_of(seed, "test", "random").integers(0, 2, len(y))),
            "clean": scene.shown(np.full_like(y, -1)),
            "placebo": Split(placebo, y, aligned.a, aligned.g, aligned.ids, aligned.masks, aligned.core),
        }

    def _descriptions(self) -> dict[str, dict[str, str]]:
        return self.described(self.info.name)
