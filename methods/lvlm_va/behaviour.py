"""What a model relies on, in plain language: before and after alignment, per class, each sentence with its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness.cell import CellRun
from harness.content_segment import content_segments
from harness.errors import ConfigError, NotApplicable, Skipped
from harness.explain import draw_baselines
from harness.masks import SPURIOUS, AlignmentSet, segment_truth
from harness.metrics.groups import wilson_interval
from harness.plan import inspect
from harness.record import plain
from harness.registry import registry
from harness.segment import Segments, segment
from harness.spec import parse_spec
from harness.stages import Loaded, Stages
from harness.supervision import Supervision
from harness.training import predict

if TYPE_CHECKING:
    from harness.plan import Cell

Array = npt.NDArray[Any]
NOWHERE = -1
CHOSEN = {"low_entropy": "low-entropy", "high_entropy": "high-entropy", "random": "randomly chosen"}
PLACES = ("spurious", "core", "elsewhere")
WHENS = ("before", "after")


@dataclass(frozen=True)
class Repaired:
    """A row's pre-registered model, fitted again, beside its base model.

    stored: how its test predictions compare with the stored cell's ('' = not stored).
    """

    loaded: Loaded
    base: nn.Module
    model: nn.Module
    run: Refit
    stored: str
    equal: bool | None


class Refit(CellRun):
    """A cell that fits its pre-registered candidate again, through the code that fitted it the first time."""

    def repair(self) -> Repaired:
        """Load, take the shared base model, ask the mask source, fit candidate 0; nothing is evaluated or stored.

        Raises:
            Skipped: the suite's data is missing. NotApplicable: as in the cell.
        """
        if self.cell.blocked:
            raise Skipped(self.cell.blocked)
        loaded, base, corrections = self.prepare()
        method_class = registry("methods").load(self.info.name)
        fitted = self.fit_candidate(method_class, self._configs(method_class)[0], loaded, base, corrections)
        stored, equal = self._compare(fitted.model, loaded)
        return Repaired(loaded, base, fitted.model, self, stored, equal)

    def _compare(self, model: nn.Module, loaded: Loaded) -> tuple[str, bool | None]:
        """Whether the test logits are those of the stored cell; (words, None) where it is not stored."""
        state = inspect(self.cell, self.stages.store)
        name = loaded.data.roles.headline
        if state.record is None or state.record.predictions_sha256 is None:
            return "The cell of this row is not stored, so the model could not be compared with it.", None
        held = self.stages.store.predictions(state.folder, state.record)[f"test/{name}/0"]
        found = predict(model, loaded.test_images[name]).cpu().numpy()
        if np.array_equal(held, found):
            return f"Fitted again; its logits on all {len(held)} test images equal those of the stored cell.", True
        gap = float(np.abs(held - found).max())
        return (
            f"FITTED AGAIN, BUT NOT THE STORED MODEL: test logits differ by up to {gap:.2g}; what follows describes "
            f"the model that was fitted just now",
            False,
        )

    def judge(self, alignment: AlignmentSet, loaded: Loaded) -> Tensor | None:
        """The source's verdicts int8 [N, J] on these segments; None where it gives none on them."""
        source = self.source()
        task = self.task(loaded, source.supervision | Supervision.LABELS, f"mask source '{self.cell.row.masks}'")
        asked = AlignmentSet(task.train, alignment.index, lambda: alignment.maps, lambda: alignment.segments)
        try:
            found: Tensor | None = source.masks(asked, task, self.context).verdicts
        except NotApplicable:  # a person has seen the base model's segments only
            return None
        if found is None or found.shape != alignment.segments.nonempty.shape:
            return None
        return found


@dataclass(frozen=True)
class Pictures:
    """Images of which statements are made.

    positions: int64 [N] in their split; ids: base images; y: classes; images: uint8 [N, C, H, W]; spurious, core: bool
    [N, H, W] or None. described: False where the spurious object is not the one that the suite describes for the class
    (a rendering in which the shortcut conflicts).
    """

    words: str
    positions: Array
    ids: Array
    y: Array
    images: Tensor
    spurious: Tensor | None
    core: Tensor | None
    described: bool = True


