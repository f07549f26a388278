"""The page on which a person reviews a critic's verdicts: one HTML file that loads nothing from anywhere.

The page embeds its answers' file with nobody's answers in it, changes that, and saves it: `methods.lvlm_va.person`
reads the page's data and the saved file alike.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import ConfigError
from harness.masks import NO_VERDICT
from harness.registry import registry
from harness.store import slug, write_bytes
from methods.lvlm_va.critic import Critic, Critique, assign_colours
from methods.lvlm_va.overlay import PALETTE, colour_names, data_uri, render
from methods.lvlm_va.person import FORMAT, alignment_identity
from methods.lvlm_va.prompts import Specification

if TYPE_CHECKING:
    from torch import Tensor

    from harness.masks import AlignmentSet
    from methods.lvlm_va.alignment_sets import JudgedCell, SplitName

LARGEST = 256  # side of a picture in pixels at most; smaller images keep their own size, the browser enlarges them
MARKED = 224  # side where colours repeat, so that numbers have to be drawn
KEYS = "123456789bcdefghilmnopqrstuvwxyz"  # of the segments of one image; a, j and k are taken
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # change the direction of what follows


@dataclass(frozen=True)
class Chip:
    """One segment on the page. share: of the image's positive attribution, 0..1. verdict: 1, 0, or -1 for none."""

    segment: int
    name: str
    rgb: str
    share: float
    verdict: int
    key: str


@dataclass(frozen=True)
class Card:
    """One image on the page.

    part: number of its set. pictures: data URIs of the image, the segments and the overlay. told: what the source was
    told of the class, kind -> sentence.
    """

    part: int
    position: int
    source: int
    class_name: str
    told: dict[str, str]
    pictures: tuple[str, str, str]
    chips: tuple[Chip, ...]
    text: str
    failure: str


@dataclass(frozen=True)
class Page:
    """What was written: its file's content before any answer, and how many images are shown of how many."""

    content: dict[str, Any]
    shown: int
    images: int


