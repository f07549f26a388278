"""What a repair costs: three parts that sum to the cost, tokens and calls from the ledger, and the front."""

from pathlib import Path

import pytest
from fabricated import Fabric

from harness.record import Candidate, Record, Status, TrackResult
from leaderboard.collect import everything
from leaderboard.costs import costs, parts
from leaderboard.tables import boards


def cell(base: float, masks: float, fits: list[float], *, scratch: bool = False) -> Record:
    """A record whose tracks cost what `harness.cell` would charge."""
    record = Record(
        id="a" * 64, status=Status.DONE, suite="s", suite_source="synthetic", row="r", method="m", mask_source=None,
        block="method", model="m", seed=0, config={}, identity={}, standalone={"base": base},
    )  # fmt: skip
    record.candidates = [Candidate(config={}, seconds=seconds) for seconds in fits]
    own = 0.0 if scratch else base
    for track, tried in (("preregistered", fits[:1]), ("tuned", fits[1:])):
        record.tracks[track] = TrackResult(  # type: ignore[index]
            candidate=0, rule="x", supervision=[], ledger={}, cost_s=own + masks + sum(tried), metrics={}
        )
    return record


@pytest.mark.parametrize("track", ["preregistered", "tuned"])
@pytest.mark.parametrize("scratch", [False, True])
def test_parts_sum_to_the_cost(track: str, scratch: bool) -> None:
    record = cell(2.0, 0.0 if scratch else 3.0, [0.5, 0.25, 0.75], scratch=scratch)
    found = parts(record, record.tracks[track], track)  # type: ignore[index]
    assert found == pytest.approx(
        {
            "base_s": 0.0 if scratch else 2.0,
            "masks_s": 0.0 if scratch else 3.0,
            "fit_s": 0.5 if track == "preregistered" else 1.0,
        }
    )


def test_our_boards_costs_add_up() -> None:
    for board in boards(everything("leaderboard/results/decoys").entries):
        frame = costs(board)
        assert len(frame) > 20
        total = frame[["base_s", "masks_s", "fit_s"]].sum(axis=1)
        assert total.to_numpy() == pytest.approx(frame["cost_s"].to_numpy(), rel=1e-9)
        assert (frame[["base_s", "masks_s", "fit_s"]] >= -1e-9).all(axis=None)
        by_row = frame.set_index("row")
        assert by_row.loc["lvlm_va@embedded", "calls"] >= 500  # one per image of the alignment set, more on val
        assert by_row.loc["lvlm_va@embedded", "tokens"] > 50_000
        assert by_row["calls"].drop([row for row in by_row.index if "embedded" in row]).isna().all()
        assert by_row.loc["rrr@oracle", "masks_s"] > by_row.loc["erm_continue", "masks_s"]
        assert set(frame.loc[frame["on_front"], "block"]) <= {"baseline", "method", "oracle"}


def test_the_front_is_what_no_cheaper_row_beats(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path, n=400)
    cells = fabric.row("erm", 0.3, "reference") + fabric.row("rwg", 0.5) + fabric.row("jtt", 0.4)
    (board,) = boards(cells)
    frame = costs(board).set_index("row")
    assert frame.loc["rwg", "on_front"]
    assert not frame.loc["erm", "on_front"]
    assert len(costs(board)) == 3