@dataclass(frozen=True)
class Reliance:
    """Where the strongest segment of every image lies.

    strongest: int64 [N], the segment with the largest share of the label's positive attribution, -1 for none.
    on: place -> bool [N]: at least half of that segment's attribution lies there (empty where the suite has no masks).
    called: int8 [N], the source's verdict on that segment (-1 none), or None.
    """

    strongest: Array
    on: dict[str, Array]
    called: Array | None


@dataclass(frozen=True)
class Statement:
    """One sentence with its images. group: class name, '' for all classes. images: those that count (`positions`,
    `ids`); others: those that do not."""

    pictures: str
    when: str
    group: str
    measure: str
    hits: int
    of: int
    low: float
    high: float
    text: str
    positions: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    other_positions: list[int] = field(default_factory=list)
    other_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Behaviour:
    """The report of one row on one suite at one seed."""

    suite: str
    suite_source: str
    row: str
    seed: int
    simulated: bool
    classes: tuple[str, ...]
    statements: list[Statement]
    notes: list[str]
    equal: bool | None


# --- where the strongest segment lies ---------------------------------------------------------------------------------


def strongest_segment(segments: Segments, maps: Tensor) -> Tensor:
    """The segment that holds most of an image's positive attribution, int64 [N]; -1 where no segment holds any.

    Args:
        segments: labels [N, H, W]. maps: float [N, H, W], attribution of the labelled class.
    """
    n, j = len(maps), segments.count
    slot = segments.labels.flatten(1).long()
    weight = maps.clamp(min=0).flatten(1) * (slot >= 0)
    total = torch.zeros(n, j, dtype=weight.dtype, device=maps.device).scatter_add_(1, slot.clamp(min=0), weight)
    best = total.max(1)
    return torch.where(best.values > 0, best.indices, torch.full_like(best.indices, NOWHERE))


def rely(segments: Segments, maps: Tensor, pictures: Pictures, verdicts: Tensor | None) -> Reliance:
    """Place the strongest segment of every image."""
    strongest = strongest_segment(segments, maps)
    there, column = strongest >= 0, strongest.clamp(min=0)[:, None]
    on: dict[str, Array] = {}
    for name, mask in (("spurious", pictures.spurious), ("core", pictures.core)):
        if mask is not None:
            lies = segment_truth(segments, maps, mask.to(maps.device)).gather(1, column)[:, 0] == 1
            on[name] = (lies & there).cpu().numpy()
    if "core" in on and "spurious" in on:
        on["core"] &= ~on["spurious"]  # half on each: the spurious object counts
        on["elsewhere"] = there.cpu().numpy() & ~on["spurious"] & ~on["core"]
    called = None
    if verdicts is not None:
        chosen = verdicts.to(maps.device).gather(1, column)[:, 0]
        called = torch.where(there, chosen, torch.full_like(chosen, -1)).cpu().numpy()
    return Reliance(strongest.cpu().numpy(), on, called)


def explain(
    run: Refit,
    loaded: Loaded,
    model: nn.Module,
    images: Tensor,
    y: Tensor,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Segments]:
    """Maps and segments of any images under any model, with the preset's explainer, baselines and segmentation.

    Args:
        settings: of the preset's `alignment`, for rows that have none of their own.
    """
    settings, context = settings or run.cell.config["alignment"], run.context
    generator = context.generator("explain/baselines", "data")
    baselines = draw_baselines(
        loaded.splits["train"].images, settings["baselines"], generator, settings["baseline_kind"]
    )
    maps = registry("explainers").create(parse_spec(settings["explainer"]))(model, images, y, baselines).maps
    values = {name: value for name, value in settings["segments"].items() if name != "kind"}
    if settings["segments"].get("kind") == "slic":
        return maps, content_segments(images, maps, values["count"], values["support"])
    return maps, segment(maps, **values, generator=context.generator("segment/train"))


