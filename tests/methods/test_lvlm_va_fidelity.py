"""`vabench fidelity` on simulated critics, on a client that answers by rule, on people's files, and by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from critic_toys import RuleClient, rule_client  # noqa: F401
from mask_toys import toy_context
from typer.testing import CliRunner

from harness.errors import ConfigError
from harness.metrics.agreement import Estimate, krippendorff_alpha
from harness.metrics.fidelity import verdict_estimates
from methods.lvlm_va import fidelity
from methods.lvlm_va.alignment_sets import judged_cell
from methods.lvlm_va.fidelity import Judge, Report, Sheet, measure
from methods.lvlm_va.fidelity_command import fidelity as command
from methods.lvlm_va.person import FORMAT, alignment_identity
from methods.lvlm_va.verdicts import NoisyOracle

NOISY = "noisy_oracle(fnr=0.13,fpr=0.13)"
RULE = "critic(client=rule(ring=0.26),record=false,size=64,style=one_call)"
SMALL = ["suites=[decoy_digits(rho=1.0)]", "recipes.base.epochs=15", "alignment.n=60", "seeds=2"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides with a results folder that all tests share, so that base models are trained once."""
    return [*SMALL, f"results={tmp_path_factory.mktemp('results')}"]


def value(found: Report, measure_name: str, source: str) -> Estimate:
    (line,) = [line for line in found.lines if (line.measure, line.source) == (measure_name, source)]
    return line.estimate


def test_simulated_errors_lie_in_their_intervals(settings: list[str]) -> None:
    """Not always: about 95 times in 100 draws of the noise, on the truth of one real alignment set."""
    sheet = fidelity.sheet_of(judged_cell("quickstart", settings, row="lvlm_va@oracle"))
    assert sheet.truth is not None
    truth, inside = torch.from_numpy(sheet.truth), {"fpr": 0, "fnr": 0}
    for seed in range(100):
        verdicts = NoisyOracle(fpr=0.13, fnr=0.3).judge(truth, toy_context(seed)).numpy()
        found = verdict_estimates(verdicts, sheet.truth, sheet.nonempty, sheet.images, resamples=300)
        for name, rate in (("fpr", 0.13), ("fnr", 0.3)):
            inside[name] += found[name].low <= rate <= found[name].high
    assert 88 <= inside["fpr"] <= 100
    assert 85 <= inside["fnr"] <= 100  # some 35 spurious segments: percentile intervals are a little short there


def test_simulated_sources_stand_beside_the_baseline(settings: list[str]) -> None:
    (found,) = fidelity.report("quickstart", settings, [NOISY, "oracle"])
    truth, rates = found.sheet.truth, {name: value(found, name, NOISY) for name in ("fpr", "fnr")}
    assert truth is not None
    wrong = next(judge for judge in found.judges if judge.name == NOISY).verdicts != truth
    assert rates["fpr"].hits == (wrong & (truth == 0)).sum()
    assert (rates["fnr"].hits, rates["fnr"].of) == ((wrong & (truth == 1)).sum(), (truth == 1).sum())
    assert 0 < rates["fpr"].low < rates["fpr"].value < rates["fpr"].high < 0.3
    assert value(found, "kappa", "oracle").value == 1
    assert value(found, "kappa", "").value == 0
    baseline, rate = value(found, "accuracy", ""), value(found, "base rate", "oracle")
    assert baseline.value == pytest.approx(1 - rate.value)
    assert math.isnan(value(found, "same under mirror", NOISY).value)
    assert any(f"{NOISY} is simulated" in note for note in found.notes)
    assert any("takes no probes" in note for note in found.notes)
    assert f"{NOISY} (simulated)" in fidelity.to_markdown([found])
    assert found.sheet.seeds == (0, 1)
    assert len(found.sheet.images) == 120 > len(np.unique(found.sheet.images))  # an image of both seeds: one cluster


@pytest.mark.usefixtures("rule_client")
def test_a_critic_that_looks_at_the_place_only(settings: list[str]) -> None:
    """The rule reads the map: stable under every invariance, blind without an image, deaf to the specification."""
    (found,) = fidelity.report("quickstart", [*settings, "seeds=1"], [RULE], against=NOISY)
    assert value(found, "kappa", RULE).value > 0.1
    for name in ("when asked again", "under colours", "under order", "under mirror"):
        assert value(found, f"same {name}", RULE).value == 1
    assert math.isnan(value(found, "same under paraphrase", RULE).value)
    assert any("paraphrase (the style one_call has one wording only)" in note for note in found.notes)
    assert any("temperature 0" in note for note in found.notes)
    assert value(found, "kappa without the image", RULE).value == 0
    assert value(found, "accuracy without the image", RULE).value == value(found, "accuracy", "").value
    swapped = value(found, "kappa with another image", RULE)
    assert swapped.low < 0.1
    assert swapped.value < value(found, "kappa", RULE).value
    for place in ("spurious", "core"):
        assert value(found, f"flipped by the swapped specification, on the {place} object", RULE).value == 0
    assert -1 < value(found, f"kappa with {NOISY}", RULE).value < 1
    calls = next(judge.calls for judge in found.judges if judge.name == RULE)["calls"]
    assert calls == 60 * 8  # the plain question and seven probes, one call an image


@pytest.mark.usefixtures("rule_client")
def test_two_calls_have_a_paraphrase(settings: list[str], rule_client: list[RuleClient]) -> None:  # noqa: F811
    source = RULE.replace("one_call", "critique_and_judge")
    (found,) = fidelity.report("quickstart", [*settings, "seeds=1", "alignment.n=20"], [source])
    assert value(found, "same under paraphrase", source).value == 1
    prompts = {client.asked[0].prompt for client in rule_client if client.asked}
    assert len(prompts) > 2  # the plain wording, the paraphrase, the swapped specification, ...


