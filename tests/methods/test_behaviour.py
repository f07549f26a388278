"""The behaviour report: where the strongest segment lies, the model of the cell, and sentences with their images."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from mask_toys import toy_alignment, toy_split
from typer.testing import CliRunner

from harness.cell import run_cell
from harness.config import load_config
from harness.errors import ConfigError
from harness.metrics.groups import wilson_interval
from harness.plan import Cell, inspect, plan
from harness.segment import Segments
from harness.stages import Stages
from harness.store import Store
from methods.lvlm_va import behaviour
from methods.lvlm_va.behaviour import Behaviour, Pictures, Statement
from methods.lvlm_va.behaviour_command import behaviour as command

SMALL = ["suites=[decoy_digits(rho=1.0)]", "seeds=[0]", "recipes.base.epochs=15", "alignment.n=60"]
SMALL += ["recipes.finetune.steps=60", "metrics.attribution_images=50"]
ALIGNED, TEST = "low-entropy training images", "test images (conflicting)"


def cell_of(row: str, results: Path) -> tuple[Cell, Stages]:
    (cell,) = plan(load_config("quickstart", [*SMALL, f"methods=[{row}]"]))
    return cell, Stages(Store(results), torch.device("cpu"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def found(results: Path) -> Behaviour:
    """The report of a cell that has been run and stored."""
    cell, stages = cell_of("lvlm_va@oracle", results)
    assert run_cell(cell, stages).status == "done"
    return behaviour.describe(*cell_of("lvlm_va@oracle", results))


def statement(found: Behaviour, pictures: str, when: str, group: str, measure: str) -> Statement:
    (one,) = [
        s for s in found.statements if (s.pictures, s.when, s.group, s.measure) == (pictures, when, group, measure)
    ]
    return one


def test_the_strongest_segment_is_that_of_the_positive_attribution() -> None:
    labels = torch.tensor([[[0, 0, 1, -1]], [[0, 1, 2, 2]], [[-1, -1, -1, -1]]], dtype=torch.int8)
    maps = torch.tensor([[[3.0, -9.0, 2.0, 50.0]], [[1.0, 2.0, 1.5, 1.5]], [[1.0, 1.0, 1.0, 1.0]]])
    segments = Segments(labels, torch.zeros(3, 3), torch.zeros(3))
    assert behaviour.strongest_segment(segments, maps).tolist() == [0, 2, -1]


def test_places_and_verdicts_of_the_strongest_segment() -> None:
    alignment, _ = toy_alignment(12, blank=2)
    maps, segments = alignment.maps.clone(), alignment.segments
    maps[:6][segments.labels[:6] == 2] *= 100  # a patch in the middle is the strongest segment,
    maps[6:][segments.labels[6:] == 0] *= 100  # from image 6 on the corner
    middle = (segments.labels == 2) & (torch.arange(12) < 4)[:, None, None]
    truth = toy_split("train", 120, 0).masks
    assert truth is not None
    pictures = Pictures("images", np.arange(12), np.arange(12), np.zeros(12), alignment.images, truth[:12], middle)
    verdicts = torch.full((12, 4), 0, dtype=torch.int8)
    verdicts[:8, 0] = 1
    seen = behaviour.rely(segments, maps, pictures, verdicts)
    assert seen.strongest.tolist()[:2] == [-1, -1]
    assert seen.on["spurious"].tolist() == [False] * 6 + [True] * 6
    assert seen.on["core"].tolist() == [False] * 2 + [True] * 2 + [False] * 8
    total = sum(seen.on[name].astype(int) for name in behaviour.PLACES)
    assert total.tolist() == [0, 0] + [1] * 10
    assert seen.called is not None
    assert seen.called.tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]


def test_the_model_is_that_of_the_stored_cell(found: Behaviour) -> None:
    assert found.equal is True
    assert any("equal those of the stored cell" in note for note in found.notes)


def test_another_model_in_the_store_is_noticed(results: Path, tmp_path: Path, found: Behaviour) -> None:
    cell, stages = cell_of("lvlm_va@oracle", results)
    state = inspect(cell, stages.store)
    assert state.record is not None
    arrays = dict(stages.store.predictions(state.folder, state.record))
    arrays["test/conflicting/0"] = arrays["test/conflicting/0"] + np.float32(0.25)
    other = Stages(Store(tmp_path), torch.device("cpu"))
    other.store.write(state.record, arrays)
    run = behaviour.Refit(cell, other)
    repaired = run.repair()
    assert repaired.equal is False
    assert "NOT THE STORED MODEL" in repaired.stored
    assert "0.25" in repaired.stored


def test_sentences_count_their_images(found: Behaviour) -> None:
    for pictures, size in ((ALIGNED, 60), (TEST, 50)):
        for when in behaviour.WHENS:
            parts = [statement(found, pictures, when, "", place) for place in behaviour.PLACES]
            nothing = [s for s in found.statements if (s.pictures, s.when, s.group) == (pictures, when, "")]
            empty = sum(s.hits for s in nothing if s.measure == "nothing")
            assert sum(s.hits for s in parts) + empty == size == parts[0].of
            for place, whole in zip(behaviour.PLACES, parts, strict=True):
                classes = [s for s in found.statements if s.group and s.measure == place]
                classes = [s for s in classes if (s.pictures, s.when) == (pictures, when)]
                assert sum(s.hits for s in classes) == whole.hits
    for s in found.statements:
        assert len(s.positions) == len(s.ids) == s.hits
        assert len(s.other_positions) == len(s.other_ids) == s.of - s.hits
        assert not set(s.positions) & set(s.other_positions)
        assert (s.low, s.high) == wilson_interval(s.hits, s.of)
        assert f"in {s.hits} of {s.of} {s.pictures}" in s.text
        assert s.text.startswith(s.when.capitalize())


def test_images_are_the_alignment_set_and_verdicts_are_the_sources(found: Behaviour, results: Path) -> None:
    cell, stages = cell_of("lvlm_va@oracle", results)
    state = inspect(cell, stages.store)
    assert state.record is not None
    held = stages.store.predictions(state.folder, state.record)["masks/index"]
    s = statement(found, ALIGNED, "before", "", "called spurious")
    assert sorted(s.positions + s.other_positions) == sorted(held.tolist())
    data = stages.load(cell, behaviour.Refit(cell, stages).context).data
    assert data.train.ids[s.positions].tolist() == s.ids
    for when in behaviour.WHENS:  # the oracle calls spurious what lies on the object, by its definition
        on = statement(found, ALIGNED, when, "", "spurious")
        assert statement(found, ALIGNED, when, "", "called spurious").positions == on.positions
    three = statement(found, ALIGNED, "before", "3", "spurious")
    assert set(data.train.y[three.positions + three.other_positions]) == {3}
    assert 'the spurious object ("a small square of grey 180 of 255 in one corner of the image")' in three.text
    assert "simulated source oracle" in s.text
    shown = statement(found, TEST, "before", "3", "spurious")  # there it is another class's square
    assert "lies on the spurious object [" in shown.text
    assert "handwritten three" in statement(found, TEST, "before", "3", "core").text


def test_alignment_removes_the_object_from_sight(found: Behaviour) -> None:
    before, after = (statement(found, ALIGNED, when, "", "spurious") for when in behaviour.WHENS)
    assert before.hits >= 8
    assert after.high < before.low


def test_a_row_that_changes_nothing_changes_no_sentence(results: Path) -> None:
    """Only empty masks: the row returns its base model, and maps made here equal those of the shared stage."""
    same = behaviour.describe(*cell_of("lvlm_va@noisy_oracle(fpr=0,fnr=1)", results))
    assert same.equal is None
    assert any("not stored" in note for note in same.notes)
    for s in same.statements:
        if s.when == "before":
            assert statement(same, s.pictures, "after", s.group, s.measure).positions == s.positions


def test_the_source_need_not_be_asked_again(results: Path) -> None:
    cell, stages = cell_of("lvlm_va@oracle", results)
    once = behaviour.describe(cell, stages, judge_after=False)
    asked = {s.when for s in once.statements if s.measure == "called spurious"}
    assert asked == {"before"}
    assert "| - " in behaviour.to_markdown(once).replace("| -  ", "| - ")


def test_a_row_without_masks_is_refused(results: Path) -> None:
    with pytest.raises(ConfigError, match="has no alignment set"):
        behaviour.describe(*cell_of("erm", results))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_escapes_and_loads_nothing() -> None:
    nasty = "<script>alert('x')</script>"
    one = Statement(nasty, "before", nasty, "spurious", 1, 2, 0.1, 0.9, f"In 1 of 2 {nasty}.", [4], [7], [5], [8])
    page = behaviour.to_html(Behaviour(nasty, "real", nasty, 0, False, (nasty,), [one], [nasty], None))
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert tags.links == []
    assert "details" in tags.seen
    assert "&lt;script&gt;" in page
    assert "http" not in page


def test_the_command_writes_html_markdown_and_json(results: Path, found: Behaviour, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    words = [*(w for w in SMALL if not w.startswith("seeds")), f"results={results}", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("*.json")
    held = json.loads(path.read_text())
    assert held["equals_stored_cell"] is True
    assert held["simulated"] is True
    assert [s["text"] for s in held["statements"]] == [s.text for s in found.statements]
    first = held["statements"][0]
    assert first["share"] == pytest.approx(first["hits"] / first["of"])
    assert first["text"] in path.with_suffix(".md").read_text()
    assert first["text"] in path.with_suffix(".html").read_text()
    assert first["text"][:60] in result.output
