"""Our suites under an ordinary WILDS training loop."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_tensor

from harness.evaluate import score
from harness.registry import registry
from harness.spec import parse_spec
from suites.as_wilds import as_wilds

from wilds.common.data_loaders import get_eval_loader, get_train_loader  # isort: skip - as_wilds prepares the import
from wilds.common.grouper import CombinatorialGrouper  # isort: skip
from wilds.datasets.wilds_dataset import WILDSDataset  # isort: skip

DATA = Path(os.environ.get("VABENCH_DATA", "/nowhere"))
needs_isic = pytest.mark.skipif(not (DATA / "isic").is_dir(), reason="VABENCH_DATA holds no isic folder")


def train_as_in_wilds(dataset: WILDSDataset, steps: int) -> dict[str, float]:
    """WILDS' own way: subsets with transforms, a group-balanced loader, cross-entropy, `eval` over the test split."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - GroupSampler draws from the global stream
    grouper = CombinatorialGrouper(dataset, ["attribute", "y"])
    train = dataset.get_subset("train", transform=to_tensor)
    loader = get_train_loader("group", train, grouper=grouper, n_groups_per_batch=4, batch_size=16)
    channels = 3 * dataset.original_resolution[0] * dataset.original_resolution[1]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels, dataset.n_classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step, (x, y, metadata) in enumerate(loader):
        if step == steps:
            break
        groups = grouper.metadata_to_group(metadata)
        assert torch.bincount(groups).max() == 4  # four of every group
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    test = dataset.get_subset("test", transform=to_tensor)
    batches = [(model(x).argmax(1), y, m) for x, y, m in get_eval_loader("standard", test, batch_size=64)]
    predicted, y, metadata = (torch.cat(parts) for parts in zip(*batches, strict=True))
    results, _ = test.eval(predicted, y, metadata)
    return results


def test_digits_train_and_their_metrics_are_ours() -> None:
    suite = registry("suites").create(parse_spec("decoy_digits(rho=0.9)"))
    dataset, data = as_wilds(suite, seed=1), suite.load(1)
    assert isinstance(dataset, WILDSDataset)
    results = train_as_in_wilds_on_digits(dataset)
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=(len(s), 10)).astype(np.float32) for name, s in data.test.items()}
    ours = score(logits, data)
    guess = torch.from_numpy(np.concatenate([logits[name].argmax(1) for name in data.roles.grouped]))
    test = dataset.get_subset("test")
    theirs, text = dataset.eval(guess, test.y_array, test.metadata_array)
    assert theirs["acc_wg"] == pytest.approx(ours["wga"], abs=1e-6)
    assert "Worst-group acc" in text
    assert 0 <= results["acc_wg"] <= results["acc_avg"]


def train_as_in_wilds_on_digits(dataset: WILDSDataset) -> dict[str, float]:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = get_train_loader("standard", dataset.get_subset("train", transform=to_tensor), batch_size=64)
    for x, y, _ in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    test = dataset.get_subset("test", transform=to_tensor)
    batches = [(model(x).argmax(1), y, m) for x, y, m in get_eval_loader("standard", test, batch_size=256)]
    results, _ = test.eval(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    assert results["acc_avg"] > 0.2  # it learned something
    return results


def test_splits_masks_and_images_are_the_suites() -> None:
    suite = registry("suites").create(parse_spec("decoy_digits"))
    dataset, data = as_wilds("decoy_digits"), suite.load(0)
    assert {"train", "val", "test", "val_groups", "test_conflicting", "test_clean"} <= set(dataset.split_dict)
    subset = dataset.get_subset("test_conflicting")
    split = data.test["conflicting"]
    assert len(subset) == len(split)
    k = int(subset.indices[5])
    assert np.array_equal(np.asarray(dataset.get_input(k))[..., 0], split.images[5, 0])
    mask = dataset.get_mask(k)
    assert mask is not None
    assert split.masks is not None
    assert np.array_equal(mask, split.masks[5])
    assert torch.equal(subset.y_array, torch.from_numpy(split.y))


@needs_isic
def test_a_wilds_loop_runs_on_isic_patches() -> None:
    results = train_as_in_wilds(as_wilds("isic_patches(rho=0.9,size=32)"), steps=5)
    assert 0 <= results["acc_wg"] <= results["acc_avg"] <= 1
    assert results["count_group:seborrheickeratosis/patch"] > 25


def test_the_pages_code_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wilds.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["x"].shape == (64, 3, 28, 28)  # type: ignore[attr-defined]