def by_hand() -> tuple[Sheet, Judge]:
    """Four images, three segments: the first lies on the spurious object, the second on the core, the third nowhere."""
    truth = np.array([[1, 0, 0]] * 3 + [[1, 0, -1]], dtype=np.int8)
    core = np.array([[False, True, False]] * 4)
    sheet = Sheet("toy", "synthetic", (0,), np.arange(4), truth >= 0, truth, core)
    plain = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [-1, 0, -1]], dtype=np.int8)
    swapped = np.array([[0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, -1]], dtype=np.int8)
    mirror = np.array([[1, 0, 1], [1, 0, 1], [0, -1, 0], [-1, 0, -1]], dtype=np.int8)
    return sheet, Judge("critic", False, {"none": plain, "swapped_specification": swapped, "mirror": mirror})


def test_every_number_by_hand() -> None:
    found = measure(*(lambda sheet, judge: (sheet, [judge]))(*by_hand()))

    def counts(name: str) -> tuple[float, float]:
        estimate = value(found, name, "critic")
        return estimate.hits, estimate.of

    assert counts("accuracy") == (8, 10)
    assert counts("fpr") == (1, 7)
    assert counts("fnr") == (1, 3)
    assert counts("precision") == (2, 3)
    assert counts("no verdict") == (1, 11)
    assert counts("same under mirror") == (8, 9)  # one changed; one had no verdict in the second round
    assert counts("flipped by the swapped specification, on the spurious object") == (2, 3)
    assert counts("flipped by the swapped specification, on the core object") == (2, 4)
    assert math.isnan(value(found, "same when asked again", "critic").value)


def test_without_masks_there_is_no_truth_but_there_is_stability() -> None:
    sheet, judge = by_hand()
    bare = Sheet(sheet.suite, "real", sheet.seeds, sheet.images, sheet.nonempty, None, None)
    found = measure(bare, [judge])
    assert not [line for line in found.lines if line.group == "verdicts"]
    assert value(found, "same under mirror", "critic").hits == 8
    assert math.isnan(value(found, "flipped by the swapped specification, on the core object", "critic").value)
    assert any("no masks" in note for note in found.notes)


def write_person(path: Path, settings: list[str], flips: int, seed: int = 0) -> np.ndarray:
    """A review file with the truth of every second image, `flips` of its verdicts changed; the verdicts int8 [N, J]."""
    judged = judged_cell("quickstart", settings, row="lvlm_va@oracle", seed=seed)
    task = judged.task()
    alignment = judged.alignment(task)
    verdicts = judged.source.masks(alignment, task, judged.context).verdicts.numpy().copy()  # type: ignore[union-attr]
    verdicts[1::2] = -1
    where = np.argwhere(verdicts >= 0)[:flips]
    verdicts[tuple(where.T)] = 1 - verdicts[tuple(where.T)]
    images = [
        {"position": k, "verdicts": {str(j): int(v) for j, v in enumerate(row) if v >= 0}}
        for k, row in enumerate(verdicts)
        if (row >= 0).any()
    ]
    content = {"format": FORMAT, "sets": [{"identity": alignment_identity(alignment), "images": images}]}
    path.write_text(json.dumps(content))
    return np.asarray(verdicts)


def test_people_agree_with_the_source_and_among_themselves(settings: list[str], tmp_path: Path) -> None:
    ours = {name: write_person(tmp_path / f"{name}.json", settings, flips) for name, flips in (("ada", 0), ("bo", 9))}
    people = [str(tmp_path / "ada.json"), str(tmp_path / "bo.json")]
    (found,) = fidelity.report("quickstart", settings, ["oracle"], people=people)
    among = value(found, "alpha among the people", "people")
    assert among.value == pytest.approx(krippendorff_alpha(np.stack([v.ravel() for v in ours.values()])))
    assert among.low < among.value < 1
    assert value(found, "kappa with person ada", "oracle").value == 1
    same = value(found, "same as person bo", "oracle")
    assert same.of - same.hits == 9
    assert among.value < value(found, "alpha with the people", "oracle").value < 1
    assert value(found, "kappa", "person ada").value == 1
    judged = value(found, "no verdict", "person ada")
    assert judged.hits > judged.of / 2  # every second image of the first seed, nothing of the second
    assert not [line for line in found.lines if line.source == "person ada" and line.group == "stability"]


def test_what_has_no_verdicts_is_refused(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match="judges no segments"):
        fidelity.report("quickstart", settings, ["ground_truth"])
    with pytest.raises(ConfigError, match="at least one source"):
        fidelity.report("quickstart", settings, [])


def test_the_command_writes_one_result_in_three_forms(settings: list[str]) -> None:
    app = typer.Typer()
    app.command()(command)
    words = [*settings, "--source", NOISY, "--seeds", "1", "--no-probes"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    folder = Path(settings[-1].partition("=")[2]) / "fidelity"
    (table,) = folder.glob("*.csv")
    lines = list(csv.DictReader(table.open()))
    held: dict[str, Any] = json.loads(table.with_suffix(".json").read_text())
    (suite,) = held["suites"]
    assert suite["seeds"] == [0]
    assert len(suite["lines"]) == len(lines)
    for line, other in zip(lines, suite["lines"], strict=True):
        assert (line["measure"], line["source"]) == (other["measure"], other["source"])
        assert (float(line["value"]) if line["value"] else None) == other["value"]
    kappa = next(line for line in suite["lines"] if (line["measure"], line["source"]) == ("kappa", NOISY))
    shown = f"{kappa['value']:.3f} [{kappa['low']:.3f}, {kappa['high']:.3f}]"
    assert shown in table.with_suffix(".md").read_text()
    assert f"{kappa['value']:.3f}" in result.output
