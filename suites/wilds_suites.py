"""Waterbirds, CelebA and Camelyon17 through the `wilds` package: its layouts, its splits, its groups, its own metrics.

Tables are read here, without torch, so that a fault is named by file and line and a plan needs no image. What counts as
a group, a split or an official metric is the package's to say. There is one test rendering, `natural`, and no mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from harness.descriptions import read_descriptions
from harness.errors import ConfigError, DataError
from harness.suite import Int64, Roles, Split, SuiteData
from suites import CAMELYON17, CELEBA, WATERBIRDS
from suites.draws import check_side, check_whole
from suites.idx import data_root
from suites.image_cache import CacheItem, CacheRequest, Geometry
from suites.image_suite import ImageSuite, Manifest, read_manifest
from suites.tables import Faults, TableRow, check_unique, choice, read_table
from suites.wilds_package import wilds_module


class Entry(NamedTuple):
    """One image of a table. split: as the official table writes it."""

    where: str
    file: Path
    split: str
    y: int
    a: int


class WildsSuite(ImageSuite):
    """Base of the suites on WILDS data sets.

    train and test are the official splits. The official validation split is halved, group by group, by the data seed:
    `val` shows labels, `val_groups` groups. root: the folder that holds `<name>_v1.0`. n_train, n_test: images drawn
    by the data seed, or all.
    """

    dataset: ClassVar[str]  # e.g. waterbirds
    wilds_class: ClassVar[str]  # "module:Class" below wilds.datasets
    class_names: ClassVar[tuple[str, str]]
    attributes: ClassVar[tuple[str, ...]]  # by the value of `field`
    field: ClassVar[str]  # metadata field of the spurious attribute
    splits: ClassVar[Mapping[str, str]]  # official name -> ours
    version = "1.0"

    def __init__(
        self,
        size: int = 64,
        root: str | Path | None = None,
        download: bool = False,
        n_train: int | None = None,
        n_test: int | None = None,
    ):
        what = f"suite '{self.info.name}'"
        self.size = check_side(what, size)
        if not isinstance(download, bool):
            raise ConfigError(f"{what}: download is true or false, not {download!r}")
        self.download = download
        self.n_train = None if n_train is None else check_whole(what, "n_train", n_train, 1)
        self.n_test = None if n_test is None else check_whole(what, "n_test", n_test, 1)
        self._given_root = None if root is None else Path(root).expanduser()

    @property
    def parent(self) -> Path:
        """The folder that holds all WILDS data sets: `root`, or `wilds` in the data folder."""
        return self._given_root if self._given_root is not None else data_root() / "wilds"

    @property
    def root(self) -> Path:
        """`<parent>/<name>_v1.0`, as the package lays it out."""
        return self.parent / f"{self.dataset}_v{self.version}"

    @property
    def name(self) -> str:
        """E.g. `waterbirds`, with what is not the default."""
        changed = [f"{self.size}px"] * (self.size != 64)
        changed += [f"n{self.n_train}"] * (self.n_train is not None) + [f"test{self.n_test}"] * (
            self.n_test is not None
        )
        return "-".join([self.info.name, *changed])

    @property
    def params(self) -> dict[str, Any]:
        """size, n_train, n_test. Paths are left out: `data_hash` covers what lies behind them."""
        return {"size": self.size, "n_train": self.n_train, "n_test": self.n_test}

    def manifest(self) -> Manifest:
        """Source, licence and how to get it."""
        return read_manifest(Path(str(files("suites").joinpath("manifests/wilds.yaml"))), self.dataset)

    def require_root(self) -> None:
        """As of the base class; with `download=true` the package fetches what is missing first."""
        if self.download and not self._complete():
            self._open(download=True)
        super().require_root()
        if not self._complete():
            release = f"RELEASE_v{self.version}.txt"
            raise DataError(f"{self.root} lacks {release}, the mark of a complete download: {self.manifest().get}")

    def _complete(self) -> bool:
        return (self.root / f"RELEASE_v{self.version}.txt").is_file()

    # -- table --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, faults: Faults) -> list[Entry]:
        """Every image of the official tables, in their order; faults name file, line and column."""

    @cached_property
    def entries(self) -> list[Entry]:
        """The flawless table. Raises DataError with the first faults."""
        self.require_root()
        faults = Faults()
        found = self.read(faults)
        self._check(found, faults)
        faults.raise_any(f"vabench data check {self.info.name}")
        return found

    def _check(self, entries: list[Entry], faults: Faults) -> None:
        check_unique([(entry.where, str(entry.file)) for entry in entries], "file", faults)
        for split in set(self.splits.values()):
            ours = [entry.y for entry in entries if self.splits[entry.split] == split]
            for k, label in enumerate(self.class_names):
                if k not in ours:
                    faults.add(f"{self.root}: split '{split}' has no image of the class '{label}'; download it again")

    def inspect(self, faults: Faults) -> None:
        """Table faults and missing files."""
        found = self.read(faults)
        self._check(found, faults)
        for entry in found:
            if not entry.file.is_file():
                faults.add(f"{entry.where}: there is no file {entry.file}; download the data set again")

    def requests(self) -> Mapping[str, CacheRequest]:
        """All images at the suite's size."""
        return {"images": self._request(self.entries)}

    def survey_requests(self, faults: Faults) -> Mapping[str, CacheRequest]:
        """The images that are there."""
        return {"images": self._request([entry for entry in self.read(faults) if entry.file.is_file()])}

    def _request(self, entries: list[Entry]) -> CacheRequest:
        items = tuple(CacheItem(entry.file) for entry in entries)
        return CacheRequest(f"{self.dataset} images", items, Geometry(self.size, self.size, "RGB"))

    # -- the package's view -------------------------------------------------------------------------------------------

    def _open(self, download: bool = False) -> Any:
        module, _, name = self.wilds_class.partition(":")
        made = getattr(wilds_module(f"datasets.{module}"), name)
        try:
            return made(version=self.version, root_dir=str(self.parent), download=download)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"wilds cannot open {self.root}: {error}; {self.manifest().get}") from error

    @cached_property
    def official(self) -> Any:
        """The `WILDSDataset` behind this suite."""
        self.require_root()
        return self._open()

    def grouper(self) -> Any:
        """The grouper that decides what a group is: the package's own for its metrics."""
        return self.official._eval_grouper

    def _groups(self) -> tuple[Int64, tuple[str, ...]]:
        """Group of every image in our order g = len(attributes) * y + a, from the package's grouper, and names."""
        dataset, grouper = self.official, self.grouper()
        theirs = grouper.metadata_to_group(dataset.metadata_array).numpy().astype(np.int64)
        y, a = self.labels()
        ours = len(self.attributes) * y + a
        pairs = np.unique(np.stack([theirs, ours], axis=1), axis=0)
        if len(pairs) != len(np.unique(theirs)) or len(pairs) != len(np.unique(ours)):
            raise DataError(f"{self.root}: the package groups the images otherwise than by class and {self.field}")
        return ours, tuple(f"{label}/{attribute}" for label in self.class_names for attribute in self.attributes)

    def labels(self) -> tuple[Int64, Int64]:
        """Class and attribute of every image, int64 [N], as the package holds them."""
        dataset = self.official
        column = dataset.metadata_fields.index(self.field)
        return dataset.y_array.numpy().astype(np.int64), dataset.metadata_array[:, column].numpy().astype(np.int64)

    def evaluate(self, predictions: Int64, positions: Int64) -> dict[str, float]:
        """The package's `eval` on some images: their names, their definitions. positions: rows of its tables."""
        import torch

        dataset, index = self.official, torch.from_numpy(np.asarray(positions, dtype=np.int64))
        guess = torch.from_numpy(np.asarray(predictions, dtype=np.int64))
        results, _ = dataset.eval(guess, dataset.y_array[index], dataset.metadata_array[index])
        return {name: float(value) for name, value in results.items()}

    # -- splits -------------------------------------------------------------------------------------------------------

    def load(self, seed: int) -> SuiteData:
        """The official splits; the seed halves the validation split and draws n_train and n_test."""
        entries = self.entries
        pixels = self.prepared("images").pixels
        y, a = self.labels()
        g, names = self._groups()
        if [entry.y for entry in entries] != y.tolist():
            raise DataError(f"{self.root}: the package reads other labels than the tables hold; download it again")
        where = {split: np.flatnonzero([self.splits[e.split] == split for e in entries]) for split in OURS}
        rng = np.random.default_rng([seed, 17])
        if "val_groups" not in self.splits.values():
            where["val"], where["val_groups"] = _halves(where["val"], g, rng)
        for split, number in (("train", self.n_train), ("test", self.n_test)):
            if number is not None and number < len(where[split]):
                where[split] = np.sort(rng.choice(where[split], number, replace=False))

        def show(split: str) -> Split:
            rows = where[split]
            images = np.ascontiguousarray(pixels[rows].transpose(0, 3, 1, 2))
            return Split(images, y[rows], a[rows], g[rows], rows.astype(np.int64))

        test_rows = where["test"]
        return SuiteData(
            train=show("train"),
            val=show("val"),
            val_groups=show("val_groups"),
            test={"natural": show("test")},
            roles=Roles(headline="natural", average="natural", grouped=("natural",)),
            class_names=self.class_names,
            group_names=names,
            descriptions=read_descriptions(
                Path(str(files("suites").joinpath(f"descriptions/wilds/{self.info.name}.yaml"))), self.class_names
            ),
            official=lambda predictions: self.evaluate(predictions, test_rows),
        )


