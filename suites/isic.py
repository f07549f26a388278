"""Dermoscopy with coloured patches: transplanted at a set correlation (`isic_patches`), or as they occur.

Groups are g = 2 y + a with a = 1 where a patch is in the image. In nature no malignant image of the test set has a
patch, so a real split has no such group; `isic_patches` makes it by transplanting real patches with their masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.context import derive_seed
from harness.errors import ConfigError
from harness.suite import Bool, Int64, Roles, Split, SuiteData, UInt8
from suites import ISIC_NATURAL, ISIC_PATCHES
from suites.draws import check_fraction, check_whole, correlated, halves
from suites.isic_layouts import SPLITS, Photograph
from suites.isic_suite import IsicSuite, stacked
from suites.tables import Faults, check_groups
from suites.transplant import (
    Donors,
    Float,
    Placement,
    coarse,
    fill,
    free_place,
    mean_colour,
    normalised,
    place,
    shrink,
    transplant,
)

PATCH_SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}  # donors, and in isic_natural the patched images
EXTRA_VAL = (60, 200)  # melanomas and benign images that join the small official validation split of 2017


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "data", "isic", name))


class Drawn(NamedTuple):
    """The splits of one data seed: photographs (indices) of every split, and donors of every split."""

    index: dict[str, Int64]
    donors: dict[str, Int64]


class Scene(NamedTuple):
    """A split's photographs both ways. clean, patched: uint8 [N, size, size, 3]; mask, lesion: bool [N, size, size]."""

    clean: UInt8
    patched: UInt8
    mask: Bool
    lesion: Bool
    y: Int64
    ids: Int64

    def shown(self, a: Int64) -> Split:
        """Every photograph with (1) or without (0) its patch; a: int64 [N]."""
        on = (a == 1)[:, None, None]
        images = np.where(on[..., None], self.patched, self.clean)
        mask = self.mask & on
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return Split(images, self.y, a, 2 * self.y + a, self.ids, mask, self.lesion & ~mask)

    def twice(self) -> Split:
        """Every photograph without and with its patch, side by side under one id."""
        rows = np.repeat(np.arange(len(self.y)), 2)
        both = Scene(*(field[rows] for field in self))
        return both.shown(np.arange(len(rows)) % 2)


