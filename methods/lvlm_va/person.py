"""Verdicts of a person, read from the file that the review page saves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.config import parse_row
from harness.errors import ConfigError, DataError, NotApplicable
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, MaskSet, MaskSource, mask_from_verdicts
from harness.registry import registry
from harness.spec import Spec, parse_spec
from harness.supervision import Supervision
from methods import critics

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.supervision import Task

FORMAT = "vabench review"
LIMIT = 64 * 2**20  # bytes of a review file
ANSWERS = ("agreed", "overruled", "added")  # segments of an image that the person decided on


def alignment_identity(alignment: AlignmentSet) -> str:
    """What a person's verdicts belong to: sha256 of the images' positions and their segments, hex."""
    digest = hashlib.sha256(alignment.split.name.encode())
    digest.update(alignment.index.cpu().long().numpy().tobytes())
    digest.update(alignment.segments.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Person(MaskSource):
    """A person's verdicts: those that were overruled on the review page, and those that were left standing.

    file: what the page saved; it may hold several alignment sets (one a seed). A segment that the file says nothing of
    gets no verdict. only_reviewed: leave out the verdicts of the reviewed source that the person did not decide on.
    """

    info = critics.PERSON

    def __init__(self, file: str, only_reviewed: bool = False):
        self.file, self.only_reviewed = file, bool(only_reviewed)
        if not Path(file).is_file():
            raise ConfigError(f"person: there is no file '{file}'; `vabench review` writes the page that saves it")

    @property
    def params(self) -> dict[str, Any]:
        """The file's name; its content stands among the cell's files."""
        return {"file": self.file, "only_reviewed": self.only_reviewed}

    @property
    def supervision(self) -> Supervision:
        """A person's verdicts, and all that the reviewed source reads: a page that starts from an oracle shows it."""
        flags = self.info.supervision
        for entry in read_reviews(self.file).values():
            if entry.get("row"):
                flags |= _declared(parse_row(entry["row"]).masks)
        return flags

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Look the alignment set up in the file.

        Raises:
            NotApplicable: the file holds no verdicts on these images and segments. DataError: it is no review file.
        """
        known = read_reviews(self.file)
        identity = alignment_identity(alignment)
        if identity not in known:
            raise NotApplicable(
                f"'{self.file}' holds no verdicts on this alignment set (split {alignment.split.name}); a review "
                f"belongs to one preset, suite and seed: write its page with `vabench review` and save it"
            )
        entry, segments = known[identity], alignment.segments
        verdicts = torch.full((len(alignment), segments.count), NO_VERDICT, dtype=torch.int8)
        decided = torch.zeros_like(verdicts, dtype=torch.bool)
        for image in entry["images"]:
            self._place(image, verdicts, decided)
        empty = ~segments.nonempty.cpu()
        verdicts, decided = verdicts.masked_fill(empty, NO_VERDICT), decided & ~empty
        if self.only_reviewed:
            verdicts = verdicts.masked_fill(~decided, NO_VERDICT)
        self._account(entry, alignment, verdicts, decided, task, context)
        verdicts = verdicts.to(segments.labels.device)
        return MaskSet(alignment.index, mask_from_verdicts(segments, verdicts), verdicts)

    def _place(self, image: dict[str, Any], verdicts: torch.Tensor, decided: torch.Tensor) -> None:
        """Enter one image of the file into int8 [N, J] and bool [N, J]."""
        position, (images, count) = image["position"], verdicts.shape
        if not 0 <= position < images:
            raise DataError(f"'{self.file}': position {position} is outside the {images} images")
        for name, verdict in image["verdicts"].items():
            if not int(name) < count:
                raise DataError(f"'{self.file}': image {position} has no segment {name}")
            verdicts[position, int(name)] = verdict
        given = {int(name) for name in image["verdicts"]}
        answered = given
        if any(kind in image for kind in ANSWERS):  # a file without these lists was written by hand: all was decided
            answered = {j for kind in ANSWERS for j in image.get(kind, ())}
        decided[position, sorted(answered & given)] = True

    def _account(
        self,
        entry: dict[str, Any],
        alignment: AlignmentSet,
        verdicts: torch.Tensor,
        decided: torch.Tensor,
        task: Task,
        context: RunContext,
    ) -> None:
        """Charge the person's decisions, the verdicts left to the reviewed source, and what that source consumed."""
        split = alignment.split.name
        given = verdicts != NO_VERDICT
        count, left = int((given & decided).sum()), int((given & ~decided).sum())
        task.ledger.add(f"person_verdicts/{split}", count)
        if left:
            task.ledger.add(f"unreviewed_verdicts/{split}", left)
        for kind, amount in entry.get("consumed", {}).items():
            if kind == f"masks/{split}":  # by item: the same masks read elsewhere in the cell are charged once
                task.ledger.charge("masks", split, len(alignment.split), alignment.index)
            elif not kind.startswith("labels/"):
                task.ledger.add(kind, amount)
        overruled = sum(len(image.get("overruled", ())) for image in entry["images"])
        facts = {"verdicts": count, "overruled": overruled, "unreviewed": left, "of": entry.get("row", "")}
        context.note(person={**context.notes.get("person", {}), split: facts})


