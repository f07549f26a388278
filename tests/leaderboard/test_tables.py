from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import Fabric
from rich.console import Console

from harness.record import Status
from harness.statistics import holm, wilcoxon
from leaderboard.collect import Entry, everything
from leaderboard.compare import against_control, estimate, gather, rank_rows
from leaderboard.render import LEGEND, cells, fold, latex, markdown, to_csv, to_latex, to_markdown, to_terminal
from leaderboard.tables import Board, best_on_test, best_on_test_board, boards, leaderboard, stems

LONG = "lvlm_va@random_verdicts(of=oracle)"


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    return Fabric(tmp_path, tracks=("preregistered", "tuned"))


@pytest.fixture
def entries(fabric: Fabric) -> list[Entry]:
    """All blocks, a row not applicable, one partly failed, out of order on purpose."""
    masks = {"supervision": ("labels", "masks"), "ledger": {"labels/train": 100.0, "masks/train": 40.0}}
    return [
        *fabric.row("erm_continue", 0.45, "control", masks="oracle"),
        *fabric.row(LONG, 0.55, "control", masks="random_verdicts(of=oracle)"),
        *fabric.row("lvlm_va@oracle", 0.9, "oracle", masks="oracle", **masks),
        *fabric.row("jtt", 0.5, label="JTT 100% & co_*"),
        *fabric.row("subg", status=Status.NOT_APPLICABLE, reason="group 1 | conflicting is empty"),
        *[fabric.cell("dfr", seed, 0.6) for seed in (0, 1, 2)],
        fabric.cell("dfr", 3, status=Status.FAILED, reason="ValueError: x_1 < 0"),
        *fabric.row("rrr@ground_truth", 0.7, masks="ground_truth", **masks),
        *fabric.row("erm", 0.35, "reference"),
    ]


@pytest.fixture
def board(entries: list[Entry]) -> Board:
    return leaderboard(entries, "preregistered", seeds=(0, 1, 2, 3))


def line(board: Board, row: str) -> pd.Series:
    return board.frame.set_index("row").loc[row]


