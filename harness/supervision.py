"""What a cell may see: supervision flags, the guarded view of a task, and the ledger of what was consumed.

A guard against mistakes, not against malice: Python cannot hide memory from a determined method.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import NotApplicable, SupervisionError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.masks import MaskSet


class Supervision(enum.Flag):
    """Kinds of human knowledge that a cell can consume, beyond the images themselves."""

    NONE = 0
    LABELS = enum.auto()  # class labels of train and val
    TRAIN_GROUPS = enum.auto()  # group label or spurious attribute of every training image
    VAL_GROUPS = enum.auto()  # the small decorrelated split with group labels
    MASKS = enum.auto()  # pixel masks of the spurious object
    DECORRELATED = enum.auto()  # training data without the shortcut
    TEXT = enum.auto()  # class-level descriptions
    LVLM = enum.auto()  # answers of a vision-language model
    PERSON = enum.auto()  # a person's verdicts on segments

    def names(self) -> tuple[str, ...]:
        """Lower-case names of the flags that are set, in declaration order."""
        return tuple(str(flag.name).lower() for flag in Supervision if flag in self)


@dataclass
class Ledger:
    """Counts what was consumed. An item (one mask, one label) read twice is charged once."""

    seen: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def charge(self, kind: str, split: str, size: int, index: Tensor | None = None) -> None:
        """Charge items `index` (all if None) of a split that holds `size` items."""
        import torch

        flags = self.seen.setdefault((kind, split), torch.zeros(size, dtype=torch.bool))
        if index is None:
            flags[:] = True
        else:
            flags[index.detach().cpu()] = True

    def add(self, kind: str, amount: float) -> None:
        """Add an amount that has no item identity (LVLM calls, tokens, sentences)."""
        self.counts[kind] = self.counts.get(kind, 0.0) + amount

    def merge(self, other: Ledger) -> None:
        """Charge everything that `other` holds here too (a shared stage, or a selection rule)."""
        for (kind, split), flags in other.seen.items():
            self.charge(kind, split, len(flags), flags.nonzero().flatten())
        for kind, amount in other.counts.items():
            self.add(kind, amount)

    def as_dict(self) -> dict[str, float]:
        """Totals by `kind/split`, e.g. `{"masks/train": 500, "labels/train": 4000}`."""
        totals: dict[str, float] = {f"{kind}/{split}": float(flags.sum()) for (kind, split), flags in self.seen.items()}
        return dict(sorted({**totals, **self.counts}.items()))


@dataclass(frozen=True)
class SplitTensors:
    """A split on the device, unguarded: for the engine only.

    images: uint8 [N, C, H, W]; y, a, g: int64 [N]; masks: bool [N, H, W] or None (True = spurious object).
    """

    name: str
    images: Tensor
    y: Tensor
    a: Tensor
    g: Tensor
    masks: Tensor | None


_HAS = ("images", "y", "groups", "attributes", "masks", "name")
_ALIASES = {"x": "images", "labels": "y", "targets": "y", "g": "groups", "a": "attributes", "attribute": "attributes"}


class SplitView:
    """A split as a method sees it: images and labels free, groups and masks only where declared."""

    def __init__(self, tensors: SplitTensors, allowed: Supervision, groups_flag: Supervision, who: str, ledger: Ledger):
        self._tensors = tensors
        self._allowed = allowed
        self._groups_flag = groups_flag
        self._who = who
        self._ledger = ledger

    def __len__(self) -> int:
        return len(self._tensors.y)

    @property
    def name(self) -> str:
        """Name of the split: `train`, `val`, `val_groups` or `decorrelated`."""
        return self._tensors.name

    @property
    def images(self) -> Tensor:
        """uint8 [N, C, H, W] on the device."""
        return self._tensors.images

    @property
    def y(self) -> Tensor:
        """Class labels, int64 [N]."""
        self._need(Supervision.LABELS, "labels")
        return self._tensors.y

    @property
    def groups(self) -> Tensor:
        """Group index, int64 [N]; needs TRAIN_GROUPS on train, VAL_GROUPS on validation splits."""
        self._need(self._groups_flag, "groups")
        return self._tensors.g

    @property
    def attributes(self) -> Tensor:
        """Spurious attribute, int64 [N] (-1 = none); needs the same flag as `groups`."""
        self._need(self._groups_flag, "groups")
        return self._tensors.a

    if not TYPE_CHECKING:  # a type checker shall go on to refuse unknown names

        def __getattr__(self, name: str) -> Any:
            """Whatever a split does not have: AttributeError with what it has, and what that needs."""
            if name.startswith("_"):  # Python's own questions (copying, pickling)
                raise AttributeError(name)
            near = [_ALIASES[name]] if name in _ALIASES else difflib.get_close_matches(name, _HAS, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise AttributeError(
                f"{self._who} asked split '{self.name}' for '{name}', which no split has{hint}; it has images, name, "
                f"len(), with the flag LABELS y, with {self._groups_flag.name} groups and attributes, with MASKS "
                f"masks(index)"
            )

    def masks(self, index: Tensor | None = None) -> Tensor:
        """Ground-truth masks of the spurious object, bool [N or len(index), H, W]; needs MASKS."""
        self._need(Supervision.MASKS, "masks", index)
        if self._tensors.masks is None:
            raise NotApplicable(f"split '{self.name}' of this suite has no pixel masks of the spurious object")
        return self._tensors.masks if index is None else self._tensors.masks[index]

    def _need(self, flag: Supervision, kind: str, index: Tensor | None = None) -> None:
        if flag not in self._allowed:
            raise SupervisionError(
                f"{self._who} read the {kind} of split '{self.name}' but declares only "
                f"{', '.join(self._allowed.names()) or 'nothing'}; add {flag.name} to its `supervision`"
            )
        self._ledger.charge(kind, self.name, len(self), index)


class Task:
    """One suite at one data seed, as a cell with the given supervision may see it. It has no test split."""

    def __init__(
        self,
        splits: Mapping[str, SplitTensors],
        supervision: Supervision,
        *,
        who: str,
        class_names: tuple[str, ...],
        group_names: tuple[str, ...],
        descriptions: Mapping[str, Mapping[str, str]] | None = None,
        ledger: Ledger | None = None,
        corrections: MaskSet | None = None,
        suite: str = "",
    ):
        self._splits = dict(splits)
        self._supervision = supervision
        self._who = who
        self._descriptions = dict(descriptions or {})
        self._corrections = corrections
        self.ledger = ledger if ledger is not None else Ledger()
        self.class_names = class_names
        self.group_names = group_names
        self.suite = suite  # name in the registry, e.g. `decoy_mnist`

    @property
    def supervision(self) -> Supervision:
        """What this view admits."""
        return self._supervision

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        c, h, w = self._splits["train"].images.shape[1:]
        return int(c), int(h), int(w)

    @property
    def train(self) -> SplitView:
        """The training split at the suite's rho."""
        return self._view("train", Supervision.TRAIN_GROUPS)

    @property
    def val(self) -> SplitView:
        """The validation split, at the training rho."""
        return self._view("val", Supervision.VAL_GROUPS)

    @property
    def val_groups(self) -> SplitView:
        """The small decorrelated validation split; needs VAL_GROUPS, and its size is charged."""
        self._require(Supervision.VAL_GROUPS, "the val_groups split")
        view = self._view("val_groups", Supervision.VAL_GROUPS)
        self.ledger.charge("val_groups", "val_groups", len(view))
        return view

    @property
    def decorrelated(self) -> SplitView:
        """Training images whose spurious attribute is independent of the label; needs DECORRELATED."""
        self._require(Supervision.DECORRELATED, "decorrelated training data")
        view = self._view("decorrelated", Supervision.TRAIN_GROUPS)
        self.ledger.charge("decorrelated", "train", len(view))
        return view

    @property
    def corrections(self) -> MaskSet:
        """The correction masks of the cell's mask source; only for methods with `uses_masks`."""
        if self._corrections is None:
            raise SupervisionError(
                f"{self._who} read correction masks, but its MethodInfo does not say uses_masks=True"
            )
        return self._corrections

    @property
    def test(self) -> Any:
        """The test split does not exist for `fit` and for selection."""
        raise SupervisionError(f"{self._who} asked for the test split, which exists for the final evaluation only")

    def descriptions(self, kind: str) -> Mapping[str, str]:
        """Class name -> sentence, from preset `core`, `spurious` or `both`; needs TEXT."""
        self._require(Supervision.TEXT, "class descriptions")
        if kind not in self._descriptions:
            raise NotApplicable(f"this suite has no class descriptions of kind '{kind}'")
        self.ledger.charge("sentences", kind, len(self._descriptions[kind]))
        return self._descriptions[kind]

    def _require(self, flag: Supervision, what: str) -> None:
        if flag not in self._supervision:
            raise SupervisionError(
                f"{self._who} opened {what} but declares only {', '.join(self._supervision.names()) or 'nothing'}; "
                f"add {flag.name} to its `supervision`"
            )

    def _view(self, name: str, groups_flag: Supervision) -> SplitView:
        if name not in self._splits:
            raise NotApplicable(f"this suite has no '{name}' split")
        return SplitView(self._splits[name], self._supervision, groups_flag, self._who, self.ledger)
