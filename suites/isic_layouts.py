"""The ISIC data as they really lie on disk: 2017, 2018, 2019, 2020, HAM10000, an `isic-cli` folder, the curated copy.

Every reader returns one `Photograph` per image. Diagnoses have one vocabulary (`DIAGNOSES`). Malignant are melanoma,
basal cell carcinoma, squamous cell carcinoma and actinic keratosis: the last is pre-malignant, but HAM10000 pools it
with Bowen's disease (akiec) and ISIC 2019 holds the same images, so leaving it out would give one image two labels.
Layouts without official splits are split 70/10/20 by a hash of the patient or lesion, so test is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import DataError
from suites.tables import (
    Faults,
    TableRow,
    check_disjoint,
    check_unique,
    choice,
    file_in,
    join_units,
    read_table,
    stable_split,
)

SPLITS = ("train", "val", "test")
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
DIAGNOSES = (
    "melanoma",
    "nevus",
    "seborrheic_keratosis",
    "benign_keratosis",  # seborrhoeic and lichen-planus-like keratosis and solar lentigo, pooled (BKL)
    "basal_cell_carcinoma",
    "squamous_cell_carcinoma",
    "actinic_keratosis",
    "dermatofibroma",
    "vascular",
    "unknown",
)
MALIGNANT = ("melanoma", "basal_cell_carcinoma", "squamous_cell_carcinoma", "actinic_keratosis")
CODES = {  # columns of 2018 and 2019, words of HAM10000
    "MEL": "melanoma",
    "NV": "nevus",
    "BCC": "basal_cell_carcinoma",
    "AK": "actinic_keratosis",
    "AKIEC": "actinic_keratosis",
    "BKL": "benign_keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular",
    "SCC": "squamous_cell_carcinoma",
    "UNK": "unknown",
}

# The 2017 challenge holds the same picture under two ids in two splits (byte for byte in the curated copy). The ids
# here are those of train or val that recur in a later split: they are left out, the official test stays whole.
TWINS_2017 = ("ISIC_0012970", "ISIC_0012175", "ISIC_0012221", "ISIC_0012271")


@dataclass(frozen=True)
class Photograph:
    """One image. unit: patient, lesion or image that must stay in one split; where: table and line.

    malignant is None where the table does not say. split is '' where the layout has no official one.
    """

    id: str
    image: Path
    diagnosis: str
    malignant: bool | None
    where: str
    split: str = ""
    unit: str = ""
    lesion_mask: Path | None = None
    patch_mask: Path | None = None
    has_patch: bool = False


Reader = Callable[[Path, Faults], list[Photograph]]


def photograph_id(name: str) -> str:
    """`ISIC_0000001` of `ISIC_0000001_downsampled.jpg` or of the bare name."""
    stem = name.rpartition("/")[2].partition(".")[0]
    return stem.removesuffix("_downsampled")


def find_images(folders: Iterable[Path], faults: Faults) -> dict[str, Path]:
    """Images by id. An id with two files is a fault; superpixel and mask files are none of the images."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".dcm") or "superpixels" in path.name:
                continue
            name = photograph_id(path.name)
            if name in found:
                faults.add(f"{path}: the image {name} has a second file {found[name]}; keep one of them")
            found.setdefault(name, path)
    return found


