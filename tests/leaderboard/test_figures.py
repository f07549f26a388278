"""Figures of studies: both formats, the words that a reader needs, and marks where the numbers say so."""

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.study import Fit
from harness.study_table import Result, fit_exponents, summarise
from leaderboard import figures


def table(
    points: list[dict[str, Any]], rows: dict[str, float], references: dict[str, float], seeds: int
) -> pd.DataFrame:
    """Lines with known values: accuracy falls with x, seeds differ by 0.01, every row by its offset."""
    found = []
    for track in ("preregistered", "tuned"):
        for seed in range(seeds):
            head = {"suite": "toy", "track": track, "seed": seed, "status": "done", "base.headline": 0.5}
            for name, offset in rows.items():
                for point in points:
                    value = 0.8 + offset - 0.1 * np.log10(1 + point["x"]) + 0.01 * seed
                    cost = {"standalone.fit": 2.0 * (1 + point["x"]), "mu_lift": 10 * value}
                    line = {"row": name, "label": name.upper(), "role": "row", "headline": value, "wga": value / 2}
                    found.append({**head, **point, **line, **cost})
            for name, value in references.items():
                line = {"x": None, "z": None, "row": name, "label": name, "role": "reference", "headline": value}
                found.append({**head, **line, "wga": value / 2, "mu_lift": 10 * value, "standalone.fit": 1.0})
    return pd.DataFrame(found)


def result(seeds: int = 3, rows: dict[str, float] | None = None, fit: Fit | None = None) -> Result:
    points = [{"x": x, "z": z} for x in (1, 10, 100) for z in ("low", "high")]
    frame = table(points, rows or {"a": 0.0, "b": 0.05}, {"erm": 0.5}, seeds)
    measure = ["headline", "wga", "mu_lift", "standalone.fit"]
    fits = fit_exponents(frame[frame["role"] == "row"].assign(x1=lambda t: t["x"] + 1), fit) if fit else pd.DataFrame()
    return Result("toy", "a toy study", ["x", "z"], measure, frame, summarise(frame, ["x", "z"], measure), fits)


def check(files: dict[str, bytes], *words: str) -> str:
    assert set(files) == {"svg", "png"}
    assert files["png"].startswith(b"\x89PNG")
    assert len(files["png"]) > 10_000
    svg = files["svg"].decode()
    for word in words:
        assert word in svg, word
    return svg


@pytest.mark.parametrize("seeds", [1, 3])
def test_curve(seeds: int) -> None:
    options = {"x": "x", "title": "A title", "x_title": "lambda", "y_title": "accuracy", "column": "z"}
    words = ["A title", "lambda", "accuracy", "toy", f"{seeds} seed", "erm", "tuned"]
    check(figures.curve(result(seeds), y="headline", **options), *words, "A", "B")
    several = {"headline": "conflicting", "wga": "worst group"}
    check(figures.curve(result(seeds, {"a": 0.0}), y=["headline", "wga"], names=several, **options), *several.values())


@pytest.mark.parametrize("seeds", [1, 3])
def test_surface(seeds: int) -> None:
    held = result(seeds, {"a": 0.0})
    options = {"x": "x", "y": "z", "z": ["headline", "mu_lift"], "x_title": "rate", "names": {"headline": "score"}}
    svg = check(figures.surface(held, beats=["erm"], **options), "rate", "score", "mu_lift", "erm", "pre-registered")
    mean = held.means[(held.means["x"] == 10) & (held.means["track"] == "tuned")]["headline"].iloc[0]
    assert f"{mean:.3f}" in svg
    frames = svg.count("#D55E00")
    assert (frames > 0) == (seeds > 1)  # better than erm by far, but one seed proves nothing
    assert figures.surface(held, **options)["svg"].decode().count("#D55E00") == 0


def test_surface_frames_only_what_beats_the_row() -> None:
    held = result(4, {"a": -0.15})  # at x = 1 above erm, at x = 100 below it
    own = held.means[(held.means["track"] == "tuned")].rename(columns={"headline": "value"})
    wins = figures._wins(held.frame, own, "headline", "tuned", "toy", ["x", "z"], ["erm"])
    tuned = held.means[held.means["track"] == "tuned"]
    # erm does not vary over seeds, so the interval of the difference is that of the row itself
    assert wins == ((tuned["role"] == "row") & (tuned["headline_low"] > 0.5)).tolist()
    assert wins.count(True) == 4


def test_bars_keep_a_row_in_its_panel() -> None:
    options = {"x": "z", "y": "headline", "column": "x", "column_names": {"10": "ten"}, "x_title": "kind"}
    check(figures.bars(result(), **options), "kind", "ten", "low", "high", "A", "B", "erm")


def test_loglog_prints_the_fitted_exponent() -> None:
    held = result(fit=Fit(x="x1", y=("standalone.fit",)))
    held = Result(**{**vars(held), "frame": held.frame.assign(x1=held.frame["x"] + 1)})
    options = {"x": "x1", "y": ["standalone.fit"], "names": {"standalone.fit": "fitting"}, "y_title": "seconds"}
    check(figures.loglog(held, **options), "fitting: b = 1.00 [1.00, 1.00]", "seconds")


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="not among the study's measures"):
        figures.curve(result(), x="x", y="nothing")
    with pytest.raises(ValueError, match="there is no axis"):
        figures.bars(result(), x="z", y="headline", column="nothing")


def test_no_torch_and_altair_only_when_drawing() -> None:
    code = "import sys, leaderboard.figures; assert not {'torch', 'altair', 'vl_convert'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
