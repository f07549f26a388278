"""What the embedded critic gets right: asked as a run asks it, through the local back end, segment by segment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from harness.cell import CellRun
from harness.config import load_config
from harness.context import derive_seed
from harness.errors import Skipped
from harness.lvlm.client import RGB, Answer, Decoding, Meter, Query, ask_twice
from harness.lvlm.local import Local
from harness.masks import AlignmentSet
from harness.metrics.groups import wilson_interval
from harness.models import build_model
from harness.plan import plan
from harness.stages import Stages
from harness.store import Store
from harness.suite import Int64, Split
from harness.supervision import Supervision, Task
from methods.lvlm_va.embedded.items import (
    ABSENT,
    CORE,
    HELD_OUT,
    NEITHER,
    THING,
    Items,
    explained,
    held_out_items,
    join,
    judged,
)
from methods.lvlm_va.embedded.network import SIDE
from methods.lvlm_va.embedded.questions import BOTH, CORE_ONLY, SPURIOUS_ONLY, Asked, ask, colour_order
from methods.lvlm_va.embedded.scenes import Picture, glyphs
from methods.lvlm_va.overlay import render

Control = Literal["none", "black", "another"]
BATCH = 64


@dataclass(frozen=True)
class Verdicts:
    """Answers on pictures. given, truth: int8 [N, 6], 1 spurious, 0 relevant, -1 no segment (given: or no answer)."""

    given: np.ndarray
    truth: np.ndarray
    failures: int

    def scores(self) -> dict[str, Any]:
        """Segment-wise rates with 95 % Wilson intervals (segments taken as independent); spurious is positive.

        `balanced` is the mean of the two classes' accuracies: 0.5 for answers that know nothing of the picture.
        """
        held = (self.truth >= 0) & (self.given >= 0)
        given, truth = self.given[held] == 1, self.truth[held] == 1
        found = {
            "pictures": len(self.truth),
            "failures": self.failures,
            "accuracy": _rate(int((given == truth).sum()), len(truth)),
            "fpr": _rate(int((given & ~truth).sum()), int((~truth).sum())),
            "fnr": _rate(int((~given & truth).sum()), int(truth.sum())),
        }
        rates = [found[name]["value"] for name in ("fpr", "fnr")]
        known = all(rate is not None for rate in rates)
        return {**found, "balanced": round(1 - sum(rates) / 2, 4) if known else None}


def _rate(hits: int, count: int) -> dict[str, Any]:
    if not count:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = wilson_interval(hits, count)
    return {"value": round(hits / count, 4), "low": round(low, 4), "high": round(high, 4), "n": count}


def verdicts(
    folder: Path,
    items: Items,
    *,
    seed: int = 0,
    swapped: bool = False,
    form: int = BOTH,
    wording: str = "own",
    control: Control = "none",
) -> Verdicts:
    """Ask the critic in `folder` about every picture.

    Args:
        seed: of colours and wording; equal seeds ask about equal pictures. swapped, form, wording: see `questions.ask`.
        control: show black pictures, or those of the next item, with the question and the truth unchanged.
    """
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "evaluation"))
    order = colour_order(len(items), rng)
    asked = [ask(items, k, order[k], rng, swapped=swapped, form=form, wording=wording) for k in range(len(items))]
    replies, _ = ask_twice(Local(str(folder), batch=BATCH), list(_queries(items, order, asked, control)), Meter())
    truth, given = (np.full(items.kind.shape, ABSENT, dtype=np.int8) for _ in range(2))
    for k, (one, reply) in enumerate(zip(asked, replies, strict=True)):
        truth[k, one.segments] = one.spurious
        if isinstance(reply, Answer):
            given[k, one.segments] = [reply.value[colour] == "spurious" for colour in one.colours]
    return Verdicts(given, truth, sum(not isinstance(reply, Answer) for reply in replies))


def _queries(items: Items, order: Int64, asked: Sequence[Asked], control: Control) -> Iterator[Query]:
    shown = (
        render(items.images[:, None], items.labels, size=SIDE, order=order)
        if control != "black"
        else [(np.zeros((SIDE, SIDE, 3), np.uint8),) * 3] * len(items)
    )
    if control == "another":
        shown = [*shown[1:], shown[0]]
    for pictures, one in zip(shown, asked, strict=True):
        images: tuple[RGB, ...] = tuple(pictures)
        yield Query(one.prompt, images, schema=one.schema, decoding=Decoding(12 * len(one.colours) + 8))


def both_directions(folder: Path, items: Items, seed: int = 0) -> dict[str, Any]:
    """Scores, those under the specification turned round, and the share of verdicts that change with it.

    The share counts the segments that lie on the object or on the digit.
    """
    one, other = (verdicts(folder, items, seed=seed, swapped=swapped) for swapped in (False, True))
    named = ((items.kind == THING) | (items.kind == CORE)) & (one.given >= 0) & (other.given >= 0)
    found = {"flips": _rate(int((one.given != other.given)[named].sum()), int(named.sum()))}
    for name, kind in (("flips_object", THING), ("flips_digit", CORE)):
        held = named & (items.kind == kind)
        found[name] = _rate(int((one.given != other.given)[held].sum()), int(held.sum()))
    ground = (items.kind == NEITHER) & (other.given >= 0)
    found["background_spurious_when_swapped"] = _rate(int((other.given == 1)[ground].sum()), int(ground.sum()))
    return {**one.scores(), **found, "swapped": other.scores()}


def suite_items(preset: str, suite: str, seeds: Sequence[int]) -> Items:
    """The alignment sets that cells of a preset see: for evaluation only, never for training.

    Raises:
        Skipped: the suite's files are missing.
    """
    parts = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as results:
            split, alignment = _alignment(preset, suite, seed, results)
            index = alignment.index.numpy()
            y = split.y[index]
            core = np.zeros_like(split.masks[index]) if split.core is None else split.core[index]
            picture = Picture(split.images[index, 0], split.masks[index], core, y, np.zeros_like(y))
            parts.append(judged(picture, alignment.segments, alignment.maps))
    items = join(parts)
    return items[(items.kind != ABSENT).any(1)]


def _alignment(preset: str, suite: str, seed: int, results: str) -> tuple[Split, AlignmentSet]:
    """Training split and alignment set of a cell, from the engine's own stages in an empty results folder."""
    overrides = [f"suites=[{suite}]", "methods=[lvlm_va@oracle]", f"results={results}", "device=cpu", "seeds=1"]
    config = load_config(preset, overrides).model_copy(update={"seeds": (seed,)})
    (cell,) = plan(config)
    if cell.blocked:
        raise Skipped(cell.blocked)
    stages = Stages(Store(results), torch.device("cpu"))
    context = CellRun(cell, stages).context
    loaded = stages.load(cell, context)
    names, train = loaded.data.class_names, loaded.data.train
    context.build_model = lambda: build_model(
        cell.model, (1, *train.images.shape[2:]), len(names), context.seed("model", "init")
    )
    base = stages.base(cell, loaded, context)
    task = Task(
        loaded.splits, Supervision.LABELS, who="evaluation", class_names=names, group_names=loaded.data.group_names
    )
    alignment = stages.alignment(cell, loaded, task.train, base, context)
    _ = alignment.maps, alignment.segments  # they are files of the results folder: read them while it is there
    return train, alignment


