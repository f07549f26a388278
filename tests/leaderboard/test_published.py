"""Published boards: nothing but statistics leaves, tables follow from the records, and ours still do (drift)."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from fabricated import Fabric
from read_back import compare
from typer.testing import CliRunner

from harness.cli import _collect, app
from harness.errors import DataError
from harness.record import Status
from leaderboard.collect import everything
from leaderboard.command import write_report
from leaderboard.front_page import with_table
from leaderboard.publish_command import board_files, published_boards
from leaderboard.published import read_published, write_published
from leaderboard.tables import boards

BOARDS = sorted(path.parent for path in Path("leaderboard/results").glob("*/records.jsonl"))


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
    text = (tmp_path / "records.jsonl").read_text()
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
    assert len(found) == 15
    assert "line 16" in damaged[0]
    with pytest.raises(DataError, match="line 16"):
        published_boards(tmp_path)
    assert len(everything(tmp_path).entries) == 15
    assert "damaged" in everything(tmp_path).warnings[0]


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


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.name)
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
def test_committed_records_name_no_machine(board: Path) -> None:
    text = (board / "records.jsonl").read_text()
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


def test_one_page_of_all_our_boards(tmp_path: Path) -> None:
    """The page holds the numbers of the published records and stays small."""
    found = boards(everything("leaderboard/results").entries)
    assert len({board.suite for board in found}) >= len(BOARDS)
    write_report(found, tmp_path, ("html",))
    page = tmp_path / "index.html"
    assert compare(page.read_text(encoding="utf-8"), found) > 100
    assert page.stat().st_size <= 6_000_000
    assert "What was tried, mean over seeds" in page.read_text(encoding="utf-8")


def test_the_readme_shows_the_published_table() -> None:
    text = Path("README.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "`python -m leaderboard.front_page` writes it again"
    assert "lvlm_va@border" in text
    with pytest.raises(ValueError, match="marks"):
        with_table("no marks")
