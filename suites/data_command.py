"""`vabench data check | prepare | describe SUITE`: look through image files, decode them once, draw what they show.

Works with every suite; `check` and `prepare` need those that declare their files (`suites.image_suite`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.suite import Split, Suite, SuiteData
    from suites.image_cache import Progress
    from suites.image_suite import ImageSuite

SHOWN_FILES = 3  # file names printed per repair


class Action(StrEnum):
    """What to do with a suite's data."""

    check = "check"
    prepare = "prepare"
    describe = "describe"


def data(
    action: Annotated[Action, typer.Argument(help="check, prepare or describe.")],
    suite: Annotated[str, typer.Argument(help="A suite, e.g. 'isic_patches(rho=0.9)'.")],
    out: Annotated[Path | None, typer.Option(help="describe: folder for the contact sheets.")] = None,
    seed: Annotated[int, typer.Option(help="The data seed whose splits are counted and drawn.")] = 0,
    number: Annotated[int, typer.Option(help="describe: images per group.", min=1)] = 12,
    workers: Annotated[int, typer.Option(help="Processes (0: one per core).", min=0)] = 0,
) -> None:
    """Check a suite's files, prepare (decode and resize) them once, or draw contact sheets per group.

    `vabench data check isic_patches`, `vabench data prepare isic_patches`,
    `vabench data describe "isic_patches(rho=0.9)" --out sheets`. Prepared images lie in VABENCH_CACHE.
    """
    from harness.progress import wide_console
    from harness.registry import registry
    from harness.spec import parse_spec

    console, made = wide_console(), registry("suites").create(parse_spec(suite))
    count = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or os.cpu_count()
    if action is Action.describe:
        describe(made, out, seed, number, console)
        return
    files = _needs_files(made)
    if action is Action.prepare:
        prepare(files, console, int(count or 1))
    elif not check(files, seed, console, int(count or 1)):
        raise typer.Exit(1)


def _needs_files(suite: Suite) -> ImageSuite:
    from harness.errors import ConfigError
    from suites.image_suite import ImageSuite

    if not isinstance(suite, ImageSuite):
        raise ConfigError(f"the suite '{suite.info.name}' declares no image files; only `data describe` works with it")
    return suite


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: tuple[Any, ...] = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# -- check ------------------------------------------------------------------------------------------------------------


def check(suite: ImageSuite, seed: int, console: Console, workers: int) -> bool:
    """Print manifest, faults, repairs and group counts; True if nothing is wrong. Every file is decoded."""
    from harness.errors import DataError
    from suites import decode
    from suites.image_cache import survey
    from suites.tables import Faults

    suite.require_root()
    _print_manifest(suite, console)
    faults, unread = Faults(), Faults()
    try:
        suite.inspect(faults)
        requests = suite.survey_requests(unread)
    except DataError as error:
        faults.add(str(error))
        requests = {}
    for note in faults.notes:
        _say(console, note)
    for kind, request in requests.items():
        with _bar(console, kind) as progress:
            found = survey(request, progress, workers)
        for error in found.errors:
            faults.add(error)
        _say(console, f"{kind}: {len(request.items)} files decoded, {len(found.errors)} cannot be used")
        for name, held in found.repaired.items():
            some = ", ".join(held[:SHOWN_FILES]) + (", ..." if len(held) > SHOWN_FILES else "")
            _say(console, f"  repaired {len(held)}: {decode.REPAIRS[name]} ({some})")
    if not faults.found:
        try:
            loaded = suite.load(seed)
            for note in suite.repairs():
                _say(console, note)
            _print_counts(loaded, seed, console)
        except DataError as error:
            faults.add(str(error))
    for number, fault in enumerate(faults.found, 1):
        _say(console, f"fault {number}: {fault}")
    _say(console, f"{suite.name}: " + (f"{len(faults.found)} faults" if faults.found else "no faults"))
    return not faults.found


def _print_manifest(suite: ImageSuite, console: Console) -> None:
    from suites.image_suite import part_digest

    manifest = suite.manifest()
    _say(console, f"{suite.name}: {manifest.title} at {suite.root}")
    _say(console, f"  cite: {' '.join(manifest.citation.split())}")
    _say(console, f"  from: {', '.join(manifest.mirrors)}")
    for part in manifest.parts:
        number, digest = part_digest(suite.root, part.files)
        same = (
            "as published" if digest == part.sha256 else "differs from the manifest" if part.sha256 else "not compared"
        )
        expected = f" of {part.count}" if part.count is not None and part.count != number else ""
        _say(console, f"  {part.files}: {number}{expected} files, {part.licence}, sha256 {digest[:16]} ({same})")


