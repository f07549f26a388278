"""What the suites of radiographs share: one film, its markers and boxes, access to pixels, and who goes to which split.

Films are grey and squashed onto a square: with their aspect kept, the black rim beside a film would tell the class
(healthy children's films are nearer to a square than those with pneumonia).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from harness.context import derive_seed
from harness.descriptions import Descriptions, read_descriptions
from harness.errors import ConfigError, DataError
from harness.suite import Bool, Int64, UInt8
from suites import decode
from suites.draws import check_side, drawn_splits
from suites.idx import data_root
from suites.image_cache import CacheItem, CacheRequest, Geometry
from suites.image_suite import ImageSuite, Manifest, check_contents, read_manifest
from suites.markers import MARGIN, Box, box_mask, erase
from suites.tables import Faults, check_disjoint, check_groups
from suites.transplant import canvas_side, shrink

SPLITS = ("train", "val", "test")
SAME_ASPECT = 0.01  # boxes may refer to the same film in another size: the frame's aspect must agree to this
ENOUGH = 25  # test films with a box of the finding from which on the box says where the finding is (docs/protocol.md)
SplitRule = Literal["drawn", "given"]


@dataclass(frozen=True)
class Radiograph:
    """One film.

    label: word of the layout's reader for its class; where: table and line, or file; patient: who must stay in one
    split; kind: what drawn splits keep equally frequent, besides the class; frame: width and height in pixels that the
    boxes refer to (None: boxes are absent); marker: the burned-in side marker; findings: boxes of the finding that
    defines the class; metadata: further columns by name (KL grade, marker style, view, ...).
    """

    id: str
    image: Path
    label: str
    where: str
    split: str
    patient: str
    kind: Hashable = ""
    frame: tuple[int, int] | None = None
    marker: Box | None = None
    findings: tuple[Box, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def rng_of(seed: int, *names: str) -> np.random.Generator:
    """The random stream of one purpose at a data seed."""
    return np.random.default_rng(derive_seed(seed, "data", "radiographs", "/".join(names)))


class RadiographSuite(ImageSuite):
    """Reads one layout, decodes its films once, and shares patients out to splits.

    A subclass sets `folder` (below the data root), `layouts`, `labels` (word of the reader -> class) and `read`.
    """

    folder: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]]
    labels: Mapping[str, int]

    def __init__(self, size: int, layout: str, root: str | Path | None, split: str):
        what = f"suite '{self.info.name}'"
        if layout not in self.layouts:
            raise ConfigError(f"{what}: layout is one of {', '.join(self.layouts)}, not {layout!r}")
        if split not in ("drawn", "given"):
            raise ConfigError(f"{what}: split is drawn (by the data seed) or given (by the data set), not {split!r}")
        self.size, self.layout, self.split = check_side(what, size), layout, split
        self._root = Path(root).expanduser() if root is not None else None
        self.canvas = canvas_side(size)

    @abstractmethod
    def read(self, faults: Faults) -> list[Radiograph]:
        """All films of the layout that can be used. Raises DataError where a table cannot be read."""

    @property
    def root(self) -> Path:
        """`root=`, or the suite's folder in the data root."""
        return self._root if self._root is not None else data_root() / self.folder

    @property
    def params(self) -> dict[str, Any]:
        """Size, layout and split rule. Paths are left out: `data_hash` covers what lies behind them."""
        return {"size": self.size, "layout": self.layout, "split": self.split}

    def manifest(self) -> Manifest:
        """Of the layout in use."""
        return read_manifest(Path(str(files("suites") / "manifests" / "radiographs.yaml")), self.manifest_entry)

    @property
    def manifest_entry(self) -> str:
        """Name of the layout in the manifest file."""
        return self.layout

    def inspect(self, faults: Faults) -> None:
        """Tables, files, frames, films that lie twice in the set, patients in two splits, empty classes."""
        self.require_root()
        films = self.read(faults)
        drawn = self.split == "drawn"  # then patients are what splits are made of
        check_contents([(f.where, f.image, f"patient {f.patient}" if drawn else f.split) for f in films], faults)
        for film in films:
            if film.frame is not None and film.image.is_file():
                try:
                    size = decode.image_size(film.image)
                except DataError:  # the survey tells it
                    continue
                if abs(size[0] * film.frame[1] / (size[1] * film.frame[0]) - 1) > SAME_ASPECT:
                    told, real = (f"{w} x {h}" for w, h in (film.frame, size))
                    faults.add(
                        f"{film.where}: the boxes are for {told} pixels, but {film.image} has {real}; correct the table"
                    )
        self._check(films, faults)

    def _check(self, films: Sequence[Radiograph], faults: Faults) -> None:
        check_disjoint([(f.where, f.patient, f.split) for f in films], "patient", faults)
        if films or not faults.found:  # no row could be read: what is wrong has been said, no group is to blame
            names = self.class_names
            counts = {split: dict.fromkeys(names, 0) for split in SPLITS}
            for film in films:
                counts[film.split][names[self.labels[film.label]]] += 1
            check_groups(counts, f"{self.info.name} at {self.root}", faults)

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Class 0 and class 1."""

    @cached_property
    def films(self) -> list[Radiograph]:
        """All films; a split's `ids` are positions in this list, which leads to their metadata.

        Raises:
            DataError: the data set is missing, or the first faults of its tables.
        """
        self.require_root()
        faults = Faults()
        films = self.read(faults)
        self._check(films, faults)
        faults.raise_any(f"vabench data check {self.info.name}")
        return films

    def requests(self) -> Mapping[str, CacheRequest]:
        """The films on the canvas, grey."""
        return self._of(self.films)

    def survey_requests(self, faults: Faults) -> Mapping[str, CacheRequest]:
        """As `requests`, of the films whose rows can be read."""
        return self._of(self.read(faults))

    def _of(self, films: Sequence[Radiograph]) -> dict[str, CacheRequest]:
        geometry = Geometry(self.canvas, self.canvas, mode="L")
        items = tuple(CacheItem(film.image) for film in films)
        return {"films": CacheRequest(f"{self.info.name} films", items, geometry)} if items else {}

    # -- splits ---------------------------------------------------------------------------------------------------

    @cached_property
    def y(self) -> Int64:
        """Class of every film, int64 [N]."""
        return np.array([self.labels[film.label] for film in self.films], dtype=np.int64)

    def units(self) -> dict[int, str]:
        """Film -> patient."""
        return {k: film.patient for k, film in enumerate(self.films)}

    def assigned(self, seed: int) -> dict[str, Int64]:
        """Films of train, val and test at a data seed, each in random order.

        `given`: the data set's own splits. `drawn`: patients are shared out anew, in the numbers of the given splits,
        classes and kinds equally frequent in all of them.
        """
        films = self.films
        names = [film.split for film in films]
        if self.split == "drawn":
            shares = {split: names.count(split) / len(names) for split in SPLITS}
            kinds = [(film.label, film.kind) for film in films]
            names = drawn_splits([f.patient for f in films], kinds, shares, rng_of(seed, "split"))
        rng = rng_of(seed, "order")  # any first part of a split is representative
        held = {split: np.array([k for k, n in enumerate(names) if n == split], dtype=np.int64) for split in SPLITS}
        return {split: rng.permutation(index) for split, index in held.items()}

    # -- pixels ---------------------------------------------------------------------------------------------------

    @cached_property
    def _pixels(self) -> npt.NDArray[np.uint8]:
        """Films on the canvas, uint8 [N, S, S], memory-mapped."""
        return self.prepared("films").pixels[..., 0]

    @property
    def factor(self) -> int:
        """Canvas pixels per pixel of the final image."""
        return self.canvas // self.size

    def on_canvas(self, k: int, box: Box) -> Box:
        """A box of film k, given in the film's own pixels, on the canvas."""
        width, height = self.films[k].frame or (self.canvas, self.canvas)
        return box.scaled(self.canvas / width, self.canvas / height)

    def film(self, k: int) -> UInt8:
        """Film k as it is, on the canvas: uint8 [S, S], a copy."""
        return np.array(self._pixels[k])

    def erased(self, k: int) -> UInt8:
        """Film k on the canvas without its burned-in marker; what fills the place is the same for every seed."""
        canvas, marker = self.film(k), self.films[k].marker
        if marker is not None:
            erase(canvas, self.on_canvas(k, marker), rng_of(0, "erase", self.films[k].id))
        return canvas

    def small(self, canvas: UInt8) -> UInt8:
        """A canvas averaged down to uint8 [size, size]."""
        from PIL import Image

        return np.array(shrink(Image.fromarray(canvas), self.size))

    def marker_mask(self, k: int, margin: float = 0.0) -> Bool:
        """bool [size, size]: the box of film k's burned-in marker, grown by `margin` (pixels at 256); often empty."""
        marker, grow = self.films[k].marker, margin * self.canvas / 256
        if marker is None:
            return np.zeros((self.size, self.size), dtype=np.bool_)
        return box_mask(self.on_canvas(k, marker).grown(grow, grow).whole(self.canvas), self.factor, self.size)

    def cores(self, index: Int64, decisive: Int64) -> Bool | None:
        """Boxes of the finding, bool [N, size, size]; None where fewer than ENOUGH of the films `decisive` have one."""
        if sum(bool(self.films[k].findings) for k in decisive) < ENOUGH:
            return None
        found = np.zeros((len(index), self.size, self.size), dtype=np.bool_)
        for row, k in enumerate(index):
            for box in self.films[k].findings:
                found[row] |= box_mask(self.on_canvas(int(k), box).whole(self.canvas), self.factor, self.size)
        return found

    # -- words ----------------------------------------------------------------------------------------------------

    def changed(self, size: int, layout: str, split: str) -> list[str]:
        """Parts of a name for what is not the default given here."""
        parts = [(f"{self.size}px", self.size != size), (re.sub(r"\W", "", self.layout), self.layout != layout)]
        return [text for text, differs in [*parts, (self.split, self.split != split)] if differs]

    def described(self, name: str) -> Descriptions:
        """The class descriptions of that name; none where no file was written for it."""
        path = Path(str(files("suites") / "descriptions" / "radiographs" / f"{name}.yaml"))
        return read_descriptions(path, self.class_names) if path.is_file() else {}


__all__ = ["ENOUGH", "MARGIN", "SPLITS", "Radiograph", "RadiographSuite", "SplitRule", "rng_of"]
