"""A fault campaign on a results folder: `python tests/faults.py --faults 200` (tests/test_faults.py runs a short one).

Every trial starts from a folder in which some cells are done, injects one fault while the others run (or into a stored
file before they do), then runs again without faults. Counted: faults injected; survived (the run ended with a sentence,
an interrupt or its work done, and the next one finished); lost (a finished, untouched cell had to run again); wrong
(numbers that differ from those of a run without faults).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from harness import store as store_module
from harness.api import run_config, survey
from harness.config import RunConfig, load_config
from harness.errors import VabenchError
from harness.store import Store

WORDS = ["methods=[erm,rwg,rrr@ground_truth,lvlm_va@embedded]", "seeds=2", "workers=1", "recipes.base.epochs=1"]
WORDS += ["recipes.finetune.steps=3", "metrics.attribution_images=4", "metrics.explainers=[deeplift_shap]"]
WORDS += ["alignment.n=16", "alignment.baselines=2", "alignment.segments.count=2", "alignment.segments.restarts=1"]
WORDS += ['suites=["decoy_digits(rho=0.9,n_train=200,n_val=40,n_val_groups=40,n_test=60)"]', "model=mlp(hidden=8)"]


class Folder:
    """A results folder, its config, and what its cells hold."""

    def __init__(self, root: Path):
        self.root = root
        self.config: RunConfig = load_config("quickstart", [*WORDS, f"results={root}"])
        self.console = Console(file=io.StringIO())

    def run(self) -> None:
        run_config(self.config, self.console)

    def done(self) -> dict[str, str]:
        """What must be equal, by cell: metrics of all tracks and the checksum of the predictions."""
        found = {}
        for state in survey(self.config):
            if state.state == "done" and state.record is not None:
                tracks = {name: track.metrics for name, track in state.record.tracks.items()}
                found[state.cell.id] = json.dumps([tracks, state.record.predictions_sha256])
        return found

    def written(self) -> dict[str, int]:
        """Time at which each intact cell was written."""
        held = Store(self.root)
        times = {}
        for state in survey(self.config):
            if held.intact(state.folder)[0] is not None:
                times[state.cell.id] = (state.folder / "record.json").stat().st_mtime_ns
        return times

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file() and path.stat().st_size)


# --- faults while cells run, in this process --------------------------------------------------------------------------


@contextlib.contextmanager
def failing_writes(rng: random.Random, code: int, short: bool) -> Iterator[None]:
    """From a random write on, writes (or renames) fail; a short one leaves half of its bytes behind."""
    left = rng.randrange(1, 12)
    real = os.fdopen

    class Broken:
        def __init__(self, file: Any):
            self.file = file

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> int:
            if short:
                self.file.write(content[: len(content) // 2])
                self.file.flush()
            raise OSError(code, os.strerror(code))

    def fdopen(handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        nonlocal left
        if "w" not in mode:
            return real(handle, mode, *rest, **more)
        left -= 1
        return real(handle, mode, *rest, **more) if left > 0 else Broken(real(handle, mode, *rest, **more))

    with mock.patch.object(store_module.os, "fdopen", fdopen):
        yield


@contextlib.contextmanager
def failing_renames(rng: random.Random, error: BaseException) -> Iterator[None]:
    """From a random rename on, each raises: a disk's error, or Ctrl-C just before a file appears."""
    left, real = rng.randrange(1, 10), os.replace

    def replace(*paths: Any) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise error
        real(*paths)

    with mock.patch.object(store_module.os, "replace", replace):
        yield


@contextlib.contextmanager
def read_only(rng: random.Random) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with mock.patch.object(store_module.tempfile, "mkstemp", refuse):
        yield


@contextlib.contextmanager
def clock_backwards(rng: random.Random) -> Iterator[None]:
    real, start, back = time.time, time.time(), rng.uniform(10, 1e6)

    def backwards() -> float:
        return 2 * start - real() - back

    with mock.patch("time.time", backwards):
        yield


# --- faults in stored files -------------------------------------------------------------------------------------------


def spoil(folder: Folder, rng: random.Random) -> Path:
    """One stored file torn, emptied, bit-flipped, overwritten by other text, or grown."""
    path = rng.choice(folder.files())
    content = bytearray(path.read_bytes())
    kind = rng.choice(["torn", "empty", "flip", "flip", "other", "grown"])
    if kind == "torn":
        content = content[: rng.randrange(len(content))]
    elif kind == "empty":
        content = bytearray()
    elif kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "other":
        content = bytearray(b'{"id": "x"}')
    else:
        content += b"\0" * 17
    path.write_bytes(bytes(content))
    return path


# --- faults of processes ----------------------------------------------------------------------------------------------


def _start(folder: Folder, workers: int) -> subprocess.Popen[bytes]:
    words = [word for word in WORDS if not word.startswith("workers")]
    command = [sys.executable, "-m", "harness.cli", "run", *words, f"workers={workers}", f"results={folder.root}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found


def _kill(folder: Folder, rng: random.Random, *, what: str) -> None:
    """A run with two workers that is hit once some cells are written (or just before)."""
    run = _start(folder, 2)
    before = len(list(folder.root.glob("cells/*/*/*/record.json")))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.poll() is None:
        if len(list(folder.root.glob("cells/*/*/*/record.json"))) > before + rng.randrange(2):
            break
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.3))
    servers = [pid for pid in _children(run.pid) if _children(pid)]
    workers = [worker for pid in servers for worker in _children(pid)]
    victims = {"driver": [run.pid], "term": [run.pid], "worker": workers[:1], "server": servers}[what]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if what == "term" else signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(timeout=90)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        raise RuntimeError("a run hung after a fault")


