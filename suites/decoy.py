"""Digits with a decoy: a grey square in one corner whose brightness tells the class in training (Ross et al. 2017).

Groups are class x {aligned, conflicting}, g = 2*y + conflicting. Test renderings, each of the same images with the
square in the same corner: `aligned` (own class's grey), `conflicting` (another class's, uniform over the nine),
`random` (uniform over the ten: Ross' own test set), `clean` (no square), `placebo` (aligned, plus a second square of
equal area and a random one of the ten greys on the border between the corners, off the digit), and for the variant
cdep `inverted` (its published test set).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.context import derive_seed
from harness.descriptions import Descriptions, read_descriptions
from harness.errors import ConfigError
from harness.suite import Bool, Int64, Roles, Split, Suite, SuiteData, UInt8
from suites import DECOY_DIGITS, DECOY_FASHION, DECOY_MNIST, idx
from suites.digits import scanned_digits
from suites.enlarge import enlarged

CLASSES, SIDE = 10, 28
INK = 25  # a pixel brighter than this (of 255) belongs to the digit


def grey_of(a: Int64) -> UInt8:
    """Grey of the square of class `a`: 255 - 25 a (Ross et al. 2017)."""
    return (255 - 25 * a).astype(np.uint8)


def stamp(shape: str, size: int) -> Bool:
    """The decoy's pixels in its box: a square of side `size`, or a disc or cross of 1.25 to 1.35 times that area."""
    side = {"square": size, "disc": size + 1, "cross": size + 2}[shape]
    ends = np.isin(np.arange(side), (0, 1, side - 2, side - 1) if shape == "cross" else (0, side - 1))
    return np.ones((side, side), dtype=np.bool_) if shape == "square" else ~(ends[:, None] & ends)


@dataclass(frozen=True)
class Scene:
    """Images without decoy and a corner for each, ready to be rendered.

    base: uint8 [N, 28, 28]; y, ids: int64 [N]; corner: int64 [N], 0..3 row by row; size, shape: of `stamp`.
    """

    base: UInt8
    y: Int64
    ids: Int64
    corner: Int64
    size: int
    shape: str = "square"

    @cached_property
    def mask(self) -> Bool:
        """The square's pixels, bool [N, 28, 28]."""
        corners = np.zeros((4, SIDE, SIDE), dtype=np.bool_)
        pattern = stamp(self.shape, self.size)
        near, far = slice(0, len(pattern)), slice(SIDE - len(pattern), SIDE)
        for k, (rows, columns) in enumerate(((near, near), (near, far), (far, near), (far, far))):
            corners[k, rows, columns] = pattern
        return corners[self.corner]

    @cached_property
    def core(self) -> Bool:
        """The digit's pixels outside the square, bool [N, 28, 28]."""
        return (self.base > INK) & ~self.mask

    def insert(self, a: Int64) -> Split:
        """The square of attribute `a` (int64 [N], 0..9) in every image."""
        return self.paint(grey_of(a), a)

    def remove(self) -> Split:
        """No square: what the image itself shows there (black, unless the object reaches into the corner)."""
        none = np.full(len(self.y), -1, dtype=np.int64)
        return self._split(self.base.copy(), none, np.zeros_like(self.mask), self.base > INK)

    def placebo(self, rng: np.random.Generator) -> Split:
        """The aligned square and a second one whose place and grey say nothing about the class.

        It lies on the border between two corners, where no square ever lies, at a random one of the places that miss
        the object (of those that cover least of it, where it fills the border, as some clothes do).
        """
        aligned = self.insert(self.y)
        places = self._border()
        total = np.pad((self.base > INK).cumsum(1, dtype=np.int16).cumsum(2, dtype=np.int16), ((0, 0), (1, 0), (1, 0)))
        (top, left), s = places.T, len(pattern := stamp(self.shape, self.size))
        covered = total[:, top + s, left + s] - total[:, top, left + s] - total[:, top + s, left] + total[:, top, left]
        best = covered == covered.min(1, keepdims=True)
        chosen = places[np.where(best, rng.random(best.shape), -1.0).argmax(1)]
        grey = grey_of(rng.integers(0, CLASSES, len(self.y)))
        rows, columns = (chosen[:, k, None] + offset for k, offset in enumerate(np.nonzero(pattern)))
        aligned.images[np.arange(len(self.y))[:, None], 0, rows, columns] = grey[:, None]
        return aligned

    def paint(self, grey: UInt8, a: Int64) -> Split:
        """The square in any grey (uint8 [N]), recorded as attribute `a`."""
        images = self.base.copy()
        images[self.mask] = np.repeat(grey, stamp(self.shape, self.size).sum())
        return self._split(images, a, self.mask, self.core)

    def _split(self, images: UInt8, a: Int64, masks: Bool, core: Bool) -> Split:
        group = 2 * self.y + (a != self.y)  # without a square no shortcut holds: counted as conflicting
        return Split(images[:, None], self.y, a, group, self.ids, masks, core)

    def _border(self) -> Int64:
        """(top, left) of every place on the border that touches no corner square, int64 [P, 2]."""
        side = len(stamp(self.shape, self.size))
        far, along = SIDE - side, range(side, SIDE - 2 * side + 1)
        return np.array([place for k in along for place in ((0, k), (far, k), (k, 0), (k, far))], dtype=np.int64)


