"""`vabench review`: writes the page on which a person reviews a critic's verdicts."""

from __future__ import annotations

from typing import Annotated

import typer


def review(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET] [KEY=VALUE]...", help="As in `vabench run`: whose images and segments."),
    ] = None,
    row: Annotated[
        str | None, typer.Option(help="method@source whose verdicts are shown; default: the preset's first one.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="One of the preset's suites; default: the first.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed; default: the preset's first.")] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="The HTML file.")] = "review.html",
    limit: Annotated[int | None, typer.Option(min=1, help="Show at most so many images of a split.")] = None,
    val: Annotated[
        bool | None,
        typer.Option("--val/--no-val", help="Show the validation split too; default: if the preset has a tuned track."),
    ] = None,
) -> None:
    """Write the review page of one row at one seed; base model, maps and segments are those of `vabench run`.

    Open the file, agree or overrule, save, and run the row `method@person(file=SAVED)`: docs/review.md.
    `vabench review --row lvlm_va@oracle --seed 0 --out review.html`.
    """
    from harness.commands import read_words
    from methods.lvlm_va.alignment_sets import judged_cell
    from methods.lvlm_va.review import write_review

    preset, overrides = read_words(words)
    judged = judged_cell(preset, overrides, row=row, suite=suite, seed=seed)
    both = "tuned" in judged.config.tracks if val is None else val
    page = write_review(out, judged, ("train", "val") if both else ("train",), limit, [preset, *overrides])
    cell = judged.cell
    print(f"{cell.suite_name}, {cell.row}, seed {cell.seed}: {page.shown} of {page.images} images to review")
    if not both and "tuned" in judged.config.tracks:
        print("without the validation split: the tuned track cannot use this review")
    print(out)
