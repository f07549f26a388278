"""Two routes to one result, timed in turns in one process: speed as a ratio, so that the machine cancels out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]


def compare(
    benchmark: Any, ours: Work, reference: Work, *, images: int, reference_images: int = 0, rounds: int = 5
) -> float:
    """Median over rounds of (reference's CPU seconds per image) / (ours), larger is faster; the order alternates.

    CPU seconds of the process, one thread: other programs on the machine disturb them less than wall-clock. Wall-clock
    of `ours` is in pytest-benchmark's own table; ratio, rounds and image counts go to its extra_info.
    """
    assert torch.get_num_threads() == 1
    reference_images = reference_images or images
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    pending: list[bool] = []

    def timed(name: str, work: Work) -> None:
        start = time.process_time()
        work()
        seconds[name].append(time.process_time() - start)

    def before() -> None:
        pending.append(len(seconds["ours"]) % 2 == 0)
        if pending[-1]:
            timed("reference", reference)

    def one_round() -> None:
        timed("ours", ours)

    ours()
    reference()
    benchmark.pedantic(
        one_round,
        setup=before,
        teardown=lambda: None if pending[-1] else timed("reference", reference),
        rounds=rounds,
        iterations=1,
    )
    ratios = [
        (theirs / reference_images) / (mine / images)
        for mine, theirs in zip(seconds["ours"], seconds["reference"], strict=True)
    ]
    benchmark.extra_info.update(
        images=images,
        reference_images=reference_images,
        rounds=rounds,
        images_per_cpu_s=images / statistics.median(seconds["ours"]),
        reference_images_per_cpu_s=reference_images / statistics.median(seconds["reference"]),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
    )
    return statistics.median(ratios)
