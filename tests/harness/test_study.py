"""Studies: expansion, shared configs, resumption, one sentence per fault, and the tables that they write."""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from builds import vabench

from harness.api import records
from harness.config import Segmentation, load_config, validate
from harness.content_segment import content_segments
from harness.errors import ConfigError
from harness.plan import plan
from harness.record import frame
from harness.registry import registry
from harness.study import Study, expand, read_study
from harness.study_table import fit_exponents, lines, power_law, summarise

TOY: dict[str, Any] = {
    "name": "toy",
    "summary": "a toy",
    "preset": "quickstart",
    "set": {
        "suites": ["decoy_digits(rho=1.0,n_train=300)"],
        "seeds": 2,
        "tracks": ["preregistered"],
        "recipes.base.epochs": 3,
        "recipes.finetune.steps": 10,
        "alignment.n": "{n}",
        "alignment.segments.restarts": 2,
        "metrics": {"attribution_images": 40, "explainers": ["deeplift_shap"]},
    },
    "axes": {"n": [20, 40], "lam": [0.1, 1.0]},
    "rows": [{"row": "lvlm_va(lam={lam})@oracle", "label": "λ = {lam}"}],
    "reference_rows": ["erm", "erm_continue"],
    "measure": ["headline", "mu_lift", "verdicts.fpr", "standalone.align"],
    "figure": {"kind": "leaderboard.figures:surface", "x": "n", "y": "lam", "z": "headline", "beats": ["erm"]},
}


def toy(**changes: Any) -> Study:
    return Study.model_validate({**TOY, **changes})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The toy study, run once from a file of one's own."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "mine.yaml").write_text(yaml.safe_dump(TOY, allow_unicode=True), encoding="utf-8")
    done = vabench("study", "mine.yaml", "workers=1", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_points_with_equal_configs_share_one() -> None:
    grid = expand(toy())
    assert [group.config.alignment.n for group in grid.groups] == [20, 40]
    rows = [[str(row) for row in group.config.methods] for group in grid.groups]
    assert rows[0] == rows[1] == ["lvlm_va(lam=0.1)@oracle", "lvlm_va(lam=1)@oracle", "erm", "erm_continue"]
    assert [group.config.recipes.finetune.steps for group in grid.groups] == [10, 10]
    assert len({cell.id for config in grid.configs for cell in plan(config)}) == 2 * (2 * 2 + 1 + 2)  # erm once


def test_a_study_has_the_cells_of_an_ordinary_run() -> None:
    words = ["suites=[decoy_digits(rho=1.0)]", "seeds=2", "methods=[rrr(lam=0.1)@oracle,erm]"]
    ordinary = {cell.id for cell in plan(load_config("quickstart", words))}
    study = toy(
        set={"suites": ["decoy_digits(rho=1.0)"], "seeds": 2},
        axes={"lam": [0.1]},
        rows=["rrr(lam={lam})@oracle"],
        reference_rows=["erm"],
    )
    assert {cell.id for config in expand(study).configs for cell in plan(config)} == ordinary


def test_listed_points_are_one_axis_at_a_time_and_may_be_labels() -> None:
    blocks = [
        {"vary": "N", "size": "{n}", "n": [5, 10], "lam": 1.0},
        {"vary": "lambda", "size": "{lam}", "n": 5, "lam": [0.1, 1.0]},
    ]
    grid = expand(toy(axes=blocks))
    points = [point for group in grid.groups for point in group.points]
    assert sorted((p["vary"], p["size"], p["n"], p["lam"]) for p in points) == [
        ("N", 5, 5, 1.0), ("N", 10, 10, 1.0), ("lambda", 0.1, 5, 0.1), ("lambda", 1.0, 5, 1.0)
    ]  # fmt: skip
    assert len(grid.groups) == 2


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"rows": ["lvlm_va(lam={lambda})@oracle"]}, [], r"uses the axis 'lambda', which does not exist; .*lam"),
        ({"axes": {"n": [5], "lam": [1], "extra": [1, 2]}}, [], "axis 'extra' is used nowhere"),
        ({"axes": {"n": [5], "lam": []}}, [], "axis 'lam' has no values"),
        ({"axes": {"n": [5], "lam": [1], "seed": [1]}}, [], "no axis can be called 'seed'"),
        ({"axes": [{"n": 5, "lam": 1}, {"n": 6}]}, [], "must name the same axes"),
        ({"reference_rows": ["rrr(lam={lam})"]}, [], "reference_rows hold {lam}"),
        ({"preset": ""}, [], "neither a preset nor a config"),
        ({}, ["alignment.n=3"], r"sets alignment.n by its axis 'n'; write axes.n"),
        ({}, ["alignment={}"], "by its axis 'n'"),
        ({}, ["axes.lamb=[1]"], "has no axis 'lamb'; did you mean 'lam'"),
        ({}, ["methods=[erm]"], "a study has its own rows"),
        ({}, ["sedes=1"], "did you mean 'seeds'"),
    ],
)
def test_one_sentence_per_fault(changes: dict[str, Any], overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        expand(toy(**changes), overrides)
    assert "\n" not in str(caught.value)


def test_faults_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**TOY, "mesure": ["wga"]}), encoding="utf-8")
    with pytest.raises(ConfigError, match="no field 'mesure'; did you mean 'measure'"):
        read_study(str(tmp_path / "a.yaml"))
    with pytest.raises(ConfigError, match="no study file"):
        read_study("absent.yaml")


