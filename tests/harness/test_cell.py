"""Cells end to end on the embedded digits, small: outcomes, ledgers, tracks, guards."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines import dfr
from harness.cell import CellRun, run_cell
from harness.config import load_config, parse_row
from harness.context import RunContext, Seeds
from harness.masks import MaskSet, MaskSource, MaskSourceInfo
from harness.method import Method, MethodInfo
from harness.plan import inspect, plan, resolve_row, standing
from harness.record import Record, Status
from harness.registry import ComponentInfo, registry
from harness.stages import Stages
from harness.store import Store
from harness.supervision import Supervision
from harness.training import TrainRecipe
from leaderboard.costs import parts

SMALL = ["seeds=1", "recipes.base.epochs=5", "recipes.finetune.steps=15", "alignment.n=32"]


def run(root: Path, *overrides: str) -> dict[str, tuple[Record, dict[str, Any]]]:
    config = load_config("quickstart", [*SMALL, *overrides])
    stages = Stages(Store(root), torch.device("cpu"))
    return {cell.row_name: CellRun(cell, stages).run() for cell in plan(config)}


def test_both_tracks_from_one_record(tmp_path: Path) -> None:
    found = run(tmp_path, "methods=[erm,rrr@oracle,rwg,dfr]", "tracks=[preregistered,tuned]")
    for record, arrays in found.values():
        assert record.status is Status.DONE, record.trace
        assert record.tracks["preregistered"].candidate == 0
        assert f"test/conflicting/{len(record.candidates) - 1}" in arrays
    rrr = found["rrr@oracle"][0]
    assert [c.config for c in rrr.candidates][1:] == [{"lam": 0.01}, {"lam": 0.1}, {"lam": 1.0}]
    assert rrr.tracks["tuned"].rule == "masked_val"
    assert "verdicts/val" in rrr.tracks["tuned"].ledger
    assert "verdicts/val" not in rrr.tracks["preregistered"].ledger
    assert rrr.tracks["tuned"].cost_s > rrr.tracks["preregistered"].cost_s
    rwg = found["rwg"][0]
    assert rwg.tracks["preregistered"].supervision == ["labels", "train_groups"]
    assert "val_groups" in rwg.tracks["tuned"].supervision
    assert rwg.tracks["tuned"].ledger["val_groups/val_groups"] > 0
    assert len({len(record.candidates) for name, (record, _) in found.items() if name != "erm"}) == 1
    assert found["erm"][0].tracks["tuned"].rule == "nothing to tune"
    assert found["erm"][0].base["wga"] == found["erm"][0].tracks["preregistered"].metrics["wga"]


def test_the_choice_is_the_argmax_of_its_rule(tmp_path: Path) -> None:
    record = run(tmp_path, "methods=[rrr@ground_truth]", "tracks=[preregistered,tuned]")["rrr@ground_truth"][0]
    scores = [c.selection["masked_val"] for c in record.candidates[1:]]
    chosen = record.tracks["tuned"].candidate - 1
    assert scores[chosen] == max(s for s in scores if s is not None)


def test_a_candidate_equal_to_the_preregistered_one_is_fitted_and_evaluated_once_and_equals_a_second_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["methods=[rrr@ground_truth]", "tracks=[preregistered,tuned]", "alignment.lam=0.1"]
    fits = []
    fit = CellRun.fit_candidate
    monkeypatch.setattr(CellRun, "fit_candidate", lambda self, *a: fits.append(a[1]) or fit(self, *a))  # type: ignore[func-returns-value]
    looks = []
    look = CellRun._predictions
    monkeypatch.setattr(CellRun, "_predictions", lambda self, *a: looks.append(a[0]) or look(self, *a))  # type: ignore[func-returns-value]
    once, arrays = run(tmp_path / "once", *words)["rrr@ground_truth"]
    assert len(fits) == len(looks) == 3
    assert len(once.candidates) == 4
    monkeypatch.setattr(CellRun, "_again", lambda *a: None)
    again, twice = run(tmp_path / "twice", *words)["rrr@ground_truth"]
    assert len(fits) == len(looks) == 7
    assert [c.test for c in once.candidates] == [c.test for c in again.candidates]
    assert {k: t.metrics for k, t in once.tracks.items()} == {k: t.metrics for k, t in again.tracks.items()}
    assert arrays.keys() == twice.keys()
    for name in arrays:
        assert np.array_equal(arrays[name], twice[name]), name


def test_what_candidates_do_alike_is_done_once_and_counted_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["methods=[dfr(refits=2)]", "tracks=[preregistered,tuned]"]
    embed, calls = dfr.embed, []

    def slow(*args: Any) -> Any:
        calls.append(len(args[1]))
        time.sleep(0.4)
        return embed(*args)

    monkeypatch.setattr(dfr, "embed", slow)
    once, arrays = run(tmp_path / "once", *words)["dfr(refits=2)"]
    assert once.status is Status.DONE, once.trace
    assert len(calls) == 2  # train and val_groups
    tried = [candidate.seconds for candidate in once.candidates]
    assert len(tried) == 4
    assert 0.8 <= tried[0] < 1.6
    assert tried[1] >= 0.8  # the tuned track alone would have embedded, too
    assert max(tried[2:]) < 0.8
    base = once.standalone["base"]
    for track, fit in (("preregistered", tried[0]), ("tuned", sum(tried[1:]))):
        result = once.tracks[track]  # type: ignore[index]
        assert result.cost_s == pytest.approx(base + fit)
        assert parts(once, result, track) == pytest.approx({"base_s": base, "masks_s": 0, "fit_s": fit})
    monkeypatch.setattr(RunContext, "once", lambda self, name, make: make())
    assert all(np.array_equal(arrays[k], v) for k, v in run(tmp_path / "all", *words)["dfr(refits=2)"][1].items())
    assert len(calls) == 2 + 8


def test_a_part_that_all_do_is_not_nested_and_not_kept_outside_a_cell() -> None:
    recipe = TrainRecipe(steps=1)
    context = RunContext(torch.device("cpu"), Seeds.all(0), recipe, recipe)
    assert [context.once("a", lambda: 1), context.once("a", lambda: 2)] == [1, 2]  # no cell: nothing is kept
    context.memo = {}
    assert [context.once("b", lambda: 1), context.once("b", lambda: 2)] == [1, 1]
    with pytest.raises(RuntimeError, match="one after the other"):
        context.once("c", lambda: context.once("b", lambda: 3))
    assert context.once("d", lambda: 4) == 4


def test_stored_logits_give_the_stored_metrics(tmp_path: Path) -> None:
    record, arrays = run(tmp_path, "methods=[erm]")["erm"]
    metrics = record.tracks["preregistered"].metrics
    correct = arrays["test/conflicting/0"].argmax(1) == arrays["y"]
    assert metrics["headline"] == pytest.approx(correct.mean())
    both = np.concatenate([arrays[f"test/{r}/0"].argmax(1) == arrays["y"] for r in ("aligned", "conflicting")])
    groups = np.concatenate([arrays["g/aligned"], arrays["g/conflicting"]])
    by_group = [both[groups == k].mean() for k in np.unique(groups)]
    assert metrics["wga"] == pytest.approx(min(by_group))
    assert metrics["aga"] == pytest.approx(np.mean(by_group))


def test_rho_one_makes_group_methods_not_applicable(tmp_path: Path) -> None:
    found = run(tmp_path, "methods=[subg,rwg,group_dro,jtt]", "suites=[decoy_digits(rho=1.0)]")
    for name in ("subg", "rwg", "group_dro"):
        record, arrays = found[name]
        assert record.status is Status.NOT_APPLICABLE
        assert record.reason
        assert not record.tracks
        assert not arrays
    jtt = found["jtt"][0]
    assert jtt.status is Status.DONE
    groups = jtt.candidates[0].notes["error_set_groups"]
    assert sum(count for name, count in groups.items() if name.endswith("conflicting")) == 0


def test_phases_sum_to_wall_clock(tmp_path: Path) -> None:
    config = load_config("quickstart", ["methods=[lvlm_va@oracle]", "seeds=1"])
    (cell,) = plan(config)
    record, _ = CellRun(cell, Stages(Store(tmp_path), torch.device("cpu"))).run()
    assert abs(sum(record.spent.values()) - record.wall_s) <= 0.02 * record.wall_s
    assert record.spent["idle"] <= 0.02 * record.wall_s
    assert record.standalone["base"] == pytest.approx(record.spent["base"], rel=0.1)


def test_shared_stages_do_not_change_a_result(tmp_path: Path) -> None:
    rows = "methods=[rrr@oracle,lvlm_va@all_segments]"
    together = run(tmp_path / "shared", rows)["lvlm_va@all_segments"]
    warm = run(tmp_path / "shared", rows)["lvlm_va@all_segments"]
    alone = run(tmp_path / "alone", "methods=[lvlm_va@all_segments]")["lvlm_va@all_segments"]
    for other in (warm, alone):
        assert together[0].tracks["preregistered"].metrics == other[0].tracks["preregistered"].metrics
        for name, values in together[1].items():
            assert np.array_equal(values, other[1][name]), name


def test_oracle_verdicts_have_no_errors_and_noise_has_its_rates(tmp_path: Path) -> None:
    found = run(tmp_path, "methods=[lvlm_va@oracle,lvlm_va@noisy_oracle(fnr=0,fpr=0.5)]", "alignment.n=200")
    exact = found["lvlm_va@oracle"][0].audit["verdicts"]
    assert (exact["fpr"], exact["fnr"]) == (0, 0)
    noisy = found["lvlm_va@noisy_oracle(fnr=0,fpr=0.5)"][0].audit["verdicts"]
    assert noisy["fpr"] == pytest.approx(0.5, abs=0.06)
    assert noisy["fnr"] == 0


class _Curious(Method):
    """Reads what it did not declare; `what` says which."""

    info = MethodInfo("curious", "cheats", f"{__name__}:_Curious", "none", Supervision.LABELS)
    what = "groups"

    def fit(self, task: Any, base: Any, context: Any) -> Any:
        if self.what == "groups":
            _ = task.train.groups
        elif self.what == "masks":
            task.train.masks()
        elif self.what == "test":
            _ = task.test
        elif self.what == "edit":
            task.train.images.add_(1)
        elif self.what == "exit":
            raise SystemExit(3)
        elif self.what == "note":
            context.note(model=base)
        elif self.what == "shape":
            return torch.nn.Flatten()
        else:
            raise RuntimeError("a plain bug")
        return base


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("groups", "TRAIN_GROUPS"),
        ("masks", "MASKS"),
        ("test", "test split"),
        ("bug", "a plain bug"),
        ("edit", "in place"),
        ("exit", "SystemExit"),
        ("note", "cannot stand in a record"),
        ("shape", "logits are [N, 10]"),
    ],
)
def test_a_cheating_method_fails_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    monkeypatch.setitem(registry("methods")._extra, "curious", _Curious.info)
    monkeypatch.setattr(_Curious, "what", what)
    found = run(tmp_path, "methods=[curious,erm]")
    record = found["curious"][0]
    assert record.status is Status.FAILED
    assert said in record.reason
    assert "Traceback" in record.trace
    assert found["erm"][0].status is Status.DONE
    alone = run(tmp_path / "alone", "methods=[erm]")["erm"][0]
    assert found["erm"][0].tracks["preregistered"].metrics == alone.tracks["preregistered"].metrics


class _Careless(MaskSource):
    """Gives what no split can have, or edits the images; `what` says which."""

    info = MaskSourceInfo("careless", "errs", f"{__name__}:_Careless", Supervision.LABELS, "control", verdicts=False)
    what = "index"

    @property
    def params(self) -> dict[str, Any]:
        return {}

    def masks(self, alignment: Any, task: Any, context: Any) -> MaskSet:
        index, masks = alignment.index.clone(), torch.zeros(len(alignment), 28, 28, dtype=torch.bool)
        if self.what == "index":
            index[0] = 10**6
        elif self.what == "twice":
            index[0] = index[1]
        elif self.what == "small":
            masks = masks[:, :14, :14]
        elif self.what == "float":
            masks = masks.float()
        elif self.what == "edit":
            alignment.split.images.zero_()
        elif self.what == "none":
            index, masks = index[:0], masks[:0]
        return MaskSet(index, masks)


@pytest.mark.parametrize(
    ("what", "said"),
    [("index", "outside"), ("twice", "once"), ("small", "bool [N"), ("float", "bool [N"), ("edit", "in place")],
)
def test_a_careless_mask_source_fails_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    monkeypatch.setitem(registry("mask_sources")._extra, "careless", _Careless.info)
    monkeypatch.setattr(_Careless, "what", what)
    record = run(tmp_path, "methods=[rrr@careless]")["rrr@careless"][0]
    assert record.status is Status.FAILED
    assert said in record.reason


def test_a_source_without_images_returns_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry("mask_sources")._extra, "careless", _Careless.info)
    monkeypatch.setattr(_Careless, "what", "none")
    for record, _ in run(tmp_path, "methods=[rrr@careless,caipi@careless]").values():
        assert record.status is Status.DONE, record.trace
        assert record.tracks["preregistered"].metrics["wga"] == record.base["wga"]


def test_failed_cells_are_tried_again_and_done_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry("methods")._extra, "curious", _Curious.info)
    store = Store(tmp_path)
    for cell in plan(load_config("quickstart", [*SMALL, "methods=[curious,erm]"])):
        store.write(*CellRun(cell, Stages(store, torch.device("cpu"))).run())
        expected = "missing" if cell.row_name == "curious" else "done"
        assert inspect(cell, store).state == expected


@pytest.mark.parametrize(
    ("row", "imported"),
    [("erm", 0), ("rrr@oracle", 0), ("curious", 1), ("rrr@careless", 1), ("rrr@translated(of=careless)", 1)],
)
def test_the_compiler_is_imported_outside_the_clock_for_components_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, imported: int
) -> None:
    monkeypatch.setitem(registry("methods")._extra, "curious", _Curious.info)
    monkeypatch.setitem(registry("mask_sources")._extra, "careless", _Careless.info)
    said = list[str]()
    monkeypatch.setattr("harness.cell.import_compiler", lambda: said.append("imported"))
    original = CellRun.run

    def noted(self: CellRun) -> Any:
        said.append("started")
        return original(self)

    monkeypatch.setattr(CellRun, "run", noted)
    (cell,) = plan(load_config("quickstart", [*SMALL, f"methods=[{row}]"]))
    run_cell(cell, Stages(Store(tmp_path), torch.device("cpu")))
    assert said == ["imported"] * imported + ["started"]


def test_a_presets_yaml_can_come_from_another_package() -> None:
    assert isinstance(registry("presets").info("quickstart"), ComponentInfo)


@pytest.mark.parametrize(("total", "n"), [(347, 200), (10_000, 500), (5, 9), (0, 3), (7, 7)])
def test_attribution_images_are_spread_over_the_whole_split(total: int, n: int) -> None:
    from harness.evaluate import spread_evenly

    chosen = spread_evenly(total, n)
    assert len(chosen) == len(set(chosen.tolist())) == min(total, n)
    if total:
        gaps = np.diff([-1, *chosen.tolist(), total])
        assert gaps.max() - gaps[1:-1].min(initial=gaps.max()) <= 1 + max(1, total // max(1, n))
        assert chosen[-1] >= total - 1 - total // min(n, total)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("lvlm_va@embedded", ("method", False)),
        ("lvlm_va@oracle", ("oracle", True)),
        ("lvlm_va@distilled", ("oracle", True)),
        ("lvlm_va@distilled(of=embedded)", ("method", False)),
        ("lvlm_va@distilled(of=noisy_oracle(fpr=0.3))", ("oracle", True)),
        ("lvlm_va@distilled(of=permuted(of=noisy_oracle(fpr=0.3)))", ("control", False)),
        ("caipi@distilled(of=embedded)", ("baseline", False)),
        ("erm_continue", ("control", False)),
    ],
)
def test_a_row_stands_with_the_critic_that_it_rests_on(row: str, expected: tuple[str, bool]) -> None:
    assert standing(resolve_row(parse_row(row))) == expected
