"""Distilling a critic: what it repairs, what it leaves, when it abstains, and what a person can check of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_toys import ToySegments, toy_alignment, toy_context, toy_mlp, toy_task
from sklearn.metrics import roc_auc_score

from harness.errors import ConfigError, NotApplicable
from harness.masks import AlignmentSet, MaskSet
from harness.registry import registry
from harness.spec import parse_spec
from harness.supervision import Supervision, Task
from methods.lvlm_va import audit
from methods.lvlm_va.alignment import LVLMVA
from methods.lvlm_va.distilled import Distilled, Permuted, distil, gate_z
from methods.lvlm_va.segment_features import feature_names, segment_features
from methods.lvlm_va.verdicts import NoisyOracle, Oracle

IMAGES, EACH = 200, 6
IMAGE = np.arange(IMAGES).repeat(EACH)


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [1200, 5] and truth: one segment of an image in a tight cluster of its own, the others spread out."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(IMAGES * EACH) % EACH == 0).astype(np.int64)
    features = rng.normal(size=(len(truth), 5))
    features[truth == 1] = [3.0, -3.0, 0.0, 2.0, 0.0] + 0.2 * features[truth == 1]
    return features, truth


def noisy(truth: np.ndarray, rate: float, seed: int = 0) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(len(truth)) < rate, 1 - truth, truth)


def rates(flagged: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return float(flagged[truth == 0].mean()), float(1 - flagged[truth == 1].mean())


@pytest.mark.parametrize(("error", "fnr_after"), [(0.0, 0.02), (0.13, 0.05), (0.3, 0.45)])
def test_random_errors_are_repaired(error: float, fnr_after: float) -> None:
    features, truth = world()
    found = distil(features, noisy(truth, error), IMAGE, trees=30)
    assert not found.abstained
    assert found.z > 4
    fpr, fnr = rates(found.p >= 0.7, truth)
    assert fpr <= 0.01
    assert fnr <= fnr_after
    assert abs(found.low - error) < 0.06  # the median estimates the false-positive rate
    assert -0.05 < found.high - (1 - error) < 0.2  # the top estimates 1 - FNR; being a top, it overshoots


def test_systematic_errors_pass() -> None:
    """The limit of the method: false alarms that follow appearance are learned like anything else."""
    features, truth = world()
    bright = (features[:, 4] > np.quantile(features[truth == 0, 4], 0.87)) & (truth == 0)
    found = distil(features, np.where(bright, 1, truth), IMAGE, trees=30)
    assert not found.abstained
    assert (found.p >= 0.7)[bright].mean() > 0.7


def chance(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(100 + seed)
    if kind == "whole images":
        return (rng.random(IMAGES) < 0.3)[IMAGE].astype(np.int64)
    if kind == "one per image":
        return (np.arange(EACH) == rng.integers(0, EACH, IMAGES)[:, None]).astype(np.int64).ravel()
    return (rng.random(len(IMAGE)) < 0.3).astype(np.int64)


@pytest.mark.parametrize("kind", ["independent", "whole images", "one per image"])
def test_a_chance_critic_is_not_used(kind: str) -> None:
    """On invented features; test_distilled_gate.py does it on real segments."""
    features, _ = world()
    drawn = [distil(features, chance(kind, seed), IMAGE, trees=5, seed=seed) for seed in range(10)]
    assert all(found.abstained.startswith("critic uninformative") for found in drawn)
    assert np.std([found.z for found in drawn]) > 0.3  # z moves: it is measured, not fixed


def test_gate_has_unit_deviation_where_segments_of_an_image_fail_together() -> None:
    """Scores that know nothing, both constant within an image up to noise: a plain Mann-Whitney z would be too wide."""
    rng, z, plain = np.random.default_rng(0), [], []
    fold = (np.arange(IMAGES) % 5)[IMAGE]
    for _ in range(300):
        scores = rng.random(IMAGES)[IMAGE] + 0.01 * rng.random(len(IMAGE))
        verdicts = (rng.random(IMAGES) < 0.3)[IMAGE].astype(np.int64)
        auc, value = gate_z(scores, verdicts, IMAGE, fold)
        z.append(value)
        ones = int(verdicts.sum())
        plain.append((auc - 0.5) / np.sqrt((len(IMAGE) + 1) / (12 * ones * (len(IMAGE) - ones))))
    assert abs(np.mean(z)) < 0.25
    assert 0.85 < np.std(z) < 1.15
    assert np.std(plain) > 2


def test_gate_agrees_with_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(1)
    scores, verdicts = rng.integers(0, 20, 300) / 20, rng.integers(0, 2, 300)
    auc, _ = gate_z(scores, verdicts, np.arange(300), np.zeros(300, dtype=np.int64))
    assert auc == pytest.approx(roc_auc_score(verdicts, scores))
    assert gate_z(verdicts.astype(float), verdicts, np.arange(300), np.zeros(300, dtype=np.int64))[1] > 10
    assert gate_z(-verdicts.astype(float), verdicts, np.arange(300), np.zeros(300, dtype=np.int64))[1] < -10


def test_no_image_takes_part_in_its_own_prediction() -> None:
    features, truth = world()
    verdicts = noisy(truth, 0.2)
    changed = np.where(IMAGE == 17, 1 - verdicts, verdicts)
    one, other = (distil(features, v, IMAGE, trees=5, seed=3).raw for v in (verdicts, changed))
    assert np.array_equal(one[IMAGE == 17], other[IMAGE == 17])
    assert not np.array_equal(one, other)
    assert np.array_equal(one, distil(features, verdicts, IMAGE, trees=5, seed=3).raw)
    assert not np.array_equal(one, distil(features, verdicts, IMAGE, trees=5, seed=4).raw)


def test_anchors_are_the_median_and_the_top() -> None:
    features, truth = world()
    found = distil(features, noisy(truth, 0.13), IMAGE, trees=10)
    top = np.sort(found.raw)[-24:]  # 2 % of 1200
    assert found.low == pytest.approx(np.median(found.raw))
    assert found.high == pytest.approx(top.mean())
    expected = np.clip((found.raw - found.low) / (found.high - found.low), 0, 1)
    assert np.allclose(found.p, expected)


def test_missing_verdicts_are_predicted_and_not_fitted() -> None:
    features, truth = world()
    lost = np.random.default_rng(5).random(len(truth)) < 0.3
    verdicts = np.where(lost, -1, noisy(truth, 0.1))
    found = distil(features, verdicts, IMAGE, trees=30)
    fpr, fnr = rates((found.p >= 0.7)[lost], truth[lost])
    assert fpr <= 0.01
    assert fnr <= 0.1


@pytest.mark.parametrize(
    ("verdicts", "images", "reason"),
    [
        (np.zeros(1200, dtype=np.int64), IMAGE, "all verdicts are equal"),
        (np.ones(1200, dtype=np.int64), IMAGE, "all verdicts are equal"),
        (np.full(1200, -1), IMAGE, "all verdicts are equal"),
        ((np.arange(1200) < 19).astype(np.int64), IMAGE, "19 verdicts of the rarer kind"),
        (world()[1], IMAGE // 25, "8 images are too few for 5 folds"),
        (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), "all verdicts are equal"),
    ],
)
def test_degenerate_verdicts_abstain_with_the_reason(verdicts: np.ndarray, images: np.ndarray, reason: str) -> None:
    found = distil(world()[0][: len(verdicts)], verdicts, images, trees=2)
    assert reason in found.abstained


# -- features ---------------------------------------------------------------------------------------------------------


def hand_made(channels: int) -> tuple[torch.Tensor, torch.Tensor, ToySegments]:
    """One image, 8 high and 16 wide: segment 0 is a block of 2 x 4, segment 1 one pixel, segment 2 empty."""
    labels = torch.full((2, 8, 16), -1, dtype=torch.int8)
    labels[0, 2:4, 4:8] = 0
    labels[0, 7, 15] = 1
    images = torch.zeros(2, channels, 8, 16, dtype=torch.uint8)
    images[0, :, 2, 4:8], images[0, 0, 3, 4:8] = 255, 51
    maps = -torch.ones(2, 8, 16)
    maps[0, 2:4, 4:8], maps[0, 7, 15] = 1.0, 2.0
    return images, maps, ToySegments(labels, torch.zeros(2, 3))


def test_features_of_a_block() -> None:
    table, where = segment_features(*hand_made(1))
    assert where.tolist() == [[0, 0], [0, 1]]
    row = dict(zip(feature_names(1), table[0], strict=True))
    assert (row["x"], row["y"]) == (pytest.approx(6 / 16), pytest.approx(3 / 8))
    assert row["var_x"] == pytest.approx(1.25 / 256)
    assert row["var_y"] == pytest.approx(0.25 / 64)
    assert row["cov_xy"] == pytest.approx(0)
    assert row["area"] == pytest.approx(8 / 128)
    assert row["attribution_share"] == pytest.approx(0.8)
    assert row["pixel_mean"] == row["pixel_seen"] == pytest.approx(0.6)
    assert row["pixel_std"] == pytest.approx(0.4)
    assert dict(zip(feature_names(1), table[1], strict=True))["attribution_share"] == pytest.approx(0.2)


def test_features_weigh_by_attribution_and_need_none() -> None:
    images, maps, segments = hand_made(1)
    maps[0, 2, 4:8] = 3.0
    row = dict(zip(feature_names(1), segment_features(images, maps, segments)[0][0], strict=True))
    assert row["pixel_seen"] == pytest.approx((3 * 1 + 0.2) / 4)
    assert row["pixel_mean"] == pytest.approx(0.6)
    assert row["y"] == pytest.approx((3 * 2.5 + 3.5) / 4 / 8)
    without = segment_features(images, -torch.ones_like(maps), segments)[0]
    assert np.isfinite(without).all()
    assert without[0, :2] == pytest.approx([6 / 16, 3 / 8])


def test_features_of_colours_and_of_nothing() -> None:
    images, maps, segments = hand_made(3)
    table, _ = segment_features(images, maps, segments)
    row = dict(zip(feature_names(3), table[0], strict=True))
    assert [row[f"pixel_mean_{c}"] for c in range(3)] == pytest.approx([0.6, 0.5, 0.5])
    assert row["pixel_mean"] == pytest.approx(1.6 / 3)
    nothing = ToySegments(torch.full_like(segments.labels, -1), segments.share)
    assert segment_features(images, maps, nothing)[0].shape == (0, len(feature_names(3)))


# -- sources ----------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"trees": 20, "leaf": 5}
NOISY = "noisy_oracle(fpr=0.2,fnr=0.2)"


def ask(source: Any, seed: int = 0, n: int = 100) -> tuple[MaskSet, dict[str, Any], AlignmentSet, Task]:
    alignment, _ = toy_alignment(n=n, blank=3)
    task = toy_task(supervision=source.supervision | Supervision.LABELS)
    context = toy_context(seed)
    alignment.split = task.train
    return source.masks(alignment, task, context), context.notes, alignment, task


def test_source_repairs_a_noisy_critic_and_says_what_it_did() -> None:
    given, notes, alignment, task = ask(Distilled(NOISY, **SMALL))
    raw = ask(NoisyOracle(0.2, 0.2))[0].verdicts
    true = ask(Oracle())[0].verdicts
    assert given.verdicts is not None
    assert raw is not None
    assert true is not None
    assert torch.equal(given.verdicts == -1, ~alignment.segments.nonempty)
    assert int((raw[true == 0] == 1).sum()) > 20
    assert int((given.verdicts[true == 0] == 1).sum()) <= 2  # false alarms go; some true ones go with them
    assert int((given.verdicts != true).sum()) < int((raw != true).sum()) / 2
    facts = notes["distilled"]
    assert not facts["abstained"]
    assert facts["z"] > facts["gate"] == 4
    held = alignment.segments.nonempty
    assert facts["rate_before"] == pytest.approx(float((raw[held] == 1).double().mean()))
    assert facts["rate_after"] == pytest.approx(float((given.verdicts[held] == 1).double().mean()))
    assert task.ledger.as_dict()["masks/train"] == 100  # what the inner source reads is charged


@pytest.mark.parametrize(
    "of", [f"permuted(of={NOISY})", f"random_verdicts(of={NOISY})", "all_segments", "noisy_oracle(fpr=0,fnr=1)"]
)
def test_without_information_the_base_model_comes_back(of: str) -> None:
    given, notes, *_ = ask(Distilled(of, **SMALL))
    assert notes["distilled"]["abstained"]
    assert "critic uninformative" in notes["distilled"]["reason"]
    assert given.empty()
    assert given.verdicts is not None
    assert set(given.verdicts.unique().tolist()) == {-1, 0}
    base, context = toy_mlp(), toy_context()
    assert LVLMVA(LVLMVA.Config()).fit(toy_task(given), base, context) is base
    assert context.notes["abstained"]


def test_permuted_keeps_the_verdicts_and_loses_their_places() -> None:
    raw, (given, _, alignment, _) = ask(NoisyOracle(0.2, 0.2))[0].verdicts, ask(Permuted(NOISY))
    held = alignment.segments.nonempty
    assert raw is not None
    assert given.verdicts is not None
    assert torch.equal(given.verdicts[held].bincount(), raw[held].bincount())
    assert torch.equal(given.verdicts == -1, ~held)
    assert not torch.equal(given.verdicts, raw)
    assert torch.equal(given.verdicts, ask(Permuted(NOISY))[0].verdicts)  # type: ignore[arg-type]
    assert not torch.equal(given.verdicts, ask(Permuted(NOISY), seed=1)[0].verdicts)  # type: ignore[arg-type]
    agreement = float((given.verdicts[held] == raw[held]).double().mean())
    rate = float((raw[held] == 1).double().mean())
    assert abs(agreement - (rate**2 + (1 - rate) ** 2)) < 0.12


def test_specs_nest_and_carry_the_supervision() -> None:
    text = "distilled(of=permuted(of=noisy_oracle(fpr=0.3,fnr=0.3)),keep=0.6)"
    source = registry("mask_sources").create(parse_spec(text))
    assert source.supervision == Supervision.MASKS
    inner = source.params["of"]
    assert inner["name"] == "permuted"
    assert inner["params"]["of"] == {"name": "noisy_oracle", "params": {"fpr": 0.3, "fnr": 0.3}}
    assert (source.params["keep"], source.params["gate"]) == (0.6, 4.0)
    assert json.loads(json.dumps(source.params)) == source.params
    assert Distilled.info.simulated
    assert Distilled.info.file_params == ("confirmed",)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"of": "ground_truth"}, "gives masks only"),
        ({"trees": 0}, "trees is a whole number of at least 1, not 0"),
        ({"folds": 1}, "folds is a whole number of at least 2"),
        ({"keep": 0.0}, "keep is a probability"),
        ({"confirmed": "/nowhere/answer.json"}, "neither a file nor a folder"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distilled(**params)
    with pytest.raises(ConfigError, match="gives masks only"):
        Permuted("all_ones")


def test_a_source_without_verdicts_is_not_applicable() -> None:
    source = Distilled(NOISY, **SMALL)
    source.of = registry("mask_sources").create(parse_spec("all_ones"))
    with pytest.raises(NotApplicable, match="gave no verdicts"):
        ask(source)


# -- audit ------------------------------------------------------------------------------------------------------------


def page(path: Path, title: str = "a row", seed: int = 0) -> tuple[str, audit.Clusters, Any]:
    source = Distilled(NOISY, **SMALL)
    alignment, task = toy_alignment(n=100, blank=3)
    context = toy_context(seed)
    found = source.examine(alignment, task, context)
    grouped = audit.write_audit(path, alignment, found, context, title=title, facts={"Seed": "<0>"})
    return path.read_text(encoding="utf-8"), grouped, found


def answer(text: str, clusters: int, rejected: set[int]) -> dict[str, Any]:
    """What the page's button saves."""
    held = re.search(r"const answer = (\{.*?\});\n", text)
    assert held is not None
    answers = [{"cluster": k, "answer": "reject" if k in rejected else "accept"} for k in range(clusters)]
    return {**json.loads(held.group(1)), "clusters": answers}


