"""The audit page: clusters and their exemplars, what a saved answer changes in a run, and text that stays text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_toys import toy_alignment, toy_context
from page_toys import Opened, browser  # noqa: F401
from typer.testing import CliRunner

from harness.cell import CellRun
from harness.cli import _collect, app
from harness.config import load_config
from harness.plan import plan
from harness.record import Status
from harness.stages import Stages
from harness.store import Store
from methods.lvlm_va import audit
from methods.lvlm_va.alignment_sets import judged_cell
from methods.lvlm_va.distilled import Distillation, Distilled, Findings


def blobs(sizes: list[int], spread: float = 1.0) -> Findings:
    """Flagged segments in blobs far apart, one to the right of the other; the same number of others is not flagged.

    Segment k of its blob lies k * k * spread to the right of the blob's first: no two lie equally far from a centre.
    """
    places = [1e6 * blob + spread * k * k for blob, size in enumerate(sizes) for k in range(size)]
    features = np.array([[x, 0.0] for x in places] + [[-1e6, float(k)] for k in range(len(places))])
    count = len(features)
    where = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], 1)
    verdicts = torch.zeros(count, 1, dtype=torch.int8)
    verdicts[: len(places)] = 1
    return Findings(where, features, verdicts, Distillation(np.ones(count), np.ones(count)))


def test_eight_clusters_of_three_exemplars() -> None:
    sizes = [4, 11, 6, 9, 5, 7, 10, 8]
    found = blobs(sizes)
    grouped = audit.group(found, toy_context())
    assert len(grouped.members) == audit.CLUSTERS == 8
    assert [len(part) for part in grouped.members] == sorted(sizes, reverse=True)
    assert grouped.looks == 24
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for part, shown in zip(grouped.members, grouped.exemplars, strict=True):
        assert sorted(part.tolist()) in [list(range(a, b)) for a, b in pairwise(starts)]
        distance = np.abs(found.features[part, 0] - found.features[part, 0].mean())
        ordered = part[np.argsort(distance)]
        assert shown == (ordered[0], ordered[len(part) // 2], ordered[-1])  # typical, middling, least typical


@pytest.mark.filterwarnings("error")  # k-means asked for more clusters than there are looks would warn
@pytest.mark.parametrize(
    ("sizes", "spread", "exemplars"),
    [
        ([], 1.0, []),
        ([1], 1.0, [1]),
        ([1] * 5, 1.0, [1] * 5),  # five segments: five clusters of one
        ([3, 2], 0.0, [3, 2]),  # two looks only, though there are five segments
        ([40] * 3, 0.0, [3] * 3),
        ([1] * 9, 1.0, [2, *[1] * 7]),  # nine looks in eight clusters
    ],
)
def test_fewer_segments_make_fewer_clusters(sizes: list[int], spread: float, exemplars: list[int]) -> None:
    found = blobs(sizes, spread)
    grouped = audit.group(found, toy_context())
    assert [len(shown) for shown in grouped.exemplars] == exemplars
    members = np.concatenate(grouped.members) if grouped.members else np.zeros(0)
    assert sorted(members.tolist()) == list(range(sum(sizes)))


def test_the_identity_follows_images_verdicts_and_clusters() -> None:
    found, index = blobs([3, 3]), torch.arange(12)
    grouped = audit.group(found, toy_context())
    names = {audit.identity(index, found, grouped), audit.identity(index.flip(0), found, grouped)}
    names.add(audit.identity(index, found, audit.Clusters(grouped.members[::-1], grouped.exemplars[::-1])))
    verdicts = found.verdicts.clone()
    verdicts[-1] = 1
    names.add(audit.identity(index, Findings(found.where, found.features, verdicts, found.distillation), grouped))
    assert len(names) == 4
    assert audit.identity(index, blobs([3, 3]), audit.group(blobs([3, 3]), toy_context())) in names


# -- the page ---------------------------------------------------------------------------------------------------------

WORDS = ["quickstart", "suites=[decoy_digits(rho=1.0)]", "recipes.base.epochs=15", "recipes.finetune.steps=20"]
WORDS += ["metrics.attribution_images=20", "device=cpu"]
ROW = "lvlm_va@distilled(of=noisy_oracle(fpr=0.1,fnr=0.1),trees=10{})"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*WORDS, f"results={tmp_path_factory.mktemp('results')}"]


def masks_of(words: list[str], row: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Record, mask pixels and verdicts of a run."""
    config = load_config(words[0], [*words[1:], f"methods=['{row}']", "seeds=[0]"])
    (cell,) = plan(config)
    record, arrays = CellRun(cell, Stages(Store(config.results), torch.device("cpu"))).run()
    assert record.status is Status.DONE, record.reason + record.trace
    return record, np.unpackbits(arrays["masks/packed"], axis=1)[:, : 28 * 28], arrays["masks/verdicts"]


