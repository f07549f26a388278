"""Fabricated radiographs: a grey gradient with dark lungs, a bright burned-in block as marker; folders as on disk."""

import csv
import gzip
import io
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from suites.image_cache import prepare, render
from suites.radiographs import RadiographSuite

WIDE, HIGH = 64, 48
COLUMNS = (
    *("file", "dataset", "label", "y", "findings", "view", "patient", "age", "sex", "split", "has_marker"),
    *("marker_text", "marker_style", "marker_x", "marker_y", "marker_w", "marker_h", "width", "height"),
)
MARKER = (6.0, 5.0, 5.0, 6.0)  # left, top, width, height of every burned-in marker
INK = 250
KERMANY_COUNTS = {  # split -> (normal bold, normal none, bacterial bold, bacterial serif, viral none, viral serif)
    "train": (16, 4, 8, 32, 12, 12),
    "val": (8, 2, 4, 12, 8, 8),
    "test": (8, 2, 4, 12, 8, 8),
}
KINDS = (
    ("normal", "No Finding", "bold_sans"),
    ("normal", "No Finding", "none"),
    ("pneumonia", "Bacterial pneumonia", "bold_sans"),
    ("pneumonia", "Bacterial pneumonia", "serif"),
    ("pneumonia", "Viral pneumonia", "none"),
    ("pneumonia", "Viral pneumonia", "serif"),
)


