"""`vabench data check` on the curated folder of chest films: every kind of planted fault is named by its line."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xray_toys as toys
from rich.console import Console

from harness.errors import DataError
from suites import data_command
from suites.chest_xray import KermanyMarkers, KermanyNatural, NihChest

Plant = Callable[[Path], object]
ROW, LINE = 25, 27  # a marked film with bacterial pneumonia, and its line in the table
IMAGE = f"kermany/film{ROW:03d}.png"


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.curated_cxr(tmp_path_factory.mktemp("cxr"))


@pytest.fixture
def root(master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VABENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(master, tmp_path / "cxr")
    return tmp_path / "cxr"


def checked(suite: KermanyMarkers | KermanyNatural | NihChest) -> tuple[bool, list[str], str]:
    """Whether it is clean, the faults, and all that was printed."""
    console = Console(file=io.StringIO(), width=80)
    clean = data_command.check(suite, 0, console, 1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return clean, re.findall(r"^fault \d+: (.*)$", text, re.M), text


def test_a_clean_folder_has_no_faults_whichever_suite_asks(root: Path) -> None:
    for suite, films in ((KermanyMarkers, 128), (KermanyNatural, 168), (NihChest, 64)):
        clean, faults, text = checked(suite(size=32, root=root))
        assert clean
        assert faults == []
        assert f"films: {films} files decoded, 0 cannot be used" in text
        assert text.rstrip().endswith("no faults")


def edit(number: int, **cells: str) -> Plant:
    def plant(root: Path) -> None:
        rows = toys.read_rows(root)
        rows[number] |= cells
        toys.write_rows(root, rows)

    return plant


def add(**cells: str) -> Plant:
    def plant(root: Path) -> None:
        rows = toys.read_rows(root)
        toys.write_rows(root, [*rows, rows[ROW] | cells])

    return plant


def cut(name: str, share: float) -> Plant:
    def plant(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * share)])

    return plant


def write(name: str, data: bytes) -> Plant:
    return lambda root: (root / name).write_bytes(data)


def in_text(old: str, new: str, number: int = 1) -> Plant:
    def plant(root: Path) -> None:
        table = root / "metadata.csv"
        table.write_text(table.read_text().replace(old, new, number))

    return plant


def same_bytes(root: Path) -> None:
    shutil.copy(root / IMAGE, root / "kermany/film160.png")


def without_viral_val(root: Path) -> None:
    rows = toys.read_rows(root)
    toys.write_rows(root, [r for r in rows if (r["split"], r["findings"]) != ("val", "Viral pneumonia")])


FAULTS: dict[str, tuple[Plant, str]] = {
    "image missing": (
        lambda root: (root / IMAGE).unlink(),
        rf"metadata\.csv, line {LINE}, column file: there is no file '{IMAGE}'",
    ),
    "file cell empty": (edit(ROW, file=""), rf"line {LINE}, column file: the cell is empty"),
    "file outside": (edit(ROW, file="../x.png"), rf"line {LINE}, column file: '\.\./x\.png' lies outside"),
    "image empty": (write(IMAGE, b""), r"film025\.png is empty \(0 bytes\)"),
    "image no image": (write(IMAGE, b"<html>"), r"film025\.png cannot be read as an image"),
    "image cut short": (cut(IMAGE, 0.5), r"film025\.png cannot be read as an image"),
    "file twice": (add(), rf"line 236: the file '{IMAGE}' stands already in line {LINE}"),
    "unknown split": (edit(ROW, split="training"), rf"line {LINE}, column split: 'training' .*did you mean 'train'"),
    "unknown finding": (
        edit(ROW, findings="Bacterial pneumonai"),
        rf"line {LINE}, column findings: 'Bacterial pneumonai' is not allowed",
    ),
    "unknown data set": (edit(ROW, dataset="kermani"), rf"line {LINE}, column dataset: 'kermani' .*'kermany'"),
    "label against findings": (
        edit(ROW, label="normal"),
        rf"line {LINE}: the findings are 'Bacterial pneumonia' but label is 'normal' and y 1",
    ),
    "y against label": (edit(ROW, y="0"), rf"line {LINE}: the findings .* and y 0; correct what is wrong"),
    "no patient": (edit(ROW, patient=""), rf"line {LINE}, column patient: the cell is empty"),
    "patient in two splits": (
        edit(ROW, patient="P160"),
        r"line 162: the patient 'P160' is in test and, in line 27, in train",
    ),
    "same film of two patients": (
        same_bytes,
        r"line 162 \(film160\.png\): the image content .* is in patient P160 and, in line 27 \(film025\.png\), in pat",
    ),
    "marker outside": (
        edit(ROW, marker_x="61"),
        rf"line {LINE}: the marker's box \(61, 5, 5, 6\) leaves its film of 64 x 48 pixels",
    ),
    "marker no number": (edit(ROW, marker_w="wide"), rf"line {LINE}: .*marker_w='wide'.* must be numbers"),
    "marker without style": (edit(ROW, marker_style="none"), rf"line {LINE}: has_marker is 1 but marker_style 'none'"),
    "style without marker": (edit(ROW, has_marker="0"), rf"line {LINE}: has_marker is 0 but marker_style 'bold_sans'"),
    "frame of another film": (
        edit(ROW, width="48", height="64"),
        rf"line {LINE}: the boxes are for 48 x 64 pixels, but .*film025\.png has 64 x 48",
    ),
    "class empty": (without_viral_val, r"split 'val' has no image of the group 'viral pneumonia'"),
    "column missing": (in_text("has_marker", "hm"), r"metadata\.csv: there is no column 'has_marker'"),
    "column misspelt": (in_text("findings", "finding"), r"no column 'findings'; did you mean 'finding'\? Rename it"),
    "cells too many": (in_text("Bacterial", "Bac,terial"), r"metadata\.csv, line 22: 20 cells, but the header has 19"),
    "semicolons": (in_text(",", ";", -1), r"metadata\.csv separates its cells by ';', not by ','"),
    "no table": (lambda root: (root / "metadata.csv").unlink(), r"the table .*metadata\.csv cannot be read: No such"),
    "other set's rows alone": (
        in_text(",kermany,", ",hannover,", -1),
        r"metadata\.csv has no row of the data set 'kermany'",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_named_with_its_file(root: Path, kind: str) -> None:
    plant, pattern = FAULTS[kind]
    plant(root)
    clean, faults, text = checked(KermanyMarkers(size=32, root=root))
    assert not clean
    assert [fault for fault in faults if re.search(pattern, fault)], faults
    assert len(faults) <= 2, faults  # one fault is not told in many ways
    assert "no faults" not in text


def test_all_faults_are_told_at_once_and_a_run_tells_the_first(root: Path) -> None:
    for number in (25, 30, 35, 40):
        edit(number, findings="?")(root)
    cut("kermany/film050.png", 0.5)(root)
    _, faults, text = checked(KermanyMarkers(size=32, root=root))
    assert len(faults) == 5
    assert "5 faults" in text
    with pytest.raises(DataError, match=r"line 27, .*and 1 more \(`vabench data check kermany_markers` lists all\)"):
        KermanyMarkers(size=32, root=root).load(0)


def test_a_wrong_row_of_another_data_set_is_none_of_its_business(root: Path) -> None:
    edit(170, findings="")(root)  # an NIH film
    assert checked(KermanyMarkers(size=32, root=root))[0]
    faults = checked(NihChest(size=32, root=root))[1]
    assert len(faults) == 1
    assert re.search(r"line 172, column findings: the cell is empty; write No Finding", faults[0])
