"""Galleries that `vabench gallery` drew, checked before the page shows them: RESULTS/gallery/<record id>.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import first_line

Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+=*$", max_length=2_000_000)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Look(_Model):
    """What one model makes of an image. said: its class, p: that class's softmax, 0..1."""

    said: str
    p: float
    right: bool
    attribution: Picture
    segments: Picture


class Failure(_Model):
    """One test image of the base model's worst group, before and after."""

    id: int
    label: str
    picture: Picture
    before: Look
    after: Look


class Judged(_Model):
    """One image of the alignment set with the source's verdicts: segments called spurious, core, or neither."""

    id: int
    label: str
    picture: Picture
    segments: Picture
    spurious: int
    core: int
    silent: int


class Gallery(_Model):
    """One row at one seed: `wrong` of the group's `of` test images are failures of the base model."""

    format: Literal["vabench-gallery-1"]
    id: str
    suite: str
    row: str
    seed: int
    group: str
    wrong: int
    of: int
    note: str
    failures: tuple[Failure, ...]
    verdicts: tuple[Judged, ...]


def read_galleries(root: Path) -> tuple[dict[str, Gallery], list[str]]:
    """Galleries by record id, and a sentence for each file that is none."""
    found: dict[str, Gallery] = {}
    damaged = []
    for path in sorted((root / "gallery").glob("*.json")):
        try:
            held = Gallery.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            damaged.append(f"{path} is no gallery ({first_line(error)}); `vabench gallery` draws it again")
            continue
        found[held.id] = held
    return found, damaged
