"""How faithful a critic is: verdicts against the truth, stability under probes, controls, agreement with others.

Any mask source that judges segments can be measured. Probes are asked where the source takes the parameter `probe`.
"""

from __future__ import annotations

import csv
import inspect
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from harness.errors import ConfigError, NotApplicable
from harness.masks import segment_truth
from harness.metrics import agreement
from harness.metrics.agreement import Estimate
from harness.metrics.fidelity import unchanged, verdict_estimates
from harness.record import plain
from harness.registry import registry
from harness.spec import Spec, parse_spec
from methods.lvlm_va.alignment_sets import JudgedCell, judged_cell

if TYPE_CHECKING:
    from harness.masks import MaskSource

Array = npt.NDArray[Any]
Tell = Callable[[str], None]
INVARIANCES = ("colours", "order", "mirror", "paraphrase")
ASKED = ("repeat", *INVARIANCES, "image_free", "swapped_image", "swapped_specification")
NOTHING = Estimate(math.nan, math.nan, math.nan)
HOW = (
    "Brackets: 95 % interval from 2,000 bootstrap resamples of base images; all segments of an image, in all seeds "
    "pooled, are drawn together. A share of exactly 0 or 1 gets Wilson's interval with images as units."
)


@dataclass(frozen=True)
class Sheet:
    """The segments of one alignment set, or of several stacked, with what is known of them.

    images: int64 [N], base image of every row. nonempty: bool [N, J]. truth: int8 [N, J] (1 on the spurious object),
    None where the suite has no masks. core: bool [N, J], on the object that defines the class, None where unknown.
    """

    suite: str
    suite_source: str
    seeds: tuple[int, ...]
    images: Array
    nonempty: Array
    truth: Array | None
    core: Array | None


@dataclass
class Judge:
    """A source's answers, stacked as its sheet's rows. rounds: probe (`none` = the plain question) -> int8 [N, J]."""

    name: str
    simulated: bool
    rounds: dict[str, Array] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # probe -> why it was not asked
    temperature: float = 0.0
    calls: dict[str, float] = field(default_factory=dict)
    person: bool = False

    @property
    def verdicts(self) -> Array:
        """Answers to the plain question, int8 [N, J]."""
        return self.rounds["none"]


@dataclass(frozen=True)
class Line:
    """One number of the report. source '' is the all-zero baseline: every segment is called relevant."""

    suite: str
    group: str
    measure: str
    source: str
    simulated: bool
    estimate: Estimate
    note: str = ""


@dataclass
class Report:
    """Lines of one suite, and what they rest on."""

    sheet: Sheet
    judges: list[Judge]
    lines: list[Line]
    notes: list[str]


# --- asking -----------------------------------------------------------------------------------------------------------


def sheet_of(judged: JudgedCell) -> Sheet:
    """Segments of the alignment set of train, with their truth: read by the report, charged to nobody."""
    alignment = judged.alignment(judged.task())
    segments, train, index = alignment.segments, judged.loaded.splits["train"], alignment.index
    truth = core = None
    if train.masks is not None:
        truth = segment_truth(segments, alignment.maps, train.masks[index]).cpu().numpy()
    data = judged.loaded.data.train
    if data.core is not None:
        there = torch.from_numpy(data.core[index.cpu().numpy()]).to(alignment.maps.device)
        core = segment_truth(segments, alignment.maps, there).cpu().numpy() == 1
    cell = judged.cell
    images = data.ids[index.cpu().numpy()]
    return Sheet(cell.suite_name, cell.suite_source, (cell.seed,), images, segments.nonempty.cpu().numpy(), truth, core)


def stack(sheets: Sequence[Sheet]) -> Sheet:
    """Alignment sets of one suite at several seeds as one."""

    def joined(name: str) -> Array | None:
        parts = [getattr(sheet, name) for sheet in sheets]
        return None if any(part is None for part in parts) else np.concatenate(parts)

    first = sheets[0]
    seeds = tuple(seed for sheet in sheets for seed in sheet.seeds)
    images, nonempty = joined("images"), joined("nonempty")
    if images is None or nonempty is None:
        raise ValueError("every sheet has images and segments")
    return Sheet(first.suite, first.suite_source, seeds, images, nonempty, joined("truth"), joined("core"))


def is_simulated(spec: Spec) -> bool:
    """Whether a source, or one that it is `of`, stands in for a critic."""
    inner = spec.params.get("of")
    return bool(registry("mask_sources").info(spec.name).simulated) or (
        inner is not None and is_simulated(parse_spec(inner))
    )


