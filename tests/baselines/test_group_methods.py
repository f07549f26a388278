"""What every method of this room promises: metadata, supervision, determinism, typed outcomes."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from group_toys import base_model, context, same, split, splits, task, task_for, worst_group

import baselines
from baselines import group_info
from baselines.erm import Erm
from baselines.group_balancing import SubG
from baselines.group_dro import GroupDro
from baselines.jtt import Jtt
from harness.errors import ConfigError, NotApplicable, SupervisionError
from harness.method import MethodInfo
from harness.supervision import Supervision

INFOS = [value for value in vars(group_info).values() if isinstance(value, MethodInfo)]
NEED_GROUPS = [group_info.SUBG, group_info.RWG, group_info.GROUP_DRO]
each = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)


def load(info):
    module, _, name = info.factory.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(scope="module")
def biased():
    data = splits()
    return data, base_model(data, context())


def run(info, data, base, ctx=None, **config):
    method = load(info)
    ctx = ctx or context(classes=int(data["train"].y.max()) + 1)
    return method(method.Config(**config)).fit(task_for(info, data), copy.deepcopy(base), ctx)


def test_metadata_imports_no_torch():
    code = "import sys, baselines; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_ten_are_registered_under_their_own_name():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["vabench.methods"]
    for info in INFOS:
        module, _, attribute = points[info.name].partition(":")
        assert getattr(importlib.import_module(module), attribute) is info
    assert len(INFOS) == 10
    assert all(hasattr(baselines, name) for name in baselines.__all__)


@each
def test_class_and_grid_match_the_metadata(info):
    method = load(info)
    assert method.info is info
    assert len(method.grid) == (0 if info.name == "erm" else 3)
    candidates = [method.Config(**overrides) for overrides in method.grid]
    assert len(set(candidates)) == len(candidates)
    if method.grid:
        assert any(candidate == method.Config() for candidate in candidates) or info.name == "dfr"


@each
def test_fits_on_exactly_what_it_declares(info, biased):
    data, base = biased
    model = run(info, data, base)
    assert not model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("info", [i for i in INFOS if i.supervision != Supervision.LABELS], ids=lambda i: i.name)
def test_every_declared_flag_is_needed(info, biased):
    data, base = biased
    with pytest.raises(SupervisionError):
        load(info)().fit(task(data, Supervision.LABELS), copy.deepcopy(base), context())


def test_reading_undeclared_groups_is_stopped(biased):
    class Cheat(Jtt):
        def fit(self, task, base, context):
            task.train.groups  # noqa: B018 - the read itself is the offence
            return super().fit(task, base, context)

    class Peek(Erm):
        def fit(self, task, base, context):
            return task.test

    data, base = biased
    for method, match in ((Cheat, "TRAIN_GROUPS"), (Peek, "test split")):
        with pytest.raises(SupervisionError, match=match):
            method().fit(task_for(method.info, data), base, context())


@pytest.mark.parametrize("info", NEED_GROUPS, ids=lambda info: info.name)
def test_group_labels_are_charged(info, biased):
    data, base = biased
    seen = task_for(info, data)
    load(info)().fit(seen, copy.deepcopy(base), context())
    assert seen.ledger.as_dict()["groups/train"] == len(data["train"].y)


@each
def test_deterministic_under_its_seed(info, biased):
    data, base = biased
    data = data | {"val_groups": split("val_groups", (40, 25) * 3, 3)}  # uneven: DFR has subsets to draw
    first, second = run(info, data, base), run(info, data, base)
    assert same(first, second)
    if info.name != "erm":
        assert not same(first, run(info, data, base, context(seed=1)))


@pytest.mark.parametrize("info", NEED_GROUPS, ids=lambda info: info.name)
def test_deterministic_shortcut_is_not_applicable(info):
    data = splits(train=(60, 0, 60, 0, 60, 0))
    with pytest.raises(NotApplicable, match="0/conflicting, 1/conflicting, 2/conflicting"):
        run(info, data, context().fresh_model())


@pytest.mark.parametrize("info", [group_info.SUBY, group_info.RWY, group_info.JTT], ids=lambda info: info.name)
def test_methods_without_group_labels_run_at_rho_one(info):
    data = splits(train=(60, 0, 60, 0, 60, 0))
    run(info, data, context().fresh_model(), steps=20)


@pytest.mark.parametrize("info", NEED_GROUPS, ids=lambda info: info.name)
def test_one_empty_group_is_left_out_and_named(info):
    data, ctx = splits(train=(60, 0, 60, 7, 60, 9)), context()
    run(info, data, ctx.fresh_model(), ctx, steps=20)
    assert ctx.notes["empty_groups"] == ["0/conflicting"]
    assert ctx.notes["smallest_group"] == {"1/conflicting": 7}


@pytest.mark.parametrize("info", [*NEED_GROUPS, group_info.DFR], ids=lambda info: info.name)
def test_group_methods_repair_the_toy_shortcut(info, biased):
    data, base = biased
    assert worst_group(run(info, data, base)) > worst_group(base) + 0.1


def test_erm_is_the_base_model_itself(biased):
    data, base = biased
    assert Erm().fit(task_for(Erm.info, data), base, context()) is base


@pytest.mark.parametrize("change", [{"steps": 0}, {"lr": 0.0}, {"weight_decay": -1.0}])
def test_wrong_overrides_are_refused(change):
    with pytest.raises(ConfigError):
        SubG.Config(**change)


def test_overrides_reach_the_recipe():
    recipe = GroupDro.Config(steps=7, weight_decay=0.5).apply(context().base_recipe.with_(epochs=3))
    assert (recipe.steps, recipe.epochs, recipe.weight_decay, recipe.lr) == (7, None, 0.5, 1e-2)


def test_balance_survives_a_class_with_more_groups_than_another():
    """A class-balanced recipe must not undo SUBG's balance over groups."""
    data, ctx = splits(train=(60, 0, 60, 8, 60, 8)), context()
    recipe = ctx.base_recipe.with_(sampling="class_balanced", batch_size=40)
    kept = data["train"].g[SubG().subset(data["train"].g, ctx)]
    drawn = next(SubG().batches(kept, recipe, ctx))
    assert torch.bincount(kept[drawn], minlength=6).tolist() == [8, 0, 8, 8, 8, 8]


def test_missing_split_is_not_applicable(biased):
    data, base = biased
    for info, name in ((group_info.DFR, "val_groups"), (group_info.ERM_DECORRELATED, "decorrelated")):
        rest = {key: value for key, value in data.items() if key != name}
        with pytest.raises(NotApplicable, match=name):
            run(info, rest, base)


def test_toy_shortcut_is_learned(biased):
    """Without this the repairs above would prove nothing."""
    _, base = biased
    aligned = split("test", (100, 0, 100, 0, 100, 0), 98)
    assert (base(aligned.images / 255).argmax(1) == aligned.y).double().mean() > 0.9
    assert worst_group(base) < 0.6
