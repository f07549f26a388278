"""Cells on a Ray cluster of two nodes on this machine: equal to a local run, and all done where one node dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import config, numbers, run

from harness.errors import ConfigError, VabenchError
from harness.execute import Outcome
from harness.ray_executor import Answer, Ray, drive
from harness.record import Record, Status
from harness.store import Store

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two raylets with a core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    held = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = held.add_node(num_cpus=1)
    held.second = second
    yield held
    ray.shutdown()
    held.shutdown()


def test_two_nodes_give_what_one_process_gives_though_one_is_killed(cluster: Any, tmp_path: Path) -> None:
    run(config(tmp_path / "local", "local", "workers=1"))
    expected = numbers(tmp_path / "local")
    assert len(expected) == 8

    root = tmp_path / "ray"

    def kill_one_halfway() -> None:
        deadline = time.monotonic() + 120
        while len(list(root.glob("cells/*/*/*/record.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill_one_halfway)
    killer.start()
    summary = run(config(root, f'ray(address="{cluster.address}")'))
    killer.join()
    assert summary.counts() == {"done": 8}
    assert numbers(root) == expected
    assert not list(root.glob(".ray-*"))


class Quiet:
    def started(self, slot: int, cell: Any) -> None: ...
    def advanced(self, slot: int, phase: str, done: int, total: int) -> None: ...
    def tick(self) -> None: ...


class Died(Exception):
    pass


class FakeRay:
    """Ray's four calls in this process: a task ends at once with what it was told to."""

    class exceptions:
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause: Exception | None = None

    @staticmethod
    def wait(held: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return held[:1], held[1:]

    @staticmethod
    def get(reference: Any) -> Answer:
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    @staticmethod
    def cancel(reference: Any, force: bool) -> None:
        reference.cancelled = True


class Reference:
    def __init__(self, answer: Any):
        self.answer, self.cancelled = answer, False


def outcomes(tmp_path: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Outcome], list[bool]]:
    from harness.plan import plan

    cells = plan(config(tmp_path, "local", "methods=[erm]", "seeds=1"))
    waits: list[bool] = []

    def submit(cell: Any, wait: bool) -> Reference:
        waits.append(wait)
        return Reference(told[len(waits) - 1])

    return list(drive(FakeRay, cells, submit, lambda *_: None, str(tmp_path), 1, Quiet())), waits


def test_a_task_whose_node_dies_runs_once_more_then_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died, done = FakeRay.exceptions.RayError("node"), Answer("finished", "done")
    found, _ = outcomes(tmp_path / "a", [died, done], monkeypatch)
    assert [outcome.status for outcome in found] == [Status.DONE]
    found, _ = outcomes(tmp_path / "b", [died, died], monkeypatch)
    assert [outcome.status for outcome in found] == [Status.FAILED]
    assert "died 2 times" in found[0].reason
    ((_, record),) = list(Store(tmp_path / "b").records())
    assert isinstance(record, Record)
    assert record.status is Status.FAILED


def test_a_cell_of_another_run_is_waited_for_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, waits = outcomes(tmp_path, [Answer("claimed"), Answer("finished", "done")], monkeypatch)
    assert len(found) == 1
    assert waits == [False, True]


def test_what_a_task_raises_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = FakeRay.exceptions.RayTaskError("boom")
    error.cause = VabenchError("cannot write into /x: No space left")
    with pytest.raises(VabenchError, match="No space left"):
        outcomes(tmp_path, [error], monkeypatch)


def test_needs_are_checked() -> None:
    with pytest.raises(ValueError, match="more than 0 cpus"):
        Ray(cpus=0)
    with pytest.raises(ConfigError, match="no Ray cluster"):
        Ray(address="127.0.0.1:1").slots(0, 1, "cpu")
