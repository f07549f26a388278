"""isic_patches and isic_natural on a fabricated folder: shares, pairs, interventions, disjoint splits, empty groups."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from isic_toys import PATCH_COLOUR, curated, read_rows, save_mask, save_photo, write_rows, write_table
from test_transplant import grown

from harness.errors import ConfigError, DataError
from harness.evaluate import score
from harness.suite import SuiteData
from suites.isic import IsicNatural, IsicPatches, _shared_out
from suites.isic_suite import IsicSuite

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return curated(tmp_path_factory.mktemp("isic"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VABENCH_CACHE", str(cache))


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root, tmp_path / "isic")
    return tmp_path / "isic"


_LOADED: dict[str, SuiteData] = {}


@pytest.fixture
def patches(root: Path) -> SuiteData:
    if "patches" not in _LOADED:
        _LOADED["patches"] = IsicPatches(rho=0.9, size=SIZE, root=root).load(0)
    return _LOADED["patches"]


@pytest.fixture
def natural(root: Path) -> SuiteData:
    if "natural" not in _LOADED:
        _LOADED["natural"] = IsicNatural(size=SIZE, root=root).load(0)
    return _LOADED["natural"]


def all_splits(data: SuiteData) -> dict[str, np.ndarray]:
    held = {"train": data.train.ids, "val": data.val.ids, "test": data.test[data.roles.average].ids}
    return held if data.val_groups is None else held | {"val_groups": data.val_groups.ids}


def disjoint(sets: list[set]) -> bool:
    return len(set().union(*sets)) == sum(map(len, sets))


# -- isic_patches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 1.0])
def test_the_aligned_share_of_either_class_is_rho_to_rounding(root: Path, rho: float) -> None:
    data = IsicPatches(rho=rho, size=SIZE, root=root).load(3)
    for split in (data.train, data.val):
        for c in (0, 1):
            own = split.y == c
            aligned = int((split.a[own] == 1 - c).sum())
            assert aligned == own.sum() - (own.sum() - round(rho * int(own.sum())))
        np.testing.assert_array_equal(split.a == 1, split.masks.any((1, 2)))  # type: ignore[union-attr]


def test_splits_are_disjoint_and_the_official_test_stays_whole(root: Path, patches: SuiteData) -> None:
    held = {name: set(ids.tolist()) for name, ids in all_splits(patches).items()}
    assert disjoint(list(held.values()))
    rows = read_rows(root)
    assert held["test"] == {k for k, row in enumerate(rows) if row["split"] == "test"}
    assert {rows[k]["split"] for k in held["train"]} == {"train"}
    moved = {k for k in held["val"] | held["val_groups"] if rows[k]["split"] == "train"}
    # a quarter of the 12 melanomas and of the 60 benign images of train join the small official validation split
    assert len(moved) == 3 + 15
    assert not any(rows[k]["has_patch"] == "1" for ids in held.values() for k in ids)


def test_donors_are_disjoint_between_splits_and_natural_patches_alone(root: Path) -> None:
    suite, rows = IsicPatches(size=SIZE, root=root), read_rows(root)
    for seed in range(4):
        donors = {name: set(held.tolist()) for name, held in suite.draw(seed).donors.items()}
        assert set(donors) == {"train", "val", "val_groups", "test"}
        assert disjoint(list(donors.values()))
        assert set().union(*donors.values()) == {k for k, row in enumerate(rows) if row["has_patch"] == "1"}
        assert all(donors.values())
    assert suite.draw(0).donors["test"].tolist() != suite.draw(1).donors["test"].tolist()


@pytest.mark.parametrize("number", [8, 9, 10, 11, 12, 24])
def test_every_split_has_a_donor_from_eight_on(copy: Path, number: int) -> None:
    rows = read_rows(copy)
    patched = [row for row in rows if row["has_patch"] == "1"]
    write_rows(copy, [row for row in rows if row not in patched[number:]])
    donors = IsicPatches(size=SIZE, root=copy).draw(0).donors
    assert sum(map(len, donors.values())) == number
    assert all(len(held) for held in donors.values())


def test_donors_of_one_patient_serve_one_split(copy: Path) -> None:
    rows = read_rows(copy)
    patched = iter(range(24))
    for row in rows:
        row["patient_id"] = f"P{next(patched) // 3}" if row["has_patch"] == "1" and row["split"] == "train" else ""
    write_rows(copy, rows)
    suite = IsicPatches(size=SIZE, root=copy)
    for seed in range(5):
        patients = [{rows[k]["patient_id"] or k for k in held} for held in suite.draw(seed).donors.values()]
        assert disjoint(patients)


def test_fewer_than_eight_patients_with_patches_are_refused(copy: Path) -> None:
    rows = read_rows(copy)
    for row in rows:  # 24 photographs of 7 patients
        row["patient_id"] = f"P{int(row['isic_id'][5:]) % 7}" if row["has_patch"] == "1" else ""
        row["split"] = "train" if row["has_patch"] == "1" else row["split"]
    write_rows(copy, rows)
    with pytest.raises(DataError, match="of 7 patients or lesions, at least 8 are needed"):
        IsicPatches(size=SIZE, root=copy).load(0)


def test_the_mask_is_where_the_pixels_changed(patches: SuiteData) -> None:
    patched, clean = patches.test["patched"], patches.test["clean"]
    changed = (patched.images != clean.images).any(1)
    masks = patched.masks
    assert masks is not None
    assert masks.any((1, 2)).all()
    assert changed[masks].all()
    for row in range(len(masks)):
        assert not (changed[row] & ~grown(masks[row])).any()  # the blurred edge, at most one pixel wide
    assert clean.masks is not None
    assert not clean.masks.any()
    inside = patched.images.transpose(0, 2, 3, 1)[masks]
    assert (np.abs(inside.astype(int) - PATCH_COLOUR).max(1) < 60).mean() > 0.75  # real pixels of a patch, not a tint


def test_patches_seldom_cover_the_lesion(patches: SuiteData) -> None:
    both = patches.test["patched"]
    lesion = both.core | both.masks  # `core` is the lesion without what the patch covers
    clean = patches.test["clean"].core
    covered = (clean & both.masks).sum() / clean.sum()
    assert 0 <= covered < 0.02
    assert lesion.sum() >= clean.sum()
    assert not (both.core & both.masks).any()


def test_test_images_are_rendered_in_all_groups_as_pairs(patches: SuiteData) -> None:
    test, roles = patches.test, patches.roles
    for split in test.values():
        np.testing.assert_array_equal(split.ids, test["clean"].ids)
        np.testing.assert_array_equal(split.g, 2 * split.y + split.a)
    aligned, conflicting = test["aligned"], test["conflicting"]
    np.testing.assert_array_equal(aligned.a, 1 - aligned.y)
    np.testing.assert_array_equal(conflicting.a, aligned.y)
    for split in (aligned, conflicting, test["random"]):  # nothing but the two renderings of each image
        both = np.where((split.a == 1)[:, None, None, None], test["patched"].images, test["clean"].images)
        np.testing.assert_array_equal(split.images, both)
    counts = patches.group_counts()
    both_ways = [counts["test/aligned"][g] + counts["test/conflicting"][g] for g in patches.group_names]
    assert both_ways == [18, 18, 8, 8]
    assert set(np.unique(test["random"].a)) == {0, 1}
    assert (roles.insert, roles.remove, roles.placebo, roles.aligned) == ("conflicting", "clean", "placebo", "aligned")


def test_validation_by_groups_shows_every_image_both_ways(patches: SuiteData) -> None:
    held = patches.val_groups
    assert held is not None
    np.testing.assert_array_equal(held.ids[::2], held.ids[1::2])
    np.testing.assert_array_equal(held.a, np.arange(len(held)) % 2)
    counts = np.bincount(held.g, minlength=4)
    assert counts.min() > 0
    assert counts[0] == counts[1]
    assert counts[2] == counts[3]


def test_the_decorrelated_training_split_shows_the_same_images(root: Path, patches: SuiteData) -> None:
    held = patches.decorrelated
    assert held is not None
    np.testing.assert_array_equal(held.ids, patches.train.ids)
    same = held.a == patches.train.a
    np.testing.assert_array_equal(held.images[same], patches.train.images[same])
    drawn = [IsicPatches(size=SIZE, root=root).load(seed) for seed in range(5)]
    correlations = [float(np.corrcoef(d.decorrelated.a, d.decorrelated.y)[0, 1]) for d in drawn]  # type: ignore[union-attr]
    assert abs(np.mean(correlations)) < 0.18  # three standard errors of 5 x 54 images
    assert np.corrcoef(patches.train.a, patches.train.y)[0, 1] < -0.7


def test_a_removal_takes_the_patch_and_nothing_else(patches: SuiteData) -> None:
    aligned, clean = patches.test["aligned"], patches.test["clean"]
    changed = (aligned.images != clean.images).any(1)
    np.testing.assert_array_equal(changed.any((1, 2)), aligned.a == 1)
    for row in np.flatnonzero(aligned.a):
        assert not (changed[row] & ~grown(aligned.masks[row])).any()


def test_a_placebo_changes_as_much_elsewhere_and_misses_lesion_and_patch(patches: SuiteData) -> None:
    aligned, placebo = patches.test["aligned"], patches.test["placebo"]
    changed = (aligned.images != placebo.images).any(1)
    masks, lesion = patches.test["patched"].masks, patches.test["clean"].core
    assert changed.any((1, 2)).all()  # every image gets one, also where it has no patch
    assert not (changed & lesion).any()
    assert not (changed & aligned.masks).any()
    np.testing.assert_allclose(changed.sum((1, 2)), masks.sum((1, 2)), rtol=0.25)
    np.testing.assert_allclose(changed.sum(), masks.sum(), rtol=0.05)
    np.testing.assert_array_equal(placebo.a, aligned.a)
    np.testing.assert_array_equal(placebo.masks, aligned.masks)
    filled = placebo.images.transpose(0, 2, 3, 1)[changed]
    assert np.abs(filled.astype(int) - (215, 165, 145)).max() < 12  # skin, neither lesion nor patch


def test_equal_seeds_give_equal_arrays_and_other_seeds_others(root: Path, patches: SuiteData) -> None:
    again = IsicPatches(rho=0.9, size=SIZE, root=root).load(0)
    for name in ("train", "val", "val_groups", "decorrelated"):
        one, two = getattr(patches, name), getattr(again, name)
        for field in ("images", "y", "a", "g", "ids", "masks", "core"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    for name, split in patches.test.items():
        np.testing.assert_array_equal(split.images, again.test[name].images)
    other = IsicPatches(rho=0.9, size=SIZE, root=root).load(1)
    assert set(other.train.ids) != set(patches.train.ids)
    order = {i: k for k, i in enumerate(other.test["patched"].ids)}
    rows = [order[i] for i in patches.test["patched"].ids]
    assert (other.test["patched"].masks[rows] != patches.test["patched"].masks).any()
    np.testing.assert_array_equal(other.test["clean"].images[rows], patches.test["clean"].images)


def test_two_rhos_are_paired(root: Path, patches: SuiteData) -> None:
    other = IsicPatches(rho=0.6, size=SIZE, root=root).load(0)
    np.testing.assert_array_equal(other.train.ids, patches.train.ids)
    np.testing.assert_array_equal(other.test["patched"].images, patches.test["patched"].images)
    same = other.train.a == patches.train.a
    np.testing.assert_array_equal(other.train.images[same], patches.train.images[same])


@pytest.mark.parametrize(
    ("target", "diagnoses"),
    [
        ("seborrheic_keratosis", {"seborrheic_keratosis"}),
        ("melanoma", {"melanoma"}),
        ("malignant", {"melanoma"}),
    ],
)
def test_the_target_is_a_stated_choice(root: Path, target: str, diagnoses: set[str]) -> None:
    suite, rows = IsicPatches(target=target, size=SIZE, root=root), read_rows(root)
    data = suite.load(0)
    for split in (data.train, data.val, data.test["clean"]):
        assert {rows[k]["diagnosis"] for k in split.ids[split.y == 1]} == diagnoses
        assert not diagnoses & {rows[k]["diagnosis"] for k in split.ids[split.y == 0]}
    assert target in suite.name
    assert suite.params["target"] == target
    assert data.class_names == (("benign", "malignant") if target == "malignant" else data.class_names)
    assert set(next(iter(data.descriptions.values()))) == set(data.class_names)


def test_n_train_takes_a_first_part(root: Path, patches: SuiteData) -> None:
    small = IsicPatches(n_train=10, size=SIZE, root=root)
    np.testing.assert_array_equal(small.draw(0).index["train"], patches.train.ids[:10])
    assert small.name.endswith("-n10")
    with pytest.raises(ConfigError, match="n_train is at most 54 here"):
        IsicPatches(n_train=55, size=SIZE, root=root).draw(0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rho": 1.5}, "rho is the fraction of aligned training images, 0 to 1, not 1.5"),
        ({"rho": True}, "rho is the fraction"),
        ({"target": "nevus"}, "target is one of seborrheic_keratosis, melanoma, malignant, not 'nevus'"),
        ({"size": 8}, "size is a side in pixels, 16 to 1024, not 8"),
        ({"layout": "2021"}, "layout is one of curated, 2017, .*not '2021'"),
        ({"n_train": 1}, "n_train must be a whole number of at least 2, not 1"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        IsicPatches(**settings)


def test_a_missing_folder_says_how_to_get_the_data(tmp_path: Path) -> None:
    for suite in (IsicPatches(root=tmp_path / "absent"), IsicNatural(layout="2017", root=tmp_path / "absent")):
        with pytest.raises(DataError, match=r"is not at .*absent: (put its folder|download the Training)"):
            suite.data_hash()


def test_the_data_hash_covers_table_photographs_and_masks(copy: Path) -> None:
    def value() -> str:
        return IsicPatches(size=SIZE, root=copy).data_hash()

    seen = [value()]
    assert value() == seen[0]
    save_photo(copy / "images/ISIC_0000000.jpg", 999)
    seen.append(value())
    save_mask(copy / "masks/ISIC_0000001.png", np.ones((64, 64), dtype=np.bool_))
    seen.append(value())
    (copy / "metadata.csv").write_text((copy / "metadata.csv").read_text() + "\n")
    seen.append(value())
    assert len(set(seen)) == 4


# -- isic_natural -----------------------------------------------------------------------------------------------------


def test_natural_patches_are_on_benign_images_alone_and_shared_out(root: Path, natural: SuiteData) -> None:
    rows = read_rows(root)
    ids = all_splits(natural)
    assert disjoint([set(held.tolist()) for held in ids.values()])
    patched = {name: sum(rows[k]["has_patch"] == "1" for k in held) for name, held in ids.items()}
    assert patched == {"train": 14, "val": 4, "test": 6}  # 60, 15 and 25 % of 24
    for split in (natural.train, natural.val, *natural.test.values()):
        np.testing.assert_array_equal(split.a, [rows[k]["has_patch"] == "1" for k in split.ids])
        assert not (split.a * split.y).any()


def test_removing_fills_the_patches_and_filling_fills_every_image(natural: SuiteData) -> None:
    plain, removed, filled = (natural.test[name] for name in ("natural", "removed", "filled"))
    gone = (plain.images != removed.images).any(1)
    np.testing.assert_array_equal(gone.any((1, 2)), plain.a == 1)
    for row in np.flatnonzero(plain.a):
        assert gone[row][plain.masks[row]].all()
        assert not (gone[row] & ~grown(plain.masks[row])).any()
        inside = removed.images[row].transpose(1, 2, 0)[plain.masks[row]]
        assert np.abs(inside.astype(int) - (215, 165, 145)).max() < 60  # no blue is left: the rest is the edge
    assert (plain.images != filled.images).any((1, 2, 3)).all()  # so a fill does not tell the class
    np.testing.assert_array_equal(filled.images[plain.a == 1], removed.images[plain.a == 1])


def test_the_empty_group_is_not_applicable_and_never_zero(natural: SuiteData) -> None:
    assert natural.group_counts()["test/natural"]["malignant/patch"] == 0
    assert natural.group_names[3] == "malignant/patch"
    perfect = {name: np.eye(2)[split.y] for name, split in natural.test.items()}
    found = score(perfect, natural)
    assert found["group_accuracy"] == [1.0, 1.0, 1.0, None]
    assert found["group_counts"][3] == 0
    assert found["wga"] == 1.0  # an accuracy of 0 in the empty group would be the worst
    wrong = {name: np.eye(2)[1 - split.y] for name, split in natural.test.items()}
    assert score(wrong, natural)["group_accuracy"] == [0.0, 0.0, 0.0, None]
    assert score(wrong, natural)["worst_group"] != 3


def test_no_patient_is_in_two_splits_where_some_of_their_images_have_patches(tmp_path: Path) -> None:
    """Patched images were shared out again although other images of the same patient stayed in their split."""
    rows = []
    for k in range(150):
        patched, malignant = k % 3 == 0, k % 5 == 1 or k == 60
        save_photo(tmp_path / f"ISIC_{k}.jpg", k, patched)
        if patched:
            save_mask(tmp_path / f"patches/ISIC_{k}.png", np.eye(64, dtype=np.bool_))
        rows.append((f"ISIC_{k}", f"IP_{k // 2}", "Malignant" if malignant else "Benign", "Nevus"))
    write_table(tmp_path / "metadata.csv", ("isic_id", "patient_id", "diagnosis_1", "diagnosis_3"), rows)
    settings = {"size": SIZE, "layout": "isic-cli", "root": tmp_path, "patches": tmp_path / "patches"}
    suites: list[IsicSuite] = [IsicNatural(**settings), IsicPatches(target="malignant", **settings)]
    for suite in suites:
        for seed in range(3):
            drawn = suite.draw(seed)  # type: ignore[attr-defined]
            index = drawn if isinstance(drawn, dict) else drawn.index
            assert disjoint([{f"{k // 2}" for k in held.tolist()} for held in index.values()])
            assert all(len(held) for held in index.values())
    data = suites[0].load(0)
    for split in (data.val, data.test["natural"]):
        assert not (split.a * split.y).any()
        assert split.a.any()


def test_a_few_patches_are_shared_out_by_patient() -> None:
    units = [f"P{k // 4}" for k in range(40)]
    parts = _shared_out(np.arange(40), units, np.random.default_rng(0))
    assert {name: len(held) for name, held in parts.items()} == {"train": 24, "val": 8, "test": 8}
    assert disjoint([{units[k] for k in held} for held in parts.values()])