def film(number: int, marked: bool, wide: int = WIDE, high: int = HIGH) -> np.ndarray:
    """A film, uint8 [high, wide], other for other numbers; no pixel outside the marker is brighter than 200."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:high, :wide]
    pixels = 60 + 60 * columns / wide + 30 * rows / high + rng.integers(-3, 4, (high, wide))
    for side in (0.32, 0.68):
        pixels[((rows / high - 0.55) / 0.3) ** 2 + ((columns / wide - side) / 0.12) ** 2 < 1] -= 40
    if marked:
        x, y, w, h = (round(v) for v in MARKER)
        pixels[y : y + h, x : x + w] = INK
    return pixels.clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix != ".png" else {}))


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([list(columns), *map(list, rows)])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read_rows(root: Path) -> list[dict[str, str]]:
    with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(root: Path, rows: list[dict[str, str]]) -> None:
    write_table(root / "metadata.csv", rows[0], [row.values() for row in rows])


def curated_cxr(root: Path) -> Path:
    """The curated cxr folder: 168 Kermany films (two per patient), 64 NIH films, one row each of the other sets.

    Films are PNG, where the real ones are JPEG, so that pixels are known exactly.
    """
    rows: list[dict[str, Any]] = []

    def add(**cells: Any) -> None:
        rows.append(dict.fromkeys(COLUMNS, "") | {k: str(v) for k, v in cells.items()})

    for split, numbers in KERMANY_COUNTS.items():
        for (label, findings, style), number in zip(KINDS, numbers, strict=True):
            for j in range(number):
                k, marked = len(rows), style != "none"
                name = f"kermany/film{k:03d}.png"
                save(root / name, film(k, marked))
                box = zip(("marker_x", "marker_y", "marker_w", "marker_h"), MARKER, strict=True) if marked else ()
                words = {"label": label, "y": int(label == "pneumonia"), "findings": findings, "view": "AP"}
                place = {"patient": f"P{k - j % 2:03d}", "split": split, "width": WIDE, "height": HIGH}
                marks = {"has_marker": int(marked), "marker_style": style, **dict(box)}
                add(file=name, dataset="kermany", **words, **place, **marks)
    boxes = []
    for split, number in (("train", 32), ("val", 16), ("test", 16)):
        for j in range(number):
            k, sick = len(rows), j % 2
            name = f"nih/0000{k:04d}_000.png"
            save(root / name, film(k, False, 64, 64))
            findings, view = "Effusion|Pneumonia" if sick else "No Finding", ("AP", "PA")[j // 2 % 2]
            words = {"label": "pneumonia" if sick else "normal", "y": sick, "findings": findings, "view": view}
            add(file=name, dataset="nih", **words, patient=f"nih_{k}", split=split, width=64, height=64)
            boxes.append((name, "Pneumonia" if sick else "Mass", 20, 20, 12, 16))
    for dataset in ("kermany_test224", "hannover"):
        add(file=f"{dataset}/x.jpg", dataset=dataset, label="other", split="extra")  # rows of others are not looked at
    write_table(root / "nih_bbox.csv", ("file", "finding", "x", "y", "w", "h"), boxes)
    write_rows(root, rows)
    return root


def kermany_official(root: Path) -> Path:
    """`chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}`: 40 children in train, 1 + 2 in val, 8 + 8 in test."""
    base, k = root / "chest_xray", 0
    for part, number in (("train", 40), ("val", 2), ("test", 16)):
        for j in range(number):
            germ = ("bacteria", "virus")[j % 2]
            start = 1 if part != "val" else 900
            save(base / part / "PNEUMONIA" / f"person{start + j // 2}_{germ}_{k}.jpeg", film(k, True))
            name = f"IM-{k:04d}-0001.jpeg" if j % 3 else f"NORMAL2-IM-{k:04d}-0001-0002.jpeg"
            save(base / part / "NORMAL" / name, film(k + 1, True))
            k += 2
        (base / part / "NORMAL" / ".DS_Store").write_text("x")
    (root / "__MACOSX").mkdir()
    return root


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def nih_full(
    root: Path, *, kaggle: bool = False, trailing: bool = False, lists: bool = True, patients: int = 40
) -> Path:
    """Three films of every patient; every third film has Pneumonia, every fifth Pneumothorax. As written by the NIH."""
    root.mkdir(parents=True, exist_ok=True)
    tail = "," if trailing else ""
    lines, names = [NIH_HEADER + tail], []
    for k in range(3 * patients):
        patient, follow = k // 3 + 1, k % 3
        name = f"{patient:08d}_{follow:03d}.png"
        found = [w for w, every in (("Pneumonia", 3), ("Pneumothorax", 5)) if k % every == patient % every]
        folder = root / (f"images_{k // 60 + 1:03d}/images" if kaggle else "images")
        save(folder / name, film(k, False, 32, 32))
        view = ("PA", "AP")[k % 2]
        lines.append(
            f"{name},{'|'.join(found) or 'No Finding'},{follow},{patient},57,M,{view},2682,2749,0.143,0.143{tail}"
        )
        names.append(name)
    (root / ("Data_Entry_2017.csv" if trailing else "Data_Entry_2017_v2020.csv")).write_text("\n".join(lines) + "\n")
    boxes = [f"{name},Pneumonia,256,512,128,256,,," for name in names[:3]] + [f"{names[3]},Infiltrate,1,2,3,4,,,"]
    (root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + "\n".join(boxes) + "\n")
    if lists:
        (root / "train_val_list.txt").write_text("\n".join(names[: 9 * patients // 4]) + "\n")
        (root / "test_list.txt").write_text("\n".join(names[9 * patients // 4 :]))
    return root


def drain_table(path: Path, patients: int = 40) -> Path:
    """Films of `nih_full`: the four groups of pneumothorax x drain equally frequent; two unknown films."""
    rows = []
    for k in range(3 * patients):
        name = f"{k // 3 + 1:08d}_{k % 3:03d}.png"
        sick = int(k % 5 == (k // 3 + 1) % 5)
        rows.append((name, sick, "1.0" if k % 2 else "", k % 2, "test" if k % 7 == 0 else "train"))
    rows += [("99999999_000.png", 1, "", 1, "train"), ("99999999_001.png", 0, "", 0, "train")]
    write_table(path, ("img_name", "Pneumothorax", "drain_annotated", "Drain", "split"), rows)
    return path


CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def chexpert(root: Path, folder: str = "CheXpert-v1.0-small") -> Path:
    """60 patients in train, 6 in valid, a frontal and a lateral film each. Pneumonia: 1.0, blank, -1.0, 0.0 in turn."""
    names = CHEXPERT_HEADER.split(",")
    for part, patients in (("train", range(1, 61)), ("valid", range(64541, 64547))):
        lines = []
        for j, patient in enumerate(patients):
            below = f"{part}/patient{patient:05d}/study1"
            for view in ("frontal", "lateral"):
                cells = dict.fromkeys(names, "") | {
                    "Path": f"CheXpert-v1.0-small/{below}/view1_{view}.jpg",
                    "Sex": "Female",
                    "Age": "68",
                    "Frontal/Lateral": view.capitalize(),
                    "AP/PA": "AP" if view == "frontal" else "",
                    "Pneumonia": ("1.0", "", "-1.0", "0.0")[j % 4],
                }
                save(root / folder / below / f"view1_{view}.jpg", film(patient, False, 40, 32))
                lines.append(cells.values())
        write_table(root / folder / f"{part}.csv", names, lines)
    return root


def mimic(root: Path) -> Path:
    """48 studies of 24 subjects: a frontal and a lateral film each; the last study has no row of labels."""
    meta, labels, splits = [], [], []
    for k in range(48):
        subject, study = 10000032 + k // 2 * 7, 50414267 + k
        split = ("train", "train", "validate", "test")[k // 2 % 4]
        for view in ("PA", "LATERAL"):
            name = f"{k:08x}-{view.lower()}"
            folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}"
            save(folder / f"{name}.jpg", film(k, False, 40, 40))
            meta.append((name, subject, study, "CHEST", view, 2500, 3000))
            splits.append((name, study, subject, split))
        if k < 47:
            labels.append((subject, study, ("1.0", "0.0", "-1.0", "")[(k // 8 + k) % 4]))
    table = "mimic-cxr-2.0.0-{}.csv.gz".format
    head = (
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
    )
    write_table(root / table("metadata"), head, meta)
    write_table(root / table("chexpert"), ("subject_id", "study_id", "Pneumonia"), labels)
    write_table(root / table("split"), ("dicom_id", "study_id", "subject_id", "split"), splits)
    return root


def save_dicom(path: Path, values: np.ndarray, *, interpretation: str = "MONOCHROME2", **tags: Any) -> None:
    """A DICOM file of 8 bits (uint8 values) or 12 bits (uint16); tags: further elements by keyword."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = 8 if values.dtype == np.uint8 else 16
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = *values.shape, 1, 0
    data.PhotometricInterpretation = interpretation
    data.BitsAllocated = bits
    data.BitsStored = 8 if bits == 8 else 12
    data.HighBit = data.BitsStored - 1
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def rsna(root: Path, *, mapping: bool = True) -> Path:
    """60 films of 30 people; every third has pneumonia, with two boxes; films 0 to 3 are unusual DICOM files."""
    rows, classes, entries = [], [], []
    for k in range(60):
        name, pixels = f"{k:04d}aaaa-bbbb", film(k, False, 32, 32)
        path = root / f"stage_2_train_images/{name}.dcm"
        if k == 1:
            save_dicom(path, 255 - pixels, interpretation="MONOCHROME1")
        elif k == 2:  # twelve bits with a rescale and a window
            save_dicom(path, pixels.astype(np.uint16) * 8, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=1016,
                       WindowWidth=4080)  # fmt: skip
        else:
            save_dicom(path, pixels)
        sick = k % 3 == 0
        rows += [(name, 256, 128, 200, 300, 1), (name, 600, 128, 200, 300, 1)] if sick else [(name, "", "", "", "", 0)]
        classes.append((name, "Lung Opacity" if sick else ("Normal", "No Lung Opacity / Not Normal")[k % 2]))
        entries.append({"subset_img_id": name, "img_id": f"{k // 2:08d}_{k % 2:03d}.png"})
    write_table(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    write_table(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    if mapping:
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(entries))
    return root


def knee(root: Path, *, nested: bool = False, ending: str = "png", table: bool = True) -> Path:
    """8 (train), 4 (val), 4 (test) patients of every grade with both knees; two crops are inverted."""
    base = root / "KneeXrayData/ClsKLData/kneeKL224" if nested else root
    rows, number = [], 9000000
    for split, patients in (("train", 8), ("val", 4), ("test", 4)):
        for grade in range(5):
            for j in range(patients):
                for side in "LR":
                    pixels = crop(number * 2 + (side == "R"), grade)
                    if (split, grade, j, side) in (("train", 0, 0, "L"), ("test", 3, 1, "R")):
                        pixels = 255 - pixels
                    name = f"{split}/{grade}/{number}{side}.{ending}"
                    save(base / name, pixels)
                    rows.append((name, f"KL{grade}", grade, int(grade >= 2), split, number, side))
                number += 1
    if nested:
        save(base / "auto_test/0/9000000L.png", crop(1, 0))
        (base / "train/0/Thumbs.db").write_text("x")
    if table:
        write_table(base / "metadata.csv", ("file", "label", "kl_grade", "oa", "split", "patient", "side"), rows)
    return root


def crop(number: int, grade: int, side: int = 56) -> np.ndarray:
    """A joint crop: bright bone in the middle, a dark line whose height falls with the grade."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:side, :side]
    pixels = np.where(np.abs(columns - side / 2) < side * 0.36, 150, 60) + rng.integers(-5, 6, (side, side))
    pixels[np.abs(rows - side / 2) < 5 - grade] -= 60
    return pixels.clip(0, 255).astype(np.uint8)


def epochs(suite: RadiographSuite, batch: int = 64) -> tuple[float, float]:
    """CPU seconds of decoding all original files to the cache's size, and of reading the prepared films in batches."""
    request = suite.requests()["films"]
    pixels = prepare(request).pixels
    start = time.process_time()
    decoded = [render(item, request.geometry)[0] for item in request.items]
    first, later = time.process_time() - start, []
    for _ in range(3):
        start = time.process_time()
        read = [np.array(pixels[k : k + batch]) for k in range(0, len(pixels), batch)]
        later.append(time.process_time() - start)
    np.testing.assert_array_equal(np.concatenate(read), np.stack(decoded))
    return first, min(later)
