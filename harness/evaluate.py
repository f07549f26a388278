"""The final evaluation: test logits of a model under every rendering, and all numbers that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.context import RunContext
from harness.explain import draw_baselines
from harness.metrics import reliance
from harness.metrics.score import score
from harness.record import plain
from harness.registry import registry
from harness.spec import parse_spec
from harness.stages import Loaded
from harness.training import predict

__all__ = ["attribution", "score", "spread_evenly", "test_logits"]

Logits = dict[str, npt.NDArray[np.float32]]


def test_logits(model: nn.Module, loaded: Loaded) -> Logits:
    """Logits float32 [N, K] by test rendering."""
    return {name: predict(model, images).cpu().numpy() for name, images in loaded.test_images.items()}


def attribution(model: nn.Module, loaded: Loaded, settings: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """mu_Align and its lift for every explainer of the config, and RCS; empty where the suite has no masks.

    The explained class is the image's label, as in the preset; baselines are training images fixed by the data seed.
    """
    role = loaded.data.roles.masked
    if role is None or loaded.data.test[role].masks is None:
        return {}
    split = loaded.data.test[role]
    chosen = spread_evenly(len(split), settings["attribution_images"])
    images = loaded.test_images[role][torch.from_numpy(chosen).to(loaded.test_images[role].device)]
    masks = split.masks[chosen] if split.masks is not None else np.zeros(0, dtype=np.bool_)
    y = torch.from_numpy(split.y[chosen]).to(images.device)
    generator = context.generator("metrics/baselines", "data")
    baselines = draw_baselines(loaded.splits["train"].images, 20, generator, "train")
    found: dict[str, Any] = {}
    for spec in map(parse_spec, settings["explainers"]):
        explanation = registry("explainers").create(spec)(model, images, y, baselines)
        values = reliance.mu_align(explanation.maps.cpu().numpy(), masks)
        named = {"mu_align": values["mu_align"], "mu_lift": values["lift"]}
        if not found:  # the first explainer is the headline one
            found |= {**named, "mu_uniform": values["uniform_level"]}
            found["completeness_gap_p95"] = float(torch.quantile(explanation.gap.float(), 0.95))
        found |= {f"{key}.{spec.name}": value for key, value in named.items()}
    if split.core is not None:
        core = split.core[chosen]
        found["rcs"] = _rcs(model, split.images[chosen], split.y[chosen], masks, core, settings["rcs_sigma"], context)
    return dict(plain(found))


def spread_evenly(total: int, n: int) -> npt.NDArray[np.int64]:
    """n of total positions (all where there are fewer), evenly spaced: a test split may be ordered by class."""
    return np.arange(min(n, total), dtype=np.int64) * total // max(1, min(n, total))


def _rcs(
    model: nn.Module,
    images: npt.NDArray[np.uint8],
    y: npt.NDArray[np.int64],
    spurious: npt.NDArray[np.bool_],
    core: npt.NDArray[np.bool_],
    sigma: float,
    context: RunContext,
) -> float:
    """Relative core sensitivity with equal noised areas."""
    rng = np.random.default_rng(context.seed("metrics/rcs", "data"))
    noised = reliance.noise_regions(images, spurious, core, sigma, rng)
    used, device = noised.area > 0, next(model.parameters()).device

    def accuracy(copy: npt.NDArray[np.uint8]) -> float:
        guess = predict(model, torch.from_numpy(copy[used]).to(device)).argmax(1).cpu().numpy()
        return float((guess == y[used]).mean())

    return float(reliance.rcs(accuracy(noised.in_region), accuracy(noised.in_other))) if used.any() else float("nan")