def printed(board: Board, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(to_terminal(board, width))
    return console.file.getvalue()


# --- the frame --------------------------------------------------------------------------------------------------------


def test_blocks_in_order_and_rows_by_score(board: Board) -> None:
    rows = list(board.frame["row"])
    assert rows == ["erm", "rrr@ground_truth", "dfr", "jtt", "subg", "lvlm_va@oracle", LONG, "erm_continue"]


def test_means_and_differences_match_the_records(board: Board, entries: list[Entry]) -> None:
    cells_ = [e.record for e in entries if e.record.row == "jtt"]
    wga = np.array([r.tracks["preregistered"].metrics["wga"] for r in cells_])
    held = line(board, "jtt")
    assert held["wga"] == pytest.approx(wga.mean())
    assert held["delta"] == pytest.approx((wga - 0.3).mean())
    assert held["delta_p"] == pytest.approx(wilcoxon(wga - 0.3).p)
    assert 0 <= held["wga_low"] < held["wga"] < held["wga_high"] <= 1
    assert held["n_worst"] == 40
    assert held["one_image"] == pytest.approx(1 / 40)


def test_holm_runs_over_the_rows_of_the_suite_without_references(board: Board) -> None:
    family = board.frame[(board.frame["block"] != "reference") & board.frame["n"].gt(0)]
    np.testing.assert_allclose(family["delta_p_holm"], holm(family["delta_p"].to_numpy()))
    assert len(family) == 6
    assert math.isnan(line(board, "erm")["delta_p_holm"])


def test_a_family_too_large_for_its_seeds_says_so(board: Board) -> None:
    assert any("smallest attainable p is 0.125" in note and "8 seeds could" in note for note in board.notes)


def test_a_family_that_the_seeds_can_decide_says_nothing_and_gets_its_star(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path, seeds=tuple(range(8)))
    board = leaderboard(fabric.row("good", 0.95) + fabric.row("same", 0.32), "preregistered")
    assert not any("smallest attainable" in note for note in board.notes)
    shown = cells(board, terse=False).cells.set_index("row")["ΔWGA"]
    assert re.match(r"\+0\.\d+\* \[", shown["good"])
    assert "*" not in shown["same"]


def test_gain_is_over_the_best_control_and_only_for_mask_methods(board: Board, entries: list[Entry]) -> None:
    held = line(board, "lvlm_va@oracle")
    wga = {
        name: [e.record.tracks["preregistered"].metrics["wga"] for e in entries if e.record.row == name]
        for name in ("lvlm_va@oracle", LONG)
    }
    d = np.subtract(wga["lvlm_va@oracle"], wga[LONG])
    assert held["control"] == LONG
    assert held["gain"] == pytest.approx(d.mean())
    assert held["gain_p"] == pytest.approx(wilcoxon(d).p)
    assert {row for row, gain in zip(board.frame["row"], board.frame["gain"], strict=True) if gain == gain} == {
        "lvlm_va@oracle",
        "rrr@ground_truth",
    }
    assert any(LONG in note for note in board.notes)


def test_each_track_has_its_own_control(fabric: Fabric) -> None:
    rows = [*fabric.row("rrr@x", 0.8, masks="x"), *fabric.row("a", 0.5, "control", masks="c")]
    rows += fabric.row("b", 0.4, "control", tuned=0.35, masks="c")
    assert against_control(gather(rows, "preregistered"))[1] == {"rrr@x": "a"}
    assert against_control(gather(rows, "tuned"))[1] == {"rrr@x": "b"}


def test_a_control_with_few_seeds_is_not_the_best(fabric: Fabric) -> None:
    rows = [*fabric.row("rrr@x", 0.8, masks="x"), *fabric.row("full", 0.5, "control", masks="c")]
    rows.append(fabric.cell("lucky", 0, 0.99, "control", masks="c"))
    assert against_control(gather(rows, "preregistered"))[1] == {"rrr@x": "full"}


def test_families_never_meet_in_the_gain(fabric: Fabric) -> None:
    """A group method has no gain, and one that a preset calls a control is none for methods with masks."""
    rows = [*fabric.row("rrr@x", 0.8, masks="x"), *fabric.row("erm_continue", 0.4, "control", masks="all_ones")]
    rows += [*fabric.row("group_dro", 0.7), *fabric.row("rwg", 0.95, "control")]
    board = leaderboard(rows, "preregistered")
    assert line(board, "rrr@x")["control"] == "erm_continue"
    for row in ("group_dro", "rwg", "erm_continue"):
        assert math.isnan(line(board, row)["gain"])
        assert line(board, row)["control"] == ""
        assert line(board, row)["delta"] == pytest.approx(line(board, row)["wga"] - 0.3)
    assert any("the tuned track compares each at its own" in note for note in board.notes)
    tuned = leaderboard(rows, "tuned")
    assert not any("the tuned track compares" in note for note in tuned.notes)
    alone = leaderboard([entry for entry in rows if entry.record.row != "erm_continue"], "preregistered")
    assert math.isnan(line(alone, "rrr@x")["gain"])
    assert any("gain: empty" in note for note in alone.notes)


def test_references_and_controls_have_no_rank(board: Board) -> None:
    ranks = board.frame.set_index("row")["rank"]
    assert ranks[["erm", "erm_continue", LONG, "subg"]].isna().all()
    assert ranks["lvlm_va@oracle"] == 1
    assert ranks["jtt"] > 1


def test_small_groups_decide_no_rank(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path, n=40)
    board = leaderboard(fabric.row("a", 0.9) + fabric.row("b", 0.5), "preregistered")
    assert board.frame["rank"].isna().all()
    assert any("25 test images" in note for note in board.notes)


def test_ranks_without_predictions_come_from_seeds_alone(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path)
    held = fabric.row("a", 0.95) + fabric.row("b", 0.3, predictions=False)
    rated = rank_rows(gather(held, "preregistered"))
    assert "not at hand" in rated.how
    assert rated.ranking is not None
    assert rated.ranking.rank["a"] == 1


def test_ranks_read_the_candidate_of_their_track(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path, seeds=tuple(range(8)), tracks=("preregistered", "tuned"))
    held = gather(fabric.row("a", 0.9, tuned=-0.5) + fabric.row("b", 0.6, tuned=0.35), "tuned")
    ranking = rank_rows(held).ranking
    assert ranking is not None
    assert ranking.rank == {"b": 1, "a": 2}
    assert ranking.rows[0].mean == pytest.approx(held[1].mean("wga"))


def test_intervals_of_accuracies_stay_among_accuracies(tmp_path: Path) -> None:
    held = Fabric(tmp_path, seeds=(0, 1)).row("a", 0.95)
    raw = estimate(gather(held, "preregistered")[0].values("headline").values())
    assert raw.high > 1  # two seeds: the t stretch reaches beyond
    row = leaderboard(held, "preregistered").frame.iloc[0]
    assert (row["headline"], row["headline_low"], row["headline_high"]) == (raw.mean, raw.low, 1.0)


def test_another_metric_can_rank_and_less_flipping_is_better(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path, seeds=tuple(range(8)))
    held = fabric.row("much", 0.5) + fabric.row("little", 0.9)  # flip_effect is 1 - rate
    frame = leaderboard(held, "preregistered", metric="flip_effect").frame
    assert list(frame["row"]) == ["little", "much"]
    assert list(frame["rank"]) == [1, 2]


# --- typed outcomes ---------------------------------------------------------------------------------------------------


def test_cells_without_numbers_show_what_they_are(board: Board) -> None:
    held = line(board, "subg")
    assert held["status"] == "not applicable"
    assert held[["headline", "wga", "delta", "cost_s"]].isna().all()
    shown = cells(board, terse=False)
    text = shown.cells.set_index("row").loc["subg"]
    assert text["headline"].startswith("not applicable (")
    assert not any(character.isdigit() for character in "".join(text.drop("seeds")))
    assert "group 1 | conflicting is empty" in " ".join(shown.notes.values())
    terse = cells(board, terse=True).cells
    (text,) = [line for _, line in terse.iterrows() if line["row"].startswith("subg: not applicable (")]
    assert set(text.drop(["row", "seeds"])) == {"–"}


def test_a_row_with_some_seeds_says_so(board: Board) -> None:
    held = line(board, "dfr")
    assert (held["n"], held["planned"], held["status"]) == (3, 4, "3 done, 1 failed")
    text = cells(board, terse=False).cells.set_index("row").loc["dfr"]
    assert text["seeds"].startswith("3/4 (")
    assert "failed (seed 3): ValueError: x_1 < 0" in held["reason"]


def test_cells_never_run_are_counted(fabric: Fabric) -> None:
    board = leaderboard(fabric.row("a", 0.9), "preregistered", seeds=range(6))
    assert line(board, "a")["planned"] == 6
    assert "not run (seed 4, 5)" in line(board, "a")["reason"]


def test_a_suite_of_failures_alone_is_a_table(fabric: Fabric) -> None:
    found = boards(fabric.row("a", status=Status.SKIPPED, reason="no data"))
    assert [board.track for board in found] == ["preregistered", "tuned"]
    assert "skipped" in to_markdown(found[0])


# --- what never shares a table ----------------------------------------------------------------------------------------


def test_tracks_suites_sources_and_models_stand_apart(tmp_path: Path) -> None:
    both = ("preregistered", "tuned")
    real = Fabric(tmp_path / "a", suite="skin", source="real", tracks=both).row("erm", 0.4)
    stand_in = Fabric(tmp_path / "b", suite="skin", source="stand-in").row("erm", 0.8)
    large = Fabric(tmp_path / "c", suite="skin", source="real", model="resnet18").row("erm", 0.6)
    found = boards([*real, *stand_in, *large])
    assert [(b.source, b.model, b.track) for b in found] == [
        ("real", "mlp(hidden=8)", "preregistered"),
        ("real", "mlp(hidden=8)", "tuned"),
        ("stand-in", "mlp(hidden=8)", "preregistered"),
        ("real", "resnet18", "preregistered"),
    ]
    assert [len(b.frame) for b in found] == [1, 1, 1, 1]
    assert "STAND-IN" in found[2].title
    assert "STAND-IN" not in found[0].title
    assert len(set(stems(found))) == 4
    assert stems(found)[2].endswith("-stand-in")


def test_tuned_track_shows_its_own_numbers(entries: list[Entry]) -> None:
    one, two = boards(entries)
    assert line(two, "jtt")["cost_s"] == 2.25
    assert line(one, "jtt")["cost_s"] == 1.25
    assert line(two, "jtt")["wga"] != line(one, "jtt")["wga"]


def test_one_row_with_two_settings_is_two_rows(fabric: Fabric) -> None:
    fabric.row("jtt", 0.5)
    fabric.row("jtt", 0.8, identity={"config": {"alignment": 5}})
    frame = boards(everything(fabric.root).entries)[0].frame
    assert len(frame) == 2
    assert frame["label"].str.match(r"jtt #[0-9a-f]{6}").all()
    assert (frame["n"] == 4).all()


def test_best_on_test_stands_apart(entries: list[Entry]) -> None:
    record = next(e.record for e in entries if e.record.row == "jtt")
    best = best_on_test(record)
    assert best is not None
    assert best.test["wga"] == max(c.test["wga"] for c in record.candidates)
    apart = best_on_test_board(entries)
    assert apart is not None
    assert apart.track == "test_selected"
    assert "chosen on test" in apart.title
    tuned = leaderboard(entries, "tuned")
    assert line(apart, "jtt")["wga"] >= line(tuned, "jtt")["wga"]
    assert "rank" not in apart.frame


# --- formats ----------------------------------------------------------------------------------------------------------


def table_cells(text: str, separator: str, end: str = "") -> list[list[str]]:
    """Data lines of a Markdown or LaTeX table, split and stripped."""
    lines = [part.removesuffix(end) for part in text.splitlines() if separator in part and part.strip()]
    return [[cell.strip() for cell in re.split(rf"(?<!\\){re.escape(separator)}", part)] for part in lines]


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"[+-]?\d+\.\d+", text.replace("$-$", "-"))]


