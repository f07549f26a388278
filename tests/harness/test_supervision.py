import copy

import pytest
import torch

from harness.errors import NotApplicable, SupervisionError
from harness.supervision import Ledger, SplitTensors, Supervision, Task


def split(name: str, masks: bool = True) -> SplitTensors:
    n = 8
    return SplitTensors(
        name,
        torch.zeros(n, 1, 4, 4, dtype=torch.uint8),
        torch.arange(n) % 2,
        torch.arange(n) % 3,
        torch.arange(n) % 4,
        torch.ones(n, 4, 4, dtype=torch.bool) if masks else None,
    )


def task(supervision: Supervision, masks: bool = True) -> Task:
    splits = {name: split(name, masks) for name in ("train", "val", "val_groups", "decorrelated")}
    return Task(splits, supervision, who="method 'curious'", class_names=("a", "b"), group_names=tuple("abcd"))


def test_undeclared_reads_are_stopped_and_named() -> None:
    labels_only = task(Supervision.LABELS)
    assert labels_only.train.y.shape == (8,)
    for read, flag in (
        (lambda: labels_only.train.groups, "TRAIN_GROUPS"),
        (lambda: labels_only.train.attributes, "TRAIN_GROUPS"),
        (lambda: labels_only.val.groups, "VAL_GROUPS"),
        (lambda: labels_only.train.masks(), "MASKS"),
        (lambda: labels_only.val_groups, "VAL_GROUPS"),
        (lambda: labels_only.decorrelated, "DECORRELATED"),
        (lambda: labels_only.descriptions("core"), "TEXT"),
        (lambda: labels_only.corrections, "uses_masks"),
    ):
        with pytest.raises(SupervisionError, match=flag) as caught:
            read()
        assert "curious" in str(caught.value)
    with pytest.raises(SupervisionError, match="LABELS"):
        _ = task(Supervision.NONE).train.y


def test_the_test_split_does_not_exist() -> None:
    everything = Supervision.LABELS | Supervision.TRAIN_GROUPS | Supervision.VAL_GROUPS | Supervision.MASKS
    with pytest.raises(SupervisionError, match="final evaluation"):
        _ = task(everything).test


def test_train_groups_do_not_open_validation_groups() -> None:
    only_train = task(Supervision.LABELS | Supervision.TRAIN_GROUPS)
    assert only_train.train.groups.shape == (8,)
    with pytest.raises(SupervisionError):
        _ = only_train.val.groups


def test_the_ledger_counts_an_item_once() -> None:
    with_masks = task(Supervision.LABELS | Supervision.MASKS)
    with_masks.train.masks(torch.tensor([0, 1, 2]))
    with_masks.train.masks(torch.tensor([2, 3]))
    _ = with_masks.train.y
    assert with_masks.ledger.as_dict() == {"labels/train": 8, "masks/train": 4}
    other = Ledger()
    other.charge("masks", "train", 8, torch.tensor([3, 4]))
    other.add("sentences", 2)
    with_masks.ledger.merge(other)
    assert with_masks.ledger.as_dict() == {"labels/train": 8, "masks/train": 5, "sentences": 2}


def test_a_suite_without_masks_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="no pixel masks"):
        task(Supervision.MASKS, masks=False).train.masks()


def test_an_unknown_attribute_says_what_there_is_and_which_flag_it_needs() -> None:
    labels_only = task(Supervision.LABELS)
    with pytest.raises(AttributeError, match="did you mean 'y'") as caught:
        _ = labels_only.train.labels
    said = str(caught.value)
    assert "method 'curious' asked split 'train' for 'labels'" in said
    assert all(word in said for word in ("images", "groups and attributes", "TRAIN_GROUPS", "masks(index)", "MASKS"))
    with pytest.raises(AttributeError, match="VAL_GROUPS") as caught:
        _ = labels_only.val.bananas
    assert "did you mean" not in str(caught.value)
    assert not hasattr(labels_only.train, "loader")
    assert copy.copy(labels_only.train).images.shape == (8, 1, 4, 4)