def test_page_shows_every_cluster_and_needs_nothing_else(tmp_path: Path) -> None:
    text, grouped, found = page(tmp_path / "deep" / "audit.html")
    assert 1 <= len(grouped.members) <= audit.CLUSTERS
    flagged = found.verdicts[found.where[:, 0], found.where[:, 1]] == 1
    members = np.concatenate(grouped.members)
    assert sorted(members.tolist()) == flagged.nonzero().flatten().tolist()
    for part, shown in zip(grouped.members, grouped.exemplars, strict=True):
        assert len(shown) == min(3, len(part))
        assert set(shown) <= set(part.tolist())
    assert text.count('src="data:image/png;base64,') == grouped.looks
    assert text.count('value="reject"') == len(grouped.members)
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", text)  # random letters
    assert not re.search(r"https?:|//[a-z]|<link|@import|src=\"(?!data:)", rest)
    again = page(tmp_path / "again.html")[0]
    assert again == text


def test_page_escapes_everything(tmp_path: Path) -> None:
    text, *_ = page(tmp_path / "audit.html", title='</script><script>alert("x")</script>')
    assert "<script>alert" not in text
    assert "&lt;0&gt;" in text
    assert text.count("<script") == text.count("</script>") == 1


def test_rejected_clusters_are_dropped(tmp_path: Path) -> None:
    text, grouped, found = page(tmp_path / "audit.html")
    file = tmp_path / "answers" / "audit.json"
    file.parent.mkdir()
    file.write_text(json.dumps(answer(text, len(grouped.members), {0})), encoding="utf-8")
    for place in (file, file.parent):  # a file, or a folder with one answer per seed
        given, notes, _, task = ask(Distilled(NOISY, **SMALL, confirmed=str(place)))
        expected = found.verdicts.clone()
        rows, columns = found.where[torch.from_numpy(grouped.members[0])].unbind(1)
        expected[rows, columns] = 0
        assert torch.equal(given.verdicts, expected)  # type: ignore[arg-type]
        facts = notes["distilled"]["confirmed"]
        assert facts["rejected"] == [0]
        assert facts["rate_with"] < facts["rate_without"] == notes["distilled"]["rate_after"]
        assert task.ledger.as_dict()["person_looks"] == grouped.looks
    assert Supervision.PERSON in Distilled(NOISY, confirmed=str(file)).supervision
    assert Supervision.PERSON not in Distilled(NOISY).supervision