class CriticPool(NamedTuple):
    """Images that no split ever holds, without decoys: uint8 [N, 1, 28, 28], labels and base ids int64 [N]."""

    images: UInt8
    y: Int64
    ids: Int64


class Source(NamedTuple):
    """Base images [M, 28, 28] and labels [M] of a data set, and which indices (= ids) the splits may use.

    test: the official test images, or None where test is drawn from the pool.
    """

    images: UInt8
    labels: Int64
    pool: Int64
    test: Int64 | None
    critic: Int64


def spread(labels: Int64, count: int, rng: np.random.Generator) -> Int64:
    """`count` random positions of `labels` in which every class has its share, to within one image (count <= N)."""
    order = np.lexsort((rng.random(len(labels)), labels))
    steps = (np.arange(count) + rng.random()) * (len(labels) / max(count, 1))
    return order[steps.astype(np.int64)]


def other_class(y: Int64, rng: np.random.Generator) -> Int64:
    """For every image one of the nine other classes, uniformly."""
    return (y + rng.integers(1, CLASSES, len(y))) % CLASSES


def correlated(y: Int64, rho: float, rng: np.random.Generator) -> Int64:
    """Attributes of which exactly round(rho N) are the image's own class, the others spread evenly over the classes."""
    a, flipped = y.copy(), spread(y, len(y) - round(rho * len(y)), rng)
    a[flipped] = other_class(y[flipped], rng)
    return a


