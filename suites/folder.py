"""Your own images as a suite: a CSV names files, splits, labels and, where they are known, attributes and masks.

Groups are class x attribute over the attribute values that the CSV holds. There is one test rendering, `natural`: the
test images as they are. Data is read once; every seed gives the same splits.
"""

from __future__ import annotations

import csv as csv_module
import difflib
import hashlib
import io
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError, DataError
from harness.suite import Bool, Int64, Roles, Split, Suite, SuiteData, UInt8
from suites import FOLDER

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "val", "test", "val_groups")
REQUIRED, OPTIONAL = ("file", "split", "label"), ("attribute", "mask", "id")
SHOWN = 3  # problems that one message lists


@dataclass(frozen=True)
class Row:
    """One image of the CSV. line: its line in the file; attribute and mask are None where the cell is empty."""

    line: int
    file: Path
    split: str
    label: str
    attribute: str | None
    mask: Path | None
    id: str


class FolderSuite(Suite):
    """Images listed in a CSV with the columns file, split, label and optionally attribute, mask, id.

    split: train, val, test or val_groups (optional). attribute: the spurious attribute; empty, -1 or none =
    none, a group of its own. mask: an image of the size of its image, white on the spurious object; empty = no spurious
    object there. id: what makes images dependent (patient, base image), the file itself by default; no id may lie in
    two splits.
    """

    info = FOLDER

    def __init__(
        self,
        csv: str | Path,
        root: str | Path | None = None,
        size: int = 64,
        mode: str = "RGB",
        name: str | None = None,
    ):
        if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 1024:
            raise ConfigError(f"suite 'folder': size is a side in pixels, 8 to 1024, not {size!r}")
        if mode not in ("RGB", "L"):
            raise ConfigError(f"suite 'folder': mode is 'RGB' or 'L' (grey), not {mode!r}")
        if name is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name)):
            raise ConfigError(f"suite 'folder': name may hold letters, digits, '_', '-' and '.', not {name!r}")
        self.csv = Path(csv).expanduser()
        self.root = self.csv.parent if root is None else Path(root).expanduser()
        self.size, self.mode = size, mode
        self.title = str(name) if name is not None else re.sub(r"[^A-Za-z0-9_.-]+", "_", self.csv.stem)

    @property
    def name(self) -> str:
        """`folder-<name>`, with size and mode where they are not the default ones."""
        changed = [f"{self.size}px"] * (self.size != 64) + [self.mode] * (self.mode != "RGB")
        return "-".join(["folder", self.title, *changed])

    @property
    def params(self) -> dict[str, Any]:
        """name, size and mode. Paths are left out: `data_hash` covers what lies behind them."""
        return {"name": self.title, "size": self.size, "mode": self.mode}

    def data_hash(self) -> str:
        """sha256 over the bytes of the CSV and of every image and mask in it."""
        digest = hashlib.sha256(hashlib.sha256(self._csv_bytes).digest())
        for row in self._rows:
            for path in (row.file, row.mask):
                digest.update(_file_digest(path) if path is not None else b"-")
        return digest.hexdigest()

    def load(self, seed: int) -> SuiteData:
        """The splits of the CSV, the same for every seed. Raises DataError naming the line and what to do."""
        return self._data

    @cached_property
    def _csv_bytes(self) -> bytes:
        try:
            return self.csv.read_bytes()
        except OSError as error:
            raise DataError(f"the CSV {self.csv} cannot be read: {error.strerror}; check the path in csv=") from error

    @cached_property
    def _rows(self) -> list[Row]:
        rows = _parse(self._csv_bytes, self.csv, self.root)
        _check_table(rows, self.csv)
        return rows

    @cached_property
    def _data(self) -> SuiteData:
        rows = self._rows
        classes = _in_order(row.label for row in rows)
        attributes = _in_order(row.attribute for row in rows if row.attribute is not None)
        # images without attribute are a group of their own beside those with one
        kinds = [*attributes, "none"] if any(row.attribute is None for row in rows) else attributes
        bases = {value: k for k, value in enumerate(_in_order(row.id for row in rows))}
        y = np.array([classes.index(row.label) for row in rows], dtype=np.int64)
        a = np.array([attributes.index(row.attribute) if row.attribute is not None else -1 for row in rows], np.int64)
        g = len(kinds) * y + a % len(kinds)  # -1 becomes the last kind
        ids = np.array([bases[row.id] for row in rows], dtype=np.int64)
        splits = {name: self._split(name, y, a, g, ids) for name in SPLITS if any(row.split == name for row in rows)}
        masks = splits["test"].masks
        masked = "natural" if masks is not None and masks.any() else None
        return SuiteData(
            train=splits["train"],
            val=splits["val"],
            val_groups=splits.get("val_groups"),
            test={"natural": splits["test"]},
            roles=Roles(headline="natural", average="natural", grouped=("natural",), masked=masked),
            class_names=tuple(classes),
            group_names=tuple(f"{c}/{kind}" if attributes else c for c in classes for kind in kinds),
        )

    def _split(self, name: str, y: Int64, a: Int64, g: Int64, ids: Int64) -> Split:
        index = np.array([k for k, row in enumerate(self._rows) if row.split == name], dtype=np.int64)
        shape = (len(index), self.size, self.size)
        images: UInt8 = np.empty((shape[0], 3 if self.mode == "RGB" else 1, *shape[1:]), dtype=np.uint8)
        masks: Bool | None = None
        for k, i in enumerate(index):
            row = self._rows[i]
            where = f"{self.csv}, line {row.line}"
            image = _open(row.file, f"{where}, column file")
            pixels = _resized(_grey_or_rgb(image, self.mode, f"{where}, column file"), self.size)
            images[k] = pixels.transpose(2, 0, 1) if self.mode == "RGB" else pixels
            if row.mask is not None:
                masks = np.zeros(shape, dtype=np.bool_) if masks is None else masks
                masks[k] = _mask(row.mask, image.size, self.size, f"{where}, column mask")
        return Split(images, y[index], a[index], g[index], ids[index], masks)