def _masks(folder: Path, suffix: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {photograph_id(p.name).removesuffix(suffix): p for p in sorted(folder.glob("*.png"))}


def _image_of(row: TableRow, column: str, images: Mapping[str, Path], root: Path, faults: Faults) -> Path | None:
    name = photograph_id(row[column])
    if name not in images:
        faults.add(f"{row.where}, column {column}: there is no image file of '{name}' under {root}; download it again")
        return None
    return images[name]


def _one_hot(row: TableRow, columns: Mapping[str, str], faults: Faults) -> str | None:
    """The diagnosis whose column holds 1; all others must hold 0."""
    try:
        values = {column: float(row[column]) for column in columns if column in row.cells}
    except ValueError:
        values = {}
    hits = [column for column, value in values.items() if value == 1]
    if len(hits) != 1 or any(value not in (0, 1) for value in values.values()):
        faults.add(f"{row.where}: exactly one of {', '.join(columns)} must be 1 and the others 0")
        return None
    return columns[hits[0]]


def _made(name: str, image: Path, diagnosis: str, where: str, **more: object) -> Photograph:
    malignant = None if diagnosis == "unknown" else diagnosis in MALIGNANT
    return Photograph(name, image, diagnosis, malignant, where, **more)  # type: ignore[arg-type]


def _with_splits(found: list[Photograph], keys: Callable[[int], list[str]]) -> list[Photograph]:
    """Units from shared keys (patient, lesion, duplicates), splits from a hash of the unit."""
    units = join_units([p.id for p in found], keys)
    return [replace(p, unit=u, split=stable_split(u, SHARES)) for p, u in zip(found, units, strict=True)]


def _table(root: Path, names: Iterable[str], what: str) -> Path:
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise DataError(f"{root} has no {what} ({' or '.join(names)}); download it into that folder")
    return path


# -- the layouts ------------------------------------------------------------------------------------------------------

_CURATED_COLUMNS = ("file", "isic_id", "label", "diagnosis", "split", "has_patch", "patch_mask", "lesion_mask")


def read_curated(root: Path, faults: Faults) -> list[Photograph]:
    """metadata.csv beside images/, masks/ and patch_masks/ (256 x 256). Rows of split `extra2018` are left out:
    they are centre crops, and crop against squash is a cue of its own.
    """
    rows = read_table(root / "metadata.csv", _CURATED_COLUMNS, faults, optional=("patient_id", "lesion_id", "y"))
    splits = {**{name: name for name in SPLITS}, "extra2018": ""}
    found = []
    for row in rows:
        split = choice(row, "split", splits, faults)
        malignant = choice(row, "label", {"benign": False, "malignant": True}, faults)
        diagnosis = choice(row, "diagnosis", {name: name for name in DIAGNOSES}, faults)
        patch = choice(row, "has_patch", {"0": False, "1": True}, faults)
        image = file_in(row, "file", root, faults)
        lesion_mask, patch_mask = (file_in(row, c, root, faults) for c in ("lesion_mask", "patch_mask"))
        if not row["file"]:
            faults.add(f"{row.where}, column file: the cell is empty; write a path relative to {root}")
        if malignant is not None and diagnosis is not None and malignant != (diagnosis in MALIGNANT):
            faults.add(
                f"{row.where}: the label is '{row['label']}' but the diagnosis '{diagnosis}'; correct one of them"
            )
        if patch is not None and patch != bool(row["patch_mask"]):
            state = "1 but patch_mask is empty" if patch else "0 but there is a patch_mask"
            faults.add(f"{row.where}: has_patch is {state}; correct one of them")
        if image is None or not split or diagnosis is None or malignant is None or patch is None:
            continue
        unit = row["patient_id"] or row["lesion_id"] or row["isic_id"]
        found.append(
            Photograph(
                row["isic_id"], image, diagnosis, malignant, row.where, split, unit, lesion_mask, patch_mask, patch
            )
        )
    check_unique([(row.where, row["isic_id"]) for row in rows], "isic_id", faults)
    check_unique([(row.where, row["file"]) for row in rows], "file", faults)
    return found


def read_2017(root: Path, faults: Faults) -> list[Photograph]:
    """`ISIC-2017_{Training,Validation,Test_v2}_{Data,Part1_GroundTruth,Part3_GroundTruth.csv}`: official splits.

    Neither melanoma nor seborrheic keratosis means nevus. There are no patient ids.
    """
    found = []
    for split, part in zip(SPLITS, ("Training", "Validation", "Test_v2"), strict=True):
        table = _table(root, [f"ISIC-2017_{part}_Part3_GroundTruth.csv"], "ground truth")
        images = find_images([root / f"ISIC-2017_{part}_Data"], faults)
        masks = _masks(root / f"ISIC-2017_{part}_Part1_GroundTruth", "_segmentation")
        columns = ("image_id", "melanoma", "seborrheic_keratosis")
        rows = read_table(table, columns, faults)
        check_unique([(row.where, row["image_id"]) for row in rows], "image_id", faults)
        for row in rows:
            flags = tuple(choice(row, c, _FLAG, faults) for c in columns[1:])
            image = _image_of(row, "image_id", images, root, faults)
            if flags == (True, True):
                faults.add(f"{row.where}: melanoma and seborrheic_keratosis are both 1; one of them must be 0")
            elif image is not None and None not in flags:
                diagnosis = columns[1] if flags[0] else columns[2] if flags[1] else "nevus"
                name = photograph_id(row["image_id"])
                found.append(
                    _made(name, image, diagnosis, row.where, split=split, unit=name, lesion_mask=masks.get(name))
                )
    return found


_FLAG = {"0": False, "1": True, "0.0": False, "1.0": True}


def read_2018(root: Path, faults: Faults) -> list[Photograph]:
    """`ISIC2018_Task3_{Training,Validation,Test}_{Input,GroundTruth}`; official splits where all three are there,
    else the training part is split by lesion (`ISIC2018_Task3_Training_LesionGroupings.csv`, if present).
    """
    columns = {code: CODES[code] for code in ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")}
    masks = _masks(root / "ISIC2018_Task1_Training_GroundTruth", "_segmentation")
    found, parts = [], 0
    for split, part in zip(SPLITS, ("Training", "Validation", "Test"), strict=True):
        stem = f"ISIC2018_Task3_{part}_GroundTruth"
        names = [f"{stem}/{stem}.csv", f"{stem}.csv"]
        if part != "Training" and not any((root / name).is_file() for name in names):
            continue
        parts += 1
        images = find_images([root / f"ISIC2018_Task3_{part}_Input"], faults)
        found += _coded(_table(root, names, "ground truth"), columns, images, root, faults, split, masks)
    if parts == len(SPLITS):
        return [replace(p, unit=p.id) for p in found]
    lesions: dict[str, str] = {}
    groupings = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    if groupings.is_file():
        rows = read_table(groupings, ("image", "lesion_id"), faults)
        lesions = {photograph_id(row["image"]): row["lesion_id"] for row in rows}
    train = [p for p in found if p.split == "train"]
    return _with_splits(train, lambda k: [f"lesion:{lesions[train[k].id]}"] if train[k].id in lesions else [])


def read_2019(root: Path, faults: Faults) -> list[Photograph]:
    """`ISIC_2019_Training_{Input,GroundTruth.csv,Metadata.csv}`, split by lesion_id; the test labels are not public."""
    columns = {code: CODES[code] for code in ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")}
    images = find_images([root / "ISIC_2019_Training_Input", *_below(root / "ISIC_2019_Training_Input")], faults)
    table = _table(root, ["ISIC_2019_Training_GroundTruth.csv"], "ground truth")
    found = _coded(table, columns, images, root, faults, "", {})
    metadata = root / "ISIC_2019_Training_Metadata.csv"
    rows = read_table(metadata, ("image", "lesion_id"), faults) if metadata.is_file() else []
    lesions = {photograph_id(row["image"]): row["lesion_id"] for row in rows if row["lesion_id"]}
    return _with_splits(found, lambda k: [f"lesion:{lesions[found[k].id]}"] if found[k].id in lesions else [])


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/") if path.is_dir()) if folder.is_dir() else []


def _coded(
    table: Path,
    columns: Mapping[str, str],
    images: Mapping[str, Path],
    root: Path,
    faults: Faults,
    split: str,
    masks: Mapping[str, Path],
) -> list[Photograph]:
    """Rows with one column per class, as in 2018 and 2019."""
    found = []
    optional = ("UNK", "score_weight", "validation_weight")
    rows = read_table(table, ("image", *(c for c in columns if c not in optional)), faults, optional=optional)
    check_unique([(row.where, photograph_id(row["image"])) for row in rows], "image", faults)
    for row in rows:
        diagnosis, image = _one_hot(row, columns, faults), _image_of(row, "image", images, root, faults)
        if diagnosis is not None and image is not None:
            name = photograph_id(row["image"])
            found.append(_made(name, image, diagnosis, row.where, split=split, lesion_mask=masks.get(name)))
    return found


def read_ham10000(root: Path, faults: Faults) -> list[Photograph]:
    """`HAM10000_metadata(.csv)` beside `HAM10000_images_part_1/`, `_part_2/` (any case), split by lesion_id."""
    folders = [path for path in _below(root) if path.name.lower().startswith("ham10000_images")]
    images = find_images(folders or [root], faults)
    table = _table(root, ["HAM10000_metadata.csv", "HAM10000_metadata"], "metadata")
    codes = {code.lower(): name for code, name in CODES.items() if code not in ("AK", "SCC", "UNK")}
    rows = read_table(table, ("lesion_id", "image_id", "dx"), faults)
    check_unique([(row.where, row["image_id"]) for row in rows], "image_id", faults)
    found, lesions = [], []
    for row in rows:
        diagnosis, image = choice(row, "dx", codes, faults), _image_of(row, "image_id", images, root, faults)
        if diagnosis is not None and image is not None:
            found.append(_made(photograph_id(row["image_id"]), image, diagnosis, row.where))
            lesions.append(row["lesion_id"])
    return _with_splits(found, lambda k: [f"lesion:{lesions[k]}"] if lesions[k] else [])


_WORDS_2020 = {
    "melanoma": "melanoma",
    "nevus": "nevus",
    "seborrheic keratosis": "seborrheic_keratosis",
    "solar lentigo": "benign_keratosis",
    "lentigo nos": "benign_keratosis",
    "lichenoid keratosis": "benign_keratosis",
}


def read_2020(root: Path, faults: Faults) -> list[Photograph]:
    """`ISIC_2020_Training_GroundTruth(_v2).csv` or Kaggle's `train.csv`, images in `train/` or `jpeg/train/`.

    Split by patient_id; images that the published list of duplicates joins stay together. Diagnoses other than those
    of the common vocabulary are `unknown`; benign or malignant is given for all.
    """
    names = ["ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv"]
    folders = [
        root / name for name in ("train", "jpeg/train", "ISIC_2020_Training_JPEG/train", "ISIC_2020_Training_Input")
    ]
    images = find_images(folders, faults)
    rows = read_table(
        _table(root, names, "ground truth"),
        ("image_name", "patient_id", "diagnosis", "benign_malignant", "target"),
        faults,
        optional=("lesion_id",),
    )
    check_unique([(row.where, row["image_name"]) for row in rows], "image_name", faults)
    twins: dict[str, list[str]] = {}
    duplicates = root / "ISIC_2020_Training_Duplicates.csv"
    if duplicates.is_file():
        for row in read_table(duplicates, ("image_name_1", "image_name_2"), faults):
            for column in ("image_name_1", "image_name_2"):
                twins.setdefault(row[column], []).append(f"twins:{row['image_name_1']}:{row['image_name_2']}")
    found, keys = [], []
    for row in rows:
        malignant = choice(row, "benign_malignant", {"benign": False, "malignant": True}, faults)
        target, image = choice(row, "target", _FLAG, faults), _image_of(row, "image_name", images, root, faults)
        if malignant is not None and target is not None and malignant != target:
            faults.add(f"{row.where}: target is {row['target']} but benign_malignant '{row['benign_malignant']}'")
        if malignant is not None and target is not None and image is not None:
            diagnosis = _WORDS_2020.get(row["diagnosis"].lower(), "unknown")
            name = photograph_id(row["image_name"])
            found.append(replace(_made(name, image, diagnosis, row.where), malignant=malignant))
            named = [f"{what}:{row[f'{what}_id']}" for what in ("patient", "lesion") if row[f"{what}_id"]]
            keys.append([*named, *twins.get(row["image_name"], [])])
    return _with_splits(found, lambda k: keys[k])


_CLI_WORDS = {
    "nevus": "nevus",
    "seborrheic keratosis": "seborrheic_keratosis",
    "basal cell carcinoma": "basal_cell_carcinoma",
    "squamous cell carcinoma": "squamous_cell_carcinoma",
    "actinic keratosis": "actinic_keratosis",
    "solar or actinic keratosis": "actinic_keratosis",
    "dermatofibroma": "dermatofibroma",
    "solar lentigo": "benign_keratosis",
    "lichen planus like keratosis": "benign_keratosis",
    "pigmented benign keratosis": "benign_keratosis",
}


def read_isic_cli(root: Path, faults: Faults) -> list[Photograph]:
    """What `isic image download DIR` writes: `DIR/metadata.csv` and `DIR/ISIC_*.jpg`.

    Accepts `diagnosis_1` (Benign, Malignant, Indeterminate) to `diagnosis_5`, and the older `benign_malignant` and
    `diagnosis`. Images that are neither benign nor malignant are left out. Split by patient and lesion.
    """
    rows = read_table(root / "metadata.csv", ("isic_id",), faults, optional=("patient_id", "lesion_id"))
    if rows and not {"diagnosis_1", "benign_malignant"} & set(rows[0].cells):
        faults.add(f"{root / 'metadata.csv'}: there is neither a column 'diagnosis_1' nor 'benign_malignant'")
    images = find_images([root, root / "images"], faults)
    check_unique([(row.where, row["isic_id"]) for row in rows], "isic_id", faults)
    verdicts = {"benign": False, "malignant": True}
    neither = {"indeterminate", "indeterminate/benign", "indeterminate/malignant", ""}
    found, keys = [], []
    for row in rows:
        verdict = (row["diagnosis_1"] or row["benign_malignant"]).lower()
        if verdict in neither:
            continue
        if verdict not in verdicts:
            faults.add(f"{row.where}: '{verdict}' is neither benign, malignant nor indeterminate; correct the cell")
            continue
        image = _image_of(row, "isic_id", images, root, faults)
        if image is not None:
            words = [row[f"diagnosis_{k}"].lower() for k in range(5, 1, -1)] + [row["diagnosis"].lower()]
            found.append(
                replace(_made(row["isic_id"], image, _common_word(words), row.where), malignant=verdicts[verdict])
            )
            keys.append([f"{what}:{row[f'{what}_id']}" for what in ("patient", "lesion") if row[f"{what}_id"]])
    return _with_splits(found, lambda k: keys[k])


def _common_word(words: Iterable[str]) -> str:
    """The vocabulary's word for the finest diagnosis that names one; melanoma in all its forms is one diagnosis."""
    for word in words:
        first = word.partition(",")[0].strip()
        if first.startswith("melanoma") and "metastasis" not in word:
            return "melanoma"
        if first in _CLI_WORDS:
            return _CLI_WORDS[first]
    return "unknown"


READERS: dict[str, Reader] = {
    "curated": read_curated,
    "2017": read_2017,
    "2018": read_2018,
    "2019": read_2019,
    "2020": read_2020,
    "ham10000": read_ham10000,
    "isic-cli": read_isic_cli,
}
TABLES = {  # globs of the tables that a layout reads
    "curated": ("metadata.csv",),
    "2017": ("ISIC-2017_*_Part3_GroundTruth.csv",),
    "2018": ("ISIC2018_Task3_*.csv", "ISIC2018_Task3_*_GroundTruth/*.csv"),
    "2019": ("ISIC_2019_Training_*.csv",),
    "2020": ("ISIC_2020_Training_*.csv", "train.csv"),
    "ham10000": ("HAM10000_metadata*",),
    "isic-cli": ("metadata.csv",),
}


def read_layout(root: Path, layout: str, faults: Faults) -> list[Photograph]:
    """All photographs of a layout that can be used; what is wrong is noted in `faults`.

    Raises:
        DataError: a table is missing or cannot be read.
    """
    found = READERS[layout](root, faults)
    if layout in ("curated", "2017"):
        twins = [p.id for p in found if p.id in TWINS_2017]
        found = [p for p in found if p.id not in TWINS_2017]
        if twins:
            faults.notes.append(f"left out {len(twins)} images that recur in a later split: {', '.join(twins)}")
    check_disjoint([(p.where, p.unit, p.split) for p in found], "patient or lesion", faults)
    return found


def with_patches(found: list[Photograph], folder: Path, faults: Faults) -> list[Photograph]:
    """Patch masks from a folder: a file named after an image, white on its patch; an image without file has none.

    The masks of CDEP (`segmentation/`) and those of the curated copy (`patch_masks/`) can be used with any layout whose
    frames are whole: a mask covers the frame of its image, whatever its own size.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} of patch masks; correct patches=")
    masks = {
        photograph_id(p.name): p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".png", ".jpg", ".jpeg")
    }
    if found and not any(p.id in masks for p in found):
        faults.add(f"{folder}: no file is named after an image of the data set (for example {found[0].id}.png)")
    return [replace(p, patch_mask=masks.get(p.id), has_patch=p.id in masks) for p in found]
