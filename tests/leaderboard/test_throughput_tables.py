"""Timing records side by side: devices as columns, nothing unequal in one of them."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli import _collect, app
from harness.errors import ConfigError, DataError
from harness.throughput.record import Round, RowTiming, Setting, TimingRecord
from leaderboard.charts import throughput_bars
from leaderboard.page import to_html
from leaderboard.throughput import read_timings, speeds


def timed(gpu: str, rows: dict[str, list[float]], *, batch: int = 64, bad: bool = False) -> TimingRecord:
    setting = Setting(
        suite="stand_in",
        model="resnet18",
        image_shape=(3, 64, 64),
        classes=2,
        batch=batch,
        repair_batch=64,
        dtype="bfloat16",
        repair_dtype="bfloat16",
        recipes={},
        alignment={},
        device="cuda" if gpu else "cpu",
        threads=1,
        steps=20,
        images=64,
    )
    found = [
        RowTiming(
            row=row,
            setting=setting,
            warmup_s=1.0,
            rounds=[
                Round(number=k, rates={"train": [v]}, invalid="busy" * bad, peak_memory={"train": 2**30 + k})
                for k, v in enumerate(values)
            ],
        )
        for row, values in rows.items()
    ]
    hardware = {"processor": "EPYC", **({"gpu": {"name": gpu}} if gpu else {})}
    return TimingRecord(preset="p", source="stand-in", rows=found, wall_s=1.0, provenance={"hardware": hardware})


def test_devices_are_columns() -> None:
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    (table,) = speeds([timed("H100", {"erm": five, "rwg": five}), timed("", {"erm": [10.0] * 5})])
    assert list(table.wide.columns) == ["row", "H100 · train", "EPYC, 1 thread · train"]
    assert table.wide.iloc[0].tolist() == ["erm", "3 [1, 5]", "10 [10, 10]"]
    assert table.wide.iloc[1].tolist() == ["rwg", "3 [1, 5]", "–"]
    assert "stand_in (stand-in)" in table.title


def test_bars_of_rows_that_were_timed() -> None:
    five = [100.0, 101.0, 102.0, 103.0, 104.0]
    (table,) = speeds([timed("H100", {"erm": five, "rwg": five})])
    svg = throughput_bars(table)
    assert svg is not None
    assert all(word in svg for word in ("erm", "rwg", "H100", "Images per second"))
    assert "Figure: Throughput" in to_html([], timings=[table])
    (empty,) = speeds([timed("H100", {"erm": five}, bad=True)])
    assert throughput_bars(empty) is None
    assert "Figure: Throughput" not in to_html([], timings=[empty])


def test_unequal_settings_share_no_column() -> None:
    with pytest.raises(ConfigError, match=r"not timed alike \(batch 64 and 32\)"):
        speeds([timed("H100", {"erm": [1.0]}), timed("H100", {"rwg": [1.0]}, batch=32)])
    with pytest.raises(ConfigError, match="'erm' was timed twice on H100"):
        speeds([timed("H100", {"erm": [1.0]}), timed("H100", {"erm": [2.0]})])


def test_rows_without_a_valid_round_are_marked() -> None:
    (table,) = speeds([timed("", {"erm": [1.0, 2.0]}, bad=True)])
    assert "(!)" in table.wide.iloc[0, 1]
    assert any("no round" in note for note in table.notes)


def test_the_verb_and_the_page(tmp_path: Path) -> None:
    record = timed("<b>GPU</b>", {"erm": [1.0] * 5})
    (tmp_path / "throughput").mkdir()
    (tmp_path / "throughput" / "a.json").write_text(record.model_dump_json())
    (tmp_path / "throughput" / "other.json").write_text('{"what": "something else"}')
    assert read_timings(tmp_path) == [record]
    _collect()
    done = CliRunner().invoke(app, ["timings", str(tmp_path), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    (csv,) = (tmp_path / "out").glob("*.csv")
    assert pd.read_csv(csv)["median"].tolist() == [1.0]
    page = to_html([], timings=speeds([record]))
    assert "&lt;b&gt;GPU" in page
    assert "<b>GPU" not in page
    with pytest.raises(DataError, match="no timing records"):
        read_timings(tmp_path / "out")
