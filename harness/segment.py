"""Attribution maps into segments: batched, weighted Gaussian mixtures over where the positive attribution lies.

PPEPS-WGM (LVLM-VA, arXiv:2512.21985, stage 3): p_i = positive part of the map, normalised to mass 1; a mixture of J
Gaussians over pixel coordinates maximises sum_i p_i log sum_j pi_j N(z_i | mu_j, Sigma_j) by EM; a pixel's segment is
the component of largest posterior. All maps and restarts run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import ConfigError

Support = Literal["phi_pos", "all", "mahalanobis"]
LOG_2PI = math.log(2 * math.pi)
DEAD = 1e-9  # share of the mass below which a component is dropped
CUT = 0.784  # `phi_pos`: smallest labelled share of mass, in units of the uniform share 1 / (H W); 1e-3 at 28 x 28
REACH = 3.0  # `mahalanobis`: largest labelled distance from the pixel's own component
SCREENING = 10  # iterations that every restart gets before all but the best FINALISTS are given up
FINALISTS = 4


@dataclass(frozen=True)
class Segments:
    """Segments of N maps, J per map, ordered by falling share.

    labels: int8 [N, H, W] in -1..J-1, -1 = in no segment. share: float [N, J], share of the positive attribution that a
    segment explains (sums to 1; 0 for a map without positive attribution). loglik: float [N], weighted log-likelihood
    per unit of mass (0 for such a map).
    """

    labels: Tensor
    share: Tensor
    loglik: Tensor

    @property
    def count(self) -> int:
        """J."""
        return int(self.share.shape[1])

    @cached_property
    def nonempty(self) -> Tensor:
        """Which segments label at least one pixel, bool [N, J]."""
        n, j = self.share.shape
        seen = torch.zeros(n, j + 1, dtype=torch.bool, device=self.labels.device)
        seen.scatter_(1, self.labels.flatten(1).long() + 1, True)
        return seen[:, 1:]


@dataclass(frozen=True)
class Mixture:
    """Gaussian mixtures in the plane, any leading batch shape [*].

    weight: [*, J], sums to 1. mean: [*, J, 2]. cov: [*, J, 3], the entries xx, xy, yy.
    """

    weight: Tensor
    mean: Tensor
    cov: Tensor

    def __getitem__(self, index: Tensor) -> Mixture:
        """The mixtures at `index` of the first batch dimension."""
        return Mixture(self.weight[index], self.mean[index], self.cov[index])


def moments(points: Tensor) -> Tensor:
    """1, x, y, x^2, xy, y^2 of points [P, 2] as a basis [P, 6]: both EM steps are matrix products with it."""
    x, y = points.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)


def log_density(mixture: Mixture, basis: Tensor) -> Tensor:
    """log pi_j + log N(z_i | mu_j, Sigma_j): [*, J, P] of a basis [P, 6]; -inf for a component of weight 0."""
    (x, y), (a, b, c) = mixture.mean.unbind(-1), mixture.cov.unbind(-1)
    det = a * c - b * b
    pxx, pxy, pyy = c / det, -b / det, a / det
    px, py = pxx * x + pxy * y, pxy * x + pyy * y
    constant = mixture.weight.log() - 0.5 * (det.log() + x * px + y * py) - LOG_2PI
    return torch.stack([constant, px, py, -0.5 * pxx, -pxy, -0.5 * pyy], -1) @ basis.T


def e_step(mixture: Mixture, basis: Tensor, weights: Tensor, shift: bool = True) -> tuple[Tensor, Tensor]:
    """Weighted posteriors w_i r_ij [*, J, P] and log-likelihood of every point [*, P], for weights [*, P].

    shift: subtract the largest log-density of a point before exp; needless where none can underflow (`in_range`).
    """
    joint = log_density(mixture, basis)
    if not shift:
        total = joint.exp_().sum(-2)
        return joint.mul_((weights / total).unsqueeze(-2)), total.log_()
    top = joint.amax(-2)
    joint.sub_(top.unsqueeze(-2)).exp_()
    total = joint.sum(-2)
    return joint.mul_((weights / total).unsqueeze(-2)), total.log_().add_(top)


def in_range(basis: Tensor, floor: float) -> bool:
    """Whether the density of a live component can be told from 0 at every point, in the basis' precision."""
    span = (basis[:, 1:3].amax(0) - basis[:, 1:3].amin(0)).square().sum()
    return float(span) / (2 * floor) - math.log(DEAD) < -math.log(torch.finfo(basis.dtype).tiny) - 8


