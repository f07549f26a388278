"""Knee crops with letters, on fabricated folders and, where VABENCH_DATA has them, on the real ones."""

import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xray_toys as toys
from rich.console import Console

from harness.contract import _suite_checks, check_target
from harness.errors import ConfigError, DataError
from suites import data_command
from suites.image_suite import part_digest
from suites.knee_xray import KneeMarkers, inverted, read_knees
from suites.tables import Faults

SIZE = 28
REAL = Path(os.environ.get("VABENCH_DATA", "")) / "knee"
needs_data = pytest.mark.skipif(
    not os.environ.get("VABENCH_DATA") or not (REAL / "metadata.csv").is_file(),
    reason="VABENCH_DATA names no folder with knee/metadata.csv",
)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.knee(tmp_path_factory.mktemp("knee"))


@pytest.fixture(scope="module", autouse=True)
def use_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for the module: nothing is left in the user's cache folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VABENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield  # type: ignore[misc]
    patch.undo()


@pytest.fixture
def root(master: Path, tmp_path: Path) -> Path:
    shutil.copytree(master, tmp_path / "knee")
    return tmp_path / "knee"


def checked(root: Path, **settings: object) -> tuple[bool, list[str], str]:
    """Whether it is clean, the faults, and all that was printed."""
    console = Console(file=io.StringIO(), width=80)
    clean = data_command.check(KneeMarkers(root=root, **settings), 0, console, 1)  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return clean, re.findall(r"^fault \d+: (.*)$", text, re.M), text


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_the_folders_give_split_grade_patient_and_side(tmp_path: Path, nested: bool, ending: str) -> None:
    toys.knee(tmp_path, nested=nested, ending=ending, table=False)
    faults = Faults()
    films = read_knees(tmp_path, faults)
    assert faults.found == []
    assert Counter((film.split, film.label) for film in films) == {
        (split, grade): 2 * n for split, n in (("train", 8), ("val", 4), ("test", 4)) for grade in "01234"
    }  # auto_test and Thumbs.db are none
    assert Counter(film.metadata["side"] for film in films) == {"L": 80, "R": 80}
    assert set(Counter(film.patient for film in films).values()) == {2}


def test_osteoarthritis_begins_at_grade_two_and_grades_are_kept(master: Path) -> None:
    suite = KneeMarkers(size=SIZE, root=master)
    data = suite.load(0)
    for split in (data.train, data.val, data.test["aligned"]):
        grades = suite.grades(split.ids)
        np.testing.assert_array_equal(split.y, [grade >= 2 for grade in grades])
        assert set(grades) == {0, 1, 2, 3, 4}
    assert data.group_names[3] == "osteoarthritis/R"
    assert set(data.descriptions["both"]) == set(data.class_names)


@pytest.mark.parametrize("rho", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("split", ["drawn", "given"])
def test_shares_pairs_and_patients(master: Path, rho: float, split: str) -> None:
    suite = KneeMarkers(rho=rho, size=SIZE, split=split, root=master)
    data = suite.load(2)
    for held in (data.train, data.val):
        for c in (0, 1):
            n = int((held.y == c).sum())
            assert int((held.a[held.y == c] == c).sum()) == round(rho * n)
    one, two = data.test["aligned"], data.test["conflicting"]
    assert one.masks is not None
    changed = (one.images != two.images)[:, 0]
    assert changed.any((1, 2)).all()
    assert not (changed & ~one.masks).any()
    sets = [{suite.films[k].patient for k in index.tolist()} for index in suite.draw(2).values()]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 80
    if split == "given":
        assert {suite.films[k].split for k in one.ids} == {"test"}


def test_inverted_crops_are_turned_back_and_counted(master: Path) -> None:
    suite = KneeMarkers(size=SIZE, root=master)
    found = [k for k in range(len(suite.films)) if inverted(suite._pixels[k])]
    assert [suite.films[k].metadata["kl_grade"] for k in found] == ["0", "3"]
    for k in found:
        np.testing.assert_array_equal(suite.film(k), 255 - suite._pixels[k])
        assert not inverted(suite.film(k))
    assert "turned the grey values of 2 crops whose bone is dark" in checked(master, size=SIZE)[2]


def test_the_contract_holds(master: Path) -> None:
    class Here(KneeMarkers):
        def __init__(self) -> None:
            super().__init__(size=SIZE, root=master)

    assert [check for check in _suite_checks(Here) if not check.passed] == []


def test_settings_and_a_missing_folder(tmp_path: Path) -> None:
    assert KneeMarkers().name == "knee_markers-rho0.9"
    assert KneeMarkers(layout="official", split="given", rho=1).name == "knee_markers-rho1.0-official-given"
    with pytest.raises(ConfigError, match="layout is one of curated, official, not 'oai'"):
        KneeMarkers(layout="oai")
    for layout, words in (("curated", "put its folder"), ("official", "download KneeXrayData")):
        with pytest.raises(DataError, match=rf"is not at .*absent: {words}"):
            KneeMarkers(layout=layout, root=tmp_path / "absent").data_hash()


# -- faults -----------------------------------------------------------------------------------------------------------

CROP = "train/1/9000008L.png"  # line 18
Plant = Callable[[Path], object]


def in_table(old: str, new: str) -> Plant:
    def plant(root: Path) -> None:
        text = (root / "metadata.csv").read_text()
        assert old in text
        (root / "metadata.csv").write_text(text.replace(old, new, 1))

    return plant


def moved(old: str, new: str) -> Plant:
    def plant(root: Path) -> None:
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)

    return plant


