"""Knee radiographs (Chen 2018): osteoarthritis (KL grade 2 or more) against none, with an inserted letter L or R.

The letter is drawn by the correlation, not by the side of the knee: the joint crops hold no natural marker, and which
side a knee is can hardly be told from the letter's corner.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import DataError
from harness.suite import Int64, UInt8
from suites import KNEE_MARKERS
from suites.marker_suite import MarkerSuite
from suites.radiographs import SPLITS, Radiograph
from suites.tables import Faults, check_unique, choice, read_table

GRADES = ("0", "1", "2", "3", "4")
OSTEOARTHRITIS = 2  # from this Kellgren-Lawrence grade on: definite osteophytes
MIDDLE, RIM = 0.5, 0.06  # shares of the width: the middle columns, and the outer ones on either side
_NAME = re.compile(r"(\d{7})([LR])")
_ENDINGS = (".png", ".jpg", ".jpeg")
_NESTED = ("", "kneeKL224", "ClsKLData/kneeKL224", "KneeXrayData/ClsKLData/kneeKL224")  # the Mendeley archive's folders


class KneeMarkers(MarkerSuite):
    """Joint crops; y = 1 for KL grades 2 to 4. `grades` gives the grade of every film, metadata side and patient.

    A crop in inverted grey values (`inverted`) is turned back, and `vabench data check` counts them: 28 of the curated
    2,171, more in test than elsewhere.

    split: `drawn` shares patients out anew with every data seed, the grades equally frequent in all splits; `given`
    keeps the official ones.
    """

    info = KNEE_MARKERS
    folder = "knee"
    layouts = ("curated", "official")
    labels = {grade: int(int(grade) >= OSTEOARTHRITIS) for grade in GRADES}  # noqa: RUF012 - read only
    class_names = ("no osteoarthritis", "osteoarthritis")

    def __init__(
        self,
        rho: float = 0.9,
        size: int = 64,
        n_train: int | None = None,
        split: str = "drawn",
        layout: str = "curated",
        root: str | Path | None = None,
    ):
        super().__init__(rho, size, n_train, layout, root, split)

    def read(self, faults: Faults) -> list[Radiograph]:
        """All crops."""
        return read_knees(self.root, faults)

    def table_files(self) -> list[Path]:
        """metadata.csv of the curated copy; the official set has no table."""
        return [path for path in [self.root / "metadata.csv"] if path.is_file()]

    @property
    def manifest_entry(self) -> str:
        """The knee set, curated or official."""
        return f"knee-{self.layout}"

    @property
    def name(self) -> str:
        """E.g. `knee_markers-rho0.9`, with what is not the default."""
        return "-".join([self.info.name, *self._rho_part(), *self.changed(64, "curated", "drawn")])

    def film(self, k: int) -> UInt8:
        """As of the base class, bone bright on every crop."""
        canvas = super().film(k)
        return 255 - canvas if inverted(canvas) else canvas

    def repairs(self) -> list[str]:
        """How many crops were inverted."""
        found = [film.id for k, film in enumerate(self.films) if inverted(self._pixels[k])]
        some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        return [f"turned the grey values of {len(found)} crops whose bone is dark: {some}"] if found else []

    def grades(self, ids: Int64) -> list[int]:
        """Kellgren-Lawrence grades (0 to 4) of the films that a split's `ids` name."""
        return [int(self.films[k].metadata["kl_grade"]) for k in ids.tolist()]


def inverted(canvas: UInt8) -> bool:
    """True where the middle columns (bone) are darker than the outer ones (soft tissue, air). canvas: uint8 [S, S].

    Decides without the other images. On the curated crops the two kinds lie 42 grey values apart (-23 and +19).
    """
    side = len(canvas)
    rim, start = max(1, round(RIM * side)), round((1 - MIDDLE) / 2 * side)
    outer = (float(canvas[:, :rim].mean()) + float(canvas[:, side - rim :].mean())) / 2
    return float(canvas[:, start : side - start].mean()) < outer


def read_knees(root: Path, faults: Faults) -> list[Radiograph]:
    """`{train,val,test}/{0..4}/<7-digit patient><L|R>.png`, also below the archive's outer folders.

    `auto_test` (the test crops as a detector found them) repeats test knees and is left out. Where a `metadata.csv`
    lies beside the folders (the curated copy), it must say the same as they do.

    Raises:
        DataError: a folder of a split or grade is missing.
    """
    base = next((root / name for name in _NESTED if (root / name / "train").is_dir()), root)
    missing = [f"{split}/{grade}" for split in SPLITS for grade in GRADES if not (base / split / grade).is_dir()]
    if missing:
        raise DataError(f"{base} has no folder {', '.join(missing)}; unpack the whole archive, or correct root=")
    films = []
    for split in SPLITS:
        for folder in sorted(path for path in (base / split).iterdir() if path.is_dir()):
            if folder.name not in GRADES:
                faults.add(f"{folder}: '{folder.name}' is no Kellgren-Lawrence grade (0 to 4); rename or remove it")
                continue
            for path in sorted(folder.iterdir()):
                if path.name.startswith(".") or path.name == "Thumbs.db":  # what file managers leave behind
                    continue
                match = _NAME.fullmatch(path.stem)
                if match is None or path.suffix.lower() not in _ENDINGS:
                    faults.add(f"{path}: the name is not <7-digit patient><L|R>.png; put the original file back")
                    continue
                patient, side = match.groups()
                more = {"kl_grade": folder.name, "side": side}
                films.append(
                    Radiograph(path.stem, path, folder.name, str(path), split, patient, folder.name, metadata=more)
                )
    check_unique([(film.where, film.id) for film in films], "knee", faults)
    if (base / "metadata.csv").is_file():
        _compare(base, films, faults)
    return films


def _compare(base: Path, films: list[Radiograph], faults: Faults) -> None:
    """The table of the curated copy against its folders."""
    rows = read_table(base / "metadata.csv", ("file", "kl_grade", "oa", "split", "patient", "side"), faults)
    shown = {film.image.relative_to(base).as_posix(): film for film in films}
    told = set()
    for row in rows:
        name = row["file"]
        grade, oa = choice(row, "kl_grade", {g: g for g in GRADES}, faults), row["oa"]
        choice(row, "split", {split: split for split in SPLITS}, faults)
        if name in told:
            faults.add(f"{row.where}: the file '{name}' stands there twice; drop one of the rows")
        told.add(name)
        if name not in shown:
            if not (base / name).is_file():
                faults.add(f"{row.where}, column file: there is no file '{name}' under {base}; put it back, or drop it")
            continue
        film = shown[name]
        if grade is not None and oa != str(int(int(grade) >= OSTEOARTHRITIS)):
            faults.add(f"{row.where}: kl_grade is {grade} but oa '{oa}'; osteoarthritis is grade 2 or more")
        facts = {"split": film.split, "kl_grade": film.label, "patient": film.patient, "side": film.metadata["side"]}
        for column, value in facts.items():
            if column in row.cells and row[column] and row[column] != value and (column != "kl_grade" or grade):
                faults.add(f"{row.where}, column {column}: '{row[column]}', but '{name}' says '{value}'; correct one")
    for name, film in shown.items():
        if rows and name not in told:
            faults.add(f"{film.image}: no row of {base / 'metadata.csv'} names it; add the row, or remove the file")
