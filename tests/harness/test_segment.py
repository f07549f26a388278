from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from harness.errors import ConfigError
from harness.masks import mask_from_verdicts
from harness.segment import CUT, Mixture, Segments, e_step, em, log_density, m_step, moments, seed_mixture, segment

FLOOR = (0.5 / 14) ** 2


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(size: int = 14) -> Tensor:
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)


def random_maps(n: int, size: int = 28, seed: int = 0) -> Tensor:
    """Rough signed maps: smooth noise, so that mixtures have several local optima."""
    coarse = torch.randn(n, 1, 7, 7, generator=stream(seed))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return smooth[:, 0] + 0.3 * torch.randn(n, size, size, generator=stream(seed + 1))


def weights_of(maps: Tensor) -> Tensor:
    positive = maps.double().clamp(min=0).flatten(1)
    return positive / positive.sum(1, keepdim=True)


def start(weights: Tensor, points: Tensor, restarts: int = 1, count: int = 4, seed: int = 0) -> Mixture:
    uniforms = torch.rand(restarts, count, generator=stream(seed), dtype=torch.float64)
    return seed_mixture(weights, points, uniforms, FLOOR)


def blobs(size: int = 28) -> Tensor:
    """Masses .7 around (row 7, column 6) and .3 around (row 20, column 21)."""
    axis = torch.arange(size, dtype=torch.float64)

    def blob(row: int, column: int) -> Tensor:
        shape = torch.exp(-((axis[:, None] - row) ** 2 + (axis[None, :] - column) ** 2) / (2 * 1.5**2))
        return shape / shape.sum()

    return 0.7 * blob(7, 6) + 0.3 * blob(20, 21)