def _print_counts(loaded: SuiteData, seed: int, console: Console) -> None:
    from tabulate import tabulate

    counts = loaded.group_counts()
    rows = [[group, *(counts[split][group] for split in counts)] for group in loaded.group_names]
    _say(console, f"images per group (data seed {seed})\n" + tabulate(rows, ["group", *counts], tablefmt="plain"))


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# -- prepare ----------------------------------------------------------------------------------------------------------


def prepare(suite: ImageSuite, console: Console, workers: int) -> None:
    """Make every array that the suite needs. Ctrl-C keeps what is done; the same command goes on from there."""
    from suites import image_cache

    suite.require_root()
    for kind, request in suite.requests().items():
        held = image_cache.cached(request)
        if held is None:
            with _bar(console, kind) as progress:
                held = image_cache.prepare(request, progress, workers)
            state = f"prepared in {held.seconds:.1f} s"
        else:
            state = "already prepared"
        repaired = ", ".join(f"{name} {number}" for name, number in held.repairs.items()) or "none"
        _say(
            console,
            f"{kind}: {len(request.items)} files, {held.pixels.nbytes / 2**20:.0f} MiB, {state}, "
            f"repairs: {repaired}; {held.folder}",
        )


# -- describe ---------------------------------------------------------------------------------------------------------


def describe(suite: Suite, out: Path | None, seed: int, number: int, console: Console) -> None:
    """Write one PNG per split or rendering and group: masks of the spurious object in red, of the core in green.

    Raises:
        ConfigError: no folder is named, or it lies in a git working copy (third-party pixels stay out of git).
    """
    from harness.errors import ConfigError

    if out is None:
        raise ConfigError("name a folder for the contact sheets: --out FOLDER")
    if any((parent / ".git").exists() for parent in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(f"{out} lies in a git working copy, and images of other people must not; name another folder")
    loaded = suite.load(seed)
    out.mkdir(parents=True, exist_ok=True)
    _print_counts(loaded, seed, console)
    splits: dict[str, Split | None] = {"train": loaded.train, "val": loaded.val, "val_groups": loaded.val_groups}
    splits |= {"decorrelated": loaded.decorrelated, **{f"test-{name}": split for name, split in loaded.test.items()}}
    for split_name, split in splits.items():
        for g, group in enumerate(loaded.group_names):
            rows = [] if split is None else [int(k) for k in (split.g == g).nonzero()[0][:number]]
            if split is None or not rows:
                continue
            path = out / (re.sub(r"[^A-Za-z0-9]+", "_", f"{suite.name}-{split_name}-{group}") + ".png")
            contact_sheet(split, rows).save(path)
            _say(console, f"{path}: {len(rows)} of {int((split.g == g).sum())}")


def contact_sheet(split: Split, rows: list[int], side: int = 160, columns: int = 6) -> Any:
    """The images `rows` of a split side by side (PIL image): outlines of `masks` in red, of `core` in green."""
    import numpy as np
    from PIL import Image

    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), lines * (side + 4)), "white")
    for place, row in enumerate(rows):
        pixels = split.images[row].transpose(1, 2, 0)
        image = Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
        drawn = np.array(image.resize((side, side), Image.Resampling.NEAREST))
        for mask, colour in ((split.core, (0, 200, 0)), (split.masks, (255, 0, 0))):
            if mask is not None and mask[row].any():
                big = np.asarray(Image.fromarray(mask[row].astype(np.uint8) * 255).resize((side, side))) >= 128
                inner = big.copy()
                inner[1:-1, 1:-1] &= big[2:, 1:-1] & big[:-2, 1:-1] & big[1:-1, 2:] & big[1:-1, :-2]
                inner[0], inner[-1], inner[:, 0], inner[:, -1] = False, False, False, False
                drawn[big & ~inner] = colour
        sheet.paste(Image.fromarray(drawn), ((place % columns) * (side + 4) + 2, (place // columns) * (side + 4) + 2))
    return sheet
