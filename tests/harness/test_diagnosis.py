"""The diagnosis gate: its numbers on fabricated records, and a run in which it leaves the repairs out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from harness.api import records, run_config
from harness.config import load_config
from harness.diagnosis import NOT_BIASED, diagnose, was_gated
from harness.record import Record, Status, TrackResult


def record(seed: int, accuracy: float, worst: float, **flips: float) -> Record:
    metrics = {"train_weighted": accuracy, "wga": worst, "wga_deciding": worst, **flips}
    result = TrackResult(candidate=0, rule="", supervision=[], ledger={}, cost_s=0.0, metrics=metrics)
    names = {"suite": "s", "suite_source": "synthetic", "row": "erm", "method": "erm", "mask_source": None}
    rest = {"block": "reference", "model": "mlp", "config": {}, "identity": {}, "tracks": {"preregistered": result}}
    return Record(id=str(seed), status=Status.DONE, seed=seed, **names, **rest)  # type: ignore[arg-type]


def verdict(*seeds: tuple[float, float, float, float]) -> tuple[bool, bool]:
    rows = [record(k, a, w, flip_insert=i, flip_placebo=p) for k, (a, w, i, p) in enumerate(seeds)]
    found = diagnose(rows)
    assert found is not None
    return found.good, found.biased


def test_each_limit_decides_alone() -> None:
    biased = (0.9, 0.3, 0.6, 0.1)
    assert verdict(biased, biased) == (True, True)
    assert verdict((0.74, 0.3, 0.6, 0.1)) == (False, True)
    assert verdict((0.9, 0.81, 0.6, 0.1)) == (True, False)  # the worst group is hardly worse
    assert verdict((0.9, 0.3, 0.6, 0.56)) == (True, False)  # the placebo flips as many


def test_three_seeds_must_agree() -> None:
    assert verdict((0.9, 0.3, 0.3, 0.0), (0.9, 0.3, 0.3, 0.0), (0.9, 0.3, 0.3, 0.0)) == (True, True)
    assert verdict((0.9, 0.3, 0.6, 0.0), (0.9, 0.3, 0.0, 0.0), (0.9, 0.3, 0.0, 0.0)) == (True, False)


def test_removal_counts_where_nothing_can_be_inserted_and_without_interventions_the_gap_decides() -> None:
    found = diagnose([record(0, 0.9, 0.3, flip_remove=0.2, flip_placebo=0.05)])
    assert found is not None
    assert found.reliance == pytest.approx(0.15)
    bare = diagnose([record(0, 0.9, 0.3)])
    assert bare is not None
    assert bare.passes
    assert "no intervention" in bare.sentence()
    assert diagnose([]) is None


OVERRIDES = ["recipes.base.epochs=3", "recipes.finetune.steps=5", "alignment.n=16", "metrics.attribution_images=8"]


def test_repairs_of_an_unbiased_model_are_not_applicable_until_the_gate_is_off(tmp_path: Path) -> None:
    """At rho 0.5 the decoy says little: the base model is unbiased or not good, in either case there is no repair."""
    words = [
        *OVERRIDES,
        f"results={tmp_path}",
        "seeds=1",
        "workers=1",
        "methods=[erm,erm_decorrelated,rwg,erm_continue]",
    ]
    words += ["suites=[decoy_digits(rho=0.5)]"]
    console = Console(quiet=True)
    on = load_config("quickstart", [*words, "diagnosis=true"])
    run_config(on, console)
    held = {r.row: r for _, r in records(on)}
    assert Counter(r.status for r in held.values()) == {Status.DONE: 2, Status.NOT_APPLICABLE: 2}
    assert was_gated(held["rwg"])
    assert "train-weighted accuracy" in held["rwg"].reason
    again = run_config(on, console)
    assert Counter(outcome.status for outcome in again.outcomes) == {Status.NOT_APPLICABLE: 2}
    off = load_config("quickstart", words)
    run_config(off, console)
    assert {r.status for _, r in records(off)} == {Status.DONE}
    assert not run_config(on, console).outcomes


def test_repairs_of_a_biased_model_run(tmp_path: Path) -> None:
    words = [f"results={tmp_path}", "seeds=1", "workers=1", "methods=[erm,rwg]", "diagnosis=true"]
    config = load_config("quickstart", words)
    run_config(config, Console(quiet=True))
    assert {r.status for _, r in records(config)} == {Status.DONE}
    assert NOT_BIASED not in "".join(r.reason for _, r in records(config))