# --- statements -------------------------------------------------------------------------------------------------------


def describe(cell: Cell, stages: Stages, *, judge_after: bool = True) -> Behaviour:
    """Fit the cell's pre-registered model again and say what it and its base model rely on.

    Args:
        judge_after: ask the mask source about the repaired model's segments too (a language model is called again).

    Raises:
        ConfigError: a row without a mask source. Skipped: the suite's data is missing. NotApplicable: as in the cell.
    """
    if cell.row.masks is None:
        raise ConfigError(f"the row '{cell.row}' has no alignment set; name one such as lvlm_va@oracle")
    repaired = Refit(cell, stages).repair()
    run, loaded = repaired.run, repaired.loaded
    statements: list[Statement] = []
    view = run.task(loaded, Supervision.LABELS, "the behaviour report").train
    alignment = run.stages.alignment(cell, loaded, view, repaired.base, run.context)
    for pictures, judged in _sets(run, loaded, alignment):
        y = torch.from_numpy(pictures.y).to(pictures.images.device)
        for when, model in zip(WHENS, (repaired.base, repaired.model), strict=True):
            if judged and when == "before":
                asked = alignment  # the very segments that the repair's verdicts are about
            else:
                maps, segments = explain(run, loaded, model, pictures.images, y)
                asked = AlignmentSet(view, alignment.index, lambda m=maps: m, lambda s=segments: s)
            verdicts = run.judge(asked, loaded) if judged and (judge_after or when == "before") else None
            reliance = rely(asked.segments, asked.maps, pictures, verdicts)
            statements += _statements(loaded, pictures, when, reliance, _source_words(run))
    return Behaviour(
        cell.suite_name,
        cell.suite_source,
        cell.row_name,
        cell.seed,
        run.mask_info is not None and run.mask_info.simulated,
        tuple(loaded.data.class_names),
        statements,
        _notes(run, repaired),
        repaired.equal,
    )


def _sets(run: Refit, loaded: Loaded, alignment: AlignmentSet) -> Iterator[tuple[Pictures, bool]]:
    """The alignment images, then test images that no model was trained on; whether the source can be asked."""
    data, train = loaded.data, loaded.splits["train"]
    index, at = alignment.index, alignment.index.cpu().numpy()
    sampler = parse_spec(run.cell.config["alignment"]["sampler"]).name
    core = None if data.train.core is None else torch.from_numpy(data.train.core[at])
    words = f"{CHOSEN.get(sampler, sampler)} training images"
    masks = None if train.masks is None else train.masks[index]
    yield Pictures(words, at, data.train.ids[at], data.train.y[at], train.images[index], masks, core), True
    role = data.roles.masked
    if role is not None and data.test[role].masks is not None:
        split, n = data.test[role], run.cell.config["metrics"]["attribution_images"]
        # Evenly spaced: a suite may hold its test images class by class, so the first n would miss whole classes.
        at = np.unique(np.linspace(0, len(split) - 1, min(n, len(split))).round().astype(np.int64))
        masks = torch.from_numpy(split.masks[at]) if split.masks is not None else None
        core = None if split.core is None else torch.from_numpy(split.core[at])
        words, aligned = f"test images ({role})", role == data.roles.aligned
        images = loaded.test_images[role][torch.from_numpy(at).to(loaded.test_images[role].device)]
        yield Pictures(words, at, split.ids[at], split.y[at], images, masks, core, aligned), False


def _source_words(run: Refit) -> str:
    simulated = run.mask_info is not None and run.mask_info.simulated
    return f"the {'simulated ' if simulated else ''}source {run.cell.row.masks}"


