"""Scale, measured: `python tests/scale.py cluster` and `python tests/scale.py simulated --cells 10000` (need Ray).

`cluster`: 60 cells of decoy_digits with local workers and on two raylets, one of which is killed halfway; equal
numbers, and wall-clock against the ideal (sum of cell times / workers). `simulated`: cells that only sleep, or fail by
lot.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from harness.api import run_config, survey
from harness.config import RunConfig, load_config
from harness.plan import Cell, plan
from harness.ray_executor import Answer, drive
from harness.record import Record, Status
from harness.schema import seal
from harness.store import Store, write_bytes

CELLS = ["methods=[erm,rwg,group_dro,rrr@ground_truth,lvlm_va@oracle,erm_continue]", "seeds=10"]


def contents(root: Path) -> tuple[dict[str, Any], float]:
    """Numbers of every cell, and the sum of the cells' seconds."""
    store, found, seconds = Store(root), {}, 0.0
    for folder, record in store.records():
        assert isinstance(record, Record), record
        tracks = {name: (t.metrics, t.ledger, t.candidate) for name, t in record.tracks.items()}
        found[record.id] = (tracks, {k: a.tobytes() for k, a in store.predictions(folder, record).items()})
        seconds += record.wall_s
    return found, seconds


def two_nodes() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    held = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    held.second = held.add_node(num_cpus=1)
    return held


def cluster(place: Path) -> None:
    """60 cells three times: local, Ray, Ray with a node that dies."""

    def config(name: str, *more: str) -> RunConfig:
        return load_config("quickstart", [*CELLS, f"results={place / name}", *more])

    def run(name: str, *more: str) -> tuple[float, float, dict[str, Any]]:
        start = time.monotonic()
        summary = run_config(config(name, *more), Console(file=io.StringIO()))
        wall = time.monotonic() - start
        assert summary.counts() == {"done": 60}, summary.counts()
        found, seconds = contents(place / name)
        return wall, seconds, found

    wall, seconds, local = run("local", "workers=2")
    print(f"local, 2 workers: {wall:.1f} s, ideal {seconds / 2:.1f} s, share {seconds / 2 / wall:.2f}", flush=True)
    held = two_nodes()
    executor = f'executor=ray(address="{held.address}")'
    run_config(load_config("quickstart", [*CELLS, "seeds=[99]", f"results={place / 'warm'}", executor]),
               Console(file=io.StringIO()))  # fmt: skip
    wall, seconds, found = run("ray", executor)
    print(f"ray, 2 raylets: {wall:.1f} s, ideal {seconds / 2:.1f} s, share {seconds / 2 / wall:.2f}", flush=True)
    assert found == local, "Ray gave other numbers"

    def kill() -> None:
        while len(list((place / "killed").glob("cells/*/*/*/record.json"))) < 30:
            time.sleep(0.05)
        held.remove_node(held.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    wall, seconds, found = run("killed", executor)
    killer.join()
    assert found == local, "a run that lost a node gave other numbers"
    records = len(list((place / "killed").glob("cells/*/*/*/record.json")))
    print(f"one node killed at 30 cells: {wall:.1f} s, {len(found)} cells done, {records} records, equal to local")
    ray.shutdown()
    held.shutdown()


class Quiet:
    """A display that shows nothing."""

    def started(self, slot: int, cell: Cell) -> None: ...
    def advanced(self, slot: int, phase: str, done: int, total: int) -> None: ...
    def tick(self) -> None: ...


def nap(record: bytes, seconds: float, lot: float) -> Answer:
    """A cell that only sleeps: one in a hundred fails, one in five hundred takes its worker with it."""
    time.sleep(seconds)
    if lot < 0.002:
        os._exit(1)
    status = "failed" if lot < 0.012 else "done"
    return Answer("finished", status, "by lot" if status == "failed" else "", seconds, record)


def simulated(place: Path, count: int) -> None:
    config = load_config("decoys", [f"seeds={count // 62 + 1}", f"results={place}"])
    start = time.monotonic()
    cells = plan(config)[:count]
    print(f"plan of {len(cells)} cells: {time.monotonic() - start:.1f} s", flush=True)
    held = two_nodes()
    ray.init(address=held.address, log_to_driver=False, logging_level="ERROR")
    rng, store = random.Random(0), Store(place)
    task = ray.remote(num_cpus=0.25, max_retries=0)(nap)

    def submit(cell: Cell, wait: bool) -> Any:
        record = Record(
            id=cell.id, status=Status.DONE, suite=cell.suite_name, suite_source="synthetic", row=cell.row_name,
            method=str(cell.row.method), mask_source=None, block="baseline", model=str(cell.model), seed=cell.seed,
            config=cell.config, identity=cell.identity,
        )  # fmt: skip
        return task.remote((seal(record).model_dump_json() + "\n").encode(), 0.01, rng.random())

    def keep(cell: Cell, answer: Answer) -> None:
        write_bytes(store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id) / "record.json", answer.record)

    def once(todo: list[Cell]) -> tuple[float, dict[str, int]]:
        start, counts = time.monotonic(), dict[str, int]()
        for outcome in drive(ray, todo, submit, keep, str(place), 8, Quiet()):
            counts[outcome.status.value] = counts.get(outcome.status.value, 0) + 1
        return time.monotonic() - start, counts

    once(cells[:40])  # workers are up
    cpu = time.process_time()
    wall, counts = once(cells)
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(cells)} sleeping cells, 8 in flight: {wall:.1f} s ({len(cells) * 0.01 / 8:.1f} s of sleep), "
        f"{counts}; driver: {1e3 * cpu / len(cells):.2f} ms of CPU per cell, {peak:.0f} MB at most", flush=True,
    )  # fmt: skip
    for cell in cells[:10]:
        shutil.rmtree(store.folder(cell.suite_name, cell.row_name, cell.seed, cell.id))
    start = time.monotonic()
    wanted = {cell.id for cell in cells}
    todo = [s.cell for s in survey(config) if s.state != "done" and s.cell.id in wanted]
    looked = time.monotonic() - start
    once(todo)
    print(f"resume with {len(cells) - len(todo)} done: {looked:.1f} s to find {len(todo)}, "
          f"{time.monotonic() - start:.1f} s to the end")  # fmt: skip
    ray.shutdown()
    held.shutdown()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("what", choices=("cluster", "simulated"))
    words.add_argument("--cells", type=int, default=10_000)
    given = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="vabench-scale-") as place:
        if given.what == "cluster":
            cluster(Path(place))
        else:
            simulated(Path(place), given.cells)


if __name__ == "__main__":
    main()