def test_an_answer_about_other_verdicts_is_refused(tmp_path: Path) -> None:
    text, grouped, _ = page(tmp_path / "audit.html")
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(answer(text, len(grouped.members), {0})), encoding="utf-8")
    with pytest.raises(ConfigError, match="confirms other verdicts"):
        ask(Distilled(NOISY, **SMALL, confirmed=str(file)), seed=1)
    with pytest.raises(ConfigError, match="confirms other verdicts"):
        ask(Distilled("oracle", **SMALL, confirmed=str(file)))


def test_broken_answers_are_refused(tmp_path: Path) -> None:
    text, grouped, _ = page(tmp_path / "audit.html")
    whole = answer(text, len(grouped.members), set())
    unanswered = [{**item, "answer": None} for item in whole["clusters"]]
    for number, content in enumerate(
        ["{", "[]", json.dumps({**whole, "format": "other"}), json.dumps({**whole, "clusters": unanswered})]
    ):
        file = tmp_path / f"{number}.json"
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="not a file that the audit page saved"):
            audit.find_confirmation(str(file), whole["identity"])


def test_page_of_a_critic_that_abstains_asks_nothing(tmp_path: Path) -> None:
    source = Distilled(f"permuted(of={NOISY})", **SMALL)
    alignment, task = toy_alignment(n=100)
    found = source.examine(alignment, task, toy_context())
    grouped = audit.write_audit(tmp_path / "a.html", alignment, found, toy_context(), title="t", facts={})
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert grouped.looks == 0
    assert "The critic abstained" in text
    assert "<form" not in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page in")