class IsicPatches(IsicSuite):
    """Photographs without natural patches; real patches are transplanted so that a share rho of train and val has one
    exactly if it is not of the target class.

    The official test split stays test. The data seed draws which other images join the official validation split,
    which donors serve which split, where a patch goes, and which training images carry one. The 2017 validation split
    is too small for groups: 60 melanomas and 200 benign images of train join it (as far as train has them); half of
    the result is `val`, half `val_groups`, whose images appear both ways.
    """

    info = ISIC_PATCHES

    def __init__(
        self,
        rho: float = 0.9,
        target: str = "seborrheic_keratosis",
        size: int = 64,
        n_train: int | None = None,
        layout: str = "curated",
        root: str | Path | None = None,
        patches: str | Path | None = None,
    ):
        super().__init__(target, size, layout, root, patches)
        what = f"suite '{self.info.name}'"
        self.rho = check_fraction(what, "rho", rho)
        self.n_train = check_whole(what, "n_train", n_train, 2) if n_train is not None else None

    @property
    def name(self) -> str:
        """E.g. `isic_patches-seborrheic_keratosis-rho0.9`, with what is not the default."""
        return "-".join([self.info.name, self.target, f"rho{self.rho}", *self.changed(), *self._size_part()])

    def _size_part(self) -> list[str]:
        return [f"n{self.n_train}"] if self.n_train is not None else []

    @property
    def params(self) -> dict[str, Any]:
        """As of the base class, with rho and n_train."""
        return {"rho": self.rho, "n_train": self.n_train, **super().params}

    def check_photographs(self, photos: Sequence[Photograph], faults: Faults) -> None:
        """Both classes in every split, and patch masks on benign photographs of at least eight patients or lesions."""
        counts = {split: dict.fromkeys(self.class_names, 0) for split in SPLITS}
        for p in photos:
            if not p.has_patch and self._usable(p):
                counts[p.split][self.class_names[self._is_target(p)]] += 1
        check_groups(counts, f"isic_patches(target={self.target}) at {self.root}", faults)
        donors = len({p.unit for p in photos if _is_donor(p)})
        if donors < 8:
            faults.add(
                f"{self.root} has benign photographs with a patch mask of {donors} patients or lesions, at least 8 are "
                f"needed; name a folder of patch masks with patches="
            )

    def _is_target(self, p: Photograph) -> bool:
        return bool(p.malignant) if self.target == "malignant" else p.diagnosis == self.target

    def _usable(self, p: Photograph) -> bool:
        return p.malignant is not None if self.target == "malignant" else p.diagnosis != "unknown"

    def draw(self, seed: int) -> Drawn:
        """Photographs and donors of every split at a data seed."""
        photos, y = self._photos, self._y
        units = {k: p.unit for k, p in enumerate(photos)}
        base = [k for k, p in enumerate(photos) if not p.has_patch and self._usable(p)]
        index = {split: np.array([k for k in base if photos[k].split == split], dtype=np.int64) for split in SPLITS}
        if self.layout in ("curated", "2017"):
            moved = self._moved(index["train"], _rng(seed, "val"))
            index["train"] = np.setdiff1d(index["train"], moved)
            index["val"] = np.concatenate([index["val"], moved])
        index["val"], index["val_groups"] = halves(index["val"], y, units, _rng(seed, "val_groups"))
        rng = _rng(seed, "order")
        index = {split: rng.permutation(held) for split, held in index.items()}  # any first part is representative
        if self.n_train is not None:
            if self.n_train > len(index["train"]):
                raise ConfigError(f"suite '{self.info.name}': n_train is at most {len(index['train'])} here")
            index["train"] = index["train"][: self.n_train]
        donors = np.array([k for k, p in enumerate(photos) if _is_donor(p)], dtype=np.int64)
        parts = _shared_out(donors, [units[k] for k in donors], _rng(seed, "donors"), least_val=2)
        held = list(dict.fromkeys(units[k] for k in parts["val"]))
        first = np.isin([units[k] for k in parts["val"]], held[: -(-len(held) // 2)])
        parts["val"], parts["val_groups"] = parts["val"][first], parts["val"][~first]
        return Drawn(index, parts)

    def _moved(self, train: Int64, rng: np.random.Generator) -> Int64:
        """Training photographs that join the validation split: EXTRA_VAL, but never more than a quarter of a kind."""
        photos, chosen = self._photos, []
        kinds = ([photos[k].diagnosis == "melanoma" for k in train], [not photos[k].malignant for k in train])
        for kind, number in zip(kinds, EXTRA_VAL, strict=True):
            held = train[np.array(kind, dtype=np.bool_)]
            chosen.append(rng.permutation(held)[: min(number, len(held) // 4)])
        units = {self._photos[k].unit for k in np.concatenate(chosen)}
        return np.array([k for k in train if self._photos[k].unit in units], dtype=np.int64)

    def load(self, seed: int) -> SuiteData:
        """Draw, transplant, and render test in all groups. Raises DataError naming file and line."""
        drawn = self.draw(seed)
        order = sorted(self._patch_rows)
        donors = Donors(self._pixels[order], np.stack([self._patch(k) for k in order]))
        shapes = donors.shapes()
        place_of = {k: row for row, k in enumerate(order)}
        scenes, placements = {}, {}
        for split, index in drawn.index.items():
            pool = np.array([place_of[k] for k in drawn.donors[split]], dtype=np.int64)
            scenes[split], placements[split] = self._scene(index, donors, shapes, pool, _rng(seed, f"{split}/patch"))
        train, val = scenes["train"], scenes["val"]
        usual = shapes.mean((0, 1))
        return SuiteData(
            train=train.shown(self._correlated(train.y, _rng(seed, "train/attribute"))),
            val=val.shown(self._correlated(val.y, _rng(seed, "val/attribute"))),
            val_groups=scenes["val_groups"].twice(),
            decorrelated=train.shown(_rng(seed, "decorrelated").integers(0, 2, len(train.y))),
            test=self._renderings(scenes["test"], drawn.index["test"], usual, seed),
            roles=Roles(
                headline="conflicting",
                average="random",
                grouped=("aligned", "conflicting"),
                aligned="aligned",
                insert="conflicting",
                remove="clean",
                placebo="placebo",
                masked="patched",
            ),
            class_names=self.class_names,
            group_names=self.group_names,
            descriptions=self._descriptions(),
        )

    def _correlated(self, y: Int64, rng: np.random.Generator) -> Int64:
        """A patch exactly where y is 0, in a share rho of either class."""
        return correlated(y, 1 - y, self.rho, rng)

    def _scene(
        self, index: Int64, donors: Donors, shapes: Float, pool: Int64, rng: np.random.Generator
    ) -> tuple[Scene, Placement]:
        lesions, known = self._lesions
        weights = normalised(coarse(lesions[index]), known[index])
        placement = place(weights, shapes, pool, rng)
        pairs = [
            transplant(self._pixels[k], donors, placement, row, self.size, self.blur) for row, k in enumerate(index)
        ]
        mask = np.stack([mask for _, mask in pairs]) if pairs else np.zeros((0, self.size, self.size), dtype=np.bool_)
        patched = stacked([image for image, _ in pairs], self.size)
        return Scene(self.plain(index), patched, mask, lesions[index], self._y[index], index), placement

    def _renderings(self, scene: Scene, index: Int64, usual: Float, seed: int) -> dict[str, Split]:
        y = scene.y
        aligned = scene.shown(1 - y)
        return {
            "conflicting": scene.shown(y.copy()),
            "aligned": aligned,
            "random": scene.shown(_rng(seed, "test/random").integers(0, 2, len(y))),
            "clean": scene.shown(np.zeros_like(y)),
            "patched": scene.shown(np.ones_like(y)),
            "placebo": self._placebo(scene, aligned, index, usual),
        }

    def _placebo(self, scene: Scene, aligned: Split, index: Int64, usual: Float) -> Split:
        """The aligned rendering and, in each image, an area of skin colour as large as its patch.

        It has the patch's own shape, turned and moved to where it meets least of the lesion and of the patch's place;
        its colour is the mean of the photograph outside lesion and patch.
        """
        lesions, known = self._lesions
        weights = normalised(coarse(lesions[index]), known[index])
        taken, images = coarse(scene.mask), aligned.images.copy()
        for row in np.flatnonzero(scene.mask.any((1, 2))):
            where = free_place(scene.mask[row], weights[row], taken[row], usual)
            where &= ~aligned.masks[row] if aligned.masks is not None else True  # the patch itself stays
            colour = mean_colour(scene.clean[row], ~(scene.mask[row] | scene.lesion[row]))
            images[row][:, where] = colour[:, None]
        return Split(images, aligned.y, aligned.a, aligned.g, aligned.ids, aligned.masks, aligned.core)


class IsicNatural(IsicSuite):
    """Patches as they occur: benign images alone have them. The target is malignant, or melanoma.

    The official 2017 test has no patch at all, so the patched benign images of train and val are shared out again by
    the data seed (60 / 15 / 25 %), but for those whose patient or lesion has other images: they stay with them. A
    patched malignant image stays in train, and is left out elsewhere: the group malignant/patch is empty in val and
    test, not applicable. Renderings: `natural`; `removed` (every patch filled with the photograph's mean
    colour outside patch and lesion); `filled` (the same fill in every image, where the image has no patch in the area
    of another image's, so that a fill does not tell the class).
    """

    info = ISIC_NATURAL
    targets = ("malignant", "melanoma")

    def __init__(
        self,
        target: str = "malignant",
        size: int = 64,
        layout: str = "curated",
        root: str | Path | None = None,
        patches: str | Path | None = None,
    ):
        super().__init__(target, size, layout, root, patches)

    @property
    def name(self) -> str:
        """E.g. `isic_natural-malignant`, with what is not the default."""
        return "-".join([self.info.name, self.target, *self.changed()])

    def check_photographs(self, photos: Sequence[Photograph], faults: Faults) -> None:
        """Both classes in every split, and patched images with masks. An empty malignant/patch group is nature's."""
        counts = {split: dict.fromkeys(self.class_names, 0) for split in SPLITS}
        for p in photos:
            hit = bool(p.malignant) if self.target == "malignant" else p.diagnosis == self.target
            counts[p.split][self.class_names[hit]] += 1
        check_groups(counts, f"isic_natural(target={self.target}) at {self.root}", faults)
        if not any(_is_donor(p) for p in photos):
            faults.add(f"{self.root} has no benign photograph with a patch mask; name a folder of them with patches=")

    def draw(self, seed: int) -> dict[str, Int64]:
        """Photographs of every split at a data seed."""
        photos = self._photos
        usable = [k for k, p in enumerate(photos) if p.malignant is not None]
        tied = {photos[k].unit for k in usable if not _is_donor(photos[k])}  # their other photographs cannot move
        donors = [k for k in usable if _is_donor(photos[k])]
        shared = np.array([k for k in donors if photos[k].unit not in tied], dtype=np.int64)
        parts = _shared_out(shared, [photos[k].unit for k in shared], _rng(seed, "natural"))
        index = {}
        for split in SPLITS:
            own = [k for k in usable if photos[k].split == split and not photos[k].has_patch]
            stray = [k for k in usable if photos[k].has_patch and not _is_donor(photos[k])]
            stray = [k for k in stray if photos[k].split == split == "train"]
            fixed = [k for k in donors if photos[k].split == split and photos[k].unit in tied]
            held = np.concatenate([own, stray, fixed, parts[split]]).astype(np.int64)
            index[split] = _rng(seed, f"natural/{split}").permutation(held)
        return index

    def load(self, seed: int) -> SuiteData:
        """The splits and the three renderings of test. Raises DataError naming file and line."""
        index = self.draw(seed)
        splits = {split: self._split(held, self.plain(held)) for split, held in index.items()}
        return SuiteData(
            train=splits["train"],
            val=splits["val"],
            test={
                "natural": splits["test"],
                "removed": self._filled(index["test"], splits["test"], None),
                "filled": self._filled(index["test"], splits["test"], _rng(seed, "natural/filled")),
            },
            roles=Roles(
                headline="removed",
                average="natural",
                grouped=("natural",),
                aligned="natural",
                remove="removed",
                placebo="filled",
                masked="natural",
            ),
            class_names=self.class_names,
            group_names=self.group_names,
            descriptions=self._descriptions(),
        )

    def _split(self, index: Int64, images: UInt8) -> Split:
        a = np.array([self._photos[k].has_patch for k in index], dtype=np.int64)
        masks = np.zeros((len(index), self.size, self.size), dtype=np.bool_)
        for row in np.flatnonzero(a):
            masks[row] = self._small_mask(int(index[row]))
        y, core = self._y[index], self._lesions[0][index] & ~masks
        return Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), y, a, 2 * y + a, index, masks, core)

    def _small_mask(self, k: int) -> Bool:
        from PIL import Image

        if k not in self._patch_rows:
            return np.zeros((self.size, self.size), dtype=np.bool_)
        return shrink(Image.fromarray(self._patch(k)), self.size) >= 128

    def _filled(self, index: Int64, natural: Split, rng: np.random.Generator | None) -> Split:
        """Patches filled; with `rng`, images without patch are filled too, in the area of a random patch."""
        images, donors = natural.images.copy(), [k for k in index if k in self._patch_rows]
        for row, k in enumerate(int(k) for k in index):
            own = k in self._patch_rows
            if not own and (rng is None or not donors):
                continue
            area = self._patch(k if own else int(donors[int(rng.integers(len(donors)))]))  # type: ignore[union-attr]
            lesion = np.kron(self._lesions[0][k], np.ones((self.canvas // self.size,) * 2, dtype=np.bool_))
            images[row] = fill(self._pixels[k], area, lesion, self.size, self.blur)[0].transpose(2, 0, 1)
        return Split(images, natural.y, natural.a, natural.g, natural.ids, natural.masks, natural.core)


def _is_donor(p: Photograph) -> bool:
    return p.has_patch and p.patch_mask is not None and p.malignant is False


def _shared_out(index: Int64, units: Sequence[str], rng: np.random.Generator, least_val: int = 0) -> dict[str, Int64]:
    """Train, val (of `least_val` units or more) and test parts in PATCH_SHARES; a unit's photographs stay together."""
    names = sorted(set(units))
    order = [names[k] for k in rng.permutation(len(names))]
    first, second = (round(sum(list(PATCH_SHARES.values())[:k]) * len(order)) for k in (1, 2))
    second = max(second, first + least_val)
    parts = {"train": set(order[:first]), "val": set(order[first:second]), "test": set(order[second:])}
    return {
        split: np.array([k for k, unit in zip(index, units, strict=True) if unit in held], dtype=np.int64)
        for split, held in parts.items()
    }
