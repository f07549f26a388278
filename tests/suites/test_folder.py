"""The folder suite: a CSV becomes splits and groups, a bad cell is reported with its place; the tutorial runs."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.errors import ConfigError, DataError
from harness.suite import Suite
from suites.folder import FolderSuite

DOC = Path(__file__).parents[2] / "docs" / "add_a_suite.md"
COLUMNS = ("file", "split", "label", "attribute", "mask", "id")
ROWS: list[tuple[str, ...]] = [
    ("a0.png", "train", "benign", "patch", "m0.png", "p0"),
    ("a1.png", "train", "malignant", "", "", "p1"),
    ("a2.png", "train", "benign", "-1", "", "p0"),
    ("a3.png", "val", "benign", "ruler", "", "p3"),
    ("a4.png", "test", "malignant", "patch", "m4.png", "p4"),
    ("a5.png", "test", "benign", "", "", "p4"),
    ("a6.png", "val_groups", "malignant", "ruler", "", "p6"),
]
Edit = Callable[[list[dict[str, str]]], Any]


def picture(path: Path, grey: int, size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, 0, 255 - grey)).save(path)


def mask(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    image.paste(255, box)
    image.save(path)


def write_csv(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Seven images, two masks and their CSV, edited by the test before it is written."""
    root = tmp_path / "data"
    for k in range(7):
        picture(root / f"a{k}.png", 10 * k)
    mask(root / "m0.png", (0, 0, 20, 10))
    mask(root / "m4.png", (0, 0, 1, 1))

    def write(edit: Edit | None = None, columns: tuple[str, ...] = COLUMNS) -> Path:
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
        if edit is not None:
            edit(rows)
        return write_csv(root / "images.csv", rows, columns)

    return write


def put(row: int, **cells: str) -> Edit:
    return lambda rows: rows[row].update(cells)


def test_groups_are_class_by_attribute(data: Callable[..., Path]) -> None:
    suite = FolderSuite(csv=data(), size=20).load(0)
    assert suite.class_names == ("benign", "malignant")
    assert suite.group_names == tuple(f"{c}/{a}" for c in suite.class_names for a in ("patch", "ruler", "none"))
    assert suite.train.y.tolist() == [0, 1, 0]
    assert suite.train.a.tolist() == [0, -1, -1]
    assert suite.train.g.tolist() == [0, 5, 2]
    assert suite.test["natural"].g.tolist() == [3, 2]
    assert suite.val_groups is not None
    assert suite.val_groups.g.tolist() == [4]
    assert suite.group_counts()["train"] == {**dict.fromkeys(suite.group_names, 0), "benign/patch": 1,
                                             "malignant/none": 1, "benign/none": 1}  # fmt: skip
    assert suite.decorrelated is None
    assert list(suite.test) == ["natural"]


def test_images_are_resized_and_ids_name_the_patient(data: Callable[..., Path]) -> None:
    suite = FolderSuite(csv=data(), size=20).load(0)
    assert suite.train.images.shape == (3, 3, 20, 20)
    assert (suite.train.images[2] == np.array([20, 0, 235], dtype=np.uint8)[:, None, None]).all()
    ids = suite.train.ids.tolist()
    assert ids[0] == ids[2] != ids[1]
    assert len(set(suite.test["natural"].ids.tolist())) == 1
    grey = FolderSuite(csv=data(), size=20, mode="L").load(0)
    assert grey.train.images.shape == (3, 1, 20, 20)


def test_masks_mark_half_covered_pixels_and_never_lose_a_small_object(data: Callable[..., Path]) -> None:
    suite = FolderSuite(csv=data(), size=20).load(0)
    masks = suite.train.masks
    assert masks is not None
    assert masks[0, :10, :10].all()
    assert masks[0].sum() == 100
    assert not masks[1:].any()
    small = FolderSuite(csv=data(), size=10).load(0).test["natural"].masks
    assert small is not None
    assert small[0].sum() == 1
    assert small[0, 0, 0]
    assert suite.val.masks is None
    assert suite.roles.masked == "natural"
    assert (suite.roles.headline, suite.roles.average, suite.roles.grouped) == ("natural", "natural", ("natural",))
    assert suite.roles.aligned is suite.roles.insert is suite.roles.remove is suite.roles.placebo is None


def test_only_file_split_label_are_needed(data: Callable[..., Path]) -> None:
    suite = FolderSuite(csv=data(columns=("label", "file", "split"))).load(0)
    assert suite.group_names == suite.class_names
    assert (suite.train.a == -1).all()
    assert (suite.train.g == suite.train.y).all()
    assert suite.train.masks is None
    assert suite.roles.masked is None
    assert len(set(suite.train.ids.tolist())) == 3