def _statements(loaded: Loaded, pictures: Pictures, when: str, reliance: Reliance, source: str) -> Iterator[Statement]:
    """Sentences on all images, then on every class that has any."""
    data = loaded.data
    names: list[tuple[str, Array]] = [("", np.ones(len(pictures.y), dtype=np.bool_))]
    names += [(name, pictures.y == k) for k, name in enumerate(data.class_names)]
    for group, members in names:
        if not members.any():
            continue
        described = data.descriptions.get("spurious", {}) if pictures.described else {}
        spurious = _object(described.get(group), "spurious")
        core = _object(data.descriptions.get("core", {}).get(group), "core")
        words = {
            "spurious": f"the strongest segment lies on {spurious}",
            "core": f"the strongest segment lies on {core}",
            "elsewhere": "the strongest segment lies on neither of the two",
        }
        found = [(name, reliance.on[name], words[name]) for name in PLACES if name in reliance.on]
        if reliance.called is not None:
            text = f"{source} calls the strongest segment spurious"
            found.append(("called spurious", reliance.called == SPURIOUS, text))
        found.append(("nothing", reliance.strongest == NOWHERE, "nothing speaks for the class"))
        for measure, hit, text in found:
            if measure != "nothing" or (hit & members).any():
                yield _statement(pictures, when, group, measure, hit & members, members, text)


def _object(sentence: str | None, kind: str) -> str:
    """`the spurious object ("a small square of grey 180")`; without quotes where the suite describes nothing."""
    text = (sentence or "").strip().rstrip(".")
    thing = "the spurious object" if kind == "spurious" else "what makes the class"
    return f'{thing} ("{text}")' if text else thing


def _statement(
    pictures: Pictures, when: str, group: str, measure: str, hit: Array, members: Array, words: str
) -> Statement:
    k, n = int(hit.sum()), int(members.sum())
    low, high = wilson_interval(k, n)
    whose = f" of class {group}" if group else ""
    interval = f"[{100 * low:.0f} %, {100 * high:.0f} %]"
    text = f"{when.capitalize()} alignment, in {k} of {n} {pictures.words}{whose} {words} {interval}."
    rest = members & ~hit
    traced = [values[chosen].tolist() for chosen in (hit, rest) for values in (pictures.positions, pictures.ids)]
    return Statement(pictures.words, when, group, measure, k, n, low, high, text, *traced)


def _notes(run: Refit, repaired: Repaired) -> list[str]:
    notes = [repaired.stored]
    if run.mask_info is not None and run.mask_info.simulated:
        notes.append(f"{run.cell.row.masks} is simulated: its verdicts come from the ground-truth mask.")
    if run.info.uses_masks:
        notes.append("The training images are those that the repair was fitted on; the test images were never seen.")
    notes += [
        "Strongest segment: the one with the largest share of the label's positive attribution. It lies on an object "
        "if at least half of its attribution does.",
        "Brackets: Wilson's 95 % interval over these images at this one seed; it says nothing about other seeds.",
        "What an object is called comes from the suite's class descriptions; the report reads them and the masks, the "
        "row is not charged for it.",
    ]
    return notes


# --- writing ----------------------------------------------------------------------------------------------------------


def per_class(found: Behaviour) -> list[dict[str, Any]]:
    """One row per kind of image and class: `hits of n` for every measure before and after; '-' where unknown."""
    held = {(s.pictures, s.group, s.measure, s.when): s for s in found.statements}
    measures = measures_of(found)
    rows = []
    for pictures in dict.fromkeys(s.pictures for s in found.statements):
        for group in ("", *found.classes):
            cells = {}
            for measure in measures:
                for when in WHENS:
                    s = held.get((pictures, group, measure, when))
                    cells[f"{measure}, {when}"] = _cell(s) if s else "-"
            if any(value != "-" for value in cells.values()):
                rows.append({"images": pictures, "class": group or "all", **cells})
    return rows


def measures_of(found: Behaviour) -> list[str]:
    """Measures that the table shows, in the order of the sentences."""
    return [m for m in dict.fromkeys(s.measure for s in found.statements) if m != "nothing"]


