"""DFR: the folded head against scikit-learn, balanced random subsets, C's choice, missing groups."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from group_toys import Net, base_model, context, split, splits, task_for
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from baselines.dfr import Dfr, DfrConfig, embed, halves
from baselines.l1_regression import L1, fit_head
from harness.errors import ComponentError, ConfigError, NotApplicable, VabenchError
from harness.training import predict, to_float


def run(data, base, ctx, **config):
    return Dfr(DfrConfig(**config)).fit(task_for(Dfr.info, data), copy.deepcopy(base), ctx)


@pytest.fixture(scope="module", params=[2, 3], ids=["K=2", "K=3"])
def trained(request):
    data, ctx = splits(request.param), context(request.param)
    return request.param, data, base_model(data, ctx)


def test_one_refit_on_balanced_val_is_scikit_learns_model(trained):
    """val_groups is balanced, so the only balanced subset is all of it: the reference needs no draw."""
    classes, data, base = trained
    model = run(data, base, context(classes), c=0.5, refits=1)
    scaler = StandardScaler().fit(embed(base, data["train"].images))
    x, y = scaler.transform(embed(base, data["val_groups"].images)), data["val_groups"].y.numpy()
    reference = LogisticRegression(**L1, C=0.5, solver="liblinear", tol=1e-8, max_iter=10_000, random_state=0)
    reference = reference.fit(x, y) if classes == 2 else OneVsRestClassifier(reference).fit(x, y)
    logits = predict(model, data["val_groups"].images).double().numpy()
    scores = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    np.testing.assert_allclose(scores, reference.decision_function(x), atol=0.05)
    assert (logits.argmax(1) == reference.predict(x)).mean() > 0.99


def test_l1_makes_the_head_sparse(trained):
    classes, data, base = trained
    x, y = embed(base, data["val_groups"].images), data["val_groups"].y.numpy()
    weak, strong = (fit_head(StandardScaler().fit_transform(x), y, classes, c, 0)[0] for c in (10.0, 0.05))
    assert (strong == 0).sum() > (weak == 0).sum()


def test_only_the_head_changes(trained):
    classes, data, base = trained
    model = run(data, base, context(classes), c=1.0)
    for name, value in base.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) == name.startswith("backbone")
    assert not model.training


def test_refits_draw_random_subsets_and_average(trained, monkeypatch):
    classes, data, base = trained
    sizes = (30, 10) * classes
    data = data | {"val_groups": split("val_groups", sizes, 3)}
    scaler = StandardScaler().fit(embed(base, data["train"].images))
    x = scaler.transform(embed(base, data["val_groups"].images))
    g = data["val_groups"].g.numpy()
    drawn = []

    def record(part, y, num_classes, c, seed):
        rows = [int(np.abs(x - row).sum(1).argmin()) for row in part]
        drawn.append(rows)
        assert np.bincount(g[rows]).tolist() == [10] * 2 * classes
        return np.full((num_classes, x.shape[1]), float(len(drawn))), np.zeros(num_classes)

    monkeypatch.setattr("baselines.l1_regression.fit_head", record)
    ctx = context(classes)
    model = run(data, base, ctx, c=1.0, refits=4)
    assert len({tuple(sorted(rows)) for rows in drawn}) == 4
    first = np.concatenate([np.flatnonzero(g == k)[:10] for k in range(2 * classes)])
    assert all(set(rows) != set(first.tolist()) for rows in drawn)
    np.testing.assert_allclose(model.head.weight.detach(), 2.5 / np.tile(scaler.scale_, (classes, 1)), rtol=1e-5)
    assert (ctx.notes["subset_size"], ctx.notes["refits"]) == (20 * classes, 4)


def test_c_is_tuned_on_one_half_and_trained_on_the_other(trained):
    classes, data, base = trained
    ctx = context(classes)
    run(data, base, ctx, c_values=(1.0, 1e-6), refits=1)
    assert ctx.notes["c"] == 1.0  # at 1e-6 every weight is 0
    assert ctx.notes["tuned_wga"]["1"] > ctx.notes["tuned_wga"]["1e-06"] == 0
    g = data["val_groups"].g
    first, second = halves(g, torch.Generator().manual_seed(0))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(g)))
    assert torch.bincount(g[first]).tolist() == torch.bincount(g[second]).tolist()


def test_missing_val_group_is_left_out_and_named(trained):
    classes, data, base = trained
    ctx = context(classes)
    sizes = (20, 0) + (20, 12) * (classes - 1)
    run(data | {"val_groups": split("val_groups", sizes, 3)}, base, ctx)
    assert ctx.notes["empty_groups"] == ["0/conflicting"]
    assert ctx.notes["subset_size"] == 12 * (2 * classes - 1)


def test_undefined_on_val_groups_without_conflict_or_without_a_class(trained):
    classes, data, base = trained
    with pytest.raises(NotApplicable, match="split 'val_groups'"):
        run(data | {"val_groups": split("val_groups", (20, 0) * classes, 3)}, base, context(classes))
    missing = split("val_groups", (0, 0) + (20, 20) * (classes - 1), 3)
    with pytest.raises(NotApplicable, match="no image"):
        run(data | {"val_groups": missing}, base, context(classes))


def test_a_base_model_that_diverged_is_told_of(trained):
    classes, data, base = trained
    broken = copy.deepcopy(base)
    with torch.no_grad():
        next(broken.backbone.parameters())[0] = torch.nan
    with pytest.raises(VabenchError, match="not finite"):
        run(data, broken, context(classes), c=1.0)


def test_val_groups_are_charged(trained):
    classes, data, base = trained
    seen = task_for(Dfr.info, data)
    Dfr(DfrConfig(c=1.0, refits=1)).fit(seen, copy.deepcopy(base), context(classes))
    assert seen.ledger.as_dict()["val_groups/val_groups"] == len(data["val_groups"].y)
    assert "groups/train" not in seen.ledger.as_dict()


def test_models_without_a_usable_head_are_refused(trained):
    classes, data, _ = trained
    for model in (torch.nn.Sequential(torch.nn.Flatten()), Net(classes, bias=False)):
        with pytest.raises(ComponentError, match="linear head"):
            run(data, model, context(classes), c=1.0, refits=1)


def test_embedding_leaves_the_mode_and_matches_features(trained):
    _, data, base = trained
    images = data["val"].images[:10]
    want = base.features(to_float(images)).detach().double().numpy()
    np.testing.assert_allclose(embed(base, images, batch_size=3), want, atol=1e-6)


@pytest.mark.parametrize("change", [{"c": 0.0}, {"c_values": ()}, {"c_values": (1.0, -1.0)}, {"refits": 0}])
def test_wrong_settings_are_refused(change):
    with pytest.raises(ConfigError):
        DfrConfig(**change)