def m_step(mass: Tensor, basis: Tensor, floor: float) -> Mixture:
    """Maximise the expected log-likelihood subject to eigenvalues of Sigma_j >= floor.

    Args:
        mass: w_i r_ij, [*, J, P]; weights of any scale. basis: [P, 6]. floor: smallest variance.

    Clipping the eigenvalues is the exact constrained maximiser, so the log-likelihood never falls (adding floor * I to
    the covariance, the usual choice, does not have this property).
    """
    statistics = mass @ basis
    total = statistics[..., 0]
    live = total > DEAD * total.sum(-1, keepdim=True)
    safe = torch.where(live, total, torch.ones_like(total))
    x, y, xx, xy, yy = (statistics[..., 1:] / safe[..., None]).unbind(-1)
    a, b, c = xx - x * x, xy - x * y, yy - y * y
    middle, half = (a + c) / 2, (((a - c) / 2).square() + b.square()).sqrt()
    high, low = (middle + half).clamp(min=floor), (middle - half).clamp(min=floor)
    scale = torch.where(half > 0, (high - low) / (2 * half.clamp(min=1e-30)), torch.ones_like(half))
    centre = (high + low) / 2
    cov = torch.stack([centre + scale * (a - middle), scale * b, centre + scale * (c - middle)], -1)
    weight = torch.where(live, total, torch.zeros_like(total))
    return Mixture(weight / weight.sum(-1, keepdim=True), torch.stack([x, y], -1), cov)


def seed_mixture(weights: Tensor, points: Tensor, uniforms: Tensor, floor: float) -> Mixture:
    """Weighted k-means++ (Arthur and Vassilvitskii 2007) and one M-step on the nearest-centre assignment.

    Args:
        weights: [n, P]. points: [P, 2]. uniforms: [R, J] in [0, 1), shared by all n maps, so that a map's result does
            not depend on its neighbours in the batch.

    Returns:
        a mixture of batch shape [n R], the restarts of a map side by side.
    """
    restarts, count = uniforms.shape
    n, p = weights.shape
    pull = weights[:, None].expand(n, restarts, p)
    nearest = torch.full_like(pull, torch.inf).contiguous()
    owner = torch.zeros(n, restarts, p, dtype=torch.uint8, device=weights.device)
    x, y = points.unbind(-1)
    for j in range(count):
        chance = pull
        if j:
            chance = pull * nearest
            # A map with fewer distinct points than components: every point is a centre already, so repeat one.
            chance.addcmul_(pull, (chance.sum(-1, keepdim=True) <= 0).to(pull.dtype))
        chance = chance.cumsum(-1)
        draw = uniforms[:, j].to(weights.dtype)[None, :, None] * chance[..., -1:]
        chosen = torch.searchsorted(chance, draw, right=True).clamp_(max=p - 1)
        distance = (x - x[chosen]).square_().add_((y - y[chosen]).square_())
        closer = (distance < nearest).view(torch.uint8)  # arithmetic on bytes: masked writes are many times slower
        owner = torch.maximum(owner, closer.mul_(j))
        nearest = torch.minimum(nearest, distance)
    assigned = owner[:, :, None] == torch.arange(count, dtype=torch.uint8, device=weights.device)[:, None]
    mass = weights[:, None, None] * assigned.view(torch.uint8)
    return m_step(mass.flatten(0, 1), moments(points), floor)


