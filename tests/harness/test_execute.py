"""Worker processes: forked from one server that has imported torch, and nothing else of the driver's past."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from harness import execute
from harness.api import run_config
from harness.cell import CellRun
from harness.config import load_config
from harness.errors import ConfigError, VabenchError
from harness.execute import Local, Outcome, Pool, context
from harness.plan import Cell, plan
from harness.record import Status
from harness.stages import Stages
from harness.store import Store
from harness.suite import SuiteData
from suites.decoy import DecoyDigits


class Silent:
    """A display of nothing."""

    def started(self, slot: int, cell: Cell) -> None:
        pass

    def advanced(self, slot: int, phase: str, done: int, total: int) -> None:
        pass

    def tick(self) -> None:
        pass


def cells(root: Path, *words: str) -> list[Cell]:
    return plan(load_config("quickstart", [f"results={root}", "methods=[erm]", "recipes.base.epochs=1", *words]))


@pytest.fixture
def server() -> None:
    if context().get_start_method() != "forkserver":
        pytest.skip("this system cannot fork: workers are spawned")
    Local().prepare(2, "cpu")  # starts in the environment and folder of before the test


def server_of(pool: Pool) -> int:
    worker = pool._slots[0].process.pid
    return int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.usefixtures("server")
def test_workers_see_the_environment_and_folder_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VABENCH_DATA", str(tmp_path / "nothing-here"))
    pool = Pool(str(tmp_path / "r"), "cpu", 1)
    try:
        (found,) = pool.run(cells(tmp_path / "r", "suites=[kermany_natural]", "seeds=1"), Silent())
        assert Path(f"/proc/{pool._slots[0].process.pid}/cwd").resolve() == tmp_path.resolve()
    finally:
        pool.close()
    assert found.status is Status.SKIPPED
    assert "nothing-here" in found.reason


@pytest.mark.usefixtures("server")
def test_a_killed_fork_server_and_a_killed_worker_are_both_replaced(tmp_path: Path) -> None:
    pool, found = Pool(str(tmp_path / "r"), "cpu", 1), list[Outcome]()
    try:
        for outcome in pool.run(cells(tmp_path / "r", "seeds=3"), Silent()):
            if not found:
                os.kill(server_of(pool), signal.SIGKILL)
                os.kill(pool._slots[0].process.pid or 0, signal.SIGKILL)
            found.append(outcome)
    finally:
        pool.close()
    assert [outcome.status for outcome in found] == [Status.DONE] * 3


def test_a_server_that_is_about_to_die_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "TICK_S", 0.0)

    class Dying:
        def __init__(self, refusals: int):
            self.left = refusals

        def start(self) -> None:
            self.left -= 1
            if self.left >= 0:
                raise ConnectionRefusedError

    process: Any = Dying(3)
    execute._start_process(process)
    assert process.left == -1
    with pytest.raises(VabenchError, match="no worker process can be started"):
        execute._start_process(cast(Any, Dying(1000)))


@pytest.mark.usefixtures("server")
def test_the_server_has_no_thread_to_lose(tmp_path: Path) -> None:
    pool = Pool(str(tmp_path / "r"), "cpu", 1)
    try:
        assert pool._slots[0].pipe.poll(60)  # the worker is ready: the server has imported all that it will
        status = Path(f"/proc/{server_of(pool)}/status").read_text()
    finally:
        pool.close()
    assert "Threads:\t1\n" in status


def test_ctrl_c_does_not_reach_what_the_server_imports() -> None:
    script = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
import harness.preload
print("imported", "harness.cell" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (said.stdout, said.stderr, said.returncode) == ("imported True\n", "", 0)


def test_data_loaded_ahead_are_used_once_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = list[int]()
    original = DecoyDigits.load

    def counted(self: DecoyDigits, seed: int) -> SuiteData:
        loads.append(seed)
        return original(self, seed)

    monkeypatch.setattr(DecoyDigits, "load", counted)
    first, second = cells(tmp_path / "r", "seeds=2")
    alone = CellRun(second, Stages(Store(tmp_path / "alone"), torch.device("cpu"))).run()[1]
    loads.clear()
    stages = Stages(Store(tmp_path / "r"), torch.device("cpu"))
    CellRun(first, stages).run()
    stages.prepare(first)  # in memory already
    stages.prepare(second)
    stages.prepare(second)  # on its way already
    arrays = CellRun(second, stages).run()[1]
    assert loads == [first.seed, second.seed]
    assert all(np.array_equal(arrays[name], alone[name]) for name in alone)


def test_an_error_while_loading_ahead_is_that_cells_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DecoyDigits.load

    def broken(self: DecoyDigits, seed: int) -> SuiteData:
        if seed:
            raise RuntimeError("bad sector")
        return original(self, seed)

    monkeypatch.setattr(DecoyDigits, "load", broken)
    first, second = cells(tmp_path / "r", "seeds=2")
    stages = Stages(Store(tmp_path / "r"), torch.device("cpu"))
    stages.prepare(second)
    assert CellRun(first, stages).run()[0].status is Status.DONE
    record = CellRun(second, stages).run()[0]
    assert record.status is Status.FAILED
    assert "bad sector" in record.reason


def test_nothing_is_prepared_where_nothing_waits_or_one_process_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[tuple[int, str]]()
    monkeypatch.setattr(Local, "prepare", lambda self, asked, device: told.append((asked, device)))
    words = [f"results={tmp_path}", "methods=[erm]", "recipes.base.epochs=1", "seeds=1", "workers=1", "device=cpu"]
    for _ in range(2):  # the second time every cell is done
        run_config(load_config("quickstart", words), Console(file=io.StringIO()))
    assert told == [(1, "cpu")]
    monkeypatch.undo()
    started = list[int]()
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: started.append(1))
    Local().prepare(1, "cpu")
    Local().prepare(0, "cuda")
    assert not started


GOOD, WRONG = "methods=[rrr(lam=2.0)]", "methods=[rrr(lam=-1.0)]"


@pytest.fixture
def local() -> Local:
    if context().get_start_method() != "forkserver":
        pytest.skip("this system cannot fork: parameters are tried in the driver")
    executor = Local()
    executor.prepare(2, "cpu")
    return executor


def test_parameters_are_tried_in_a_worker(local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()
    monkeypatch.setattr(execute, "try_parameters", lambda cells: tried.append(len(cells)))
    local.try_parameters(cells(tmp_path / "r", GOOD))
    with pytest.raises(ConfigError, match="lam"):
        local.try_parameters(cells(tmp_path / "r", WRONG))
    assert not tried
    Local().try_parameters(cells(tmp_path / "r", GOOD, "seeds=3"))  # one that never prepared a server
    assert tried == [1]


def test_a_component_that_ends_its_process_is_left_to_its_own_cells(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[int]()
    monkeypatch.setattr(execute, "try_parameters", lambda cells: tried.append(len(cells)))
    monkeypatch.setattr("harness.worker.answer_trial", os._exit)  # a function that the child can import, and dies of
    local.try_parameters(cells(tmp_path / "r", GOOD))
    assert not tried


def say_nothing(pipe: Any, *rest: Any) -> None:
    pipe.send(None)


def never_answer(*rest: Any) -> None:
    time.sleep(60)


def test_what_a_component_raises_is_the_driver_s_to_show(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[int]()
    monkeypatch.setattr(execute, "try_parameters", lambda cells: tried.append(len(cells)))
    monkeypatch.setattr("harness.worker.answer_trial", say_nothing)
    local.try_parameters(cells(tmp_path / "r", GOOD))
    assert tried == [1]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises here, also where the shell that began the tests in the background has it ignored."""
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, held)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_does_not_wait_for_a_component_that_is_being_tried(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.worker.answer_trial", never_answer)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        local.try_parameters(cells(tmp_path / "r", GOOD))
    assert time.monotonic() - start < 20


def test_the_driver_of_two_workers_never_imports_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from harness.cli import main
settings = ["workers=2", "seeds=2", "methods=[erm,rrr]", "recipes.base.epochs=1", "results={tmp_path}/r"]
sys.argv = ["vabench", "run", *settings]
try:
    main()
except SystemExit as end:
    print("ended", end.code, "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "ended 0 False", ran.stdout + ran.stderr
    assert "4 done" in ran.stdout


def test_a_folder_of_another_project_is_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("harness", "methods"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    command = shutil.which("vabench", path=Path(sys.executable).parent)
    assert command, "vabench is not installed beside this Python"
    words = ["workers=2", "seeds=2", "methods=[erm]", "recipes.base.epochs=1"]
    ran = subprocess.run([command, "run", *words], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 done" in ran.stdout