def _cell(statement: Statement) -> str:
    return f"{statement.hits}/{statement.of} [{100 * statement.low:.0f}, {100 * statement.high:.0f}] %"


def to_markdown(found: Behaviour) -> str:
    """Sentences and the table; the images of every sentence stand in the JSON file."""
    from tabulate import tabulate

    rows = per_class(found)
    parts = [f"# What the model relies on: {found.row} on {found.suite} ({found.suite_source}), seed {found.seed}"]
    parts.append("\n".join(f"- {note}" for note in found.notes))
    for pictures, sections in sections_of(found):
        parts.append(f"## {pictures.capitalize()}")
        for group, members in sections:
            parts.append(f"### {f'Class {group}' if group else 'All classes'}")
            parts.append("\n".join(f"- {s.text}" for s in members))
    parts += ["## Table", tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def sections_of(found: Behaviour) -> list[tuple[str, list[tuple[str, list[Statement]]]]]:
    """Statements by kind of image and class; a measure's `before` stands right above its `after`."""
    out = []
    for pictures in dict.fromkeys(s.pictures for s in found.statements):
        sections = []
        for group in ("", *found.classes):
            members = [s for s in found.statements if (s.pictures, s.group) == (pictures, group)]
            order = list(dict.fromkeys(s.measure for s in members))
            if members:
                sections.append((group, sorted(members, key=lambda s: (order.index(s.measure), s.when == "after"))))
        out.append((pictures, sections))
    return out


def to_dict(found: Behaviour) -> dict[str, Any]:
    """Everything, JSON-safe: every statement with the positions in its split and base ids of its images."""
    statements = [{**vars(s), "share": s.hits / s.of} for s in found.statements]
    head = {name: getattr(found, name) for name in ("suite", "suite_source", "row", "seed", "simulated", "notes")}
    return {
        "format": "vabench behaviour",
        **head,
        "equals_stored_cell": found.equal,
        "table": per_class(found),
        "statements": plain(statements),
    }


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
  body { color: #1b1b1b; background: #fff; }
  h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; } h3 { font-size: 1rem; }
  h1, td, code { overflow-wrap: anywhere; }
  .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
  th, td { border: 1px solid #bbb; padding: .15rem .5rem; text-align: right; }
  th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
  li.after { margin-bottom: .6rem; } summary { color: #444; font-size: .9rem; cursor: pointer; }
  code { font-size: .85rem; }
</style>
<h1>{{ title }}</h1>
<ul>{% for note in found.notes %}<li>{{ note }}</li>{% endfor %}</ul>
<div class="wide"><table>
<tr>{% for name in rows[0] if rows %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% for pictures, groups in sections %}<h2>{{ pictures | capitalize }}</h2>
{% for group, members in groups %}<h3>{{ "Class " ~ group if group else "All classes" }}</h3>
<ul>{% for s in members %}<li class="{{ s.when }}">{{ s.text }}
<details><summary>the {{ s.hits }} images, and the {{ s.of - s.hits }} others</summary>
<p>Positions: <code>{{ s.positions | join(" ") }}</code><br>Base images: <code>{{ s.ids | join(" ") }}</code></p>
<p>Others, positions: <code>{{ s.other_positions | join(" ") }}</code><br>
Base images: <code>{{ s.other_ids | join(" ") }}</code></p></details></li>
{% endfor %}</ul>
{% endfor %}{% endfor %}</html>
"""


def to_html(found: Behaviour) -> str:
    """One page that loads nothing from anywhere; all text is escaped."""
    from jinja2 import Environment, StrictUndefined

    title = f"What the model relies on: {found.row} on {found.suite} ({found.suite_source}), seed {found.seed}"
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    return page.render(title=title, found=found, rows=per_class(found), sections=sections_of(found))


def headline(found: Behaviour) -> Sequence[str]:
    """Sentences on all classes together: what the terminal shows."""
    return [s.text for _, sections in sections_of(found) for group, members in sections if not group for s in members]
