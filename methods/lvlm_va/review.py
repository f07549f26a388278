"""The page on which a person reviews a critic's verdicts: one HTML file that loads nothing from anywhere.

The page embeds its answers' file with nobody's answers in it, changes that, and saves it: `methods.lvlm_va.person`
reads the page's data and the saved file alike.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.errors import ConfigError
from harness.masks import NO_VERDICT
from harness.registry import registry
from harness.store import slug, write_bytes
from methods.lvlm_va.critic import Critic, Critique, assign_colours
from methods.lvlm_va.overlay import PALETTE, RGB, colour_names, render
from methods.lvlm_va.person import FORMAT, alignment_identity

if TYPE_CHECKING:
    from torch import Tensor

    from harness.masks import AlignmentSet
    from methods.lvlm_va.alignment_sets import JudgedCell, SplitName

LARGEST = 256  # side of a picture in pixels at most; smaller images keep their own size, the browser enlarges them
MARKED = 224  # side where colours repeat, so that numbers have to be drawn
KEYS = "123456789bcdefghilmnopqrstuvwxyz"  # of the segments of one image; a, j and k are taken


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
    """One image on the page. part: number of its set. pictures: data URIs of the image, the map and the overlay."""

    part: int
    position: int
    source: int
    class_name: str
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


def write_review(path: str | Path, judged: JudgedCell, splits: Sequence[SplitName], limit: int | None = None) -> Page:
    """Ask the row's source about the splits and write the page.

    Args:
        path: the HTML file; folders are made. splits: `train`, or `train` and `val`.
        limit: show this many images of each split, evenly spaced; the file holds the source's verdicts on the others.

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
    page = pages.get_template("review_page.html.j2").render(
        content=content,
        cards=cards,
        cell=cell,
        row=str(cell.row),
        method=str(cell.row.method),
        preset=judged.config.name,
        simulated=bool(info and info.simulated),
        splits=[entry["split"] for entry in parts],
        file=f"review-{slug(cell.suite_name)}-seed{cell.seed}.json",
        nonce=hashlib.sha256(text.encode()).hexdigest()[:32],
    )
    write_bytes(Path(path), page.encode())
    return Page(content, len(cards), sum(len(entry["images"]) for entry in parts))


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
    entry = {
        "identity": alignment_identity(alignment),
        "split": split,
        "suite": judged.cell.suite_name,
        "seed": judged.cell.seed,
        "row": str(judged.cell.row),
        "consumed": task.ledger.as_dict(),
        "images": images,
    }
    shown = asked
    if limit is not None and limit < len(asked):
        shown = [asked[k * len(asked) // limit] for k in range(limit)]
    return entry, _cards(part, judged, alignment, verdicts, critiques, shown)


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
        critique = critiques.get(position)
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
                class_name=class_names[classes[position]],
                pictures=(_picture(three[0]), _picture(three[1]), _picture(three[2])),
                chips=chips,
                text=critique.text if critique else "",
                failure=critique.failure if critique else "",
            )
        )
    return cards


def _picture(pixels: RGB) -> str:
    """PNG data URI of RGB pixels uint8 [H, W, 3], in grey or with a palette where that says the same."""
    from PIL import Image

    image = Image.fromarray(pixels)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    if (pixels == pixels[..., :1]).all():
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    elif len(colours) <= 64:
        index = (pixels[:, :, None] == colours).all(-1).argmax(-1).astype(np.uint8)
        image = Image.fromarray(index)
        image.putpalette(colours.flatten().tobytes(), "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
