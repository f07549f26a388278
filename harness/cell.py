"""Runs one cell: load, base model, masks, fit every candidate, choose, and only then open the test split."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness import evaluate
from harness.claims import Claims
from harness.context import RunContext, Seeds
from harness.diagnosis import was_gated
from harness.errors import NotApplicable, Skipped, VabenchError
from harness.masks import MaskSet, MaskSource, segment_truth
from harness.method import Method
from harness.metrics import fidelity
from harness.models import build_model, place
from harness.optimizers import import_compiler
from harness.plan import Cell, digest, inspect, source_modules, standing
from harness.provenance import provenance
from harness.record import Candidate, Curve, Record, Status, TrackResult, plain
from harness.registry import check_parameters, registry
from harness.selection import RULES, choose, rule_supervision, scores
from harness.stages import Loaded, Stages
from harness.supervision import Ledger, Supervision, Task
from harness.training import TrainRecipe, predict
from harness.weights import FROM_SCRATCH

Progress = Callable[[str, int, int], None]
Arrays = dict[str, npt.NDArray[Any]]
OURS = ("harness", "baselines", "methods", "suites")  # packages that bring the built-in components
HEADLINE = ("headline", "wga", "aga", "accuracy")  # what a record keeps of a model that no track reports


@dataclass
class Fitted:
    """A candidate after `fit`.

    seconds: what it would have taken alone, but for what an earlier candidate of the tuned track did for it. shared: by
    name, the part of them that other candidates need alike.
    """

    config: dict[str, Any]
    model: nn.Module
    seconds: float
    notes: dict[str, Any]
    ledger: Ledger
    curve: Curve
    shared: dict[str, float]


class CellRun:
    """One cell on its way through the stages. Build it, call `run`."""

    def __init__(self, cell: Cell, stages: Stages, progress: Progress | None = None):
        self.cell = cell
        self.stages = stages
        recipes = {name: TrainRecipe(**values) for name, values in cell.config["recipes"].items()}
        self.context = RunContext(
            device=stages.device,
            seeds=Seeds.all(cell.seed),
            base_recipe=recipes["base"],
            finetune_recipe=recipes["finetune"],
            settings=dict(cell.config.get("alignment", {})),
            progress=progress,
            recordings=stages.store.root / "recordings",
        )
        self.info = registry("methods").info(cell.row.method.name)
        self.mask_info = registry("mask_sources").info(cell.row.masks.name) if cell.row.masks else None
        self.arrays: Arrays = {}
        self.audit: dict[str, Any] = {}
        self.shared_cost: dict[str, float] = {}  # standalone seconds of the shared stages that a track needed
        self.shared_ledger = Ledger()  # what the mask source consumed on train: charged to every track

    def run(self) -> tuple[Record, Arrays]:
        """Run the cell. Whatever goes wrong inside becomes a typed record; only a broken store raises."""
        record = self.blank()
        try:
            if self.cell.blocked:
                raise Skipped(self.cell.blocked)
            self._fill(record)
            record.status = Status.DONE
        except NotApplicable as error:
            record.status, record.reason = Status.NOT_APPLICABLE, str(error)
        except Skipped as error:
            record.status, record.reason = Status.SKIPPED, str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's method may raise anything, SystemExit too
            record.status = Status.FAILED
            record.reason = str(error) if isinstance(error, VabenchError) else f"{type(error).__name__}: {error}"
            record.trace = traceback.format_exc()
        if record.status is not Status.DONE:
            record.tracks, record.candidates, self.arrays = {}, [], {}
        record.wall_s = self.context.clock.close()
        record.spent, record.standalone = dict(self.context.clock.spent), dict(self.context.clock.standalone)
        return record, self.arrays

    def blank(self) -> Record:
        """The cell's record before anything ran: status failed, no numbers."""
        cell = self.cell
        block, simulated = standing(cell.row)
        return Record(
            id=cell.id,
            status=Status.FAILED,
            suite=cell.suite_name,
            suite_source=cell.suite_source,
            row=cell.row_name,
            label=cell.row.label,
            method=str(cell.row.method),
            mask_source=str(cell.row.masks) if cell.row.masks else None,
            block=block,
            simulated=simulated,
            model=str(cell.model),
            seed=cell.seed,
            config=cell.config,
            identity=cell.identity,
            provenance={**provenance(), "device": str(self.stages.device)},
        )

    def _fill(self, record: Record) -> None:
        cell, context, clock = self.cell, self.context, self.context.clock
        loaded, base, corrections = self.prepare()
        record.groups = loaded.data.group_counts()
        record.base_curve = self.stages.base_curve(cell, context)
        record.provenance["initial_weights"] = getattr(base, "initial_weights", FROM_SCRATCH)
        self.audit |= plain(context.notes)
        self.shared_cost["preregistered"] = self._shared_cost()
        method_class: type[Method] = registry("methods").load(self.info.name)
        fitted: list[Fitted] = []
        context.memo = {}
        for config in self._configs(method_class):
            fitted.append(
                self._again(method_class, config, fitted)
                or self.fit_candidate(method_class, config, loaded, base, corrections)
            )
        context.memo = None
        fitted = _charged_once(fitted)
        with clock.phase("evaluate"):
            choices = {track: self._choose(track, fitted, loaded, base) for track in cell.config["tracks"]}
            # The choice is frozen from here on: the test split is opened.
            self.shared_cost["tuned"] = self._shared_cost()
            self._evaluate(record, choices, fitted, loaded, base, method_class)

    def prepare(self) -> tuple[Loaded, nn.Module, MaskSet | None]:
        """What every candidate starts from: data on the device, the base model, and the masks where the row has any."""
        loaded = self.stages.load(self.cell, self.context)
        shape = loaded.splits["train"].images.shape[1:]
        classes = len(loaded.data.class_names)
        image_shape, seed = (int(shape[0]), int(shape[1]), int(shape[2])), self.context.seed("model", "init")
        self.context.build_model = lambda: place(
            build_model(self.cell.model, image_shape, classes, seed), self.context.device
        )
        base = self.stages.base(self.cell, loaded, self.context)
        return loaded, base, self._corrections(loaded, base)

    def _configs(self, method_class: type[Method]) -> list[dict[str, Any]]:
        """Candidate 0 is the pre-registered one; the tuned track's follow."""
        params = dict(self.cell.row.method.params)
        check_parameters(f"the method '{self.info.name}'", method_class.Config, params)
        configs = [params]
        if "tuned" in self.cell.config["tracks"]:
            n = len(self.stages.load(self.cell, self.context).splits["train"].y)
            budget = self.context.base_recipe.total_steps(n) + self.context.finetune_recipe.total_steps(n)
            configs += method_class.tuned(params, self.context.settings, budget)
        return configs

    def _shared_cost(self) -> float:
        return sum(self.context.clock.standalone[phase] for phase in ("select", "explain", "segment", "critique"))

    def task(self, loaded: Loaded, supervision: Supervision, who: str, corrections: MaskSet | None = None) -> Task:
        """The guarded view of the data for `who`."""
        return Task(
            loaded.splits,
            supervision,
            who=who,
            class_names=loaded.data.class_names,
            group_names=loaded.data.group_names,
            descriptions=loaded.data.descriptions,
            corrections=corrections,
            suite=self.cell.suite.name,
        )

    def source(self) -> MaskSource:
        """The row's mask source, made anew."""
        if self.cell.row.masks is None:
            raise RuntimeError("this row has no mask source")
        source: MaskSource = registry("mask_sources").create(self.cell.row.masks)
        return source

    def _judge(self, split: str, loaded: Loaded, base: nn.Module, ledger: Ledger) -> MaskSet:
        """The mask source's answer on a split, with its verdicts charged."""
        source = self.source()
        task = self.task(loaded, source.supervision | Supervision.LABELS, f"mask source '{self.cell.row.masks}'")
        view = task.train if split == "train" else task.val
        alignment = self.stages.alignment(self.cell, loaded, view, base, self.context)
        before = loaded.versions()
        with self.context.clock.phase("critique"):
            found = source.masks(alignment, task, self.context)
        self._check_unchanged(loaded, before, f"mask source '{self.cell.row.masks}'")
        found.check(len(view), tuple(view.images.shape[2:]))
        if found.verdicts is not None:
            judged = int(alignment.segments.nonempty.sum())
            if self.mask_info is not None and self.mask_info.block != "control":
                task.ledger.add(f"verdicts/{split}", judged)
            if split == "train":
                self._audit_verdicts(found, alignment.segments, alignment.maps, loaded)
        ledger.merge(task.ledger)
        return found

    def _corrections(self, loaded: Loaded, base: nn.Module) -> MaskSet | None:
        if self.cell.row.masks is None:
            return None
        found = self._judge("train", loaded, base, self.shared_ledger)
        self.arrays["masks/index"] = found.index.cpu().numpy()
        self.arrays["masks/packed"] = np.packbits(found.masks.flatten(1).cpu().numpy(), axis=1)
        if found.verdicts is not None:
            self.arrays["masks/verdicts"] = found.verdicts.cpu().numpy()
        train = loaded.splits["train"]
        counts = torch.bincount(train.y[found.index], minlength=len(loaded.data.class_names))
        self.audit["alignment_classes"] = counts.tolist()
        self.audit["alignment_groups"] = torch.bincount(
            train.g[found.index], minlength=len(loaded.data.group_names)
        ).tolist()
        if train.masks is not None:
            truth = train.masks[found.index].cpu().numpy()
            self.audit["mask_quality"] = plain(fidelity.mask_quality(found.masks.cpu().numpy(), truth))
        return found

    def _audit_verdicts(self, found: MaskSet, segments: Any, maps: torch.Tensor, loaded: Loaded) -> None:
        """FPR and FNR of the verdicts against the ground truth: measured, not consumed."""
        masks = loaded.splits["train"].masks
        if masks is None or found.verdicts is None or found.verdicts.shape != segments.nonempty.shape:
            return
        truth = segment_truth(segments, maps, masks[found.index])
        rates = fidelity.verdict_rates(
            found.verdicts.cpu().numpy(), truth.cpu().numpy(), segments.nonempty.cpu().numpy()
        )
        self.audit["verdicts"] = plain(rates)

    def _again(self, method_class: type[Method], config: dict[str, Any], fitted: list[Fitted]) -> Fitted | None:
        """A candidate that is fitted already, as the pre-registered one or under another name; its seconds count
        again, because the track that tries it would pay for it alone."""
        settings = self.context.settings
        settled = method_class.settled(_known(method_class, config), settings)
        equal = (f for f in fitted if method_class.settled(_known(method_class, f.config), settings) == settled)
        return next((replace(held, config=config) for held in equal), None)

    def fit_candidate(
        self,
        method_class: type[Method],
        config: dict[str, Any],
        loaded: Loaded,
        base: nn.Module,
        corrections: MaskSet | None,
    ) -> Fitted:
        """One candidate, fitted and checked. Raises VabenchError where the method broke a rule."""
        method = method_class(method_class.Config(**_known(method_class, config)))
        task = self.task(loaded, self.info.supervision, f"method '{self.info.name}'", corrections)
        self.context.notes, self.context.shared = {}, {}
        made = set(self.context.memo or ())
        before = loaded.versions()
        start = time.perf_counter()
        with self.context.clock.phase("align"):
            model = method.fit(task, copy.deepcopy(base), self.context).to(self.context.device).eval()
        shared = self.context.shared
        seconds = time.perf_counter() - start + sum(shared[name] for name in shared.keys() & made)
        self._check_unchanged(loaded, before, f"method '{self.info.name}'")
        shape = tuple(predict(model, loaded.splits["val"].images[:2]).shape)
        if shape[1:] != (len(loaded.data.class_names),):
            raise VabenchError(
                f"the model that '{self.info.name}' returned gives outputs of shape {shape} for 2 images; "
                f"logits are [N, {len(loaded.data.class_names)}]"
            )
        notes = {**self.context.notes, **self._audit_sets(method, loaded)}
        return Fitted(config, model, seconds, dict(plain(notes)), task.ledger, self.context.curve_of(model), shared)

    def _check_unchanged(self, loaded: Loaded, before: tuple[int, ...], who: str) -> None:
        if loaded.versions() != before:
            self.stages.forget()
            raise VabenchError(f"{who} changed the task's tensors in place; work on copies")

    @staticmethod
    def _audit_sets(method: Method, loaded: Loaded) -> dict[str, Any]:
        """Group histogram of every index set that a method leaves behind (JTT's error set): measured, not consumed."""
        g, names = loaded.splits["train"].g, loaded.data.group_names
        counts = {key: torch.bincount(g[index], minlength=len(names)) for key, index in method.audit_index.items()}
        return {f"{key}_groups": dict(zip(names, count.tolist(), strict=True)) for key, count in counts.items()}

    def _choose(self, track: str, fitted: list[Fitted], loaded: Loaded, base: nn.Module) -> tuple[int, str, Ledger]:
        """Candidate, rule and what the choice consumed. The pre-registered track chooses nothing."""
        if track == "preregistered" or len(fitted) == 1:
            return 0, "pre-registered" if track == "preregistered" else "nothing to tune", Ledger()
        rule = self.info.selection
        values, ledger = self._scores(rule, fitted[1:], loaded, base)
        ties = self._scores("val_accuracy", fitted[1:], loaded, base)[0]
        return 1 + choose(values, ties), rule, ledger

    def _scores(self, rule: str, fitted: list[Fitted], loaded: Loaded, base: nn.Module) -> tuple[list[float], Ledger]:
        task = self.task(loaded, rule_supervision(rule), f"selection rule '{rule}'")
        fill = self.cell.config.get("selection", {}).get("fill", "colour")

        def masked() -> MaskSet:
            return self._judge("val", loaded, base, task.ledger)

        return scores(rule, [f.model for f in fitted], task, masked, fill, self.context), task.ledger

    def _evaluate(
        self,
        record: Record,
        choices: dict[str, tuple[int, str, Ledger]],
        fitted: list[Fitted],
        loaded: Loaded,
        base: nn.Module,
        method_class: type[Method],
    ) -> None:
        data, settings = loaded.data, self.cell.config["metrics"]
        # The pre-registered candidate is often one of the tuned ones, too: one model, looked at once.
        firsts = [next(j for j, other in enumerate(fitted) if other.model is f.model) for f in fitted]
        found = {k: self._predictions(fitted[k].model, loaded) for k in dict.fromkeys(firsts)}
        results = [found[k][1] for k in firsts]
        for k in range(len(fitted)):
            self.arrays |= {f"{name}/{k}": values for name, values in found[firsts[k]][0].items()}
        applicable = [r for r in RULES if r != "masked_val" or self.cell.row.masks is not None]
        applicable = [r for r in applicable if r != "val_groups" or data.val_groups is not None]
        rated = {rule: self._scores(rule, fitted, loaded, base)[0] for rule in applicable} if len(fitted) > 1 else {}
        record.candidates = [
            Candidate(
                config=plain(f.config),
                seconds=f.seconds,
                notes=f.notes,
                selection={rule: values[k] for rule, values in rated.items()},
                test={name: results[k][name] for name in HEADLINE},
            )
            for k, f in enumerate(fitted)
        ]
        attributions: dict[int, dict[str, Any]] = {}
        for track, (chosen, rule, selection_ledger) in choices.items():
            one = firsts[chosen]
            if one not in attributions:
                attributions[one] = evaluate.attribution(fitted[one].model, loaded, settings, self.context)
            record.tracks[track] = self._track(  # type: ignore[index]
                chosen, rule, selection_ledger, fitted, method_class, {**results[chosen], **attributions[one]}
            )
        record.base = self._base_scores(base, loaded)
        record.audit = self.audit
        first = data.test[data.roles.headline]
        self.arrays |= {"y": first.y, "ids": first.ids}
        self.arrays |= {f"g/{name}": data.test[name].g for name in data.roles.grouped}

    def _track(
        self,
        chosen: int,
        rule: str,
        selection_ledger: Ledger,
        fitted: list[Fitted],
        method_class: type[Method],
        metrics: dict[str, Any],
    ) -> TrackResult:
        ledger = Ledger()
        for part in (fitted[chosen].ledger, self.shared_ledger, selection_ledger):
            ledger.merge(part)
        supervision = self.info.supervision
        if self.cell.row.masks is not None:
            supervision |= self.source().supervision
        if rule in RULES:
            supervision |= rule_supervision(rule)
        tried = fitted[1:] if rule in RULES else [fitted[chosen]]
        cost = self.shared_cost["tuned" if rule in RULES else "preregistered"] + sum(f.seconds for f in tried)
        cost += 0.0 if method_class.from_scratch else self.context.clock.standalone["base"]
        return TrackResult(
            candidate=chosen,
            rule=rule,
            supervision=list(supervision.names()),
            ledger=ledger.as_dict(),
            cost_s=cost,
            metrics=metrics,
            curve=fitted[chosen].curve,
        )

    def _predictions(self, model: nn.Module, loaded: Loaded) -> tuple[Arrays, dict[str, Any]]:
        """Logits on every split that a rule or a reader may want, as a record names them; scores of the test ones."""
        logits = evaluate.test_logits(model, loaded)
        arrays = {f"test/{name}": values for name, values in logits.items()}
        for split in ("val", "val_groups"):
            if split in loaded.splits:
                arrays[split] = predict(model, loaded.splits[split].images).cpu().numpy()
        return arrays, evaluate.score(logits, loaded.data)

    def _base_scores(self, base: nn.Module, loaded: Loaded) -> dict[str, float | None]:
        """The base model's test scores, for paired differences; computed after the choice is frozen."""
        held = self.stages.base_scores
        key = digest([self.stages.base_key(self.cell, self.context), self.cell.config["metrics"]])
        if key not in held:
            found = evaluate.score(evaluate.test_logits(base, loaded), loaded.data)
            found |= evaluate.attribution(base, loaded, self.cell.config["metrics"], self.context)
            held[key] = {name: found.get(name) for name in (*HEADLINE, "mu_lift")}
        return dict(held[key])


