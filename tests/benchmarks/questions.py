"""The questions that a critic asks about the quick start's alignment set, for timing any back end with them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.lvlm.client import Query
from methods.lvlm_va.alignment_sets import judged_cell
from methods.lvlm_va.critic import Critic


def questions(row: str, overrides: Sequence[str]) -> list[Query]:
    """The first question about every image; `row` is `method@source` with a critic as the source."""
    judged = judged_cell("quickstart", overrides, row=row, seed=0)
    source, task = judged.source, judged.task()
    assert isinstance(source, Critic)
    alignment, sentences = judged.alignment(task), source.specifications(task)
    names = [task.class_names[y] for y in alignment.split.y[alignment.index].tolist()]
    return [
        source.query(pictures, names[pictures.position], sentences[names[pictures.position]])
        for chunk in source._questions(alignment, judged.context)
        for pictures in chunk
    ]
