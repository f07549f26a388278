from __future__ import annotations

import pandas as pd
import pytest

from harness.errors import ConfigError
from harness.study import Place
from harness.study_place import place_sentences, placed

PLACE = Place(row="critic", at={"a": "measured.a", "b": "measured.b"}, measure="score")


def frame(bonus: float = 0.0, at: float = 0.25) -> pd.DataFrame:
    """score = 1 - a - 2 b + seed / 10 on a grid; a critic measured at (at, 0.5) that scores `bonus` above the plane."""
    lines = [
        {"a": a, "b": b, "seed": s, "score": 1 - a - 2 * b + s / 10, "role": "row", "row": "grid"}
        for a in (0.0, 0.2, 1.0)
        for b in (0.0, 1.0)
        for s in range(3)
    ]
    lines += [
        {
            "seed": s,
            "score": 1 - at - 1.0 + s / 10 + bonus,
            "role": "reference",
            "row": "critic",
            "measured.a": at,
            "measured.b": 0.5,
        }
        for s in range(3)
    ]
    return pd.DataFrame(lines).assign(suite="toy", track="tuned")


def test_a_row_on_the_plane_is_predicted_exactly() -> None:
    (line,) = placed(frame(), [PLACE]).to_dict("records")
    assert line["difference"] == pytest.approx(0, abs=1e-12)
    assert line["predicted"] == pytest.approx(1 - 0.25 - 1 + 0.1)
    assert (line["seeds"], line["outside"]) == (3, 0)


def test_a_row_above_the_plane_shows_by_how_much() -> None:
    found = placed(frame(bonus=0.3), [PLACE])
    (line,) = found.to_dict("records")
    assert line["difference"] == pytest.approx(0.3)
    assert (line["low"], line["high"]) == pytest.approx((0.3, 0.3))
    assert "critic at a 0.250, b 0.500 is predicted at" in place_sentences(found)[0]


def test_a_measurement_outside_the_grid_is_moved_to_its_edge_and_counted() -> None:
    (line,) = placed(frame(at=1.5), [PLACE]).to_dict("records")
    assert line["outside"] == 3
    assert line["predicted"] == pytest.approx(1 - 1 - 1 + 0.1)


def test_holes_and_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="holes"):
        placed(frame().drop(index=[0]), [PLACE])
    with pytest.raises(ConfigError, match=r"no axis or measure 'measured\.c'"):
        placed(frame(), [Place(row="critic", at={"a": "measured.c"}, measure="score")])
