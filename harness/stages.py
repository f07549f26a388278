"""What cells of one suite, model and seed share: data on the device, the base model, maps and segments of the
alignment set. Each is made once, kept on disk, and charged to every cell's standalone cost."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.content_segment import content_segments
from harness.context import RunContext, Seeds
from harness.explain import draw_baselines
from harness.fingerprint import fingerprint
from harness.masks import AlignmentSet
from harness.plan import Cell, digest
from harness.record import Curve
from harness.registry import registry
from harness.segment import Segments, segment
from harness.spec import parse_spec
from harness.suite import Split, SuiteData
from harness.supervision import SplitTensors, SplitView
from harness.training import fit, predict

if TYPE_CHECKING:
    from harness.store import Store


@dataclass(frozen=True)
class Loaded:
    """A suite at one data seed with its splits on the device. Test renderings stay apart from the guarded splits."""

    data: SuiteData
    splits: dict[str, SplitTensors]
    test_images: dict[str, Tensor]

    def versions(self) -> tuple[int, ...]:
        """In-place edit counters of all tensors: equal before and after a fit that changed nothing."""
        tensors = [t for s in self.splits.values() for t in (s.images, s.y, s.a, s.g, s.masks) if t is not None]
        return tuple(t._version for t in (*tensors, *self.test_images.values()))


@dataclass
class Stages:
    """Shared stages of one process: memory in front of the store's files.

    Only the last few suites and base models are kept: a worker goes through cells seed by seed.
    """

    store: Store
    device: torch.device
    keep: int = 2
    base_scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    _coming: dict[str, Future[SuiteData]] = field(default_factory=dict)
    _loaded: dict[str, Loaded] = field(default_factory=dict)
    _models: dict[str, tuple[nn.Module, dict[str, Any]]] = field(default_factory=dict)
    _alignments: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = field(default_factory=dict)

    def load(self, cell: Cell, context: RunContext) -> Loaded:
        """The cell's suite on the device."""
        seed = context.seeds.data
        key = _data_key(cell, seed)
        with context.clock.phase("data"):
            if key not in self._loaded:
                coming = self._coming.pop(key, None)
                data = coming.result() if coming is not None else _load(cell, seed)
                named = {"train": data.train, "val": data.val, "val_groups": data.val_groups}
                named["decorrelated"] = data.decorrelated
                splits = {name: self._to_device(name, split) for name, split in named.items() if split is not None}
                tests = {name: torch.from_numpy(split.images).to(self.device) for name, split in data.test.items()}
                _remember(self._loaded, key, Loaded(data, splits, tests), self.keep)
        return self._loaded[key]

    def prepare(self, cell: Cell) -> None:
        """Load the suite of a coming cell in a thread beside the present one's work, if it is another suite or seed.

        Only the arrays in memory: what goes to the device waits for `load`. An error there is raised by `load`.
        """
        seed = Seeds.all(cell.seed).data
        key = _data_key(cell, seed)
        if key in self._loaded or key in self._coming:
            return
        self._coming.clear()  # what was to come and did not: another worker has it
        future = self._coming[key] = Future[SuiteData]()

        def run() -> None:
            try:
                future.set_result(_load(cell, seed))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="next data", daemon=True).start()

    def forget(self) -> None:
        """Drop the data in memory: the next cell loads it afresh."""
        self._loaded.clear()

    def base_key(self, cell: Cell, context: RunContext) -> str:
        """Identity of the base model: all that its weights depend on."""
        modules = [
            "harness.training",
            "harness.context",
            registry("models").info(cell.model.name).factory.partition(":")[0],
            registry("suites").info(cell.suite.name).factory.partition(":")[0],
        ]
        parts = [cell.config["suite"], cell.identity["suite_version"], cell.identity["data"], cell.model.canonical()]
        parts.append(cell.identity.get("files", {}).get(f"{cell.model.name}.weights"))
        seeds = [context.seeds.data, context.seeds.init]
        return digest([*parts, cell.config["recipes"]["base"], seeds, fingerprint(modules), str(self.device)])

    def base(self, cell: Cell, loaded: Loaded, context: RunContext) -> nn.Module:
        """A private copy of the base model (plain ERM with the base recipe), in eval mode on the device."""
        key = self.base_key(cell, context)
        with context.clock.phase("base", standalone=False):
            if key not in self._models:
                model = context.fresh_model()

                def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
                    start = time.perf_counter()
                    train = loaded.splits["train"]
                    fit(
                        model,
                        train.images,
                        train.y,
                        context.base_recipe,
                        context,
                        stream="base",
                        axis="init",
                        phase="base",
                    )
                    facts = {"seconds": time.perf_counter() - start, "curve": context.curve_of(model).model_dump()}
                    if "micro_batch" in context.notes:
                        facts["micro_batch"] = context.notes["micro_batch"]
                    return dict(model.state_dict()), facts

                tensors, facts, _ = self.store.stage("base", key, make)
                model.load_state_dict(tensors)
                _remember(self._models, key, (model.eval(), facts), 2 * self.keep)
            model, facts = self._models[key]
        if "micro_batch" in facts:  # a cell that finds the model made says so too
            context.note(micro_batch=facts["micro_batch"])
        context.clock.charge_stage("base", key, float(facts["seconds"]))
        return copy.deepcopy(model)

    def base_curve(self, cell: Cell, context: RunContext) -> Curve | None:
        """The base model's training loss, from wherever the model came; call `base` before."""
        facts = self._models[self.base_key(cell, context)][1]
        return Curve.model_validate(facts["curve"]) if "curve" in facts else None

    def alignment(
        self, cell: Cell, loaded: Loaded, view: SplitView, base: nn.Module, context: RunContext
    ) -> AlignmentSet:
        """The alignment set of a split: on train the sampler's choice of n images, on val all images."""
        settings = cell.config["alignment"]
        sampler, explainer = (parse_spec(settings[name]) for name in ("sampler", "explainer"))
        modules = [
            "harness.segment",
            "harness.explain",
            registry("samplers").info(sampler.name).factory.partition(":")[0],
            registry("explainers").info(explainer.name).factory.partition(":")[0],
        ]
        names = ("n", "sampler", "explainer", "baselines", "baseline_kind")
        parts = [self.base_key(cell, context), view.name, {name: settings[name] for name in names}]
        key = digest([*parts, context.seeds.method, fingerprint(modules)])
        index = self._index(key, sampler, settings["n"], view, base, context)

        def maps() -> Tensor:
            train = loaded.splits["train"].images  # baselines are training images, whatever split is explained
            return self._maps(key, explainer, settings, train, view, index, base, context)[0]["maps"]

        def segments() -> Segments:
            return self._segments(key, settings["segments"], view, index, maps, context)

        return AlignmentSet(view, index, maps, segments)

    def _index(self, key: str, sampler: Any, n: int, view: SplitView, base: nn.Module, context: RunContext) -> Tensor:
        if view.name != "train":
            return torch.arange(len(view), device=self.device)
        if n > len(view):
            context.note(alignment_n=f"asked for {n}, the training split has {len(view)}")
        with context.clock.phase("select"):
            held = self._alignments.get("index" + key)
            if held is None:
                chooser = registry("samplers").create(sampler)
                logits = predict(base, view.images)
                chosen = chooser.select(logits, view.y, min(n, len(view)), context.generator("alignment"))
                _remember(self._alignments, "index" + key, ({"index": chosen.to(self.device)}, {}), 8 * self.keep)
        return self._alignments["index" + key][0]["index"]

    def _maps(
        self,
        key: str,
        explainer: Any,
        settings: dict[str, Any],
        train: Tensor,
        view: SplitView,
        index: Tensor,
        base: nn.Module,
        context: RunContext,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            start = time.perf_counter()
            baselines = draw_baselines(
                train,
                settings["baselines"],
                context.generator("explain/baselines", "data"),
                settings["baseline_kind"],
            )
            explain = registry("explainers").create(explainer)
            found = explain(base, view.images[index], view.y[index], baselines)
            gap = float(torch.quantile(found.gap.float(), 0.95)) if len(found.gap) else 0.0
            return {"maps": found.maps}, {"seconds": time.perf_counter() - start, "gap_p95": gap}

        tensors, facts = self._shared("explain", "maps", key, make, context)
        context.notes.setdefault("completeness_gap_p95", {})[view.name] = facts["gap_p95"]
        return tensors, facts

    def _segments(
        self, key: str, settings: dict[str, Any], view: SplitView, index: Tensor, maps: Any, context: RunContext
    ) -> Segments:
        source = maps()
        values = {name: value for name, value in settings.items() if name != "kind"}

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            start = time.perf_counter()
            if settings.get("kind") == "slic":
                found = content_segments(view.images[index], source, values["count"], values["support"])
            else:
                found = segment(source, **values, generator=context.generator(f"segment/{view.name}"))
            tensors = {"labels": found.labels, "share": found.share, "loglik": found.loglik}
            return tensors, {"seconds": time.perf_counter() - start}

        key = digest([key, settings, fingerprint(["harness.content_segment"])])
        tensors, _ = self._shared("segment", "segments", key, make, context)
        return Segments(labels=tensors["labels"], share=tensors["share"], loglik=tensors["loglik"])

    def _shared(
        self, phase: str, kind: str, key: str, make: Any, context: RunContext
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with context.clock.phase(phase, standalone=False):
            if kind + key not in self._alignments:
                tensors, facts, _ = self.store.stage(kind, key, make)
                on_device = {name: value.to(self.device) for name, value in tensors.items()}
                _remember(self._alignments, kind + key, (on_device, facts), 8 * self.keep)
            tensors, facts = self._alignments[kind + key]
        context.clock.charge_stage(phase, kind + key, float(facts["seconds"]))
        return tensors, facts

    def _to_device(self, name: str, split: Split) -> SplitTensors:
        def move(array: Any) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        masks = move(split.masks) if split.masks is not None else None
        return SplitTensors(name, move(split.images), move(split.y), move(split.a), move(split.g), masks)


def _data_key(cell: Cell, seed: int) -> str:
    return digest([cell.config["suite"], cell.identity["data"], seed])


def _load(cell: Cell, seed: int) -> SuiteData:
    data: SuiteData = registry("suites").create(cell.suite).load(seed)
    return data


def _remember(memory: dict[str, Any], key: str, value: Any, limit: int) -> None:
    memory[key] = value
    while len(memory) > limit:
        memory.pop(next(iter(memory)))
