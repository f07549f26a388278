"""A published study: its definition goes with its records, and its files follow from the two, however old these are."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from fabricated import Fabric
from page_toys import Opened, browser  # noqa: F401
from rich.console import Console
from typer.testing import CliRunner

from harness.cli import _collect, app
from harness.config import load_config
from harness.errors import ConfigError, DataError
from harness.record import Record
from harness.study import Study, expand, run_study, self_contained
from leaderboard.collect import everything
from leaderboard.page import to_html
from leaderboard.publish_command import board_files
from leaderboard.published import STUDY, read_published, write_published
from leaderboard.study_board import read_study_board, study_files

BOARDS = sorted(path.parent for path in Path("leaderboard/results").glob(f"*/{STUDY}"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
TOY: dict[str, Any] = {
    "name": "toy",
    "preset": "quickstart",
    "set": {
        "suites": ["decoy_digits(rho=1.0,n_train=300)"],
        "seeds": 2,
        "tracks": ["preregistered"],
        "recipes.base.epochs": 2,
        "recipes.finetune.steps": "{steps}",
        "metrics": {"attribution_images": 20, "explainers": ["deeplift_shap"]},
    },
    "axes": {"steps": [2, 4]},
    "rows": ["erm_continue"],
    "reference_rows": ["erm"],
    "measure": ["headline", "standalone.align"],
    "contrasts": [{"measure": "headline", "axis": "steps", "from": 2, "to": 4}],
    "figure": {"kind": "leaderboard.figures:loglog", "x": "steps", "y": ["headline"], "column": "row"},
}

NAME = expand(Study.model_validate(TOY), ["seeds=1"]).file_name  # a part of it is published below


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.yaml`, the toy study, run for one of its two seeds."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "mine.yaml").write_text(yaml.safe_dump(TOY), encoding="utf-8")
    run_study(expand(Study.model_validate(TOY), words(folder)), Console(file=io.StringIO()))
    return folder


def words(folder: Path) -> list[str]:
    return [f"results={folder / 'results'}", "seeds=1", "workers=1"]


def publish(folder: Path, board: Path, *more: str) -> Any:
    _collect()
    given = more or (*words(folder), "--study", str(folder / "mine.yaml"))
    return CliRunner().invoke(app, ["publish", *given, "--to", str(board)])


def assert_same(held: bytes, content: bytes, name: str) -> None:
    """Equal but for the last digits of numbers, which differ between processors."""
    if name.endswith(".csv"):
        frames = [pd.read_csv(io.BytesIO(data)) for data in (held, content)]
        pd.testing.assert_frame_equal(*frames, rtol=1e-9, atol=1e-12)
        return
    texts = [data.decode() for data in (held, content)]
    assert NUMBER.sub("#", texts[0]) == NUMBER.sub("#", texts[1]), name
    np.testing.assert_allclose(*([float(n) for n in NUMBER.findall(text)] for text in texts), rtol=1e-3, atol=1e-2)


def test_a_study_is_published_whole_and_its_files_follow_from_its_records(ran: Path, tmp_path: Path) -> None:
    done = publish(ran, tmp_path)
    assert done.exit_code == 0, done.output
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    drawn = {f"study/{NAME}{end}" for end in ("-summary.csv", "-contrasts.csv", ".svg")}
    assert names == drawn | {STUDY, "records.jsonl"}
    held = {name: (tmp_path / name).read_bytes() for name in drawn}
    for name in drawn:
        (tmp_path / name).write_bytes(b"spoiled")
    assert publish(ran, tmp_path, "--rebuild").exit_code == 0
    for name, content in held.items():
        assert_same(content, (tmp_path / name).read_bytes(), name)
    means = pd.read_csv(tmp_path / f"study/{NAME}-summary.csv")
    assert list(means["seeds"]) == [1, 1, 1, 1]  # `erm` too has a cell for either number of steps
    records = {record.row: record for record in read_published(tmp_path)[0]}
    erm = means[means["row"] == "erm"].iloc[0]
    assert erm["headline"] == records["erm"].tracks["preregistered"].metrics["headline"]


def test_the_definition_depends_on_nothing_else_and_is_the_same_study(ran: Path, tmp_path: Path) -> None:
    publish(ran, tmp_path)
    written = Study.model_validate(yaml.safe_load((tmp_path / STUDY).read_text()))
    assert not written.preset
    here = [f"results={ran / 'results'}"]
    asked = [
        config.model_dump(exclude={"name"}) for config in expand(Study.model_validate(TOY), [*here, "seeds=1"]).configs
    ]
    assert [config.model_dump(exclude={"name"}) for config in expand(written, here).configs] == asked
    with pytest.raises(ConfigError, match="did you mean 'seeds'"):
        self_contained(Study.model_validate(TOY), ["sedes=1"])


def test_records_older_than_a_setting_are_found(ran: Path, tmp_path: Path) -> None:
    publish(ran, tmp_path)
    held = read_published(tmp_path)[0]
    before = study_files(tmp_path)
    for record in held:
        for recipe in record.config["recipes"].values():
            del recipe["flips"]
    write_published(held, tmp_path)
    assert study_files(tmp_path) == before
    for record in held:
        record.config["recipes"]["base"]["lr"] = 0.5  # another study's
    write_published(held, tmp_path)
    with pytest.raises(DataError, match=r"holds no record of .* publish it again"):
        study_files(tmp_path)


def test_cells_that_never_ran_are_named(ran: Path, tmp_path: Path) -> None:
    done = publish(ran, tmp_path, f"results={ran / 'results'}", "--study", str(ran / "mine.yaml"))
    assert isinstance(done.exception, DataError)
    assert re.search(
        r"4 cells of the study .*seed 1: missing, never run.*`vabench study .* runs them", str(done.exception)
    )
    assert not (tmp_path / "records.jsonl").exists()
    done = publish(ran, tmp_path, "--all", "--study", "cost")
    assert isinstance(done.exception, ConfigError)


def test_what_replaces_a_study_removes_what_followed_from_it(ran: Path, tmp_path: Path) -> None:
    publish(ran, tmp_path)
    (tmp_path / "study/notes.txt").write_text("somebody's own")
    assert publish(ran, tmp_path, f"results={ran / 'results'}", "--all").exit_code == 0
    assert not (tmp_path / STUDY).exists()
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["notes.txt"]
    assert len(list((tmp_path / "tables").iterdir())) == 2
    publish(ran, tmp_path)
    assert not list((tmp_path / "tables").iterdir())


def test_a_board_calls_no_function_but_our_figures(ran: Path, tmp_path: Path) -> None:
    publish(ran, tmp_path)
    values = yaml.safe_load((tmp_path / STUDY).read_text())
    values["figure"] = {"kind": "json:dumps"}
    (tmp_path / STUDY).write_text(yaml.safe_dump(values))
    assert set(study_files(tmp_path)) == {f"{NAME}-summary.csv", f"{NAME}-contrasts.csv"}


def test_the_page_shows_studies_and_no_table_counts_their_cells(ran: Path, tmp_path: Path) -> None:
    publish(ran, tmp_path / "toy")
    assert everything(tmp_path).studies == (tmp_path / "toy",)
    assert len(everything(tmp_path / "toy").entries) == 4
    fabric = Fabric(tmp_path / "results")
    fabric.row("rwg", 0.5)
    write_published((entry.record for entry in everything(fabric.root).entries), tmp_path / "own")
    found = everything(tmp_path)
    assert {entry.record.suite for entry in found.entries} == {"toy_suite"}
    assert found.studies == (tmp_path / "toy",)
    report = ["report", f"results={tmp_path}", "--all", "--format", "html", "--output", str(tmp_path / "site")]
    done = CliRunner().invoke(app, report)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    said = read_study_board(tmp_path / "toy").said
    assert len(said) == 1
    assert said[0] in page
    assert "2 points: steps 2, 4. 1 seed, 4 cells." in page
    headline = read_published(tmp_path / "toy")[0][0].tracks["preregistered"].metrics["headline"]
    assert f"<td>{headline:.3f}</td>" in page
    assert page.count("<h2") == 3  # the table, the studies, the legend
    (tmp_path / "toy/records.jsonl").write_text("torn\n")
    done = CliRunner().invoke(app, report)
    assert done.exit_code == 0, done.output
    assert "is left out" in " ".join(done.output.split())
    assert '<h2 id="studies-h"' not in (tmp_path / "site/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.name)
def test_committed_studies_follow_from_committed_records(board: Path) -> None:
    rebuilt = board_files(board)
    held = {str(path.relative_to(board)) for path in board.rglob("*") if path.is_file()}
    assert held == {STUDY, "records.jsonl"} | set(rebuilt)
    for name, content in rebuilt.items():
        assert_same((board / name).read_bytes(), content, name)


def test_an_edited_record_changes_a_committed_study(tmp_path: Path) -> None:
    """The comparison above can fail."""
    board = Path("leaderboard/results/fpr_fnr")
    held = read_published(board)[0]
    first = next(record for record in held if record.tracks and "headline" in str(record.tracks))
    track = next(iter(first.tracks.values()))
    track.metrics["headline"] += 0.2
    again = [Record.model_validate(json.loads(record.model_dump_json())) for record in held]
    write_published(again, tmp_path)
    (tmp_path / STUDY).write_bytes((board / STUDY).read_bytes())
    rebuilt = board_files(tmp_path)
    name = next(name for name in rebuilt if "summary" in name)
    with pytest.raises(AssertionError):
        assert_same((board / name).read_bytes(), rebuilt[name], name)


def test_publishing_a_part_over_the_whole_says_what_goes(ran: Path, tmp_path: Path) -> None:
    publish(ran, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    part = ("axes.steps=[2]", *words(ran), "--study", str(ran / "mine.yaml"))
    done = publish(ran, tmp_path, *part)  # its contrast asks for 4 steps too
    assert isinstance(done.exception, ConfigError)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (ran / "free.yaml").write_text(yaml.safe_dump({**TOY, "contrasts": []}), encoding="utf-8")
    said = publish(ran, tmp_path, *part[:-1], str(ran / "free.yaml")).output
    assert len(re.findall(r"removed: .* · erm(?:_continue)? #[0-9a-f]{6} · seed 0\n", said)) == 2
    assert "kept: 2 rows, 2 cells" in said
    assert "replaced" not in said
    study = Study.model_validate({**TOY, "contrasts": []})
    part_name = expand(study, ["axes.steps=[2]", "seeds=1"]).file_name
    assert {path.name for path in (tmp_path / "study").iterdir()} >= {f"{part_name}-summary.csv"}
    assert not (tmp_path / f"study/{NAME}-summary.csv").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\naxes: [1, {a: 1\n", r"cannot be read: line \d+, column \d+: .*expected"),
        ("", "holds no settings"),
        ("name: x\nrows: [erm]\n", "it needs axes"),
        ("name: x\naxes: {steps: 5}\nrows: [erm]\nmeasure: [wga]\n", "axes is a mapping of names to lists"),
    ],
)
def test_a_spoiled_definition_is_said_in_one_sentence(ran: Path, tmp_path: Path, text: str, said: str) -> None:
    publish(ran, tmp_path)
    (tmp_path / STUDY).write_text(text)
    done = publish(ran, tmp_path, "--rebuild")
    assert isinstance(done.exception, ConfigError)
    assert re.search(said, str(done.exception))
    assert "\n" not in str(done.exception)
    assert "kept" not in done.output


def test_a_study_is_no_preset(ran: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a study, not a preset: `vabench study .* runs it"):
        load_config(str(ran / "mine.yaml"))


@pytest.mark.parametrize("width", [1440, 390])
def test_studies_can_be_read_light_and_dark_and_on_a_phone(browser: Any, tmp_path: Path, width: int) -> None:  # noqa: F811
    """The published surface, with numbers on its tiles: no text loses itself in the ground, nothing moves the page."""
    path = tmp_path / "index.html"
    path.write_text(to_html([], studies=[read_study_board(Path("leaderboard/results/fpr_fnr"))]), encoding="utf-8")
    opened = Opened(browser, path, width)
    opened.page.evaluate("document.querySelectorAll('details').forEach(held => held.open = true)")
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        found = Axe().run(opened.page).response["violations"]
        assert not [item["id"] for item in found if item["impact"] in ("serious", "critical")]
        inks = opened.page.evaluate(
            "[...document.querySelectorAll('#studies svg text')].map(held => getComputedStyle(held).fill)"
        )
        assert len(inks) > 50
        assert "rgb(0, 0, 0)" not in inks  # vega's own: gone in the dark
        assert "rgb(17, 17, 17)" in inks  # on light tiles, whatever the page's colours
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not opened.requests
    assert not opened.complaints
    opened.close()
