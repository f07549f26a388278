from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from fabricated import Fabric
from rich.console import Console
from typer.testing import CliRunner, Result

from harness.api import LAST_RUN, remember
from harness.config import RunConfig, load_config
from harness.errors import ConfigError, DataError
from harness.plan import plan
from harness.record import Record, Status, TrackResult
from harness.store import Store
from leaderboard.command import publish, report, report_folder

METHODS = "methods=[erm,jtt,rrr@ground_truth]"


def run(*words: str) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A planned run of which one cell never ran and the others are stored."""
    config = load_config("quickstart", [METHODS, "seeds=2", f"results={tmp_path}/results"])
    store = Store(config.results)
    for cell in plan(config)[:-1]:
        store.write(record_of(cell), {"x": np.zeros(1)})
    Path(config.results, LAST_RUN).write_text(json.dumps(remember(config)))
    return config


def record_of(cell: Any) -> Record:
    score = {"headline": 0.5, "wga": 0.4 + 0.01 * cell.seed, "wga_deciding": 0.4, "aga": 0.6, "accuracy": 0.7}
    result = TrackResult(
        candidate=0, rule="pre-registered", supervision=["labels"], ledger={}, cost_s=1.0, metrics=score
    )
    return Record(
        id=cell.id,
        status=Status.DONE,
        suite=cell.suite_name,
        suite_source=cell.suite_source,
        row=cell.row_name,
        method=str(cell.row.method),
        mask_source=str(cell.row.masks) if cell.row.masks else None,
        block="baseline",
        model=str(cell.model),
        seed=cell.seed,
        config=cell.config,
        identity=cell.identity,
        tracks={"preregistered": result},
        base={"wga": 0.3},
        provenance={"git": {"commit": "c0ffee", "dirty": True}},
    )


def test_the_last_run_is_reported_with_what_it_lacks(config: RunConfig) -> None:
    done = run(f"results={config.results}")
    assert done.exit_code == 0, done.output
    assert "1 of 6 planned cells have no record" in done.output
    assert "missing: never run: decoy_digits-rho0.97 · rrr@ground_truth (seed 1)" in done.output
    folder = report_folder(config.results, config)
    files = sorted(path.name for path in folder.iterdir())
    assert files == [
        f"decoy_digits-rho0.97-preregistered{end}" for end in ("-cells.csv", "-costs.csv", ".csv", ".md", ".tex")
    ]
    frame = pd.read_csv(folder / files[2])
    assert frame.set_index("row").loc["rrr@ground_truth", ["n", "planned"]].tolist() == [1, 2]


def test_a_preset_reports_its_own_cells_only(config: RunConfig) -> None:
    done = run("quickstart", "methods=[erm]", "seeds=2", f"results={config.results}")
    assert done.exit_code == 0, done.output
    assert "erm" in done.output
    assert "jtt" not in done.output


def test_publish_prints_and_returns_the_files(config: RunConfig) -> None:
    console = Console(file=io.StringIO(), width=110)
    paths = publish(config, console)
    assert [path.suffix for path in paths] == [".md", ".tex", ".csv", ".csv", ".csv"]
    assert {path.parent for path in paths} == {report_folder(config.results, config)}
    assert all(path.is_file() for path in paths)
    assert "pre-registered track" in console.file.getvalue()


def test_no_selection_overwrites_the_files_of_another(tmp_path: Path) -> None:
    """The preset's own name only for the preset as it stands; where and how it runs makes no difference."""

    def folder(*overrides: str, preset: str = "quickstart", metric: str = "wga") -> str:
        return report_folder("r", load_config(preset, overrides), metric).as_posix()

    assert folder() == folder("workers=1", "results=elsewhere", "seeds=3") == "r/report/quickstart"
    (tmp_path / "quickstart.yaml").write_text(
        "suites: [decoy_digits]\nmethods: [erm]\nmodel: mlp\nseeds: 1\nrecipes: {base: {}, finetune: {}}"
    )
    others = [folder("seeds=2"), folder("recipes.base.lr=0.01"), folder("methods=[erm]"), folder(metric="headline")]
    others += [folder(preset="decoys"), folder(preset=f"{tmp_path}/quickstart.yaml")]
    assert len({*others, folder()}) == 7
    assert all(re.fullmatch(r"r/report/quickstart(-[0-9a-f]{8})?(-by-headline)?", other) for other in others[:4])
    assert report_folder("r", None).as_posix() == "r/report/all-records"


def test_stale_rows_stay_in_the_table_with_the_reason(config: RunConfig) -> None:
    changed = ["recipes.finetune.steps=11", METHODS, "seeds=2", f"results={config.results}"]
    now = load_config("quickstart", changed)
    store = Store(config.results)
    store.write(record_of(plan(now)[0]), {"x": np.zeros(1)})  # erm at seed 0 alone fits the new settings
    done = run("quickstart", *changed)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "stale: config: recipes.finetune.steps 200 -> 11" in said
    frame = pd.read_csv(next(report_folder(config.results, now).glob("*-preregistered.csv"))).set_index("row")
    assert frame["status"].to_dict() == {
        "erm": "1 done, 1 stale",
        "jtt": "stale",
        "rrr@ground_truth": "1 stale, 1 not run",
    }
    assert frame.loc["jtt", ["block", "n"]].tolist() == ["baseline", 0]
    assert pd.isna(frame.loc["jtt", "wga"])
    assert frame.loc["jtt", "reason"] == "stale: config: recipes.finetune.steps 200 -> 11"
    cells = pd.read_csv(next(report_folder(config.results, now).glob("*-cells.csv"))).set_index(["row", "seed"])
    assert cells.loc[("jtt", 0), "status"] == "stale"
    assert pd.isna(cells.loc[("jtt", 0), "record_id"])


