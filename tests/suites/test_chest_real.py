"""The chest films themselves, where VABENCH_DATA has them: counts of its README, clean checks, ten planted faults."""

import csv
import io
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from xray_toys import epochs

from harness.contract import check_target
from suites import data_command
from suites.chest_layouts import read_curated_kermany, read_curated_nih
from suites.chest_xray import KermanyMarkers, KermanyNatural, NihChest
from suites.image_suite import part_digest
from suites.radiographs import RadiographSuite
from suites.tables import Faults

ROOT = Path(os.environ.get("VABENCH_DATA", "")) / "cxr"
pytestmark = pytest.mark.skipif(
    not os.environ.get("VABENCH_DATA") or not (ROOT / "metadata.csv").is_file(),
    reason="VABENCH_DATA names no folder with cxr/metadata.csv",
)
STYLES = {  # README: marker_style -> normal, pneumonia
    "bold_sans": (387, 119),
    "medium_sans": (11, 582),
    "serif": (1, 193),
    "cut_top": (0, 92),
    "none": (4, 177),
}
SUITES: tuple[type[RadiographSuite], ...] = (KermanyMarkers, KermanyNatural, NihChest)


@pytest.fixture(scope="module", autouse=True)
def use_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for the module: nothing is left in the user's cache folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VABENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield  # type: ignore[misc]
    patch.undo()


