"""The built-in studies: metadata only. Each is a YAML file beside this one."""

from __future__ import annotations

from harness.registry import ComponentInfo

__all__ = ["BASELINES", "COST", "FPR_FNR", "ROSS_CURVE", "SAMPLING", "SEGMENTATION"]


def _study(name: str, summary: str) -> ComponentInfo:
    return ComponentInfo(name=name, summary=summary, factory=f"methods.studies:{name}.yaml")


ROSS_CURVE = _study("ross-curve", "RRR on decoy MNIST against lambda: a plateau, and the cliff above it.")
FPR_FNR = _study("fpr-fnr", "What a critic's false alarms and misses cost: a response surface over both rates.")
BASELINES = _study("baselines", "Explainers and attribution baselines under an exact and a noisy critic.")
SAMPLING = _study("sampling", "Which images the critic sees: low, random or high entropy, class quota or none.")
COST = _study("cost", "Seconds by phase against training images, alignment images and segments, with exponents.")
SEGMENTATION = _study("segmentation", "Segments from attribution (PPEPS-WGM) against segments from content (SLIC).")
