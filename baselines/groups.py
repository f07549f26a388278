"""Group sizes and group-balanced subsets, with empty groups left out and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.errors import NotApplicable

if TYPE_CHECKING:
    from harness.context import RunContext


def group_sizes(y: Tensor, g: Tensor, names: tuple[str, ...], context: RunContext, *, who: str, split: str) -> Tensor:
    """Images per group, int64 [G] on g's device; empty groups and the smallest other one are noted in the record.

    Args:
        y: classes, int64 [N]. g: group indices into `names`, int64 [N]. who, split: for the error.

    Raises:
        NotApplicable: no class has images in two groups, so there is nothing to balance within a class.
    """
    sizes = torch.bincount(g, minlength=len(names))
    empty = [name for name, size in zip(names, sizes.tolist(), strict=True) if size == 0]
    pairs = torch.unique(torch.stack([y, g]), dim=1)  # (class, group) pairs that occur
    if torch.bincount(pairs[0]).max() < 2:
        raise NotApplicable(
            f"{who} needs a class with images in at least two groups, but in split '{split}' every class has one; "
            f"empty groups: {', '.join(empty) or 'none'}"
        )
    smallest = int(torch.where(sizes > 0, sizes, len(g) + 1).argmin())
    context.note(empty_groups=empty, smallest_group={names[smallest]: int(sizes[smallest])})
    return sizes


def balanced_subset(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random subset with equally many items of every label that occurs: int64 indices into labels [N]."""
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    present, counts = torch.unique(labels, return_counts=True)
    smallest = int(counts.min())
    shuffled = labels[order]
    return torch.cat([order[shuffled == label][:smallest] for label in present])