def test_numbers_survive_every_format(board: Board) -> None:
    csv = pd.read_csv(io.StringIO(to_csv(board)))
    pd.testing.assert_series_equal(csv["wga"], board.frame["wga"], check_exact=True)
    markdown_lines = [c[1:-1] for c in table_cells(to_markdown(board), "|") if len(c) > 3]
    latex_lines = table_cells(to_latex(board), "&", r" \\")
    heads = markdown_lines[0]
    assert heads == [head.replace(r"$\Delta$", "Δ") for head in latex_lines[0]]
    for lines in (markdown_lines[2:], latex_lines[1:]):
        data = [dict(zip(heads, cell, strict=True)) for cell in lines if cell[heads.index("seeds")]]
        assert len(data) == len(csv)
        for text, (_, row) in zip(data, csv.iterrows(), strict=True):
            if not row["n"]:
                assert "not applicable" in text["headline"]
                continue
            for head, key in (("headline", "headline"), ("WGA", "wga"), ("AGA", "aga"), ("ΔWGA", "delta")):
                expected = [round(row[f"{key}{end}"], 3) + 0.0 for end in ("", "_low", "_high")]
                assert numbers(text[head]) == expected
            assert numbers(text["cost s"]) == [round(row["cost_s"], 1)]
    terse = cells(board, terse=True).cells
    shown = [re.sub(r"(?<!\d)\.", "0.", v) for v in terse["WGA"] if v != "–"]
    ends = csv[["wga", "wga_low", "wga_high"]].dropna().round(3) + 0.0
    assert [numbers(v) for v in shown] == ends.to_numpy().tolist()