def test_numbers_sort_as_numbers(data: Callable[..., Path]) -> None:
    def grades(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["label"] = "2" if row["label"] == "benign" else "10"

    assert FolderSuite(csv=data(grades)).load(0).class_names == ("2", "10")


def test_every_seed_gives_the_same_arrays(data: Callable[..., Path]) -> None:
    path = data()
    first, other = FolderSuite(csv=path).load(0), FolderSuite(csv=path).load(7)
    assert np.array_equal(first.train.images, other.train.images)
    assert np.array_equal(first.train.ids, other.train.ids)


def test_names_and_params(data: Callable[..., Path]) -> None:
    path = data()
    assert FolderSuite(csv=path).name == "folder-images"
    assert FolderSuite(csv=path, name="knee", size=128, mode="L").name == "folder-knee-128px-L"
    assert FolderSuite(csv=path).params == {"name": "images", "size": 64, "mode": "RGB"}


def test_hash_follows_csv_images_and_masks_not_paths(data: Callable[..., Path], tmp_path: Path) -> None:
    path = data()
    first = FolderSuite(csv=path).data_hash()
    (tmp_path / "data").rename(tmp_path / "moved")
    path = tmp_path / "moved" / "images.csv"
    assert FolderSuite(csv=path).data_hash() == first
    seen = {first}
    picture(path.parent / "a5.png", 99)
    seen.add(FolderSuite(csv=path).data_hash())
    mask(path.parent / "m4.png", (3, 3, 9, 9))
    seen.add(FolderSuite(csv=path).data_hash())
    path.write_text(path.read_text().replace("ruler", "hair"))
    seen.add(FolderSuite(csv=path).data_hash())
    assert len(seen) == 4


def test_root_elsewhere(data: Callable[..., Path], tmp_path: Path) -> None:
    path = data()
    elsewhere = tmp_path / "list.csv"
    path.rename(elsewhere)
    assert len(FolderSuite(csv=elsewhere, root=path.parent).load(0).train) == 3
    with pytest.raises(DataError, match=r"there is no file 'a0.png' under .*set root="):
        FolderSuite(csv=elsewhere).load(0)


def test_sixteen_bits_are_scaled_not_clipped(data: Callable[..., Path]) -> None:
    path = data()
    Image.fromarray(np.full((20, 40), 0x4000, dtype=np.uint16)).save(path.parent / "a1.png")
    assert (FolderSuite(csv=path, mode="L").load(0).train.images[1] == 0x40).all()
    Image.fromarray(np.full((20, 40), 0.5, dtype=np.float32)).save(path.parent / "a1.tiff")
    with pytest.raises(DataError, match=r"line 3, column file: the image has 32-bit pixels"):
        FolderSuite(csv=data(put(1, file="a1.tiff"))).load(0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(1, split="trian"), r"line 3, column split: 'trian' is no split; did you mean 'train'\?"),
        (put(1, split="validation"), r"did you mean 'val"),
        (put(2, split=""), r"line 4, column split: '' is no split; write one of train, val, test, val_groups"),
        (put(2, label=" "), r"line 4, column label: the cell is empty; write the class"),
        (put(3, file="b.png"), r"line 5, column file: there is no file 'b.png' under"),
        (put(3, file=""), r"line 5, column file: the cell is empty"),
        (put(3, file="../images/x.png"), r"line 5, column file: '../images/x.png' lies outside .*set root="),
        (put(0, mask="/etc/hostname"), r"line 2, column mask: '/etc/hostname' lies outside"),
        (put(0, mask="none.png"), r"line 2, column mask: there is no file"),
        (put(4, id="p0"), r"column id: 'p0' is in train \(line 2\) and in test \(line 6\); move it to one split"),
        (put(4, file="a1.png"), r"column file: '.*a1.png' is in train \(line 3\) and in test \(line 6\)"),
        (put(4, file="./a1.png"), r"column file: '.*a1.png' is in train"),
        (put(4, label="odd"), r"line 6, column label: no training image has the class 'odd'"),
        (put(1, label="benign"), r"train holds only the class 'benign'; at least two"),
        (lambda rows: [row.update(split="val") for row in rows], r"no row has split 'train'"),
        (lambda rows: rows.clear(), r"no row has split 'train'"),
        (lambda rows: rows[3].update(split="train"), r"no row has split 'val'"),
    ],
)
def test_bad_cells_are_reported(data: Callable[..., Path], edit: Edit, message: str) -> None:
    path = data(edit)
    with pytest.raises(DataError, match=message) as caught:
        FolderSuite(csv=path).load(0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):
        FolderSuite(csv=path).data_hash()


