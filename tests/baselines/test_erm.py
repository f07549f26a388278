"""ERM-continue is the repair at lambda 0; ERM-decorrelated trains on what its name says."""

from __future__ import annotations

import copy

import pytest
import torch
from group_toys import FINETUNE, base_model, context, same, splits, task, task_for

from baselines.erm import ContinueConfig, ErmContinue, ErmDecorrelated
from baselines.rrr import finetune
from harness.errors import ConfigError, SupervisionError
from harness.masks import MaskSet
from harness.training import fit


@pytest.fixture(scope="module")
def biased():
    data = splits()
    return data, base_model(data, context())


def test_equals_the_repair_at_lambda_zero_bit_for_bit(biased):
    data, base = biased
    view = task_for(ErmContinue.info, data)
    control = ErmContinue().fit(view, copy.deepcopy(base), context())
    index, masks = view.corrections.index, view.corrections.masks
    repair = [
        finetune(copy.deepcopy(base), view, context(), index=index, masks=masks, lam=lam, recipe=FINETUNE, ratio=0.5)
        for lam in (0.0, 0.1)
    ]
    assert same(control, repair[0])
    assert not same(control, repair[1])
    assert not same(control, base)


def test_masks_do_not_matter_but_the_alignment_set_does(biased):
    data, base = biased
    index = torch.arange(0, 40)
    empty, full = (torch.full((40, 6, 6), marked) for marked in (False, True))
    models = [
        ErmContinue().fit(
            task(data, ErmContinue.info.supervision, MaskSet(where, masks)), copy.deepcopy(base), context()
        )
        for where, masks in ((index, empty), (index, full), (index + 40, full))
    ]
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_continue_needs_an_alignment_set(biased):
    data, base = biased
    with pytest.raises(SupervisionError, match="uses_masks"):
        ErmContinue().fit(task(data, ErmContinue.info.supervision), base, context())


def test_decorrelated_trains_a_fresh_model_on_decorrelated_images(biased):
    data, base = biased
    view = task_for(ErmDecorrelated.info, data)
    model = ErmDecorrelated().fit(view, copy.deepcopy(base), context())
    ctx, clean = context(), data["decorrelated"]
    assert same(model, fit(ctx.fresh_model(), clean.images, clean.y, ctx.base_recipe, ctx))
    assert view.ledger.as_dict()["decorrelated/train"] == len(clean.y)


def test_ratio_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="ratio"):
        ContinueConfig(ratio=1.5)
