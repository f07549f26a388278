"""A small run for tests of executors, and what must be equal wherever its cells ran."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.api import run_config
from harness.config import RunConfig, load_config
from harness.record import Record
from harness.store import Store

WORDS = ["methods=[erm,rwg,rrr@ground_truth,lvlm_va@oracle]", "seeds=2", "recipes.base.epochs=2"]
WORDS += ["recipes.finetune.steps=5", "metrics.attribution_images=4", "alignment.n=16", "alignment.baselines=2"]
WORDS += ['suites=["decoy_digits(rho=0.9,n_train=200,n_val=40,n_val_groups=40,n_test=60)"]', "model=mlp(hidden=8)"]


def config(root: Path, executor: str, *more: str) -> RunConfig:
    return load_config("quickstart", [*WORDS, *more, f"results={root}", f"executor={executor}"])


def run(settings: RunConfig) -> Any:
    return run_config(settings, Console(file=io.StringIO()))


def numbers(root: Path) -> dict[str, Any]:
    """Metrics, ledgers, chosen candidates, logits and masks of all cells."""
    store, found = Store(root), {}
    for folder, record in store.records():
        assert isinstance(record, Record)
        tracks = {name: (t.metrics, t.ledger, t.candidate) for name, t in record.tracks.items()}
        arrays = {name: a.tobytes() for name, a in store.predictions(folder, record).items()}
        found[record.id] = (record.status, tracks, arrays)
    return found