def _parse(raw: bytes, csv: Path, root: Path) -> list[Row]:
    """Rows of the CSV, or a DataError that lists the first bad cells."""
    try:
        reader = csv_module.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        reader.fieldnames = _columns([name.strip() for name in reader.fieldnames or ()], csv)
        cells = [(reader.line_num, row) for row in reader if any(row.values())]
    except UnicodeDecodeError as error:
        raise DataError(f"{csv} is not UTF-8 text ({error.reason}, byte {error.start}); save it as UTF-8") from error
    except csv_module.Error as error:
        raise DataError(
            f"{csv} is not a readable CSV: {error}; save it again with commas and one header line"
        ) from error
    problems: list[str] = []
    rows = [row for line, cell in cells if (row := _row(line, cell, root, problems)) is not None]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(f"{csv}: {'; '.join(problems[:SHOWN])}{more}")
    return rows


def _columns(names: list[str], csv: Path) -> list[str]:
    """Check the header: needed columns are there, none is double, and none looks like a misspelt one of ours."""
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise DataError(f"{csv} separates its cells by semicolons or tabs; save it with commas")
    for wanted in REQUIRED:
        if wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? Rename it" if near else f"add it; it has {', '.join(names) or 'none'}"
            raise DataError(f"{csv} has no column '{wanted}': {hint}")
    for wanted in OPTIONAL:
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.85)
        if near and near[0] != wanted:
            raise DataError(f"{csv} has a column '{near[0]}': did you mean '{wanted}'? Rename it, or drop it")
    double = [name for name in (*REQUIRED, *OPTIONAL) if names.count(name) > 1]
    if double:
        raise DataError(f"{csv} has the column '{double[0]}' twice; drop one")
    return names


