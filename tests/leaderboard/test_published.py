"""Published boards: nothing but statistics leaves, tables follow from the records, and ours still do (drift)."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricated import Fabric
from read_back import compare
from typer.testing import CliRunner

from harness.cli import _collect, app
from harness.errors import DataError
from harness.record import Record, Status
from leaderboard import published
from leaderboard.collect import everything
from leaderboard.command import write_report
from leaderboard.front_page import with_table
from leaderboard.publish_command import board_files, published_boards
from leaderboard.published import STUDY, read_published, write_published
from leaderboard.sharing import compact, name_of
from leaderboard.study_board import read_study_board
from leaderboard.tables import boards

LARGEST = 1_500_000  # bytes of a file in the repository
BOARDS = sorted(path.parent for path in Path("leaderboard/results").glob("*/records.jsonl"))
TABLED = [board for board in BOARDS if not (board / STUDY).exists()]  # studies: test_study_board.py


def texts(board: Path) -> str:
    """All that a board's records say."""
    return "\n".join(path.read_text() for path in sorted(board.rglob("*.jsonl")))


def as_before(records: list[Record], folder: Path) -> None:
    """A board in the form of before: whole records, a line each."""
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    made = Fabric(tmp_path / "results")
    made.row("erm", 0.3, "reference")
    made.row("rwg", 0.6)
    made.row("jtt", 0.5)
    made.row("dfr", None, status=Status.FAILED, reason="OSError: /home/somebody/secret/file.npz is gone")
    return made


def test_a_published_board_reports_the_numbers_of_its_records(fabric: Fabric, tmp_path: Path) -> None:
    whole = everything(fabric.root).entries
    assert write_published((entry.record for entry in whole), tmp_path / "board") == len(whole) == 16
    here, there = boards(whole)[0], published_boards(tmp_path / "board")[0]
    numbers = ["wga", "wga_low", "delta", "delta_p_holm", "aga", "cost_s", "n_worst"]
    pd.testing.assert_frame_equal(here.frame.set_index("row")[numbers], there.frame.set_index("row")[numbers])
    assert any("predictions of some cells are not at hand" in note for note in there.notes)
    assert not any("not at hand" in note for note in here.notes)


def test_paths_and_traces_stay_behind(fabric: Fabric, tmp_path: Path) -> None:
    record = fabric.cell("jtt", 9, None, status=Status.FAILED, reason="see /home/me/x/log.txt").record
    record.trace = "File /home/me/secret.py"
    entries = [entry.record for entry in everything(fabric.root).entries] + [record]
    write_published(entries, tmp_path)
    text = texts(tmp_path)
    assert "/home" not in text
    assert "secret" not in text
    assert "see log.txt" in text
    assert "file.npz is gone" in text


def test_nothing_to_publish_and_damaged_lines_are_said(fabric: Fabric, tmp_path: Path) -> None:
    failed = [entry.record for entry in everything(fabric.root).entries if entry.record.status is not Status.DONE]
    with pytest.raises(DataError, match="nothing to publish"):
        write_published(failed, tmp_path)
    write_published((entry.record for entry in everything(fabric.root).entries), tmp_path)
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text()[:-200])
    found, damaged = read_published(tmp_path)
    last = len(path.read_text().splitlines())
    assert len(found) == 15
    assert f"line {last}" in damaged[0]
    with pytest.raises(DataError, match=f"line {last}"):
        published_boards(tmp_path)
    assert len(everything(tmp_path).entries) == 15
    assert "damaged" in everything(tmp_path).warnings[0]


def test_a_board_of_before_is_read_and_rebuilt_without_loss(fabric: Fabric, tmp_path: Path) -> None:
    write_published((entry.record for entry in everything(fabric.root).entries), tmp_path / "board")
    held, damaged = read_published(tmp_path / "board")
    assert not damaged
    as_before(held, tmp_path / "old")
    assert read_published(tmp_path / "old") == (held, [])
    _collect()
    run = CliRunner().invoke(app, ["publish", "--rebuild", "--to", str(tmp_path / "old")])
    assert run.exit_code == 0, run.output
    assert texts(tmp_path / "old") == texts(tmp_path / "board")
    assert "kept: 4 rows, 16 cells" in run.output


