"""The timing protocol at toy size on a CPU: what is measured, what is refused, what a record holds."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from harness.config import load_config
from harness.context import RunContext, Seeds
from harness.errors import ConfigError, DataError
from harness.models import build_model
from harness.plan import plan
from harness.spec import Spec
from harness.stages import Stages
from harness.store import Store
from harness.throughput import packing
from harness.throughput.bench_files import compared
from harness.throughput.bounds import bare_blocks, matrix_rate, training_flops
from harness.throughput.command import lines
from harness.throughput.hardware import Reading, Sensors, _handle, why_invalid
from harness.throughput.protocol import Effort, best_configuration, measure
from harness.throughput.record import (
    Round,
    RowTiming,
    Setting,
    TimingRecord,
    check_one_column,
    check_one_machine,
    rates,
    read_timing,
    summarise,
    too_few,
    with_compilation,
    without_folders,
)
from harness.throughput.timed import Meter, TimedRow
from harness.training import TrainRecipe, fit

CPU = torch.device("cpu")
WORDS = ["suites=[stand_in(size=16,n=64)]", "model=mlp(hidden=8)", "alignment.n=8", "alignment.baselines=2"]
WORDS += ["recipes.base.batch_size=16", "recipes.finetune.batch_size=16", "recipes.base.precision=float32"]
WORDS += ["recipes.finetune.precision=float32", "alignment.segments.count=2", "alignment.segments.restarts=1"]


def setting(**over: object) -> Setting:
    values = {"suite": "s", "model": "m", "image_shape": (1, 8, 8), "classes": 2, "batch": 16, "repair_batch": 16}
    values |= {"repair_dtype": "float32", "recipes": {}, "alignment": {}}
    return Setting(**{**values, "dtype": "float32", "device": "cpu", "threads": 1, "steps": 20, "images": 8, **over})  # type: ignore[arg-type]


def timing(row: str, speeds: list[float], invalid: tuple[int, ...] = (), **over: object) -> RowTiming:
    rounds = [
        Round(number=k, rates={"train": [s, s, s]}, invalid="busy" if k in invalid else "")
        for k, s in enumerate(speeds)
    ]
    return RowTiming(row=row, setting=setting(**over), rounds=rounds, warmup_s=0.0)


def record(*rows: RowTiming) -> TimingRecord:
    return TimingRecord(preset="p", source="stand-in", rows=list(rows), wall_s=1.0, provenance={})


def test_every_row_is_timed_in_turns_and_the_record_reads_back(tmp_path: Path) -> None:
    rows = "methods=[erm,dfr,lvlm_va@oracle,jtt(stage1_epochs=9999999,steps=2)]"
    said: list[str] = []
    found = measure(load_config("timing_resnet18", [*WORDS, rows]), Effort(2, 2, 2, 8), said.append)
    assert len(found.failed) == 1  # and it stops no other
    assert "leaves none for stage 2" in next(iter(found.failed.values()))
    held = {row.row: rates(row) for row in found.rows}
    assert set(held["erm"]) == {"train", "infer"}
    assert set(held["dfr"]) == {"align", "infer"}
    assert set(held["lvlm_va@oracle"]) == {"align", "infer", "explain", "segment", "critique"}
    assert all(rate.low <= rate.median <= rate.high for row in held.values() for rate in row.values())
    assert all(len(row.rounds) >= 2 and row.peak_memory(phase) > 2**20 for row in found.rows for phase in rates(row))
    blocks = [len(r.rates["train"]) for r in found.rows[0].rounds]
    assert blocks == [2] * len(blocks)  # the first block of a training is warm-up
    assert found.source == "stand-in"
    assert "blocks of 2 steps instead of 20, 8 images explained" in found.short
    assert re.search(r"fewer than 5 valid rounds: erm \d, dfr \d, lvlm_va@oracle \d", found.short)
    assert found.reference is not None
    assert found.reference.setting == found.rows[0].setting
    assert set(rates(found.reference)) == {"train"}
    path = tmp_path / "t.json"
    path.write_text(found.model_dump_json())
    assert read_timing(path) == found
    text = "\n".join(lines(found))
    assert "not for publication" in text
    assert "stand-in" in text
    hostless = found.model_dump_json()
    assert Path.home().name not in json.loads(hostless)["provenance"].get("hardware", {}).values()


def test_the_meter_drops_warm_up_and_never_joins_two_trainings() -> None:
    meter = Meter(CPU, 2)
    for _ in range(2):
        for step in range(1, 7):
            meter("align", step, 6)
    assert len(meter.rates()) == 4  # marks after steps 2, 4, 6 of either training
    assert meter.rates() == []
    meter.total = 6
    meter("align", 2, 5)
    meter("align", 4, 5)
    assert meter.rates() == []


def test_images_are_counted_not_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 images in batches of 16: every second batch has 4, so two steps are 20 images, and a second a step."""
    clock = iter(range(1000))
    monkeypatch.setattr("harness.throughput.timed.time.perf_counter", lambda: float(next(clock)))
    recipe = TrainRecipe(batch_size=16, steps=8)
    images, y = packing._data((1, 4, 4), 2, 20, CPU)
    meter = Meter(CPU, 2)
    context = RunContext(CPU, Seeds.all(0), recipe, recipe, progress=meter)
    meter.images = lambda: context.images_trained
    fit(build_model(Spec("mlp", {"hidden": 8}), (1, 4, 4), 2, 0), images, y, recipe, context)
    assert meter.rates() == [20.0] * 3
    assert context.images_trained == 80