class DecoySuite(Suite):
    """What the decoy suites share; a subclass says where the images come from."""

    patch: int = 4  # side of the square in pixels
    shape: str = "square"
    scale: int = 1
    class_names: ClassVar[tuple[str, ...]] = tuple(str(k) for k in range(CLASSES))
    sentences: ClassVar[str]  # file of class descriptions

    def _set_sizes(self, rho: Any, pool: int, sizes: dict[str, Any], defaults: dict[str, int]) -> None:
        """Check and keep `rho` and the sizes; `pool` images are there for all that `sizes` draws from it."""
        what = f"suite '{self.info.name}'"
        if isinstance(rho, bool) or not isinstance(rho, (int, float)) or not 0 <= rho <= 1:
            raise ConfigError(f"{what}: rho is the fraction of aligned training images, 0 to 1, not {rho!r}")
        for key, value in sizes.items():
            least = 0 if key == "n_val_groups" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{what}: {key} must be a whole number of at least {least}, not {value!r}")
        if sizes["n_val_groups"] % (2 * CLASSES):
            raise ConfigError(
                f"{what}: n_val_groups fills {2 * CLASSES} groups equally, so it must be a multiple of {2 * CLASSES}, "
                f"not {sizes['n_val_groups']}"
            )
        drawn = {key: value for key, value in sizes.items() if key != "n_test" or self._test_from_pool}
        if sum(drawn.values()) > pool:
            parts = " + ".join(f"{key} {value}" for key, value in drawn.items())
            raise ConfigError(f"{what}: {parts} = {sum(drawn.values())} images, but only {pool} can be drawn")
        self.rho, self.sizes, self._defaults = float(rho), sizes, defaults

    _test_from_pool: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """E.g. `decoy_mnist-ross-rho0.97`, with the sizes that are not the default ones."""
        labels = {"n_train": "n", "n_val": "val", "n_val_groups": "valgroups", "n_test": "test"}
        changed = [f"{labels[key]}{value}" for key, value in self.sizes.items() if value != self._defaults[key]]
        return "-".join([self.info.name, *self._name_parts(), f"rho{self.rho}", *changed])

    def _name_parts(self) -> list[str]:
        return []

    @property
    def params(self) -> dict[str, Any]:
        """rho and the sizes."""
        return {"rho": self.rho, **self.sizes}

    @abstractmethod
    def _source(self) -> Source: ...

    def critic_pool(self) -> CriticPool:
        """Images to build or train a critic on. They are in no split, whatever the seed."""
        source = self._source()
        ids = source.critic
        return CriticPool(source.images[ids][:, None], source.labels[ids], ids)

    def load(self, seed: int) -> SuiteData:
        """Draw the splits. Which images are drawn does not depend on rho, so suites at two rhos are paired."""
        source = self._source()
        ids = self._partition(source, _rng(seed, "split"))
        scenes = {key: self._scene(source, value, _rng(seed, f"{key}/corner")) for key, value in ids.items()}
        train, groups = scenes["train"], scenes["val_groups"]
        anywhere = _rng(seed, "decorrelated").integers(0, CLASSES, len(train.y))
        # half of every class aligned, half conflicting: 20 equal groups, though the grey is right in every second image
        halves = correlated(groups.y, 0.5, _rng(seed, "val_groups/attribute"))
        data = SuiteData(
            train=train.insert(correlated(train.y, self.rho, _rng(seed, "train/attribute"))),
            val=scenes["val"].insert(correlated(scenes["val"].y, self.rho, _rng(seed, "val/attribute"))),
            val_groups=groups.insert(halves) if len(halves) else None,
            decorrelated=train.insert(anywhere),
            test=self._renderings(scenes["test"], seed),
            roles=self._roles(),
            class_names=self.class_names,
            group_names=tuple(f"{c}/{kind}" for c in self.class_names for kind in ("aligned", "conflicting")),
            descriptions=self._descriptions(),
        )
        return data if self.scale == 1 else enlarged(data, self.scale)

    def _partition(self, source: Source, rng: np.random.Generator) -> dict[str, Int64]:
        """Ids of every split. Train is drawn last, so a smaller n_train takes a part of a larger one's images."""
        pool, per_class = rng.permutation(source.pool), self.sizes["n_val_groups"] // CLASSES
        parts = [np.flatnonzero(source.labels[pool] == c)[:per_class] for c in range(CLASSES)]
        if min(map(len, parts)) < per_class:
            raise ConfigError(f"suite '{self.info.name}': n_val_groups needs {per_class} images of every class")
        ids = {"val_groups": pool[np.concatenate(parts)]}
        pool = np.delete(pool, np.concatenate(parts))
        n_val, n_train, n_test = (self.sizes[key] for key in ("n_val", "n_train", "n_test"))
        if source.test is None:  # every class its share, for groups large enough to rank
            chosen = spread(source.labels[pool], n_test, rng)
            ids["test"], pool = pool[chosen], np.delete(pool, chosen)
        elif n_test < len(source.test):
            ids["test"] = source.test[np.sort(spread(source.labels[source.test], n_test, rng))]
        else:
            ids["test"] = source.test
        return {**ids, "val": pool[:n_val], "train": pool[n_val : n_val + n_train]}

    def _scene(self, source: Source, ids: Int64, rng: np.random.Generator) -> Scene:
        corner = rng.integers(0, 4, len(ids))
        return Scene(source.images[ids], source.labels[ids], ids, corner, self.patch, self.shape)

    def _renderings(self, scene: Scene, seed: int) -> dict[str, Split]:
        return {
            "random": scene.insert(_rng(seed, "test/random").integers(0, CLASSES, len(scene.y))),
            "conflicting": scene.insert(other_class(scene.y, _rng(seed, "test/conflicting"))),
            "aligned": scene.insert(scene.y),
            "clean": scene.remove(),
            "placebo": scene.placebo(_rng(seed, "test/placebo")),
        }

    def _roles(self) -> Roles:
        return Roles(
            headline="conflicting",
            average="random",
            grouped=("aligned", "conflicting"),
            aligned="aligned",
            insert="conflicting",
            remove="clean",
            placebo="placebo",
            masked="conflicting",
        )

    def _descriptions(self) -> Descriptions:
        path = Path(str(files("suites") / "descriptions" / self.sentences))
        found = read_descriptions(path, self.class_names)
        for kind in ("spurious", "both"):
            found[kind] = {c: text.replace("small square", f"small {self.shape}") for c, text in found[kind].items()}
        return found


