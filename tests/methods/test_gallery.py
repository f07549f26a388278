"""The gallery: the same failures for every row, drawn from the cell's own models, on a page that opens offline."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from builds import vabench
from page_toys import Opened, browser  # noqa: F401
from PIL import Image

from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS
from leaderboard.gallery import Gallery, read_galleries
from methods.lvlm_va.gallery import CLEARED, FLAGGED, HEAT, SILENT, enlarged, heat, judged, to_rgb

WORDS = ["methods=[erm,rrr@oracle,lvlm_va@oracle]", "seeds=1", "workers=1", "suites=[decoy_digits(rho=1.0)]"]
WORDS += ["recipes.base.epochs=15", "recipes.finetune.steps=60", "alignment.n=60", "metrics.attribution_images=50"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its galleries, and a page with them."""
    folder = tmp_path_factory.mktemp("gallery")
    for words in (
        ["run", *WORDS],
        ["gallery", *WORDS, "--count", "3"],
        ["report", *WORDS, "--format", "html", "--gallery", "-o", "site"],
    ):
        done = vabench(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def galleries(root: Path) -> dict[str, Gallery]:
    found, damaged = read_galleries(root / "results")
    assert not damaged
    return {held.row: held for held in found.values()}


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_every_row_shows_the_same_failures(galleries: dict[str, Gallery]) -> None:
    erm, rrr = galleries["erm"], galleries["rrr@oracle"]
    assert len(erm.failures) == 3
    for one, other in zip(erm.failures, rrr.failures, strict=True):
        assert (one.id, one.label, one.picture, one.before) == (other.id, other.label, other.picture, other.before)
        assert not one.before.right
        assert one.before.said != one.label
        assert one.after == one.before  # ERM is the base model
    assert (erm.group, erm.wrong, erm.of) == (rrr.group, rrr.wrong, rrr.of)
    assert erm.group.startswith(erm.failures[0].label)
    assert 0 < erm.wrong <= erm.of
    assert "equal those of the stored cell" in rrr.note
    assert any(item.after.right for item in rrr.failures)


def test_only_rows_with_verdicts_show_some(galleries: dict[str, Gallery]) -> None:
    assert not galleries["erm"].verdicts
    held = galleries["lvlm_va@oracle"].verdicts
    assert len(held) == 3
    assert all(item.spurious + item.core > 0 and item.silent == 0 for item in held)


def test_the_wrong_answer_is_explained_by_the_decoy(galleries: dict[str, Gallery]) -> None:
    """At rho = 1 the base model reads the patch in the corner: most of the red lies there."""
    for item in galleries["erm"].failures:
        red = (pixels(item.before.attribution).astype(int) @ np.array([1, 0, -1])).clip(min=0)
        side = len(red) // 3
        corners = red[:side, :side].sum() + red[:side, -side:].sum() + red[-side:, :side].sum()
        assert corners + red[-side:, -side:].sum() > 0.5 * red.sum()


def test_drawing() -> None:
    image = np.full((1, 4, 4), 100, dtype=np.uint8)
    maps = np.zeros((4, 4))
    assert (heat(image, maps) == 100).all()
    maps[0, 0], maps[1, 1], maps[2, 2] = 2.0, 1.0, -5.0
    drawn = heat(image, maps)
    assert tuple(drawn[0, 0]) == HEAT
    assert (drawn[2, 2] == 100).all()
    assert 100 < drawn[1, 1, 0] < HEAT[0]
    labels = np.full((4, 4), -1)
    labels[0], labels[1], labels[2] = 0, 1, 2
    drawn = judged(image, labels, np.array([SPURIOUS, RELEVANT, NO_VERDICT]))
    assert [tuple(drawn[k, 0]) for k in range(3)] == [FLAGGED, CLEARED, SILENT]
    assert (drawn[3] == 100).all()
    assert tuple(judged(image, labels, None)[0, 0]) == SILENT
    assert enlarged(to_rgb(image)).shape == (96, 96, 3)


def test_a_file_that_is_no_gallery_is_named_and_left_out(root: Path, tmp_path: Path) -> None:
    path = next((root / "results/gallery").iterdir())
    values = json.loads(path.read_bytes())
    (tmp_path / "gallery").mkdir()
    for k, change in enumerate(({"format": "x"}, {"extra": 1}, {"failures": [{"picture": "javascript:alert(1)"}]})):
        (tmp_path / f"gallery/{k}.json").write_text(json.dumps({**values, **change}), encoding="utf-8")
    (tmp_path / "gallery/whole.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "gallery/torn.json").write_text("{", encoding="utf-8")
    found, damaged = read_galleries(tmp_path)
    assert list(found) == [values["id"]]
    assert len(damaged) == 4
    assert all("is no gallery" in line for line in damaged)


def test_report_says_when_there_is_nothing_to_show(root: Path, tmp_path: Path) -> None:
    results = f"results={root / 'results'}"
    done = vabench("report", results, "--format", "md", "--gallery", "-o", str(tmp_path), cwd=root)
    assert "add --format html" in done.stderr
    (root / "results/gallery").rename(tmp_path / "away")
    done = vabench("report", results, "--format", "html", "--gallery", "-o", str(tmp_path / "x"), cwd=root)
    (tmp_path / "away").rename(root / "results/gallery")
    assert "vabench gallery` draws them" in done.stderr


def test_only_cells_that_were_run_are_drawn(root: Path, tmp_path: Path) -> None:
    done = vabench("gallery", *WORDS, f"results={tmp_path / 'gone'}", cwd=root)
    assert "there is no results folder" in done.stderr
    assert not (tmp_path / "gone").exists()
    (tmp_path / "empty").mkdir()
    done = vabench("gallery", *WORDS, f"results={tmp_path / 'empty'}", cwd=root)
    assert done.stdout.count("missing, not drawn") == 3
    assert not (tmp_path / "empty/gallery").exists()


def test_without_the_flag_the_page_holds_no_image(root: Path, tmp_path: Path) -> None:
    done = vabench("report", f"results={root / 'results'}", "--format", "html", "-o", str(tmp_path), cwd=root)
    assert done.returncode == 0
    assert "data:image" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_expanded_in_a_browser_without_a_network(browser, root: Path) -> None:  # noqa: F811
    opened = Opened(browser, root / "site/index.html", 390)
    sheet = opened.page
    sheet.locator("details.sections > summary").first.click()
    row = sheet.locator("details.row", has_text="lvlm_va@oracle").first
    row.locator("> summary").click()
    row.locator("details.gallery > summary").click()
    assert row.locator("img").count() == 3 * 5 + 3 * 2
    assert row.locator("img").evaluate_all("all => all.every(i => i.alt)")
    row.locator("img").last.scroll_into_view_if_needed()
    sheet.wait_for_function(
        "[...document.images].filter(i => i.offsetParent).some(i => i.naturalWidth === 96 || i.naturalWidth === 112)"
    )
    assert sheet.evaluate("document.documentElement.scrollWidth") <= 390
    serious = [v for v in Axe().run(sheet).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in serious]
    assert not opened.complaints
    assert not opened.requests
    opened.close()
