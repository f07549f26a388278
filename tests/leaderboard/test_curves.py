"""Training curves behind a row: what is drawn, what is said of it, and what is said where there is none."""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from fabricated import Fabric
from page_toys import Opened, browser  # noqa: F401

from harness.record import Curve
from leaderboard.collect import Entry
from leaderboard.command import write_report
from leaderboard.compare import gather
from leaderboard.curves import HEIGHT, WIDTH, Drawn, curves
from leaderboard.page import to_html
from leaderboard.tables import boards

BASE = Curve(steps=400, loss=[2.0 - k / 25 for k in range(40)])


def drawn(cells: list[Entry]) -> tuple[Drawn, ...]:
    (row,) = gather(cells, "preregistered")
    return curves(row)


def of(fabric: Fabric, *held: Curve | None) -> Drawn:
    """The row's own figure, a curve per seed."""
    cells = [fabric.cell("rwg", seed, 0.5, curve=curve, base_curve=BASE) for seed, curve in enumerate(held)]
    own, base = drawn(cells)
    assert base.words.startswith("400 steps; 2 at first, 1.2 half way, 0.44 at the end")
    return own


def points(path: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"[ML](\d+) (\d+)", path)]


def test_a_line_per_seed_and_their_mean(tmp_path: Path) -> None:
    own = of(Fabric(tmp_path), Curve(steps=3, loss=[4.0, 2.0, 0.0]), Curve(steps=3, loss=[2.0, 0.0, 0.0]))
    assert own.words == "3 steps; 3 at first, 1 half way, 0 at the end, mean over 2 seeds"
    assert points(own.seeds[0]) == [(0, 0), (WIDTH // 2, HEIGHT // 2), (WIDTH, HEIGHT)]
    assert points(own.seeds[1]) == [(0, HEIGHT // 2), (WIDTH // 2, HEIGHT), (WIDTH, HEIGHT)]
    assert points(own.mean)[0] == (0, round(HEIGHT / 4))


def test_different_lengths_have_no_mean_and_gaps_break_the_line(tmp_path: Path) -> None:
    own = of(Fabric(tmp_path), Curve(steps=3, loss=[4.0, None, 1.0]), Curve(steps=2, loss=[2.0, -4.0]), None)
    assert own.words == "2 to 3 steps; none of seed 2"
    assert own.mean == ""
    assert own.seeds[0].count("M") == 2
    assert max(y for path in own.seeds for _, y in points(path)) == HEIGHT  # losses below zero stay inside


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (None, "not recorded"),
        (Curve(steps=0, loss=[]), "none: the model was not trained by the common training loop"),
        (Curve(steps=2, loss=[None, None]), "never a finite number"),
    ],
)
def test_no_curve_is_said_and_nothing_drawn(tmp_path: Path, curve: Curve | None, said: str) -> None:
    own = of(Fabric(tmp_path), curve, curve)
    assert (own.words, own.seeds, own.mean) == (said, (), "")
    assert said in to_html(boards([Fabric(tmp_path / "x").cell("jtt", 0, 0.5, curve=curve)]))


def test_one_seed_one_point_and_a_flat_zero_are_drawn(tmp_path: Path) -> None:
    own = of(Fabric(tmp_path), Curve(steps=1, loss=[0.0]))
    assert own.seeds == (f"M0 {HEIGHT}h2",)
    assert own.words == "1 step; 0 at first, 0 half way, 0 at the end"


def test_sections_draw_them_once_and_stay_small(tmp_path: Path, browser: object) -> None:  # noqa: F811
    fabric = Fabric(tmp_path, seeds=tuple(range(10)))
    cells = fabric.row("erm", 0.3, "reference", base_curve=BASE, curve=Curve(steps=0, loss=[]))
    plain = len(to_html(boards([*cells, *fabric.row("rwg", 0.5), *fabric.row("jtt", 0.5)])))
    falling = Curve(steps=90, loss=[1 / (k + 1) for k in range(40)])
    cells += fabric.row("rwg", 0.5, curve=falling, base_curve=BASE)
    cells += fabric.row("jtt", 0.5, curve=falling, base_curve=BASE)
    found = boards(cells)
    text = to_html(found)
    assert text.count('class="curve"') == 6
    assert text.count("<use") == 3  # the base model's twice, and the one that both rows share
    assert len(text) - plain < 10_000
    assert all(f'id="{name}"' in text for name in re.findall(r'<use href="#([^"]+)"', text))
    write_report(found, tmp_path / "page", ("html",))
    opened = Opened(browser, tmp_path / "page/index.html", 390)
    opened.page.locator("details.sections > summary").first.click()
    opened.page.locator("details.row > summary").nth(1).click()
    figure = opened.page.locator("figure.curve").nth(2)
    assert (
        figure.inner_text()
        == "training loss: 90 steps; 1 at first, 0.0476 half way, 0.025 at the end, mean over 10 seeds"
    )
    box = opened.page.locator("figure.curve svg").nth(1).bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not [v for v in Axe().run(opened.page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not opened.complaints
    opened.close()
