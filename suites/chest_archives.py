"""Large chest X-ray archives in their official layouts: NIH ChestX-ray14, CheXpert, MIMIC-CXR-JPG, RSNA.

Every reader answers one question: is this finding present (label `present`) or not (`absent`)? Only frontal films are
used. Readers look for files by name, never open one; of a large set at most `limit` films per class and split are kept,
chosen by a hash of the film, so the choice is the same for every seed and machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.errors import DataError
from suites.markers import Box
from suites.radiographs import SPLITS, Radiograph
from suites.tables import SHOWN, Faults, TableRow, check_unique, choice, read_table, stable_split

Uncertain = Literal["drop", "positive", "negative"]
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}  # where a set has no official splits
VAL_OF_TRAIN = {"val": 0.125, "train": 0.875}  # where it has only train and test
NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
CHEXPERT_FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
TARGETS = {"nih": NIH_FINDINGS, "chexpert": CHEXPERT_FINDINGS, "mimic": CHEXPERT_FINDINGS, "rsna": ("Pneumonia",)}


@dataclass(frozen=True)
class Question:
    """What is asked of an archive.

    target: the finding. uncertain: what -1 of CheXpert and MIMIC counts as (a blank cell, not mentioned, is negative).
    limit: films per class and split that are kept (0: all). partial: films whose file is not there are left out and
    counted, instead of a fault.
    """

    target: str
    uncertain: Uncertain = "drop"
    limit: int = 2000
    partial: bool = False


Reader = Callable[[Path, Question, Faults], list[Radiograph]]


def _finish(
    found: Iterable[Radiograph], question: Question, faults: Faults, exists: Callable[[Path], bool] = Path.is_file
) -> list[Radiograph]:
    """Films that are kept: those with a file, at most `limit` per class and split."""
    films = list(found)
    absent = [film for film in films if not exists(film.image)]
    if absent:
        named = ", ".join(str(film.image) for film in absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        what = f"{len(absent)} of {len(films)} films have no file ({named})"
        if question.partial:
            faults.notes.append(f"left out: {what}")
        else:
            faults.add(f"{what}; download the archives that hold them, or set partial=true to go without them")
        gone = {film.image for film in absent}
        films = [film for film in films if film.image not in gone]
    return _limited(films, question.limit)


def _limited(films: list[Radiograph], limit: int) -> list[Radiograph]:
    """At most `limit` films of each class in each split, those with the smallest hash of patient and id."""
    if not limit:
        return films
    ranked = sorted(films, key=lambda film: _hash(f"{film.patient}/{film.id}"))
    taken: dict[tuple[str, str], int] = {}
    kept = set()
    for film in ranked:
        cell = (film.split, film.label)
        taken[cell] = taken.get(cell, 0) + 1
        if taken[cell] <= limit:
            kept.add(film.id)
    return [film for film in films if film.id in kept]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _found(root: Path, names: Iterable[str], what: str) -> Path:
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise DataError(f"{root} has no {what} ({' or '.join(names)}); download it into that folder")
    return path


# -- NIH ChestX-ray14 -------------------------------------------------------------------------------------------------

NIH_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
NIH_PIXELS = (1024, 1024)  # of all images; the expert boxes refer to it


def read_nih(root: Path, question: Question, faults: Faults) -> list[Radiograph]:
    """`Data_Entry_2017(_v2020).csv`, `images/*.png` or `images_001/images/*.png`.., the two split lists.

    Without the lists, patients are split by hash. `BBox_List_2017.csv`, where present, gives boxes of the finding.
    """
    rows = read_table(
        _found(root, NIH_TABLES, "table of labels"), ("Image Index", "Finding Labels", "Patient ID"), faults
    )
    check_unique([(row.where, row["Image Index"]) for row in rows], "Image Index", faults)
    places = _nih_images(root)
    splits, boxes = _nih_splits(root, faults), _nih_boxes(root, question.target, faults)
    known, films = {"No Finding", *NIH_FINDINGS}, []
    for row in rows:
        name, labels = row["Image Index"], set(row["Finding Labels"].split("|"))
        patient = row["Patient ID"]
        wrong = labels - known
        if wrong or not labels:
            faults.add(
                f"{row.where}, column Finding Labels: '{', '.join(sorted(wrong))}' is no finding of this set; "
                f"write No Finding or findings joined by |"
            )
        elif not patient:
            faults.add(f"{row.where}, column Patient ID: the cell is empty; fill it in, or drop the row")
        else:
            films.append(
                Radiograph(
                    id=name.partition(".")[0],
                    image=places.get(name, root / "images" / name),
                    label="present" if question.target in labels else "absent",
                    where=row.where,
                    split=_nih_split(name, patient, splits),
                    patient=patient.zfill(8),
                    kind=row["View Position"],
                    frame=NIH_PIXELS if name in boxes else None,
                    findings=boxes.get(name, ()),
                    metadata={"findings": row["Finding Labels"], "view": row["View Position"]},
                )
            )
    return _finish(films, question, faults, lambda path: path.name in places)


def _nih_images(root: Path) -> dict[str, Path]:
    """Every image by name; listing folders is faster than asking for 112,120 files."""
    folders = [root / "images", *sorted(root.glob("images_[0-9]*/images")), *sorted(root.glob("images_[0-9]*"))]
    return {path.name: path for folder in folders if folder.is_dir() for path in folder.glob("*.png")}


def _nih_splits(root: Path, faults: Faults) -> dict[str, str] | None:
    lists = {"train": root / "train_val_list.txt", "test": root / "test_list.txt"}
    if not any(path.is_file() for path in lists.values()):
        faults.notes.append("train_val_list.txt and test_list.txt are not there: patients are split by a hash")
        return None
    held: dict[str, str] = {}
    for split, path in lists.items():
        if not path.is_file():
            raise DataError(f"{root} has no {path.name}, the list beside it is there; download both, or remove both")
        for line, name in enumerate(path.read_text(encoding="utf-8").split(), 1):
            if held.setdefault(name, split) != split:
                faults.add(f"{path}, line {line}: {name} is in both lists; remove it from one of them")
    return held


def _nih_split(name: str, patient: str, lists: Mapping[str, str] | None) -> str:
    if lists is None:
        return stable_split(patient.zfill(8), SHARES)
    # an image in neither list goes with the training part: test stays what was published
    return "test" if lists.get(name) == "test" else stable_split(patient.zfill(8), VAL_OF_TRAIN)


def _nih_boxes(root: Path, target: str, faults: Faults) -> dict[str, tuple[Box, ...]]:
    """The header is `Image Index,Finding Label,Bbox [x,y,w,h],,,`: its brackets hold commas."""
    path = root / "BBox_List_2017.csv"
    held: dict[str, tuple[Box, ...]] = {}
    if not path.is_file():
        return held
    names = {"Infiltration": "Infiltrate"}
    for row in read_table(path, ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"), faults):
        if row["Finding Label"] == names.get(target, target):
            try:
                box = Box(*(float(row[column]) for column in ("Bbox [x", "y", "w", "h]")))
            except ValueError:
                faults.add(f"{row.where}: the box must be four numbers; correct the row")
                continue
            held[row["Image Index"]] = (*held.get(row["Image Index"], ()), box)
    return held


def with_drains(films: list[Radiograph], path: Path, faults: Faults) -> list[Radiograph]:
    """Films that the table of chest drains names, with `drain` (0 or 1) in their metadata and the table's label.

    The table (`nih_drain_meta.csv`: img_name, Pneumothorax, drain_annotated, Drain, split) shares images, not patients,
    out to its own splits; those are not used.
    """
    flag = {"0": "0", "1": "1", "0.0": "0", "1.0": "1"}
    rows = read_table(path, ("img_name", "Pneumothorax", "Drain"), faults)
    check_unique([(row.where, row["img_name"]) for row in rows], "img_name", faults)
    held: dict[str, tuple[str, str]] = {}
    for row in rows:
        sick, drain = choice(row, "Pneumothorax", flag, faults), choice(row, "Drain", flag, faults)
        if sick is not None and drain is not None:
            held[row["img_name"].partition(".")[0]] = (sick, drain)
    found, differ = [], 0
    for film in films:
        if film.id in held:
            sick, drain = held[film.id]
            label = "present" if sick == "1" else "absent"
            differ += label != film.label
            found.append(replace(film, label=label, kind=drain, metadata={**film.metadata, "drain": drain}))
    if differ:
        faults.notes.append(f"{differ} films have another label in {path.name} than in the table of findings: its own")
    if found and len(found) < len(held):
        faults.notes.append(f"left out {len(held) - len(found)} films of {path.name} that are not in the data set")
    if not found:
        faults.add(f"{path}: none of its {len(rows)} films is in the data set; correct drains= or root=")
    return found


# -- CheXpert and MIMIC-CXR-JPG ---------------------------------------------------------------------------------------

_STATES = {"": 0, "0.0": 0, "0": 0, "1.0": 1, "1": 1, "-1.0": -1, "-1": -1}


def _present(row: TableRow, question: Question, faults: Faults) -> bool | None:
    """Whether the target is present; None where the policy leaves an uncertain film out, and with a fault."""
    state = choice(row, question.target, _STATES, faults)
    if state == -1:
        return {"drop": None, "positive": True, "negative": False}[question.uncertain]
    return None if state is None else bool(state)


def read_chexpert(root: Path, question: Question, faults: Faults) -> list[Radiograph]:
    """`[CheXpert-v1.0(-small)/]train.csv`, `valid.csv` and `{train,valid}/patientN/studyN/viewN_frontal.jpg`.

    Paths begin with the name of the data set's folder, which is cut off: the folder may have another name here. The
    official validation patients are val; those of train are split by hash. Lateral films are left out.
    """
    base = root
    if not (root / "train.csv").is_file():
        base = next((path.parent for path in sorted(root.glob("CheXpert*/train.csv"))), root)
    films = []
    for part in ("train", "valid"):
        table = _found(base, [f"{part}.csv"], "table of labels")
        rows = read_table(table, ("Path", "Frontal/Lateral", question.target), faults, optional=CHEXPERT_FINDINGS)
        check_unique([(row.where, row["Path"]) for row in rows], "Path", faults)
        for row in rows:
            view = choice(row, "Frontal/Lateral", {"Frontal": True, "Lateral": False}, faults)
            below = row["Path"].partition("/")[2]  # without the first folder
            pieces = below.split("/")
            if len(pieces) != 4 or not pieces[1].startswith("patient") or ".." in pieces:
                faults.add(
                    f"{row.where}, column Path: '{row['Path']}' is not FOLDER/{part}/patientN/studyN/viewN_frontal.jpg;"
                    f" copy the row from the original table"
                )
                continue
            present = _present(row, question, faults) if view else None
            if present is not None:
                split = "val" if part == "valid" else stable_split(pieces[1], SHARES)
                more = {"view": row["AP/PA"], "age": row["Age"], "sex": row["Sex"]}
                label = "present" if present else "absent"
                film = Radiograph(below, base / below, label, row.where, split, pieces[1], row["AP/PA"], metadata=more)
                films.append(film)
    return _finish(films, question, faults)


def read_mimic(root: Path, question: Question, faults: Faults) -> list[Radiograph]:
    """`mimic-cxr-2.0.0-{metadata,chexpert,split}.csv(.gz)` and `files/pNN/pSUBJECT/sSTUDY/DICOM.jpg`, official splits.

    Labels are those of the CheXpert labeller (negbio's where that file is not there), one row a study. Views PA and AP
    are frontal. Films of studies without a row of labels are left out, and counted.
    """
    tables = {name: _mimic_table(root, name) for name in ("metadata", "split")}
    try:
        labels = _mimic_table(root, "chexpert")
    except DataError:
        labels = _mimic_table(root, "negbio")
    stated: dict[str, bool | None] = {}
    for row in read_table(labels, ("study_id", question.target), faults, optional=CHEXPERT_FINDINGS):
        stated[row["study_id"]] = _present(row, question, faults)
    words = {"train": "train", "validate": "val", "test": "test"}
    splits: dict[str, str | None] = {}
    for row in read_table(tables["split"], ("dicom_id", "split"), faults, optional=("study_id", "subject_id")):
        splits[row["dicom_id"]] = choice(row, "split", words, faults)
    films, silent = [], 0
    rows = read_table(tables["metadata"], ("dicom_id", "subject_id", "study_id", "ViewPosition"), faults)
    check_unique([(row.where, row["dicom_id"]) for row in rows], "dicom_id", faults)
    for row in rows:
        film, study, subject = row["dicom_id"], row["study_id"], row["subject_id"]
        if row["ViewPosition"] not in ("PA", "AP"):
            continue
        if study not in stated:
            silent += 1
            continue
        if film not in splits:
            faults.add(
                f"{row.where}: the film '{film}' has no row in {tables['split'].name}; download that table again"
            )
            continue
        present, split = stated[study], splits[film]
        if present is not None and split is not None:
            path = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{film}.jpg"
            label, view = "present" if present else "absent", row["ViewPosition"]
            films.append(Radiograph(film, path, label, row.where, split, subject, view, metadata={"view": view}))
    if silent:
        faults.notes.append(f"left out {silent} films whose study has no row of labels")
    return _finish(films, question, faults)


def _mimic_table(root: Path, name: str) -> Path:
    stem = f"mimic-cxr-2.0.0-{name}.csv"
    return _found(root, [f"{stem}.gz", stem], f"table of {name}")


# -- RSNA -------------------------------------------------------------------------------------------------------------

RSNA_PIXELS = (1024, 1024)
RSNA_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"


def read_rsna(root: Path, question: Question, faults: Faults) -> list[Radiograph]:
    """`stage_2_train_labels.csv` and `stage_2_train_images/*.dcm`; a film with several boxes has several rows.

    `patientId` names a film: the people are known only through the published mapping to the NIH set (RSNA_MAPPING,
    looked for beside the tables). Without it a person's films may lie in several splits, and a note says so.
    """
    columns = ("patientId", "x", "y", "width", "height", "Target")
    rows = read_table(_found(root, ["stage_2_train_labels.csv"], "table of labels"), columns, faults)
    classes = root / "stage_2_detailed_class_info.csv"
    detail: dict[str, str] = {}
    if classes.is_file():
        detail = {row["patientId"]: row["class"] for row in read_table(classes, ("patientId", "class"), faults)}
    people = _rsna_people(root, faults)
    targets: dict[str, bool] = {}
    where: dict[str, str] = {}
    boxes: dict[str, tuple[Box, ...]] = {}
    for row in rows:
        name, target = row["patientId"], choice(row, "Target", {"0": False, "1": True}, faults)
        if target is None:
            continue
        if targets.setdefault(name, target) != target:
            faults.add(f"{row.where}: the film '{name}' has Target {int(target)} here and another value above")
        where.setdefault(name, row.where)
        if target:
            try:
                box = Box(*(float(row[column]) for column in columns[1:5]))
            except ValueError:
                faults.add(f"{row.where}: Target is 1 but x, y, width and height are not four numbers; correct the row")
                continue
            boxes[name] = (*boxes.get(name, ()), box)
    films = []
    for name, target in targets.items():
        patient = people.get(name, name)
        films.append(
            Radiograph(
                id=name,
                image=root / "stage_2_train_images" / f"{name}.dcm",
                label="present" if target else "absent",
                where=where[name],
                split=stable_split(patient, SHARES),
                patient=patient,
                frame=RSNA_PIXELS if name in boxes else None,
                findings=boxes.get(name, ()),
                metadata={"class": detail.get(name, "")},
            )
        )
    return _finish(films, question, faults)


def _rsna_people(root: Path, faults: Faults) -> dict[str, str]:
    """Film -> NIH patient."""
    path = root / RSNA_MAPPING
    if not path.is_file():
        faults.notes.append(f"{RSNA_MAPPING} is not there: films of one person may lie in several splits")
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["subset_img_id"]: str(entry["img_id"]).partition("_")[0] for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the published list of subset_img_id and img_id; download it again") from error


READERS: dict[str, Reader] = {
    "nih": read_nih,
    "chexpert": read_chexpert,
    "mimic": read_mimic,
    "rsna": read_rsna,
}
TABLES = {  # globs of the tables that a layout reads
    "nih": ("Data_Entry_2017*.csv", "BBox_List_2017.csv", "train_val_list.txt", "test_list.txt"),
    "chexpert": ("train.csv", "valid.csv", "CheXpert*/train.csv", "CheXpert*/valid.csv"),
    "mimic": ("mimic-cxr-2.0.0-*.csv*",),
    "rsna": ("stage_2_*.csv", RSNA_MAPPING),
}
assert set(TARGETS) == set(READERS) == set(TABLES)
__all__ = ["READERS", "SPLITS", "TABLES", "TARGETS", "Question", "Uncertain", "with_drains"]
