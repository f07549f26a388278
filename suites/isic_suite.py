"""What the ISIC suites share: the layout on disk, the photographs, and the access to their pixels and masks."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.descriptions import Descriptions, read_descriptions
from harness.errors import ConfigError
from harness.suite import Bool, Int64, UInt8
from suites.draws import check_side
from suites.idx import data_root
from suites.image_cache import CacheItem, CacheRequest, Geometry
from suites.image_suite import ImageSuite, Manifest, check_contents, read_manifest
from suites.isic_layouts import READERS, TABLES, Photograph, read_layout, with_patches
from suites.tables import Faults
from suites.transplant import canvas_side, shrink

TARGETS = {
    "seborrheic_keratosis": ("other lesion", "seborrheic keratosis"),
    "melanoma": ("other lesion", "melanoma"),
    "malignant": ("benign", "malignant"),
}


class IsicSuite(ImageSuite):
    """What both suites share: the layout on disk, the requests, and the access to pixels and masks."""

    def __init__(self, target: str, size: int, layout: str, root: str | Path | None, patches: str | Path | None):
        what = f"suite '{self.info.name}'"
        if target not in self.targets:
            raise ConfigError(f"{what}: target is one of {', '.join(self.targets)}, not {target!r}")
        if layout not in READERS:
            raise ConfigError(f"{what}: layout is one of {', '.join(READERS)}, not {layout!r}")
        self.target, self.size, self.layout = target, check_side(what, size), layout
        self._root = Path(root).expanduser() if root is not None else None
        self.patches = Path(patches).expanduser() if patches is not None else None
        self.canvas = canvas_side(size)
        self.blur = self.canvas / 256  # real.md: one pixel at 256

    targets: ClassVar[tuple[str, ...]] = tuple(TARGETS)

    @property
    def root(self) -> Path:
        """`root=`, or `isic` in the data root."""
        return self._root if self._root is not None else data_root() / "isic"

    @property
    def params(self) -> dict[str, Any]:
        """Target, size and layout. Paths are left out: `data_hash` covers what lies behind them."""
        return {
            "target": self.target,
            "size": self.size,
            "layout": self.layout,
            "own_patches": self.patches is not None,
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class 0 and the target."""
        return TARGETS[self.target]

    @property
    def group_names(self) -> tuple[str, ...]:
        """class/patch in the order g = 2 y + a."""
        return tuple(f"{c}/{kind}" for c in self.class_names for kind in ("no patch", "patch"))

    def manifest(self) -> Manifest:
        """Of the layout in use."""
        return read_manifest(Path(str(files("suites") / "manifests" / "isic.yaml")), self.layout)

    def table_files(self) -> list[Path]:
        """The layout's tables that are there."""
        return sorted({path for pattern in TABLES[self.layout] for path in self.root.glob(pattern) if path.is_file()})

    def inspect(self, faults: Faults) -> None:
        """Tables, files, images that lie twice in the set, patients and lesions across splits, empty groups."""
        self.require_root()
        photos = self._read(faults)
        check_contents([(p.where, p.image, p.split) for p in photos], faults)
        if photos or not faults.found:  # no row could be read: what is wrong has been said, no group is to blame
            self.check_photographs(photos, faults)

    @abstractmethod
    def check_photographs(self, photos: Sequence[Photograph], faults: Faults) -> None:
        """Note what makes the photographs unfit for this suite."""

    def requests(self) -> Mapping[str, CacheRequest]:
        """Photographs on the canvas, lesion masks in the final size, patch masks on the canvas."""
        return self._requests

    def _read(self, faults: Faults) -> list[Photograph]:
        photos = read_layout(self.root, self.layout, faults)
        return with_patches(photos, self.patches, faults) if self.patches is not None else photos

    @cached_property
    def _photos(self) -> list[Photograph]:
        self.require_root()
        faults = Faults()
        photos = self._read(faults)
        if photos or not faults.found:
            self.check_photographs(photos, faults)
        faults.raise_any(f"vabench data check {self.info.name}")
        return photos

    def survey_requests(self, faults: Faults) -> Mapping[str, CacheRequest]:
        """As `requests`, of the photographs whose rows can be read."""
        return self._of(self._read(faults))

    @cached_property
    def _requests(self) -> dict[str, CacheRequest]:
        return self._of(self._photos)

    def _of(self, photos: Sequence[Photograph]) -> dict[str, CacheRequest]:
        big, small, free = (self.canvas, self.canvas), (self.size, self.size), self.patches is not None
        lesions = [CacheItem(p.lesion_mask, p.image) for p in photos if p.lesion_mask is not None]
        patches = [CacheItem(p.patch_mask, None if free else p.image) for p in photos if p.patch_mask is not None]
        kinds = {
            "images": ([CacheItem(p.image) for p in photos], Geometry(*big)),
            "lesion masks": (lesions, Geometry(*small, mode="mask")),
            "patch masks": (patches, Geometry(*big, mode="mask")),
        }
        return {
            kind: CacheRequest(f"isic {kind}", tuple(items), geometry)
            for kind, (items, geometry) in kinds.items()
            if items
        }

    # -- pixels ---------------------------------------------------------------------------------------------------

    @cached_property
    def _pixels(self) -> npt.NDArray[np.uint8]:
        """Photographs on the canvas, uint8 [N, S, S, 3], memory-mapped."""
        return self.prepared("images").pixels

    @cached_property
    def _lesions(self) -> tuple[Bool, Bool]:
        """Lesions bool [N, size, size], and which of them are known, bool [N]."""
        known = np.array([p.lesion_mask is not None for p in self._photos])
        out = np.zeros((len(known), self.size, self.size), dtype=np.bool_)
        if known.any():
            out[known] = self.prepared("lesion masks").pixels[..., 0] >= 128
        return out, known

    @cached_property
    def _patch_rows(self) -> dict[int, int]:
        """Photograph -> row of the patch masks."""
        return {k: row for row, k in enumerate(k for k, p in enumerate(self._photos) if p.patch_mask is not None)}

    def _patch(self, k: int) -> UInt8:
        """Patch mask of a photograph on the canvas, 0 or 255."""
        covered = self.prepared_patches[self._patch_rows[k]]
        return np.where(covered >= 128, 255, 0).astype(np.uint8)

    @cached_property
    def prepared_patches(self) -> npt.NDArray[np.uint8]:
        """All patch masks, [P, S, S]: the share of each canvas pixel that is covered, 0..255."""
        return self.prepared("patch masks").pixels[..., 0]

    def plain(self, index: Int64) -> UInt8:
        """Photographs as they are in the final size, uint8 [N, size, size, 3]."""
        from PIL import Image

        return stacked([shrink(Image.fromarray(self._pixels[k]), self.size) for k in index], self.size)

    @cached_property
    def _y(self) -> Int64:
        if self.target == "malignant":
            return np.array([bool(p.malignant) for p in self._photos], dtype=np.int64)
        return np.array([p.diagnosis == self.target for p in self._photos], dtype=np.int64)

    def changed(self) -> list[str]:
        """Parts of a name for size and layout where they are not the default ones."""
        layout = [re.sub(r"\W", "", self.layout)] if self.layout != "curated" else []
        return [*([f"{self.size}px"] if self.size != 64 else []), *layout]

    def _descriptions(self) -> Descriptions:
        path = files("suites") / "descriptions" / "isic" / f"{self.target}.yaml"
        return read_descriptions(Path(str(path)), self.class_names)


def stacked(images: Sequence[npt.NDArray[np.uint8]], size: int) -> UInt8:
    """Images [size, size, 3] as one array [N, size, size, 3], which may be empty."""
    return np.stack(images) if images else np.zeros((0, size, size, 3), dtype=np.uint8)
