"""Contract tests for a stranger's method, mask source or suite: what `vabench check pkg:Class` runs."""

from __future__ import annotations

import importlib
import json
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.context import RunContext, Seeds
from harness.errors import ComponentError, NotApplicable
from harness.masks import AlignmentSet, MaskSet, MaskSource, MaskSourceInfo
from harness.method import Method, MethodInfo
from harness.models import build_model
from harness.segment import segment
from harness.spec import Spec
from harness.suite import Split, Suite, SuiteInfo
from harness.supervision import SplitTensors, Supervision, Task
from harness.training import TrainRecipe, fit, predict

CLASSES, SHAPE, MODEL = 3, (1, 12, 12), Spec("mlp", {"hidden": 16})


@dataclass(frozen=True)
class Check:
    """One line of the contract and whether it holds."""

    name: str
    passed: bool
    detail: str = ""


def check_target(target: str) -> list[Check]:
    """Run the contract that fits the class behind `package.module:Class`.

    Raises:
        ComponentError: it cannot be imported, or is none of Method, MaskSource and Suite.
    """
    found = _import(target)
    if isinstance(found, type):
        if issubclass(found, Method):
            return list(_method_checks(found))
        if issubclass(found, MaskSource):
            return list(_source_checks(found))
        if issubclass(found, Suite):
            return list(_suite_checks(found))
    raise ComponentError(f"'{target}' is neither a Method, a MaskSource nor a Suite (harness.method, .masks, .suite)")


def _import(target: str) -> Any:
    """The object behind `package.module:Class`; a ComponentError says which half of the name is at fault, or where."""
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise ComponentError(f"'{target}' is not package.module:Class (a colon before the class)")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # a stranger's import may raise anything
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and (module == absent or module.startswith(f"{absent}.")):
            raise ComponentError(
                f"there is no module '{absent}' to import '{target}' from; write package.module:Class, and install "
                f"the package (pip install -e .) or run in the folder that holds it with PYTHONPATH=."
            ) from error
        raise ComponentError(
            f"the module '{module}' raises while it is imported: {type(error).__name__}: {error}{_place(error)}"
        ) from error
    if not hasattr(loaded, name):
        own = [n for n, value in vars(loaded).items() if isinstance(value, type) and value.__module__ == module]
        raise ComponentError(
            f"the module '{module}' has no '{name}'; classes that it defines: {', '.join(own) or 'none'}"
        )
    return getattr(loaded, name)


def _place(error: Exception) -> str:
    """File and line where a stranger's code raised, as ` (file, line n)`."""
    if isinstance(error, SyntaxError):
        return ""  # its text says where
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def _attempt(name: str, test: Callable[[], str | None]) -> Check:
    """A check from a function that returns a detail, or raises what went wrong."""
    try:
        return Check(name, True, test() or "")
    except _Unmet as error:
        return Check(name, False, str(error))
    except Exception as error:  # whatever a stranger's code raises is the finding
        return Check(name, False, f"{type(error).__name__}: {error}")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise _Unmet(message)


class _Unmet(Exception):
    """A sentence of the contract that does not hold; its message is the whole finding."""


# -- methods ----------------------------------------------------------------------------------------------------------