def why_not(spec: Spec, source: MaskSource, probe: str) -> str:
    """Why a probe cannot be asked of a source; '' where it can."""
    taken = inspect.signature(registry("mask_sources").load(spec.name)).parameters
    if "probe" not in taken:
        return f"{spec.name} takes no probes"
    style = getattr(source, "style", "critique_and_judge")
    if probe == "paraphrase" and style != "critique_and_judge":
        return f"the style {style} has one wording only"
    return ""


def ask(judge: Judge, spec: Spec, judged: JudgedCell, probes: Sequence[str], tell: Tell) -> None:
    """Add a source's verdicts on one alignment set to every round of `judge`.

    Raises:
        ConfigError: the source judges no segments.
    """
    judge.temperature = float(judged.source.params.get("temperature", 0.0))
    for probe in ("none", *probes):
        source: MaskSource = judged.source
        if probe != "none":
            reason = why_not(spec, source, probe)
            if reason:
                judge.left_out[probe] = reason
                continue
            source = registry("mask_sources").create(Spec(spec.name, {**spec.params, "probe": probe}))
        plainly = "" if probe == "none" else f", probe {probe}"
        tell(f"{judged.cell.suite_name}, seed {judged.cell.seed}: {judge.name}{plainly}")
        found = _verdicts(judge, source, judged)
        held = judge.rounds.get(probe)
        judge.rounds[probe] = found if held is None else np.concatenate([held, found])


def _verdicts(judge: Judge, source: MaskSource, judged: JudgedCell) -> Array:
    task = judged.task(source.supervision)
    alignment = judged.alignment(task)
    empty = np.full(tuple(alignment.segments.nonempty.shape), -1, dtype=np.int8)
    try:
        found = source.masks(alignment, task, judged.context)
    except NotApplicable:
        if not judge.person:
            raise
        return empty  # this person's file says nothing of this alignment set
    if found.verdicts is None or found.verdicts.shape != empty.shape:
        raise ConfigError(f"the mask source '{judge.name}' judges no segments, so it has no fidelity to measure")
    for name, amount in task.ledger.as_dict().items():
        if name.startswith("lvlm_"):
            kind = name.removeprefix("lvlm_").partition("/")[0]
            judge.calls[kind] = judge.calls.get(kind, 0.0) + amount
    return found.verdicts.cpu().numpy().astype(np.int8)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(sheet: Sheet, judges: Sequence[Judge], against: str | None = None) -> Report:
    """All numbers of one suite.

    Args:
        sheet: of all seeds. judges: sources, with the people among them. against: name of the critic that the others
            are compared with.
    """
    lines: list[Line] = []
    for judge in judges:
        lines += _rates(sheet, judge)
        if not judge.person:
            lines += [*_stability(sheet, judge), *_controls(sheet, judge)]
    lines += _agreement(sheet, judges, against)
    return Report(sheet, list(judges), [*_baseline(sheet, judges), *lines], _notes(sheet, judges))


def _rates(sheet: Sheet, judge: Judge) -> list[Line]:
    def line(name: str, estimate: Estimate) -> Line:
        return Line(sheet.suite, "verdicts", name, judge.name, judge.simulated, estimate)

    if sheet.truth is None:
        return []
    found = verdict_estimates(judge.verdicts, sheet.truth, sheet.nonempty, sheet.images)
    named = [line(name, found[name]) for name in ("accuracy", "kappa", "precision", "recall", "fpr", "fnr")]
    return [*named, line("base rate", found["base_rate"]), line("no verdict", found["null"])]


def _baseline(sheet: Sheet, judges: Sequence[Judge]) -> list[Line]:
    """What calling every segment relevant scores."""
    if sheet.truth is None or not judges:
        return []
    silent = np.where(sheet.nonempty, 0, -1)
    found = verdict_estimates(silent, sheet.truth, sheet.nonempty, sheet.images)
    shown = {name: found[name] for name in ("accuracy", "kappa", "precision", "recall", "fpr", "fnr")}
    shown |= {"base rate": found["base_rate"], "no verdict": found["null"]}
    return [Line(sheet.suite, "verdicts", name, "", False, estimate) for name, estimate in shown.items()]


def _stability(sheet: Sheet, judge: Judge) -> list[Line]:
    lines = []
    for probe in ("repeat", *INVARIANCES):
        estimate, note = NOTHING, judge.left_out.get(probe, "not asked")
        if probe in judge.rounds:
            note = ""
            estimate = unchanged(judge.verdicts, judge.rounds[probe], sheet.nonempty, sheet.images)
            if probe == "repeat" and judge.temperature == 0:
                note = "temperature 0: says only whether the back end is deterministic"
        name = "same when asked again" if probe == "repeat" else f"same under {probe}"
        lines.append(Line(sheet.suite, "stability", name, judge.name, judge.simulated, estimate, note))
    return lines


