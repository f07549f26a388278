"""`vabench data`: a clean folder has no faults, every kind of planted fault is named with its file or table line."""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from isic_toys import SIDE, curated, read_rows, save_mask, write_rows
from PIL import Image
from rich.console import Console

from harness.errors import ConfigError, DataError
from suites import data_command
from suites.decoy import DecoyDigits
from suites.isic import IsicNatural, IsicPatches

Plant = Callable[[Path], object]
IMAGE = "images/ISIC_0000003.jpg"


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return curated(tmp_path_factory.mktemp("isic"))


@pytest.fixture
def root(master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VABENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(master, tmp_path / "isic")
    return tmp_path / "isic"


def checked(root: Path, **settings: object) -> tuple[bool, list[str], str]:
    """Whether it is clean, the faults, and all that was printed."""
    console = Console(file=io.StringIO(), width=80)
    clean = data_command.check(IsicPatches(size=32, root=root, **settings), 0, console, 1)  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return clean, re.findall(r"^fault \d+: (.*)$", text, re.M), text


def test_a_clean_folder_has_no_faults_and_its_groups_are_counted(root: Path) -> None:
    clean, faults, text = checked(root)
    assert clean
    assert faults == []
    assert "images: 140 files decoded, 0 cannot be used" in text
    assert "lesion masks: 140 files decoded" in text
    assert "patch masks: 24 files decoded" in text
    assert "images/*.jpg: 140 of 2750 files, CC0 1.0" in text  # the manifest's number beside the one found
    assert "differs from the manifest" in text
    assert re.search(r"^other lesion/patch +\d+ +\d+ +\d+ +18 +0$", text, re.M)
    assert text.rstrip().endswith("no faults")


def edit(number: int, **cells: str) -> Plant:
    def plant(root: Path) -> None:
        rows = read_rows(root)
        rows[number] |= cells
        write_rows(root, rows)

    return plant


def copied_row(number: int, **cells: str) -> Plant:
    def plant(root: Path) -> None:
        rows = read_rows(root)
        write_rows(root, [*rows, rows[number] | cells])

    return plant


def cut(name: str, share: float, fill: bytes = b"") -> Plant:
    def plant(root: Path) -> None:
        data = (root / name).read_bytes()
        kept = data[: int(len(data) * share)]
        (root / name).write_bytes(kept + fill * (len(data) - len(kept)))

    return plant


def overwrite(name: str, data: bytes) -> Plant:
    return lambda root: (root / name).write_bytes(data)


def remove(name: str) -> Plant:
    return lambda root: (root / name).unlink()


def mask(name: str, side: int) -> Plant:
    return lambda root: save_mask(root / name, np.ones((side, side), dtype=np.bool_))


def frames(root: Path) -> None:
    first, second = Image.new("RGB", (SIDE, SIDE)), Image.new("RGB", (SIDE, SIDE), "red")
    first.save(root / "two.tif", save_all=True, append_images=[second])
    edit(3, file="two.tif")(root)


def floats(root: Path) -> None:
    Image.fromarray(np.ones((SIDE, SIDE), dtype=np.float32)).save(root / "float.tif")
    edit(3, file="float.tif")(root)


def one_patient_in_two_splits(root: Path) -> None:
    rows = read_rows(root)
    for k, row in enumerate(rows):
        row["patient_id"] = "P1" if k in (0, len(rows) - 1) else ""
    write_rows(root, rows)


def same_bytes_in_two_splits(root: Path) -> None:
    shutil.copy(root / IMAGE, root / "images/ISIC_0000139.jpg")


def without_keratosis_in_val(root: Path) -> None:
    write_rows(root, [r for r in read_rows(root) if (r["split"], r["diagnosis"]) != ("val", "seborrheic_keratosis")])


def without_patches(root: Path) -> None:
    write_rows(root, [r for r in read_rows(root) if r["has_patch"] == "0"])


def in_text(old: str, new: str, number: int = 1) -> Plant:
    def plant(root: Path) -> None:
        table = root / "metadata.csv"
        table.write_text(table.read_text().replace(old, new, number))

    return plant


def outside(root: Path) -> None:
    shutil.copy(root / IMAGE, root.parent / "outside.jpg")
    edit(3, file="../outside.jpg")(root)


# row 3 of the table stands in line 5; row 73 is patched
FAULTS: dict[str, tuple[Plant, str]] = {
    "image missing": (
        remove(IMAGE),
        r"metadata\.csv, line 5, column file: there is no file 'images/ISIC_0000003\.jpg'",
    ),
    "lesion mask missing": (
        remove("masks/ISIC_0000003.png"),
        r"line 5, column lesion_mask: .*'masks/ISIC_0000003\.png'",
    ),
    "patch mask missing": (remove("patch_masks/ISIC_0000073.png"), r"line 75, column patch_mask: .*ISIC_0000073\.png"),
    "file outside the folder": (outside, r"line 5, column file: '\.\./outside\.jpg' lies outside"),
    "file cell empty": (edit(3, file=""), r"line 5, column file: the cell is empty"),
    "image empty": (overwrite(IMAGE, b""), r"ISIC_0000003\.jpg is empty \(0 bytes\)"),
    "image no image": (overwrite(IMAGE, b"<html>not found</html>"), r"ISIC_0000003\.jpg cannot be read as an image"),
    "JPEG cut short": (cut(IMAGE, 0.5), r"ISIC_0000003\.jpg cannot be read as an image \(image file is truncated"),
    "JPEG tail zeros": (cut(IMAGE, 0.5, b"\0"), r"ISIC_0000003\.jpg is a JPEG without its end"),
    "PNG mask damaged": (cut("masks/ISIC_0000003.png", 0.7), r"masks/ISIC_0000003\.png cannot be read as an image"),
    "several frames": (frames, r"two\.tif holds 2 frames"),
    "32-bit values": (floats, r"float\.tif has 32-bit pixels"),
    "lesion mask of another size": (
        mask("masks/ISIC_0000003.png", 32),
        r"the mask .*masks/ISIC_0000003\.png is 32 x 32 pixels but its image is 64 x 64",
    ),
    "patch mask of another size": (
        mask("patch_masks/ISIC_0000073.png", 99),
        r"the mask .*patch_masks/ISIC_0000073\.png is 99 x 99 pixels but its image is 64 x 64",
    ),
    "id twice": (copied_row(3, file="images/x.jpg"), r"line 142: the isic_id 'ISIC_0000003' stands already in line 5"),
    "file twice": (
        copied_row(3, isic_id="ISIC_1"),
        r"line 142: the file 'images/ISIC_0000003\.jpg' .*already in line 5",
    ),
    "unknown label": (edit(3, label="bening"), r"line 5, column label: 'bening' is not allowed; did you mean 'benign'"),
    "unknown diagnosis": (edit(3, diagnosis="wart"), r"line 5, column diagnosis: 'wart' is not allowed"),
    "unknown split": (edit(3, split="training"), r"line 5, column split: 'training' .*did you mean 'train'"),
    "label empty": (edit(3, label=""), r"line 5, column label: the cell is empty; write one of benign, malignant"),
    "label against diagnosis": (
        edit(3, label="malignant"),
        r"line 5: the label is 'malignant' but the diagnosis 'nevus'",
    ),
    "patch without mask": (edit(3, has_patch="1"), r"line 5: has_patch is 1 but patch_mask is empty"),
    "mask without patch": (edit(73, has_patch="0"), r"line 75: has_patch is 0 but there is a patch_mask"),
    "patient in two splits": (
        one_patient_in_two_splits,
        r"line 141: the patient or lesion 'P1' is in test and, in line 2",
    ),
    "image in two splits": (
        same_bytes_in_two_splits,
        r"line 141 \(ISIC_0000139\.jpg\): the image content .* in line 5 \(ISIC_0000003\.jpg\), in train",
    ),
    "group empty": (without_keratosis_in_val, r"split 'val' has no image of the group 'seborrheic keratosis'"),
    "no patches": (without_patches, r"patch mask of 0 patients or lesions, at least 8 are needed"),
    "column missing": (in_text("diagnosis", "dx"), r"metadata\.csv: there is no column 'diagnosis'"),
    "column misspelt": (
        in_text("diagnosis", "diagnoses"),
        r"no column 'diagnosis'; did you mean 'diagnoses'\? Rename it",
    ),
    "column twice": (in_text("lesion_mask", "file"), r"metadata\.csv: the column 'file' stands there twice"),
    "cells too many": (in_text("nevus", "ne,vus"), r"metadata\.csv, line 2: 9 cells, but the header has 8"),
    "semicolons": (in_text(",", ";", -1), r"metadata\.csv separates its cells by ';', not by ','"),
    "no UTF-8": (overwrite("metadata.csv", b"file\n\xff\xfe"), r"metadata\.csv is not UTF-8 text"),
    "no rows": (overwrite("metadata.csv", b"file,isic_id\n"), r"metadata\.csv has no rows"),
    "no table": (remove("metadata.csv"), r"the table .*metadata\.csv cannot be read: No such file"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_named_with_its_file(root: Path, kind: str) -> None:
    plant, pattern = FAULTS[kind]
    plant(root)
    clean, faults, text = checked(root)
    assert not clean
    assert [fault for fault in faults if re.search(pattern, fault)], faults
    assert len(faults) <= 2, faults  # one fault is not told in many ways
    assert "no faults" not in text


def test_all_faults_are_told_at_once_and_a_run_tells_the_first(root: Path) -> None:
    for number in (3, 10, 20, 30):
        edit(number, label="?")(root)
    cut("images/ISIC_0000050.jpg", 0.5)(root)
    _, faults, text = checked(root)
    assert len(faults) == 5
    assert "5 faults" in text
    with pytest.raises(
        DataError, match=r"line 5, .*line 22, .*and 1 more \(`vabench data check isic_patches` lists all\)"
    ):
        IsicPatches(size=32, root=root).load(0)


def test_repairs_are_told_and_are_no_faults(root: Path) -> None:
    Image.new("L", (SIDE, SIDE), 90).save(root / "images/ISIC_0000003.jpg")
    clean, _, text = checked(root)
    assert clean
    assert "repaired 1: one grey channel repeated in three (ISIC_0000003.jpg)" in text


def test_natural_has_its_own_demands(root: Path) -> None:
    without_patches(root)
    console = Console(file=io.StringIO(), width=80)
    assert not data_command.check(IsicNatural(size=32, root=root), 0, console, 1)
    assert "has no benign photograph with a patch mask" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_diagnosis_that_a_layout_does_not_have_is_an_empty_group(root: Path) -> None:
    rows = [r | {"diagnosis": r["diagnosis"].replace("seborrheic", "benign")} for r in read_rows(root)]
    write_rows(root, rows)
    _, faults, _ = checked(root)
    assert [f for f in faults if "split 'test' has no image of the group 'seborrheic keratosis'" in f]
    assert checked(root, target="melanoma")[0]


def test_prepare_makes_every_array_once(root: Path) -> None:
    said = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=80)
        data_command.prepare(IsicPatches(size=32, root=root), console, 1)
        said.append(console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    assert [line.split(":")[0] for line in said[0]] == ["images", "lesion masks", "patch masks"]
    assert all("prepared in" in line for line in said[0])
    assert all("already prepared" in line for line in said[1])


def test_describe_draws_every_group_and_refuses_a_git_copy(root: Path, tmp_path: Path) -> None:
    suite, console = IsicPatches(size=32, root=root), Console(file=io.StringIO(), width=80)
    data_command.describe(suite, tmp_path / "sheets", 0, 3, console)
    names = {path.name.split("rho0_9_32px_")[1] for path in (tmp_path / "sheets").iterdir()}
    assert {"train_other_lesion_patch.png", "test_placebo_seborrheic_keratosis_no_patch.png"} <= names
    assert "test_clean_other_lesion_patch.png" not in names  # no image, no sheet
    with Image.open(next((tmp_path / "sheets").glob("*test_patched_other_lesion_patch.png"))) as sheet:
        drawn = np.asarray(sheet).reshape(-1, 3)
    assert (drawn == (255, 0, 0)).all(1).sum() > 50  # the patch's outline
    assert (drawn == (0, 200, 0)).all(1).sum() > 50  # the lesion's
    (tmp_path / ".git").mkdir()
    with pytest.raises(ConfigError, match="lies in a git working copy"):
        data_command.describe(suite, tmp_path / "sheets", 0, 3, console)
    with pytest.raises(ConfigError, match="name a folder for the contact sheets: --out FOLDER"):
        data_command.describe(suite, None, 0, 3, console)


def test_a_suite_without_files_is_told_apart() -> None:
    with pytest.raises(ConfigError, match="'decoy_digits' declares no image files"):
        data_command._needs_files(DecoyDigits())


def test_the_command_ends_with_1_where_there_is_a_fault(root: Path) -> None:
    remove(IMAGE)(root)
    words = ["data", "check", f"isic_patches(size=32,root={root})", "--workers", "1"]
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "fault 1: " in done.stdout
    assert "ISIC_0000003.jpg" in done.stdout
    assert "Traceback" not in done.stderr
