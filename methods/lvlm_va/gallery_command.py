"""`vabench gallery`: pictures of the same failures before and after each row, for the page."""

from __future__ import annotations

from typing import Annotated

import typer


def gallery(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed whose models are shown.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=50, help="Images of each strip.")] = 6,
) -> None:
    """Draw each row's gallery into RESULTS/gallery/; `vabench report --format html --gallery` puts them on the page.

    Pre-registered models are fitted again and compared with the stored cells. The files hold images of the suite: mind
    its licence before you show them. `vabench gallery quickstart "methods=[rrr@oracle,lvlm_va@embedded]" --count 4`.
    """
    import json
    from pathlib import Path

    from harness.commands import read_words
    from harness.config import load_config
    from harness.errors import DataError, NotApplicable, Skipped
    from harness.plan import inspect, plan
    from harness.stages import Stages
    from harness.store import Store, write_bytes
    from harness.worker import pick_device, quiet_threads
    from methods.lvlm_va.gallery import gallery as draw

    preset, overrides = read_words(words)
    config = load_config(preset, [*overrides, f"seeds=[{seed}]"])
    if not Path(config.results).is_dir():
        raise DataError(
            f"there is no results folder {config.results}; run the cells first, or name another: results=..."
        )
    quiet_threads()
    stages = Stages(Store(config.results), pick_device(config.device))
    for cell in plan(config):
        path = Path(config.results) / "gallery" / f"{cell.id}.json"
        state = inspect(cell, stages.store)
        if state.state != "done":
            print(f"- {cell.suite_name} · {cell.row_name}: {state.state}, not drawn; `vabench run` runs it")
            continue
        try:
            found = draw(cell, stages, config.alignment.model_dump(), count)
        except (Skipped, NotApplicable) as why:
            print(f"- {cell.suite_name} · {cell.row_name}: {why}")
            continue
        write_bytes(path, (json.dumps(found) + "\n").encode())
        after, shown = sum(item["after"]["right"] for item in found["failures"]), len(found["failures"])
        print(f"{cell.suite_name} · {cell.row_name}: repairs {after} of {shown} failures of the base model: {path}")
