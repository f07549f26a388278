"""The HTML page: the numbers of the other formats, strangers' text as text, and a browser that uses it offline."""

import re
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from fabricated import Fabric
from page_toys import Opened, browser  # noqa: F401
from read_back import Tables, compare

from harness.record import Status
from leaderboard import charts
from leaderboard.collect import Entry
from leaderboard.command import write_report
from leaderboard.page import inline, to_html
from leaderboard.tables import Board, boards

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def fill(root: Path, suite: str, shift: float = 0.0, source: str = "synthetic") -> list[Entry]:
    """Every block, a failure, a skipped row, and a row whose name is markup."""
    fabric = Fabric(root, suite=suite, source=source, n=400)
    masks = {"labels/train": 100.0, "masks/train": 30.0}
    cells = fabric.row("erm", 0.3, "reference")
    cells += fabric.row("rwg", 0.55 + shift, supervision=("labels", "train_groups"))
    cells += fabric.row("jtt", 0.45 - shift)
    cells += fabric.row("rrr@person", 0.7, "method", masks="person", supervision=("labels", "masks"), ledger=masks)
    cells += fabric.row("lvlm_va@oracle", 0.8, "oracle", masks="oracle", supervision=("labels", "masks"), ledger=masks)
    cells += fabric.row("rrr@all_ones", 0.35, "control", masks="all_ones")
    cells += fabric.row(EVIL, 0.5, label=EVIL)
    cells += fabric.row("dfr", None, status=Status.SKIPPED, reason="needs the key <b>ABC</b>")
    cells += fabric.row("caipi", None, status=Status.NOT_APPLICABLE, reason="base model not biased")
    return cells


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Board]:
    root = tmp_path_factory.mktemp("page")
    cells = fill(root, "isic_like", source="real") + fill(root, "chest_like", 0.1)
    cells += fill(root, "phantom", source="stand-in")
    return boards(cells)


@pytest.fixture(scope="module")
def page(found: list[Board], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written")
    write_report(found, path, ("html", "csv"))
    return path / "index.html"


def test_all_formats_hold_the_same_numbers(found: list[Board], page: Path) -> None:
    assert compare(page.read_text(), found) > 80


def test_text_from_strangers_is_text(found: list[Board], page: Path) -> None:
    text = page.read_text()
    assert EVIL not in text
    assert "<b>ABC</b>" not in text
    assert Tables(text).tags.isdisjoint({"img", "b", "iframe", "object"})
    assert text.count("<script") == 1
    assert EVIL in Tables(text).tables[0][1]  # and it is shown, as text


def test_the_same_records_give_the_same_file(found: list[Board], page: Path) -> None:
    assert to_html(found) == to_html(found)
    assert page.stat().st_size < 1_000_000


def test_average_ranks_leave_stand_ins_out(found: list[Board], page: Path) -> None:
    text = page.read_text()
    overall = text[text.index("All suites") : text.index('id="t0"')]
    assert "isic_like" in overall
    assert "chest_like" in overall
    assert "phantom" not in overall
    assert "separate no two" in overall or "told apart" in overall


def test_stand_ins_come_last_and_say_so(page: Path) -> None:
    text = page.read_text()
    assert text.index("phantom · pre") > max(text.index("isic_like · pre"), text.index("chest_like · pre"))
    assert "Stand-in data: nothing here says anything about real images." in text


def test_pareto_front_is_of_ranked_rows(found: list[Board]) -> None:
    assert list(charts.pareto([1, 2, 2, 3], [0.5, 0.4, 0.6, 0.6])) == [True, False, True, False]
    frame = pd.DataFrame({"block": ["control", "method"]})
    assert list(charts.pareto([1, 2], [0.9, 0.5], frame)) == [False, True]
    assert set(charts.draw(found[0])) == {"cost", "seeds", "groups"}  # these records lack the slopes' two accuracies


def test_inline_figures_take_the_colours_of_the_page(found: list[Board]) -> None:
    svg = inline(charts.draw(found[0])["seeds"], "p")
    assert 'fill="white"/>' not in svg
    assert "currentColor" in svg
    assert 'role="' not in svg
    assert all(name.startswith("p-") for name in re.findall(r'id="([^"]+)"', svg))


def test_a_grid_of_simulated_errors_is_a_surface(found: list[Board], tmp_path: Path) -> None:
    assert "surface" not in charts.draw(found[0])  # one oracle is no grid
    fabric = Fabric(tmp_path, suite="grid", n=400)
    cells = fabric.row("erm", 0.3, "reference")
    for fpr in (0, 0.13):
        for fnr in (0, 0.3):
            source = f"noisy_oracle(fpr={fpr},fnr={fnr})"
            cells += fabric.row(f"lvlm_va@{source}", 0.8 - fpr - fnr / 2, "oracle", masks=source)
    (board,) = boards(cells)
    svg = charts.draw(board)["surface"]
    shown = [row.mean("wga") for row in board.rows if row.head.mask_source]
    assert len(shown) == 4
    assert all(f">{value:.3f}<" in svg for value in shown)
    assert "WGA under a critic that errs" in to_html([board])


def test_figures_are_written_as_svg_and_png(found: list[Board], tmp_path: Path) -> None:
    written = write_report(found[:1], tmp_path, ("figures",))
    assert {path.name.rpartition("-")[2] for path in written} >= {"cost.svg", "cost.png", "groups.svg"}
    assert (tmp_path / next(p.name for p in written if p.suffix == ".png")).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("width", [1440, 390])
def test_in_a_browser_without_a_network(browser, page: Path, width: int) -> None:  # noqa: F811
    opened = Opened(browser, page, width)
    sheet = opened.page
    names = (
        "() => [...document.querySelectorAll('#t0 [data-block=baseline] .line:not([hidden])')].map(l => l.dataset.row)"
    )

    head = sheet.locator("#t0 thead th", has_text=re.compile("^WGA$"))
    head.locator("button").focus()
    sheet.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    down = sheet.evaluate(names)
    sheet.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    up = sheet.evaluate(names)
    numbers = 3  # rwg, jtt and the evil one; skipped and not applicable rows stay below, whatever the direction
    assert down[:numbers] == up[:numbers][::-1]
    assert set(down[numbers:]) == set(up[numbers:]) == {"dfr", "caipi"}

    sheet.get_by_label("train groups").uncheck()
    assert "rwg" not in sheet.evaluate(names)
    sheet.get_by_role("checkbox", name="controls").uncheck()
    assert sheet.locator("#t0 tbody[data-block=control] .block").is_hidden()
    sheet.get_by_label("Search").fill("jtt")
    assert sheet.evaluate(names) == ["jtt"]
    assert sheet.locator("#count").inner_text().startswith("3 of ")  # one in each of three tables
    sheet.get_by_role("button", name="Show all").click()
    sheet.wait_for_function("document.querySelectorAll('.line[hidden]').length === 0")

    sheet.locator("#t0 .line a", has_text="jtt").click()
    section = sheet.locator("details.row", has_text="jtt").first
    assert section.evaluate("e => e.open")
    assert "WGA by seed" in section.inner_text()
    for summary in sheet.locator("details.figures > summary, details.sections > summary").all()[:2]:
        if not summary.evaluate("e => e.parentNode.open"):
            summary.click()
    assert sheet.evaluate("document.documentElement.scrollWidth") <= width

    serious = [v for v in Axe().run(sheet).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in serious]
    assert not opened.complaints
    assert not opened.requests
    opened.close()