def test_rejected_clusters_leave_the_masks_and_nothing_else(
    browser: Any,  # noqa: F811
    words: list[str],
    tmp_path: Path,
) -> None:
    """Answered with the keyboard on the page of `vabench audit`, saved, and run by the row that names the file."""
    _collect()
    path = tmp_path / "audit.html"
    done = CliRunner().invoke(app, ["audit", *words, "--row", ROW.format(""), "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert "24 segments to look at" in done.output
    shown = Opened(browser, path)
    page = shown.page
    assert page.locator("fieldset").count() == 8
    assert [box.locator("img").count() for box in page.locator("fieldset").all()] == [3] * 8
    assert all(page.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth >= 192)"))
    rejected = {0, 3}
    for k in range(8):
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        if k in rejected:
            page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.name") == f"cluster-{k}"
        assert page.evaluate("document.activeElement.value") == ("reject" if k in rejected else "accept")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "submit"
    saved = shown.save(tmp_path, "button")
    shown.close()
    assert (shown.complaints, shown.requests) == ([], [])

    judged = judged_cell(words[0], words[1:], row=ROW.format(""), seed=0)
    task = judged.task()
    alignment = judged.alignment(task)
    assert isinstance(judged.source, Distilled)
    found = judged.source.examine(alignment, task, judged.context)
    grouped = audit.group(found, judged.context)
    assert saved.name == f"audit-{audit.identity(alignment.index, found, grouped)[:12]}.json"
    before, masks, verdicts = masks_of(words, ROW.format(""))
    after, new_masks, new_verdicts = masks_of(words, ROW.format(f",confirmed={saved}"))
    labels = alignment.segments.labels.flatten(1).numpy()
    for cluster in rejected:
        for row in grouped.members[cluster]:
            image, segment = found.where[row].tolist()
            assert masks[image][labels[image] == segment].all()
            masks[image][labels[image] == segment] = 0
            verdicts[image, segment] = 0
    assert np.array_equal(new_masks, masks)
    assert np.array_equal(new_verdicts, verdicts)
    assert masks.any()
    facts = after.audit["distilled"]["confirmed"]
    assert (facts["clusters"], facts["rejected"]) == (8, sorted(rejected))
    assert facts["rate_with"] < facts["rate_without"]
    ledgers = [record.tracks["preregistered"].ledger for record in (after, before)]
    assert [ledger.get("person_looks") for ledger in ledgers] == [24, None]


def small_page(path: Path, title: str = "a row", facts: dict[str, str] | None = None) -> audit.Clusters:
    """A page about three flagged segments of toy images, two of which look alike."""
    alignment, _ = toy_alignment(6)
    found = blobs([2, 1], spread=0.0)
    return audit.write_audit(path, alignment, found, toy_context(), title=title, facts=facts or {})


def test_an_unanswered_cluster_holds_the_save_back(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    assert small_page(tmp_path / "audit.html").looks == 3
    shown = Opened(browser, tmp_path / "audit.html", width=390)
    page = shown.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("legend").all_inner_texts() == ["Cluster 1: 2 segments", "Cluster 2: 1 segment"]
    assert [box.locator("img").count() for box in page.locator("fieldset").all()] == [2, 1]
    page.locator("input[value=accept]").first.check()
    downloads: list[Any] = []
    page.on("download", lambda download: downloads.append(download))
    page.click("button")
    page.wait_for_timeout(200)
    assert downloads == []
    page.locator("input[value=reject]").nth(1).check()
    answer = audit.read_confirmation(shown.save(tmp_path, "button"))
    assert (answer["rejected"], answer["clusters"]) == ([1], 2)
    shown.close()
    assert (shown.complaints, shown.requests) == ([], [])


def test_hostile_text_is_shown(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    title = "</script><script>window.owned = 1</script><!-- <img src=x onerror='window.owned = 2'> \u2028 & &lt;"
    fact = '</title></dd><iframe src="https://attacker.test/"></iframe>" onload="window.owned = 3'
    small_page(tmp_path / "audit.html", title, {fact: fact})
    shown = Opened(browser, tmp_path / "audit.html")
    page = shown.page
    assert page.locator("h1").text_content() == title
    assert page.title() == title
    assert page.locator("dt").first.text_content() == page.locator("dd").first.text_content() == fact
    assert page.evaluate("window.owned") is None
    assert page.locator("script").count() == 1
    assert page.locator("iframe").count() == 0
    for name in ("accept", "reject"):
        page.locator(f"input[value={name}]").nth(int(name == "reject")).check()
    assert audit.read_confirmation(shown.save(tmp_path, "button"))["rejected"] == [1]  # the script still works
    shown.close()
    assert (shown.complaints, shown.requests) == ([], [])