def test_many_bad_cells_are_counted(data: Callable[..., Path]) -> None:
    path = data(lambda rows: [row.update(label="") for row in rows])
    with pytest.raises(DataError, match=r"line 2, .*line 3, .*line 4, .*; and 4 more"):
        FolderSuite(csv=path).load(0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,split,lable", r"no column 'label': did you mean 'lable'\? Rename it"),
        ("split,label", r"no column 'file': add it; it has split, label"),
        ("file,split,label,atribute", r"a column 'atribute': did you mean 'attribute'\? Rename it, or drop it"),
        ("file,split,label,label", r"the column 'label' twice"),
        ("file;split;label", r"semicolons or tabs; save it with commas"),
        ("", r"no column 'file'"),
    ],
)
def test_bad_headers_are_reported(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "images.csv"
    path.write_text(f"{header}\n")
    with pytest.raises(DataError, match=message):
        FolderSuite(csv=path).load(0)


@pytest.mark.parametrize(("line", "word"), [("a1.png,train", "fewer"), ("a1.png,train,benign,x,y", "more")])
def test_rows_of_another_length(data: Callable[..., Path], line: str, word: str) -> None:
    path = data(columns=("file", "split", "label"))
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(DataError, match=f"line 10 has {word} cells than the header"):
        FolderSuite(csv=path).load(0)


def test_extra_columns_and_a_byte_order_mark_do_no_harm(data: Callable[..., Path]) -> None:
    path = data()
    lines = path.read_text().splitlines()
    path.write_text("\ufeff" + "\n".join([lines[0] + ",age", *(line + ",50" for line in lines[1:])]), encoding="utf-8")
    assert len(FolderSuite(csv=path).load(0).train) == 3


def test_a_file_that_is_no_text_or_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    with pytest.raises(DataError, match=r"cannot be read: No such file.*check the path in csv="):
        FolderSuite(csv=path).data_hash()
    path.write_bytes("file,split,label\nä.png".encode("latin-1"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        FolderSuite(csv=path).load(0)


def test_unreadable_images_are_named(data: Callable[..., Path]) -> None:
    path = data()
    file = path.parent / "a3.png"
    file.write_text("no image")
    with pytest.raises(DataError, match=r"line 5, column file: .*a3.png cannot be read as an image"):
        FolderSuite(csv=path).load(0)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"line 5, column file: .*a3.png cannot be read as an image"):
        FolderSuite(csv=path).load(0)


def test_mask_of_the_wrong_size(data: Callable[..., Path]) -> None:
    path = data()
    mask(path.parent / "m0.png", (0, 0, 5, 5), (20, 20))
    with pytest.raises(
        DataError, match=r"line 2, column mask: the mask m0.png is 20 x 20 pixels but its image is 40 x"
    ):
        FolderSuite(csv=path).load(0)


def test_symbolic_link_to_the_outside_is_refused(data: Callable[..., Path], tmp_path: Path) -> None:
    path = data(put(0, file="link.png"))
    picture(tmp_path / "secret.png", 5)
    (path.parent / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"'link\.png' lies outside"):
        FolderSuite(csv=path).load(0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"size": 4}, "8 to 1024, not 4"),
        ({"size": "64"}, "not '64'"),
        ({"mode": "CMYK"}, "'RGB' or 'L'"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FolderSuite(csv="x.csv", **params)


def test_real_images_load(tmp_path: Path) -> None:
    """Real films in a CSV made here: 40 of each class, the marker's style as attribute."""
    root = os.environ.get("VABENCH_DATA")
    table = Path(root or ".") / "cxr" / "metadata.csv"
    if not root or not table.is_file():
        pytest.skip("VABENCH_DATA holds no cxr/metadata.csv")
    with open(table, newline="") as file:
        films = [row for row in csv.DictReader(file) if row["dataset"] == "kermany" and row["marker_style"]]
    chosen = [row for label in ("0", "1") for row in [r for r in films if r["y"] == label][:40]]
    seen: dict[str, str] = {}
    rows = [
        {
            "file": row["file"],
            "split": seen.setdefault(row["patient"] or row["file"], ("train", "val", "test")[k % 3]),
            "label": row["label"],
            "attribute": row["marker_style"],
            "id": row["patient"] or row["file"],
        }
        for k, row in enumerate(chosen)
    ]
    path = write_csv(tmp_path / "films.csv", rows)
    suite = FolderSuite(csv=path, root=table.parent, mode="L").load(0)
    assert len(suite.train) + len(suite.val) + len(suite.test["natural"]) == 80


# --- the tutorial ----------------------------------------------------------------------------------------------------


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_tutorial_csv_loads(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text(block("csv"))
    for row in csv.DictReader(block("csv").splitlines()):
        picture(tmp_path / row["file"], 50)
        if row["mask"]:
            mask(tmp_path / row["mask"], (0, 0, 9, 9))
    suite = FolderSuite(csv=path).load(0)
    assert suite.class_names == ("benign", "malignant")
    assert suite.roles.masked == "natural"


def test_tutorial_suite_runs() -> None:
    names: dict[str, Any] = {"__name__": "two_bars"}
    exec(block("python"), names)
    suite = names["TwoBars"](rho=0.9)
    assert isinstance(suite, Suite)
    data, again = suite.load(3), suite.load(3)
    assert np.array_equal(data.train.images, again.train.images)
    assert set(data.group_counts()["val_groups"].values()) == {20}
    assert 0.8 < (data.train.a == data.train.y).mean() < 0.97
    shown = {name: split.images[:, 0][~data.test["aligned"].masks & ~data.test["conflicting"].masks]
             for name, split in data.test.items()}  # fmt: skip
    assert np.array_equal(shown["aligned"], shown["conflicting"])
    assert np.array_equal(shown["aligned"], shown["clean"])
    parts = [data.train.ids, data.val.ids, data.test["clean"].ids, data.val_groups.ids]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    assert names["INFO"].factory == "two_bars:TwoBars"
    assert 'two_bars = "two_bars:INFO"' in block("toml")