def _declared(masks: Spec | None) -> Supervision:
    """What a mask source and those that it is `of` declare to read."""
    if masks is None:
        return Supervision.NONE
    flags: Supervision = registry("mask_sources").info(masks.name).supervision
    inner = masks.params.get("of")
    return flags if inner is None else flags | _declared(parse_spec(inner))


def read_reviews(path: str | Path) -> dict[str, dict[str, Any]]:
    """Alignment sets of a review file by identity.

    Raises:
        DataError: not a review file: too large, not JSON, or an entry of another form.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the review file '{path}': {error.strerror}") from error
    if len(content) > LIMIT:
        raise DataError(f"'{path}' is larger than any review file ({len(content)} bytes)")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("sets"), list):
        raise DataError(f"'{path}' is not a file that the review page saved")
    for entry in value["sets"]:
        _check(path, entry)
    found = {entry["identity"]: entry for entry in value["sets"]}
    if len(found) < len(value["sets"]):
        raise DataError(f"'{path}' holds one alignment set twice: keep the review that counts")
    return found


def _check(path: str | Path, entry: Any) -> None:
    good = isinstance(entry, dict) and isinstance(entry.get("identity"), str) and isinstance(entry.get("images"), list)
    if not good:
        raise DataError(f"'{path}': every set needs an identity and a list of images")
    if not isinstance(entry.get("row", ""), str):
        raise DataError(f"'{path}': the row of a set is a text such as lvlm_va@oracle")
    consumed = entry.get("consumed", {})
    if not isinstance(consumed, dict) or not all(_is_amount(amount) for amount in consumed.values()):
        raise DataError(f"'{path}': what the reviewed source consumed is a name -> a number of at least 0")
    for image in entry["images"]:
        verdicts = image.get("verdicts") if isinstance(image, dict) else None
        if (
            not isinstance(verdicts, dict)
            or not _is_count(image.get("position"))
            or not all(
                name.isascii() and name.isdigit() and len(name) < 6 and str(int(name)) == name for name in verdicts
            )
            or not all(_is_count(verdict) and verdict in (RELEVANT, SPURIOUS) for verdict in verdicts.values())
        ):
            raise DataError(f"'{path}': an image needs its position and verdicts, segment number -> 0 or 1")
        for kind in ANSWERS:
            if not isinstance(image.get(kind, []), list) or not all(_is_count(j) for j in image.get(kind, [])):
                raise DataError(f"'{path}': image {image['position']}: '{kind}' is a list of segment numbers")
    positions = [image["position"] for image in entry["images"]]
    if len(set(positions)) < len(positions):
        raise DataError(f"'{path}': a set holds an image twice")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
