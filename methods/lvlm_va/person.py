"""Verdicts of a person, read from the file that the review page saves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import ConfigError, DataError, NotApplicable
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, MaskSet, MaskSource, mask_from_verdicts
from methods import critics

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.supervision import Task

FORMAT = "vabench review"
LIMIT = 64 * 2**20  # bytes of a review file


def alignment_identity(alignment: AlignmentSet) -> str:
    """What a person's verdicts belong to: sha256 of the images' positions and their segments, hex."""
    digest = hashlib.sha256(alignment.split.name.encode())
    digest.update(alignment.index.cpu().long().numpy().tobytes())
    digest.update(alignment.segments.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Person(MaskSource):
    """A person's verdicts: those that were overruled on the review page, and those that were left standing.

    file: what the page saved; it may hold several alignment sets (one a seed). A segment that the file says nothing of
    gets no verdict.
    """

    info = critics.PERSON

    def __init__(self, file: str):
        self.file = file
        if not Path(file).is_file():
            raise ConfigError(f"person: there is no file '{file}'; `vabench review` writes the page that saves it")

    @property
    def params(self) -> dict[str, Any]:
        """The file's name; its content stands among the cell's files."""
        return {"file": self.file}

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Look the alignment set up in the file.

        Raises:
            NotApplicable: the file holds no verdicts on these images and segments. DataError: it is no review file.
        """
        known = read_reviews(self.file)
        identity = alignment_identity(alignment)
        if identity not in known:
            raise NotApplicable(
                f"'{self.file}' holds no verdicts on this alignment set (split {alignment.split.name}); a review belongs "
                f"to one preset, suite and seed: write its page with `vabench review` and save it"
            )
        segments = alignment.segments
        verdicts = torch.full((len(alignment), segments.count), NO_VERDICT, dtype=torch.int8)
        overruled = 0
        for entry in known[identity]["images"]:
            position = entry["position"]
            if not 0 <= position < len(alignment):
                raise DataError(f"'{self.file}': position {position} is outside the {len(alignment)} images")
            for name, verdict in entry["verdicts"].items():
                segment = int(name)
                if not 0 <= segment < segments.count:
                    raise DataError(f"'{self.file}': image {position} has no segment {segment}")
                verdicts[position, segment] = verdict
            overruled += len(entry.get("overruled", ()))
        verdicts = verdicts.to(segments.labels.device).masked_fill(~segments.nonempty, NO_VERDICT)
        given = int((verdicts != NO_VERDICT).sum())
        task.ledger.add(f"person_verdicts/{alignment.split.name}", given)
        context.note(person={"verdicts": given, "overruled": overruled})
        return MaskSet(alignment.index, mask_from_verdicts(segments, verdicts), verdicts)


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
    return {entry["identity"]: entry for entry in value["sets"]}


def _check(path: str | Path, entry: Any) -> None:
    good = isinstance(entry, dict) and isinstance(entry.get("identity"), str) and isinstance(entry.get("images"), list)
    if not good:
        raise DataError(f"'{path}': every set needs an identity and a list of images")
    for image in entry["images"]:
        verdicts = image.get("verdicts") if isinstance(image, dict) else None
        if (
            not isinstance(verdicts, dict)
            or not isinstance(image.get("position"), int)
            or not all(str(name).isdigit() for name in verdicts)
            or not all(verdict in (RELEVANT, SPURIOUS) and verdict is not True for verdict in verdicts.values())
        ):
            raise DataError(f"'{path}': an image needs its position and verdicts, segment number -> 0 or 1")