def _controls(sheet: Sheet, judge: Judge) -> list[Line]:
    lines: list[Line] = []

    def add(name: str, estimate: Estimate, probe: str) -> None:
        note = "" if probe in judge.rounds else judge.left_out.get(probe, "not asked")
        lines.append(Line(sheet.suite, "controls", name, judge.name, judge.simulated, estimate, note))

    for probe, words in (("image_free", "without the image"), ("swapped_image", "with another image")):
        known = probe in judge.rounds and sheet.truth is not None
        found = verdict_estimates(judge.rounds[probe], sheet.truth, sheet.nonempty, sheet.images) if known else {}
        for name in ("accuracy", "kappa"):
            add(f"{name} {words}", found.get(name, NOTHING), probe)
    probe = "swapped_specification"
    places = {"spurious": None if sheet.truth is None else sheet.truth == 1, "core": sheet.core}
    for place, there in places.items():
        estimate = NOTHING
        if probe in judge.rounds and there is not None:
            among = sheet.nonempty & there
            estimate = _flipped(judge.verdicts, judge.rounds[probe], among, sheet.images)
        add(f"flipped by the swapped specification, on the {place} object", estimate, probe)
    return lines


def _flipped(first: Array, second: Array, among: Array, images: Array) -> Estimate:
    """Share of verdicts that change: equal to those that agree with the opposite of the second round."""
    opposite = np.where(second >= 0, 1 - second, -1)
    return unchanged(first, opposite, among, images)


def _agreement(sheet: Sheet, judges: Sequence[Judge], against: str | None) -> list[Line]:
    lines: list[Line] = []

    def seen(judge: Judge) -> Array:
        return np.where(sheet.nonempty, judge.verdicts, -1)

    def add(name: str, judge: Judge | None, estimate: Estimate, note: str = "") -> None:
        source, simulated = ("people", False) if judge is None else (judge.name, judge.simulated)
        lines.append(Line(sheet.suite, "agreement", name, source, simulated, estimate, note))

    def pairwise(first: Judge, second: Judge) -> None:
        add(f"same as {second.name}", first, unchanged(seen(first), seen(second), sheet.nonempty, sheet.images))
        table = agreement.pair_table(seen(first), seen(second))
        kappa = agreement.clustered_coefficient(table, sheet.images, agreement.cohen_kappa)
        add(f"kappa with {second.name}", first, kappa)

    def alpha(members: Sequence[Judge]) -> Estimate:
        n, j = sheet.nonempty.shape
        units = agreement.coincidences(np.stack([seen(m).ravel() for m in members]), categories=2)
        by_image = units.reshape(n, j, 2, 2).sum(1)
        return agreement.clustered_coefficient(by_image, sheet.images, agreement.alpha_of)

    people = [judge for judge in judges if judge.person]
    critics = [judge for judge in judges if not judge.person]
    for critic in critics:
        for other in judges:
            if other is not critic and (other.person or other.name == against):
                pairwise(critic, other)
        if people:
            add("alpha with the people", critic, alpha([critic, *people]))
    if len(people) > 1:
        add("alpha among the people", None, alpha(people))
    return lines


def _notes(sheet: Sheet, judges: Sequence[Judge]) -> list[str]:
    segments, images = int(sheet.nonempty.sum()), len(np.unique(sheet.images))
    seeds = ", ".join(map(str, sheet.seeds))
    notes = [f"{segments} segments of {len(sheet.images)} alignment images ({images} different ones), seeds {seeds}."]
    if sheet.truth is None:
        notes.append("This suite has no masks of the spurious object: verdicts have no truth to be compared with.")
    for judge in judges:
        if judge.simulated:
            notes.append(f"{judge.name} is simulated: made from the ground-truth mask, not a critic.")
        if judge.person and not (judge.verdicts >= 0).any():
            notes.append(f"{judge.name} holds no verdicts on these alignment sets.")
        reasons: dict[str, list[str]] = {}
        for probe, reason in judge.left_out.items():
            reasons.setdefault(reason, []).append(probe)
        notes += [f"{judge.name}: not asked: {', '.join(held)} ({reason})." for reason, held in reasons.items()]
        if "repeat" in judge.rounds and judge.temperature == 0:
            notes.append(f"{judge.name} decodes at temperature 0: asking again tests the back end, not the critic.")
        if judge.calls:
            spent = ", ".join(f"{amount:g} {kind.replace('_', ' ')}" for kind, amount in sorted(judge.calls.items()))
            notes.append(f"{judge.name}, all probes together: {spent}.")
    return [*notes, HOW]


# --- the whole report -------------------------------------------------------------------------------------------------


