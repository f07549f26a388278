"""JTT: copies by convention, the error set, the empty error set, the step budget."""

from __future__ import annotations

import pytest
import torch
from group_toys import BASE, base_model, context, same, split, splits, task_for

from baselines.jtt import Jtt, JttConfig, LoggedPredictions, upweighted
from harness.errors import ConfigError
from harness.training import TrainRecipe, fit, predict


@pytest.mark.parametrize(("convention", "copies"), [("official", 6), ("balancing", 5)])
def test_copies_of_an_error(convention, copies):
    errors = torch.tensor([False, True, False, True, False])
    counts = torch.bincount(upweighted(errors, 5, convention), minlength=5)
    assert counts.tolist() == [1, copies, 1, copies, 1]


def test_empty_error_set_repeats_the_base_model():
    clear = split("train", (60, 10, 60, 10, 60, 10), 1, noise=2.0)
    data = splits() | {"train": clear}
    for convention in ("official", "balancing"):
        ctx = context()
        method = Jtt(JttConfig(stage1_epochs=40, convention=convention))
        model = method.fit(task_for(Jtt.info, data), ctx.fresh_model(), ctx)
        assert ctx.notes["error_set_size"] == 0
        assert "empty" in ctx.notes["warning"]
        assert same(model, base_model(data, ctx))


def test_empty_error_set_repeats_the_base_models_shifts_too():
    class Flawless(Jtt):
        def error_set(self, train, recipe, context):
            return torch.zeros(len(train), dtype=torch.bool)

    data, ctx = splits(), context(recipe=BASE.with_(shift=1, steps=20))
    model = Flawless().fit(task_for(Jtt.info, data), ctx.fresh_model(), ctx)
    assert same(model, base_model(data, ctx))


def test_error_set_is_what_stage_one_gets_wrong():
    data, ctx = splits(), context()
    method = Jtt(JttConfig(stage1_epochs=1))
    model = method.fit(task_for(Jtt.info, data), ctx.fresh_model(), ctx)
    train = data["train"]
    stage1 = fit(ctx.fresh_model(), train.images, train.y, BASE.with_(epochs=1), ctx, stream="jtt/stage1")
    expected = (predict(stage1, train.images).argmax(1) != train.y).nonzero().flatten()
    assert len(expected) > 0
    assert torch.equal(method.audit_index["error_set"], expected)
    assert ctx.notes["error_set_size"] == len(expected)
    assert list(ctx.notes["error_set_classes"].values()) == torch.bincount(train.y[expected], minlength=3).tolist()
    assert "warning" not in ctx.notes
    assert not same(model, base_model(data, ctx))


def test_logged_errors_keep_the_latest_prediction_and_unseen_images_count_as_correct():
    y = torch.tensor([0, 1, 1, 0])
    logged = LoggedPredictions(y)

    def says(label):
        return lambda x: torch.nn.functional.one_hot(torch.full((len(x),), label), 2).float()

    x = torch.zeros(2, 1)
    logged(says(1), x, y[:2], torch.tensor([0, 1]))
    assert (logged.predictions != y).tolist() == [True, False, False, False]
    logged(says(0), x, y[:2], torch.tensor([0, 1]))
    assert (logged.predictions != y).tolist() == [False, True, False, False]


def test_logged_and_final_errors_differ():
    data, sizes = splits(), {}
    for errors in ("final", "logged"):
        ctx = context()
        Jtt(JttConfig(stage1_epochs=1, errors=errors, steps=30)).fit(task_for(Jtt.info, data), ctx.fresh_model(), ctx)
        sizes[errors] = ctx.notes["error_set_size"]
    assert sizes["logged"] > sizes["final"] > 0  # a moving model errs more often than the finished one


def test_steps_cover_both_stages():
    base = TrainRecipe(batch_size=10, epochs=5)
    first, second = Jtt(JttConfig(stage1_epochs=2)).recipes(base, 100)
    assert (first.total_steps(100), second.total_steps(100)) == (20, 50)
    first, second = Jtt(JttConfig(stage1_epochs=2, steps=50)).recipes(base, 100)
    assert (first.total_steps(100), second.total_steps(100)) == (20, 30)
    with pytest.raises(ConfigError, match="20 of 20 steps"):
        Jtt(JttConfig(stage1_epochs=2, steps=20)).recipes(base, 100)


@pytest.mark.parametrize(
    "change", [{"stage1_epochs": 0}, {"lambda_up": 0}, {"convention": "other"}, {"errors": "other"}]
)
def test_wrong_settings_are_refused(change):
    with pytest.raises(ConfigError):
        JttConfig(**change)
