"""Chest X-rays: letters inserted at a set correlation, burned-in markers as they are, chest drains.

`kermany_markers` asks for bacteria against viruses: normal against pneumonia is so easy that no model needs a letter.
`kermany_natural` is that easy task with its natural marker: the R's font tells the class, and models do not use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import ConfigError
from harness.suite import Int64, Roles, Split, SuiteData, UInt8
from suites import CHEST_MARKERS, KERMANY_MARKERS, KERMANY_NATURAL, NIH_CHEST
from suites.chest_archives import READERS, TABLES, TARGETS, Question, Uncertain, with_drains
from suites.chest_layouts import read_curated_kermany, read_curated_nih, read_kermany
from suites.draws import check_whole, halves, subsampled
from suites.marker_suite import MarkerSuite
from suites.markers import Box, erase
from suites.radiographs import Radiograph, RadiographSuite, rng_of
from suites.tables import Faults


class KermanyMarkers(MarkerSuite):
    """Bacterial (1) against viral (0) pneumonia in children; natural markers erased, a letter L or R inserted.

    The curated films come with the boxes of their markers. In the official layout (`layout=official`), `boxes` names a
    table of them; markers of other films stay, and `vabench data check` counts them.
    """

    info = KERMANY_MARKERS
    folder = "cxr"
    layouts = ("curated", "official")
    labels = {"viral": 0, "bacterial": 1}  # noqa: RUF012 - read only
    class_names = ("viral pneumonia", "bacterial pneumonia")

    def __init__(
        self,
        rho: float = 0.9,
        size: int = 64,
        n_train: int | None = None,
        split: str = "drawn",
        layout: str = "curated",
        root: str | Path | None = None,
        boxes: str | Path | None = None,
    ):
        super().__init__(rho, size, n_train, layout, root, split)
        if boxes is not None and layout != "official":
            raise ConfigError(f"suite '{self.info.name}': boxes= is for layout=official; the curated films have theirs")
        self.boxes = Path(boxes).expanduser() if boxes is not None else None

    def read(self, faults: Faults) -> list[Radiograph]:
        """Films with pneumonia."""
        films = _kermany(self.root, self.layout, self.boxes, faults)
        return [film for film in films if film.label in self.labels]

    def table_files(self) -> list[Path]:
        """metadata.csv, or the table of boxes."""
        tables = [self.root / "metadata.csv"] if self.layout == "curated" else [self.boxes] if self.boxes else []
        return [path for path in tables if path.is_file()]

    @property
    def manifest_entry(self) -> str:
        """Kermany's, curated or official."""
        return f"kermany-{self.layout}"

    @property
    def params(self) -> dict[str, Any]:
        """As of the base class, with whether boxes were given."""
        return {**super().params, "own_boxes": self.boxes is not None}

    @property
    def name(self) -> str:
        """E.g. `kermany_markers-rho0.9`, with what is not the default."""
        return "-".join([self.info.name, *self._rho_part(), *self.changed(64, "curated", "drawn")])


