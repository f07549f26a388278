"""Cells as Slurm arrays, on a simulated Slurm (tests/fake_slurm.py; there is no true one here) under the true submitit.

Equal to a local run though tasks are pre-empted and lost; what is given up, and what a cancelled run leaves behind.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import config, numbers, run
from fake_slurm import FakeSlurm, install

from harness import slurm_executor, slurm_task
from harness.config import load_config
from harness.drivers import cancel
from harness.errors import ConfigError, DataError, VabenchError
from harness.execute import Outcome
from harness.plan import Cell, plan
from harness.record import Record, Status
from harness.slurm_executor import Slurm
from harness.slurm_task import Journal, Task, read_cells, write_cells
from harness.store import Store

pytest.importorskip("submitit")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    monkeypatch.setattr(slurm_executor, "LOOK_S", 0.2)
    monkeypatch.setattr(slurm_executor, "ASK_S", 0.5)
    held = install(tmp_path / "slurm", monkeypatch)
    yield held
    held.end()


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def begun(root: Path, pack: int) -> int:
    """Cells that a pack's journal says have begun."""
    return sum(path.read_text().count('"started"') for path in root.glob(f"slurm/*/pack-{pack:06d}.journal"))


def test_an_array_gives_what_one_process_gives_though_tasks_are_preempted_and_lost(
    cluster: FakeSlurm, tmp_path: Path
) -> None:
    run(config(tmp_path / "local", "local", "workers=1"))
    expected = numbers(tmp_path / "local")
    assert len(expected) == 8
    root, faults = tmp_path / "results", []

    def disturb() -> None:
        wait_for(lambda: begun(root, 0) >= 2)
        cluster.preempt("1_0")
        wait_for(lambda: begun(root, 1) >= 1)
        cluster.lose("1_1", "NODE_FAIL")
        faults.append("both")

    thread = threading.Thread(target=disturb)
    thread.start()
    summary = run(config(root, "slurm(cells=4,partition=short,memory=1.5)", "workers=1"))
    thread.join()
    assert faults == ["both"]
    assert summary.counts() == {"done": 8}
    assert numbers(root) == expected
    wait_for(lambda: "RUNNING" not in cluster.states().values())  # submitit writes a task's last file after the journal
    states = cluster.states()
    assert states["1_0"] == "COMPLETED"
    assert cluster.starts("1_0") == 2  # requeued once
    assert states["1_1"] == "NODE_FAIL"
    assert [states[job] for job in states if not job.startswith("1_")] == ["COMPLETED"] * 2  # the cell, and the others
    script = cluster.script(1)
    for line in ("--array=0-1%1", "--partition=short", "--mem=1536M", "--time=60", "--requeue", "--cpus-per-task=1"):
        assert f"#SBATCH {line}\n" in script
    (folder,) = root.glob("slurm/*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("jobs/*_log.err"))  # kept, because a task was lost


def test_a_run_that_lost_nothing_leaves_nothing_beside_its_cells(cluster: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "results"
    summary = run(config(root, "slurm(workers=2,cpus=3,gpus=1)", "workers=2", "methods=[erm,rwg]", "seeds=1"))
    assert summary.counts() == {"done": 2}
    assert not (root / "slurm").exists()
    script = cluster.script(1)  # one task is no array
    assert "--array" not in script
    assert "#SBATCH --cpus-per-task=6\n" in script
    assert "#SBATCH --gpus-per-node=1\n" in script
    assert "srun --unbuffered" in script
    assert "--cpus-per-task=6 " in script.split("srun", 1)[1]


def test_a_cancelled_run_cancels_its_array(cluster: FakeSlurm, tmp_path: Path) -> None:
    root, asked = tmp_path / "results", []

    def stop() -> None:
        wait_for(lambda: begun(root, 0))
        asked.append(cancel(root))

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(config(root, "slurm(cells=2)", "workers=1", "recipes.base.epochs=500"))
    thread.join()
    wait_for(lambda: set(cluster.states().values()) == {"CANCELLED by 1000"}, 20)
    assert asked[0][0] >= 1
    assert asked[0][1] == 0


def test_a_task_whose_driver_is_gone_hears_of_a_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_task, "LOOK_EVERY_S", 0.1)
    (tmp_path / "pack.json").write_bytes(write_cells(plan(config(tmp_path, "local", "recipes.base.epochs=2000"))))
    task = Task(str(tmp_path), str(tmp_path / "pack.json"), "cpu", 1, 3600.0)

    def stop() -> None:
        wait_for(lambda: "started" in "".join(path.read_text() for path in tmp_path.glob("*.journal")))
        cancel(tmp_path)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        task()
    thread.join()
    journal = task.journal()
    journal.read()
    assert journal.over
    assert not journal.ended


# --- the driver alone: tasks are scripts that write a journal --------------------------------------------------------


class Quiet:
    def started(self, slot: int, cell: Any) -> None: ...
    def advanced(self, slot: int, phase: str, done: int, total: int) -> None: ...
    def tick(self) -> None: ...


Script = Callable[[Task, list[Cell]], str]  # what a task does; the state in which Slurm then has its job


def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, **settings: Any
) -> tuple[list[Outcome], list[list[str]], list[str]]:
    """Drive four cells of one seed. Returns outcomes, rows by submitted task, and the job ids given to scancel."""
    monkeypatch.setattr(slurm_executor, "LOOK_S", 0.0)
    monkeypatch.setattr(slurm_executor, "ASK_S", 0.0)
    monkeypatch.setattr(slurm_executor, "TICK_S", 0.0)
    submitted: list[list[str]] = []
    states: dict[str, str] = {}
    cancelled: list[str] = []

    class Job:
        def __init__(self, name: str):
            self.job_id = name

    class Queue:
        def __init__(self, folder: Path, max_num_timeout: int): ...
        def update_parameters(self, **_: Any) -> None: ...

        def submit_array(self, tasks: list[Task]) -> list[Job]:
            jobs = []
            for task in tasks:
                cells = read_cells(Path(task.pack).read_bytes())
                name = f"9_{len(submitted)}"
                submitted.append([cell.row_name for cell in cells])
                states[name] = script(task, cells)
                jobs.append(Job(name))
            return jobs

    class Submitit:
        SlurmExecutor = Queue

    monkeypatch.setattr(slurm_executor, "_submitit", lambda: Submitit)
    monkeypatch.setattr(slurm_executor._Run, "_states", lambda _: states)
    monkeypatch.setattr(slurm_executor._Run, "_cancel", lambda _, packs: cancelled.extend(p.job.job_id for p in packs))
    cells = plan(config(tmp_path, "local", "seeds=1"))
    found = list(Slurm(**settings).run(cells, str(tmp_path), "cpu", 4, Quiet()))
    return found, submitted, cancelled


def ends(journal: Journal, cell: Cell) -> None:
    journal.write(started=cell.id)
    journal.write(ended=cell.id, status="done", reason="", wall_s=1.0)


def dies_at(victim: str, state: str = "OUT_OF_MEMORY") -> Script:
    """A task that ends all of its cells up to one that takes the task with it."""

    def script(task: Task, cells: list[Cell]) -> str:
        journal = task.journal()
        journal.write(begin=0.0)
        for cell in cells:
            if cell.row_name == victim:
                journal.write(started=cell.id)
                return state
            ends(journal, cell)
        journal.write(over="")
        return "COMPLETED"

    return script


def test_a_cell_that_takes_its_task_with_it_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, submitted, cancelled = play(tmp_path, monkeypatch, dies_at("rwg"), retries=1)
    by_row = {outcome.cell.row_name: outcome for outcome in found}
    rows = ["erm", "rwg", "rrr@ground_truth", "lvlm_va@oracle"]
    assert {name for name, outcome in by_row.items() if outcome.status is Status.DONE} == {*rows} - {"rwg"}
    assert by_row["rwg"].status is Status.FAILED
    assert "lost 2 times (Slurm says OUT_OF_MEMORY)" in by_row["rwg"].reason
    assert str(tmp_path) not in by_row["rwg"].reason
    assert submitted == [rows, ["rwg"], rows[2:]]  # the victim alone, the others without it
    assert cancelled == ["9_0", "9_1"]
    ((_, record),) = list(Store(tmp_path).records())  # the scripts write none
    assert isinstance(record, Record)
    assert record.status is Status.FAILED


def test_retries_are_as_many_as_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, submitted, _ = play(tmp_path, monkeypatch, dies_at("erm", "TIMEOUT"), retries=3, cells=1)
    assert sum(rows == ["erm"] for rows in submitted) == 4
    assert [o.cell.row_name for o in found if o.status is Status.FAILED] == ["erm"]


def test_tasks_that_never_begin_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, submitted, _ = play(tmp_path, monkeypatch, lambda task, cells: "FAILED", retries=2)
    assert len(submitted) == 3
    assert {outcome.status for outcome in found} == {Status.FAILED}
    assert len(found) == 4
    assert "lost 3 times (Slurm says FAILED)" in found[0].reason


def test_what_a_task_raises_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(task: Task, cells: list[Cell]) -> str:
        task.journal().write(over="this node has another version of vabench")
        return "RUNNING"

    found, _, _ = play(tmp_path, monkeypatch, script, retries=0)
    assert "lost 1 time (this node has another version of vabench)" in found[0].reason


def test_what_somebody_cancels_is_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, submitted, _ = play(tmp_path, monkeypatch, dies_at("rwg", "CANCELLED"), retries=5)
    assert len(submitted) == 1
    assert [outcome.status for outcome in found].count(Status.FAILED) == 3


def test_a_preempted_task_that_is_not_queued_again_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_executor, "PATIENCE_S", 0.3)
    start = time.monotonic()
    found, submitted, _ = play(tmp_path, monkeypatch, dies_at("rwg", "PREEMPTED"), retries=0)
    assert time.monotonic() - start > 0.3
    assert len(submitted) == 2
    assert [outcome.status for outcome in found].count(Status.FAILED) == 1


def test_a_record_counts_where_the_journal_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(tmp_path, "local", "seeds=1", "workers=1"))
    found, submitted, _ = play(tmp_path, monkeypatch, lambda task, cells: "NODE_FAIL", retries=0)
    assert {outcome.status for outcome in found} == {Status.DONE}
    assert len(submitted) == 1


# --- what passes between driver and task -----------------------------------------------------------------------------


def test_cells_survive_the_pack() -> None:
    rows = "methods=[erm,rrr(lam=1.0)@noisy_oracle(fpr=0.13,fnr=0.0),lvlm_va@shuffled(of=oracle)]"
    cells = plan(load_config("quickstart", [rows, "seeds=[0,7]", "model=mlp(hidden=8)"]))
    again = read_cells(write_cells(cells))
    assert again == cells
    assert [cell.id for cell in again] == [cell.id for cell in cells]
    assert type(again[1].row.method.params["lam"]) is float


def test_a_spoiled_pack_and_another_engine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_cells(plan(load_config("quickstart", ["methods=[erm]", "seeds=1"])))
    for spoiled in (b"", b"[]", content[:-9], content.replace(b'"seed": 0', b'"seed": 1')):
        with pytest.raises(DataError, match="pack of cells is damaged"):
            read_cells(spoiled)
    other = json.loads(content)
    other["code"]["harness.cell"] = "0"
    with pytest.raises(VabenchError, match="another version of vabench"):
        read_cells(json.dumps(other).encode())


def test_a_journal_outlives_a_torn_line_and_a_second_start(tmp_path: Path) -> None:
    writer, reader = Journal(tmp_path / "a.journal"), Journal(tmp_path / "a.journal")
    assert reader.read() == []
    writer.write(begin=1.0)
    writer.write(started="a")
    with writer.path.open("ab") as file:
        file.write(b'{"ended": "a", "sta')
    assert [list(line) for line in reader.read()] == [["begin"], ["started"]]
    assert reader.started == ["a"]
    writer.write(begin=2.0)
    writer.write(started="b")
    writer.write(ended="b", status="failed", reason="no", wall_s=2.0)
    writer.write(ended="c", status="of no such kind", reason="", wall_s=2.0)
    reader.read()
    assert reader.started == []
    assert reader.ended == {"b": ("failed", "no", 2.0)}
    assert reader.over is None
    writer.write(over="")
    reader.read()
    assert reader.over == ""


def test_a_task_is_requeued_unless_a_whole_time_limit_brought_nothing(tmp_path: Path) -> None:
    task = Task(str(tmp_path), str(tmp_path / "p.json"), "cpu", 1, 600.0)
    journal = task.journal()
    journal.write(begin=time.time() - 100)
    assert task.checkpoint().function == task  # pre-empted long before the limit
    journal.write(begin=time.time() - 500)
    journal.write(ended="a", status="done", reason="", wall_s=1.0)
    assert task.checkpoint().function == task  # at the limit, but it gets on
    journal.write(begin=time.time() - 500)
    assert task.checkpoint() is None
    read = task.journal()
    read.read()
    assert read.over == "no cell ended within the time limit of 10 min; raise slurm(time=...)"


# --- errors for people -----------------------------------------------------------------------------------------------


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no sbatch, srun, sacct, scancel, scontrol here: .* login node"):
        Slurm().slots(0, 8, "cpu")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'vabench\[slurm\]'"):
        Slurm().slots(0, 8, "cpu")


def test_a_refused_array_says_what_sbatch_says(cluster: FakeSlurm, tmp_path: Path) -> None:
    refusing = cluster.folder / "bin" / "sbatch"
    refusing.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nowhere' >&2\nexit 1\n")
    cells = plan(config(tmp_path, "local", "seeds=1"))
    with pytest.raises(VabenchError, match="refuses the job array: sbatch: error: invalid partition specified"):
        list(Slurm(partition="nowhere").run(cells, str(tmp_path / "results"), "cpu", 4, Quiet()))


@pytest.mark.parametrize("wrong", [{"time": 0}, {"cells": 0}, {"retries": -1}, {"gpus": 0.5}, {"memory": "8G"}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Slurm(**wrong)


def test_slots(cluster: FakeSlurm) -> None:
    assert Slurm(cells=10, workers=2).slots(0, 95, "cpu") == 20
    assert Slurm(cells=10).slots(3, 95, "cpu") == 3
    assert Slurm(cells=10).slots(99, 5, "cpu") == 5
