"""Speed is measured under `pytest -n0 tests/benchmarks --benchmark-only` alone; else only the arithmetic is checked."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("benchmark_only", False):
        return
    timed = [item for item in items if HERE in item.path.parents and "benchmark" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in timed]
    if timed:
        config.hook.pytest_deselected(items=timed)