class KermanyNatural(RadiographSuite):
    """Normal (0) against pneumonia (1) with the burned-in R as it is; a = 1 where its font is the bold sans-serif.

    Nearly all normal films have that font and few others do, yet erasing the marker changes no decision: the base model
    is not biased, and a method that reports a repair here has repaired nothing. Renderings: `natural`; `erased` (every
    known marker filled); `placebo` (the same filling in every film, mirrored to the side where markers never are).
    """

    info = KERMANY_NATURAL
    folder = "cxr"
    layouts = ("curated",)
    labels = {"normal": 0, "viral": 1, "bacterial": 1}  # noqa: RUF012 - read only
    class_names = ("normal", "pneumonia")
    group_names = ("normal/other or none", "normal/bold R", "pneumonia/other or none", "pneumonia/bold R")

    def __init__(self, size: int = 128, split: str = "drawn", layout: str = "curated", root: str | Path | None = None):
        super().__init__(size, layout, root, split)

    def read(self, faults: Faults) -> list[Radiograph]:
        """All films of the set."""
        return read_curated_kermany(self.root, faults)

    def table_files(self) -> list[Path]:
        """metadata.csv."""
        return [path for path in [self.root / "metadata.csv"] if path.is_file()]

    @property
    def manifest_entry(self) -> str:
        """Kermany's, curated."""
        return f"kermany-{self.layout}"

    @property
    def name(self) -> str:
        """E.g. `kermany_natural`, with what is not the default."""
        return "-".join([self.info.name, *self.changed(128, "curated", "drawn")])

    def load(self, seed: int) -> SuiteData:
        """The splits and the three renderings of test. Raises DataError naming file and line."""
        index = self.assigned(seed)
        test = self._split(index["test"])
        gone = np.stack([self.small(self.erased(int(k))) for k in index["test"]])
        renderings = {"natural": test, "erased": _with_images(test, gone), "placebo": self._placebo(test, seed)}
        return SuiteData(
            train=self._split(index["train"]),
            val=self._split(index["val"]),
            test=renderings,
            roles=Roles(
                headline="erased",
                average="natural",
                grouped=("natural",),
                aligned="natural",
                remove="erased",
                placebo="placebo",
                masked="natural",
            ),
            class_names=self.class_names,
            group_names=self.group_names,
            descriptions=self.described(self.info.name),
        )

    def _split(self, index: Int64) -> Split:
        images = np.stack([self.small(self.film(int(k))) for k in index])
        masks = np.stack([self.marker_mask(int(k)) for k in index])
        a = np.array([self.films[k].metadata["marker_style"] == "bold_sans" for k in index], dtype=np.int64)
        y = self.y[index]
        return Split(images[:, None], y, a, 2 * y + a, index, masks)

    def _placebo(self, test: Split, seed: int) -> Split:
        """A film without marker is filled where another test film's marker would lie, mirrored."""
        rng = rng_of(seed, "placebo")
        marked = [int(k) for k in test.ids if self.films[k].marker is not None]
        images = []
        for k in test.ids.tolist():
            source = k if self.films[k].marker is not None else marked[int(rng.integers(len(marked)))]
            box, canvas = self._marker_on_canvas(source), self.film(k)
            erase(canvas, Box(self.canvas - box.x - box.w, box.y, box.w, box.h), rng_of(0, "placebo", self.films[k].id))
            images.append(self.small(canvas))
        return _with_images(test, np.stack(images))

    def _marker_on_canvas(self, k: int) -> Box:
        marker = self.films[k].marker
        assert marker is not None  # chosen so
        return self.on_canvas(k, marker)