def em(
    weights: Tensor, basis: Tensor, mixture: Mixture, floor: float, iterations: int, tolerance: float
) -> tuple[Mixture, Tensor]:
    """Weighted EM on a batch of b mixtures.

    Args:
        weights: [b, P], each row of mass 1. basis: [P, 6]. mixture: batch shape [b]. iterations: at most this many.
        tolerance: a mixture is done once an iteration gained no more than this per unit of mass; it then keeps its
            parameters, whatever the others of the batch do.

    Returns:
        the mixtures and their log-likelihoods per unit of mass, [b]. A mixture is the result of its last M-step, so
        weight_j = sum_i p_i r_ij holds exactly for the posteriors that step saw.
    """
    final = Mixture(mixture.weight.clone(), mixture.mean.clone(), mixture.cov.clone())
    active, now, w = torch.arange(len(weights), device=weights.device), mixture, weights
    best, shift = torch.full_like(weights[:, 0], -torch.inf), not in_range(basis, floor)
    for _ in range(iterations):
        mass, loglik = e_step(now, basis, w, shift)
        score = loglik.mul_(w).sum(-1)
        going = score - best > tolerance
        before, now, best = now, m_step(mass, basis, floor), score
        if not bool(going.all()):
            done, going = (~going).nonzero().flatten(), going.nonzero().flatten()
            _store(final, active[done], before[done])
            active, w, best, now = active[going], w.index_select(0, going), best[going], now[going]
            if len(active) == 0:
                break
    if len(active):
        _store(final, active, now)
    return final, e_step(final, basis, weights, shift)[1].mul_(weights).sum(-1)


def _store(mixture: Mixture, rows: Tensor, values: Mixture) -> None:
    mixture.weight[rows], mixture.mean[rows], mixture.cov[rows] = values.weight, values.mean, values.cov


def segment(
    maps: Tensor,
    count: int = 6,
    pool: int = 14,
    restarts: int = 8,
    iterations: int = 100,
    tolerance: float = 1e-5,
    support: Support = "phi_pos",
    *,
    generator: torch.Generator,
) -> Segments:
    """Fit a mixture to every map's positive attribution and label its pixels.

    Args:
        maps: float [N, H, W]. count: J. pool: maps are sum-pooled to at most pool x pool for the fit.
        restarts: k-means++ seedings; all get SCREENING iterations, the best FINALISTS go on, the best one wins.
        iterations: at most this many for a finalist. tolerance: stop at this gain of log-likelihood per unit of mass.
        support: which pixels are labelled. `phi_pos`: those with more than CUT of the uniform share of the mass;
            `all`: every pixel; `mahalanobis`: those within REACH of their own component.
        generator: random stream of the seeding. A map's result depends on the stream, not on the other maps.

    Standard deviations are at least half a cell of the pooled grid: with half a pixel, components collapse onto single
    cells and cut one small object into several segments. A component that loses its mass is dropped (share 0). A map
    without positive attribution gets no segments.

    Raises:
        ConfigError: a parameter out of range. ValueError: maps that are not [N, H, W], or not finite.
    """
    _check(maps, count, pool, restarts, iterations, support)
    n, height, width = maps.shape
    uniforms = torch.rand(restarts, count, generator=generator, dtype=torch.float64).to(maps.device)
    labels = torch.full((n, height, width), -1, dtype=torch.int8, device=maps.device)
    share = torch.zeros(n, count, device=maps.device)
    loglik = torch.zeros(n, device=maps.device)
    pixels, cells, cell = _grid(height, width, pool, maps.device)
    floor = (0.5 * max(cell) / max(height, width)) ** 2
    for part in _chunks(maps, count * max(restarts * len(cells), len(pixels))):
        positive = maps[part].to(torch.float64).clamp(min=0)
        mass = positive.flatten(1).sum(1)
        kept = part[mass > 0]
        if len(kept) == 0:
            continue
        positive = (positive / mass.clamp(min=torch.finfo(torch.float64).tiny)[:, None, None])[mass > 0]
        weights = F.avg_pool2d(positive[:, None], cell, ceil_mode=True, divisor_override=1).flatten(1)
        mixture, score = _fit(weights, cells, uniforms, floor, iterations, tolerance)
        labels[kept] = _label(mixture, pixels, positive, support)
        share[kept], loglik[kept] = mixture.weight.float(), score.float()
    return Segments(labels, share, loglik)