def test_axis_overrides_replace_values_and_leave_the_study_as_it_was() -> None:
    study = toy()
    grid = expand(study, ["axes.lam=[0.5]", "axes.n=7", "seeds=1"])
    assert [point for group in grid.groups for point in group.points] == [{"n": 7, "lam": 0.5}]
    assert study.axes == TOY["axes"]
    assert expand(study).configs[0].seeds == (0, 1)


def test_every_built_in_study_expands() -> None:
    names = registry("studies").names()
    assert {"ross-curve", "fpr-fnr", "baselines", "sampling", "cost", "segmentation"} <= set(names)
    for name in names:
        grid = expand(read_study(name))
        assert grid.study.name == name
        assert all(len(config.methods) for config in grid.configs)


def test_the_command_runs_writes_and_then_has_nothing_to_do(ran: tuple[Path, str]) -> None:
    folder, output = ran
    found = folder / "results" / "studies"
    assert {path.name for path in found.iterdir()} == {"toy.csv", "toy-summary.csv", "toy.svg", "toy.png"}
    assert "14 cells in" in output
    before = {path: path.stat().st_mtime_ns for path in folder.glob("results/cells/**/record.json")}
    again = vabench("study", "mine.yaml", "workers=1", cwd=folder)
    assert "nothing to do; 14 done before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.glob("results/cells/**/record.json")} == before


def test_lines_hold_axes_measures_and_seconds(ran: tuple[Path, str]) -> None:
    table = pd.read_csv(ran[0] / "results" / "studies" / "toy.csv")
    own = table[table["role"] == "row"]
    assert len(own) == 2 * 2 * 2
    assert set(zip(own["n"], own["lam"], own["label"], strict=True)) == {
        (n, lam, f"λ = {lam}") for n in (20, 40) for lam in (0.1, 1.0)
    }
    assert (own["verdicts.fpr"] == 0).all()  # the oracle is exact
    assert (own["verdicts.fnr"] == 0).all()
    assert (own["standalone.segment"] > 0).all()
    erm = table[table["row"] == "erm"]
    assert len(erm) == 2  # one cell a seed, whatever the point
    assert erm[["n", "lam"]].isna().all(axis=None)
    kept = table[table["row"] == "erm_continue"]
    assert sorted(kept["n"]) == [20, 20, 40, 40]
    assert kept["lam"].isna().all()


def test_lines_are_the_records_and_means_are_their_means(ran: tuple[Path, str]) -> None:
    grid = expand(toy(), [f"results={ran[0] / 'results'}"])
    table = lines(grid)
    direct = frame(record for config in grid.configs for _, record in records(config)).set_index("id")
    for _, line in table.iterrows():
        held = direct.loc[[line["id"]]].iloc[0]
        assert (line["headline"], line["cost_s"]) == (held["headline"], held["cost_s"])
    means = summarise(table, grid.axes, ["headline"])
    one = means[(means["n"] == 20) & (means["lam"] == 0.1)].iloc[0]
    values = table[(table["n"] == 20) & (table["lam"] == 0.1)]["headline"]
    assert one["headline"] == pytest.approx(values.mean())
    assert one["seeds"] == 2
    assert one["headline_low"] <= one["headline"] <= one["headline_high"]


