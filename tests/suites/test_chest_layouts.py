"""The official layouts of the chest X-ray sets on fabricated folders, with their oddities; what is wrong is named."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xray_toys as toys

from harness.contract import _suite_checks
from harness.errors import ConfigError, DataError
from suites import decode
from suites.chest_archives import READERS, Question, with_drains
from suites.chest_layouts import read_kermany
from suites.chest_xray import ChestMarkers, KermanyMarkers, NihChest
from suites.image_cache import survey
from suites.radiographs import Radiograph
from suites.tables import Faults

PNEUMONIA = Question("Pneumonia")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VABENCH_CACHE", str(tmp_path / "cache"))


def read(root: Path, layout: str, question: Question = PNEUMONIA) -> tuple[dict[str, Radiograph], Faults]:
    faults = Faults()
    found = READERS[layout](root, question, faults)
    assert len({film.id for film in found}) == len(found)
    return {film.id: film for film in found}, faults


def patients_hold(films: dict[str, Radiograph]) -> None:
    splits: dict[str, set[str]] = {}
    for film in films.values():
        splits.setdefault(film.patient, set()).add(film.split)
    assert {len(held) for held in splits.values()} == {1}
    assert {film.split for film in films.values()} == {"train", "val", "test"}


def in_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# -- Kermany ----------------------------------------------------------------------------------------------------------


def test_kermany_labels_come_from_folder_and_name_and_official_test_stays(tmp_path: Path) -> None:
    toys.kermany_official(tmp_path)
    faults = Faults()
    films = read_kermany(tmp_path, faults)
    assert faults.found == []
    assert len(films) == 116  # .DS_Store and __MACOSX are none
    for film in films:
        assert (film.label == "normal") == (film.image.parent.name == "NORMAL")
        assert film.label == "normal" or {"bacterial": "_bacteria_", "viral": "_virus_"}[film.label] in film.image.name
        assert (film.split == "test") == (film.image.parts[-3] == "test")  # the tiny official val joins train
    patients_hold({film.id: film for film in films})
    person = next(film for film in films if film.image.name.startswith("person1_") and film.split != "test")
    assert person.patient == "person1"
    other = next(film for film in films if film.image.name.startswith("person1_") and film.split == "test")
    assert other.patient == "test person1"  # numbers count anew there
    assert read_kermany(tmp_path / "chest_xray", Faults())[0].image == films[0].image  # the inner folder works too
    names = {film.patient for film in films if film.label == "normal"}
    assert any(name.startswith("NORMAL2-IM-") for name in names)


def test_kermany_boxes_from_a_table_of_another_size_erase_the_marker(tmp_path: Path) -> None:
    toys.kermany_official(tmp_path / "full")
    pneumonia = sorted((tmp_path / "full/chest_xray").rglob("person*.jpeg"))
    rows = [
        (f"kermany/{path.stem}.jpg", 1, "serif", 12, 10, 10, 12, toys.WIDE * 2, toys.HIGH * 2)
        for path in pneumonia[:-3]
    ]
    head = ("file", "has_marker", "marker_style", "marker_x", "marker_y", "marker_w", "marker_h", "width", "height")
    toys.write_table(tmp_path / "boxes.csv", head, [*rows, ("nih/x.jpg", "", "", "", "", "", "", 256, 256)])
    suite = KermanyMarkers(layout="official", root=tmp_path / "full", boxes=tmp_path / "boxes.csv", size=64)
    faults = Faults()
    suite.inspect(faults)
    assert faults.found == []
    assert faults.notes == ["the burned-in markers of 61 films are not known and stay (boxes=)"]  # 58 normal, 3 others
    known = [k for k, film in enumerate(suite.films) if film.marker is not None]
    assert len(known) == 55
    for k in known:
        assert suite.film(k).max() > 220
        assert suite.erased(k).max() < 200
    assert suite.name == "kermany_markers-rho0.9-official"
    data = suite.load(0)
    assert sum(data.group_counts()["test/aligned"].values()) == len(data.test["clean"]) > 0


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (
            lambda base: (base / "test/PNEUMONIA").rename(base / "old"),
            r"has no folder test/PNEUMONIA; unpack the",
        ),
        (
            lambda base: next((base / "train/PNEUMONIA").glob("person1_*")).rename(base / "train/PNEUMONIA/scan7.jpeg"),
            r"scan7\.jpeg: the name says neither patient nor germ",
        ),
    ],
)
def test_kermany_names_a_missing_folder_and_a_strange_name(
    tmp_path: Path, plant: Callable[[Path], object], sentence: str
) -> None:
    toys.kermany_official(tmp_path)
    plant(tmp_path / "chest_xray")
    faults = Faults()
    try:
        read_kermany(tmp_path, faults)
    except DataError as error:
        faults.add(str(error))
    assert len(faults.found) == 1
    assert re.search(sentence, faults.found[0])


# -- NIH --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kaggle": True}, {"trailing": True}])
def test_nih_reads_both_folder_layouts_and_the_header_with_commas(tmp_path: Path, options: dict) -> None:
    toys.nih_full(tmp_path, **options)
    films, faults = read(tmp_path, "nih")
    assert faults.found == []
    assert len(films) == 120
    assert sum(film.label == "present" for film in films.values()) == 40
    patients_hold(films)
    first = films["00000001_000"]
    assert (first.patient, first.metadata["view"], first.split != "test") == ("00000001", "PA", True)
    assert films["00000040_002"].split == "test"  # as the list says
    assert first.findings[0] == (256, 512, 128, 256)
    assert "00000002_000" not in {film.id for film in films.values() if film.findings}  # Infiltrate is another finding
    question = Question("Infiltration")
    assert [film.id for film in read(tmp_path, "nih", question)[0].values() if film.findings] == ["00000002_000"]


def test_nih_without_lists_splits_patients_by_a_hash_and_says_so(tmp_path: Path) -> None:
    toys.nih_full(tmp_path, lists=False)
    films, faults = read(tmp_path, "nih")
    patients_hold(films)
    assert faults.notes == ["train_val_list.txt and test_list.txt are not there: patients are split by a hash"]


def test_nih_what_is_wrong_is_named(tmp_path: Path) -> None:
    toys.nih_full(tmp_path)
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    lines = table.read_text().splitlines()
    lines[5] = lines[5].replace(lines[5].split(",")[1], "Pnuemonia")
    cells = lines[6].split(",")
    lines[6] = ",".join([*cells[:3], "", *cells[4:]])
    lines.append(lines[7])
    table.write_text("\n".join(lines))
    (tmp_path / "images/00000004_000.png").unlink()
    (tmp_path / "images/00000004_001.png").unlink()
    with open(tmp_path / "test_list.txt", "a") as file:
        file.write("\n00000001_000.png")
    _, faults = read_all(tmp_path, "nih")
    text = "\n".join(faults.found)
    assert "line 6, column Finding Labels: 'Pnuemonia' is no finding of this set" in text
    assert "line 122: the Image Index '00000003_000.png' stands already in line 8" in text
    assert "line 7, column Patient ID: the cell is empty" in text
    assert "2 of 119 films have no file" in text
    assert "00000004_000.png" in text
    assert "test_list.txt, line 31: 00000001_000.png is in both lists" in text
    partial = read_all(tmp_path, "nih", Question("Pneumonia", partial=True))[1]
    assert any("left out: 2 of 119 films have no file" in note for note in partial.notes)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"has no test_list\.txt, the list beside it is there"):
        read_all(tmp_path, "nih")


def read_all(root: Path, layout: str, question: Question = PNEUMONIA) -> tuple[list[Radiograph], Faults]:
    faults = Faults()
    return READERS[layout](root, question, faults), faults


def test_a_patient_in_both_lists_of_the_nih_is_a_fault(tmp_path: Path) -> None:
    toys.nih_full(tmp_path)
    in_text(tmp_path / "test_list.txt", "00000040_002.png", "00000001_002.png")
    in_text(tmp_path / "train_val_list.txt", "00000001_002.png", "00000040_002.png")
    faults = Faults()
    NihChest(layout="nih", root=tmp_path).inspect(faults)
    assert [f for f in faults.found if "the patient '00000001' is in test and" in f]


def test_limit_keeps_the_same_films_for_every_machine(tmp_path: Path) -> None:
    toys.nih_full(tmp_path)
    few, _ = read(tmp_path, "nih", Question("Pneumonia", limit=5))
    for split in ("train", "val", "test"):
        for label in ("present", "absent"):
            assert sum((f.split, f.label) == (split, label) for f in few.values()) <= 5
    assert few.keys() == read(tmp_path, "nih", Question("Pneumonia", limit=5))[0].keys()


def test_drains_are_subsampled_to_rho_and_the_published_image_split_is_not_used(tmp_path: Path) -> None:
    toys.nih_full(tmp_path / "nih", patients=120)
    table = toys.drain_table(tmp_path / "nih_drain_meta.csv", patients=120)
    settings = {"attribute": "drain", "layout": "nih", "root": tmp_path / "nih", "drains": table, "size": 32}
    suite = NihChest(rho=0.8, **settings)
    assert suite.name == "nih_chest-drain-pneumothorax-rho0.8-32px-nih"
    films = {film.id: film for film in suite.films}
    assert len(films) == 360
    faults = Faults()
    suite.inspect(faults)
    assert faults.found == []
    assert faults.notes == ["left out 2 films of nih_drain_meta.csv that are not in the data set"]
    patients_hold(films)
    data = suite.load(0)
    assert data.class_names == ("no pneumothorax", "pneumothorax")
    assert data.group_names[3] == "pneumothorax/drain"
    for c in (0, 1):
        held = data.train.a[data.train.y == c] == c
        assert abs(held.sum() - 0.8 * len(held)) <= 0.6  # one film, rounded
    even = data.decorrelated
    assert even is not None
    assert len({int(((even.y == c) & (even.a == a)).sum()) for c in (0, 1) for a in (0, 1) if c == 0}) == 1
    assert list(data.test) == ["natural"]
    assert all(data.group_counts()["test/natural"].values())
    assert set(data.descriptions["spurious"]) == set(data.class_names)
    faults = Faults()
    with_drains([], table, faults)
    assert faults.found == [f"{table}: none of its 362 films is in the data set; correct drains= or root="]
    for wrong in ({"attribute": "drain"}, {"attribute": "tube"}, {**settings, "target": "Mass"}):
        with pytest.raises(ConfigError, match=r"attribute=drain needs layout=nih|attribute is letter or drain"):
            NihChest(**wrong)


# -- CheXpert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "train_present", "train_absent"), [("drop", 15, 30), ("positive", 30, 30), ("negative", 15, 45)]
)
@pytest.mark.parametrize("folder", ["CheXpert-v1.0-small", "CheXpert-other-name"])
def test_chexpert_cuts_the_path_prefix_and_treats_uncertain_labels_by_the_policy(
    tmp_path: Path, policy: str, train_present: int, train_absent: int, folder: str
) -> None:
    toys.chexpert(tmp_path, folder)
    for root in (tmp_path, tmp_path / folder):
        films, faults = read(root, "chexpert", Question("Pneumonia", policy))  # type: ignore[arg-type]
        assert faults.found == []
        labels = [film.label for name, film in films.items() if name.startswith("train/")]
        assert (labels.count("present"), labels.count("absent")) == (train_present, train_absent)  # a blank is absent
        assert all("frontal" in name for name in films)
        assert all(film.image.is_file() for film in films.values())
        assert {film.split for name, film in films.items() if name.startswith("valid/")} == {"val"}
        patients_hold(films)


def test_chexpert_what_is_wrong_is_named(tmp_path: Path) -> None:
    toys.chexpert(tmp_path)
    table = tmp_path / "CheXpert-v1.0-small/train.csv"
    in_text(table, "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg", "patient00001/view1_frontal.jpg")
    in_text(table, "Frontal", "Frontall")  # the header's name comes first
    _, faults = read_all(tmp_path, "chexpert")
    assert any("there is no column 'Frontal/Lateral'; did you mean 'Frontall/Lateral'" in f for f in faults.found)
    assert any(
        "line 2, column Path: 'patient00001/view1_frontal.jpg' is not FOLDER/train/patientN" in f for f in faults.found
    )
    in_text(table, "Frontall/", "Frontal/")
    in_text(table, ",-1.0,", ",-2.0,")
    (tmp_path / "CheXpert-v1.0-small/train/patient00005/study1/view1_frontal.jpg").unlink()
    _, faults = read_all(tmp_path, "chexpert")
    assert any("line 6, column Pneumonia: '-2.0' is not allowed" in f for f in faults.found)
    assert any("1 of " in f and "patient00005/study1/view1_frontal.jpg" in f for f in faults.found)
    (tmp_path / "CheXpert-v1.0-small/valid.csv").unlink()
    with pytest.raises(DataError, match=r"has no table of labels \(valid\.csv\)"):
        read_all(tmp_path, "chexpert")


# -- MIMIC ------------------------------------------------------------------------------------------------------------


def test_mimic_joins_three_compressed_tables_and_keeps_the_official_splits(tmp_path: Path) -> None:
    toys.mimic(tmp_path)
    films, faults = read(tmp_path, "mimic", Question("Pneumonia", "positive"))
    assert faults.found == []
    assert len(films) == 47  # frontal films of studies with labels
    assert faults.notes == ["left out 1 films whose study has no row of labels"]
    assert all(film.image.is_file() and film.metadata["view"] == "PA" for film in films.values())
    assert sum(film.label == "present" for film in films.values()) == 23  # 1.0 and -1.0
    patients_hold(films)
    for table in tmp_path.glob("*.csv.gz"):  # unpacked tables are read as well
        (tmp_path / table.stem).write_bytes(gzip.decompress(table.read_bytes()))
        table.unlink()
    assert read(tmp_path, "mimic", Question("Pneumonia", "positive"))[0].keys() == films.keys()
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").rename(tmp_path / "mimic-cxr-2.0.0-negbio.csv")
    assert read(tmp_path, "mimic", Question("Pneumonia", "positive"))[0].keys() == films.keys()


def test_mimic_what_is_wrong_is_named(tmp_path: Path) -> None:
    toys.mimic(tmp_path)
    split = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    lines = gzip.decompress(split.read_bytes()).decode().splitlines()
    lines[3] = lines[3].replace("train", "training")
    del lines[5]
    split.write_bytes(gzip.compress("\n".join(lines).encode()))
    _, faults = read_all(tmp_path, "mimic")
    assert any("split.csv.gz, line 4, column split: 'training' is not allowed; did you" in f for f in faults.found)
    assert any("has no row in mimic-cxr-2.0.0-split.csv.gz; download that table again" in f for f in faults.found)
    split.write_bytes(split.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"split\.csv\.gz is a damaged gzip file .*; download it again"):
        read_all(tmp_path, "mimic")


# -- RSNA -------------------------------------------------------------------------------------------------------------


def test_rsna_joins_rows_of_a_film_and_people_through_the_mapping(tmp_path: Path) -> None:
    toys.rsna(tmp_path)
    films, faults = read(tmp_path, "rsna")
    assert faults.found == faults.notes == []
    assert len(films) == 60
    sick = films["0000aaaa-bbbb"]
    assert (sick.label, len(sick.findings), sick.metadata["class"]) == ("present", 2, "Lung Opacity")
    assert films["0001aaaa-bbbb"].patient == sick.patient == "00000000"
    patients_hold(films)
    (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"x": 1}]')
    with pytest.raises(DataError, match="is not the published list of subset_img_id and img_id"):
        read_all(tmp_path, "rsna")


def test_rsna_dicom_files_are_decoded_whatever_their_polarity_and_bits(tmp_path: Path) -> None:
    toys.rsna(tmp_path, mapping=False)
    suite = ChestMarkers("rsna", tmp_path, size=32)
    faults = Faults()
    suite.inspect(faults)
    assert faults.found == []
    assert faults.notes[0].startswith("pneumonia-challenge-dataset-mappings_2018.json is not there")
    order = {film.id: k for k, film in enumerate(suite.films)}
    found = survey(suite.requests()["films"])
    assert found.errors == ()
    assert found.repaired == {"monochrome1": ("0001aaaa-bbbb.dcm",), "dicom_range": ("0002aaaa-bbbb.dcm",)}
    for number in (0, 1, 2, 5):
        expected = toys.film(number, False, 32, 32).astype(int)
        path = suite.films[order[f"{number:04d}aaaa-bbbb"]].image
        pixels = decode.read_image(path, "L").pixels.astype(int)
        if number == 2:  # rescaled to -1024..., then a window of the values 2 * 8 * grey - 1024 = -1024 .. 3056
            np.testing.assert_allclose(pixels, expected, atol=2)
        else:
            np.testing.assert_array_equal(pixels, expected)  # MONOCHROME1 is turned back


def test_rsna_what_is_wrong_is_named(tmp_path: Path) -> None:
    toys.rsna(tmp_path)
    table = tmp_path / "stage_2_train_labels.csv"
    in_text(table, "0000aaaa-bbbb,256,128,200,300,1", "0000aaaa-bbbb,left,128,200,300,1")
    in_text(table, "0001aaaa-bbbb,,,,,0", "0001aaaa-bbbb,,,,,0\n0001aaaa-bbbb,1,1,1,1,1")
    in_text(table, "0002aaaa-bbbb,,,,,0", "0002aaaa-bbbb,,,,,yes")
    (tmp_path / "stage_2_train_images/0004aaaa-bbbb.dcm").unlink()
    damaged = tmp_path / "stage_2_train_images/0005aaaa-bbbb.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    _, faults = read_all(tmp_path, "rsna")
    text = "\n".join(faults.found)
    assert "line 2: Target is 1 but x, y, width and height are not four numbers" in text
    assert "line 5: the film '0001aaaa-bbbb' has Target 1 here and another value above" in text
    assert "line 6, column Target: 'yes' is not allowed; write one of 0, 1" in text
    assert "1 of 59 films have no file" in text
    suite = ChestMarkers("rsna", tmp_path, size=32)
    errors = survey(suite.survey_requests(Faults())["films"]).errors
    assert len(errors) == 1
    assert "0005aaaa-bbbb.dcm cannot be read as an image" in errors[0]


# -- all archives -----------------------------------------------------------------------------------------------------

MAKERS = {"nih": toys.nih_full, "chexpert": toys.chexpert, "mimic": toys.mimic, "rsna": toys.rsna}


@pytest.mark.parametrize("layout", MAKERS)
def test_every_archive_becomes_a_suite_that_keeps_the_contract(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path / "set")

    class Here(ChestMarkers):
        def __init__(self) -> None:
            super().__init__(layout, tmp_path / "set", uncertain="positive", size=32)

    assert [check for check in _suite_checks(Here) if not check.passed] == []
    suite = Here()
    faults = Faults()
    suite.inspect(faults)
    assert faults.found == []
    assert suite.table_files()
    data = suite.load(0)
    assert min(data.group_counts()["train"].values()) >= 1
    assert suite.name.startswith(f"chest_markers-{layout}-pneumonia-upositive-rho0.9-32px")


def test_the_question_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    for settings, sentence in (
        ({"target": "Flu"}, "target of layout chexpert is one of Enlarged Cardiomediastinum, .*not 'Flu'"),
        ({"uncertain": "maybe"}, "uncertain is drop, positive or negative, not 'maybe'"),
        ({"limit": -1}, "limit must be a whole number of at least 0, not -1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ChestMarkers("chexpert", tmp_path, **settings)
