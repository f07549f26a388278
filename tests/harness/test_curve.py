"""The training loss in records: kept without changing a bit, summarised, and the same from the stage cache."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from test_training import context, data, model

import harness
from harness.curve import SPANS, summarise
from harness.record import Curve, Record
from harness.schema import read_record, seal
from harness.store import Store
from harness.training import TrainRecipe, fit


def losses_by_hand(recipe: TrainRecipe, epochs: int) -> tuple[torch.nn.Module, list[float]]:
    images, y = data()
    bare, stream, found = model(), context().generator("batches"), []
    optimizer = torch.optim.SGD(bare.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=0.01, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(50, generator=stream).split(16):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(bare(images[index].float().div_(255)), y[index])
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return bare, found


def test_every_loss_is_kept_and_no_bit_changes() -> None:
    recipe = TrainRecipe(optimizer="sgd", lr=0.1, weight_decay=0.01, batch_size=16, epochs=3)
    held = context()
    ours = fit(model(), *data(), recipe, held)
    bare, losses = losses_by_hand(recipe, 3)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), bare.parameters(), strict=True))
    assert held.curve_of(ours) == summarise(losses)
    assert held.curve_of(ours).steps == 12


def test_a_curve_is_of_the_model_that_was_trained() -> None:
    held, recipe = context(), TrainRecipe(batch_size=16, steps=3)
    one, other = fit(model(), *data(), recipe, held), fit(model(), *data(), recipe.with_(steps=5), held)
    fit(one, *data(), recipe, held)
    assert (held.curve_of(one).steps, held.curve_of(other).steps) == (6, 5)
    assert held.curve_of(model()) == Curve(steps=0, loss=[])
    del one
    fit(other, *data(), recipe, held)
    assert len(held._losses) == 2  # nothing is kept for a model that is gone


@pytest.mark.parametrize("steps", [1, 7, 39, 40, 41, 1000, 1203])
def test_spans_are_equal_and_miss_no_step(steps: int) -> None:
    curve = summarise([1000.0 + k for k in range(steps)])
    assert curve.steps == steps
    assert len(curve.loss) == min(steps, SPANS)
    ends = [k * steps // len(curve.loss) for k in range(len(curve.loss) + 1)]
    assert {b - a for a, b in itertools.pairwise(ends)} <= {steps // SPANS, steps // SPANS + 1} | {1}
    for value, (a, b) in zip(curve.loss, itertools.pairwise(ends), strict=True):
        assert value == pytest.approx(1000 + (a + b - 1) / 2, rel=1e-3)


def test_four_digits_and_no_number_where_there_is_none() -> None:
    assert summarise([0.0123456, 123456.0, 1e-9]).loss == [0.01235, 123500.0, 1e-9]
    assert summarise([1.0, math.nan, math.inf, 2.0]).loss == [1.0, None, None, 2.0]
    assert summarise([1.0] * 79 + [math.nan]).loss[-2:] == [1.0, None]
    assert summarise([]) == Curve(steps=0, loss=[])


def run(root: Path, methods: str, steps: int = 9) -> dict[str, Record]:
    words = [f"methods={methods}", "recipes.base.epochs=10", f"recipes.finetune.steps={steps}"]
    words += ["metrics.attribution_images=8", "metrics.explainers=[occlusion]", "tracks=[preregistered,tuned]"]
    harness.run("quickstart", *words, seeds=1, results=str(root))
    held = [r for _, r in Store(root).records() if isinstance(r, Record)]
    return {r.row: r for r in held if r.config["recipes"]["finetune"]["steps"] == steps}


def test_records_hold_curves_and_a_base_model_from_the_cache_brings_its_own(tmp_path: Path) -> None:
    fresh = run(tmp_path / "a", "[erm,erm_continue,jtt,dfr]")
    base = fresh["erm"].base_curve
    assert base is not None
    assert base.steps > SPANS == len(base.loss)
    assert base.loss[0] > base.loss[-1]  # it learns
    assert {row: record.base_curve for row, record in fresh.items()} == dict.fromkeys(fresh, base)
    steps = {row: {name: t.curve and t.curve.steps for name, t in r.tracks.items()} for row, r in fresh.items()}
    assert steps["erm"] == dict.fromkeys(steps["erm"], 0)
    assert steps["erm_continue"]["preregistered"] == 9
    assert steps["jtt"]["preregistered"] == base.steps == 80  # of the second model, not of the one that finds errors
    assert steps["dfr"]["preregistered"] == 0  # its last layer comes from another solver
    cached = run(tmp_path / "a", "[erm_continue]", steps=8)["erm_continue"]  # its base model lies on disk
    alone = run(tmp_path / "b", "[erm_continue]", steps=8)["erm_continue"]
    assert cached.base_curve == alone.base_curve == base
    assert cached.tracks["preregistered"].curve == alone.tracks["preregistered"].curve
    assert cached.spent["base"] < alone.spent["base"]  # it was not trained again
    assert Record.trusted(fresh["jtt"].model_dump_json()) == fresh["jtt"]


def test_records_of_before_have_no_curves(tmp_path: Path) -> None:
    record = run(tmp_path, "[erm_continue]")["erm_continue"]
    values = json.loads(record.model_dump_json())
    del values["base_curve"]
    for track in values["tracks"].values():
        del track["curve"]
    old = read_record(json.dumps({**values, "schema_version": 1, "seal": None}))
    assert old.base_curve is None
    assert [track.curve for track in old.tracks.values()] == [None] * len(values["tracks"])
    assert read_record(seal(old).model_dump_json()).base_curve is None