def test_button_saves_what_was_clicked(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    text, grouped, _ = page(tmp_path / "audit.html")
    count = len(grouped.members)
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto((tmp_path / "audit.html").as_uri())
        for k in range(count):
            assert shown.inner_text("#left") == f"{count - k} clusters have no answer yet"
            shown.locator("fieldset").nth(k).locator("input").nth(k % 2).check()
        assert shown.inner_text("#left") == ""
        with shown.expect_download() as download:
            shown.click("button")
        download.value.save_as(tmp_path / "saved.json")
        browser.close()
    assert json.loads((tmp_path / "saved.json").read_text()) == answer(text, count, set(range(1, count, 2)))


def test_command_writes_the_page_of_the_cell_that_runs(tmp_path: Path) -> None:
    """The answer to the page of `vabench audit` is taken by the run of the same row and seed, both tracks."""
    from typer.testing import CliRunner

    from harness.cell import CellRun
    from harness.cli import _collect, app
    from harness.config import load_config
    from harness.plan import plan
    from harness.record import Status
    from harness.stages import Stages
    from harness.store import Store

    _collect()
    row = "lvlm_va@distilled(of=noisy_oracle(fpr=0.1,fnr=0.1),trees=10{})"
    words = ["quickstart", "recipes.base.epochs=15", "recipes.finetune.steps=10", f"results={tmp_path}", "device=cpu"]
    done = CliRunner().invoke(app, ["audit", *words, "--row", row.format(""), "-o", str(tmp_path / "audit.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    clusters = text.count("<legend>")
    assert clusters == audit.CLUSTERS
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(answer(text, clusters, {1, 2})), encoding="utf-8")
    confirmed = row.format(f",confirmed={file}")
    config = load_config(words[0], [*words[1:], f"methods=[{confirmed}]", "seeds=1", "tracks=[preregistered,tuned]"])
    record, _ = CellRun(plan(config)[0], Stages(Store(tmp_path), torch.device("cpu"))).run()
    assert record.status is Status.DONE, record.trace
    assert record.audit["distilled"]["confirmed"]["rejected"] == [1, 2]
    assert "person" in record.tracks["tuned"].supervision
    refused = CliRunner().invoke(app, ["audit", *words, "--row", "lvlm_va@oracle", "-o", str(tmp_path / "b.html")])
    assert "no distilled critic" in str(refused.exception)
