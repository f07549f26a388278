"""What a method is: its metadata and `fit`. A repair mechanism gets its masks from `task.corrections`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.supervision import Supervision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.context import RunContext
    from harness.supervision import Task

Block = Literal["reference", "baseline", "control", "method"]
SelectionRule = Literal["val_accuracy", "val_groups", "masked_val"]


@dataclass(frozen=True)
class MethodInfo:
    """Metadata of a method, readable without loading it.

    supervision: what `fit` reads. selection: the rule of its class on the tuned track (protocol.md); `val_groups`
    charges VAL_GROUPS on that track. deviations: where this implementation leaves the paper, one sentence each.
    """

    name: str
    summary: str
    factory: str  # "package.module:Class"
    citation: str
    supervision: Supervision
    block: Block = "baseline"
    selection: SelectionRule = "val_accuracy"
    uses_masks: bool = False
    returns_base: bool = False  # `fit` gives the base model unchanged: its rows feed the diagnosis gate
    default_masks: str | None = None  # mask source of a row that names none
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoConfig:
    """Config of a method without settings."""


class Method(ABC):
    """Base of every method.

    `Config` is a frozen dataclass whose defaults are the pre-registered settings; `grid` holds the tuned track's
    overrides of it, one candidate each. An instance is built once per candidate and fitted once. `from_scratch` says
    that `fit` trains a model of its own, so that the base model's training is no part of its cost; its `Config` then
    has `steps`, with which the tuned track gives every method an equal number of training steps.
    """

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[Any]] = NoConfig
    grid: ClassVar[tuple[dict[str, Any], ...]] = ()
    from_scratch: ClassVar[bool] = False

    def __init__(self, config: Any = None):
        self.config = config if config is not None else self.Config()
        # Training indices by name (JTT's error set) that the engine compares with the groups, which `fit` may not see.
        self.audit_index: dict[str, Tensor] = {}

    @classmethod
    def tuned(cls, params: dict[str, Any], settings: dict[str, Any], budget_steps: int) -> list[dict[str, Any]]:
        """Configurations of the tuned track.

        Args:
            params: what the row says. settings: the preset's `alignment` section. budget_steps: training steps of the
            base model plus those of a repair, the budget of every candidate.
        """
        steps = {"steps": budget_steps} if cls.from_scratch else {}
        return [{**params, **steps, **override} for override in cls.grid]

    @classmethod
    def settled(cls, params: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """A candidate's whole configuration, with the preset's values where its own say None: candidates of equal
        configuration are fitted once. Arguments as in `tuned`."""
        return asdict(cls.Config(**params))

    @abstractmethod
    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Return a repaired model.

        Args:
            task: the guarded data; reading more than `info.supervision` raises SupervisionError.
            base: the biased model, a private copy in eval mode that may be changed in place.
            context: device, random streams, recipes, phase clock; notes for the record go to `context.note`.

        Raises:
            NotApplicable: the method is undefined on this task (say why).
        """