def _row(line: int, cell: dict[Any, Any], root: Path, problems: list[str]) -> Row | None:
    before = len(problems)
    if None in cell or None in cell.values():
        problems.append(f"line {line} has {'more' if None in cell else 'fewer'} cells than the header; quote commas")
        return None
    text = {key: value.strip() for key, value in cell.items()}
    split, label = text["split"], text["label"]
    if split not in SPLITS:
        near = difflib.get_close_matches(split.lower(), SPLITS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(SPLITS)}"
        problems.append(f"line {line}, column split: '{split}' is no split; {hint}")
    if not label:
        problems.append(f"line {line}, column label: the cell is empty; write the class")
    paths = {}
    for column in ("file", "mask"):
        value = text.get(column, "")
        if value or column == "file":
            paths[column] = _inside(root, value, f"line {line}, column {column}", problems)
    if len(problems) > before or paths["file"] is None:
        return None
    attribute = text.get("attribute", "")
    none = attribute.lower() in ("", "-1", "none")
    base = text.get("id") or text["file"]
    return Row(line, paths["file"], split, label, None if none else attribute, paths.get("mask"), base)


def _inside(root: Path, value: str, where: str, problems: list[str]) -> Path | None:
    """The path, or None and a problem noted where it is empty, outside the root or no file."""
    path = root / value
    if not value:
        problems.append(f"{where}: the cell is empty; write a path relative to {root}")
    elif not path.resolve().is_relative_to(root.resolve()):
        problems.append(f"{where}: '{value}' lies outside {root}; move the file there, or set root=")
    elif not path.is_file():
        problems.append(f"{where}: there is no file '{value}' under {root}; correct the path, or set root=")
    else:
        return path.resolve()
    return None


def _check_table(rows: list[Row], csv: Path) -> None:
    for name in ("train", "val", "test"):
        if not any(row.split == name for row in rows):
            raise DataError(f"{csv}: no row has split '{name}'; train, val and test each need images")
    trained = {row.label for row in rows if row.split == "train"}
    if len(trained) < 2:
        raise DataError(f"{csv}: train holds only the class '{min(trained)}'; at least two labels are needed")
    for row in rows:
        if row.label not in trained:
            raise DataError(f"{csv}, line {row.line}, column label: no training image has the class '{row.label}'")
    for column in ("file", "id"):
        first: dict[str, Row] = {}
        for row in rows:
            key = str(getattr(row, column))
            held = first.setdefault(key, row)
            if held.split != row.split:
                raise DataError(
                    f"{csv}, column {column}: '{key}' is in {held.split} (line {held.line}) and in {row.split} "
                    f"(line {row.line}); move it to one split, or the test measures memory"
                )


def _in_order(values: Iterable[str]) -> list[str]:
    """Distinct values, sorted: as numbers where all are whole numbers, else as text."""
    distinct = set(values)
    whole = all(re.fullmatch(r"-?[0-9]+", value) for value in distinct)
    return sorted(distinct, key=lambda value: (int(value) if whole else 0, value))


def _open(path: Path, where: str) -> Image.Image:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
            image.load()
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise DataError(f"{where}: {path} cannot be read as an image ({error}); replace the file") from error
    return image


def _grey_or_rgb(image: Image.Image, mode: str, where: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 255 instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{where}: the image has 32-bit pixels, whose range is unknown; save it with 8 or 16 bits")
    return image.convert(mode)


def _resized(image: Image.Image, size: int, kind: str = "BILINEAR") -> npt.NDArray[Any]:
    from PIL.Image import Resampling

    return np.asarray(image.resize((size, size), Resampling[kind]))


def _mask(path: Path, expected: tuple[int, int], size: int, where: str) -> Bool:
    """bool [size, size]: pixels at least half covered; if there are none, the most covered ones of a small object."""
    image = _grey_or_rgb(_open(path, where), "L", where)
    if image.size != expected:
        raise DataError(
            f"{where}: the mask {path.name} is {image.size[0]} x {image.size[1]} pixels but its image is "
            f"{expected[0]} x {expected[1]}; save it at the size of its image"
        )
    white = image.point([0] * 128 + [255] * 128).convert("F")
    covered = _resized(white, size, "BOX")  # the mean over a pixel's area: 255 x its covered share
    return np.asarray(covered >= max(min(127.5, float(covered.max())), 1e-6))


def _file_digest(path: Path) -> bytes:
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: str, size: int, mtime: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
