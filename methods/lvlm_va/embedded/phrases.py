"""Sentences on the digit and on the object beside it: the suites' own and paraphrases, some kept from training."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from harness.descriptions import Descriptions, read_descriptions
from suites.decoy import CLASSES, DecoyDigits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("square", "disc", "cross")
OWN = 0.5  # how often a sentence is the suite's own

DIGIT = (
    "the handwritten digit.",
    "the digit {digit}.",
    "the strokes of the handwritten {word}.",
    "the shape of the {word} in the middle of the image.",
    "a {word} written by hand.",
    "the handwritten number in the middle.",
    "the written figure.",
    "pen strokes that form a {word}.",
    "what is written in the centre.",
    "the ink of the digit.",
    "the handwritten digit is what matters.",
    "the lines of the number {digit}.",
)
OBJECT = (
    "a grey {shape} in the corner.",
    "the small {shape} in a corner.",
    "the grey patch in one corner.",
    "a small grey {shape} at the corner of the image.",
    "the bright or dark {shape} in the corner.",
    "a patch of grey {grey} in a corner.",
    "the marker in one corner of the picture.",
    "a little {shape} pasted into a corner.",
    "the {shape} of grey {grey}.",
    "whatever lies in the corner of the image.",
    "the grey {shape} in the corner is what matters.",
    "an added patch at one corner.",
)
UNSEEN_DIGIT = (
    "the number drawn by hand.",
    "the lines of the written {word}.",
    "the figure in the centre of the picture.",
)
UNSEEN_OBJECT = (
    "the small grey patch pasted into a corner.",
    "a marker of grey {grey} at the corner.",
    "the {shape} added in one corner of the picture.",
)


@cache
def _sentences() -> Descriptions:
    """The class descriptions of decoy_digits, which are those of decoy_mnist."""
    path = Path(str(files("suites") / "descriptions" / DecoyDigits.sentences))
    return read_descriptions(path, [str(k) for k in range(CLASSES)])


def own_digit(y: int) -> str:
    """The suites' sentence on the core of class `y`."""
    return _sentences()["core"][str(y)]


def own_object(shape: int, grey: int) -> str:
    """The suites' sentence on the object, with its shape in the place of the square."""
    named = _sentences()["spurious"][str((255 - grey) // 25)]
    return named.replace("square", SHAPES[shape])


def digit(y: int, rng: np.random.Generator, unseen: bool = False) -> str:
    """A sentence on the digit of class `y`; `unseen`: one that training never uses."""
    if not unseen and rng.random() < OWN:
        return own_digit(y)
    return _draw(UNSEEN_DIGIT if unseen else DIGIT, rng).format(digit=y, word=WORDS[y])


def thing(shape: int, grey: int, rng: np.random.Generator, unseen: bool = False) -> str:
    """A sentence on the object of that shape (index into SHAPES) and grey; `unseen` as in `digit`."""
    if not unseen and rng.random() < OWN:
        return own_object(shape, grey)
    return _draw(UNSEEN_OBJECT if unseen else OBJECT, rng).format(shape=SHAPES[shape], grey=grey)


def _draw(pool: tuple[str, ...], rng: np.random.Generator) -> str:
    return pool[int(rng.integers(len(pool)))]
