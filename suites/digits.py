"""The scanned digits that scikit-learn bundles (Alpaydin and Kaynak, UCI), read without importing scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.errors import DataError
from harness.suite import Int64, UInt8


@lru_cache(maxsize=1)
def scanned_digits() -> tuple[UInt8, Int64]:
    """scikit-learn's digits, uint8 [1797, 8, 8] in 0..16, and labels, from the file that `load_digits` reads.

    Importing scikit-learn for it takes seconds, and a run with nothing to do must say so at once.
    """
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec is not None else None
    file = Path(folders[0]) / "datasets" / "data" / "digits.csv.gz" if folders else Path("digits.csv.gz")
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read scikit-learn's digits ({file}): {error}; reinstall scikit-learn") from error
    return table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