def _fit(
    weights: Tensor, points: Tensor, uniforms: Tensor, floor: float, iterations: int, tolerance: float
) -> tuple[Mixture, Tensor]:
    """Best mixture of every map, batch shape [n], components by falling weight; and its log-likelihood [n]."""
    n, restarts, finalists = len(weights), len(uniforms), min(FINALISTS, len(uniforms))
    basis, rows = moments(points), torch.arange(n, device=weights.device)[:, None]
    mixture = seed_mixture(weights, points, uniforms, floor)
    mixture, score = em(weights.repeat_interleave(restarts, 0), basis, mixture, floor, SCREENING, tolerance)
    ahead = score.view(n, restarts).topk(finalists, dim=1).indices
    mixture = mixture[(rows * restarts + ahead).flatten()]
    mixture, score = em(weights.repeat_interleave(finalists, 0), basis, mixture, floor, iterations, tolerance)
    best = score.view(n, finalists).max(dim=1)
    mixture = mixture[rows.squeeze(1) * finalists + best.indices]
    order = mixture.weight.argsort(dim=1, descending=True, stable=True)
    return Mixture(mixture.weight[rows, order], mixture.mean[rows, order], mixture.cov[rows, order]), best.values


def _label(mixture: Mixture, pixels: Tensor, positive: Tensor, support: Support) -> Tensor:
    """Labels int8 [n, H, W] from a mixture of batch shape [n] and maps of mass 1."""
    n, height, width = positive.shape
    joint = log_density(mixture, moments(pixels))
    owner = joint.max(1).indices  # much faster on a CPU than argmax
    if support == "phi_pos":
        keep = positive.flatten(1) > CUT / (height * width)
    elif support == "mahalanobis":
        a, b, c = mixture.cov.unbind(-1)
        peak = mixture.weight.log() - 0.5 * (a * c - b * b).log() - LOG_2PI
        keep = 2 * (peak.gather(1, owner) - joint.amax(1)) <= REACH**2
    else:
        keep = torch.ones_like(owner, dtype=torch.bool)
    return torch.where(keep, owner, torch.full_like(owner, -1)).to(torch.int8).view(n, height, width)


def _grid(height: int, width: int, pool: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Pixel centres [H W, 2] and cell centres [P, 2] as (x, y) / max(H, W), centred; and the size of a cell."""
    cell = (-(-height // pool), -(-width // pool))
    longest = max(height, width)

    def centres(size: int, step: int) -> Tensor:
        starts = torch.arange(0, size, step, dtype=torch.float64, device=device)
        return ((starts + (starts + step).clamp(max=size)) / 2 - size / 2) / longest

    def plane(ys: Tensor, xs: Tensor) -> Tensor:
        return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)

    return plane(centres(height, 1), centres(width, 1)), plane(centres(height, cell[0]), centres(width, cell[1])), cell


def _chunks(maps: Tensor, per_map: int) -> Iterator[Tensor]:
    """Index batches whose posteriors fit the cache of a CPU, or a slice of the memory of a GPU."""
    budget = 2**20 if maps.device.type == "cpu" else 2**27
    return iter(torch.arange(len(maps), device=maps.device).split(max(1, budget // per_map)))


def _check(maps: Tensor, count: int, pool: int, restarts: int, iterations: int, support: str) -> None:
    if support not in ("phi_pos", "all", "mahalanobis"):
        raise ConfigError(f"segmentation: unknown support '{support}'; known: phi_pos, all, mahalanobis")
    for name, value in (("count", count), ("pool", pool), ("restarts", restarts), ("iterations", iterations)):
        if value < 1:
            raise ConfigError(f"segmentation: {name} must be at least 1, got {value}")
    if count > 127:
        raise ConfigError(f"segmentation: at most 127 segments fit the labels, got {count}")
    if maps.ndim != 3:
        raise ValueError(f"maps must be [N, H, W], got {tuple(maps.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise ValueError("maps hold values that are not finite; the model or its explanation has failed")
