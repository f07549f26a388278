"""Any suite of ours as a `WILDSDataset`, for who has WILDS training code. Importing this module imports torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.registry import registry
from harness.spec import parse_spec
from harness.suite import Bool, Split, Suite, SuiteData
from suites.image_cache import cache_root
from suites.wilds_package import prepare_import

prepare_import()
from wilds.common.grouper import CombinatorialGrouper  # noqa: E402
from wilds.common.metrics.all_metrics import Accuracy  # noqa: E402
from wilds.datasets.wilds_dataset import WILDSDataset  # noqa: E402


class SuiteDataset(WILDSDataset):  # type: ignore[misc]
    """A suite at one data seed.

    Splits: `train`, `val`, `test` (the renderings that the suite pools for its groups, one after the other) and, where
    the suite has them, `val_groups`, `decorrelated` and `test_<rendering>` for every single rendering. Inputs are PIL
    images (RGB), as in WILDS' own image data sets. Metadata: `group` (our group), `attribute` (shifted so that none
    = 0 where the suite has images without), `y`. `eval` groups by `group`, so its `acc_wg` is our WGA.
    """

    _dataset_name = "vabench"
    _versions_dict = {"1.0": {"download_url": None, "compressed_size": None}}  # noqa: RUF012 - read only

    def __init__(self, suite: Suite, seed: int = 0):
        data = suite.load(seed)
        parts = _parts(data)
        self.suite, self.seed = suite, seed
        self._dataset_name, self._version, self._split_scheme = suite.name, "1.0", "official"
        root = cache_root()  # WILDS wants a folder that exists; nothing is written there
        root.mkdir(parents=True, exist_ok=True)
        self._data_dir = str(root)
        self._parts = [(name, split) for name, split in parts.items()]
        self._split_dict = {name: k for k, name in enumerate(parts)}
        self._split_names = {name: name.replace("_", " ") for name in parts}
        self._split_array = np.repeat(np.arange(len(parts)), [len(split) for split in parts.values()])
        self._starts = np.cumsum([0, *(len(split) for split in parts.values())])
        joined = {name: np.concatenate([getattr(s, name) for s in parts.values()]) for name in ("y", "a", "g", "ids")}
        self._y_array, self._y_size = torch.from_numpy(joined["y"]), 1
        self._n_classes = len(data.class_names)
        attribute = joined["a"] - min(0, int(joined["a"].min()))
        columns = [joined["g"], attribute, joined["y"]]
        self._metadata_array = torch.from_numpy(np.stack(columns, axis=1))
        self._metadata_fields = ["group", "attribute", "y"]
        self._metadata_map = {"group": list(data.group_names), "y": list(data.class_names)}
        self.base_images = joined["ids"]
        self._original_resolution = tuple(data.train.images.shape[2:])
        self._eval_grouper = CombinatorialGrouper(self, ["group"])
        super().__init__(self._data_dir, False, self._split_scheme)

    def _locate(self, idx: int) -> tuple[Split, int]:
        part = int(np.searchsorted(self._starts, int(idx), side="right")) - 1
        return self._parts[part][1], int(idx) - int(self._starts[part])

    def get_input(self, idx: int) -> Image.Image:
        """The image as PIL, RGB (a grey one in three equal channels)."""
        split, row = self._locate(idx)
        pixels = split.images[row].transpose(1, 2, 0)
        return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))

    def get_mask(self, idx: int) -> Bool | None:
        """Pixels of the spurious object, bool [H, W]; None where the suite has no masks."""
        split, row = self._locate(idx)
        return None if split.masks is None else split.masks[row]

    def eval(
        self, y_pred: torch.Tensor, y_true: torch.Tensor, metadata: torch.Tensor, prediction_fn: Any = None
    ) -> tuple[dict[str, float], str]:
        """Accuracy on average (`acc_avg`), by group, and of the worst non-empty group (`acc_wg`)."""
        metric = Accuracy(prediction_fn=prediction_fn)
        found: tuple[dict[str, float], str] = self.standard_group_eval(
            metric, self._eval_grouper, y_pred, y_true, metadata
        )
        return found


def as_wilds(suite: Suite | str, seed: int = 0) -> SuiteDataset:
    """A suite as a true `WILDSDataset`.

    Args:
        suite: a suite, or its spec such as "isic_patches(rho=0.9)". seed: the data seed.

    Raises:
        ComponentError, ConfigError: no such suite or parameter. DataError: its data are missing or faulty.
    """
    made: Suite = registry("suites").create(parse_spec(suite)) if isinstance(suite, str) else suite
    return SuiteDataset(made, seed)


def _parts(data: SuiteData) -> dict[str, Split]:
    """Splits by WILDS name, in order."""
    parts: dict[str, Split | None] = {"train": data.train, "val": data.val}
    parts["test"] = _pooled([data.test[name] for name in data.roles.grouped])
    parts |= {"val_groups": data.val_groups, "decorrelated": data.decorrelated}
    parts |= {f"test_{name}": split for name, split in data.test.items()} if len(data.test) > 1 else {}
    return {name: split for name, split in parts.items() if split is not None}


def _pooled(splits: list[Split]) -> Split:
    if len(splits) == 1:
        return splits[0]
    masks = None if any(s.masks is None for s in splits) else np.concatenate([s.masks for s in splits])  # type: ignore[misc]
    arrays = [np.concatenate([getattr(s, name) for s in splits]) for name in ("images", "y", "a", "g", "ids")]
    return Split(*arrays, masks)
