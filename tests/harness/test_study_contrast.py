from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from harness.errors import ConfigError
from harness.study import Contrast
from harness.study_contrast import contrasts, sentences


def frame() -> pd.DataFrame:
    """score = 1 - a + seed; a reference row at 0.25 + seed."""
    lines = [
        {"a": a, "b": b, "seed": s, "score": 1 - a + s, "role": "row", "row": "r", "label": "R"}
        for a in (0.0, 0.5)
        for b in ("x", "y")
        for s in range(4)
    ]
    lines += [
        {"a": None, "b": None, "seed": s, "score": 0.25 + s, "role": "reference", "row": "ref", "label": "ref"}
        for s in range(4)
    ]
    return pd.DataFrame(lines).assign(suite="toy", track="tuned")


def test_differences_are_paired_by_seed() -> None:
    within = Contrast(measure="score", axis="a", **{"from": 0.0, "to": 0.5})
    outside = Contrast(measure="score", against="ref", where={"a": 0.5, "b": ["x"]})
    found = contrasts(frame(), ["a", "b"], [within, outside])
    np.testing.assert_allclose(found["difference"], [-0.5, 0.25])  # the seeds' own spread of 1.3 cancels
    np.testing.assert_allclose(found["low"], [-0.5, 0.25])
    np.testing.assert_allclose(found["high"], [-0.5, 0.25])
    assert list(found["seeds"]) == [4, 4]
    assert list(found["over"]) == ["b", ""]
    assert "a = 0.5 minus a = 0.0, mean over b = -0.500 [" in sentences(found)[0]
    assert "minus ref = +0.250 [" in sentences(found)[1]
    assert "-0.500 [-0.500, -0.500] (4 seeds, paired)" in sentences(found)[0]


def test_a_seed_that_one_side_lacks_is_left_out() -> None:
    part = frame().drop(index=[0, 4])  # seed 0 at a = 0
    within = Contrast(measure="score", axis="a", **{"from": 0.0, "to": 0.5})
    assert list(contrasts(part, ["a", "b"], [within])["seeds"]) == [3]


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        (Contrast(measure="score", axis="a", **{"from": 0.0, "to": 0.7}), "no results where a is"),
        (Contrast(measure="scor", axis="a", **{"from": 0.0, "to": 0.5}), "no record has the measure"),
        (Contrast(measure="score", axis="c", **{"from": 0, "to": 1}), "no axis 'c'"),
        (Contrast(measure="score", against="other"), "no results where row is"),
        (Contrast(measure="score", against="ref", where={"c": 1}), "no axis 'c'"),
        (Contrast(measure="score", against="ref", row="Q"), "no results where label is"),
    ],
)
def test_what_the_study_does_not_have_is_named(contrast: Contrast, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        contrasts(frame(), ["a", "b"], [contrast])


def test_of_a_part_what_it_cannot_say_is_left_out() -> None:
    within = Contrast(measure="score", axis="a", **{"from": 0.0, "to": 0.5})
    beyond = Contrast(measure="score", axis="a", **{"from": 0.0, "to": 0.7})
    told: list[str] = []
    found = contrasts(frame(), ["a", "b"], [within, beyond], told)
    assert list(found["contrast"]) == [str(within)]
    why = f"contrast '{beyond}': no results where a is [0.7]; there are: 0.0, 0.5"
    assert told == [f"toy, tuned: left out: {why}"]
    with pytest.raises(ConfigError, match="no record has the measure"):  # no value that was cut: a mistake
        contrasts(frame(), ["a", "b"], [within.model_copy(update={"measure": "scor"})], told)
    nothing = contrasts(frame(), ["a", "b"], [beyond], told)
    assert sentences(nothing) == []
    assert list(nothing) == list(found)
    twice = pd.concat([frame(), frame().assign(track="preregistered")])
    told.clear()
    contrasts(twice, ["a", "b"], [beyond], told)
    assert len(told) == 1
    assert told[0].startswith("toy, tuned; toy, preregistered: left out: ")


def test_a_contrast_is_one_kind_or_the_other() -> None:
    for wrong in ({}, {"axis": "a"}, {"axis": "a", "from": 0, "to": 1, "against": "ref"}):
        with pytest.raises(ValidationError, match="either"):
            Contrast(measure="score", **wrong)