def test_density_is_scipys() -> None:
    from scipy.stats import multivariate_normal

    mean, cov = torch.tensor([[0.1, -0.2], [0.3, 0.4]]), torch.tensor([[0.02, 0.01, 0.03], [0.05, -0.02, 0.01]])
    mixture = Mixture(torch.tensor([0.25, 0.75]).double(), mean.double(), cov.double())
    found = log_density(mixture, moments(grid()))
    for j, weight in enumerate((0.25, 0.75)):
        a, b, c = cov[j].tolist()
        expected = multivariate_normal(mean[j].tolist(), [[a, b], [b, c]]).logpdf(grid().numpy()) + np.log(weight)
        np.testing.assert_allclose(found[j].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_the_shares_of_the_posteriors_after_an_m_step() -> None:
    w, basis = weights_of(random_maps(5, 14)), moments(grid())
    mass, _ = e_step(start(w, grid()), basis, w)
    torch.testing.assert_close(mass.sum(-2), w)  # posteriors sum to 1 at every point
    fresh = m_step(mass, basis, FLOOR)
    torch.testing.assert_close(fresh.weight, mass.sum(-1))
    torch.testing.assert_close(fresh.weight.sum(-1), torch.ones(5).double())
    mean = (mass[..., None] * grid()).sum(-2) / mass.sum(-1, keepdim=True)
    torch.testing.assert_close(fresh.mean, mean)
    centred = grid()[None, None] - mean[:, :, None]
    full = torch.einsum("bjp,bjpx,bjpy->bjxy", mass, centred, centred) / mass.sum(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(full)
    clipped = vectors @ torch.diag_embed(values.clamp(min=FLOOR)) @ vectors.transpose(-1, -2)
    torch.testing.assert_close(fresh.cov, torch.stack([clipped[..., 0, 0], clipped[..., 0, 1], clipped[..., 1, 1]], -1))


@pytest.mark.parametrize("floor", [FLOOR, 0.02])  # the second one binds almost everywhere
def test_log_likelihood_never_falls(floor: float) -> None:
    w, basis = weights_of(random_maps(20, 14)), moments(grid())
    mixture = m_step(e_step(start(w, grid()), basis, w)[0], basis, floor)
    before, gained = None, []
    for _ in range(60):
        mass, loglik = e_step(mixture, basis, w)
        now = (w * loglik).sum(-1)
        if before is not None:
            gained.append(now - before)
        before, mixture = now, m_step(mass, basis, floor)
    assert torch.stack(gained).min() > -1e-12
    assert torch.stack(gained).sum(0).min() > 1e-3


def test_integer_weights_equal_repeated_points() -> None:
    points = grid(6)
    times = torch.randint(0, 5, (36,), generator=stream(3))
    repeated = points.repeat_interleave(times, 0)
    w, ones = times.double()[None] / times.sum(), torch.full((1, len(repeated)), 1.0 / len(repeated)).double()
    begin = start(w, points, count=3)
    weighted, one = em(w, moments(points), begin, FLOOR, 25, 0.0)
    plain, two = em(ones, moments(repeated), begin, FLOOR, 25, 0.0)
    torch.testing.assert_close(one, two)
    for a, b in zip(vars(weighted).values(), vars(plain).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_scaling_the_weights_changes_nothing() -> None:
    w, basis = weights_of(random_maps(3, 14)), moments(grid())
    begin = start(w, grid())
    small, large = (m_step(e_step(begin, basis, scale * w)[0], basis, FLOOR) for scale in (1.0, 784.0))
    for a, b in zip(vars(small).values(), vars(large).values(), strict=True):
        torch.testing.assert_close(a, b)
    maps = random_maps(6)
    one, two = (segment(scale * maps, generator=stream()) for scale in (1.0, 1e-6))
    assert (one.labels == two.labels).float().mean() > 0.999  # scaled float32 maps differ in their last bit
    torch.testing.assert_close(one.share, two.share, atol=1e-4, rtol=0.0)


def test_two_blobs_give_their_masses_and_places() -> None:
    found = segment(blobs()[None].float(), count=2, generator=stream())
    torch.testing.assert_close(found.share[0], torch.tensor([0.7, 0.3]), atol=0.01, rtol=0.0)
    for j, (row, column) in enumerate(((7, 6), (20, 21))):
        rows, columns = (found.labels[0] == j).nonzero(as_tuple=True)
        assert abs(rows.double().mean() - row) < 1
        assert abs(columns.double().mean() - column) < 1
    w = weights_of(blobs()[None])
    mixture, _ = em(w, moments(grid(28)), start(w, grid(28), count=2), FLOOR / 4, 100, 1e-9)
    centres = ((mixture.mean[0] + 0.5) * 28 - 0.5)[mixture.weight[0].argsort(descending=True)]
    assert (centres - torch.tensor([[6.0, 7.0], [21.0, 20.0]])).abs().max() < 0.1


def test_a_decoy_is_one_segment_of_its_own() -> None:
    maps = 0.02 * random_maps(8)
    maps[:, :4, 24:] = 1.0
    found = segment(maps, generator=stream())
    inside = found.labels[:, :4, 24:].flatten(1)
    assert (inside == inside[:, :1]).all()
    verdicts = torch.zeros(8, 6, dtype=torch.int8).scatter_(1, inside[:, :1].long(), 1)
    masks = mask_from_verdicts(found, verdicts)
    assert masks[:, :4, 24:].all()
    assert masks.float().sum((1, 2)).mean() < 24  # not much more than the 16 pixels of the decoy


def test_maps_without_positive_attribution_are_skipped() -> None:
    maps = random_maps(5)
    maps[1], maps[3] = -maps[1].abs(), 0.0
    found = segment(maps, generator=stream())
    assert (found.labels[[1, 3]] == -1).all()
    assert (found.share[[1, 3]] == 0).all()
    assert not found.nonempty[[1, 3]].any()
    assert (found.loglik[[1, 3]] == 0).all()
    kept = segment(maps[[0, 2, 4]], generator=stream())
    assert torch.equal(found.labels[[0, 2, 4]], kept.labels)
    nothing = segment(-maps.abs(), generator=stream())
    assert (nothing.labels == -1).all()
    assert segment(maps[:0], generator=stream()).labels.shape == (0, 28, 28)


def test_fewer_points_than_components() -> None:
    maps = torch.zeros(2, 28, 28)
    maps[0, 5, 5] = 1.0
    maps[1, 2, 3], maps[1, 20, 9] = 3.0, 1.0
    found = segment(maps, count=6, generator=stream())
    assert torch.isfinite(found.loglik).all()
    torch.testing.assert_close(found.share[0], torch.tensor([1.0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(found.share[1], torch.tensor([0.75, 0.25, 0, 0, 0, 0]))
    assert (found.labels[0] >= 0).nonzero().tolist() == [[5, 5]]
    assert found.labels[1, 2, 3] == 0
    assert found.labels[1, 20, 9] == 1
    assert found.nonempty.sum(1).tolist() == [1, 2]


def test_the_result_of_a_map_does_not_depend_on_its_batch() -> None:
    maps = random_maps(130)
    whole = segment(maps, generator=stream(4))
    order = torch.randperm(130, generator=stream(5))
    for rows in (torch.tensor([7]), torch.arange(61), order):
        part = segment(maps[rows], generator=stream(4))
        assert torch.equal(part.labels, whole.labels[rows])
        torch.testing.assert_close(part.share, whole.share[rows])


def test_determinism_and_the_role_of_the_generator() -> None:
    maps, state = random_maps(10), torch.get_rng_state()
    one, two, other = (segment(maps, restarts=1, generator=stream(s)) for s in (0, 0, 1))
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.loglik, two.loglik)
    assert not torch.equal(one.labels, other.labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_labelled() -> None:
    maps = random_maps(12)
    share = weights_of(maps).view(12, 28, 28)
    positive, everywhere, near = (
        segment(maps, support=s, generator=stream())  # type: ignore[arg-type]
        for s in ("phi_pos", "all", "mahalanobis")
    )
    assert torch.equal(positive.labels >= 0, share > CUT / 784)
    assert (everywhere.labels >= 0).all()
    assert 0 < (near.labels >= 0).float().mean() < 1
    kept = near.labels >= 0
    assert torch.equal(near.labels[kept], everywhere.labels[kept])
    assert pytest.approx(1e-3) == CUT / 784
    assert positive.labels.dtype == torch.int8
    torch.testing.assert_close(positive.share.sum(1), torch.ones(12))
    assert (positive.share.diff(dim=1) <= 1e-7).all()


@pytest.mark.parametrize(("height", "width", "pool"), [(28, 28, 14), (30, 20, 7), (17, 33, 8), (10, 10, 56)])
def test_any_size_is_pooled_and_brought_back(height: int, width: int, pool: int) -> None:
    maps = torch.zeros(1, height, width)
    maps[0, 1:3, 1:3], maps[0, -3:-1, -3:-1] = 1.0, 2.0
    found = segment(maps, count=2, pool=pool, generator=stream())
    assert found.labels.shape == maps.shape
    assert (found.labels[0, -3:-1, -3:-1] == 0).all()
    assert (found.labels[0, 1:3, 1:3] == 1).all()
    torch.testing.assert_close(found.share[0], torch.tensor([2 / 3, 1 / 3]), atol=1e-5, rtol=0.0)


def test_likelihood_is_that_of_sklearn_or_better() -> None:
    """Against scikit-learn on repeated points, with the same floor, number of components and number of starts."""
    points, basis = grid(14), moments(grid(14))
    times = (weights_of(random_maps(4, 14, seed=8)) * 500).round().long()
    w = times.double() / times.sum(1, keepdim=True)
    for row, count in zip(w, times, strict=True):
        data = points.repeat_interleave(count, 0).numpy()
        theirs = GaussianMixture(4, n_init=4, reg_covar=FLOOR, random_state=0).fit(data).score(data)
        begin = start(row[None], points, restarts=8)
        _, ours = em(row.expand(8, -1), basis, begin, FLOOR, 100, 1e-6)
        assert ours.max() >= theirs - 1e-3


def test_nonempty_reads_the_labels() -> None:
    labels = torch.tensor([[[-1, 0], [2, 2]], [[-1, -1], [-1, -1]]], dtype=torch.int8)
    found = Segments(labels, torch.zeros(2, 4), torch.zeros(2))
    assert found.count == 4
    assert found.nonempty.tolist() == [[True, False, True, False], [False] * 4]


def test_wrong_settings_are_explained() -> None:
    maps = random_maps(1)
    for wrong in ({"count": 0}, {"count": 200}, {"pool": 0}, {"restarts": 0}, {"iterations": 0}, {"support": "some"}):
        with pytest.raises(ConfigError):
            segment(maps, **wrong, generator=stream())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        segment(maps[0], generator=stream())
    maps[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        segment(maps, generator=stream())