def test_an_interval_is_shown_by_its_ends_wherever_it_stands(tmp_path: Path) -> None:
    board = leaderboard(Fabric(tmp_path, seeds=(0, 1)).row("a", 0.95), "preregistered")
    held = board.frame.iloc[0]
    assert held["headline_high"] == 1.0  # cut where accuracies end: nothing symmetric about it
    both = f".{1000 * held['headline_low']:03.0f},1.000]"
    for width in (80, 120, 160):
        assert ("[" + both in printed(board, width)) or width == 80
        assert "±" not in printed(board, width)
    assert f"[0{both}".replace(",", ", ") in to_markdown(board)
    assert f"[0{both}".replace(",", ", ") in to_latex(board)
    assert not any("±" in text for text in (*LEGEND, to_markdown(board), to_latex(board)))
    assert any("[low, high]" in text for text in LEGEND)


def test_special_characters_are_escaped(board: Board) -> None:
    assert r"JTT 100\% \& co\_*" in to_latex(board)
    assert r"x\_1 \textless{} 0" in to_latex(board)
    assert r"JTT 100% & co\_\*" in to_markdown(board)
    assert r"group 1 \| conflicting" in to_markdown(board)
    assert latex(r"a\b~^{}#$") == r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\{\}\#\$"
    assert latex("-0.1 [-.2, x-3]") == "$-$0.1 [$-$.2, x-3]"
    assert markdown("a_b|c\nd _e_ <b> `f`") == r"a_b\|c d \_e\_ \<b> \`f\`"


