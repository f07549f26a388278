"""What a running cell carries: device, one random stream per axis, recipes, phase clock, progress."""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

if TYPE_CHECKING:
    import torch

    from harness.record import Curve
    from harness.training import TrainRecipe

T = TypeVar("T")
Axis = Literal["data", "init", "method"]
PHASES = ("data", "base", "select", "explain", "segment", "critique", "align", "evaluate", "write", "idle")


def derive_seed(seed: int, *names: str) -> int:
    """A 63-bit seed from a seed and names, stable across machines and Python versions."""
    digest = hashlib.sha256(":".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Seeds:
    """One seed per axis. Two methods at one seed share data and initialisation, so comparisons are paired."""

    data: int
    init: int
    method: int

    @classmethod
    def all(cls, seed: int) -> Seeds:
        """The same seed on every axis."""
        return cls(seed, seed, seed)


class PhaseClock:
    """Wall-clock seconds by phase: `spent` here, and `standalone` without the savings of shared stages."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.standalone: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._start = time.perf_counter()
        self._stack: list[tuple[str, float]] = []
        self._charged: set[str] = set()

    @contextmanager
    def phase(self, name: str, *, standalone: bool = True) -> Iterator[None]:
        """Time a block. Nested phases are not counted twice: the inner one interrupts the outer one."""
        if name not in self.spent:
            raise ValueError(f"unknown phase '{name}'; known: {', '.join(PHASES)}")
        now = time.perf_counter()
        if self._stack:
            outer, since = self._stack[-1]
            self._book(outer, now - since)
        self._stack.append((name if standalone else f"-{name}", now))
        try:
            yield
        finally:
            label, since = self._stack.pop()
            now = time.perf_counter()
            self._book(label, now - since)
            if self._stack:
                self._stack[-1] = (self._stack[-1][0], now)

    def charge_stage(self, name: str, key: str, seconds: float) -> None:
        """Charge what a shared stage cost where it was made; a stage that a cell reads twice is charged once."""
        if key not in self._charged:
            self._charged.add(key)
            self.standalone[name] += seconds

    def close(self) -> float:
        """Book the rest as `idle` and return the wall-clock of the cell in seconds."""
        wall = time.perf_counter() - self._start
        self.spent["idle"] = max(0.0, wall - sum(v for k, v in self.spent.items() if k != "idle"))
        return wall

    def _book(self, label: str, seconds: float) -> None:
        name = label.removeprefix("-")
        self.spent[name] += seconds
        if label == name:
            self.standalone[name] += seconds


@dataclass
class RunContext:
    """Handed to methods, mask sources, samplers and explainers.

    recipes: `base` (training from scratch) and `finetune` (repair of the base model), from the preset.
    settings: the preset's `alignment` section (n, baselines, segments, ...), plain values.
    notes: facts of this run for its record (JSON-serialisable), e.g. JTT's error-set precision.
    """

    device: torch.device
    seeds: Seeds
    base_recipe: TrainRecipe
    finetune_recipe: TrainRecipe
    settings: dict[str, Any] = field(default_factory=dict)
    clock: PhaseClock = field(default_factory=PhaseClock)
    notes: dict[str, Any] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] | None = None
    build_model: Callable[[], torch.nn.Module] | None = None
    recordings: Path | None = None  # folder of a vision-language model's recorded answers
    compile_s: float = 0.0  # seconds of training steps that were compiled at their first run
    images_trained: int = 0  # images of the batches that `harness.training.fit` has taken steps on
    memo: dict[str, tuple[Any, float]] | None = None  # results of `once` with their seconds; None: nothing is kept
    shared: dict[str, float] = field(default_factory=dict)  # what the present fit had from `once`, with its seconds
    _making: bool = field(default=False, repr=False)
    _losses: list[tuple[weakref.ref[torch.nn.Module], torch.Tensor]] = field(default_factory=list, repr=False)

    def seed(self, name: str, axis: Axis = "method") -> int:
        """The seed of a named stream on an axis."""
        return derive_seed(getattr(self.seeds, axis), axis, name)

    def generator(self, name: str, axis: Axis = "method", device: str = "cpu") -> torch.Generator:
        """A fresh generator for a named stream; the same name gives the same stream again."""
        import torch

        return torch.Generator(device).manual_seed(self.seed(name, axis))

    def fresh_model(self) -> torch.nn.Module:
        """A newly initialised model of the cell's architecture, equal for every method at one `init` seed."""
        if self.build_model is None:
            raise RuntimeError("this context was made without a model builder")
        return self.build_model()

    def once(self, name: str, make: Callable[[], T]) -> T:
        """A part of `Method.fit` that all candidates of a cell do alike, as DFR embeds: the first one does it.

        Its seconds count once for each track. The result must not be changed, nor depend on the candidate's settings.
        On a GPU it must be complete when `make` returns.

        Raises:
            RuntimeError: inside of `make`, where seconds would count twice.
        """
        if self._making:
            raise RuntimeError(f"once('{name}', ...) inside of another one's `make`: do one after the other")
        if self.memo is None:
            return make()
        if name not in self.memo:
            start, self._making = time.perf_counter(), True
            try:
                self.memo[name] = make(), time.perf_counter() - start
            finally:
                self._making = False
        result, self.shared[name] = self.memo[name]
        return cast("T", result)

    def keep_losses(self, model: torch.nn.Module, losses: torch.Tensor) -> None:
        """Keep the loss of every step that `model` was trained for, float [S] on the device; no model is kept alive."""
        self._losses = [(held, values) for held, values in self._losses if held() is not None]
        self._losses.append((weakref.ref(model), losses))

    def curve_of(self, model: torch.nn.Module) -> Curve:
        """The training loss of a model over all steps that `harness.training.fit` took on it here; none: 0 steps."""
        from harness.curve import summarise

        return summarise([value for held, values in self._losses if held() is model for value in values.tolist()])

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around a first step under torch.compile: its seconds go to `compile_s`. Waits for the device at both ends."""
        import torch

        def now() -> float:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter()

        start = now()
        yield
        self.compile_s += now() - start

    def note(self, **facts: Any) -> None:
        """Put facts into the record."""
        self.notes.update(facts)

    def report(self, phase: str, done: int, total: int) -> None:
        """Tell the live display how far a phase has come; cheap enough for every step."""
        if self.progress is not None:
            self.progress(phase, done, total)
