"""The curated ISIC 2017 folder itself, where VABENCH_DATA has it: the counts of its README, no fault, real patches."""

import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_transplant import grown

from harness.suite import SuiteData
from suites import data_command
from suites.image_suite import part_digest
from suites.isic import IsicNatural, IsicPatches
from suites.isic_layouts import TWINS_2017, read_layout
from suites.tables import Faults

ROOT = Path(os.environ.get("VABENCH_DATA", "")) / "isic"
pytestmark = pytest.mark.skipif(
    not os.environ.get("VABENCH_DATA") or not (ROOT / "metadata.csv").is_file(),
    reason="VABENCH_DATA names no folder with isic/metadata.csv",
)
README = {  # split -> benign, benign with patch, malignant, malignant with patch
    "train": (1505, 121, 373, 1),
    "val": (97, 23, 30, 0),
    "test": (483, 0, 117, 0),
}


@pytest.fixture(scope="module", autouse=True)
def use_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for the module: nothing is left in the user's cache folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VABENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield  # type: ignore[misc]
    patch.undo()


class Keeping(IsicPatches):
    """Keeps what the check loads: decoding 2746 images and transplanting takes seconds."""

    kept: SuiteData

    def load(self, seed: int) -> SuiteData:
        self.kept = super().load(seed)
        return self.kept


@pytest.fixture(scope="module")
def checked(use_cache: None) -> tuple[bool, str, SuiteData]:
    """Whether the folder is clean, what `vabench data check` printed, and the splits at data seed 0."""
    suite, console = Keeping(), Console(file=io.StringIO(), width=80)
    clean = data_command.check(suite, 0, console, 1)
    return clean, console.file.getvalue(), suite.kept  # type: ignore[attr-defined]


@pytest.fixture
def loaded(checked: tuple[bool, str, SuiteData]) -> SuiteData:
    return checked[2]


def test_the_tables_counts_are_those_of_the_readme() -> None:
    faults = Faults()
    found = read_layout(ROOT, "curated", faults)
    assert faults.found == []
    counts = Counter((p.split, bool(p.malignant), p.has_patch) for p in found)
    left_out = Counter()  # type: ignore[var-annotated]
    for line in (ROOT / "metadata.csv").read_text().splitlines()[1:]:
        cells = line.split(",")
        if cells[1] in TWINS_2017:
            left_out[cells[5], cells[2] == "malignant", cells[6] == "1"] += 1
    assert sum(left_out.values()) == 4
    for split, numbers in README.items():
        kinds = ((False, False), (False, True), (True, False), (True, True))
        assert tuple(counts[split, *kind] + left_out[split, *kind] for kind in kinds) == numbers
    assert left_out["test", False, False] + left_out["test", True, False] == 0  # the official test stays whole
    diagnoses = Counter((p.diagnosis, p.split) for p in found if p.id not in TWINS_2017)
    assert sum(n for (d, _), n in diagnoses.items() if d == "melanoma") == 374 + 30 + 117
    assert diagnoses["seborrheic_keratosis", "test"] == 90


def test_the_twins_are_the_images_that_lie_twice_in_the_folder() -> None:
    by_content: dict[str, list[str]] = {}
    for path in sorted((ROOT / "images").glob("*.jpg")):
        by_content.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path.stem)
    lines = (ROOT / "metadata.csv").read_text().splitlines()[1:]
    split = {line.split(",")[1]: line.split(",")[5] for line in lines}
    crossing = [names for names in by_content.values() if len({split[name] for name in names}) > 1]
    assert len(crossing) == 4
    assert {name for names in crossing for name in names} & set(TWINS_2017) == set(TWINS_2017)
    order = ("train", "val", "test")
    for names in crossing:  # the one of the earlier split is left out
        assert min(names, key=lambda name: order.index(split[name])) in TWINS_2017


def test_the_folder_is_the_one_that_the_manifest_describes() -> None:
    for part in IsicPatches().manifest().parts:
        assert part_digest(ROOT, part.files) == (part.count, part.sha256)


def test_the_real_folder_has_no_faults(checked: tuple[bool, str, SuiteData]) -> None:
    clean, text, _ = checked
    assert clean
    assert "left out 4 images that recur in a later split" in text
    assert "images: 2746 files decoded, 0 cannot be used" in text
    assert "fault 1" not in text


def test_isic_patches_has_the_official_test_in_all_groups(loaded: SuiteData) -> None:
    counts = loaded.group_counts()
    assert list(counts["test/aligned"].values()) == [0, 510, 90, 0]
    assert list(counts["test/conflicting"].values()) == [510, 0, 0, 90]
    train = list(counts["train"].values())
    n0, n1 = sum(train[:2]), sum(train[2:])
    assert train == [n0 - round(0.9 * n0), round(0.9 * n0), round(0.9 * n1), n1 - round(0.9 * n1)]
    ids = [loaded.train.ids, loaded.val.ids, np.unique(loaded.val_groups.ids), loaded.test["clean"].ids]  # type: ignore[union-attr]
    assert len(np.unique(np.concatenate(ids))) == sum(map(len, ids))


def test_real_patches_change_their_mask_alone_and_placebos_miss_the_lesion(loaded: SuiteData) -> None:
    patched, clean, placebo = (loaded.test[name] for name in ("patched", "clean", "placebo"))
    masks, lesion = patched.masks, clean.core
    assert masks is not None
    assert lesion is not None
    change = np.abs(patched.images.astype(int) - clean.images).max(1)
    assert masks.any((1, 2)).all()
    assert (change > 0)[masks].mean() > 0.999
    assert change[~masks].sum() / change.sum() < 0.02  # the blurred edge
    assert max(change[k][~grown(masks[k])].max() for k in range(len(masks))) <= 1  # one grey value, from rounding
    known = lesion.any((1, 2))
    assert known.sum() > 300
    assert (lesion & masks)[known].sum() / lesion[known].sum() < 0.02  # patches lie beside the lesion
    moved = (placebo.images != loaded.test["aligned"].images).any(1)
    assert (lesion & moved)[known].sum() / lesion[known].sum() < 0.03
    assert not (moved & loaded.test["aligned"].masks).any()  # type: ignore[operator]
    np.testing.assert_allclose(moved.sum(), masks.sum(), rtol=0.15)


def test_isic_natural_has_no_malignant_image_with_a_patch_to_test_on() -> None:
    suite, drawn = IsicNatural(), []
    for seed in range(3):
        drawn.append(suite.draw(seed))
        photos = {name: [suite._photos[k] for k in held] for name, held in drawn[-1].items()}
        table = {
            name: np.bincount([2 * bool(p.malignant) + p.has_patch for p in held], minlength=4).tolist()
            for name, held in photos.items()
        }
        assert table == {"train": [1502, 86, 373, 1], "val": [96, 22, 30, 0], "test": [483, 36, 117, 0]}
    assert set(drawn[0]["test"].tolist()) != set(drawn[1]["test"].tolist())
