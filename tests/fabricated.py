"""Fabricated cells: logits drawn so that accuracies are known, scored by the engine's own metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.metrics.groups import summary
from harness.plan import digest
from harness.record import Candidate, Curve, Record, Status, Track, TrackResult
from harness.store import Store
from leaderboard.collect import Entry

CLASSES = 2
RENDERINGS = ("aligned", "conflicting")


@dataclass
class Fabric:
    """Writes cells of one suite into a store. 2 classes x 2 renderings = 4 groups of n / 2 images."""

    root: Path
    n: int = 80
    suite: str = "toy_suite"
    source: str = "synthetic"
    model: str = "mlp(hidden=8)"
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    tracks: tuple[Track, ...] = ("preregistered",)
    base: dict[str, float] = field(default_factory=lambda: {"wga": 0.3, "headline": 0.35, "mu_lift": 5.0})
    identity: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str, rate: float | None = None, block: str = "baseline", **over: Any) -> list[Entry]:
        """A row at all seeds; `rate` is the accuracy on conflicting images, None with a status has no numbers."""
        return [self.cell(name, seed, rate, block, **over) for seed in over.pop("seeds", self.seeds)]

    def cell(
        self,
        name: str,
        seed: int,
        rate: float | None = None,
        block: str = "baseline",
        *,
        label: str = "",
        masks: str | None = None,
        status: Status = Status.DONE,
        reason: str = "",
        supervision: tuple[str, ...] = ("labels",),
        ledger: dict[str, float] | None = None,
        tuned: float = 0.05,
        predictions: bool = True,
        identity: dict[str, Any] | None = None,
        curve: Curve | None = None,
        base_curve: Curve | None = None,
    ) -> Entry:
        """One cell. On the tuned track candidate 1 is better by `tuned`."""
        record = Record(
            id=digest([self.suite, name, seed, identity]),
            status=status,
            reason=reason,
            suite=self.suite,
            suite_source=self.source,
            row=name,
            label=label,
            method=name.partition("@")[0],
            mask_source=masks,
            block=block,
            simulated=block == "oracle",
            model=self.model,
            seed=seed,
            config={"tracks": list(self.tracks)},
            identity={"seed": seed, "data": "d0", **self.identity, **(identity or {})},
        )
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        if status is Status.DONE:
            assert rate is not None
            y = np.arange(self.n) % CLASSES
            arrays = {"y": y, "ids": np.arange(self.n)}
            arrays |= {f"g/{r}": y * len(RENDERINGS) + k for k, r in enumerate(RENDERINGS)}
            for k, track in enumerate(self.tracks):
                scores = self._candidate(arrays, k, name, seed, rate + k * tuned)
                record.tracks[track] = TrackResult(
                    candidate=k,
                    rule="pre-registered" if k == 0 else "masked_val",
                    supervision=list(supervision),
                    ledger=ledger or {"labels/train": 100.0},
                    cost_s=1.25 + k,
                    metrics=scores,
                    curve=curve,
                )
                record.candidates.append(
                    Candidate(config={"lam": k}, seconds=1.0, test={m: scores[m] for m in ("headline", "wga")})
                )
            record.base = dict(self.base)
            record.base_curve = base_curve
        store = Store(self.root)
        store.write(record, arrays if predictions else {})
        folder = store.folder(self.suite, name, seed, record.id)
        return Entry(folder, store.read(folder))

    def _candidate(self, arrays: dict[str, Any], k: int, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Draw logits, and score them as the engine does."""
        y = arrays["y"]
        rng = np.random.default_rng([seed, *name.encode()])
        for rendering, accuracy in zip(RENDERINGS, (0.98, rate), strict=True):
            right = rng.random(self.n) < accuracy
            arrays[f"test/{rendering}/{k}"] = np.eye(CLASSES, dtype=np.float32)[np.where(right, y, 1 - y)]
        pooled = [np.concatenate([arrays[f"test/{r}/{k}"] for r in RENDERINGS]), np.concatenate([y, y])]
        groups = np.concatenate([arrays[f"g/{r}"] for r in RENDERINGS])
        found = summary(pooled[0], pooled[1], groups, 4, np.array([50, 2, 50, 2]))
        headline = float((arrays[f"test/conflicting/{k}"].argmax(1) == y).mean())
        return {**found, "headline": headline, "flip_effect": 1 - rate, "mu_lift": 2.0, "mu_uniform": 0.98}
