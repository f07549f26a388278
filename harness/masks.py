"""Who says which pixels are spurious: the mask-source contract, and what a source is given and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.errors import VabenchError
from harness.supervision import Supervision

if TYPE_CHECKING:
    from torch import Tensor

    from harness.context import RunContext
    from harness.segment import Segments
    from harness.supervision import SplitView, Task

SPURIOUS, RELEVANT, NO_VERDICT = 1, 0, -1


@dataclass(frozen=True)
class MaskSourceInfo:
    """Metadata of a mask source. `simulated` sources (oracles) say so in every table."""

    name: str
    summary: str
    factory: str  # "package.module:Class"
    supervision: Supervision
    block: Literal["reference", "oracle", "control", "method"]
    simulated: bool = False
    verdicts: bool = True  # False: gives masks without judging segments
    citation: str = ""
    files: tuple[str, ...] = ()  # "package:path" of files whose content decides the verdicts (weights, prompts)
    file_params: tuple[str, ...] = ()  # parameters that name such a file or folder of the user's
    stands_with_source: bool = False  # block and `simulated` are those of the source that it is `of`


@dataclass(frozen=True)
class MaskSet:
    """Correction masks of the images `index` of a split.

    index: int64 [N] into the split. masks: bool [N, H, W], True = penalise here. verdicts: int8 [N, J] with 1 spurious,
    0 relevant, -1 no verdict, or None where the source judged no segments (entries of empty segments are -1 and count
    nowhere: see `Segments.nonempty`).
    """

    index: Tensor
    masks: Tensor
    verdicts: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.index) != len(self.masks):
            raise ValueError(f"{len(self.index)} images but {len(self.masks)} masks")

    def check(self, size: int, image: tuple[int, ...]) -> None:
        """Refuse what no split of `size` images of height and width `image` can have.

        Raises:
            VabenchError: wrong type, shape or index, or an image that stands there twice.
        """
        index, masks = self.index, self.masks
        if index.dtype.is_floating_point or index.ndim != 1 or len(index.unique()) != len(index):
            raise VabenchError("a mask source's index must be whole numbers [N], each image once")
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
            raise VabenchError(f"a mask source's index points outside the split of {size} images")
        if str(masks.dtype) != "torch.bool" or tuple(masks.shape[1:]) != image:
            raise VabenchError(
                f"a mask source's masks must be bool [N, {image[0]}, {image[1]}], got {tuple(masks.shape)}"
            )
        if self.verdicts is not None and (self.verdicts.ndim != 2 or len(self.verdicts) != len(index)):
            raise VabenchError(f"a mask source's verdicts must be [N, J], got {tuple(self.verdicts.shape)}")

    def empty(self) -> bool:
        """True if no pixel is marked: the repair then returns the base model unchanged."""
        return not bool(self.masks.any())


class AlignmentSet:
    """The images that a source is asked about, with their attribution maps and segments, computed on first use.

    The engine shares these stages between all cells of one suite, model and seed.
    """

    def __init__(
        self,
        split: SplitView,
        index: Tensor,
        maps: Callable[[], Tensor],
        segments: Callable[[], Segments],
    ):
        self.split = split
        self.index = index
        self._maps = maps
        self._segments = segments

    def __len__(self) -> int:
        return len(self.index)

    @property
    def images(self) -> Tensor:
        """uint8 [N, C, H, W] of the alignment images."""
        return self.split.images[self.index]

    @property
    def maps(self) -> Tensor:
        """Attribution maps of the labelled class under the base model, float32 [N, H, W], channels summed."""
        return self._maps()

    @property
    def segments(self) -> Segments:
        """Segments of the positive attribution of every image."""
        return self._segments()


class MaskSource(ABC):
    """Base of every mask source. The constructor takes the source's parameters by keyword and validates them."""

    info: ClassVar[MaskSourceInfo]

    @property
    def supervision(self) -> Supervision:
        """What this instance reads; a control `of` another source adds what that source reads."""
        return self.info.supervision

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """All parameters with their values, JSON-serialisable: part of a cell's identity."""

    @abstractmethod
    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Say which pixels are spurious.

        Args:
            alignment: images, maps and segments; `alignment.split` is the split they come from (train or val).
            task: the guarded task; reading more than `supervision` raises SupervisionError.
            context: random streams (`context.generator(name)`) and device.
        """


def mask_from_verdicts(segments: Segments, verdicts: Tensor) -> Tensor:
    """Correction mask A = sum_j R_j 1[C = j] (LVLM-VA, stage 6): bool [N, H, W] from int8 verdicts [N, J]."""
    import torch

    labels = segments.labels.long()
    chosen = torch.gather(verdicts == SPURIOUS, 1, labels.clamp(min=0).flatten(1)).view_as(labels)
    return chosen & (labels >= 0)


def segment_truth(segments: Segments, maps: Tensor, truth: Tensor) -> Tensor:
    """A segment's truth (protocol.md): 1 if at least half of its positive attribution lies in the ground truth.

    Args:
        segments: labels [N, H, W] in -1..J-1. maps: float [N, H, W]. truth: bool [N, H, W].

    Returns:
        int8 [N, J]: 1 spurious, 0 relevant, -1 for an empty segment.
    """
    import torch

    n, j = len(maps), segments.count
    weight = maps.clamp(min=0).flatten(1) * (segments.labels.flatten(1) >= 0)
    slot = segments.labels.flatten(1).long().clamp(min=0)
    total = torch.zeros(n, j, device=maps.device, dtype=maps.dtype).scatter_add_(1, slot, weight)
    inside = torch.zeros_like(total).scatter_add_(1, slot, weight * truth.flatten(1))
    verdict = (inside >= 0.5 * total).to(torch.int8)
    return torch.where(segments.nonempty, verdict, torch.full_like(verdict, NO_VERDICT))
