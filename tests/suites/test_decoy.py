"""The decoy suites: what their docstrings promise, on scikit-learn's digits and on arrays in the place of MNIST's."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from harness.errors import ConfigError
from harness.suite import Split, SuiteData
from suites import decoy, idx
from suites.decoy import DecoyDigits, DecoyFashion, DecoyMNIST, DecoySuite

SIZES = {"n_train": 1000, "n_val": 200, "n_val_groups": 100, "n_test": 600}
real_mnist = pytest.mark.skipif(
    not os.environ.get("VABENCH_DATA"), reason="VABENCH_DATA is not set: the real MNIST files are needed"
)


@pytest.fixture
def fake_mnist(monkeypatch: pytest.MonkeyPatch) -> idx.IdxData:
    """Digits repeated to MNIST's 70,000, some of them with ink in a corner."""
    images, labels = decoy._hard_digits()
    which = np.arange(70_000) % len(labels)
    data = idx.IdxData(images[which], labels[which])
    data.images[::100, 0:3, 0:3] = 200
    monkeypatch.setattr(idx, "load", lambda which: data)
    return data


@pytest.fixture(params=["digits", "ross", "cdep", "fashion"])
def suite(request: pytest.FixtureRequest, fake_mnist: idx.IdxData) -> DecoySuite:
    make: dict[str, Callable[[], DecoySuite]] = {
        "digits": lambda: DecoyDigits(rho=0.9),
        "ross": lambda: DecoyMNIST("ross", rho=0.9, **SIZES),
        "cdep": lambda: DecoyMNIST("cdep", rho=0.9, **SIZES),
        "fashion": lambda: DecoyFashion(rho=0.9, **SIZES),
    }
    return make[request.param]()


def splits(data: SuiteData) -> dict[str, Split]:
    named = {"train": data.train, "val": data.val, "val_groups": data.val_groups, "decorrelated": data.decorrelated}
    assert all(split is not None for split in named.values())
    return {**named, **{f"test/{name}": split for name, split in data.test.items()}}  # type: ignore[dict-item]


def grey(split: Split) -> np.ndarray:
    """The one grey of every image's square; fails where a square has two."""
    inside = split.images[:, 0][split.masks].reshape(len(split), -1)
    assert (inside == inside[:, :1]).all()
    return inside[:, 0].astype(int)


def test_square_shows_the_attribute_in_one_corner(suite: DecoySuite) -> None:
    data = suite.load(0)
    side = suite.patch
    corners = [(slice(a, a + side), slice(b, b + side)) for a in (0, 28 - side) for b in (0, 28 - side)]
    for name, split in splits(data).items():
        if name in ("test/clean", "test/inverted"):
            continue
        assert (grey(split) == 255 - 25 * split.a).all(), name
        held = np.stack([split.masks[:, r, c].all((1, 2)) for r, c in corners])
        assert (held.sum(0) == 1).all()
        assert (split.masks.sum((1, 2)) == side**2).all()
        assert (held.sum(1) > 0).all()  # every corner is used
    assert (grey(data.test["aligned"]) == 255 - 25 * data.test["aligned"].y).all()


def test_groups_are_class_by_conflict(suite: DecoySuite) -> None:
    data = suite.load(0)
    names = data.class_names
    assert data.group_names == tuple(f"{c}/{kind}" for c in names for kind in ("aligned", "conflicting"))
    for split in splits(data).values():
        assert (split.g == 2 * split.y + (split.a != split.y)).all()
    assert (data.test["conflicting"].a != data.test["conflicting"].y).all()
    assert set(np.unique(data.test["conflicting"].a)) == set(range(10))
    assert (data.test["aligned"].a == data.test["aligned"].y).all()
    assert (data.test["clean"].a == -1).all()


@pytest.mark.parametrize(("rho", "conflicting"), [(1.0, 0), (0.97, 28), (0.5, 475), (0.0, 950)])
def test_rho_is_exact_and_even_over_classes(rho: float, conflicting: int) -> None:
    train = DecoyDigits(rho=rho).load(3).train
    wrong = train.a != train.y
    assert wrong.sum() == conflicting  # 950 - round(rho * 950)
    for c in range(10):
        share = (1 - rho) * (train.y == c).sum()
        assert abs(wrong[train.y == c].sum() - share) <= 1


