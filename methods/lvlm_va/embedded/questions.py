"""From segmented pictures to questions with their true answers, in one direction of the specification or the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.suite import Int64
from methods.lvlm_va.embedded import phrases
from methods.lvlm_va.embedded.items import ABSENT, CORE, SEGMENTS, THING, Items
from methods.lvlm_va.embedded.question import answer, build
from methods.lvlm_va.overlay import PALETTE

BOTH, CORE_ONLY, SPURIOUS_ONLY = 0, 1, 2  # which sentences a question has
SHARE = (0.5, 0.25, 0.25)  # how often in training


@dataclass(frozen=True)
class Asked:
    """One question: prompt, schema, the segments asked about (in the order of the answer) and which are spurious.

    kinds: what each of them lies on (`items`). swapped: the object matters and the digit must not.
    """

    prompt: str
    schema: dict[str, object]
    segments: Int64
    colours: tuple[str, ...]
    spurious: tuple[bool, ...]
    kinds: tuple[int, ...]
    swapped: bool

    @property
    def answer(self) -> str:
        """The true answer."""
        return answer(self.colours, self.spurious)


def colour_order(count: int, rng: np.random.Generator) -> Int64:
    """A random colour for every segment, int64 [N, 6], no colour twice in a picture."""
    return rng.random((count, len(PALETTE))).argsort(1)[:, :SEGMENTS]


def ask(
    items: Items,
    k: int,
    order: Int64,
    rng: np.random.Generator,
    *,
    swapped: bool,
    form: int | None = None,
    wording: str = "mixed",
) -> Asked:
    """The question on picture `k`.

    Args:
        order: int64 [6], palette index of every segment. swapped: the object matters and the digit must not.
        form: BOTH, CORE_ONLY, SPURIOUS_ONLY; None draws it. wording: `own` (the suites' sentences), `mixed` (as in
            training: theirs and paraphrases) or `unseen` (paraphrases that training never uses).
    """
    y, grey, shape = int(items.y[k]), int(items.grey[k]), int(items.shape[k])
    if wording == "own":
        digit, thing = phrases.own_digit(y), phrases.own_object(shape, grey)
    else:
        unseen = wording == "unseen"
        digit, thing = phrases.digit(y, rng, unseen), phrases.thing(shape, grey, rng, unseen)
    core, spurious = (thing, digit) if swapped else (digit, thing)
    form = int(rng.choice(3, p=SHARE)) if form is None else form
    segments = np.flatnonzero(items.kind[k] != ABSENT)
    segments = segments[rng.permutation(len(segments))]
    colours = tuple(PALETTE[c].name for c in order[segments])
    prompt, schema = build(
        str(y), None if form == SPURIOUS_ONLY else core, None if form == CORE_ONLY else spurious, colours
    )
    kinds = tuple(int(kind) for kind in items.kind[k, segments])
    truth = tuple(kind == (CORE if swapped else THING) for kind in kinds)
    return Asked(prompt, schema, segments, colours, truth, kinds, swapped)
