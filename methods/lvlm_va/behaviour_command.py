"""`vabench behaviour`: says in plain language what a model relies on before and after its repair."""

from __future__ import annotations

from typing import Annotated

import typer


def behaviour(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`; one report for each suite."),
    ] = None,
    row: Annotated[str, typer.Option(help="The row: method@mask_source, also one that the preset does not hold.")] = (
        "lvlm_va@oracle"
    ),
    seed: Annotated[int, typer.Option(help="The seed.")] = 0,
    out: Annotated[str | None, typer.Option(help="Folder of the files (default: RESULTS/behaviour).")] = None,
    judge_after: Annotated[
        bool, typer.Option("--judge-after/--no-judge-after", help="Ask the source about the repaired model too.")
    ] = True,
) -> None:
    """Describe the base model and the row's pre-registered model, fitted again as its cell does; seconds, no tuning.

    Every sentence holds a count, an interval and the images behind it (HTML, JSON). docs/fidelity.md says how to read
    them. `vabench behaviour "suites=[decoy_digits(rho=1.0)]" --row lvlm_va@oracle`.
    """
    import json
    from pathlib import Path

    from harness.commands import read_words
    from harness.config import load_config
    from harness.plan import plan
    from harness.progress import wide_console
    from harness.stages import Stages
    from harness.store import Store, slug, write_bytes
    from harness.worker import pick_device, quiet_threads
    from methods.lvlm_va.behaviour import describe, headline, to_dict, to_html, to_markdown

    preset, overrides = read_words(words)
    config = load_config(preset, [*overrides, f"methods=[{row}]", f"seeds=[{seed}]"])
    quiet_threads()
    stages, console = Stages(Store(config.results), pick_device(config.device)), wide_console()
    folder = Path(out) if out else Path(config.results) / "behaviour"
    for cell in plan(config):
        found = describe(cell, stages, judge_after=judge_after)
        console.print(f"{found.row} on {found.suite} ({found.suite_source}), seed {found.seed}", style="bold")
        for line in (*headline(found), *found.notes):
            console.print(f"- {line}", highlight=False, markup=False)
        stem = f"{slug(found.suite)}-{slug(found.row)}-seed{found.seed}-{cell.id[:8]}"
        texts = {
            "html": to_html(found),
            "md": to_markdown(found),
            "json": json.dumps(to_dict(found), indent=1) + "\n",
        }
        for ending, text in texts.items():
            path = folder / f"{stem}.{ending}"
            write_bytes(path, text.encode())
            console.print(str(path), highlight=False, markup=False, soft_wrap=True)