def test_subgroup_balancing_is_timed_by_its_own_smaller_batches() -> None:
    words = [*WORDS, "methods=[erm,subg]", "recipes.base.batch_size=64", "suites=[decoy_digits(rho=0.97)]"]
    (cell,) = [cell for cell in plan(load_config("quickstart", [*words, "seeds=1"])) if cell.row_name == "subg"]
    with tempfile.TemporaryDirectory() as root:
        row = TimedRow(cell, Stages(Store(root), CPU), 4, 2, 8)
    before = row.run.context.images_trained
    row.one_round(0)
    taken = row.run.context.images_trained - before
    assert 0 < taken < 4 * 3 * 64  # it draws fewer images than a full batch each step


def test_a_critic_is_asked_in_every_round_and_a_short_phase_is_repeated() -> None:
    (cell,) = plan(load_config("timing_resnet18", [*WORDS, "methods=[lvlm_va@oracle]", "seeds=1"]))
    with tempfile.TemporaryDirectory() as root:
        row = TimedRow(cell, Stages(Store(root), CPU), 2, 2, 8)
    assert row.run.context.recordings is None  # else it would be timed replaying its answers
    assert row._repeats["critique"] > 1
    calls = []
    row._repeats["x"] = 7
    row._block("x", lambda: calls.append(1), 5)
    assert len(calls) == 7
    assert row.model is not row.base  # the repaired model infers


def test_invalid_rounds_do_not_count_while_any_is_valid() -> None:
    assert rates(timing("a", [1.0, 9.0, 3.0, 2.0], invalid=(1,)))["train"].median == 2.0
    assert rates(timing("a", [1.0, 3.0], invalid=(0, 1)))["train"].median == 2.0