def write_review(
    path: str | Path,
    judged: JudgedCell,
    splits: Sequence[SplitName],
    limit: int | None = None,
    words: Sequence[str] | None = None,
) -> Page:
    """Ask the row's source about the splits and write the page.

    Args:
        path: the HTML file; folders are made. splits: `train`, or `train` and `val`.
        limit: show this many images of each split, evenly spaced; the file holds the source's verdicts on the others.
        words: preset and overrides that `judged` was built from, for the command that the page shows.

    Raises:
        ConfigError: the source judges no segments of the alignment set. DataError: the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    parts, cards = [], []
    for part, split in enumerate(splits):
        entry, found = _part(part, judged, split, limit)
        parts.append(entry)
        cards += found
    content = {"format": FORMAT, "sets": parts}
    text = json.dumps(content, sort_keys=True)
    pages = Environment(loader=PackageLoader("methods.lvlm_va", "."), autoescape=True, trim_blocks=True)
    cell = judged.cell
    info = registry("mask_sources").info(cell.row.masks.name) if cell.row.masks else None
    file = f"review-{slug(cell.suite_name)}-seed{cell.seed}.json"
    page = pages.get_template("review_page.html.j2").render(
        content=content,
        cards=cards,
        cell=cell,
        row=str(cell.row),
        command=_command(judged, file, words),
        simulated=bool(info and info.simulated),
        splits=[entry["split"] for entry in parts],
        file=file,
        nonce=hashlib.sha256(text.encode()).hexdigest()[:32],
    )
    write_bytes(Path(path), page.encode())
    return Page(content, len(cards), sum(len(entry["images"]) for entry in parts))


def _command(judged: JudgedCell, file: str, words: Sequence[str] | None) -> str:
    """The shell command that runs the row with the saved file: the same words, so that it meets the same segments."""
    config = judged.config
    chosen = {
        "suites": str(config.suites[0]),
        "methods": f"{config.methods[0].method}@person(file={file})",
        "seeds": str(judged.cell.seed),
    }
    kept = [word for word in words or (config.name,) if word.split("=")[0] not in chosen]
    return shlex.join(["vabench", "run", *kept, *(f"{key}=[{value}]" for key, value in chosen.items())])


def plain(text: str) -> str:
    """Text for the page: what no page can hold (or what would reorder the text around it) as an escape, `\\x1b`."""
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if (c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")) or unicodedata.bidirectional(c) in TURNING
        else c
        for c in text.replace("\r\n", "\n")
    )


def _part(part: int, judged: JudgedCell, split: SplitName, limit: int | None) -> tuple[dict[str, Any], list[Card]]:
    """One alignment set: its entry of the file, and the cards of the images that are shown."""
    task = judged.task()
    alignment = judged.alignment(task, split)
    critiques, verdicts = _ask(judged, task, alignment)
    nonempty = alignment.segments.nonempty.cpu()
    asked = nonempty.any(1).nonzero().flatten().tolist()
    images = []
    for position in asked:
        base = {str(j): v for j, v in enumerate(verdicts[position].tolist()) if v != NO_VERDICT}
        answers: dict[str, Any] = {"agreed": [], "overruled": [], "added": [], "reviewed": False}
        images.append({"position": position, "verdicts": base, "base": dict(base), **answers})
    # Labels are left out: a stage that is stored already reads none, and the cell that runs charges its own.
    consumed = {kind: n for kind, n in task.ledger.as_dict().items() if not kind.startswith("labels/")}
    entry = {
        "identity": alignment_identity(alignment),
        "split": split,
        "suite": judged.cell.suite_name,
        "seed": judged.cell.seed,
        "row": str(judged.cell.row),
        "consumed": consumed,
        "images": images,
    }
    shown = asked
    if limit is not None and limit < len(asked):
        shown = [asked[k * len(asked) // limit] for k in range(limit)]
    told = judged.source.specifications(task) if isinstance(judged.source, Critic) else {}
    return entry, _cards(part, judged, alignment, verdicts, critiques, told, shown)


def _ask(judged: JudgedCell, task: Any, alignment: AlignmentSet) -> tuple[dict[int, Critique], Tensor]:
    """What the source says: critiques by position where it writes any, and verdicts int8 [N, J] on the CPU."""
    if isinstance(judged.source, Critic):
        verdicts = torch.full((len(alignment), alignment.segments.count), NO_VERDICT, dtype=torch.int8)
        critiques = {c.position: c for c in judged.source.examine(alignment, task, judged.context)}
        for position, critique in critiques.items():
            for j, verdict in critique.verdicts.items():
                verdicts[position, j] = verdict
        return critiques, verdicts
    found = judged.source.masks(alignment, task, judged.context)
    if found.verdicts is None or not torch.equal(found.index.cpu(), alignment.index.cpu()):
        raise ConfigError(f"'{judged.cell.row.masks}' gives no verdicts on the segments of the alignment set to review")
    return {}, found.verdicts.cpu().masked_fill(~alignment.segments.nonempty.cpu(), NO_VERDICT)


def _cards(
    part: int,
    judged: JudgedCell,
    alignment: AlignmentSet,
    verdicts: Tensor,
    critiques: dict[int, Critique],
    told: dict[str, Specification],
    shown: Sequence[int],
) -> list[Card]:
    """Cards of the images at the positions `shown`, coloured as the critic saw them (or would have)."""
    segments = alignment.segments
    colours = assign_colours(segments, judged.context, "critic/colours")
    for position, critique in critiques.items():
        colours[position] = torch.tensor(critique.colours)
    names = colour_names(max(len(PALETTE), segments.count))
    place = torch.tensor(list(shown), dtype=torch.long)
    images = alignment.images[place.to(alignment.index.device)].cpu().numpy()
    labels = segments.labels[place.to(segments.labels.device)].cpu().numpy()
    longest = max(images.shape[2:])
    marks = segments.count > len(PALETTE)
    size = min(LARGEST, max(longest, MARKED) if marks else longest)
    order = colours[place].clamp(min=0).numpy()
    pictures = render(images, labels, size=size, order=order, marks=marks)
    classes = alignment.split.y[alignment.index].tolist()
    class_names = judged.loaded.data.class_names
    cards = []
    for position, three in zip(shown, pictures, strict=True):
        critique, class_name = critiques.get(position), class_names[classes[position]]
        given = told.get(class_name, Specification(None, None))
        present = segments.nonempty[position].cpu().nonzero().flatten().tolist()
        chips = tuple(
            Chip(
                j,
                names[int(colours[position, j])],
                "#{:02x}{:02x}{:02x}".format(*PALETTE[int(colours[position, j]) % len(PALETTE)].rgb),
                float(segments.share[position, j]),
                int(verdicts[position, j]),
                KEYS[k] if k < len(KEYS) else "",
            )
            for k, j in enumerate(present)
        )
        cards.append(
            Card(
                part=part,
                position=position,
                source=int(alignment.index[position]),
                class_name=plain(class_name),
                told={k: plain(said) for k, said in (("relevant", given.core), ("spurious", given.spurious)) if said},
                pictures=(data_uri(three[0]), data_uri(three[1]), data_uri(three[2])),
                chips=chips,
                text=plain(critique.text) if critique else "",
                failure=plain(critique.failure) if critique else "",
            )
        )
    return cards
