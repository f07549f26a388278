"""The review page in a browser: what a person overrules there is what the next run penalises, and nothing else."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from critic_toys import RuleClient
from page_toys import Opened, browser  # noqa: F401
from typer.testing import CliRunner

from harness.cell import CellRun
from harness.cli import _collect, app
from harness.commands import read_words
from harness.config import load_config
from harness.lvlm.client import Failure, Query, Reply, parse
from harness.lvlm_info import ClientInfo
from harness.plan import plan
from harness.record import Record, Status
from harness.registry import registry
from harness.stages import Stages
from harness.store import Store
from methods.lvlm_va.alignment_sets import judged_cell
from methods.lvlm_va.person import read_reviews
from methods.lvlm_va.review import plain, write_review

IMAGES = 12
SMALL = ["suites=[decoy_digits(rho=1.0)]", "recipes.base.epochs=15", f"alignment.n={IMAGES}"]
SMALL += ["recipes.finetune.steps=20", "metrics.attribution_images=20", "device=cpu"]
ROW = "lvlm_va@embedded"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a command line with a results folder that all tests share, so that one base model is trained."""
    return ["quickstart", *SMALL, f"results={tmp_path_factory.mktemp('results')}"]


@pytest.fixture(scope="module")
def written(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the embedded critic, written by the command."""
    _collect()
    path = tmp_path_factory.mktemp("page") / "review.html"
    done = CliRunner().invoke(app, ["review", *words, "--row", ROW, "--seed", "0", "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert f"{IMAGES} of {IMAGES} images to review" in done.output
    return path


@pytest.fixture
def opened(browser: Any, written: Path) -> Iterator[Opened]:  # noqa: F811
    shown = Opened(browser, written)
    yield shown
    shown.close()
    assert shown.complaints == []
    assert shown.requests == []


def run(words: list[str]) -> tuple[Record, dict[str, Any]]:
    """Record and arrays of the one cell that the words plan."""
    preset, overrides = read_words(words)
    (cell,) = plan(load_config(preset, overrides))
    stages = Stages(Store(load_config(preset, overrides).results), torch.device("cpu"))
    record, arrays = CellRun(cell, stages).run()
    assert record.status is Status.DONE, record.reason + record.trace
    return record, dict(arrays)


def content_of(path: Path) -> dict[str, Any]:
    """What the page holds before anybody answered."""
    held = re.search(r'id="review">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert held is not None
    return json.loads(held.group(1))


def place(image: int, segment: int) -> str:
    return f'[data-position="{image}"] li[data-segment="{segment}"]'


def choose_three(images: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Two spurious verdicts and a relevant one, of three images: (position, segment)."""
    chosen: list[tuple[int, int]] = []
    for wanted in (1, 1, 0):
        taken = {position for position, _ in chosen}
        chosen.append(
            next(
                (image["position"], int(name))
                for image in images
                for name, verdict in image["base"].items()
                if verdict == wanted and image["position"] not in taken
            )
        )
    return chosen


def test_three_overruled_verdicts_change_three_segments_of_the_masks(
    opened: Opened, words: list[str], written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mouse, Enter on the focused button, and the number key overrule; the command on the page runs the saved file."""
    page, before = opened.page, content_of(written)
    mouse, enter, key = three = choose_three(before["sets"][0]["images"])
    page.click(f"{place(*mouse)} [data-answer=overrule]")
    page.focus(f"{place(*enter)} [data-answer=overrule]")
    page.keyboard.press("Enter")
    page.click(f'[data-position="{key[0]}"] h2')
    page.keyboard.press(page.get_attribute(place(*key), "data-key"))
    assert page.locator('[data-answer=overrule][aria-pressed="true"]').count() == 3
    assert page.inner_text("#count") == f"0 of {IMAGES} images reviewed, 3 verdicts overruled"
    assert page.inner_text(f"{place(*mouse)} .verdict") == "spurious relevant, overruled"
    assert page.inner_text(f"{place(*key)} .verdict") == "relevant spurious, overruled"
    command = shlex.split(page.locator("code").inner_text())
    saved = opened.save(tmp_path, "#save")

    expected = json.loads(json.dumps(before))
    for image in expected["sets"][0]["images"]:
        for position, segment in three:
            if image["position"] == position:
                image["overruled"] = [segment]
                image["verdicts"][str(segment)] = 1 - image["base"][str(segment)]
    assert json.loads(saved.read_text()) == expected

    first, old = run([*words, f"methods=[{ROW}]", "seeds=[0]"])
    monkeypatch.chdir(tmp_path)  # where the page's command finds the file that it names
    assert command[:2] == ["vabench", "run"]
    second, new = run(command[2:])
    preset, overrides = read_words(words)
    judged = judged_cell(preset, overrides, row=ROW, seed=0)
    labels = judged.alignment(judged.task()).segments.labels.numpy()
    assert np.array_equal(old["masks/index"], new["masks/index"])
    masks, verdicts = np.unpackbits(old["masks/packed"], axis=1)[:, : labels[0].size], old["masks/verdicts"].copy()
    masks = masks.reshape(labels.shape).astype(bool)
    for k, (position, segment) in enumerate(three):
        region = labels[position] == segment
        assert region.any()
        assert (masks[position][region] == (k < 2)).all()  # on before, or off before
        masks[position] ^= region
        verdicts[position, segment] ^= 1
    assert np.array_equal(new["masks/packed"], np.packbits(masks.reshape(IMAGES, -1), axis=1))
    assert np.array_equal(new["masks/verdicts"], verdicts)
    logits = [name for name in old if name.startswith("test/")]
    assert any(not np.array_equal(old[name], new[name]) for name in logits)  # another model comes out

    said = second.audit["person"]["train"]
    judged_by_critic = sum(len(image["base"]) for image in before["sets"][0]["images"])
    assert said == {"verdicts": 3, "overruled": 3, "unreviewed": judged_by_critic - 3, "of": ROW}
    consumed, of_critic = second.tracks["preregistered"].ledger, first.tracks["preregistered"].ledger
    assert consumed["person_verdicts/train"] == 3
    assert consumed["unreviewed_verdicts/train"] == judged_by_critic - 3
    assert {kind: consumed.get(kind) for kind in of_critic} == of_critic  # the critic's answers are not free
    assert {"person", "lvlm", "text"} <= set(second.tracks["preregistered"].supervision)


def test_every_control_is_reached_and_pressed_from_the_keyboard(opened: Opened) -> None:
    page = opened.page
    order = page.evaluate("[...document.querySelectorAll('input, button')].filter((e) => e.offsetParent).length")
    seen = []
    for _ in range(order):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("[...document.querySelectorAll('input, button')].indexOf(document.activeElement)"))
    assert seen == list(range(order))  # every one of them, in reading order
    card = page.locator(".card").first
    assert card.locator("button").count() == 2 * card.locator("li").count() + 1
    button = card.locator("[data-answer=agree]").first
    button.focus()
    for pressed in ("true", "false"):  # the same answer again takes it back
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == pressed
    assert card.locator(".state").inner_text() == "not reviewed"
    page.keyboard.press("2")
    page.keyboard.press("a")
    assert card.locator(".state").inner_text() == "reviewed"
    assert card.locator('[data-answer=overrule][aria-pressed="true"]').count() == 1
    assert card.locator('[data-answer=agree][aria-pressed="true"]').count() == card.locator("li").count() - 1
    assert page.inner_text("#count") == f"1 of {IMAGES} images reviewed, 1 verdict overruled"
    assert page.evaluate("document.activeElement === document.querySelectorAll('.card')[1]")  # and goes on
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.card')[0]")
    page.uncheck("#keyboard")
    page.keyboard.press("2")
    assert card.locator('[data-answer=overrule][aria-pressed="true"]').count() == 1


def test_a_card_that_a_filter_hides_takes_no_answer(opened: Opened) -> None:
    page = opened.page
    page.click("h2 >> nth=0")
    page.keyboard.press("a")
    page.click("h2 >> nth=0")
    page.check("#only-open")
    assert page.locator(".card").first.is_hidden()
    page.keyboard.press("1")
    assert page.inner_text("#count") == f"1 of {IMAGES} images reviewed, 0 verdicts overruled"
    page.keyboard.press("j")
    page.keyboard.press("1")
    assert page.inner_text("#count") == f"1 of {IMAGES} images reviewed, 1 verdict overruled"


LEAVE = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"  # false: the browser would ask first


def test_a_saved_review_goes_on_where_it_was(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    assert page.evaluate(LEAVE) is True
    page.locator("[data-answer=overrule]").nth(1).click()
    page.locator("[data-rest]").nth(2).click()
    assert page.evaluate(LEAVE) is False
    answers, count = page.locator(".verdict").all_text_contents(), page.inner_text("#count")
    saved = opened.save(tmp_path, "#save")
    assert page.inner_text("#message") == f"Saved as {saved.name}."
    assert page.evaluate(LEAVE) is True
    page.reload()
    assert page.locator(".verdict").all_text_contents() != answers
    page.locator("[data-answer=agree]").nth(9).click()
    page.once("dialog", lambda dialog: dialog.accept())  # "Replace the answers ...?": yes
    page.set_input_files("#load", saved)
    page.get_by_text("Loaded.", exact=True).wait_for()
    assert page.evaluate(LEAVE) is True  # what is shown now is what the file holds
    assert page.locator(".verdict").all_text_contents() == answers
    assert page.inner_text("#count") == count
    again = opened.save(tmp_path / "again", "#save")
    assert again.read_text() == saved.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "This file is not JSON; nothing was loaded."),
        ('{"format": "vabench review", "sets": [{}]}', "This is not a file that a review page saved; nothing was"),
        ('{"format": "vabench review", "sets": []}', "This file reviews other images or another seed; nothing was"),
    ],
)
def test_a_wrong_file_costs_no_answer(opened: Opened, tmp_path: Path, content: str, message: str) -> None:
    page, wrong = opened.page, tmp_path / "wrong.json"
    wrong.write_text(content)
    page.locator("[data-answer=overrule]").first.click()
    page.once("dialog", lambda dialog: dialog.dismiss())  # "Replace the answers ...?": no
    page.set_input_files("#load", wrong)
    assert page.inner_text("#message") == ""
    page.once("dialog", lambda dialog: dialog.accept())
    page.set_input_files("#load", wrong)  # the same file again is still a choice
    page.get_by_text(message).wait_for()
    assert page.locator('[data-answer=overrule][aria-pressed="true"]').count() == 1
    assert page.evaluate(LEAVE) is False  # they are still not saved


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off(browser: Any, written: Path, width: int) -> None:  # noqa: F811
    shown = Opened(browser, written, width)
    assert shown.page.evaluate("document.documentElement.scrollWidth") == width
    for button in shown.page.locator(".card >> nth=0 >> button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 36  # a finger finds it
    shown.close()


# -- what a language model wrote --------------------------------------------------------------------------------------

ATTACKS = (
    "</script><script>window.owned = 1</script>",
    '<img src=x onerror="window.owned = 2"><svg onload="window.owned = 3"></svg>',
    "</blockquote></article></main><style>* { display: none }</style><!-- ",
    '" autofocus onfocus="window.owned = 4" x="\'{{ 7 * 7 }}{% raw %}&lt;b&gt;',
    '<iframe src="https://attacker.test/"></iframe><link rel=stylesheet href="https://attacker.test/x.css">',
)
CONTROLS = "a\x00b\x07c\x1b[31md\x7fe\x85f\u202eg\u2066h\ud800i\u00a0\u200dj\tk"
CLEANED = "a\\x00b\\x07c\\x1b[31md\\x7fe\\x85f\\u202eg\\u2066h\\ud800i\u00a0\u200dj\tk"


class Hostile(RuleClient):
    """Writes markup and control characters into its critiques, and into the reason of its failure on one image."""

    info = ClientInfo("hostile", "writes markup (simulated)", f"{__name__}:Hostile")

    def _reply(self, query: Query) -> Reply:
        if query.images and (len(self.asked) == 1 or query.decoding.attempt):
            return Failure("timeout", ATTACKS[0] + CONTROLS)
        if query.schema is None:
            verdicts = super()._reply(query)
            return parse(query, "\n".join((*ATTACKS, CONTROLS, verdicts.text)))  # type: ignore[union-attr]
        return super()._reply(query)


def test_control_characters_become_visible() -> None:
    assert plain(CONTROLS) == CLEANED
    assert plain("one\r\ntwo\n") == "one\ntwo\n"
    assert plain("ß 手 ש 😀") == "ß 手 ש 😀"


def test_a_hostile_critique_is_text(
    browser: Any,  # noqa: F811
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry("clients")._extra, "hostile", Hostile.info)
    preset, overrides = read_words(words)
    judged = judged_cell(preset, overrides, row="lvlm_va@critic(client=hostile,record=false,size=64)", seed=0)
    write_review(tmp_path / "review.html", judged, ("train",), words=words)
    shown = Opened(browser, tmp_path / "review.html")
    page = shown.page
    assert page.locator(".card").count() == IMAGES
    texts = page.locator(".critique").all_text_contents()
    assert len(texts) == IMAGES - 1
    for text in texts:
        for attack in ATTACKS:
            assert attack in text
        assert CLEANED in text
    failure = page.locator(".failure")
    assert failure.count() == 1
    assert failure.text_content() == f"The critic gave no usable verdict here: timeout: {ATTACKS[0]}{CLEANED}"
    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.querySelectorAll('main script, main iframe, main style, main a, link').length") == 0
    assert page.locator("script").count() == 2
    told = page.locator(".told").first.text_content()
    assert re.fullmatch(r"The critic was told: relevant: a handwritten .* spurious: a small square of grey .*", told)

    # The image without a verdict: the person gives some, and the file that the page saves is a file that a run reads.
    card = page.locator(".card", has=failure)
    assert card.locator(".verdict").all_text_contents() == ["no verdict"] * card.locator("li").count()
    card.locator('[data-answer="1"]').first.click()
    card.locator('[data-answer="0"]').nth(1).click()
    assert page.inner_text("#count") == f"0 of {IMAGES} images reviewed, 0 verdicts overruled, 2 added"
    (entry,) = read_reviews(shown.save(tmp_path, "#save")).values()
    added = [image for image in entry["images"] if image["added"]]
    assert [sorted(image["verdicts"].values()) for image in added] == [[0, 1]]
    shown.close()
    assert shown.complaints == []
    assert shown.requests == []


def test_the_page_refuses_markup_that_would_run(opened: Opened) -> None:
    """The second wall: even markup that got into the page unescaped runs nothing and loads nothing."""
    page, refused = opened.page, []
    page.on("requestfailed", lambda request: refused.append(request.failure))
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.owned = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend",
          '<img src="https://attacker.test/a.png" onerror="window.owned = 2">');
    }""")
    page.wait_for_timeout(100)
    assert page.evaluate("window.owned") is None
    assert opened.complaints
    assert all("Content Security Policy" in text for text in opened.complaints)
    assert refused == ["csp"]  # the policy, not the missing network
    opened.complaints.clear()
    opened.requests.clear()


# -- the file ---------------------------------------------------------------------------------------------------------


def test_simulated_verdicts_say_so_and_a_limit_keeps_the_rest(words: list[str], tmp_path: Path) -> None:
    preset, overrides = read_words(words)
    judged = judged_cell(preset, overrides, row="lvlm_va@oracle", seed=0)
    whole = write_review(tmp_path / "a.html", judged, ("train", "val"))
    few = write_review(tmp_path / "b.html", judged, ("train", "val"), limit=3)
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "These verdicts are simulated" in text
    assert text.count("<article") == few.shown == 6
    assert whole.shown == whole.images == few.images > IMAGES
    assert whole.content == few.content == content_of(tmp_path / "b.html")
    assert [entry["split"] for entry in few.content["sets"]] == ["train", "val"]
    assert few.content["sets"][0]["consumed"]["masks/train"] == IMAGES
    assert not re.search(r"https?:|<link|@import|src=\"(?!data:)", text)
    write_review(tmp_path / "c.html", judged, ("train", "val"), limit=3)
    assert (tmp_path / "c.html").read_text(encoding="utf-8") == text