def toy_split(name: str, n: int, rho: float, seed: int, drop_group: int | None = None) -> SplitTensors:
    """Three classes, a bright row each; a corner square whose grey tells the class with probability rho."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % CLASSES)
    other = (y + rng.integers(1, CLASSES, n)) % CLASSES
    a = np.where(rng.random(n) < rho, y, other)
    if drop_group is not None:
        a = np.where((2 * y + (a != y)) == drop_group, y if drop_group % 2 else other, a)
    images = rng.integers(0, 60, (n, *SHAPE))
    images[np.arange(n), :, 5 + 2 * y, 3:9] += 90
    masks = np.zeros((n, *SHAPE[1:]), dtype=bool)
    masks[:, :3, :3] = True
    images = np.where(masks[:, None], (255 - 100 * a)[:, None, None, None], images).astype(np.uint8)
    parts = (torch.from_numpy(array) for array in (images, y, a, 2 * y + (a != y), masks))
    return SplitTensors(name, *parts)


def toy_splits(rho: float = 0.8, drop_group: int | None = None) -> dict[str, SplitTensors]:
    """Splits of the toy task, as a guarded Task takes them."""
    return {
        "train": toy_split("train", 96, rho, 0, drop_group),
        "val": toy_split("val", 48, rho, 1),
        "val_groups": toy_split("val_groups", 48, 0.5, 2),
        "decorrelated": toy_split("decorrelated", 96, 1 / CLASSES, 3),
    }


def toy_context(device: str = "cpu") -> RunContext:
    """A context with tiny recipes."""
    context = RunContext(
        device=torch.device(device),
        seeds=Seeds.all(0),
        base_recipe=TrainRecipe(batch_size=32, epochs=4),
        finetune_recipe=TrainRecipe(optimizer="sgd", lr=0.05, batch_size=32, steps=10, clip_norm=1.0),
        settings={"lam": 1.0, "lam_grid": [0.01, 0.1, 1.0], "penalty": {"form": "sum_log_p", "normalise": "none"}},
    )
    context.build_model = lambda: build_model(MODEL, SHAPE, CLASSES, context.seed("model", "init")).to(context.device)
    return context


def toy_task(splits: dict[str, SplitTensors], supervision: Supervision, who: str, masks: MaskSet | None = None) -> Task:
    """The guarded toy task."""
    groups = tuple(f"{k}/{kind}" for k in range(CLASSES) for kind in ("aligned", "conflicting"))
    sentences = {kind: {str(k): "a bright row" for k in range(CLASSES)} for kind in ("core", "spurious", "both")}
    classes = tuple(map(str, range(CLASSES)))
    return Task(
        splits,
        supervision,
        who=who,
        class_names=classes,
        group_names=groups,
        descriptions=sentences,
        corrections=masks,
    )


def _toy_corrections(splits: dict[str, SplitTensors]) -> MaskSet:
    index = torch.arange(24)
    masks = splits["train"].masks
    _expect(masks is not None, "the toy task has masks")
    verdicts = torch.tensor([[1, 0]], dtype=torch.int8).repeat(24, 1)
    return MaskSet(index, masks[index], verdicts)  # type: ignore[index]


def _base(splits: dict[str, SplitTensors], context: RunContext) -> nn.Module:
    model = context.fresh_model()
    train = splits["train"]
    return fit(model, train.images, train.y, context.base_recipe, context, stream="base")


def fit_toy(
    method_class: type[Method], splits: dict[str, SplitTensors], config: dict[str, Any] | None = None
) -> tuple[nn.Module, int]:
    """Fit a method on the toy task; returns the model and the optimiser steps that it took."""
    context = toy_context()
    base = _base(splits, context)
    info = method_class.info
    masks = _toy_corrections(splits) if info.uses_masks else None
    task = toy_task(splits, info.supervision, f"method '{info.name}'", masks)
    with _count_steps() as steps:
        model = method_class(method_class.Config(**(config or {}))).fit(task, base, context)
    given = "None" if model is None else f"a {type(model).__name__}"
    _expect(
        isinstance(model, nn.Module),
        f"fit returned {given}, not a model: end it with the repaired torch.nn.Module (`return model`), or the base "
        f"model where nothing is repaired",
    )
    return model, steps[0]


@contextmanager
def _count_steps() -> Iterator[list[int]]:
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    handle = register_optimizer_step_post_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def _logits(model: nn.Module, splits: dict[str, SplitTensors]) -> Tensor:
    return predict(model, splits["val"].images)


def _method_checks(cls: type[Method]) -> Iterator[Check]:
    info = getattr(cls, "info", None)
    named = isinstance(info, MethodInfo)
    yield Check("has a MethodInfo as `info`", named, "" if named else "set `info = MethodInfo(...)` on the class")
    if not isinstance(info, MethodInfo):
        return
    splits = toy_splits()

    def fits() -> None:
        model, _ = fit_toy(cls, splits)
        logits = _logits(model, splits)
        _expect(logits.shape == (48, CLASSES), f"logits must be [N, {CLASSES}], got {tuple(logits.shape)}")
        _expect(bool(logits.isfinite().all()), "the logits are not finite")

    yield _attempt("fits within its declared supervision", fits)

    def deterministic() -> None:
        torch.manual_seed(1)
        first = _logits(fit_toy(cls, splits)[0], splits)
        torch.manual_seed(2)
        second = _logits(fit_toy(cls, splits)[0], splits)
        _expect(torch.equal(first, second), "two fits at one seed differ; draw from context.generator(name)")

    yield _attempt("deterministic under its seed", deterministic)

    def empty_group() -> str:
        return _or_not_applicable(lambda: fit_toy(cls, toy_splits(drop_group=3)))

    yield _attempt("copes with an empty group", empty_group)
    yield _attempt("copes with rho = 1", lambda: _or_not_applicable(lambda: fit_toy(cls, toy_splits(rho=1.0))))

    def device() -> str:
        names = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        model, _ = fit_toy(cls, splits)
        off = [name for name, value in model.state_dict().items() if value.device.type != "cpu"]
        _expect(not off, f"{', '.join(off)} left the context's device")
        return f"tried on {', '.join(names[:1])}"

    yield _attempt("stays on the context's device", device)

    def budget() -> str:
        context = toy_context()
        n = len(splits["train"].y)
        limit = context.base_recipe.total_steps(n) + context.finetune_recipe.total_steps(n)
        worst = fit_toy(cls, splits)[1]
        for config in cls.tuned({}, context.settings, limit):
            worst = max(worst, fit_toy(cls, splits, config)[1])
        _expect(worst <= limit, f"took {worst} optimiser steps, the budget is {limit}")
        return f"{worst} of {limit} steps"

    yield _attempt("honours the budget of training steps, tuned configurations included", budget)


def _or_not_applicable(run: Callable[[], Any]) -> str:
    try:
        run()
    except NotApplicable as reason:
        return f"not applicable: {reason}"
    return ""


# -- mask sources -----------------------------------------------------------------------------------------------------


def _toy_alignment(splits: dict[str, SplitTensors], task: Task) -> AlignmentSet:
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(16)
    maps = torch.rand(16, *SHAPE[1:], generator=generator) - 0.3
    maps[:, :3, :3] += 2.0
    maps[0] = -1.0  # an image without positive attribution has no segments
    segments = segment(maps, count=3, pool=12, restarts=2, generator=generator)
    return AlignmentSet(task.train, index, lambda: maps, lambda: segments)


def _source_checks(cls: type[MaskSource]) -> Iterator[Check]:
    info = getattr(cls, "info", None)
    named = isinstance(info, MaskSourceInfo)
    yield Check("has a MaskSourceInfo as `info`", named, "" if named else "set `info = MaskSourceInfo(...)`")
    if not named:
        return
    splits = toy_splits()

    def ask() -> tuple[MaskSet, AlignmentSet]:
        source = cls()
        task = toy_task(splits, source.supervision | Supervision.LABELS, f"mask source '{cls.info.name}'")
        alignment = _toy_alignment(splits, task)
        return source.masks(alignment, task, toy_context()), alignment

    def shapes() -> None:
        found, alignment = ask()
        _expect(found.masks.dtype == torch.bool, f"masks must be bool, got {found.masks.dtype}")
        expected = (len(found.index), *SHAPE[1:])
        _expect(tuple(found.masks.shape) == expected, f"masks must be {expected}, got {tuple(found.masks.shape)}")
        inside = bool(((found.index >= 0) & (found.index < len(alignment.split))).all())
        _expect(inside, "index points outside the split")
        if found.verdicts is not None:
            values = set(found.verdicts.unique().tolist())
            _expect(values <= {-1, 0, 1}, f"verdicts are 1, 0 or -1, got {sorted(values)}")

    yield _attempt("answers within its declared supervision, an image without segments included", shapes)

    def deterministic() -> None:
        torch.manual_seed(1)
        first = ask()[0]
        torch.manual_seed(2)
        second = ask()[0]
        same = torch.equal(first.masks, second.masks) and torch.equal(first.index, second.index)
        _expect(same, "two answers at one seed differ; draw from context.generator(name)")

    yield _attempt("deterministic under its seed", deterministic)
    yield _attempt("its params are plain JSON", lambda: json.dumps(cls().params)[:0])


# -- suites -----------------------------------------------------------------------------------------------------------


def _suite_checks(cls: type[Suite]) -> Iterator[Check]:
    info = getattr(cls, "info", None)
    named = isinstance(info, SuiteInfo)
    yield Check("has a SuiteInfo as `info`", named, "" if named else "set `info = SuiteInfo(...)` on the class")
    try:
        suite = cls()
        data = suite.load(0)
    except Exception as error:  # without data nothing else can be checked
        yield Check("loads with its default parameters", False, f"{type(error).__name__}: {error}")
        return
    yield Check("loads with its default parameters", True, suite.name)

    def stable() -> None:
        again = cls().load(0)
        for name in ("train", "val"):
            one, other = getattr(data, name), getattr(again, name)
            _expect(_equal(one, other), f"two loads of seed 0 differ in '{name}'")
        for name, split in data.test.items():
            _expect(_equal(split, again.test[name]), f"two loads of seed 0 differ in test rendering '{name}'")
        _expect(suite.data_hash() == cls().data_hash(), "data_hash is not stable")

    yield _attempt("deterministic under its data seed", stable)

    def private() -> None:
        def states() -> list[str]:
            legacy = np.random.get_state()  # noqa: NPY002 - the global generator is what is looked at
            return [repr(random.getstate()), repr(legacy), repr(torch.get_rng_state().tolist())]

        before = states()
        cls().load(1)  # after loads of seed 0, which might have left the state that it leaves again
        _expect(
            states() == before, "`load` draws from, or seeds, a global random generator; make one: default_rng(seed)"
        )

    yield _attempt("leaves the global random generators alone", private)
    yield _attempt("its params are plain JSON", lambda: json.dumps(suite.params)[:0])

    def labels() -> None:
        splits = {"train": data.train, "val": data.val, **data.test}
        for name, split in splits.items():
            for values, limit, what in (
                (split.y, len(data.class_names), "class"),
                (split.g, len(data.group_names), "group"),
            ):
                bad = (values < 0) | (values >= limit)
                _expect(not bad.any(), f"'{name}' has a {what} index outside 0..{limit - 1}")
        missing = set(range(len(data.class_names))) - set(data.train.y.tolist())
        _expect(not missing, f"train has no image of class {sorted(missing)}")

    yield _attempt("labels and groups are in range, every class is in train", labels)

    def renderings() -> None:
        first = data.test[data.roles.headline]
        for name, split in data.test.items():
            same = np.array_equal(split.ids, first.ids) and np.array_equal(split.y, first.y)
            _expect(same, f"rendering '{name}' shows other base images, or another order, than the headline one")

    yield _attempt("every test rendering shows the same base images in the same order", renderings)

    def apart() -> None:
        for name, split in (
            ("val", data.val),
            ("val_groups", data.val_groups),
            ("test", data.test[data.roles.headline]),
        ):
            if split is not None:
                shared = np.intersect1d(data.train.ids, split.ids)
                _expect(len(shared) == 0, f"{len(shared)} base images are in train and in {name} (ids {shared[:5]})")

    yield _attempt("no base image is in two splits", apart)


def _equal(one: Split, other: Split) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("images", "y", "a", "g", "ids"))
