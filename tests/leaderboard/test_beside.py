"""Tables beside each other: the same tables, and an error or another thread changes nothing."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from fabricated import Fabric

from harness.errors import ConfigError
from leaderboard import beside
from leaderboard.command import write_report
from leaderboard.tables import boards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tables are forked on Linux only")


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "worker_cores", lambda: 2)
    monkeypatch.setattr(beside.threading, "active_count", lambda: 1)  # pytest's own threads hold nothing that we need
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


def slowly(k: int) -> int:
    """The process that did it; slow enough for another one to begin."""
    time.sleep(0.3)
    return os.getpid()


def pids(cells: int) -> set[int]:
    return set(beside.each(4, slowly, cells))


@pytest.mark.usefixtures("two_cores")
def test_results_come_in_order_from_other_processes() -> None:
    assert beside.each(5, lambda k: k * k, beside.PAYS) == [0, 1, 4, 9, 16]
    assert len(pids(beside.PAYS)) == 2  # this process has a share too
    assert beside.each(9001, lambda k: -k, beside.PAYS) == [-k for k in range(9001)]  # several to a ticket


@pytest.mark.usefixtures("two_cores")
def test_what_is_done_meanwhile_is_done_here_and_once() -> None:
    done: list[int] = []
    found = beside.each(4, slowly, beside.PAYS, lambda: done.append(os.getpid()) or time.sleep(5))
    assert done == [os.getpid()]
    assert done[0] not in found  # the other process had begun
    assert beside.each(4, slowly, beside.PAYS - 1, lambda: done.append(0)) == done * 4
    assert len(done) == 1  # nobody was at work meanwhile


@pytest.mark.usefixtures("two_cores")
def test_where_no_process_can_be_started_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    assert beside.each(4, lambda k: (k, os.getpid()), beside.PAYS) == [(k, os.getpid()) for k in range(4)]


@pytest.mark.usefixtures("two_cores")
def test_few_cells_and_what_must_not_fork_stay_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {os.getpid()}
    assert pids(beside.PAYS - 1) == alone
    assert beside.each(1, lambda k: os.getpid(), beside.PAYS) == [os.getpid()]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert pids(beside.PAYS) == alone
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.undo()
    monkeypatch.setattr(beside, "worker_cores", lambda: 2)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert pids(beside.PAYS) == alone
    finally:
        stop.set()
        other.join()


@pytest.mark.usefixtures("two_cores")
def test_an_error_comes_back_as_it_was() -> None:
    here = os.getpid()
    for mine in (True, False):  # the error is this process' own, or the other's

        def task(k: int, mine: bool = mine) -> int:
            if (slowly(k) == here) == mine:
                raise ConfigError("this table is wrong")
            return k

        with pytest.raises(ConfigError, match="this table is wrong"):
            beside.each(4, task, beside.PAYS)
        assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_cores")
def test_the_work_of_a_process_that_dies_is_done_here() -> None:
    here = os.getpid()

    def until_it_ended() -> None:
        end = time.monotonic() + 60
        while multiprocessing.active_children() and time.monotonic() < end:
            time.sleep(0.01)

    def until_it_sends() -> None:
        time.sleep(1)
        for child in multiprocessing.active_children():
            child.kill()  # in the middle of an answer that no pipe holds

    def task(k: int) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return k

    assert beside.each(5, task, beside.PAYS, until_it_ended) == [0, 1, 2, 3, 4]
    assert beside.each(3, lambda k: lambda: k, beside.PAYS, until_it_ended)[1]() == 1  # a result that cannot be sent
    assert beside.each(3, lambda k: bytes(3_000_000 + k), beside.PAYS, until_it_sends)[2] == bytes(3_000_002)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_cores")
def test_descriptors_are_given_back_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    beside.each(2, lambda k: k, beside.PAYS)
    before = held()
    for _ in range(5):
        assert beside.each(2, lambda k: k, beside.PAYS) == [0, 1]
    assert held() == before

    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    assert beside.each(3, lambda k: (k, os.getpid()), beside.PAYS) == [(k, os.getpid()) for k in range(3)]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises here, also where the shell that began the tests in the background has it ignored."""
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, held)


@pytest.mark.usefixtures("two_cores", "interruptible")
def test_ctrl_c_ends_this_process_and_the_others() -> None:
    here = os.getpid()

    def task(k: int) -> int:
        if os.getpid() == here:
            time.sleep(0.5)  # the other has begun
            os.kill(here, signal.SIGINT)
            time.sleep(5)
        else:
            os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C reaches every process of the terminal
            time.sleep(60)
        return k

    with pytest.raises(KeyboardInterrupt):
        beside.each(2, task, beside.PAYS)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_cores")
def test_tables_and_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []
    for suite in ("toy_a", "toy_b", "toy_c"):
        fabric = Fabric(tmp_path / "r", suite=suite)
        entries += fabric.row("erm", 0.4, block="reference") + fabric.row("good", 0.9) + fabric.row("fair", 0.8)
        entries += fabric.row("rrr(lam=1)@ground_truth", 0.85) + fabric.row("control", 0.5, block="control")
    found = {}
    for name, pays in (("alone", 10**9), ("beside", 0)):
        monkeypatch.setattr(beside, "PAYS", pays)
        tables = boards(entries)
        files = write_report(tables, tmp_path / name)
        found[name] = tables, {path.name: path.read_bytes() for path in files}
    for one, other in zip(found["alone"][0], found["beside"][0], strict=True):
        pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)
        assert one.notes == other.notes
    assert found["alone"][1] == found["beside"][1]
    assert len(found["alone"][0]) == 3
