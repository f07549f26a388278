from __future__ import annotations

import io
import json
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
from leaderboard.command import publish, report

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
    )


def test_the_last_run_is_reported_with_what_it_lacks(config: RunConfig) -> None:
    done = run(f"results={config.results}")
    assert done.exit_code == 0, done.output
    assert "1 of 6 planned cells have no record" in done.output
    assert "rrr@ground_truth: missing: never run (seeds 1)" in done.output
    files = sorted(path.name for path in Path(config.results, "report").iterdir())
    assert files == [f"decoy_digits-rho0.97-preregistered.{end}" for end in ("csv", "md", "tex")]
    frame = pd.read_csv(Path(config.results, "report", files[0]))
    assert frame.set_index("row").loc["rrr@ground_truth", ["n", "planned"]].tolist() == [1, 2]


def test_a_preset_reports_its_own_cells_only(config: RunConfig) -> None:
    done = run("quickstart", "methods=[erm]", "seeds=2", f"results={config.results}")
    assert done.exit_code == 0, done.output
    assert "erm" in done.output
    assert "jtt" not in done.output


def test_publish_prints_and_returns_the_files(config: RunConfig) -> None:
    console = Console(file=io.StringIO(), width=110)
    paths = publish(config, console)
    assert [path.suffix for path in paths] == [".md", ".tex", ".csv"]
    assert all(path.is_file() for path in paths)
    assert "pre-registered track" in console.file.getvalue()


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
        (("results={}",), DataError, "name a preset, or report every record"),
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