def copied(old: str, new: str) -> Plant:
    return lambda root: shutil.copy(root / old, root / new)


def without_table(plant: Plant) -> Plant:
    def both(root: Path) -> None:
        (root / "metadata.csv").unlink()
        plant(root)

    return both


def halved(root: Path) -> None:
    data = (root / CROP).read_bytes()
    (root / CROP).write_bytes(data[: len(data) // 2])


FAULTS: dict[str, tuple[Plant, str]] = {
    "image missing": (
        lambda root: (root / CROP).unlink(),
        rf"metadata\.csv, line 18, column file: there is no file '{CROP}'",
    ),
    "image cut short": (halved, r"9000008L\.png cannot be read as an image"),
    "image empty": (lambda root: (root / CROP).write_bytes(b""), r"9000008L\.png is empty \(0 bytes\)"),
    "no row": (copied(CROP, "train/1/9000999L.png"), r"9000999L\.png: no row of .*metadata\.csv names it"),
    "strange name": (without_table(moved(CROP, "train/1/knee.png")), r"train/1/knee\.png: the name is not <7-digit"),
    "strange grade": (
        without_table(moved(CROP, "train/5/9000008L.png")),
        r"train/5: '5' is no Kellgren-Lawrence grade",
    ),
    "grade missing": (
        without_table(lambda root: shutil.rmtree(root / "val/4")),
        r"has no folder val/4; unpack the whole archive",
    ),
    "patient in two splits": (
        without_table(moved(CROP, "test/1/9000008L.png")),
        r"the patient '9000008' is in test and, in .*, in train",
    ),
    "knee with two grades": (
        without_table(copied("train/0/9000000R.png", "train/3/9000000R.png")),
        r"train/3/9000000R\.png: the knee '9000000R' stands already in .*train/0/9000000R\.png",
    ),
    "same bytes of two patients": (
        copied(CROP, "test/1/9000065L.png"),
        r"9000065L\.png\): the image content .* is in patient 9000065 and",
    ),
    "wrong grade": (in_table(f"{CROP},KL1,1,0", f"{CROP},KL1,3,1"), r"line 18, column kl_grade: '3', but .* says '1'"),
    "wrong oa": (in_table(f"{CROP},KL1,1,0", f"{CROP},KL1,1,1"), r"line 18: kl_grade is 1 but oa '1'; osteoarthritis"),
    "unknown grade": (in_table(f"{CROP},KL1,1,0", f"{CROP},KL1,one,0"), r"line 18, column kl_grade: 'one' is not allo"),
    "wrong split": (in_table(f"{CROP},KL1,1,0,train", f"{CROP},KL1,1,0,val"), r"line 18, column split: 'val', but '"),
    "wrong side": (in_table("9000008,L", "9000008,R"), r"line 18, column side: 'R', but .* says 'L'"),
    "row twice": (in_table("train/1/9000008R.png", CROP), rf"line 19: the file '{CROP}' stands there twice"),
    "column misspelt": (in_table("kl_grade", "kl_grades"), r"no column 'kl_grade'; did you mean 'kl_grades'"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_named_with_its_file(root: Path, kind: str) -> None:
    plant, pattern = FAULTS[kind]
    plant(root)
    clean, faults, text = checked(root, size=SIZE)
    assert not clean
    assert [fault for fault in faults if re.search(pattern, fault)], faults
    assert len(faults) <= 3, faults
    assert "no faults" not in text


def test_a_clean_folder_has_no_faults(root: Path) -> None:
    for split in ("drawn", "given"):
        clean, faults, text = checked(root, size=SIZE, split=split)
        assert clean
        assert faults == []
        assert "films: 160 files decoded, 0 cannot be used" in text


# -- the real folder --------------------------------------------------------------------------------------------------


@needs_data
def test_real_counts_are_those_of_the_readme_and_the_check_is_clean() -> None:
    films = read_knees(REAL, Faults())
    counts = Counter((film.split, film.label) for film in films)
    assert len(films) == 2171
    for split, most in (("train", 300), ("val", 60), ("test", 120)):  # at most so many of a grade
        assert [counts[split, grade] for grade in "0123"] == [most] * 4
    assert (counts["train", "4"], counts["val", "4"], counts["test", "4"]) == (173, 27, 51)
    assert len({film.patient for film in films}) == 1862
    for part in KneeMarkers().manifest().parts:
        assert part_digest(REAL, part.files) == (part.count, part.sha256)
    clean, faults, text = checked(REAL)
    assert faults == []
    assert clean
    assert "differs" not in text
    assert "turned the grey values of 28 crops" in text


@needs_data
def test_real_crops_keep_the_contract_and_letters_can_be_told_apart() -> None:
    assert [check for check in check_target("suites.knee_xray:KneeMarkers") if not check.passed] == []
    data = KneeMarkers(split="given").load(0)
    assert [data.group_counts()["test/aligned"][g] for g in data.group_names] == [240, 0, 0, 291]
    one, two = data.test["aligned"], data.test["conflicting"]
    assert not ((one.images != two.images)[:, 0] & ~one.masks).any()  # type: ignore[operator]
    stroke = np.abs(one.images.astype(int) - two.images).max((1, 2, 3))
    assert (stroke > 30).mean() > 0.98  # white letters on burnt-out bone are faint, but there
    assert stroke.min() > 15
    for name in ("train", "val"):
        held = getattr(data, name)
        for c in (0, 1):
            n = int((held.y == c).sum())
            assert int((held.a[held.y == c] == c).sum()) == round(0.9 * n)


@needs_data
def test_the_second_epoch_of_real_crops_is_twenty_times_faster_than_the_first_pass() -> None:
    first, later = toys.epochs(KneeMarkers())
    assert first >= 20 * later


@needs_data
def test_ten_planted_faults_on_real_crops_are_all_found(tmp_path: Path) -> None:
    root = tmp_path / "knee"
    shutil.copytree(REAL, root)
    lone = Counter(film.patient for film in read_knees(REAL, Faults()))
    table = (root / "metadata.csv").read_text().splitlines()
    held = [k for k, line in enumerate(table[1:], 1) if line.startswith("train/") and lone[line.split("/")[2][:7]] == 1]
    files = [table[k].split(",")[0] for k in held]
    (root / files[0]).unlink()
    data = (root / files[1]).read_bytes()
    (root / files[1]).write_bytes(data[: len(data) // 2])
    (root / files[2]).write_bytes(b"")
    (root / files[3]).write_bytes(b"<html>not found</html>")
    table[held[4]] = table[held[4]].replace(",0,0,none,", ",4,1,severe,")
    table[held[5]] = table[held[5]].replace(",0,0,none,", ",0,1,none,")
    table[held[6]] = table[held[6]].replace(",train,", ",test,")
    shutil.copy(root / files[7], root / "test/0" / Path(files[7]).name)
    shutil.copy(root / files[8], root / "train/0/scan.jpg")
    shutil.copy(root / files[9], root / files[10])
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (root / "metadata.csv").write_text("\n".join(table) + "\n")
    name = [Path(file).name for file in files]
    patterns = [
        rf"line {held[0] + 1}, column file: there is no file '{files[0]}'",
        rf"{name[1]} cannot be read as an image \(image file is truncated",
        rf"{name[2]} is empty \(0 bytes\)",
        rf"{name[3]} cannot be read as an image",
        rf"line {held[4] + 1}, column kl_grade: '4', but '{files[4]}' says '0'",
        rf"line {held[5] + 1}: kl_grade is 0 but oa '1'",
        rf"line {held[6] + 1}, column split: 'test', but '{files[6]}' says 'train'",
        rf"the patient '{name[7][:7]}' is in test and, in .*, in train",
        r"train/0/scan\.jpg: the name is not <7-digit patient>",
        rf"{name[10]}\): the image content .* is in patient {name[10][:7]} and",
    ]
    clean, faults, _ = checked(root)
    assert not clean
    for pattern in patterns:
        assert [fault for fault in faults if re.search(pattern, fault)], (pattern, faults)
    assert len(faults) <= 14, faults
