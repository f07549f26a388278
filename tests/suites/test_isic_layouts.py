"""The ISIC layouts on fabricated folders: labels joined, names normalised, patients and lesions in one split."""

from collections.abc import Callable
from pathlib import Path

import pytest
from isic_toys import touch, write_table

from harness.errors import DataError
from suites.isic_layouts import Photograph, photograph_id, read_layout, with_patches
from suites.tables import Faults

ONE_HOT_2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ONE_HOT_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def read(root: Path, layout: str) -> tuple[dict[str, Photograph], list[str]]:
    faults = Faults()
    found = read_layout(root, layout, faults)
    assert len({p.id for p in found}) == len(found)
    return {p.id: p for p in found}, faults.found


def one_hot(code: str, codes: tuple[str, ...]) -> list[str]:
    return ["1.0" if c == code else "0.0" for c in codes]


def units_hold(found: dict[str, Photograph], unit_of: Callable[[str], str]) -> None:
    """All images of a patient or lesion share a split, and every split has some."""
    splits: dict[str, set[str]] = {}
    for name, photo in found.items():
        splits.setdefault(unit_of(name), set()).add(photo.split)
    assert {len(held) for held in splits.values()} == {1}
    assert {p.split for p in found.values()} == {"train", "val", "test"}


# -- 2017 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def isic2017(tmp_path: Path) -> Path:
    names = {
        "Training": ["ISIC_1", "ISIC_2", "ISIC_3"],
        "Validation": ["ISIC_4"],
        "Test_v2": ["ISIC_5", "ISIC_0012970"],
    }
    flags = {"ISIC_1": ("1.0", "0.0"), "ISIC_2": ("0.0", "1.0")}
    for part, held in names.items():
        touch(tmp_path / f"ISIC-2017_{part}_Data", [f"{n}.jpg" for n in held])
        touch(tmp_path / f"ISIC-2017_{part}_Data", [f"{n}_superpixels.png" for n in held])
        touch(tmp_path / f"ISIC-2017_{part}_Data", [f"ISIC-2017_{part}_Data_metadata.csv"])
        touch(
            tmp_path / f"ISIC-2017_{part}_Part1_GroundTruth", [f"{n}_segmentation.png" for n in held if n != "ISIC_3"]
        )
        write_table(
            tmp_path / f"ISIC-2017_{part}_Part3_GroundTruth.csv",
            ("image_id", "melanoma", "seborrheic_keratosis"),
            [(n, *flags.get(n, ("0.0", "0.0"))) for n in held],
        )
    return tmp_path


def test_2017_joins_labels_official_splits_and_lesion_masks(isic2017: Path) -> None:
    found, faults = read(isic2017, "2017")
    assert faults == []
    assert {n: (p.diagnosis, p.malignant, p.split) for n, p in found.items()} == {
        "ISIC_1": ("melanoma", True, "train"),
        "ISIC_2": ("seborrheic_keratosis", False, "train"),
        "ISIC_3": ("nevus", False, "train"),
        "ISIC_4": ("nevus", False, "val"),
        "ISIC_5": ("nevus", False, "test"),
    }
    assert found["ISIC_1"].image.name == "ISIC_1.jpg"  # and not the superpixels
    assert found["ISIC_1"].lesion_mask is not None
    assert found["ISIC_1"].lesion_mask.name == "ISIC_1_segmentation.png"
    assert found["ISIC_3"].lesion_mask is None


def test_2017_leaves_out_the_twins_and_says_so(isic2017: Path) -> None:
    faults = Faults()
    read_layout(isic2017, "2017", faults)
    assert faults.notes == ["left out 1 images that recur in a later split: ISIC_0012970"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("ISIC_4,1.0,1.0", "line 3: melanoma and seborrheic_keratosis are both 1"),
        ("ISIC_9,0.0,0.0", "line 3, column image_id: there is no image file of 'ISIC_9'"),
        ("ISIC_4,0.0,0.0", "line 3: the image_id 'ISIC_4' stands already in line 2"),
        ("ISIC_4,yes,0.0", "line 3, column melanoma: 'yes' is not allowed"),
        ("ISIC_4,0.0", "line 3: 2 cells, but the header has 3"),
    ],
)
def test_2017_names_file_and_line_of_a_fault(isic2017: Path, row: str, sentence: str) -> None:
    with open(isic2017 / "ISIC-2017_Validation_Part3_GroundTruth.csv", "a") as file:
        file.write(row + "\n")
    faults = read(isic2017, "2017")[1] if "already" not in sentence else _faults(isic2017, "2017")
    assert [f for f in faults if "ISIC-2017_Validation_Part3_GroundTruth.csv" in f and sentence in f]


