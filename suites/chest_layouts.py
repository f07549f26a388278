"""Small chest X-ray sets as they lie on disk: the curated `cxr` folder, and Kermany's official `chest_xray` folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.errors import DataError
from suites.markers import Box
from suites.radiographs import SPLITS, Radiograph
from suites.tables import Faults, TableRow, check_unique, choice, file_in, read_table, stable_split

COLUMNS = ("file", "dataset", "label", "y", "findings", "patient", "split", "has_marker", "marker_style")
BOX = ("marker_x", "marker_y", "marker_w", "marker_h")
FRAME = ("width", "height")
KERMANY = {"No Finding": "normal", "Bacterial pneumonia": "bacterial", "Viral pneumonia": "viral"}
STYLES = ("bold_sans", "medium_sans", "serif", "cut_top", "none")
DATASETS = ("kermany", "kermany_test224", "nih", "hannover")


def read_curated_kermany(root: Path, faults: Faults) -> list[Radiograph]:
    """Rows `kermany` of `metadata.csv`: labels normal, bacterial, viral, with the boxes of the burned-in R."""
    found = []
    for row in _rows(root, "kermany", faults):
        label = choice(row, "findings", KERMANY, faults)
        style = choice(row, "marker_style", {name: name for name in STYLES}, faults)
        marked = choice(row, "has_marker", {"0": False, "1": True}, faults)
        film = _film(row, root, faults)
        frame = _numbers(row, FRAME, faults)
        marker = _marker(row, marked, frame, faults)
        _agrees(row, None if label is None else label != "normal", faults)
        if marked is not None and style is not None and marked == (style == "none"):
            faults.add(f"{row.where}: has_marker is {int(marked)} but marker_style '{style}'; correct one of them")
        if film is None or label is None or style is None or frame is None or (marked and marker is None):
            continue
        image, split = film
        more = {"marker_style": style, "findings": row["findings"], "view": row["view"]}
        found.append(
            Radiograph(
                id=image.name.partition(".")[0],
                image=image,
                label=label,
                where=row.where,
                split=split,
                patient=row["patient"],
                kind=style == "bold_sans",
                frame=(int(frame[0]), int(frame[1])),
                marker=marker,
                metadata=more,
            )
        )
    return found


def read_curated_nih(root: Path, faults: Faults) -> list[Radiograph]:
    """Rows `nih` of `metadata.csv`: labels absent (No Finding) and present (Pneumonia), with the experts' boxes.

    Its boxes (`nih_bbox.csv`) are in the pixels of these files. Side markers of these films are not annotated.
    """
    boxes = _boxes(root / "nih_bbox.csv", "Pneumonia", faults)
    found = []
    for row in _rows(root, "nih", faults):
        findings = set(row["findings"].split("|"))
        film, frame = _film(row, root, faults), _numbers(row, FRAME, faults)
        if not row["findings"]:
            faults.add(f"{row.where}, column findings: the cell is empty; write No Finding or the findings")
        elif film is not None and frame is not None:
            _agrees(row, "Pneumonia" in findings, faults)
            image, split = film
            found.append(
                Radiograph(
                    id=image.name.partition(".")[0],
                    image=image,
                    label="present" if "Pneumonia" in findings else "absent",
                    where=row.where,
                    split=split,
                    patient=row["patient"],
                    kind=row["view"],
                    frame=(int(frame[0]), int(frame[1])),
                    findings=boxes.get(row["file"], ()),
                    metadata={name: row[name] for name in ("findings", "view", "age", "sex")},
                )
            )
    return found


def _rows(root: Path, dataset: str, faults: Faults) -> list[TableRow]:
    """The rows of one data set; a row that names none of the four belongs to nobody and is a fault."""
    rows = read_table(root / "metadata.csv", (*COLUMNS, *BOX, *FRAME), faults)
    known = {name: name for name in DATASETS}
    mine = [row for row in rows if choice(row, "dataset", known, faults) == dataset]
    if not mine and not faults.found:
        raise DataError(f"{root / 'metadata.csv'} has no row of the data set '{dataset}'; copy or download it again")
    check_unique([(row.where, row["file"]) for row in mine], "file", faults)
    return mine


def _film(row: TableRow, root: Path, faults: Faults) -> tuple[Path, str] | None:
    split, image = choice(row, "split", {name: name for name in SPLITS}, faults), file_in(row, "file", root, faults)
    for column in ("file", "patient"):
        if column in row.cells and not row[column]:
            faults.add(f"{row.where}, column {column}: the cell is empty; fill it in, or drop the row")
    return None if split is None or image is None or not row["patient"] else (image, split)


def _agrees(row: TableRow, sick: bool | None, faults: Faults) -> None:
    """label and y must say what the findings say."""
    label = choice(row, "label", {"normal": False, "pneumonia": True}, faults)
    y = choice(row, "y", {"0": False, "1": True}, faults)
    if None not in (sick, label, y) and not sick == label == y:
        faults.add(
            f"{row.where}: the findings are '{row['findings']}' but label is '{row['label']}' and y {row['y']}; "
            f"correct what is wrong"
        )


def _numbers(row: TableRow, columns: tuple[str, ...], faults: Faults) -> tuple[float, ...] | None:
    if any(column not in row.cells for column in columns):
        return None
    try:
        return tuple(float(row[column]) for column in columns)
    except ValueError:
        cells = ", ".join(f"{column}={row[column]!r}" for column in columns)
        faults.add(f"{row.where}: {cells} must be numbers (pixels of the file)")
        return None


def _marker(row: TableRow, marked: bool | None, frame: tuple[float, ...] | None, faults: Faults) -> Box | None:
    if not marked:
        return None
    values = _numbers(row, BOX, faults)
    if values is None or frame is None:
        return None
    box = Box(*values)
    if box.w <= 0 or box.h <= 0 or box.x < 0 or box.y < 0 or box.x + box.w > frame[0] or box.y + box.h > frame[1]:
        faults.add(
            f"{row.where}: the marker's box ({box.x:g}, {box.y:g}, {box.w:g}, {box.h:g}) leaves its film of "
            f"{frame[0]:g} x {frame[1]:g} pixels; correct the cells marker_x to marker_h"
        )
        return None
    return box


def _boxes(path: Path, finding: str, faults: Faults) -> dict[str, tuple[Box, ...]]:
    """Boxes of one finding, by file."""
    held: dict[str, tuple[Box, ...]] = {}
    for row in read_table(path, ("file", "finding", "x", "y", "w", "h"), faults):
        values = _numbers(row, ("x", "y", "w", "h"), faults)
        if values is not None and row["finding"] == finding:
            held[row["file"]] = (*held.get(row["file"], ()), Box(*values))
    return held


# -- Kermany's own folder ---------------------------------------------------------------------------------------------

_PNEUMONIA = re.compile(r"person(\d+)_(bacteria|virus)_\d+")
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)*")
VAL_SHARE = 0.15  # of the training patients: the official val holds eight films of each class


def read_kermany(root: Path, faults: Faults, boxes: Path | None = None) -> list[Radiograph]:
    """`[chest_xray/]{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`: labels from folder and file name.

    The official test stays test. The official val joins train, and VAL_SHARE of the patients of both are val, by a
    hash of the patient. A patient is `personN` or `IM-N`; numbers of test count anew (no pair of number and germ is in
    both parts of the set, although 83 of 202 numbers are).

    Args:
        boxes: a table with the columns file, has_marker, marker_x.. marker_h, width, height (the curated
            `metadata.csv`): which film has a marker where. Markers of other films stay, and are counted.
    """
    base = root / "chest_xray" if (root / "chest_xray" / "train").is_dir() else root
    missing = [f"{s}/{c}" for s in SPLITS for c in ("NORMAL", "PNEUMONIA") if not (base / s / c).is_dir()]
    if missing:
        raise DataError(f"{base} has no folder {', '.join(missing)}; unpack the whole archive, or correct root=")
    markers = _marker_table(boxes, faults) if boxes is not None else {}
    found, unknown = [], 0
    for part in SPLITS:
        for kind, pattern in (("NORMAL", _NORMAL), ("PNEUMONIA", _PNEUMONIA)):
            for path in sorted((base / part / kind).iterdir()):
                if path.name.startswith("."):  # .DS_Store
                    continue
                match = pattern.fullmatch(path.stem)
                if match is None or path.suffix.lower() not in (".jpeg", ".jpg", ".png"):
                    faults.add(f"{path}: the name says neither patient nor germ; put the official file back")
                    continue
                film = _official(path, part, kind, match)
                unknown += path.stem not in markers
                found.append(_with_marker(film, *markers[path.stem]) if path.stem in markers else film)
    check_unique([(film.where, film.id) for film in found], "film", faults)
    if unknown:
        faults.notes.append(f"the burned-in markers of {unknown} films are not known and stay (boxes=)")
    return found


def _official(path: Path, part: str, kind: str, match: re.Match[str]) -> Radiograph:
    number = match.group(1) if kind == "NORMAL" else f"person{match.group(1)}"
    label = "normal" if kind == "NORMAL" else {"bacteria": "bacterial", "virus": "viral"}[match.group(2)]
    patient = f"test {number}" if part == "test" else number
    split = part if part == "test" else stable_split(number, {"val": VAL_SHARE, "train": 1 - VAL_SHARE})
    return Radiograph(path.stem, path, label, str(path), split, patient)


def _with_marker(film: Radiograph, frame: tuple[int, int], marker: Box | None, style: str) -> Radiograph:
    """The box is known in another size of the same film: the frame there is what the box refers to."""
    more = {**film.metadata, "marker_style": style}
    return replace(film, frame=frame, marker=marker, kind=style == "bold_sans", metadata=more)


def _marker_table(path: Path, faults: Faults) -> Mapping[str, tuple[tuple[int, int], Box | None, str]]:
    held = {}
    for row in read_table(path, ("file", "has_marker", "marker_style", *BOX, *FRAME), faults):
        if row["has_marker"] not in ("0", "1"):  # not annotated
            continue
        frame = _numbers(row, FRAME, faults)
        marker = _marker(row, row["has_marker"] == "1", frame, faults)
        if frame is not None:
            style = row["marker_style"]
            held[Path(row["file"]).stem] = ((int(frame[0]), int(frame[1])), marker, style)
    return held
