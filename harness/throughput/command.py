"""`vabench throughput` and `vabench bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.throughput.protocol import Effort
    from harness.throughput.record import TimingRecord

DEFAULT = "timing_resnet18"
GPU_PROCESSES = 8  # as many as packing tries on one GPU


def throughput(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET...] [KEY=VALUE]...", help=f"Presets to time (default {DEFAULT}), overrides."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Valid rounds of every row; a published figure needs 5.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a block; a published figure needs 20.")] = 20,
    blocks: Annotated[int, typer.Option(min=1, help="Timed blocks of a training in a round.")] = 3,
    images: Annotated[int, typer.Option(min=1, help="Images given to explain and segment.")] = 64,
    batches: Annotated[
        str, typer.Option(help="Batch sizes, by comma: also writes the column 'best configuration'.")
    ] = "",
    pack: Annotated[int, typer.Option(min=0, help="Also measure so many seeds of ERM packed on the device.")] = 0,
    budget_seconds: Annotated[
        float, typer.Option(min=0, help="Stop a preset's rounds after so long (0: no limit).")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the records (default: RESULTS/throughput).")] = None,
) -> None:
    """Time rows of a preset by phase: interleaved rounds, a process for every row, medians with intervals.

    `vabench throughput timing_resnet18 timing_resnet50 device=cuda --pack 10`, `vabench throughput quickstart`.
    """
    from harness.config import load_config
    from harness.errors import ConfigError
    from harness.progress import wide_console
    from harness.throughput.protocol import Effort, best_configuration, measure
    from harness.throughput.record import read_timing

    presets = [word for word in words or [] if "=" not in word.split("(")[0]] or [DEFAULT]
    overrides = [word for word in words or [] if word not in presets]
    sizes = [part.strip() for part in batches.split(",") if part.strip()]
    if any(not size.isdigit() or int(size) < 1 for size in sizes):
        raise ConfigError(f"--batches {batches}: write whole numbers by comma, such as 64,128")
    effort, console = Effort(rounds, steps, blocks, images, budget_seconds), wide_console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for preset in presets:
        config = load_config(preset, overrides)
        folder = out or Path(config.results) / "throughput"
        record = measure(config, effort, say)
        record.extra |= _extra(config, record, pack, effort, say)
        paths = [_write(record, folder)]
        if sizes:
            fixed = [record]
            for size in sizes:
                changed = [f"recipes.base.batch_size={size}", f"recipes.finetune.batch_size={size}"]
                fixed.append(measure(load_config(preset, [*overrides, *changed]), effort, say))
            paths.append(_write(best_configuration(fixed), folder))
        for path in paths:
            for line in lines(read_timing(path)):
                say(line)
            say(str(path))


def _extra(config: RunConfig, record: TimingRecord, pack: int, effort: Effort, say: Any) -> dict[str, Any]:
    """Matrix rate, the bare loop's share of it, profile and packing, on the device, at the config's sizes."""
    from statistics import median

    import torch

    from harness.errors import first_line
    from harness.models import build_model, place
    from harness.plan import plan
    from harness.registry import registry
    from harness.throughput.bounds import bare_blocks, matrix_rate, profile, training_flops
    from harness.throughput.packing import measure_packing
    from harness.throughput.record import rates
    from harness.training import TrainRecipe, to_float
    from harness.worker import pick_device, quiet_threads, tune, worker_cores

    quiet_threads()
    device = tune(pick_device(config.device))
    data = registry("suites").create(plan(config)[0].suite).load(0)
    images, y = torch.from_numpy(data.train.images).to(device), torch.from_numpy(data.train.y).to(device)
    shape, classes = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3])), len(data.class_names)
    recipe = TrainRecipe(**config.recipes.base.model_dump()).with_(steps=4 * effort.steps)

    def fresh() -> Any:
        return place(build_model(config.model, shape, classes, 0), device)

    dtype = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
    rate = matrix_rate(device, dtype)
    few = to_float(images[: recipe.batch_size])
    flops = training_flops(fresh(), few, y[: len(few)]) / len(few)
    found: dict[str, Any] = {
        "matrix_flops_per_s": rate,
        "matrix_dtype": recipe.precision,
        "training_flops_per_image": flops,
    }
    if record.reference is not None:
        found["bare_loop_share_of_matrix_rate"] = rates(record.reference)["train"].median * flops / rate
    if device.type == "cuda":
        try:
            blocks, found["compile_s"] = bare_blocks(fresh(), images, y, recipe, effort.steps, 3, compiled=True)
            found["compiled_loop_images_per_s"] = median(blocks)
        except Exception as error:  # a compiler can fail in many ways; the figure is then missing, and why is said
            found["why_not_compiled"] = first_line(error)[:200]
    found["profile"] = profile(lambda: bare_blocks(fresh(), images, y, recipe, 5, 3), device)
    if pack:
        say(f"packing {pack} seeds")
        most = worker_cores() if device.type == "cpu" else GPU_PROCESSES
        workers = sorted({min(count, most, pack) for count in (2, 4, 8, most)} - {1})
        found["packing"] = measure_packing(config.model, shape, classes, recipe, pack, len(y), device, workers)
    return found


def _write(record: TimingRecord, folder: Path) -> Path:
    """Write a record under a name that tells preset, device and column."""
    from harness.store import slug, write_bytes

    gpu = record.provenance.get("hardware", {}).get("gpu") or {}
    device = gpu.get("name", "gpu") if record.rows[0].setting.device == "cuda" else "cpu"
    best = ["best"] if record.column != "fixed" else []
    path = folder / (slug("-".join([record.preset, device, *best])) + ".json")
    write_bytes(path, (record.model_dump_json(indent=1) + "\n").encode())
    return path


def lines(record: TimingRecord) -> list[str]:
    """A record as text: one line a row, images per second by phase with the interval."""
    from tabulate import tabulate

    from harness.throughput.packing import in_words
    from harness.throughput.record import rates, with_compilation

    first = record.rows[0].setting
    table: list[dict[str, str]] = []
    for timing in (*record.rows, *([record.reference] if record.reference else [])):
        line = {"row": timing.row, "batch": str(timing.setting.batch)}
        for phase, rate in rates(timing).items():
            line[phase] = f"{rate.median:.0f} [{rate.low:.0f}, {rate.high:.0f}]"
        line["valid"] = f"{timing.valid}/{len(timing.rounds)}"
        line["MiB"] = f"{max(map(timing.peak_memory, rates(timing))) / 2**20:.0f}"
        table.append(line)
    order = ("row", "batch", "train", "align", "explain", "segment", "critique", "infer", "valid", "MiB")
    columns = [c for c in order if any(c in line for line in table)]
    size = "x".join(map(str, first.image_shape))
    head = (
        f"{record.preset} · {first.suite} ({record.source}) · {first.model} · {size} · {first.dtype} · {first.device}"
    )
    found = [f"{head} · {record.column}; images per second, median [interval over rounds]"]
    found += tabulate([[line.get(c, "-") for c in columns] for line in table], columns, tablefmt="plain").splitlines()
    for timing in record.rows:
        slowed = with_compilation(timing)
        if slowed is not None:
            found.append(f"{timing.row}: {timing.compile_s:.1f} s of compilation; {slowed:.0f} images/s with it")
    if "packing" in record.extra:
        found.append(in_words(record.extra["packing"]))
    if record.short:
        found.append(f"not for publication: {record.short}")
    return found + [f"{row}: not timed: {why}" for row, why in record.failed.items()]


def bench(
    action: Annotated[str, typer.Argument(help="compare")],
    before: Annotated[Path, typer.Argument(help="A pytest-benchmark file (--benchmark-json).")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    tolerance: Annotated[float, typer.Option(min=0, help="Share by which a ratio may fall.")] = 0.1,
) -> None:
    """Compare two files of pytest-benchmark (`--benchmark-json`); exit 1 if a ratio to a bare reference fell.

    `vabench bench compare before.json after.json`
    """
    from tabulate import tabulate

    from harness.errors import ConfigError
    from harness.throughput.bench_files import compared

    if action != "compare":
        raise ConfigError(f"there is no action '{action}'; write: vabench bench compare BEFORE AFTER")
    rows = compared(before, after, tolerance)
    print(tabulate([row.cells() for row in rows], ("benchmark", "before", "after", "change", ""), tablefmt="plain"))
    if any(row.fell for row in rows):
        raise typer.Exit(1)
