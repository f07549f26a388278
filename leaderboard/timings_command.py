"""`vabench timings`: what `vabench throughput` measured, as tables of methods by devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def timings(
    folders: Annotated[list[Path], typer.Argument(help="Results folders, or folders of timing records.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write CSV and Markdown here.")] = None,
) -> None:
    """Print timing records side by side, devices as columns; records that were not timed alike share no column.

    `vabench timings results`, `vabench timings leaderboard/results/throughput h100 --output tables`.
    """
    from harness.progress import wide_console
    from harness.store import slug, write_bytes
    from leaderboard.throughput import read_timings, speeds

    console = wide_console()
    for table in speeds([record for folder in folders for record in read_timings(folder)]):
        text = table.wide.to_markdown(index=False, disable_numparse=True)
        for line in [table.title, text, *table.notes, ""]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if output is not None:
            stem = slug(table.title.partition(";")[0])
            notes = "\n".join(f"- {note}" for note in table.notes)
            write_bytes(output / f"{stem}.md", f"# {table.title}\n\n{text}\n\n{notes}\n".encode())
            write_bytes(output / f"{stem}.csv", table.frame.to_csv(index=False, lineterminator="\n").encode())