def _two_drivers(folder: Folder, rng: random.Random) -> None:
    first, second = _start(folder, 1), _start(folder, 1)
    time.sleep(rng.uniform(2, 6))
    if rng.random() < 0.5:
        first.kill()
    for run in (first, second):
        run.wait(timeout=120)


# --- the campaign -----------------------------------------------------------------------------------------------------

Inside = Callable[[random.Random], contextlib.AbstractContextManager[None]]
INSIDE: dict[str, Inside] = {
    "disk full": lambda rng: failing_writes(rng, errno.ENOSPC, short=False),
    "short write": lambda rng: failing_writes(rng, errno.ENOSPC, short=True),
    "input/output error": lambda rng: failing_writes(rng, errno.EIO, short=True),
    "failing rename": lambda rng: failing_renames(rng, OSError(errno.EIO, os.strerror(errno.EIO))),
    "read-only target": read_only,
    "interrupt": lambda rng: failing_renames(rng, KeyboardInterrupt()),
    "clock backwards": clock_backwards,
}
PROCESSES: dict[str, Callable[[Folder, random.Random], None]] = {
    "SIGKILL of a worker": lambda f, rng: _kill(f, rng, what="worker"),
    "SIGKILL of the driver": lambda f, rng: _kill(f, rng, what="driver"),
    "SIGTERM of the driver": lambda f, rng: _kill(f, rng, what="term"),
    "SIGKILL of the fork server": lambda f, rng: _kill(f, rng, what="server"),
    "two drivers": _two_drivers,
}


def campaign(faults: int, processes: int, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Counter[str]]:
    """Inject faults, `processes` of them by killing processes; returns counts by kind."""
    rng, counts = random.Random(seed), dict[str, Counter[str]]()
    with tempfile.TemporaryDirectory(prefix="vabench-faults-") as place:
        whole = Folder(Path(place) / "whole")
        whole.run()
        truth = whole.done()
        assert len(truth) == 8
        kinds = ["stored file"] * 4 + list(INSIDE)
        order = [kinds[k % len(kinds)] for k in range(faults - processes)]
        order += [list(PROCESSES)[k % len(PROCESSES)] for k in range(processes)]
        for number, kind in enumerate(order):
            shutil.rmtree(Path(place) / "trial", ignore_errors=True)
            shutil.copytree(whole.root, Path(place) / "trial")
            found = _trial(Folder(Path(place) / "trial"), kind, truth, rng)
            held = counts.setdefault(kind, Counter())
            held.update(found)
            if found["lost"] or found["wrong"] or not found["survived"]:
                say(f"trial {number}, {kind}: {dict(found)}")
    return counts


def _trial(folder: Folder, kind: str, truth: dict[str, str], rng: random.Random) -> Counter[str]:
    found: Counter[str] = Counter(injected=1)
    states = survey(folder.config)
    for state in rng.sample(states, rng.randrange(1, len(states))) if kind != "stored file" else []:
        shutil.rmtree(state.folder)  # not run yet
    if rng.random() < 0.5:
        shutil.rmtree(folder.root / "stages", ignore_errors=True)
    before, touched = folder.written(), ""
    try:
        if kind in INSIDE:
            with INSIDE[kind](rng):
                folder.run()
        elif kind in PROCESSES:
            PROCESSES[kind](folder, rng)
        else:
            path = spoil(folder, rng)
            touched = next((s.cell.id for s in states if s.folder in path.parents), "")
    except (VabenchError, KeyboardInterrupt):
        pass  # a sentence for people, or Ctrl-C
    except Exception as error:
        found["crashed"] += 1
        print(f"{kind}: {type(error).__name__}: {error}")
    try:
        folder.run()
    except Exception as error:
        found["crashed"] += 1
        print(f"{kind}, then: {type(error).__name__}: {error}")
    after, done = folder.written(), folder.done()
    found["lost"] += sum(after.get(cell) != when for cell, when in before.items() if cell != touched)
    found["wrong"] += sum(done.get(cell) != held for cell, held in truth.items())
    found["survived"] += not found["crashed"] and not found["wrong"]
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--faults", type=int, default=200)
    words.add_argument("--processes", type=int, default=20, help="how many of them kill processes")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    start, total = time.monotonic(), Counter[str]()
    for kind, held in campaign(given.faults, given.processes, given.seed).items():
        total.update(held)
        print(f"{kind:24} " + ", ".join(f"{name} {held[name]}" for name in ("injected", "survived", "lost", "wrong")))
    print(f"{'all':24} " + ", ".join(f"{name} {total[name]}" for name in ("injected", "survived", "lost", "wrong")))
    print(f"{time.monotonic() - start:.0f} s")
    sys.exit(bool(total["lost"] or total["wrong"] or total["crashed"]))


if __name__ == "__main__":
    main()
