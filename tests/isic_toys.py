"""Fabricated dermoscopy: noisy skin, a brown lesion in the middle, a blue disc at the border; folders as on disk."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
COLUMNS = ("file", "isic_id", "label", "diagnosis", "split", "has_patch", "patch_mask", "lesion_mask")
PATCH_COLOUR = (20, 60, 230)
COUNTS = {  # split -> diagnosis -> images; and benign images with a patch
    "train": {"nevus": 40, "seborrheic_keratosis": 20, "melanoma": 12, "patched": 20},
    "val": {"nevus": 8, "seborrheic_keratosis": 6, "melanoma": 4, "patched": 4},
    "test": {"nevus": 12, "seborrheic_keratosis": 8, "melanoma": 6, "patched": 0},
}


def scene(number: int, patched: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photograph uint8 [SIDE, SIDE, 3], lesion and patch mask bool [SIDE, SIDE]: other places for other numbers."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pixels = np.full((SIDE, SIDE, 3), (215, 165, 145)) + rng.integers(-8, 9, (SIDE, SIDE, 3))
    lesion = ((rows - 32) / 11) ** 2 + ((columns - 32 - rng.integers(-3, 4)) / 8) ** 2 < 1
    pixels[lesion] = (95, 55, 45)
    patch = np.zeros_like(lesion)
    if patched:
        patch = (rows - rng.integers(0, 4)) ** 2 + (columns - rng.integers(0, 64)) ** 2 < rng.integers(9, 15) ** 2
        patch &= ~lesion
        pixels[patch] = PATCH_COLOUR
    return pixels.astype(np.uint8), lesion, patch


def save_photo(path: Path, number: int, patched: bool = False) -> tuple[np.ndarray, np.ndarray]:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels, lesion, patch = scene(number, patched)
    Image.fromarray(pixels).save(path, quality=95)
    return lesion, patch


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *map(list, rows)])


def read_rows(root: Path) -> list[dict[str, str]]:
    with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(root: Path, rows: list[dict[str, str]]) -> None:
    write_table(root / "metadata.csv", rows[0], [row.values() for row in rows])


def curated(root: Path) -> Path:
    """A folder in the curated layout: 140 images in the numbers of COUNTS, every one with a lesion mask."""
    rows: list[dict[str, str]] = []
    for split, kinds in COUNTS.items():
        for kind, number in kinds.items():
            for _ in range(number):
                k, patched = len(rows), kind == "patched"
                name = f"ISIC_{k:07d}"
                lesion, patch = save_photo(root / f"images/{name}.jpg", k, patched)
                save_mask(root / f"masks/{name}.png", lesion)
                if patched:
                    save_mask(root / f"patch_masks/{name}.png", patch)
                diagnosis = "nevus" if patched else kind
                label = "malignant" if diagnosis == "melanoma" else "benign"
                patch_file = f"patch_masks/{name}.png" if patched else ""
                cells = (f"images/{name}.jpg", name, label, diagnosis, split, int(patched), patch_file)
                rows.append({c: str(v) for c, v in zip(COLUMNS, (*cells, f"masks/{name}.png"), strict=True)})
    write_rows(root, rows)
    return root


def touch(folder: Path, names: Iterable[str]) -> None:
    """Files with a content of their own each: readers of tables look at names alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name, encoding="utf-8")