OURS = ("train", "val", "val_groups", "test")


def _halves(rows: Int64, g: Int64, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Rows in two halves with equally many of every group (a single image goes to the first)."""
    first: list[Int64] = []
    for k in np.unique(g[rows]):
        held = rng.permutation(rows[g[rows] == k])
        first.append(held[: (len(held) + 1) // 2])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(rows, chosen)


class Waterbirds(WildsSuite):
    """Birds cut out of photographs and pasted before land or water (Sagawa et al. 2020)."""

    info = WATERBIRDS
    dataset, wilds_class = "waterbirds", "waterbirds_dataset:WaterbirdsDataset"
    class_names, attributes, field = ("landbird", "waterbird"), ("land", "water"), "background"
    splits: ClassVar[Mapping[str, str]] = {"0": "train", "1": "val", "2": "test"}

    def table_files(self) -> list[Path]:
        """metadata.csv."""
        return [self.root / "metadata.csv"]

    def read(self, faults: Faults) -> list[Entry]:
        """metadata.csv: img_filename, y, split and place."""
        binary = {"0": 0, "1": 1}
        found = []
        for row in read_table(self.root / "metadata.csv", ("img_filename", "y", "split", "place"), faults):
            y, a = choice(row, "y", binary, faults), choice(row, "place", binary, faults)
            if _known(row, "split", self.splits, faults) and y is not None and a is not None:
                found.append(Entry(row.where, self.root / row["img_filename"], row["split"], y, a))
        return found


class CelebA(WildsSuite):
    """Blond hair against none; the attribute is whether CelebA calls the person male (Liu et al. 2015)."""

    info = CELEBA
    dataset, wilds_class = "celebA", "celebA_dataset:CelebADataset"
    class_names, attributes, field = ("not blond", "blond"), ("female", "male"), "male"
    splits: ClassVar[Mapping[str, str]] = {"0": "train", "1": "val", "2": "test"}

    def table_files(self) -> list[Path]:
        """list_attr_celeba.csv and list_eval_partition.csv."""
        return [self.root / "list_attr_celeba.csv", self.root / "list_eval_partition.csv"]

    def read(self, faults: Faults) -> list[Entry]:
        """Blond_Hair and Male (1 or -1) beside the partition of the same image."""
        attributes, partitions = self.table_files()
        sign = {"1": 1, "-1": 0, "0": 0}
        shares = read_table(partitions, ("image_id", "partition"), faults)
        held = {row["image_id"]: row for row in shares}
        found = []
        for place, row in enumerate(read_table(attributes, ("image_id", "Blond_Hair", "Male"), faults)):
            y, a = choice(row, "Blond_Hair", sign, faults), choice(row, "Male", sign, faults)
            share = held.get(row["image_id"])
            if share is None:
                faults.add(f"{row.where}: {partitions.name} does not name '{row['image_id']}'; download both again")
            elif place >= len(shares) or shares[place]["image_id"] != row["image_id"]:
                faults.add(f"{row.where}: {partitions.name} has '{row['image_id']}' in another line; wilds pairs lines")
            elif _known(share, "partition", self.splits, faults) and y is not None and a is not None:
                file = self.root / "img_align_celeba" / row["image_id"]
                found.append(Entry(row.where, file, share["partition"], y, a))
        return found


class Camelyon17(WildsSuite):
    """Tumour in a patch of a lymph node; hospitals 0, 3 and 4 train, 1 validates, 2 tests (Bandi et al. 2018).

    `val` is the official in-distribution split, `val_groups` the official validation hospital: a group is class x
    hospital, and the test hospital's groups are empty in train. The official headline is the average (`acc_avg`).
    """

    info = CAMELYON17
    dataset, wilds_class = "camelyon17", "camelyon17_dataset:Camelyon17Dataset"
    class_names, field = ("normal", "tumor"), "hospital"
    attributes = ("hospital 0", "hospital 1", "hospital 2", "hospital 3", "hospital 4")
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "id_val": "val", "val": "val_groups", "test": "test"}

    def table_files(self) -> list[Path]:
        """metadata.csv."""
        return [self.root / "metadata.csv"]

    def grouper(self) -> Any:
        """Class x hospital; the package's metrics also list single slides, which are far too many groups here."""
        return wilds_module("common.grouper").CombinatorialGrouper(self.official, ["hospital", "y"])

    def read(self, faults: Faults) -> list[Entry]:
        """metadata.csv: patient, node, x_coord, y_coord, tumor, center and split (0 train, 1 in-distribution val)."""
        columns = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
        binary, centers = {"0": 0, "1": 1}, {str(k): k for k in range(len(self.attributes))}
        found = []
        for row in read_table(self.root / "metadata.csv", columns, faults):
            y, a = choice(row, "tumor", binary, faults), choice(row, "center", centers, faults)
            if y is None or a is None or not _known(row, "split", {"0": "", "1": ""}, faults):
                continue
            split = {1: "val", 2: "test"}.get(a, "id_val" if row["split"] == "1" else "train")
            stem = f"patient_{row['patient']}_node_{row['node']}"
            file = f"patches/{stem}/patch_{stem}_x_{row['x_coord']}_y_{row['y_coord']}.png"
            found.append(Entry(row.where, self.root / file, split, y, a))
        return found


def _known(row: TableRow, column: str, allowed: Mapping[str, str], faults: Faults) -> bool:
    return choice(row, column, dict.fromkeys(allowed, True), faults) is not None
