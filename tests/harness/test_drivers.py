"""Runs that can be seen and stopped from another process, however they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builds import vabench

from harness.config import load_config
from harness.drivers import Cancelled, Driver, cancel, running
from harness.errors import DataError
from harness.store import Store
from harness.watch import follow

WORDS = ["methods=[erm,rwg,rrr@oracle]", "recipes.base.epochs=30", "alignment.n=32"]
HOLD = """
import sys, time
from pathlib import Path
from harness.drivers import Driver
with Driver(sys.argv[1]) as driver:
    print(flush=True)
    while True:
        driver.look()
        time.sleep(0.05)
"""


def hold(root: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_run_is_seen_until_it_is_killed(tmp_path: Path) -> None:
    assert running(tmp_path) == []
    process = hold(tmp_path)
    assert len(running(tmp_path)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert running(tmp_path) == []
    assert list((tmp_path / "drivers").iterdir()) == []  # what the dead one left is gone


def test_a_request_stops_every_run_and_only_those(tmp_path: Path) -> None:
    first, second = hold(tmp_path), hold(tmp_path)
    assert cancel(tmp_path) == (2, 0)
    assert first.wait(timeout=10) != 0
    assert second.wait(timeout=10) != 0
    with Driver(tmp_path) as driver:
        driver.look()  # the request was not for this one
    assert cancel(tmp_path) == (0, 0)


def test_a_request_ends_the_block_and_leaves_nothing(tmp_path: Path) -> None:
    def run() -> None:
        with Driver(tmp_path) as driver:
            (mark,) = (tmp_path / "drivers").glob("*.lock")
            mark.with_suffix(".cancel").touch()
            driver.look()

    with pytest.raises(Cancelled):
        run()
    assert list((tmp_path / "drivers").iterdir()) == []


def test_one_that_does_not_listen_is_counted(tmp_path: Path) -> None:
    process = hold(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    assert cancel(tmp_path, patience_s=0.5) == (1, 1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def start(root: Path, workers: int, seeds: int) -> "subprocess.Popen[str]":
    """A run that has written its first record."""
    words = [*WORDS, f"workers={workers}", f"seeds={seeds}", f"results={root}"]
    command = [sys.executable, "-m", "harness.cli", "run", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(root.glob("cells/*/*/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("workers", [1, 2])
def test_the_verb_stops_a_run_that_can_go_on_later(tmp_path: Path, workers: int) -> None:
    process = start(tmp_path / "r", workers, seeds=20)
    done = vabench("cancel", f"results={tmp_path / 'r'}")
    assert "1 run in" in done.stdout, done.stderr
    assert process.wait(timeout=30) == 130
    assert process.stderr is not None
    assert "finished cells are kept" in process.stderr.read()
    assert 0 < len(list(Store(tmp_path / "r").records())) < 60
    told = vabench("status", *WORDS, "seeds=20", f"results={tmp_path / 'r'}").stdout.splitlines()[0]
    assert told.endswith("0 stale, 0 damaged")


def test_watching_follows_a_run_to_its_end(tmp_path: Path) -> None:
    process = start(tmp_path / "r", 1, seeds=3)
    watched = vabench("status", "--watch", *WORDS, "seeds=3", f"results={tmp_path / 'r'}").stdout.splitlines()
    assert process.wait(timeout=60) == 0
    assert "1 run at work" in watched[0]
    assert watched[-1].startswith("9 of 9 cells done")


def test_watching_ends_where_nobody_runs(tmp_path: Path) -> None:
    config = load_config("quickstart", ["methods=[erm]", "seeds=1", f"results={tmp_path}"])
    lines = list(follow(config, patience_s=0.2))
    assert lines[0].startswith("0 of 1 cell done, 1 missing; 0 runs at work")
    assert "vabench run" in lines[1]


def test_cancel_says_what_is_wrong(tmp_path: Path) -> None:
    assert "no results folder" in vabench("cancel", f"results={tmp_path / 'gone'}").stderr
    assert "results folder alone" in vabench("cancel", "decoys").stderr
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot write"), Driver(tmp_path / "file"):
        pass