def test_a_selection_whose_cells_are_all_stale_says_why(config: RunConfig) -> None:
    done = run("quickstart", METHODS, "seeds=1", "recipes.finetune.steps=11", f"results={config.results}")
    assert "stale: config: recipes.finetune.steps 200 -> 11" in str(done.exception)


def test_every_number_leads_to_its_records(config: RunConfig) -> None:
    assert run(f"results={config.results}").exit_code == 0
    folder = report_folder(config.results, config)
    table = pd.read_csv(next(folder.glob("*-preregistered.csv"))).set_index("row")
    cells = pd.read_csv(next(folder.glob("*-cells.csv")))
    for row, line in table.iterrows():
        ids, seeds = line["record_ids"].split(";"), str(line["record_seeds"]).split(";")
        own = cells[(cells["row"] == row) & (cells["status"] == "done")].set_index("record_id")
        assert len(ids) == len(seeds) == line["n"] == len(own)
        assert own.loc[ids, "wga"].mean() == pytest.approx(line["wga"])
        for key, seed in zip(ids, seeds, strict=True):
            record = Store(config.results).read(Path(config.results, own.loc[key, "folder"]))
            assert (record.id, record.seed) == (key, int(seed))
            assert record.tracks["preregistered"].metrics["wga"] == own.loc[key, "wga"]
            assert (own.loc[key, "commit"], bool(own.loc[key, "dirty"])) == ("c0ffee", True)
        assert set(line["commits"].split(";")) == {"c0ffee+dirty"}


def test_an_unknown_metric_gets_the_known_ones(tmp_path: Path) -> None:
    Fabric(tmp_path).row("jtt", 0.5)
    done = run(f"results={tmp_path}", "--all", "--metric", "wag")
    assert isinstance(done.exception, ConfigError)
    assert "did you mean 'wga'? known: headline, wga," in str(done.exception)
    assert "rcs" not in str(done.exception)  # no record has it


def test_all_takes_every_record_and_names_damaged_ones(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "r", seeds=(0, 1))
    fabric.row("erm", 0.5)
    torn = fabric.cell("jtt", 0, 0.5).folder / "record.json"
    torn.write_text(torn.read_text()[:100])
    with (fabric.cell("dfr", 1, 0.5).folder / "predictions.npz").open("ab") as file:
        file.write(b"x")
    done = run(f"results={tmp_path}/r", "--all", "--format", "md", "--output", f"{tmp_path}/out")
    assert done.exit_code == 0, done.output
    assert "2 damaged records are left out" in done.output
    assert [p.name for p in Path(tmp_path, "out").iterdir()] == ["toy_suite-preregistered.md"]
    text = Path(tmp_path, "out", "toy_suite-preregistered.md").read_text()
    assert "erm" in text
    assert "dfr" not in text


def test_test_selected_is_shown_on_request_only(tmp_path: Path) -> None:
    Fabric(tmp_path, tracks=("preregistered", "tuned")).row("jtt", 0.5)
    assert "chosen on test" not in run(f"results={tmp_path}", "--all").output
    assert "chosen on test" in run(f"results={tmp_path}", "--all", "--test-selected").output


def test_one_track_on_request(tmp_path: Path) -> None:
    Fabric(tmp_path, tracks=("preregistered", "tuned")).row("jtt", 0.5)
    output = run(f"results={tmp_path}", "--all", "--track", "tuned").output
    assert "tuned track" in output
    assert "pre-registered track" not in output


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("results={}/none",), DataError, "there is no results folder"),
        (("results={}/none", "--all"), DataError, "there is no results folder"),
        (("results={}",), DataError, "name a preset, or take every record"),
        (("results={}", "--all"), DataError, "there are no records in"),
        (("quickstart", "seeds=1", METHODS, "results={}"), DataError, "none of the 3 cells of 'quickstart'"),
        (("results={}", "--track", "both"), ConfigError, "there is no track 'both'"),
        (("results={}", "--format", "pdf"), ConfigError, "there is no format 'pdf'"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, words: tuple[str, ...], error: type, message: str) -> None:
    done = run(*(word.format(tmp_path) for word in words))
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_damaged_last_run_is_said(tmp_path: Path) -> None:
    (tmp_path / LAST_RUN).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        raise run(f"results={tmp_path}").exception or AssertionError


def test_only_damaged_records_is_an_error(tmp_path: Path) -> None:
    path = Fabric(tmp_path).cell("erm", 0, 0.5).folder / "record.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"no record in .* can be read"):
        raise run(f"results={tmp_path}", "--all").exception or AssertionError