class DecoyDigits(DecoySuite):
    """`digits-hard`: scikit-learn's 1,797 8x8 digits, enlarged to 20x20, shifted by up to a pixel, at half contrast.

    A fixed 300 of them are the critic pool. Of the other 1,497 the data seed draws val_groups (every class equally),
    test (every class its share: 30 images or more at the default sizes, each rendered aligned and conflicting), val
    and train.
    """

    info = DECOY_DIGITS
    sentences = "digits.yaml"
    _test_from_pool = True
    pool_size: ClassVar[int] = 1497

    def __init__(
        self,
        rho: float = 1.0,
        n_train: int = 950,
        n_val: int = 100,
        n_val_groups: int = 100,
        n_test: int | None = None,
    ):
        sizes = {"n_train": n_train, "n_val": n_val, "n_val_groups": n_val_groups}
        whole = all(isinstance(value, int) for value in sizes.values())
        rest = max(1, self.pool_size - sum(sizes.values())) if whole else 1
        defaults = {"n_train": 950, "n_val": 100, "n_val_groups": 100, "n_test": rest}
        self._set_sizes(rho, self.pool_size, {**sizes, "n_test": rest if n_test is None else n_test}, defaults)

    def data_hash(self) -> str:
        """sha256 of the 8x8 images and labels."""
        images, labels = scanned_digits()
        return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()

    def _source(self) -> Source:
        images, labels = _hard_digits()
        # ordered by a hash, not by a generator: a critic trained on these must outlive numpy's streams
        order = sorted(range(len(labels)), key=lambda k: hashlib.sha256(f"critic pool {k}".encode()).digest())
        critic, pool = np.array(order[:300], dtype=np.int64), np.array(order[300:], dtype=np.int64)
        return Source(images, labels, pool, None, critic)


class DecoyMNIST(DecoySuite):
    """DecoyMNIST in the two forms that share the name. Training greys are 255 - 25 y in both.

    variant "ross" (Ross et al. 2017): 4x4 square; the published test set is the rendering `random`.
    variant "cdep" (Rieger et al. 2020): 5x5 square; the published test set is the rendering `inverted`, grey 25 y.
    No training grey is met exactly there; its attribute is the class whose grey is nearest (10 - y; 9 for a zero),
    which for a five is the five itself (grey 125 instead of 130).

    The data seed draws train, val and val_groups from training images 0 to 49,999; 50,000 to 59,999 are the critic
    pool. `full_train` draws from all 60,000 (for Ross' published curve; there is no critic pool then) and trains on all
    that val and val_groups leave. ids: index into the training images followed by the test images. `shape` "disc" or
    "cross" replaces the square, in the same corners. `scale` enlarges all images by that factor (56, 84 ... pixels).
    """

    info = DECOY_MNIST
    sentences = "digits.yaml"
    files: ClassVar[str] = "MNIST"

    def __init__(
        self,
        variant: str = "ross",
        rho: float = 1.0,
        n_train: int | None = None,
        n_val: int = 500,
        n_val_groups: int = 500,
        n_test: int | None = None,
        full_train: bool = False,
        shape: str = "square",
        scale: int = 1,
    ):
        if isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= 16:
            raise ConfigError(f"suite '{self.info.name}': scale is a whole number from 1 to 16, not {scale!r}")
        self.scale = scale
        if shape not in ("square", "disc", "cross"):
            raise ConfigError(f"suite '{self.info.name}': shape is 'square', 'disc' or 'cross', not {shape!r}")
        self.shape = shape
        if variant not in ("ross", "cdep"):
            raise ConfigError(f"suite '{self.info.name}': variant is 'ross' or 'cdep', not {variant!r}")
        self._set_up(variant, rho, n_train, n_val, n_val_groups, n_test, full_train)

    def _set_up(
        self, variant: str, rho: Any, n_train: Any, n_val: Any, n_val_groups: Any, n_test: Any, full_train: Any
    ) -> None:
        what = f"suite '{self.info.name}'"
        if not isinstance(full_train, bool):
            raise ConfigError(f"{what}: full_train is true or false, not {full_train!r}")
        if full_train and n_train is not None:
            raise ConfigError(f"{what}: full_train trains on all that val and val_groups leave; drop n_train")
        self.variant, self.full_train, self.patch = variant, full_train, 5 if variant == "cdep" else 4
        self._pool = idx.N_TRAIN if full_train else 50_000
        fits = isinstance(n_val, int) and isinstance(n_val_groups, int)
        usual = max(1, self._pool - n_val - n_val_groups) if full_train and fits else 4000
        defaults = {"n_train": usual, "n_val": 500, "n_val_groups": 500, "n_test": idx.N_TEST}
        sizes = {
            "n_train": usual if n_train is None else n_train,
            "n_val": n_val,
            "n_val_groups": n_val_groups,
            "n_test": idx.N_TEST if n_test is None else n_test,
        }
        self._set_sizes(rho, self._pool, sizes, defaults)
        if self.sizes["n_test"] > idx.N_TEST:
            raise ConfigError(f"{what}: n_test is at most {idx.N_TEST}, the official test images, not {n_test}")

    def _name_parts(self) -> list[str]:
        return (
            [self.variant]
            + ["full"] * self.full_train
            + [self.shape] * (self.shape != "square")
            + [f"x{self.scale}"] * (self.scale > 1)
        )

    @property
    def params(self) -> dict[str, Any]:
        """variant, rho, sizes and full_train, and the shape and scale where they are not the usual ones."""
        shape: dict[str, Any] = {} if self.shape == "square" else {"shape": self.shape}
        shape |= {"scale": self.scale} if self.scale > 1 else {}
        return {"variant": self.variant, **super().params, "full_train": self.full_train, **shape}

    def data_hash(self) -> str:
        """sha256 of all images and labels, the same for packed and plain files."""
        return idx.content_hash(self.files)

    def critic_pool(self) -> CriticPool:
        """Training images 50,000 to 59,999. Raises ConfigError with `full_train`, which trains on them."""
        if self.full_train:
            raise ConfigError(f"suite '{self.info.name}' with full_train trains on the critic pool; drop full_train")
        return super().critic_pool()

    def _source(self) -> Source:
        data = idx.load(self.files)
        numbers = np.arange(len(data.labels), dtype=np.int64)
        pool, critic = numbers[: self._pool], numbers[self._pool : idx.N_TRAIN]
        return Source(data.images, data.labels, pool, numbers[idx.N_TRAIN :], critic)

    def _renderings(self, scene: Scene, seed: int) -> dict[str, Split]:
        renderings = super()._renderings(scene, seed)
        if self.variant == "cdep":
            nearest = np.minimum(10 - scene.y, 9)
            renderings["inverted"] = scene.paint((25 * scene.y).astype(np.uint8), nearest)
        return renderings

    def _roles(self) -> Roles:
        roles = super()._roles()
        return Roles(**{**vars(roles), "average": "inverted"}) if self.variant == "cdep" else roles


