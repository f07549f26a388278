"""Claims on cells: among processes, and however their owner ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.claims import Claims
from harness.errors import DataError

CELL, OTHER = "ab" * 32, "cd" * 32
HOLD = """
import sys, time
from pathlib import Path
from harness.claims import Claims
with Claims.of(Path(sys.argv[1])).claim(sys.argv[2]) as ours:
    print(ours, flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(root: Path, cell: str, seconds: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), cell, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_cell_of_another_process_is_refused_and_free_once_that_is_killed(tmp_path: Path) -> None:
    owner, claims = hold(tmp_path, CELL, 60), Claims(tmp_path)
    with claims.claim(CELL) as ours:
        assert not ours
    with claims.claim(OTHER) as ours:
        assert ours
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with claims.claim(CELL) as ours:
        assert ours


def test_waiting_ends_when_the_owner_is_done(tmp_path: Path) -> None:
    owner = hold(tmp_path, CELL, 0.3)
    with Claims(tmp_path).claim(CELL, wait=True) as ours:
        assert ours
        owner.wait(timeout=5)


def test_a_claim_is_given_back_when_its_block_ends_in_an_error(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    with pytest.raises(ZeroDivisionError), claims.claim(CELL):
        raise ZeroDivisionError
    process = hold(tmp_path, CELL, 0)
    assert process.wait(timeout=20) == 0


def test_one_object_per_folder_and_process(tmp_path: Path) -> None:
    assert Claims.of(tmp_path) is Claims.of(tmp_path)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot write into"), Claims(tmp_path / "file" / "below").claim(CELL):
        pass
