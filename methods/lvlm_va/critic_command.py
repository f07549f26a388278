"""`vabench critic`: train the embedded critic anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MINUTES = 20.0  # of the full training, data and evaluation included, on one core of an ordinary machine


def critic(
    action: Annotated[str, typer.Argument(help="train")],
    out: Annotated[Path, typer.Option("--out", help="Folder for weights and card.")] = Path("critic"),
    minutes: Annotated[
        float,
        typer.Option("--minutes", help="Roughly how long; the number of steps follows from it alone."),
    ] = MINUTES,
    seed: Annotated[int, typer.Option("--seed", help="Of data, initialisation and batches.")] = 0,
    score: Annotated[bool, typer.Option("--score/--no-score", help="Evaluate it for its card.")] = True,
) -> None:
    """Train the embedded critic: a vision-language model of a million parameters for the decoy suites' segments.

    With the defaults it is the training of the shipped weights. A row uses a critic of your own by
    `critic(client=local(path=FOLDER),style=short,size=32)`. Without MNIST it is trained on the scanned digits alone.
    """
    from rich.console import Console

    from harness.errors import ConfigError

    if action != "train":
        raise ConfigError(f"`vabench critic` has one action, train; there is no '{action}'")
    if not 0 < minutes <= 4 * MINUTES:
        raise ConfigError(f"--minutes must lie in (0, {4 * MINUTES:g}], got {minutes:g}")
    from methods.lvlm_va.embedded.build import build

    console = Console()

    def log(line: dict[str, float | int | str]) -> None:
        if int(line["step"]) % 200 == 0:
            facts = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("stage", "step"))
            console.print(f"{line['stage']} {line['step']}: {facts}", highlight=False)

    card = build(out, seed, minutes / MINUTES, score, log)
    console.print(f"{card['parameters']:,} parameters in {out}/; scores and limits: {out}/card.md", highlight=False)
