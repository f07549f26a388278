"""Killed at random moments and resumed, a run gives what an undisturbed one gives: logits, metrics, masks."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from builds import vabench

from harness.record import Record
from harness.store import Store

KILLS = int(os.environ.get("VABENCH_KILLS", "4"))  # the closing figure of a release uses 10
WORDS = [
    "run",
    "methods=[erm,rwg,group_dro,dfr,rrr@ground_truth,lvlm_va@noisy_oracle,caipi@oracle,rrr@translated(of=oracle)]",
    "seeds=4",
    "tracks=[preregistered,tuned]",
    "workers=2",
    "alignment.n=64",
    "recipes.base.epochs=10",
    "recipes.finetune.steps=40",
]


def contents(root: Path) -> dict[str, tuple[Record, dict[str, np.ndarray]]]:
    store = Store(root)
    found = {}
    for folder, record in store.records():
        assert isinstance(record, Record), record
        found[record.id] = (record, store.predictions(folder, record))
    return found


def numbers(record: Record) -> dict[str, object]:
    """Everything in a record that is a result; seconds are not."""
    candidates = [(c.config, c.notes, c.selection, c.test) for c in record.candidates]
    tracks = {k: (t.candidate, t.rule, t.supervision, t.ledger, t.metrics) for k, t in record.tracks.items()}
    return {
        "status": record.status,
        "tracks": tracks,
        "candidates": candidates,
        "base": record.base,
        "audit": record.audit,
    }


def wait_for_work(process: subprocess.Popen[bytes], root: Path) -> None:
    """Return once this run has written a file of its own."""

    def files() -> int:
        return sum(1 for kind in ("cells", "stages") for _ in root.glob(f"{kind}/**/*"))

    before = files()
    while process.poll() is None and files() == before:
        time.sleep(0.02)


def test_sigkill_and_resume(tmp_path: Path) -> None:
    undisturbed = vabench(*WORDS, f"results={tmp_path / 'whole'}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = contents(tmp_path / "whole")
    assert len(expected) == 32

    rng = random.Random(0)
    done_at_kill: list[int] = []
    command = [sys.executable, "-m", "harness.cli", *WORDS, f"results={tmp_path / 'killed'}"]
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0.2, 3.0))  # while it plans, or while workers import torch
        else:
            wait_for_work(process, tmp_path / "killed")
            time.sleep(rng.uniform(0.0, 1.0))  # while cells run
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        done_at_kill.append(len(list((tmp_path / "killed").glob("cells/*/*/*/record.json"))))
    print(f"cells done at each kill: {done_at_kill} of {len(expected)}")
    assert any(0 < done < len(expected) for done in done_at_kill), "no kill hit a run in the middle"
    resumed = vabench(*WORDS, f"results={tmp_path / 'killed'}")
    assert resumed.returncode == 0, resumed.stderr

    found = contents(tmp_path / "killed")
    assert found.keys() == expected.keys()
    for identity, (record, arrays) in expected.items():
        other_record, other_arrays = found[identity]
        assert numbers(record) == numbers(other_record), record.row
        assert arrays.keys() == other_arrays.keys()
        for name, values in arrays.items():
            assert np.array_equal(values, other_arrays[name]), (record.row, name)
    time.sleep(1.5)  # an orphaned worker ends itself within a second
    leftovers = [path for path in (tmp_path / "killed").rglob(".tmp-*") if path.stat().st_mtime > time.time() - 1]
    assert not leftovers


def test_resume_with_nothing_done_and_with_everything_done(tmp_path: Path) -> None:
    words = ["run", "methods=[erm,rrr@oracle]", "seeds=1", "workers=1", "recipes.base.epochs=3", "alignment.n=32"]
    words += ["recipes.finetune.steps=5", f"results={tmp_path / 'r'}"]
    (tmp_path / "r").mkdir()  # an empty results folder is 0 % done
    assert vabench("status", *words[1:]).stdout.splitlines()[0].endswith("0 done, 2 missing, 0 stale, 0 damaged")
    assert vabench(*words).returncode == 0
    before = contents(tmp_path / "r")
    again = vabench(*words)
    assert "nothing to do: all 2 cells" in again.stdout
    after = contents(tmp_path / "r")
    assert {k: v[0] for k, v in before.items()} == {k: v[0] for k, v in after.items()}