def test_the_interval_of_a_median() -> None:
    five = summarise([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (five.median, five.low, five.high) == (3.0, 1.0, 5.0)
    assert five.coverage == pytest.approx(1 - 2 / 2**5)
    nine = summarise([float(k) for k in range(9)])
    assert (nine.low, nine.high) == (1.0, 7.0)  # P(1 <= Bin(9, 1/2) ...): 0.961
    assert nine.coverage == pytest.approx(1 - 2 * (1 + 9) / 2**9)
    with pytest.raises(ValueError, match="no valid"):
        summarise([])


def test_unequal_settings_share_no_column_unless_only_the_batch_may_differ() -> None:
    with pytest.raises(ConfigError, match=r"'a' and 'b'.*batch 16 and 32"):
        check_one_column([timing("a", [1.0]), timing("b", [1.0], batch=32)], "fixed")
    check_one_column([timing("a", [1.0]), timing("b", [1.0], batch=32)], "best configuration")
    with pytest.raises(ConfigError, match="recipes"):
        check_one_column([timing("a", [1.0]), timing("b", [1.0], recipes={"base": {"shift": 4}})], "best configuration")
    without, n8, n9 = timing("a", [1.0]), timing("b", [1.0], alignment={"n": 8}), timing("c", [1.0], alignment={"n": 9})
    check_one_column([without, n8, n8], "fixed")
    with pytest.raises(ConfigError, match=r"'c'.*alignment"):
        check_one_column([without, n8, n9], "fixed")
    with pytest.raises(ConfigError, match="repair_dtype"):
        check_one_column([timing("a", [1.0]), timing("b", [1.0], repair_dtype="bfloat16")], "fixed")
    with pytest.raises(ConfigError, match="dtype"):
        check_one_column([timing("a", [1.0]), timing("b", [1.0], dtype="bfloat16")], "best configuration")
    best = best_configuration(
        [
            record(timing("a", [1.0]), timing("b", [9.0])),
            record(timing("a", [2.0], batch=64), timing("b", [3.0], batch=64)),
        ]
    )
    assert {row.row: row.setting.batch for row in best.rows} == {"a": 64, "b": 16}
    assert best.column == "best configuration"


def test_what_makes_a_round_invalid() -> None:
    calm = Reading(1500.0, 60.0, 10.0)
    assert why_invalid([calm, calm], None) == ""
    assert "clock" in why_invalid([calm, Reading(1300.0, 60.0, 20.0)], None)
    assert "clock" in why_invalid([calm, Reading(1300.0, 60.0, 20.0), calm], None)  # a dip that is over at the end
    assert "temperature" in why_invalid([calm, Reading(1500.0, 75.0, 20.0)], None)
    assert "other programs" in why_invalid([Reading(), Reading()], 0.5)
    assert why_invalid([Reading(), Reading()], 0.99) == ""


def test_the_card_is_found_by_its_uuid_and_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    nvml = SimpleNamespace(nvmlDeviceGetHandleByUUID=lambda name: asked.append(name) or "card")  # type: ignore[func-returns-value]
    assert _handle(nvml, "1234") == "card"
    _handle(nvml, "GPU-1234")
    assert asked == ["GPU-1234", "GPU-1234"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "no NVML" in Sensors(torch.device("cuda:0")).missing
    assert Sensors(CPU).missing == ""


def test_rows_without_enough_valid_rounds_keep_a_record_from_being_published() -> None:
    assert too_few([timing("a", [1.0] * 5)]) == ""
    assert too_few([timing("a", [1.0] * 5), timing("b", [1.0] * 9, (0, 1, 2, 3, 4))]).endswith("rounds: b 4")
    weak = record(timing("a", [1.0])).model_copy(update={"short": "one round"})
    assert best_configuration([record(timing("a", [2.0])), weak]).short == "one round"


def test_records_of_two_machines_share_no_column() -> None:
    one = record(timing("a", [1.0]))
    one.provenance = {"hardware": {"cores": 2}, "packages": {"torch": "2.11"}, "git": {"commit": "a"}}
    other = one.model_copy(update={"provenance": {**one.provenance, "packages": {"torch": "2.12"}}})
    check_one_machine(one, one)
    with pytest.raises(ConfigError, match=r"packages\.torch 2\.11 and 2\.12"):
        check_one_machine(one, other)


def test_no_path_leads_to_a_person() -> None:
    held = {
        "model": "resnet18(weights=/home/alice/w.pth)",
        "suites": ["folder(csv='~/x/y.csv',root=\"/data/z\")"],
        "n": 3,
    }
    cut = {"model": "resnet18(weights=w.pth)", "suites": ["folder(csv='y.csv',root=\"z\")"], "n": 3}
    assert without_folders(held) == cut


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, said in (
        ('{"kind": "throughput"}', r"x\.json is no timing record"),
        ("[]", r"x\.json is no timing record"),
        ('{"kind": "throughput", "schema_version": 1}', "counted short batches as full ones"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_timing(path)


def test_stacked_training_equals_one_seed_at_a_time() -> None:
    recipe = TrainRecipe(optimizer="adamw", lr=1e-2, batch_size=8, steps=6)
    images, y = packing._data((1, 4, 4), 2, 32, CPU)
    found = packing.stacked_training(Spec("mlp", {"hidden": 8}), (1, 4, 4), 2, recipe, 3, images, y)
    for seed in range(3):
        model = build_model(Spec("mlp", {"hidden": 8}), (1, 4, 4), 2, seed)
        context = RunContext(CPU, Seeds.all(seed), recipe, recipe)
        draws = context.generator("batches")

        def batches(draws: torch.Generator = draws):  # type: ignore[no-untyped-def]
            while True:
                yield torch.randint(0, len(y), (8,), generator=draws)

        fit(model, images, y, recipe, context, batches=batches())
        for name, value in model.named_parameters():
            assert torch.allclose(found[name][seed], value, atol=1e-5), name


def test_packing_names_a_winner_and_says_where_stacking_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainRecipe(batch_size=8, steps=4, shift=1, flips=True, clip_norm=1.0)  # left out where seeds are compared
    words = (Spec("mlp", {"hidden": 8}), (1, 4, 4), 2, recipe, 2, 32, CPU)
    found = packing.measure_packing(*words, [1])
    rates = [found["sequential"], found["processes"]["1"], found["stacked"]]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    for name, fastest, workers, said in (
        ("sequential", "sequential", 1, "fastest: workers=1"),
        ("processes", "processes", 4, "fastest: workers=4"),
        ("stacked", "stacked", None, "fastest: stacking, which runs do not use"),
    ):
        monkeypatch.setattr(packing, "sequential", lambda *a, own=name: 9.0 if own == "sequential" else 2.0)
        monkeypatch.setattr(packing, "processes", lambda *a, own=name: 9.0 if (own, a[-1]) == ("processes", 4) else 3.0)
        monkeypatch.setattr(packing, "stacked", lambda *a, own=name: 9.0 if own == "stacked" else 1.0)
        found = packing.measure_packing(*words, [2, 4])
        assert (found["fastest"], found["fastest_workers"]) == (fastest, workers)
        assert packing.in_words(found).endswith(said)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="BatchNorm"):
        packing.stacked(Spec("small_resnet"), (3, 16, 16), 2, recipe, 2, 32, CPU)


def test_bounds_count_what_a_person_would_count() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4, bias=False))
    x, y = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    assert training_flops(model, x, y) == 2 * (2 * 8 * 16 * 4)  # forward, and the weight's gradient: no input gradient
    assert matrix_rate(CPU, torch.float32, 64) > 1e6
    images, labels = packing._data((1, 4, 4), 4, 32, CPU)
    found, first_s = bare_blocks(model, images, labels, TrainRecipe(batch_size=8, steps=4), 3, 2)
    assert len(found) == 2
    assert min(found) > 0
    assert first_s > 0


def test_bfloat16_trains_under_autocast_and_penalties_do_not() -> None:
    seen: list[torch.dtype] = []

    class Watching:
        full_precision = False

        def __call__(self, model, x, y, index):  # type: ignore[no-untyped-def]
            logits = model(x)
            seen.append(logits.dtype)
            return F.cross_entropy(logits.float(), y)

    recipe = TrainRecipe(batch_size=8, steps=1, precision="bfloat16")
    images, y = packing._data((1, 4, 4), 2, 8, CPU)
    context = RunContext(CPU, Seeds.all(0), recipe, recipe)
    for full in (False, True):
        loss = Watching()
        loss.full_precision = full
        fit(build_model(Spec("mlp"), (1, 4, 4), 2, 0), images, y, recipe, context, loss=loss)
    assert seen == [torch.bfloat16, torch.float32]
    weights = build_model(Spec("mlp"), (1, 4, 4), 2, 0)
    assert all(p.dtype == torch.float32 for p in weights.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_training_equals_eager_and_its_compilation_is_told_apart() -> None:
    eager = TrainRecipe(batch_size=8, steps=6, lr=0.01)
    images, y = packing._data((1, 4, 4), 2, 20, CPU)
    found = {}
    for recipe in (eager, eager.with_(compile=True)):
        context = RunContext(CPU, Seeds.all(0), recipe, recipe)
        model = fit(build_model(Spec("mlp", {"hidden": 8}), (1, 4, 4), 2, 0), images, y, recipe, context)
        found[recipe.compile] = [p.detach() for p in model.parameters()], context.compile_s
    for a, b in zip(found[False][0], found[True][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert found[False][1] == 0.0
    assert found[True][1] > 0.0


def test_a_penalty_is_never_compiled_and_sizes_of_batches_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled.append(dynamic) or model)  # type: ignore[func-returns-value]
    waits: list[int] = []

    @contextlib.contextmanager
    def compiling(self: RunContext) -> Iterator[None]:
        waits.append(1)
        yield

    monkeypatch.setattr(RunContext, "compiling", compiling)
    recipe = TrainRecipe(batch_size=8, steps=6, compile=True)
    images, y = packing._data((1, 4, 4), 2, 20, CPU)

    class Penalty:
        full_precision = True

        def __call__(self, model, x, y, index):  # type: ignore[no-untyped-def]
            return F.cross_entropy(model(x), y)

    fit(
        build_model(Spec("mlp"), (1, 4, 4), 2, 0),
        images,
        y,
        recipe,
        RunContext(CPU, Seeds.all(0), recipe, recipe),
        loss=Penalty(),
    )
    assert not compiled
    fit(build_model(Spec("mlp"), (1, 4, 4), 2, 0), images, y, recipe, RunContext(CPU, Seeds.all(0), recipe, recipe))
    assert compiled == [False]
    monkeypatch.undo()


def test_compilation_is_part_of_a_whole_training() -> None:
    row = timing("a", [100.0] * 5)
    assert with_compilation(row) is None
    row.compile_s, row.whole_images = 10.0, 2000.0
    assert with_compilation(row) == pytest.approx(2000 / 30)
    assert "10.0 s of compilation; 67 images/s with it" in "\n".join(lines(record(row)))


def test_bench_compare_reports_a_ratio_that_fell(tmp_path: Path) -> None:
    def file(name: str, ratio: float, seconds: float) -> Path:
        with_ratio = {"fullname": "a", "extra_info": {"ratio": ratio}, "stats": {"median": seconds}}
        benchmarks = [with_ratio, {"fullname": "b", "extra_info": {}, "stats": {"median": seconds}}]
        (tmp_path / name).write_text(json.dumps({"benchmarks": benchmarks}))
        return tmp_path / name

    before, after = file("1.json", 2.0, 1.0), file("2.json", 1.7, 9.0)
    a, b = compared(before, after, 0.1)
    assert a.fell
    assert not b.fell  # seconds of two machines prove nothing
    assert not compared(before, after, 0.2)[0].fell
    (tmp_path / "none.json").write_text('{"benchmarks": []}')
    assert [(row.fell, row.cells()[4]) for row in compared(before, tmp_path / "none.json", 0.2)] == [
        (True, "gone"),
        (False, "wall-clock: no verdict"),
    ]
    assert not any(row.fell for row in compared(tmp_path / "none.json", before, 0.2))
    (tmp_path / "3.json").write_text("[]")
    with pytest.raises(DataError, match="pytest-benchmark"):
        compared(before, tmp_path / "3.json", 0.1)