class ChestMarkers(MarkerSuite):
    """A finding against none in a large archive, with an inserted letter. Natural side markers of these sets stay.

    layout: `nih`, `chexpert`, `mimic` or `rsna`. uncertain: what CheXpert's and MIMIC's -1 counts as: `drop`
    (the film is left out), `positive`, `negative`; a finding that is not mentioned counts as absent.
    """

    info = CHEST_MARKERS
    folder = "chest"
    layouts = tuple(READERS)
    labels = {"absent": 0, "present": 1}  # noqa: RUF012 - read only

    def __init__(
        self,
        layout: str,
        root: str | Path,
        target: str = "Pneumonia",
        uncertain: Uncertain = "drop",
        rho: float = 0.9,
        size: int = 64,
        n_train: int | None = None,
        limit: int = 2000,
        partial: bool = False,
        split: str = "given",
    ):
        super().__init__(rho, size, n_train, layout, root, split)
        self._ask(target, uncertain, limit, partial)

    def _ask(self, target: str, uncertain: Uncertain, limit: int, partial: bool) -> None:
        what = f"suite '{self.info.name}'"
        known = TARGETS.get(self.layout, ("Pneumonia",))
        if target not in known:
            raise ConfigError(f"{what}: target of layout {self.layout} is one of {', '.join(known)}, not {target!r}")
        if uncertain not in ("drop", "positive", "negative"):
            raise ConfigError(f"{what}: uncertain is drop, positive or negative, not {uncertain!r}")
        self.question = Question(target, uncertain, check_whole(what, "limit", limit, 0), bool(partial))

    def read(self, faults: Faults) -> list[Radiograph]:
        """Frontal films."""
        return READERS[self.layout](self.root, self.question, faults)

    def table_files(self) -> list[Path]:
        """The layout's tables that are there."""
        return sorted({path for pattern in TABLES[self.layout] for path in self.root.glob(pattern) if path.is_file()})

    @property
    def class_names(self) -> tuple[str, ...]:
        """E.g. `no pneumonia`, `pneumonia`."""
        word = self._word
        return (f"no {word}", word)

    @property
    def _word(self) -> str:
        return self.question.target.replace("_", " ").lower()

    @property
    def params(self) -> dict[str, Any]:
        """As of the base class, with what is asked of the archive."""
        ask = self.question
        asked = {"target": ask.target, "uncertain": ask.uncertain, "limit": ask.limit, "partial": ask.partial}
        return {**super().params, **asked}

    @property
    def name(self) -> str:
        """E.g. `chest_markers-chexpert-pneumonia-rho0.9`, with what is not the default."""
        ask, word = self.question, self._word.replace(" ", "_")
        more = [text for text, told in ((f"limit{ask.limit}", ask.limit != 2000), ("partial", ask.partial)) if told]
        uncertain = [f"u{ask.uncertain}"] if ask.uncertain != "drop" else []
        parts = [self.layout, word, *uncertain, *self._rho_part(), *more, *self.changed(64, self.layout, "given")]
        return "-".join([self.info.name, *parts])

    def _descriptions(self) -> dict[str, dict[str, str]]:
        return self.described(f"chest_{self._word.replace(' ', '_')}")


