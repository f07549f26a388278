"""What a critic is shown: colours, their order, sizes and marks."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import ConfigError
from methods.lvlm_va.overlay import PALETTE, colour_names, render

RGBS = np.array([colour.rgb for colour in PALETTE])


def scene(side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Two images with three and one segments."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, side, side), dtype=np.uint8)
    labels = np.full((2, side, side), -1, dtype=np.int8)
    labels[0, :4, :4], labels[0, 10:14, 3:9], labels[0, 20:, 20:] = 0, 1, 2
    labels[1, 5:9, 5:9] = 0
    return images, labels


def test_every_segment_has_its_colour_and_nothing_else_has_any() -> None:
    images, labels = scene()
    order = np.array([[3, 0, 6], [5, 1, 2]])
    for n, (original, plain, overlay) in enumerate(render(images, labels, size=28, order=order)):
        assert original.dtype == plain.dtype == overlay.dtype == np.uint8
        assert np.array_equal(original, np.repeat(images[n].transpose(1, 2, 0), 3, axis=2))
        for j in range(3):
            assert (plain[labels[n] == j] == RGBS[order[n, j]]).all()
        assert not plain[labels[n] < 0].any()
        assert np.array_equal(overlay[labels[n] < 0], original[labels[n] < 0])
        blend = (plain.astype(float) + original) / 2
        assert np.abs(overlay - blend)[labels[n] >= 0].max() <= 0.5


def test_without_an_order_segments_take_the_colours_in_turn() -> None:
    images, labels = scene()
    given = render(images, labels, size=28)
    same = render(images, labels, size=28, order=np.tile(np.arange(3), (2, 1)))
    assert all(
        np.array_equal(a, b) for one, two in zip(given, same, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_small_images_are_padded_or_enlarged_by_a_whole_factor() -> None:
    images, labels = scene()
    for size, factor, margin in ((32, 1, 2), (56, 2, 0), (100, 3, 8)):
        for n, pictures in enumerate(render(images, labels, size=size)):
            plain = render(images, labels, size=28)[n]
            for large, small in zip(pictures, plain, strict=True):
                assert large.shape == (size, size, 3)
                inner = large[margin : size - margin, margin : size - margin]
                assert np.array_equal(inner, small.repeat(factor, 0).repeat(factor, 1))
                assert int(large.astype(int).sum()) == int(inner.astype(int).sum())


def test_large_and_oblong_images_fit_and_colours_stay_pure() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (1, 3, 60, 90), dtype=np.uint8)
    labels = np.zeros((1, 60, 90), dtype=np.int8)
    ((original, plain, _),) = render(images, labels, size=45)
    assert original.shape == (45, 45, 3)
    assert {tuple(pixel) for pixel in plain.reshape(-1, 3).tolist()} == {(0, 0, 0), PALETTE[0].rgb}
    assert plain.any(2).sum() == 30 * 45


def test_names_are_distinct_and_numbered_where_colours_repeat() -> None:
    assert len(PALETTE) >= 7
    assert len(set(colour_names(7))) == 7
    many = colour_names(12)
    assert len(set(many)) == 12
    assert many[0] == "orange 1"
    assert many[7] == "orange 8"


def test_colours_differ_for_colour_blind_readers_too() -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1, applied to linear RGB.
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    )
    protanopia = np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    )
    linear = (RGBS / 255) ** 2.2
    for matrix in (np.eye(3), deuteranopia, protanopia):
        seen = (linear @ matrix.T).clip(0, 1) ** (1 / 2.2) * 255
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + 1e3 * np.eye(len(seen))
        assert apart.min() > 30


def test_marks_lie_on_their_segments() -> None:
    images, labels = scene()
    plain, marked = (render(images, labels, size=224, marks=flag) for flag in (False, True))
    for without, with_ in zip(plain, marked, strict=True):
        assert np.array_equal(without[0], with_[0])
        for kind in (1, 2):
            assert (without[kind] != with_[kind]).any()
    changed = (plain[1][1] != marked[1][1]).any(2)
    rows, columns = np.nonzero(changed)
    assert 5 * 8 <= rows.mean() <= 9 * 8
    assert 5 * 8 <= columns.mean() <= 9 * 8


def test_wrong_sizes_and_shapes_are_refused() -> None:
    images, labels = scene()
    with pytest.raises(ConfigError, match="positive"):
        render(images, labels, size=0)
    with pytest.raises(ValueError, match="do not fit"):
        render(images, labels[:, :5], size=28)
    with pytest.raises(ValueError, match="colour for every segment"):
        render(images, labels, size=28, order=np.zeros((2, 1), dtype=np.int64))
    with pytest.raises(ValueError, match="1 or 3"):
        render(images.repeat(2, 1), labels, size=28)