def test_val_has_the_training_rho_and_every_wrong_grey_occurs(fake_mnist: idx.IdxData) -> None:
    data = DecoyMNIST(rho=0.6, n_train=5000).load(0)
    assert (data.val.a != data.val.y).sum() == 200
    wrong = data.train.a != data.train.y
    offset = (data.train.a - data.train.y)[wrong] % 10
    counts = np.bincount(offset, minlength=10)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 2000 / 9).max() < 5 * np.sqrt(2000 / 9)


def test_decorrelated_is_train_with_grey_independent_of_class(fake_mnist: idx.IdxData) -> None:
    data = DecoyMNIST(rho=1.0, n_train=5000).load(0)
    free = data.decorrelated
    assert free is not None
    assert (free.ids == data.train.ids).all()
    assert (free.masks == data.train.masks).all()
    assert abs((free.a == free.y).mean() - 0.1) < 0.02
    assert np.abs(np.bincount(free.a, minlength=10) / 5000 - 0.1).max() < 0.02


def test_val_groups_fill_all_groups_equally(suite: DecoySuite) -> None:
    counts = suite.load(1).group_counts()["val_groups"]
    assert set(counts.values()) == {5}
    assert len(counts) == 20


def test_renderings_differ_inside_the_mask_only(suite: DecoySuite) -> None:
    test = suite.load(0).test
    clean, mask = test["clean"].images[:, 0], test["aligned"].masks
    assert not test["clean"].masks.any()
    for name, split in test.items():
        assert (split.ids == test["aligned"].ids).all()
        assert (split.y == test["aligned"].y).all()
        if name not in ("clean", "placebo"):
            assert (split.masks == mask).all()
            assert (split.images[:, 0] == clean)[~mask].all(), name
        if name != "clean":
            assert not (split.core & split.masks).any()
        assert (split.core == (clean > decoy.INK) & ~split.masks).all()


def test_clean_is_the_image_itself(fake_mnist: idx.IdxData) -> None:
    clean = DecoyMNIST(n_train=100).load(0).test["clean"]
    assert (clean.images[:, 0] == fake_mnist.images[clean.ids]).all()
    assert (clean.images[:, 0, :3, :3] == 200).all((1, 2)).sum() == 100  # ink in a corner survives removal


def test_placebo_is_an_equal_patch_beside_core_and_corners(suite: DecoySuite) -> None:
    data = suite.load(0)
    aligned, placebo = data.test["aligned"], data.test["placebo"]
    base, shown = aligned.images[:, 0].astype(int), placebo.images[:, 0].astype(int)
    assert (placebo.a == placebo.y).all()
    assert (placebo.masks == aligned.masks).all()
    side, changed = suite.patch, base != shown
    corner = np.zeros((28, 28), dtype=bool)
    for rows in (slice(0, side), slice(28 - side, 28)):
        for columns in (slice(0, side), slice(28 - side, 28)):
            corner[rows, columns] = True
    assert not changed[:, corner].any()
    assert not (changed & aligned.core).any()
    assert (changed.sum((1, 2)) == side**2).all()
    levels = np.array([np.unique(shown[k][changed[k]])[[0, -1]] for k in range(len(shown))])
    assert (levels[:, 0] == levels[:, 1]).all()
    assert set(levels[:, 0]) == {255 - 25 * k for k in range(10)}
    assert abs((levels[:, 0] == 255 - 25 * placebo.y).mean() - 0.1) < 0.08  # its grey does not tell the class


def test_placebo_covers_least_where_the_object_fills_the_border() -> None:
    base = np.full((1, 28, 28), 200, dtype=np.uint8)
    base[0, 24:, 10:13] = 0  # the only gap, three pixels wide
    zero = np.zeros(1, dtype=np.int64)
    scene = decoy.Scene(base, zero, zero, zero, 4)
    for seed in range(5):
        shown = scene.placebo(np.random.default_rng(seed)).images[0, 0]
        assert (shown[24:, 10:13] > 0).all()


