"""A short fault campaign; `python tests/faults.py --faults 200` runs a long one."""

from collections import Counter

from faults import INSIDE, PROCESSES, campaign


def test_no_fault_loses_a_finished_cell_or_changes_a_number() -> None:
    counts = campaign(faults=15, processes=2, seed=1)
    total = sum(counts.values(), Counter[str]())
    assert total["injected"] == total["survived"] == 15
    assert not total["lost"]
    assert not total["wrong"]
    assert {*INSIDE, "stored file", *list(PROCESSES)[:2]} == set(counts)
