"""Letters inserted and markers erased: what changes, where, and how often, on fabricated films."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xray_toys as toys
from PIL import Image

from harness.contract import check_target
from harness.errors import ConfigError, DataError
from harness.suite import SuiteData
from suites import radiographs
from suites.chest_xray import ChestMarkers, KermanyMarkers, KermanyNatural, NihChest
from suites.draws import correlated, drawn_splits, subsampled
from suites.markers import Box, blank, box_mask, draw_letters, erase, glyph, margin_of, stamp

SIZE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    toys.curated_cxr(folder / "cxr")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def places(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VABENCH_DATA", str(data))
    monkeypatch.setenv("VABENCH_CACHE", str(cache))


@pytest.fixture
def kermany() -> SuiteData:
    return KermanyMarkers(rho=0.9, size=SIZE).load(0)


# -- letters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 128, 224])
def test_a_pair_differs_in_the_letters_box_alone_and_nowhere_else(size: int) -> None:
    canvas = toys.film(1, False, 256 if size != 224 else 224, 256 if size != 224 else 224)
    letters = draw_letters(40, len(canvas), np.random.default_rng(0))
    clean = np.array(Image.fromarray(canvas).reduce(len(canvas) // size)) if size != 224 else canvas.copy()
    for row in range(40):
        shown = {letter: clean.copy() for letter in "LR"}
        for letter, image in shown.items():
            stamp(image, canvas, letters, row, letter)
        mask = box_mask(letters.box(row), len(canvas) // size, size)
        for image in shown.values():
            np.testing.assert_array_equal(image[~mask], clean[~mask])
            assert (image[mask].astype(int) - clean[mask]).max() > 60
        assert (shown["L"] != shown["R"]).sum() > 0.15 * mask.sum()


def test_letters_have_the_stated_size_place_and_opacity() -> None:
    letters = draw_letters(5000, 256, np.random.default_rng(0))
    assert (letters.height.min(), letters.height.max()) == (26, 34)  # 30 +- 15 %
    assert (letters.left.min(), letters.left.max()) == (4, 30)
    assert (letters.top.min(), letters.top.max()) == (4, 40)
    assert letters.opacity.min() >= 0.85
    assert letters.opacity.max() <= 1
    share = np.mean([(b[2] - b[0]) * (b[3] - b[1]) for b in map(letters.box, range(5000))]) / 256**2
    assert 0.012 < share < 0.016


def test_an_l_is_a_stem_with_a_foot_and_an_r_has_a_closed_bowl() -> None:
    ell, are = glyph("L", 60, 0.1) > 0.5, glyph("R", 60, 0.1) > 0.5
    assert ell.shape == are.shape  # so both have one box
    border = margin_of(0.1)
    ell, are = (g[border:-border, border:-border] for g in (ell, are))
    for g in (ell, are):
        assert g[:, 2:10].all()  # the stem
        assert 0.25 < g.mean() < 0.7
    assert not ell[:45, 20:].any()
    assert ell[55, 5:35].all()
    assert not are[17, 20:28].any()  # the hole
    assert are[17, 36:44].any()
    assert are[58, 40:50].any()  # the leg
    assert not are[58, 18:30].any()


def test_a_placebo_is_as_large_and_lies_in_the_other_corner() -> None:
    letters, small = draw_letters(20, 256, np.random.default_rng(1)), np.full((64, 64), 90, dtype=np.uint8)
    small[:32] = 10
    for row in range(20):
        image, mask = small.copy(), box_mask(letters.box(row), 4, 64)
        area = blank(image, letters.box(row), 4)
        assert area.sum() == mask.sum()
        assert not (area & mask).any()
        assert not area[:, :32].any()
        np.testing.assert_array_equal(image != small, area)
        assert set(image[area].tolist()) == {50}


# -- erasing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(100, 80), (0, 0), (3, 200), (240, 100), (245, 244)])
def test_an_erased_marker_leaves_no_remnant_and_nothing_else_is_touched(x: int, y: int) -> None:
    columns = np.mgrid[:256, :256][1]
    ground = (60 + columns / 4).astype(np.uint8)
    canvas, box = ground.copy(), Box(x + 0.3, y + 0.2, 10.4, 11.5)
    left, top, right, bottom = box.whole(256)
    canvas[top:bottom, left:right] = 250
    before = canvas.copy()
    area = erase(canvas, box, np.random.default_rng(0))
    assert area == box.grown(2, 2).whole(256)  # the box and two pixels around it
    inside = np.zeros_like(canvas, dtype=np.bool_)
    inside[area[1] : area[3], area[0] : area[2]] = True
    np.testing.assert_array_equal(canvas[~inside], before[~inside])
    off = canvas[inside].astype(float) - ground[inside]
    assert np.abs(off).max() < 14  # noise of sd 2, and at a border a constant instead of the slope
    assert 1 < off.std() < 4


def test_erasing_the_whole_width_uses_what_lies_above_and_below() -> None:
    canvas = np.full((64, 64), 40, dtype=np.uint8)
    canvas[10:12] = 250
    erase(canvas, Box(0, 10, 64, 2), np.random.default_rng(0))
    assert abs(float(canvas.mean()) - 40) < 1
    full = np.full((64, 64), 200, dtype=np.uint8)
    erase(full, Box(0, 0, 64, 64), np.random.default_rng(0))  # nothing is left to go by: the mean
    assert abs(float(full.mean()) - 200) < 1


def test_markers_of_films_are_gone_in_every_rendering(kermany: SuiteData) -> None:
    """The fabricated ink has 250, nothing else is brighter than 200."""
    suite = KermanyMarkers(size=SIZE)
    marked = [k for k, film in enumerate(suite.films) if film.marker is not None]
    assert len(marked) == 8 + 32 + 12 + (4 + 12 + 8) * 2
    for k in marked:
        before, after = suite.film(k), suite.erased(k)
        assert before.max() > 230
        assert after.max() < 190
        marker = suite.films[k].marker
        assert marker is not None
        left, top, right, bottom = suite.on_canvas(k, marker).grown(2, 2).whole(256)
        outside = np.ones_like(before, dtype=np.bool_)
        outside[top:bottom, left:right] = False
        np.testing.assert_array_equal(before[outside], after[outside])
        np.testing.assert_array_equal(after, suite.erased(k))  # the same for every seed
    assert kermany.test["clean"].images.max() < 190


# -- kermany_markers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["KermanyMarkers", "KermanyNatural", "NihChest"])
def test_the_contract_holds(name: str) -> None:
    checks = check_target(f"suites.chest_xray:{name}")
    assert len(checks) >= 6
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.85, 0.9, 1.0])
@pytest.mark.parametrize("split", ["drawn", "given"])
def test_group_shares_are_rho_within_rounding(rho: float, split: str) -> None:
    data = KermanyMarkers(rho=rho, size=SIZE, split=split).load(3)
    for held in (data.train, data.val):
        np.testing.assert_array_equal(held.g, 2 * held.y + held.a)
        for c in (0, 1):
            n = int((held.y == c).sum())
            assert n > 0
            assert int((held.a[held.y == c] == c).sum()) == round(rho * n)
    assert abs(np.corrcoef(data.decorrelated.a, data.decorrelated.y)[0, 1]) < 0.4  # type: ignore[union-attr]


def test_pairs_of_a_test_rendering_differ_in_the_box_alone(kermany: SuiteData) -> None:
    test, roles = kermany.test, kermany.roles
    one, two, clean = (test[name] for name in ("aligned", "conflicting", "clean"))
    assert one.masks is not None
    np.testing.assert_array_equal(one.masks, two.masks)
    assert one.masks.any((1, 2)).all()
    for k in range(len(one)):
        changed = one.images[k, 0] != two.images[k, 0]
        assert changed.any()
        assert not (changed & ~one.masks[k]).any()
        assert not ((one.images[k, 0] != clean.images[k, 0]) & ~one.masks[k]).any()
    assert clean.masks is not None
    assert not clean.masks.any()
    assert set(clean.a.tolist()) == {-1}
    counts = kermany.group_counts()
    both = [counts["test/aligned"][g] + counts["test/conflicting"][g] for g in kermany.group_names]
    assert both[0] == both[1] == int((one.y == 0).sum())
    assert both[2] == both[3] == int((one.y == 1).sum())
    for name, split in test.items():
        np.testing.assert_array_equal(split.ids, one.ids, err_msg=name)
        np.testing.assert_array_equal(split.y, one.y)
    mixed = np.where((test["random"].a == one.a)[:, None, None, None], one.images, two.images)
    np.testing.assert_array_equal(test["random"].images, mixed)
    assert (roles.insert, roles.remove, roles.placebo, roles.masked) == (
        *("conflicting", "clean", "placebo"),
        "conflicting",
    )


def test_no_patient_is_in_two_splits_and_every_film_in_one() -> None:
    suite = KermanyMarkers(size=SIZE)
    patients = [film.patient for film in suite.films]
    assert max(Counter(patients).values()) == 2
    for seed in range(5):
        index = suite.draw(seed)
        sets = [{patients[k] for k in held.tolist()} for held in index.values()]
        assert sum(map(len, sets)) == len(set().union(*sets)) == len(set(patients))
        assert sorted(k for held in index.values() for k in held.tolist()) == list(range(len(patients)))
        shares = [np.mean(suite.y[held]) for held in index.values()]
        assert max(shares) - min(shares) < 0.25  # both classes are in all splits alike
    one, two = (set(suite.draw(seed)["test"].tolist()) for seed in (0, 1))
    assert one != two
    given = KermanyMarkers(size=SIZE, split="given")
    assert {given.films[k].split for k in given.draw(0)["test"].tolist()} == {"test"}


def test_validation_by_groups_shows_both_letters(kermany: SuiteData) -> None:
    held = kermany.val_groups
    assert held is not None
    np.testing.assert_array_equal(held.ids[::2], held.ids[1::2])
    np.testing.assert_array_equal(held.a, np.arange(len(held)) % 2)
    assert len(set(np.bincount(held.g, minlength=4)[:2].tolist())) == 1


def test_equal_seeds_give_equal_arrays_and_two_rhos_are_paired(kermany: SuiteData) -> None:
    again, other = KermanyMarkers(size=SIZE).load(0), KermanyMarkers(rho=0.6, size=SIZE).load(0)
    for name, split in kermany.test.items():
        np.testing.assert_array_equal(split.images, again.test[name].images)
        np.testing.assert_array_equal(split.images, other.test[name].images)
    np.testing.assert_array_equal(kermany.train.images, again.train.images)
    same = kermany.train.a == other.train.a
    np.testing.assert_array_equal(kermany.train.images[same], other.train.images[same])
    assert not same.all()
    assert (KermanyMarkers(size=SIZE).load(1).train.ids[:20] != kermany.train.ids[:20]).any()


def test_names_parameters_and_the_first_films() -> None:
    suite = KermanyMarkers(rho=0.8, size=SIZE, n_train=10, split="given")
    assert suite.name == "kermany_markers-rho0.8-n10-32px-given"
    assert suite.params["n_train"] == 10
    assert KermanyMarkers().name == "kermany_markers-rho0.9"
    assert len(suite.load(0).train) == 10
    with pytest.raises(ConfigError, match="n_train is at most 64 here"):
        KermanyMarkers(n_train=65, split="given").draw(0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rho": 2}, "rho is the fraction of aligned training images, 0 to 1, not 2"),
        ({"size": 8}, "size is a side in pixels, 16 to 1024, not 8"),
        ({"layout": "kaggle"}, "layout is one of curated, official, not 'kaggle'"),
        ({"split": "random"}, "split is drawn .* or given .*, not 'random'"),
        ({"n_train": 1}, "n_train must be a whole number of at least 2, not 1"),
        ({"boxes": "x.csv"}, "boxes= is for layout=official"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        KermanyMarkers(**settings)


def test_a_missing_folder_says_how_to_get_the_data(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for suite in (KermanyMarkers(root=absent), KermanyNatural(root=absent), NihChest(root=absent)):
        with pytest.raises(DataError, match=r"is not at .*absent: put its folder"):
            suite.data_hash()
    for layout in ("nih", "chexpert", "mimic", "rsna"):
        with pytest.raises(DataError, match=r"is not at .*absent: (download|register|become)"):
            ChestMarkers(layout, absent).data_hash()


def test_the_data_hash_covers_table_and_films(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "cxr"
    shutil.copytree(data / "cxr", root)
    seen = [KermanyMarkers(root=root).data_hash()]
    assert KermanyMarkers(root=root).data_hash() == seen[0]
    toys.save(root / "kermany/film025.png", toys.film(999, True))
    seen.append(KermanyMarkers(root=root).data_hash())
    rows = toys.read_rows(root)
    rows[25]["marker_x"] = "7.0"
    toys.write_rows(root, rows)
    seen.append(KermanyMarkers(root=root).data_hash())
    assert len(set(seen)) == 3


# -- kermany_natural --------------------------------------------------------------------------------------------------


def test_natural_markers_stay_and_two_renderings_take_them_away_or_fill_elsewhere() -> None:
    suite = KermanyNatural(size=64)
    data = suite.load(0)
    plain, gone, placebo = (data.test[name] for name in ("natural", "erased", "placebo"))
    styles = [suite.films[k].metadata["marker_style"] for k in plain.ids]
    np.testing.assert_array_equal(plain.a, [style == "bold_sans" for style in styles])
    marked = np.array([style != "none" for style in styles])
    assert plain.masks is not None
    np.testing.assert_array_equal(plain.masks.any((1, 2)), marked)
    for k in range(len(plain)):
        changed = plain.images[k, 0] != gone.images[k, 0]
        assert changed.any() == marked[k]
        assert not (changed & ~suite.marker_mask(int(plain.ids[k]), margin=2)).any()
        assert gone.images[k].max() < 190
        elsewhere = plain.images[k, 0] != placebo.images[k, 0]
        assert elsewhere.any()  # also where there is no marker, so that a fill does not tell the class
        assert not elsewhere[:, :32].any()
    assert data.val_groups is None
    assert data.group_counts()["test/natural"]["normal/bold R"] > 0


# -- nih_chest --------------------------------------------------------------------------------------------------------


def test_nih_letters_and_boxes_of_the_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = NihChest(size=64)
    assert suite.name == "nih_chest-letter-pneumonia-rho0.9"
    assert suite.load(0).train.core is None  # eight test films have a box: too few to say anything by
    monkeypatch.setattr(radiographs, "ENOUGH", 8)
    data = suite.load(0)
    assert data.class_names == ("no pneumonia", "pneumonia")
    test = data.test["aligned"]
    assert test.core is not None
    np.testing.assert_array_equal(test.core.any((1, 2)), test.y == 1)  # the boxes of masses are none of pneumonia
    row = int(np.flatnonzero(test.y)[0])
    lit = np.argwhere(test.core[row])
    assert lit.min(0).tolist() == [20, 20]
    assert lit.max(0).tolist() == [35, 31]
    assert set(data.descriptions["core"]) == set(data.class_names)


# -- draws ------------------------------------------------------------------------------------------------------------


def test_drawn_splits_keep_units_together_and_shares_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    units = [f"P{k // 3}" for k in range(900)]
    kinds = ["rare" if k < 90 else "common" for k in range(900)]
    splits = drawn_splits(units, kinds, {"train": 0.7, "val": 0.1, "test": 0.2}, rng)
    assert all(len(set(splits[k : k + 3])) == 1 for k in range(0, 900, 3))
    for kind in ("rare", "common"):
        held = Counter(s for s, k in zip(splits, kinds, strict=True) if k == kind)
        total = sum(held.values())
        assert [round(held[s] / total, 2) for s in ("train", "val", "test")] == [0.7, 0.1, 0.2]


def test_subsampled_films_have_the_share_and_are_as_many_as_possible() -> None:
    y, a = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    for rho in (0.0, 0.5, 0.9, 1.0):
        rows = subsampled(y, a, y, rho, np.random.default_rng(0))
        for c in (0, 1):
            held = rows[y[rows] == c]
            assert round(float((a[held] == c).mean()), 2) == rho
            assert len(held) == {0.0: 100, 0.5: 200, 0.9: 111, 1.0: 100}[rho]
    assert correlated(y, y, 1.0, np.random.default_rng(0)).tolist() == y.tolist()
