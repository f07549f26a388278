"""`vabench fidelity`: how often a critic is right, how stable it is, and whether it looks at the image at all."""

from __future__ import annotations

from typing import Annotated

import typer


def fidelity(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`: whose suites and seeds are used."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="A mask source that judges segments; give the option once for each.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A second critic with which every source is compared.")] = None,
    people: Annotated[
        list[str] | None, typer.Option(help="A file that the review page saved; once for each person.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many seeds, or a list such as [0,3]; as seeds=...")] = None,
    probes: Annotated[
        bool, typer.Option("--probes/--no-probes", help="Ask every question again under each of the eight probes.")
    ] = True,
) -> None:
    """Measure verdicts on the alignment sets of a preset; docs/fidelity.md says what each number means.

    `vabench fidelity --source embedded --source "noisy_oracle(fpr=0.1,fnr=0)"`. With probes, a source that calls a
    model makes nine times as many calls as in a run.
    """
    import json
    import sys
    from pathlib import Path

    from rich.table import Table

    from harness.commands import read_words
    from harness.config import load_config
    from harness.plan import digest
    from harness.progress import wide_console
    from harness.store import slug, write_bytes
    from harness.worker import quiet_threads
    from methods.lvlm_va import fidelity as report

    preset, overrides = read_words(words)
    overrides += [f"seeds={seeds}"] if seeds else []
    config = load_config(preset, overrides)
    quiet_threads()
    found = report.report(
        preset,
        overrides,
        source or [],
        against=against,
        people=people or (),
        probes=probes,
        tell=lambda text: print(text, file=sys.stderr),
    )
    console = wide_console()
    for suite in found:
        heads, rows = report.table(suite)
        shown = Table(title=f"{suite.sheet.suite} ({suite.sheet.suite_source})", title_justify="left")
        for k, head in enumerate(heads):
            shown.add_column(head, justify="left" if k == 0 else "right", overflow="fold")
        for row in rows:
            shown.add_row(*row)
        console.print(shown, markup=False, highlight=False)
        for note in suite.notes:
            console.print(note, markup=False, highlight=False, style="dim")
        console.print()
    changed = [word for word in overrides if not word.startswith("results=")]
    asked = [*(source or []), against or "", *(people or ()), str(probes), *changed]
    stem = Path(config.results) / "fidelity" / f"{slug(config.name)}-{digest(asked)[:8]}"
    texts = {
        "csv": report.to_csv(found),
        "md": report.to_markdown(found),
        "json": json.dumps(report.to_dict(found), indent=1) + "\n",
    }
    for ending, text in texts.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        write_bytes(path, text.encode())
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