def test_a_large_board_stands_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for suite in ("one suite", "one_suite", "z"):  # two of them would have one file name
        made = Fabric(tmp_path / "results", suite=suite)
        records += [entry.record for name in ("erm", "rwg") for entry in made.row(name, 0.5)]
    board = tmp_path / "board"
    write_published(records, board)
    assert [path.name for path in board.rglob("*.jsonl")] == ["records.jsonl"]
    held = read_published(board)[0]
    monkeypatch.setattr(published, "MAX_FILE", 3_000)
    write_published(records, board)
    files = sorted(path.name for path in (board / "records").iterdir())
    assert {"one_suite.jsonl", "one_suite-2.jsonl", "z.jsonl", "z-2.jsonl"} < set(files)
    assert all((board / "records" / name).stat().st_size <= 3_000 for name in files)
    assert read_published(board) == (held, [])
    (board / "records/mine.jsonl").write_text("somebody's own")
    monkeypatch.undo()
    write_published(records, board)
    assert [path.name for path in (board / "records").iterdir()] == ["mine.jsonl"]  # what was the board's is gone
    assert read_published(board) == (held, [])


def test_a_file_that_is_missing_or_cut_off_is_said(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "MAX_FILE", 4_000)
    write_published((entry.record for entry in everything(fabric.root).entries), tmp_path)
    first, second, *_ = sorted((tmp_path / "records").iterdir())
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join(lines[:-1]))
    second.unlink()
    found, damaged = read_published(tmp_path)
    assert f"{first} has {len(lines) - 1} lines where the board says {len(lines)}" in damaged[0]
    assert "publish it again" in damaged[0]
    assert f"{second}, with" in damaged[1]
    assert len(found) < 16


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"version": 3}, "reads up to 2: update vabench"),
        ({"version": "2"}, "version"),
        ({"format": "other"}, "format"),
        ({"records": -1}, "records"),
        ({"records": True}, "records"),
        ({"files": [{"file": "../../secret.jsonl", "records": 1}]}, "files.0.file"),
        ({"files": [{"file": "/etc/secret.jsonl", "records": 1}]}, "files.0.file"),
        ({"files": [{"file": "a.jsonl\n", "records": 1}]}, "files.0.file"),
        ({"files": [{"file": "a.jsonl", "records": 1}, {"file": "A.jsonl", "records": 1}]}, "a file twice"),
        ({"files": [{"file": f"{k}.jsonl", "records": 1} for k in range(1001)]}, "files"),
        ({"more": 1}, "more"),
        ({"files": [{"file": "a.jsonl", "records": 1}]}, "a.jsonl, with 1 records, cannot be read"),
        ({"shared": 5}, "has 1 lines where the board says 6"),
        ({"records": 10**30}, "records|has 1 lines"),
    ],
)
def test_a_stranger_s_first_line_is_not_believed(tmp_path: Path, head: dict[str, Any], said: str) -> None:
    line = {"format": "vabench-board", "version": 2, "shared": 0, "records": 0, "files": [], **head}
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    found, damaged = read_published(tmp_path)
    assert not found
    assert len(damaged) == 1
    assert re.search(said, damaged[0])
    assert len(damaged[0]) < 500


def test_an_edit_of_what_records_share_is_seen(fabric: Fabric, tmp_path: Path) -> None:
    """By the part's hash, and by the seals of the records where the hash is made to fit."""
    write_published((entry.record for entry in everything(fabric.root).entries), tmp_path)
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if '"value":{' in line and "toy" not in line)
    values = json.loads(lines[at])
    key = next(key for key, value in values["value"].items() if isinstance(value, int | float))
    edited = {**values["value"], key: 17}
    path.write_text("\n".join([*lines[:at], compact({**values, "value": edited}), *lines[at + 1 :]]) + "\n")
    found, damaged = read_published(tmp_path)
    assert "not what its hash says" in damaged[0]
    assert all("stands nowhere above it" in line for line in damaged[1:])
    name = name_of(compact(edited))
    fitted = [*lines[:at], compact({"$": name, "value": edited}), *lines[at + 1 :]]
    path.write_text("\n".join(fitted).replace(values["$"], name) + "\n")
    found, damaged = read_published(tmp_path)
    assert damaged
    assert len(found) + len(damaged) == 16
    assert all("seal" in line for line in damaged)