def report(
    preset: str,
    overrides: Sequence[str],
    sources: Sequence[str],
    *,
    against: str | None = None,
    people: Sequence[str] = (),
    probes: bool = True,
    tell: Tell = lambda text: None,
) -> list[Report]:
    """One report for every suite of the preset, over its seeds.

    Raises:
        ConfigError: a source that judges no segments, a file that is missing, no source at all.
    """
    from harness.config import load_config

    if not sources:
        raise ConfigError('name at least one source, for example --source "embedded"')
    config = load_config(preset, overrides)
    specs = {str(parse_spec(text)): parse_spec(text) for text in [*sources, *([against] if against else [])]}
    files = {_person_name(path, people): Spec("person", {"file": path}) for path in people}
    compared = str(parse_spec(against)) if against else None
    reports = []
    for suite in map(str, config.suites):
        judges = [Judge(name, is_simulated(spec)) for name, spec in specs.items()]
        judges += [Judge(name, False, person=True) for name in files]
        sheets = []
        for seed in config.seeds:
            judged = None
            for judge in judges:
                spec = files[judge.name] if judge.person else specs[judge.name]
                judged = judged_cell(preset, overrides, row=f"lvlm_va@{spec}", suite=suite, seed=seed)
                ask(judge, spec, judged, ASKED if probes and not judge.person else (), tell)
            if judged is not None:
                sheets.append(sheet_of(judged))
        reports.append(measure(stack(sheets), judges, compared))
    return reports


def _person_name(path: str, people: Sequence[str]) -> str:
    stem = Path(path).stem
    alike = [other for other in people if Path(other).stem == stem]
    return f"person {stem}" if len(alike) == 1 else f"person {path}"


# --- writing ----------------------------------------------------------------------------------------------------------


def show(estimate: Estimate | None) -> str:
    """`.873 [.851, .894]`, without brackets where there is no interval, `-` where there is no number."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    text = _digits(estimate.value)
    return text if math.isnan(estimate.low) else f"{text} [{_digits(estimate.low)}, {_digits(estimate.high)}]"


def _digits(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"


def table(found: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one row a measure, one column a source."""
    columns = list(dict.fromkeys(line.source for line in found.lines))
    simulated = {line.source for line in found.lines if line.simulated}
    names = {"": "all relevant (baseline)", "people": "people"}
    heads = [names.get(c, c) + (" (simulated)" if c in simulated else "") for c in columns]
    held: Mapping[tuple[str, str], Estimate] = {(line.measure, line.source): line.estimate for line in found.lines}
    measures = list(dict.fromkeys(line.measure for line in found.lines))
    rows = [[name, *(show(held.get((name, column))) for column in columns)] for name in measures]
    return ["measure", *heads], rows


def to_markdown(reports: Sequence[Report]) -> str:
    """A table and its notes for every suite."""
    from tabulate import tabulate

    parts = ["# Fidelity of verdicts"]
    for found in reports:
        heads, rows = table(found)
        parts += [
            f"## {found.sheet.suite} ({found.sheet.suite_source})",
            tabulate(
                rows, headers=[head.replace("|", "\\|") for head in heads], tablefmt="github", disable_numparse=True
            ),
            "\n".join(f"- {note}" for note in found.notes),
        ]
    return "\n\n".join(parts) + "\n"


def to_csv(reports: Sequence[Report]) -> str:
    """One line per suite, measure and source; empty where there is no number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["suite", "seeds", "group", "measure", "source", "simulated", "value", "low", "high", "hits", "of", "note"]
    )
    for found in reports:
        seeds = " ".join(map(str, found.sheet.seeds))
        for line in found.lines:
            numbers = ["" if math.isnan(value) else repr(float(value)) for value in line.estimate]
            source = line.source or "all relevant (baseline)"
            head = [line.suite, seeds, line.group, line.measure, source, line.simulated]
            writer.writerow([*head, *numbers, line.note])
    return buffer.getvalue()


def to_dict(reports: Sequence[Report]) -> dict[str, Any]:
    """Everything, JSON-safe (no number: null)."""
    suites = [
        {
            "suite": found.sheet.suite,
            "suite_source": found.sheet.suite_source,
            "seeds": found.sheet.seeds,
            "images": len(found.sheet.images),
            "base_images": len(np.unique(found.sheet.images)),
            "segments": int(found.sheet.nonempty.sum()),
            "interval": HOW,
            "sources": [
                {"name": j.name, "simulated": j.simulated, "person": j.person, "left_out": j.left_out, "spent": j.calls}
                for j in found.judges
            ],
            "lines": [
                {
                    "group": line.group,
                    "measure": line.measure,
                    "source": line.source or "all relevant (baseline)",
                    "simulated": line.simulated,
                    **line.estimate._asdict(),
                    "note": line.note,
                }
                for line in found.lines
            ],
            "notes": found.notes,
        }
        for found in reports
    ]
    return {"format": "vabench fidelity", "suites": plain(suites)}