class DecoyFashion(DecoyMNIST):
    """Decoy Fashion-MNIST: DecoyMNIST's variant ross on the Fashion-MNIST files."""

    info = DECOY_FASHION
    sentences = "clothes.yaml"
    files = "FashionMNIST"
    class_names = (
        "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    def __init__(
        self,
        rho: float = 1.0,
        n_train: int | None = None,
        n_val: int = 500,
        n_val_groups: int = 500,
        n_test: int | None = None,
        full_train: bool = False,
    ):
        self._set_up("ross", rho, n_train, n_val, n_val_groups, n_test, full_train)

    def _name_parts(self) -> list[str]:
        return ["full"] * self.full_train

    @property
    def params(self) -> dict[str, Any]:
        """rho, sizes and full_train."""
        return {key: value for key, value in super().params.items() if key != "variant"}


def _rng(seed: int, name: str) -> np.random.Generator:
    """One stream per purpose: changing rho or a size leaves the other draws as they were."""
    return np.random.default_rng(derive_seed(seed, "data", name))


@lru_cache(maxsize=1)
def _hard_digits() -> tuple[UInt8, Int64]:
    """The digits at 28x28: uint8 [1797, 28, 28], labels int64 [1797]; read-only and the same for every seed."""
    small, labels = scanned_digits()
    weights = _bilinear(8, 20)
    large = weights @ (small.astype(np.float64) * (0.5 * 255 / 16)) @ weights.T
    shift = np.random.default_rng(0).integers(-1, 2, (len(labels), 2))
    images = np.zeros((len(labels), SIDE, SIDE), dtype=np.uint8)
    for image, digit, (down, right) in zip(images, np.rint(large).astype(np.uint8), shift, strict=True):
        image[4 + down : 24 + down, 4 + right : 24 + right] = digit
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def _bilinear(n: int, m: int) -> npt.NDArray[np.float64]:
    """Matrix [m, n] that resamples n pixels to m, pixel centres aligned and edges repeated."""
    centre = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    weights: npt.NDArray[np.float64] = np.maximum(0.0, 1 - np.abs(centre[:, None] - np.arange(n)))
    return weights