def test_insert_replaces_and_remove_restores() -> None:
    base = np.zeros((3, 28, 28), dtype=np.uint8)
    base[:, 10:18, 12:15] = 250
    y, corner = np.array([0, 5, 9]), np.array([0, 2, 3])
    scene = decoy.Scene(base, y, np.arange(3), corner, 4)
    shown = scene.insert(np.array([4, 0, 9]))
    assert shown.images[0, 0, 0, 0] == 155
    assert shown.images[1, 0, 27, 0] == 255
    assert shown.images[2, 0, 27, 27] == 30
    assert (scene.remove().images[:, 0] == base).all()
    assert base.sum() == 3 * 8 * 3 * 250  # renderings never write into the base images


def test_equal_seeds_equal_arrays_other_seeds_other_ones(suite: DecoySuite) -> None:
    first, again, other = (splits(suite.load(seed)) for seed in (4, 4, 5))
    for name, split in first.items():
        for field in ("images", "y", "a", "g", "ids", "masks", "core"):
            assert np.array_equal(getattr(split, field), getattr(again[name], field)), (name, field)
    assert not np.array_equal(first["train"].ids, other["train"].ids)
    assert not np.array_equal(first["train"].masks, other["train"].masks)


def test_suites_at_two_rhos_and_sizes_are_paired() -> None:
    small, large = DecoyDigits(rho=1.0, n_train=400, n_test=347).load(0), DecoyDigits(rho=0.5).load(0)
    assert (small.train.ids == large.train.ids[:400]).all()
    assert (small.test["random"].images == large.test["random"].images).all()


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_disjoint_and_leave_the_critic_pool(suite: DecoySuite, seed: int) -> None:
    data = suite.load(seed)
    pool = suite.critic_pool()
    groups = data.val_groups
    assert groups is not None
    parts = [data.train.ids, data.val.ids, groups.ids, data.test["clean"].ids, pool.ids]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert pool.images.dtype == np.uint8
    assert pool.images.shape[1:] == (1, 28, 28)


def test_pools(fake_mnist: idx.IdxData) -> None:
    assert DecoyDigits().critic_pool().ids.shape == (300,)
    assert np.array_equal(DecoyDigits().critic_pool().ids, DecoyDigits(rho=0.1).critic_pool().ids)
    pool = DecoyMNIST().critic_pool()
    assert np.array_equal(pool.ids, np.arange(50_000, 60_000))
    assert np.array_equal(pool.y, fake_mnist.labels[50_000:60_000])
    data = DecoyMNIST(n_train=49_000).load(0)  # all of the pool
    assert data.train.ids.max() < 50_000
    assert np.array_equal(data.test["clean"].ids, np.arange(60_000, 70_000))


def test_full_train_uses_every_training_image(fake_mnist: idx.IdxData) -> None:
    suite = DecoyMNIST(full_train=True, n_val_groups=0, n_test=100)
    data = suite.load(0)
    assert suite.name == "decoy_mnist-ross-full-rho1.0-valgroups0-test100"
    assert np.array_equal(np.sort(np.concatenate([data.train.ids, data.val.ids])), np.arange(60_000))
    assert data.val_groups is None
    with pytest.raises(ConfigError, match="critic pool"):
        suite.critic_pool()
    with pytest.raises(ConfigError, match="drop n_train"):
        DecoyMNIST(full_train=True, n_train=60_000)


def test_digits_have_enough_test_images_in_every_group() -> None:
    for seed in range(10):
        counts = DecoyDigits().load(seed).group_counts()
        pooled = np.array([list(counts[f"test/{name}"].values()) for name in ("aligned", "conflicting")]).sum(0)
        assert len(pooled) == 20
        assert pooled.min() >= 25
    data = DecoyDigits().load(0)
    assert [len(s) for s in (data.train, data.val, data.test["clean"])] == [950, 100, 347]


def test_digits_are_half_contrast_in_the_middle() -> None:
    images, labels = decoy._hard_digits()
    assert images.shape == (1797, 28, 28)
    assert images.max() <= 128
    assert images.max() >= 120
    assert not images[:, :3].any()
    assert not images[:, :, 25:].any()
    assert len(np.unique(images[:, 3].any(1))) == 2  # some digits are shifted up, some are not
    assert np.array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_bilinear_is_linear_and_keeps_constants() -> None:
    weights = decoy._bilinear(8, 20)
    assert np.allclose(weights.sum(1), 1)
    inner = weights @ np.arange(8.0)
    assert np.allclose(np.diff(inner[2:-2]), 8 / 20)
    assert inner[0] == 0