def test_publishing_says_what_it_changed(fabric: Fabric, tmp_path: Path) -> None:
    _collect()
    words = ["publish", f"results={fabric.root}", "--all", "--to", str(tmp_path / "board")]
    said = CliRunner().invoke(app, words).output
    assert "added: toy_suite · erm · seed 0-3\n" in said
    assert not re.search("kept|replaced|removed", said)
    fabric.row("subg", 0.4, seeds=(0, 2, 3))
    fabric.row("erm", 0.4, "reference", seeds=(1,))
    for path in (fabric.root / "cells/toy_suite/jtt").iterdir():
        shutil.rmtree(path)
    said = CliRunner().invoke(app, words).output
    assert "added: toy_suite · subg · seed 0, 2-3\n" in said
    assert "replaced: toy_suite · erm · seed 1\n" in said
    assert "removed: toy_suite · jtt · seed 0-3\n" in said
    assert "kept: 3 rows, 11 cells\n" in said
    with (tmp_path / "board/records.jsonl").open("a") as file:
        file.write("torn\n")
    said = CliRunner().invoke(app, words).output
    assert "could not be read in full" in said


def test_there_is_nothing_to_rebuild_from(tmp_path: Path) -> None:
    _collect()
    done = CliRunner().invoke(app, ["publish", "--rebuild", "--to", str(tmp_path / "none")])
    assert isinstance(done.exception, DataError)
    assert "to rebuild from" in str(done.exception)


def test_the_verb_writes_and_rebuilds(fabric: Fabric, tmp_path: Path) -> None:
    _collect()
    run = CliRunner().invoke(app, ["publish", f"results={fabric.root}", "--all", "--to", str(tmp_path / "board")])
    assert run.exit_code == 0, run.output
    tables = {path: path.read_bytes() for path in (tmp_path / "board/tables").iterdir()}
    assert len(tables) == 2
    for path in tables:
        path.write_text("spoiled")
    again = CliRunner().invoke(app, ["publish", "--rebuild", "--to", str(tmp_path / "board")])
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in tables} == tables


@pytest.mark.parametrize("board", TABLED, ids=lambda path: path.name)
def test_committed_tables_follow_from_committed_records(board: Path) -> None:
    rebuilt = board_files(board)
    assert {str(path.relative_to(board)) for path in (board / "tables").iterdir()} == set(rebuilt)
    for name, content in rebuilt.items():
        held = (board / name).read_bytes()
        if name.endswith(".csv"):  # numbers may differ in their last digits between processors
            frames = [pd.read_csv(io.BytesIO(data)) for data in (held, content)]
            pd.testing.assert_frame_equal(*frames, rtol=1e-9, atol=1e-12)
        else:
            assert held.decode() == content.decode(), f"`vabench publish --rebuild --to {board}` writes it again"


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.name)
def test_committed_records_come_back_whatever_their_form(board: Path, tmp_path: Path) -> None:
    """Read, written whole in the form of before, read, written again: equal records, equal files, small ones."""
    held, damaged = read_published(board)
    assert not damaged
    as_before(held, tmp_path / "old")
    again, damaged = read_published(tmp_path / "old")
    assert not damaged
    assert [record.model_dump_json() for record in again] == [record.model_dump_json() for record in held]
    write_published(again, tmp_path / "back")
    names = sorted(str(path.relative_to(board)) for path in board.rglob("*.jsonl"))
    assert names == sorted(str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*.jsonl"))
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (board / name).read_bytes(), f"--rebuild writes {name} again"
        assert (board / name).stat().st_size <= LARGEST


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.name)
def test_committed_records_name_no_machine(board: Path) -> None:
    text = texts(board)
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


def test_one_page_of_all_our_boards(tmp_path: Path) -> None:
    """The page holds the numbers of the published records and stays small."""
    held = everything("leaderboard/results")
    found = boards(held.entries)
    assert len({board.suite for board in found}) >= len(TABLED)
    studies = [read_study_board(folder) for folder in held.studies]
    assert len(studies) == len(BOARDS) - len(TABLED)
    write_report(found, tmp_path, ("html",), studies=studies)
    page = tmp_path / "index.html"
    text = page.read_text(encoding="utf-8")
    assert compare(text, found) > 100
    assert page.stat().st_size <= 4_000_000
    assert "What was tried, mean over seeds" in text
    assert all(f"{study.name}: " in text and study.svg for study in studies)


def test_the_readme_shows_the_published_table() -> None:
    text = Path("README.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "`python -m leaderboard.front_page` writes it again"
    assert "lvlm_va@border" in text
    with pytest.raises(ValueError, match="marks"):
        with_table("no marks")