def _charged_once(fitted: list[Fitted]) -> list[Fitted]:
    """Candidates whose seconds add up to what a track takes: the pre-registered one by itself, the others in order."""
    charged: set[str] = set()
    found = fitted[:1]
    for candidate in fitted[1:]:
        saved = sum(seconds for name, seconds in candidate.shared.items() if name in charged)
        charged |= candidate.shared.keys()
        found.append(replace(candidate, seconds=candidate.seconds - saved))
    return found


def _known(method_class: type[Method], config: dict[str, Any]) -> dict[str, Any]:
    """What a method's `Config` takes of a candidate's settings."""
    names = {field.name for field in fields(method_class.Config)}
    return {name: value for name, value in config.items() if name in names}


def run_cell(
    cell: Cell, stages: Stages, progress: Progress | None = None, *, claims: Claims | None = None, wait: bool = True
) -> Record | None:
    """Run a cell and store it; returns the stored record, or None where another process runs the cell (not `wait`).

    Another run on the same folder may have finished the cell since it was planned: then its record is the answer, and
    what went wrong here does not replace it.
    """
    with (claims or Claims.of(stages.store.root)).claim(cell.id, wait=wait) as ours:
        return _run_claimed(cell, stages, progress) if ours else None


def _run_claimed(cell: Cell, stages: Stages, progress: Progress | None) -> Record:
    held = _finished(cell, stages)
    if held is not None:
        return held
    if _foreign(cell):  # it may train with torch's own optimisers, whose first step imports the compiler
        import_compiler()
    record, arrays = CellRun(cell, stages, progress).run()
    if record.status not in (Status.DONE, Status.NOT_APPLICABLE):
        held = _finished(cell, stages)
        if held is not None:
            return held
    stages.store.write(record, arrays)
    return record


def _foreign(cell: Cell) -> bool:
    """Whether another distribution, or this process, brought the cell's method or one of its mask sources."""
    modules = [registry("methods").info(cell.row.method.name).factory, *source_modules(cell.row.masks)]
    return any(module.partition(".")[0] not in OURS for module in modules)


def _finished(cell: Cell, stages: Stages) -> Record | None:
    state = inspect(cell, stages.store)
    return state.record if state.state == "done" and not was_gated(state.record) else None