def font_items(seed: int = 0, count: int = 500) -> Items:
    """Digits in a font that training never saw, explained by models trained on that font."""
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "font"))
    images, y = glyphs(2000 + count, "type", rng)
    parts = []
    for k, rho in enumerate((1.0, 0.97)):
        part = slice(k * count // 2, (k + 1) * count // 2)
        parts.append(explained((images[count:], y[count:]), (images[part], y[part]), rho, 20_000 + seed * 10 + k))
    items = join(parts)
    return items[(items.kind != ABSENT).any(1)]


def evaluate(folder: Path, seed: int = 0, pictures: int | None = None) -> dict[str, Any]:
    """Every score of the card, by condition. `pictures` bounds each condition (for a quick look)."""
    found: dict[str, Any] = {}
    for name, items in _conditions(seed):
        shown = items[slice(pictures)]
        found[name] = both_directions(folder, shown, seed)
        if name.startswith("held-out"):
            for label, changes in _variants():
                found[f"{name}, {label}"] = verdicts(folder, shown, seed=seed, **changes).scores()
    return found


def _variants() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "core sentence only", {"form": CORE_ONLY}
    yield "spurious sentence only", {"form": SPURIOUS_ONLY}
    yield "wording never seen", {"wording": "unseen"}
    yield "control: black pictures", {"control": "black"}
    yield "control: another item's pictures", {"control": "another"}


def _conditions(seed: int) -> Iterator[tuple[str, Items]]:
    for suite in HELD_OUT:
        held = held_out_items(suite, seed)
        if held is not None:
            yield f"held-out critic pool, {suite}", held
    for preset, suite in (
        ("decoys", "decoy_mnist(variant=ross,rho=1.0)"),
        ("quickstart", "decoy_digits(rho=0.97)"),
        ("quickstart", "decoy_digits(rho=1.0)"),
    ):
        try:
            yield f"suite {suite}, {preset}", suite_items(preset, suite, (0, 1))
        except Skipped:
            continue
    yield "font never seen", font_items(seed)
