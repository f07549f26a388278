"""Baselines and controls: metadata only, so that listing them imports no torch."""

from __future__ import annotations

from baselines.group_info import DFR, ERM, ERM_CONTINUE, ERM_DECORRELATED, GROUP_DRO, JTT, RWG, RWY, SUBG, SUBY
from baselines.mask_info import (
    ALL_ONES,
    ALL_SEGMENTS,
    BORDER_SEGMENT,
    CAIPI,
    GROUND_TRUTH,
    INVERTED,
    LARGEST_SEGMENT,
    RANDOM_VERDICTS,
    RRR,
    SHUFFLED,
    TRANSLATED,
)

__all__ = [
    "ALL_ONES",
    "ALL_SEGMENTS",
    "BORDER_SEGMENT",
    "CAIPI",
    "DFR",
    "ERM",
    "ERM_CONTINUE",
    "ERM_DECORRELATED",
    "GROUND_TRUTH",
    "GROUP_DRO",
    "INVERTED",
    "JTT",
    "LARGEST_SEGMENT",
    "RANDOM_VERDICTS",
    "RRR",
    "RWG",
    "RWY",
    "SHUFFLED",
    "SUBG",
    "SUBY",
    "TRANSLATED",
]