def _faults(root: Path, layout: str) -> list[str]:
    faults = Faults()
    read_layout(root, layout, faults)
    return faults.found


def test_2017_an_image_in_two_splits_is_a_fault(isic2017: Path) -> None:
    touch(isic2017 / "ISIC-2017_Test_v2_Data", ["ISIC_1.jpg"])
    with open(isic2017 / "ISIC-2017_Test_v2_Part3_GroundTruth.csv", "a") as file:
        file.write("ISIC_1,1.0,0.0\n")
    assert any("'ISIC_1' is in test and, in line 2, in train" in f for f in _faults(isic2017, "2017"))


def test_a_missing_table_is_named(isic2017: Path) -> None:
    (isic2017 / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").unlink()
    with pytest.raises(DataError, match=r"has no ground truth \(ISIC-2017_Test_v2_Part3_GroundTruth\.csv\)"):
        read_layout(isic2017, "2017", Faults())


# -- 2018, 2019, HAM10000 ---------------------------------------------------------------------------------------------


def write_2018(root: Path, part: str, names: list[str], code: str = "NV") -> None:
    touch(root / f"ISIC2018_Task3_{part}_Input", [f"{n}.jpg" for n in names])
    stem = f"ISIC2018_Task3_{part}_GroundTruth"
    rows = [(n, *one_hot(code, ONE_HOT_2018)) for n in names]
    write_table(root / f"{stem}/{stem}.csv", ("image", *ONE_HOT_2018), rows)


def test_2018_with_all_parts_keeps_the_official_splits(tmp_path: Path) -> None:
    for part, name, code in (
        ("Training", "ISIC_1", "AKIEC"),
        ("Validation", "ISIC_2", "BKL"),
        ("Test", "ISIC_3", "NV"),
    ):
        write_2018(tmp_path, part, [name], code)
    touch(tmp_path / "ISIC2018_Task1_Training_GroundTruth", ["ISIC_1_segmentation.png"])
    found, faults = read(tmp_path, "2018")
    assert faults == []
    assert {n: (p.diagnosis, p.malignant, p.split) for n, p in found.items()} == {
        "ISIC_1": ("actinic_keratosis", True, "train"),  # pre-malignant: malignant by the stated choice
        "ISIC_2": ("benign_keratosis", False, "val"),
        "ISIC_3": ("nevus", False, "test"),
    }
    assert [n for n, p in found.items() if p.lesion_mask] == ["ISIC_1"]


def test_2018_training_alone_is_split_by_lesion(tmp_path: Path) -> None:
    names = [f"ISIC_{k}" for k in range(90)]
    write_2018(tmp_path, "Training", names)
    groupings = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
    write_table(groupings, ("image", "lesion_id"), [(n, f"HAM_{k // 3}") for k, n in enumerate(names)])
    found, faults = read(tmp_path, "2018")
    assert faults == []
    units_hold(found, lambda name: str(int(name[5:]) // 3))


@pytest.fixture
def isic2019(tmp_path: Path) -> Path:
    """90 images of 30 lesions; two of three names end in `_downsampled`; the last image has no lesion_id."""
    names = [f"ISIC_{k:02d}" + ("_downsampled" if k % 3 else "") for k in range(90)]
    touch(tmp_path / "ISIC_2019_Training_Input", [f"{n}.jpg" for n in names])
    codes = [ONE_HOT_2019[k % 9] for k in range(90)]
    rows = [(n, *one_hot(c, ONE_HOT_2019)) for n, c in zip(names, codes, strict=True)]
    write_table(tmp_path / "ISIC_2019_Training_GroundTruth.csv", ("image", *ONE_HOT_2019), rows)
    lesions = [(n, f"L{k // 3}" if k < 89 else "") for k, n in enumerate(names)]
    write_table(tmp_path / "ISIC_2019_Training_Metadata.csv", ("image", "lesion_id"), lesions)
    return tmp_path


def test_2019_joins_downsampled_names_and_splits_by_lesion(isic2019: Path) -> None:
    found, faults = read(isic2019, "2019")
    assert faults == []
    assert len(found) == 90
    assert found["ISIC_01"].image.name == "ISIC_01_downsampled.jpg"
    del found["ISIC_89"]  # without lesion_id it is a unit of its own
    units_hold(found, lambda name: str(int(name[5:]) // 3))


def test_2019_malignant_is_a_stated_choice_and_unknown_is_neither(isic2019: Path) -> None:
    found, _ = read(isic2019, "2019")
    verdicts = {ONE_HOT_2019[int(n[5:]) % 9]: p.malignant for n, p in found.items()}
    assert {code for code, verdict in verdicts.items() if verdict} == {"MEL", "BCC", "AK", "SCC"}
    assert {code for code, verdict in verdicts.items() if verdict is None} == {"UNK"}


def test_2019_the_split_of_a_lesion_does_not_depend_on_the_others(isic2019: Path) -> None:
    all_of_them, _ = read(isic2019, "2019")
    table = isic2019 / "ISIC_2019_Training_GroundTruth.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:46]) + "\n")  # half of the images
    half, _ = read(isic2019, "2019")
    assert len(half) == 45
    assert all(all_of_them[name].split == photo.split for name, photo in half.items())


def test_2019_two_files_of_one_image_two_rows_and_two_classes_are_faults(isic2019: Path) -> None:
    touch(isic2019 / "ISIC_2019_Training_Input", ["ISIC_01.jpg"])  # beside ISIC_01_downsampled.jpg
    with open(isic2019 / "ISIC_2019_Training_GroundTruth.csv", "a") as file:
        file.write("ISIC_03_downsampled," + ",".join(one_hot("NV", ONE_HOT_2019)) + "\n")
        file.write("ISIC_04," + ",".join(["1"] * 9) + "\n")
    faults = _faults(isic2019, "2019")
    assert any("ISIC_01_downsampled.jpg: the image ISIC_01 has a second file" in f for f in faults)
    assert any("line 92: the image 'ISIC_03' stands already in line 5" in f for f in faults)
    assert any("line 93: exactly one of MEL, NV" in f for f in faults)


def test_ham10000_reads_both_parts_in_any_case_and_splits_by_lesion(tmp_path: Path) -> None:
    words = ("mel", "bcc", "akiec", "nv", "bkl", "df", "vasc")
    names = [f"ISIC_{k}" for k in range(90)]
    touch(tmp_path / "HAM10000_images_part_1", [f"{n}.jpg" for n in names[:50]])
    touch(tmp_path / "ham10000_images_part_2", [f"{n}.jpg" for n in names[50:]])
    rows = [(f"HAM_{k // 2}", n, words[k % 7]) for k, n in enumerate(names)]
    write_table(tmp_path / "HAM10000_metadata", ("lesion_id", "image_id", "dx"), rows)
    found, faults = read(tmp_path, "ham10000")
    assert faults == []
    assert {words[int(n[5:]) % 7] for n, p in found.items() if p.malignant} == {"mel", "bcc", "akiec"}
    units_hold(found, lambda name: str(int(name[5:]) // 2))
    write_table(tmp_path / "HAM10000_metadata", ("lesion_id", "image_id", "dx"), [("HAM_0", "ISIC_0", "mole")])
    assert any("line 2, column dx: 'mole' is not allowed" in f for f in _faults(tmp_path, "ham10000"))


# -- 2020, isic-cli ---------------------------------------------------------------------------------------------------

COLUMNS_2020 = ("image_name", "patient_id", "lesion_id", "diagnosis", "benign_malignant", "target")


def write_2020(root: Path, name: str = "ISIC_2020_Training_GroundTruth_v2.csv", folder: str = "train") -> list[str]:
    names = [f"ISIC_{k}" for k in range(90)]
    touch(root / folder, [f"{n}.jpg" for n in names])
    rows = []
    for k, n in enumerate(names):
        word, verdict = ("melanoma", "malignant") if k % 10 == 0 else ("unknown", "benign")
        rows.append((n, f"IP_{k // 3}", f"IL_{k}", word, verdict, int(verdict == "malignant")))
    write_table(root / name, COLUMNS_2020, rows)
    return names


@pytest.mark.parametrize(
    ("table", "folder"), [("ISIC_2020_Training_GroundTruth_v2.csv", "train"), ("train.csv", "jpeg/train")]
)
def test_2020_splits_by_patient_official_and_kaggle(tmp_path: Path, table: str, folder: str) -> None:
    write_2020(tmp_path, table, folder)
    found, faults = read(tmp_path, "2020")
    assert faults == []
    assert sum(bool(p.malignant) for p in found.values()) == 9
    assert found["ISIC_1"].diagnosis == "unknown"
    assert found["ISIC_1"].malignant is False  # the diagnosis is not known, that it is benign is
    units_hold(found, lambda name: str(int(name[5:]) // 3))


def test_2020_marked_duplicates_join_patients(tmp_path: Path) -> None:
    names = write_2020(tmp_path)
    apart = next(k for k in range(3, 90, 3) if read(tmp_path, "2020")[0][names[k]].split != _split(tmp_path, names[0]))
    duplicates = tmp_path / "ISIC_2020_Training_Duplicates.csv"
    write_table(duplicates, ("image_name_1", "image_name_2"), [(names[0], names[apart])])
    found, _ = read(tmp_path, "2020")
    assert {found[names[k]].split for k in (0, 1, 2, apart, apart + 1, apart + 2)} == {found[names[0]].split}


def _split(root: Path, name: str) -> str:
    return read(root, "2020")[0][name].split


def test_2020_a_target_against_its_word_is_a_fault(tmp_path: Path) -> None:
    write_2020(tmp_path)
    table = tmp_path / "ISIC_2020_Training_GroundTruth_v2.csv"
    table.write_text(table.read_text().replace("melanoma,malignant,1", "melanoma,malignant,0", 1))
    assert any("line 2: target is 0 but benign_malignant 'malignant'" in f for f in _faults(tmp_path, "2020"))


def test_isic_cli_reads_new_and_old_columns_alike(tmp_path: Path) -> None:
    rows = [
        ("ISIC_1", "IP_1", "Malignant", "Malignant melanocytic", "Melanoma Invasive", "", ""),
        ("ISIC_2", "IP_1", "Benign", "Benign epidermal", "Seborrheic keratosis", "", ""),
        ("ISIC_3", "IP_2", "Indeterminate", "", "", "", ""),
        ("ISIC_4", "IP_2", "", "", "", "malignant", "basal cell carcinoma"),
        ("ISIC_5", "IP_3", "", "", "", "benign", "nevus"),
        ("ISIC_6", "IP_3", "Benign", "Benign melanocytic", "Nevus", "", ""),
    ]
    columns = ("isic_id", "patient_id", "diagnosis_1", "diagnosis_2", "diagnosis_3", "benign_malignant", "diagnosis")
    write_table(tmp_path / "metadata.csv", columns, rows)
    touch(tmp_path, [f"ISIC_{k}{'_downsampled' if k == 6 else ''}.jpg" for k in range(1, 7)])
    found, faults = read(tmp_path, "isic-cli")
    assert faults == []
    assert {n: (p.diagnosis, p.malignant) for n, p in found.items()} == {
        "ISIC_1": ("melanoma", True),
        "ISIC_2": ("seborrheic_keratosis", False),
        "ISIC_4": ("basal_cell_carcinoma", True),
        "ISIC_5": ("nevus", False),
        "ISIC_6": ("nevus", False),
    }  # an indeterminate one is neither
    assert found["ISIC_1"].split == found["ISIC_2"].split
    assert found["ISIC_5"].split == found["ISIC_6"].split
    many = [(f"ISIC_{k}", f"IP_{k // 3}", "Benign", "", "Nevus", "", "") for k in range(90)]
    write_table(tmp_path / "metadata.csv", columns, many)
    (tmp_path / "ISIC_6_downsampled.jpg").unlink()
    touch(tmp_path, [f"ISIC_{k}.jpg" for k in range(90)])
    units_hold(read(tmp_path, "isic-cli")[0], lambda name: str(int(name[5:]) // 3))
    write_table(tmp_path / "metadata.csv", columns, [("ISIC_1", "", "Perhaps", "", "", "", "")])
    assert any("line 2: 'perhaps' is neither benign, malignant nor" in f for f in _faults(tmp_path, "isic-cli"))


# -- names and patch folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ISIC_7", "ISIC_7.jpg", "ISIC_7_downsampled", "x/y/ISIC_7_downsampled.JPG"])
def test_an_images_id_is_its_name_without_folder_ending_and_downsampled(name: str) -> None:
    assert photograph_id(name) == "ISIC_7"


def test_a_folder_of_patch_masks_says_who_has_a_patch(isic2019: Path, tmp_path: Path) -> None:
    folder = tmp_path / "segmentation"
    touch(folder, ["ISIC_01_downsampled.jpg", "ISIC_04.png", "notes.txt"])
    faults = Faults()
    found = with_patches(read_layout(isic2019, "2019", faults), folder, faults)
    assert [p.id for p in found if p.has_patch] == ["ISIC_01", "ISIC_04"]
    assert faults.found == []
    touch(tmp_path / "wrong", ["0001.png"])
    with_patches(found, tmp_path / "wrong", faults)
    assert "no file is named after an image of the data set (for example ISIC_00.png)" in faults.found[0]
    with pytest.raises(DataError, match=r"there is no folder .*absent of patch masks"):
        with_patches(found, tmp_path / "absent", faults)