def test_cdep_differs_from_ross_as_published(fake_mnist: idx.IdxData) -> None:
    cdep, ross = DecoyMNIST("cdep", **SIZES).load(0), DecoyMNIST("ross", **SIZES).load(0)
    assert cdep.train.masks is not None
    assert ross.train.masks is not None
    assert (cdep.train.masks.sum((1, 2)) == 25).all()
    assert (ross.train.masks.sum((1, 2)) == 16).all()
    assert (grey(cdep.train) == 255 - 25 * cdep.train.y).all()
    inverted = cdep.test["inverted"]
    assert (grey(inverted) == 25 * inverted.y).all()
    nearest = np.abs(255 - 25 * np.arange(10)[None] - grey(inverted)[:, None])
    assert (nearest[np.arange(len(inverted)), inverted.a] == nearest.min(1)).all()
    assert set(inverted.y[inverted.a == inverted.y]) == {5}
    assert cdep.roles.average == "inverted"
    assert ross.roles.average == "random"
    assert "inverted" not in ross.test


def test_roles_follow_the_protocol(suite: DecoySuite) -> None:
    roles = suite.load(0).roles
    assert (roles.headline, roles.aligned, roles.grouped) == ("conflicting", "aligned", ("aligned", "conflicting"))
    assert (roles.insert, roles.remove, roles.placebo, roles.masked) == (
        "conflicting", "clean", "placebo", "conflicting",
    )  # fmt: skip


def test_descriptions_cover_every_class(suite: DecoySuite) -> None:
    data = suite.load(0)
    assert set(data.descriptions) == {"core", "spurious", "both"}
    for sentences in data.descriptions.values():
        assert set(sentences) == set(data.class_names)
        assert len(set(sentences.values())) == 10
    last = data.class_names[9]
    assert "grey 30 of 255" in data.descriptions["spurious"][last]
    assert "grey" not in data.descriptions["core"][last]


def test_names_and_params() -> None:
    assert DecoyMNIST(rho=0.97).name == "decoy_mnist-ross-rho0.97"
    assert DecoyMNIST("cdep", n_train=1000, n_test=2000).name == "decoy_mnist-cdep-rho1.0-n1000-test2000"
    assert DecoyDigits(rho=1).name == "decoy_digits-rho1.0"
    assert DecoyDigits(n_val_groups=40).name == "decoy_digits-rho1.0-valgroups40"
    assert DecoyFashion().name == "decoy_fashion-rho1.0"
    assert DecoyMNIST(n_test=10_000).params == DecoyMNIST().params
    assert DecoyDigits().params == {"rho": 1.0, "n_train": 950, "n_val": 100, "n_val_groups": 100, "n_test": 347}
    assert DecoyFashion().params.keys() == DecoyMNIST().params.keys() - {"variant"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecoyDigits(rho=1.2), "0 to 1, not 1.2"),
        (lambda: DecoyDigits(rho=float("nan")), "0 to 1"),
        (lambda: DecoyDigits(rho="high"), "not 'high'"),
        (lambda: DecoyDigits(n_train=0), "n_train must be a whole number of at least 1, not 0"),
        (lambda: DecoyDigits(n_train=10.5), "n_train must be a whole number"),
        (lambda: DecoyDigits(n_train=True), "n_train must be a whole number"),
        (lambda: DecoyDigits(n_val_groups=30), "multiple of 20, not 30"),
        (lambda: DecoyDigits(n_train=1400), "only 1497 can be drawn"),
        (lambda: DecoyMNIST(n_train=49_500), "n_train 49500 .* only 50000 can be drawn"),
        (lambda: DecoyMNIST(variant="roos"), "'ross' or 'cdep', not 'roos'"),
        (lambda: DecoyMNIST(n_test=10_001), "at most 10000"),
        (lambda: DecoyMNIST(full_train="yes"), "true or false"),
        (lambda: DecoyFashion(n_val=-1), "suite 'decoy_fashion': n_val"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], DecoySuite], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_digits_hash_is_fixed() -> None:
    assert DecoyDigits().data_hash() == DecoyDigits(rho=0.5).data_hash()
    assert len(DecoyDigits().data_hash()) == 64


