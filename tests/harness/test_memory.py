"""Local workers and memory. What is free is fabricated, in files or by a function; no test exhausts memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import memory
from harness.config import RunConfig, load_config
from harness.execute import Local
from harness.memory import GB, MB, WORKER, Room, SuiteSize, affordable, available, estimate, remember, resident
from harness.plan import Cell, plan
from harness.record import Status
from harness.registry import registry
from harness.spec import parse_spec

SUITE = "decoy_digits(rho=0.9,n_train=200,n_val=40,n_val_groups=40,n_test=60)"


def config(root: Path, *more: str) -> RunConfig:
    words = ["methods=[erm,rwg]", "seeds=2", "recipes.base.epochs=30", "model=mlp(hidden=8)", f'suites=["{SUITE}"]']
    return load_config("quickstart", [*words, "metrics.attribution_images=4", *more, f"results={root}"])


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_sizes", {})


def machine(root: Path, meminfo_gb: float, groups: str = "", **files: str) -> Path:
    """A fabricated /proc and /sys."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {int(meminfo_gb * 2**20)} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_available_is_the_least_of_machine_and_control_groups(tmp_path: Path) -> None:
    assert available(machine(tmp_path / "plain", 8)) == 8 * GB
    limit = {"a__memory_DOT_max": f"{3 * GB}\n", "a__memory_DOT_current": f"{2 * GB}\n"}
    limit |= {"a__memory_DOT_stat": f"anon 5\ninactive_file {GB // 2}\n", "a__b__memory_DOT_max": "max\n"}
    assert available(machine(tmp_path / "v2", 8, "0::/a/b\n", **limit)) == GB + GB // 2  # the outer group's limit
    assert available(machine(tmp_path / "outside", 8, "0::/c\n", **limit)) == 8 * GB
    assert available(machine(tmp_path / "tight", 1, "0::/a\n", **limit)) == GB
    first = {"memory__j__memory_DOT_limit_in_bytes": f"{2 * GB}", "memory__j__memory_DOT_usage_in_bytes": f"{3 * GB}"}
    assert available(machine(tmp_path / "v1", 8, "5:cpu:/j\n4:memory:/j\n0::/\n", **first)) == 0
    (tmp_path / "nothing").mkdir()
    assert available(tmp_path / "nothing") is None


def test_a_suite_that_was_loaded_is_counted() -> None:
    data = registry("suites").create(parse_spec(SUITE)).load(0)
    remember("digits", data)
    held = memory._sizes["digits"]
    assert held.image == data.train.images[0].size
    assert held.train == data.train.images.nbytes
    assert held.data > held.train + sum(split.images.nbytes for split in data.test.values())
    assert estimate("digits") > estimate("digits", gpu=True) > estimate("unknown") == WORKER


def test_estimates_grow_with_images_and_batches() -> None:
    memory._sizes["large"] = SuiteSize(10 * GB, 8 * GB, 3 * 224 * 224)
    activations = estimate("large") - WORKER - 20 * GB
    assert activations == 4 * 50 * 2**25  # one pass of at most 2**25 input values
    assert estimate("large", batch_size=512) - estimate("large") == 4 * 50 * (512 * 3 * 224 * 224 - 2**25)
    assert estimate("large", gpu=True) == WORKER + 20 * GB


def test_fewer_workers_are_started_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(memory, "available", lambda: 5 * WORKER + 1)
    assert Local().slots(0, 100, "cpu") == 5
    assert capsys.readouterr().err == (
        "vabench: 5 of 16 workers: 3.8 GB of memory are free, and a cell may need 0.8 GB (workers=... overrules)\n"
    )
    assert Local().slots(7, 100, "cpu") == 7  # asked for
    assert Local().slots(0, 3, "cpu") == 3
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(memory, "available", lambda: MB)
    assert Local().slots(0, 100, "cpu") == 1
    monkeypatch.setattr(memory, "available", lambda: None)
    assert affordable(16) == (16, "")


class Overlap:
    """Watcher that counts cells in flight."""

    def __init__(self) -> None:
        self.running, self.most = 0, 0

    def started(self, slot: int, cell: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def advanced(self, slot: int, phase: str, done: int, total: int) -> None: ...
    def tick(self) -> None: ...


@pytest.mark.parametrize(("free", "most"), [(0, 1), (64 * GB, 2)])
def test_cells_are_held_back_while_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, most: int
) -> None:
    """Two workers, whatever memory says; a suite of 10 GB, of which nothing or enough is free."""
    monkeypatch.setattr(memory, "available", lambda: free)
    cells = plan(config(tmp_path))
    memory._sizes[cells[0].suite_name] = SuiteSize(5 * GB, 0, 1)
    watcher = Overlap()
    outcomes: Iterator[Any] = Local().run(cells, str(tmp_path), "cpu", 2, watcher)
    ended = []
    for outcome in outcomes:
        watcher.running -= 1
        ended.append(outcome.status)
    assert ended == [Status.DONE] * 4
    assert watcher.most == most


def cell(root: Path) -> Cell:
    return plan(config(root))[0]


def test_what_a_worker_took_replaces_the_estimate(tmp_path: Path) -> None:
    first, room = cell(tmp_path), Room()
    memory._sizes[first.suite_name] = SuiteSize(500 * GB, 0, 1)
    assert room.need(first) > 1000 * GB
    room.begun(first, os.getpid())
    room.ended(first, os.getpid())
    peak = resident(os.getpid(), peak=True)
    assert room.need(first) == pytest.approx(1.1 * peak, rel=0.05)
    other = plan(config(tmp_path, "methods=[rwy]"))[0]
    assert room.need(other) > 1000 * GB  # another row is not measured by that


def test_room_counts_what_running_cells_have_yet_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, room = cell(tmp_path), Room()
    monkeypatch.setattr(memory, "resident", lambda pid, peak=False: 0 if peak else GB)
    memory._sizes[one.suite_name] = SuiteSize(2 * GB, 0, 0)
    need = room.need(one)
    assert need == WORKER + 4 * GB
    monkeypatch.setattr(memory, "available", lambda: 2 * (need - GB) - 1)
    assert room.admits(one, 11)
    room.begun(one, 11)
    assert not room.admits(one, 12)
    monkeypatch.setattr(memory, "available", lambda: 2 * (need - GB))
    assert room.admits(one, 12)
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert not room.admits(one, 12)
    room.ended(None, 11)  # it died
    assert room.admits(one, 12)  # alone, a cell runs whatever is free


def test_this_process_is_measured() -> None:
    held = np.ones(64 * MB, dtype=np.uint8)
    assert resident(os.getpid(), peak=True) >= resident(os.getpid()) >= held.nbytes
    assert resident(2**30) == 0