def test_missing_data_is_skipped_and_said(tmp_path: Path) -> None:
    study = {**TOY, "set": {**TOY["set"], "suites": ["decoy_mnist(rho=1.0)"], "seeds": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8")
    broken = tmp_path / "data"
    (broken / "MNIST" / "raw").mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (broken / "MNIST" / "raw" / f"{part}-ubyte").write_bytes(b"no images")
    done = vabench("study", "mine.yaml", "workers=1", cwd=tmp_path, env={**os.environ, "VABENCH_DATA": str(broken)})
    assert done.returncode == 2
    assert re.search(r"no cell of the study toy has numbers.* \d+ cells skipped: .*MNIST", done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "results" / "studies").glob("*"))


def test_a_changed_study_writes_beside_the_whole_one(ran: tuple[Path, str]) -> None:
    folder = ran[0]
    found = folder / "results" / "studies"
    before = {path: path.read_bytes() for path in found.glob("toy*") if path.suffix == ".csv"}
    done = vabench("study", "mine.yaml", "axes.lam=[0.1]", "workers=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    grid = expand(toy(), ["axes.lam=[0.1]"])
    part = pd.read_csv(found / f"{grid.file_name}.csv")
    assert re.fullmatch(r"toy-[0-9a-f]{8}", grid.file_name)
    assert set(part.loc[part["role"] == "row", "lam"]) == {0.1}
    for path in found.glob(f"{grid.file_name}*"):
        path.unlink()


def test_a_part_of_a_study_says_which_contrasts_it_leaves_out(ran: tuple[Path, str]) -> None:
    folder = ran[0]
    contrast = {"measure": "headline", "axis": "lam", "from": 0.1, "to": 1.0}
    (folder / "part.yaml").write_text(yaml.safe_dump({**TOY, "contrasts": [contrast]}), encoding="utf-8")
    whole = vabench("study", "part.yaml", "workers=1", "--draw-only", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    assert "headline: lam = 1.0 minus lam = 0.1" in whole.stdout
    part = vabench("study", "part.yaml", "axes.lam=[0.1]", "workers=1", "--draw-only", cwd=folder)
    assert part.returncode == 0, part.stderr
    assert "left out: contrast 'headline: lam = 1.0 minus lam = 0.1': no results where lam is" in part.stdout
    for path in (folder / "results" / "studies").glob("toy-*"):
        path.unlink()


def test_where_and_how_a_study_runs_do_not_change_its_name() -> None:
    assert expand(toy(), ["results=elsewhere", "workers=1", "device=cpu"]).file_name == "toy"
    assert expand(toy(), ["axes.lam=[0.1,1.0]"]).file_name == "toy"  # the values that it has anyway
    assert expand(toy(), ["seeds=1"]).file_name != expand(toy(), ["seeds=3"]).file_name


def test_an_unknown_measure_and_an_unknown_figure_say_so(ran: tuple[Path, str]) -> None:
    folder = ran[0]
    for name, change, said in (
        ("measure", {"measure": ["headlin"]}, "did you mean headline"),
        ("figure", {"figure": {"kind": "leaderboard.figures:curves"}}, "write kind: package.module:function"),
        ("option", {"figure": {**TOY["figure"], "z": "nothing"}}, "refuses its options"),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**TOY, **change}, allow_unicode=True), encoding="utf-8")
        done = vabench("study", f"{name}.yaml", "--draw-only", cwd=folder)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_power_laws_are_recovered_with_an_interval_that_covers() -> None:
    x = np.array([1.0, 2, 4, 8, 16])
    exact = power_law(x, 3 * x**1.5)
    assert exact["exponent"] == pytest.approx(1.5)
    assert exact["scale"] == pytest.approx(3)
    assert exact["high"] - exact["low"] < 1e-6
    rng = np.random.default_rng(0)
    laws = [power_law(x, x * np.exp(0.2 * rng.standard_normal(5))) for _ in range(400)]
    assert 0.92 <= np.mean([law["low"] <= 1 <= law["high"] for law in laws]) <= 0.98
    assert math.isnan(power_law(x[:1], x[:1])["exponent"])


def test_a_slow_first_seed_does_not_bend_the_fit() -> None:
    study = toy(fit={"x": "size", "y": ["standalone.base"], "by": ["vary"]})
    table = pd.DataFrame({"vary": "n", "size": [1, 2, 4] * 3, "standalone.base": [90.0, 2, 4, 1, 2, 4, 1, 2, 4]})
    assert study.fit is not None
    assert fit_exponents(table, study.fit).loc[0, "exponent"] == pytest.approx(1)


def test_content_segments_follow_content_and_keep_positive_attribution() -> None:
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    images[:, :, :, 14:] = 255
    maps = torch.zeros(2, 28, 28)
    maps[0, 4:10, 2:12] = 1.0
    maps[0, 4:10, 16:22] = 2.0
    maps[0, 20:, :] = -1.0
    found = content_segments(images, maps, count=6)
    assert found.labels.shape == (2, 28, 28)
    assert (found.labels[1] == -1).all()  # nothing positive, nothing segmented
    assert ((found.labels[0] >= 0) == (maps[0] > 0)).all()
    left, right = found.labels[0, 4:10, 2:12].unique(), found.labels[0, 4:10, 16:22].unique()
    assert not set(left.tolist()) & set(right.tolist())
    assert found.share[0].sum() == pytest.approx(1, abs=1e-6)
    assert (found.share[0].diff() <= 1e-7).all()
    assert (content_segments(images, maps, count=6, support="all").labels[0] >= 0).all()
    for count in (1, 2, 5, 24):
        noise = torch.randint(0, 256, (4, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        some = content_segments(noise, torch.ones(4, 28, 28), count)
        assert some.count == count
        assert int(some.labels.max()) < count


def test_segmentation_kind_is_checked() -> None:
    assert Segmentation().kind == "ppeps_wgm"
    values = load_config("quickstart").model_dump(mode="json")
    values["alignment"]["segments"] |= {"kind": "slic", "support": "mahalanobis"}
    values["methods"] = ["erm"]
    with pytest.raises(ConfigError, match="needs the mixture"):
        validate(values, "here")
