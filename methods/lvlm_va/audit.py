"""What a person can check of a distilled critic: clusters of what it calls spurious, a page, and the answer's file.

A person's answer belongs to one alignment set with one set of verdicts and clusters. It carries their hash and is
refused for any other, so that it can never repair what nobody looked at.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from harness.errors import ConfigError
from harness.masks import SPURIOUS
from methods.lvlm_va.overlay import data_uri

if TYPE_CHECKING:
    from torch import Tensor

    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from methods.lvlm_va.distilled import Findings

FORMAT = "vabench-audit-1"
CLUSTERS, EXEMPLARS = 8, 3
PICTURE = 192  # longer side of an exemplar on the page, in pixels, at least
OUTLINE = (255, 0, 200)


@dataclass(frozen=True)
class Clusters:
    """Clusters of the segments called spurious, the largest first.

    members: rows of `Findings.where`, one array per cluster. exemplars: up to three rows each: the nearest to the
    cluster's centre, the one at the median distance, and the farthest, so that a mixed cluster shows that it is mixed.
    """

    members: tuple[npt.NDArray[np.int64], ...]
    exemplars: tuple[tuple[int, ...], ...]

    @property
    def looks(self) -> int:
        """How many segments a person is shown."""
        return sum(map(len, self.exemplars))


def group(found: Findings, context: RunContext) -> Clusters:
    """k-means (k = 8, or fewer where fewer segments are flagged) on the features, each divided by its deviation."""
    rows, columns = found.where.unbind(1)
    flagged = np.flatnonzero((found.verdicts[rows, columns] == SPURIOUS).cpu().numpy())
    if len(flagged) == 0:
        return Clusters((), ())
    deviation = found.features.std(0)
    table = (found.features / np.where(deviation > 0, deviation, 1))[flagged]
    count = min(CLUSTERS, len(np.unique(table, axis=0)))
    fitted = KMeans(count, n_init=4, random_state=context.seed("audit") % 2**32).fit(table)
    distance = np.linalg.norm(table - fitted.cluster_centers_[fitted.labels_], axis=1)
    parts = [np.flatnonzero(fitted.labels_ == k) for k in range(count)]
    parts = sorted((part for part in parts if len(part)), key=lambda part: (-len(part), int(part[0])))
    ordered = [part[np.argsort(distance[part], kind="stable")] for part in parts]
    places = [sorted({0, len(part) // 2, len(part) - 1}) for part in ordered]
    shown = [tuple(int(flagged[part[k]]) for k in at) for part, at in zip(ordered, places, strict=True)]
    return Clusters(tuple(flagged[part] for part in parts), tuple(shown))


def identity(index: Tensor, found: Findings, grouped: Clusters) -> str:
    """sha256 of what a person's answer is about: the images, the verdicts and the clusters."""
    digest = hashlib.sha256()
    for array in (index.cpu().numpy(), found.verdicts.cpu().numpy(), *grouped.members):
        values = np.ascontiguousarray(array, dtype="<i8")
        digest.update(f"{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def confirmation_files(path: str) -> list[Path]:
    """The file, or the .json files of a folder.

    Raises:
        ConfigError: neither exists, or the folder holds none.
    """
    place = Path(path)
    files = sorted(place.glob("*.json")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise ConfigError(
            f"distilled: confirmed={path} is neither a file nor a folder with .json files; "
            f"save one with `vabench audit` (docs/distilled.md)"
        )
    return files


def read_confirmation(path: Path) -> dict[str, Any]:
    """A file that the audit page saved: {"identity": hex, "rejected": [cluster, ...], "clusters": count}.

    Raises:
        ConfigError: it is no such file, or a cluster has no answer.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise ValueError(f"its format is {held['format']!r}, not {FORMAT}")
        answers = {int(item["cluster"]): item["answer"] for item in held["clusters"]}
        if sorted(answers) != list(range(len(held["clusters"]))) or not set(answers.values()) <= {"accept", "reject"}:
            raise ValueError("every cluster needs one answer, accept or reject")
        rejected = sorted(cluster for cluster, answer in answers.items() if answer == "reject")
        return {"identity": str(held["identity"]), "rejected": rejected, "clusters": len(answers)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"distilled: {path} is not a file that the audit page saved: {error}") from error


def find_confirmation(path: str, wanted: str) -> dict[str, Any]:
    """The answer that belongs to an identity, from a file or a folder of files.

    Raises:
        ConfigError: none does.
    """
    held = [read_confirmation(file) for file in confirmation_files(path)]
    for answer in held:
        if answer["identity"] == wanted:
            return answer
    raise ConfigError(
        f"distilled: {path} confirms other verdicts ({', '.join(a['identity'][:12] for a in held[:3])}) than this "
        f"row's at this seed ({wanted[:12]}); audit this row and seed with `vabench audit` and save its answer there"
    )


def write_audit(
    path: Path, alignment: AlignmentSet, found: Findings, context: RunContext, *, title: str, facts: dict[str, str]
) -> Clusters:
    """Write the page: one HTML file that loads nothing from anywhere.

    Args:
        path: the file; folders are made. alignment, found: of `Distilled.examine`. title: heading, any text.
        facts: lines above the clusters, name -> value, any text (everything is escaped).

    Raises:
        DataError: the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    from harness.store import write_bytes

    grouped = group(found, context)
    name = identity(alignment.index, found, grouped)
    pages = Environment(loader=PackageLoader("methods.lvlm_va", "."), autoescape=True)
    clusters = [
        {"number": k, "size": len(members), "exemplars": [_exemplar(alignment, found, row) for row in shown]}
        for k, (members, shown) in enumerate(zip(grouped.members, grouped.exemplars, strict=True))
    ]
    text = pages.get_template("audit.html.jinja").render(
        title=title,
        facts={**facts, "Identity": name[:12]},
        clusters=clusters,
        flagged=sum(map(len, grouped.members)),
        judged=len(found.where),
        abstained=found.distillation.abstained,
        answer={"format": FORMAT, "identity": name, "title": title},
        file=f"audit-{name[:12]}.json",
    )
    write_bytes(path, text.encode())
    return grouped


def _exemplar(alignment: AlignmentSet, found: Findings, row: int) -> dict[str, str]:
    image, segment = (int(value) for value in found.where[row])
    x, y = found.features[row, :2]
    inside = (alignment.segments.labels[image] == segment).cpu().numpy()
    return {
        "picture": _picture(alignment.images[image].cpu().numpy(), inside),
        "where": f"centre {x:.0%} from the left, {y:.0%} from the top; {inside.mean():.1%} of the image",
        "which": f"training image {int(alignment.index[image])}, segment {segment}",
        "p": f"{found.distillation.p[row]:.2f}",
    }


def _picture(image: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]) -> str:
    """PNG data URI of an image uint8 [C, H, W], enlarged, with the segment's outline (bool [H, W])."""
    rgb = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    times = max(1, -(-PICTURE // max(inside.shape)))
    large = rgb.transpose(1, 2, 0).repeat(times, 0).repeat(times, 1).copy()
    mask = np.pad(inside.repeat(times, 0).repeat(times, 1), 1)
    around = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    large[mask[1:-1, 1:-1] & ~around] = OUTLINE
    return data_uri(large)