class NihChest(ChestMarkers):
    """NIH ChestX-ray14: a finding with an inserted letter, or pneumothorax with the chest drains that patients have.

    attribute: `letter`, or `drain` (layout=nih and the table `drains=`): a drain is treatment, so it tells the finding.
    Nothing can be inserted then: train and val are subsampled until a share rho of either class has the usual attribute
    (drain with pneumothorax, none without), test is left as it is, and `natural` is the one rendering.
    """

    info = NIH_CHEST
    folder = "cxr"
    layouts = ("curated", "nih")

    def __init__(
        self,
        attribute: str = "letter",
        target: str | None = None,
        rho: float = 0.9,
        size: int = 64,
        n_train: int | None = None,
        layout: str = "curated",
        root: str | Path | None = None,
        drains: str | Path | None = None,
        limit: int = 2000,
        partial: bool = False,
        split: str = "given",
    ):
        MarkerSuite.__init__(self, rho, size, n_train, layout, root, split)
        what = f"suite '{self.info.name}'"
        if attribute not in ("letter", "drain"):
            raise ConfigError(f"{what}: attribute is letter or drain, not {attribute!r}")
        usual = "Pneumothorax" if attribute == "drain" else "Pneumonia"
        if attribute == "drain" and (layout != "nih" or drains is None or target not in (None, usual)):
            raise ConfigError(
                f"{what}: attribute=drain needs layout=nih, root= (the full set) and drains= (nih_drain_meta.csv of "
                f"github.com/nina-weng/FastDiME_Med, 8656 films), and its target is Pneumothorax"
            )
        self.attribute = attribute
        self.drains = Path(drains).expanduser() if drains is not None and attribute == "drain" else None
        self._ask(target or usual, "drop", limit, partial)

    def read(self, faults: Faults) -> list[Radiograph]:
        """Films of the layout; with drains, those that the table names."""
        if self.layout == "curated":
            return read_curated_nih(self.root, faults)
        if self.drains is None:
            return super().read(faults)
        everything = Question(self.question.target, limit=0, partial=True)  # a film without row of drains may be absent
        films = READERS["nih"](self.root, everything, faults)
        faults.notes[:] = [note for note in faults.notes if not note.startswith("left out")]  # of all 112,120 films
        return with_drains(films, self.drains, faults)

    def table_files(self) -> list[Path]:
        """The layout's tables that are there, and the table of drains."""
        if self.layout == "curated":
            tables = [self.root / "metadata.csv", self.root / "nih_bbox.csv"]
            return [path for path in tables if path.is_file()]
        return [*super().table_files(), *([self.drains] if self.drains is not None else [])]

    @property
    def manifest_entry(self) -> str:
        """NIH's, curated or full."""
        return "nih-curated" if self.layout == "curated" else "nih"

    @property
    def params(self) -> dict[str, Any]:
        """As of the base class, with the attribute."""
        return {"attribute": self.attribute, **super().params}

    @property
    def name(self) -> str:
        """E.g. `nih_chest-letter-pneumonia-rho0.9`, with what is not the default."""
        ask, word = self.question, self._word.replace(" ", "_")
        more = [text for text, told in ((f"limit{ask.limit}", ask.limit != 2000), ("partial", ask.partial)) if told]
        parts = [self.attribute, word, *self._rho_part(), *more, *self.changed(64, "curated", "given")]
        return "-".join([self.info.name, *parts])

    @property
    def group_names(self) -> tuple[str, ...]:
        """class/letter or class/drain in the order g = 2 y + a."""
        if self.attribute == "letter":
            return super().group_names
        return tuple(f"{c}/{kind}" for c in self.class_names for kind in ("no drain", "drain"))

    def load(self, seed: int) -> SuiteData:
        """As of the base class; with drains, the subsampled splits. Raises DataError naming file and line."""
        if self.attribute == "letter":
            return super().load(seed)
        index, a = self.assigned(seed), np.array([int(film.metadata["drain"]) for film in self.films], dtype=np.int64)
        index["val"], index["val_groups"] = halves(index["val"], self.y, self.units(), rng_of(seed, "val_groups"))

        def taken(split: str, rho: float, name: str) -> Split:
            held = index[split]
            y = self.y[held]
            rows = subsampled(y, a[held], y, rho, rng_of(seed, name))[: self.n_train if split == "train" else None]
            return self._natural(held[rows], a)

        return SuiteData(
            train=taken("train", self.rho, "train"),
            val=taken("val", self.rho, "val"),
            val_groups=taken("val_groups", 0.5, "val_groups"),
            decorrelated=taken("train", 0.5, "decorrelated"),
            test={"natural": self._natural(index["test"], a)},
            roles=Roles(headline="natural", average="natural", grouped=("natural",)),
            class_names=self.class_names,
            group_names=self.group_names,
            descriptions=self.described("chest_drains"),
        )

    def _natural(self, index: Int64, a: Int64) -> Split:
        shape = (0, self.size, self.size)
        images = [self.small(self.film(int(k))) for k in index]
        y = self.y[index]
        drawn = np.stack(images) if images else np.zeros(shape, dtype=np.uint8)
        return Split(drawn[:, None], y, a[index], 2 * y + a[index], index)


def _kermany(root: Path, layout: str, boxes: Path | None, faults: Faults) -> list[Radiograph]:
    return read_curated_kermany(root, faults) if layout == "curated" else read_kermany(root, faults, boxes)


def _with_images(split: Split, images: UInt8) -> Split:
    return Split(images[:, None], split.y, split.a, split.g, split.ids, split.masks, split.core)


__all__ = ["ChestMarkers", "KermanyMarkers", "KermanyNatural", "NihChest"]