def test_every_markdown_line_has_all_columns(board: Board) -> None:
    lengths = {len(c) for c in table_cells(to_markdown(board), "|") if len(c) > 3}
    assert len(lengths) == 1


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_table_fits_and_keeps_names_readable(board: Board, width: int) -> None:
    text = printed(board, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    flat = re.sub(r"\s+", "", text)
    assert all(name in flat for name in ("rrr@ground_truth", "oracle(simulated)", "notapplicable"))
    assert "lvlm_va" in text
    assert "random_verdicts(" in text
    assert "of=oracle)" in text
    if width == 120:
        assert all(
            head in text for head in ("rank", "headline", "ΔWGA", "gain", "flip", "lift", "supervision", "cost s")
        )


def test_a_wide_table_keeps_a_row_on_a_line(board: Board) -> None:
    text = printed(board, 160)
    assert re.search(r"jtt|JTT.*\.\d{3} \[\.\d{3},\.\d{3}\]", text)
    assert re.search(r"lvlm_va@oracle +4/4 +\.\d{3} \[[^\]]+\] +\.\d{3} \[", text)
    assert not re.search(r"lvlm_va@oracle +4/4 +\.\d{3} \[", printed(board, 100))


def test_a_long_reason_is_printed_in_full(fabric: Fabric) -> None:
    reason = "MNIST is not here: " + " ".join(f"mirror{k}.example/train-images-idx3-ubyte.gz" for k in range(12))
    board = leaderboard(fabric.row("a", 0.5) + fabric.row("b", status=Status.SKIPPED, reason=reason), "preregistered")
    assert len(reason) > 400
    assert reason in line(board, "b")["reason"]
    assert reason in to_markdown(board)


def test_folding_loses_nothing() -> None:
    name = "lvlm_va@noisy_oracle(fpr=0.13,fnr=0.13)"
    for width in (10, 20, 26, 60):
        parts = fold(name, width).split("\n")
        assert "".join(part.strip() for part in parts) == name
    assert max(map(len, fold(name, 22).split("\n"))) <= 22


def test_supervision_shows_what_was_consumed(board: Board) -> None:
    held = line(board, "rrr@ground_truth")
    assert held["supervision"] == "labels, masks 40"
    assert held["codes"] == "L M40"
    assert held["ledger"] == "labels/train 100; masks/train 40"


def test_markup_in_a_label_is_text(fabric: Fabric) -> None:
    board = leaderboard(fabric.row("a", 0.5, label="[red]x[/red]"), "preregistered")
    assert "[red]x[/red]" in printed(board, 120)


def test_no_torch_is_imported() -> None:
    code = "import leaderboard.tables, leaderboard.render, leaderboard.command, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
