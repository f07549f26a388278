"""How often a chance critic passes the gate on real segments; `VABENCH_DRAWS=100` runs the simulation at full size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from harness.errors import Skipped
from methods.lvlm_va.alignment_sets import judged_cell
from methods.lvlm_va.distilled import distil
from methods.lvlm_va.segment_features import segment_features

DRAWS = int(os.environ.get("VABENCH_DRAWS", "4"))
SUITES = {"quickstart": "decoy_digits(rho=1.0)", "decoys": "decoy_mnist(variant=ross,rho=1.0)"}


def chance(kind: str, images: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Verdicts that know nothing: per segment, or one for all segments of an image."""
    rng = np.random.default_rng([17, seed])
    if kind == "whole images":
        return (rng.random(images.max() + 1) < rate)[images].astype(np.int64)
    return (rng.random(len(images)) < rate).astype(np.int64)


@pytest.mark.parametrize("preset", SUITES)
def test_chance_critics_abstain_on_real_segments(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if preset == "decoys" and "VABENCH_DRAWS" not in os.environ:
        pytest.skip("decoy MNIST is part of the full simulation only: set VABENCH_DRAWS=100 and VABENCH_DATA")
    overrides = [f"suites=[{SUITES[preset]}]", f"results={tmp_path / 'results'}"]
    try:
        cell = judged_cell(preset, overrides, row="lvlm_va@oracle", seed=0)
    except Skipped as missing:
        pytest.skip(str(missing))
    alignment = cell.alignment(cell.task())
    features, where = segment_features(alignment.images, alignment.maps, alignment.segments)
    images = where[:, 0].cpu().numpy()
    for kind in ("independent", "whole images"):
        drawn = [distil(features, chance(kind, images, 0.3, k), images, seed=k) for k in range(DRAWS)]
        used, z = sum(not found.abstained for found in drawn), np.array([found.z for found in drawn])
        with capsys.disabled():
            if "VABENCH_DRAWS" in os.environ:
                print(
                    f"{preset}, {kind}: {used} of {DRAWS} used, z {z.mean():.2f} +- {z.std():.2f}, most {z.max():.2f}"
                )
        assert used <= 0.01 * DRAWS
        assert z.std() > 0.2  # it is measured, not fixed
    # The same gate on a critic that knows something: it must open, or abstaining would be no finding.
    truth = (features[:, 0] < np.quantile(features[:, 0], 0.1)).astype(np.int64)
    wrong = np.random.default_rng(5).random(len(truth)) < 0.13
    assert not distil(features, np.where(wrong, 1 - truth, truth), images).abstained