def test_suites_import_no_torch() -> None:
    code = (
        "import sys, suites.idx, suites.folder, suites.decoy as d; d.DecoyDigits().load(0);"
        "print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@real_mnist
def test_real_mnist() -> None:
    data = DecoyMNIST(rho=0.97).load(0)
    assert (data.train.a != data.train.y).sum() == 120
    assert np.bincount(data.test["clean"].y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(DecoyMNIST().critic_pool().y).tolist() == [991, 1064, 990, 1030, 983, 915, 967, 1090, 1009, 961]
    placebo, aligned = data.test["placebo"], data.test["aligned"]
    changed = placebo.images[:, 0] != aligned.images[:, 0]
    assert (changed.sum((1, 2)) == 16).all()
    assert not (changed & aligned.core).any()


@real_mnist
def test_real_mnist_loads_within_a_second() -> None:
    def seconds(seed: int) -> float:
        start = time.perf_counter()
        DecoyMNIST().load(seed)
        return time.perf_counter() - start

    assert min(seconds(seed) for seed in range(3)) < 1


def test_the_bundled_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    from suites.digits import scanned_digits

    images, labels = scanned_digits()
    assert np.array_equal(images, load_digits().images)
    assert np.array_equal(labels, load_digits().target)


def test_scale_enlarges_images_and_masks_alike(fake_mnist: idx.IdxData) -> None:
    plain, large = (DecoyMNIST(scale=k, **SIZES).load(3) for k in (1, 3))
    for name in ("train", "val", "val_groups", "decorrelated"):
        small, big = getattr(plain, name), getattr(large, name)
        assert big.images.shape[2:] == (84, 84)
        np.testing.assert_array_equal(big.images[:, :, 1::3, 1::3], small.images)
        np.testing.assert_array_equal(big.masks[:, 2::3, ::3], small.masks)
        np.testing.assert_array_equal(big.y, small.y)
    np.testing.assert_array_equal(large.test["placebo"].images[:, :, ::3, 2::3], plain.test["placebo"].images)
    assert DecoyMNIST(scale=2).name == "decoy_mnist-ross-x2-rho1.0"
    with pytest.raises(ConfigError, match="scale"):
        DecoyMNIST(scale=0)


@pytest.mark.parametrize(("shape", "side", "area"), [("disc", 5, 21), ("cross", 6, 20)])
def test_other_shapes_stand_in_the_same_corners(fake_mnist: idx.IdxData, shape: str, side: int, area: int) -> None:
    square, other = DecoyMNIST(**SIZES).load(2), DecoyMNIST(shape=shape, **SIZES).load(2)
    assert DecoyMNIST(shape=shape).name == f"decoy_mnist-ross-{shape}-rho1.0"
    assert DecoyMNIST(shape=shape).params == {**DecoyMNIST().params, "shape": shape}
    assert DecoyMNIST(shape="square").params == DecoyMNIST().params
    assert DecoyMNIST(shape="square").name == DecoyMNIST().name
    for split, plain in ((other.train, square.train), (other.test["conflicting"], square.test["conflicting"])):
        assert (split.ids == plain.ids).all()
        assert (split.a == plain.a).all()
        assert (split.masks.sum((1, 2)) == area).all()
        assert (grey(split) == 255 - 25 * split.a).all()
        for vertical in (slice(0, 14), slice(14, 28)):  # the corner is the square's own
            for across in (slice(0, 14), slice(14, 28)):
                assert (
                    split.masks[:, vertical, across].any((1, 2)) == plain.masks[:, vertical, across].any((1, 2))
                ).all()
        rows, columns = split.masks.any(2).sum(1), split.masks.any(1).sum(1)
        assert (rows == side).all()
        assert (columns == side).all()
    aligned, placebo = other.test["aligned"], other.test["placebo"]
    changed = aligned.images[:, 0] != placebo.images[:, 0]
    assert (changed.sum((1, 2)) == area).all()
    assert not (changed & aligned.masks).any()
    assert f"a small {shape} of grey" in other.descriptions["spurious"]["3"]


def test_a_shape_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'square', 'disc' or 'cross', not 'star'"):
        DecoyMNIST(shape="star")