def checked(suite: RadiographSuite) -> tuple[bool, list[str], str]:
    console = Console(file=io.StringIO(), width=80)
    clean = data_command.check(suite, 0, console, 1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return clean, re.findall(r"^fault \d+: (.*)$", text, re.M), text


def test_counts_are_those_of_the_readme() -> None:
    with open(ROOT / "metadata.csv", newline="", encoding="utf-8") as file:
        sets = Counter(row["dataset"] for row in csv.DictReader(file))
    assert sets == {"kermany": 1566, "kermany_test224": 624, "nih": 1000, "hannover": 243}
    faults = Faults()
    films, nih = read_curated_kermany(ROOT, faults), read_curated_nih(ROOT, faults)
    assert faults.found == faults.notes == []
    assert Counter(film.label == "normal" for film in films) == {True: 403, False: 1163}
    styles = Counter((film.metadata["marker_style"], film.label != "normal") for film in films)
    assert {style: (styles[style, False], styles[style, True]) for style in STYLES} == STYLES
    assert sum(film.marker is not None for film in films) == 1566 - 4 - 177
    assert Counter(film.split for film in films if film.label != "normal") == {"train": 787, "val": 143, "test": 233}
    assert Counter(film.label for film in nih) == {"absent": 500, "present": 500}
    assert len({film.patient for film in nih}) == 682
    both = {film.patient for film in nih if film.label == "absent"} & {f.patient for f in nih if f.label == "present"}
    assert len(both) == 21
    assert Counter(film.metadata["view"] for film in nih if film.label == "absent")["AP"] == 342
    assert Counter(film.metadata["view"] for film in nih if film.label == "present")["AP"] == 225
    assert sum(len(film.findings) for film in nih) == 43  # of the 49 boxes, those of pneumonia


@pytest.mark.parametrize("suite", SUITES)
def test_the_folder_is_the_one_of_the_manifest_and_has_no_faults(suite: type[RadiographSuite]) -> None:
    for part in suite().manifest().parts:  # type: ignore[call-arg]
        assert part_digest(ROOT, part.files) == (part.count, part.sha256)
    clean, faults, text = checked(suite())  # type: ignore[call-arg]
    assert faults == []
    assert clean
    assert "as published" in text
    assert "differs" not in text


@pytest.mark.parametrize("name", ["KermanyMarkers", "KermanyNatural", "NihChest"])
def test_the_contract_holds_on_real_films(name: str) -> None:
    assert [check for check in check_target(f"suites.chest_xray:{name}") if not check.passed] == []


@pytest.mark.parametrize("suite", [KermanyMarkers(), KermanyMarkers(split="given"), NihChest()])
def test_letters_on_real_films(suite: KermanyMarkers | NihChest) -> None:
    data = suite.load(1)
    for held in (data.train, data.val):
        for c in (0, 1):
            n = int((held.y == c).sum())
            assert int((held.a[held.y == c] == c).sum()) == round(0.9 * n)
    one, two = data.test["aligned"], data.test["conflicting"]
    assert one.masks is not None
    changed = (one.images != two.images)[:, 0]
    assert not (changed & ~one.masks).any()
    assert changed.any((1, 2)).all()
    assert 0.014 < one.masks.mean() < 0.018
    stroke = np.abs(one.images.astype(int) - two.images).max((1, 2, 3))
    assert stroke.min() > 25  # an L and an R can be told apart on every film, on white ground too
    patients = [film.patient for film in suite.films]
    sets = [{patients[k] for k in index.tolist()} for index in suite.draw(1).values()]
    assert sum(map(len, sets)) == len(set().union(*sets)) == len(set(patients))


def test_given_splits_are_those_of_the_table_and_drawn_ones_as_large() -> None:
    given, drawn = (KermanyMarkers(split=rule).assigned(0) for rule in ("given", "drawn"))
    assert {split: len(held) for split, held in given.items()} == {"train": 787, "val": 143, "test": 233}
    for split, held in drawn.items():
        assert abs(len(held) - len(given[split])) <= 8
    assert {s: len(h) for s, h in KermanyNatural(split="given").assigned(0).items()} == {
        "train": 1064,
        "val": 189,
        "test": 313,
    }


def test_natural_markers_are_bright_before_and_ordinary_after() -> None:
    """Ink is brighter than its surroundings; what fills the box is not."""
    suite = KermanyNatural()
    gains = []
    for k, film in enumerate(suite.films):
        if film.marker is None:
            continue
        left, top, right, bottom = suite.on_canvas(k, film.marker).whole(suite.canvas)
        outer = suite.on_canvas(k, film.marker).grown(6, 6).whole(suite.canvas)
        before, after = suite.film(k).astype(float), suite.erased(k).astype(float)
        ring = np.zeros(before.shape, dtype=np.bool_)
        ring[outer[1] : outer[3], outer[0] : outer[2]] = True
        margin = suite.on_canvas(k, film.marker).grown(2, 2).whole(suite.canvas)
        ring[margin[1] : margin[3], margin[0] : margin[2]] = False
        top_of_ring = float(np.percentile(before[ring], 99))
        box = (slice(top, bottom), slice(left, right))
        gains.append((before[box].max() - top_of_ring, after[box].max() - top_of_ring))
    bright, left_over = np.array(gains).T
    assert len(gains) == 1385
    assert np.median(bright) > 40
    assert np.percentile(left_over, 99) < 15


@pytest.mark.parametrize("suite", SUITES)
def test_the_second_epoch_is_twenty_times_faster_than_the_first_pass_over_the_files(
    suite: type[RadiographSuite],
) -> None:
    first, later = epochs(suite())  # type: ignore[call-arg]
    assert first >= 20 * later


def test_ten_planted_faults_are_all_found(tmp_path: Path) -> None:
    root = tmp_path / "cxr"
    root.mkdir()
    shutil.copytree(ROOT / "kermany", root / "kermany")
    with open(ROOT / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held = [k for k, r in enumerate(rows) if r["dataset"] == "kermany" and r["label"] == "pneumonia"]
    marked = [k for k in held if rows[k]["has_marker"] == "1" and rows[k]["split"] == "train"]
    test = [k for k in held if rows[k]["split"] == "test"]
    single = [k for k, n in Counter(rows[k]["patient"] for k in held).items() if n == 1]
    lone = [k for k in marked if rows[k]["patient"] in single]
    a, b, c, d, e, f, g, h = lone[:8]
    (root / rows[a]["file"]).unlink()
    data = (root / rows[b]["file"]).read_bytes()
    (root / rows[b]["file"]).write_bytes(data[: len(data) // 2])
    (root / rows[c]["file"]).write_bytes(b"")
    rows[d]["findings"] = "Fungal pneumonia"
    rows[e]["split"] = "dev"
    rows[f]["label"] = "normal"
    rows[g]["marker_x"] = "400"
    rows[h]["patient"] = rows[test[0]]["patient"]
    shutil.copy(root / rows[lone[8]]["file"], root / rows[lone[9]]["file"])
    rows.append(dict(rows[lone[10]]))
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    clean, faults, _ = checked(KermanyMarkers(root=root))
    assert not clean
    name = [Path(row["file"]).name for row in rows]
    patterns = [
        rf"line {a + 2}, column file: there is no file 'kermany/{name[a]}'",
        rf"{name[b]} cannot be read as an image \(image file is truncated",
        rf"{name[c]} is empty \(0 bytes\)",
        rf"line {d + 2}, column findings: 'Fungal pneumonia' is not allowed",
        rf"line {e + 2}, column split: 'dev' is not allowed",
        rf"line {f + 2}: the findings are '.*' but label is 'normal' and y 1",
        rf"line {g + 2}: the marker's box \(400, .*\) leaves its film",
        rf"the patient '{re.escape(rows[h]['patient'])}' is in (train|test) and, in line",
        rf"\({name[lone[9]]}\): the image content .* \({name[lone[8]]}\)",
        rf"line {len(rows) + 1}: the file 'kermany/{name[lone[10]]}' stands already in line {lone[10] + 2}",
    ]
    for pattern in patterns:
        assert [fault for fault in faults if re.search(pattern, fault)], (pattern, faults)
    assert len(faults) <= 11, faults
