"""DeepLIFT-SHAP and occlusion against captum, and segmentation against a loop over scikit-learn's GaussianMixture."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.ratios import compare
from captum.attr import DeepLiftShap as CaptumDeepLiftShap
from captum.attr import Occlusion as CaptumOcclusion
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from harness.deeplift import DeepLiftShap
from harness.explain import Occlusion
from harness.models import build_model
from harness.segment import segment
from harness.spec import parse_spec

FLOOR = (0.5 / 14) ** 2  # segment's smallest variance on a pooled grid of 14 x 14
POINTS = 500  # per map, for a library without weights


def pictures(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Centred(nn.Module):
    """Logits minus their mean: the score that we explain."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits - logits.mean(1, keepdim=True)


def captum_maps(model: nn.Module, x: Tensor, target: Tensor, baselines: Tensor, batch: int) -> Tensor:
    explainer, found = CaptumDeepLiftShap(Centred(model.eval())), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part, labels in zip(x.split(batch), target.split(batch), strict=True):
            phi = explainer.attribute(part.float() / 255, baselines=baselines.float() / 255, target=labels)
            found.append(phi.detach().sum(1))
    return torch.cat(found)


@pytest.mark.parametrize(("name", "shape"), [("mlp", (1, 12, 12)), ("small_resnet", (3, 16, 16))])
def test_captum_finds_the_same_maps(name: str, shape: tuple[int, int, int]) -> None:
    model, x, base = build_model(parse_spec(name), shape, 10, 0), pictures(6, shape, 0), pictures(4, shape, 1)
    target = torch.arange(6)
    theirs = captum_maps(model, x, target, base, 3)
    torch.testing.assert_close(DeepLiftShap(baselines=4)(model, x, target, base).maps, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "n", "batches", "least"),
    [("mlp", (1, 28, 28), 256, (16, 64, 256), 5.0), ("resnet18", (3, 64, 64), 8, (1, 4), 2.0)],
)
def test_deeplift_speed(
    benchmark: Any, name: str, shape: tuple[int, int, int], n: int, batches: tuple[int, ...], least: float
) -> None:
    """20 baselines; captum runs at the batch size that suits it best."""
    model, x, base = build_model(parse_spec(name), shape, 10, 0), pictures(n, shape, 0), pictures(20, shape, 1)
    target = torch.arange(n) % 10

    def seconds(batch: int) -> float:
        captum_maps(model, x, target, base, batch)
        start = time.process_time()
        captum_maps(model, x, target, base, batch)
        return time.process_time() - start

    best = min(batches, key=seconds)
    benchmark.extra_info["captum_batch"] = best
    ratio = compare(
        benchmark,
        lambda: DeepLiftShap()(model, x, target, base),
        lambda: captum_maps(model, x, target, base, best),
        images=n,
        rounds=5,
    )
    assert ratio >= least


def captum_occlusion(model: nn.Module, x: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
    """Windows of 4 x 4 pixels, every 2 pixels; a window's drop is spread over its pixels, as ours is."""
    fill = (baselines.float() / 255).mean(0, keepdim=True)
    window, stride = (x.shape[1], 4, 4), (x.shape[1], 2, 2)
    with torch.no_grad():
        phi = CaptumOcclusion(Centred(model.eval())).attribute(
            x.float() / 255, window, stride, baselines=fill, target=target
        )
    return phi[:, 0] / 16


@pytest.mark.parametrize(
    ("name", "shape", "n", "least"), [("mlp", (1, 28, 28), 256, 4.0), ("small_cnn", (3, 32, 32), 64, 0.9)]
)
def test_occlusion_speed(benchmark: Any, name: str, shape: tuple[int, int, int], n: int, least: float) -> None:
    """20 baselines; the first layer of an MLP sees a window's own pixels alone."""
    model, x, base = build_model(parse_spec(name), shape, 10, 0), pictures(n, shape, 0), pictures(20, shape, 1)
    target = torch.arange(n) % 10
    theirs = captum_occlusion(model, x, target, base)
    torch.testing.assert_close(Occlusion()(model, x, target, base).maps, theirs, rtol=1e-3, atol=1e-6)
    ratio = compare(
        benchmark,
        lambda: Occlusion()(model, x, target, base),
        lambda: captum_occlusion(model, x, target, base),
        images=n,
        rounds=5,
    )
    assert ratio >= least


def rough_maps(n: int) -> Tensor:
    coarse = torch.randn(n, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (28, 28), mode="bicubic", align_corners=False)[:, 0]


def pooled(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Masses [N, 196] and cell centres [196, 2] of the fit's grid."""
    cells = F.avg_pool2d(maps.double().clamp(min=0)[:, None], 2).flatten(1)
    axis = (torch.arange(14, dtype=torch.float64) + 0.5) / 14 - 0.5
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    return cells / cells.sum(1, keepdim=True), points


def sklearn_likelihoods(maps: Tensor, restarts: int) -> np.ndarray[Any, Any]:
    """Weighted log-likelihood of a scikit-learn mixture per map, fitted to points repeated in proportion to mass."""
    weights, points = pooled(maps)
    found = []
    for row in weights:
        data = points.repeat_interleave((row * POINTS).round().long(), 0).numpy()
        mixture = GaussianMixture(6, n_init=restarts, reg_covar=FLOOR, max_iter=100, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixture.fit(data)
        found.append(row.numpy() @ mixture.score_samples(points.numpy()))
    return np.array(found)


def likelihoods(maps: Tensor, restarts: int) -> np.ndarray[Any, Any]:
    return segment(maps, restarts=restarts, generator=torch.Generator().manual_seed(0)).loglik.numpy()


def test_segments_are_at_least_as_likely_as_scikit_learns() -> None:
    maps = rough_maps(4)
    assert (likelihoods(maps, 8) >= sklearn_likelihoods(maps, 1) - 1e-4).all()


def test_segmentation_speed(benchmark: Any) -> None:
    """Equal numbers of restarts (8); scikit-learn stops earlier, at its default tolerance of 1e-3."""
    many, few = rough_maps(200), rough_maps(200)[:4]
    ratio = compare(
        benchmark,
        lambda: likelihoods(many, 8),
        lambda: sklearn_likelihoods(few, 8),
        images=len(many),
        reference_images=len(few),
        rounds=5,
    )
    gain = likelihoods(many[:20], 8) - sklearn_likelihoods(many[:20], 8)
    benchmark.extra_info.update(loglik_gain_min=float(gain.min()), loglik_gain_mean=float(gain.mean()))
    assert ratio >= 10
    assert gain.min() >= -1e-4
