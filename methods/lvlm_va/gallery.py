"""Pictures of what a row repairs: the base model's worst-group failures before and after, the critic's verdicts beside.

Images are data of the suite: whoever shows a gallery to others needs the right to. `vabench publish` leaves it behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from harness.evaluate import spread_evenly
from harness.masks import RELEVANT, SPURIOUS, segment_truth
from harness.supervision import Supervision
from harness.training import predict
from methods.lvlm_va.behaviour import Refit, Repaired, explain
from methods.lvlm_va.overlay import OPACITY, RGB, data_uri

if TYPE_CHECKING:
    from harness.plan import Cell
    from harness.stages import Stages

FORMAT = "vabench-gallery-1"
# Okabe and Ito's red and blue: told apart with any common colour blindness, and the words stand beside them.
HEAT, FLAGGED, CLEARED, SILENT = (213, 94, 0), (213, 94, 0), (0, 114, 178), (150, 150, 150)
SIDE = 96  # of a picture at least, in pixels


@dataclass(frozen=True)
class Failures:
    """Test images of the base model's worst group that it gets wrong: rendering, positions int64 [n], group's name."""

    rendering: str
    positions: npt.NDArray[np.int64]
    group: str
    wrong: int
    of: int


def gallery(cell: Cell, stages: Stages, settings: Mapping[str, Any], count: int = 6) -> dict[str, Any]:
    """What the page shows behind a row, as plain values; the row's pre-registered model is fitted again.

    Args:
        settings: the preset's `alignment`, by which test images are explained and segmented for every row alike.
        count: images of each strip at most.

    Returns:
        `failures`: `count` of the base model's worst-group failures, the same ones for every row of a suite, seed and
        model, each with prediction, attribution of the base model's wrong answer, and its segments, before and after;
        segments are coloured by the ground-truth mask, which nobody consumed. `verdicts`: images of the alignment set
        with the source's verdicts on the segments that it was asked about (empty for rows without).

    Raises:
        Skipped: the suite's data is missing. NotApplicable: as in the cell.
    """
    repaired = Refit(cell, stages).repair()
    failures = worst_failures(repaired, count)
    return {
        "format": FORMAT,
        "id": cell.id,
        "suite": cell.suite_name,
        "row": cell.row_name,
        "seed": cell.seed,
        "group": failures.group,
        "wrong": failures.wrong,
        "of": failures.of,
        "note": repaired.stored,
        "failures": _failures(repaired, failures, settings),
        "verdicts": _verdicts(repaired, count),
    }


def worst_failures(repaired: Repaired, count: int) -> Failures:
    """The base model's failures in its worst group over the pooled renderings, evenly spaced over the test order."""
    data, loaded = repaired.loaded.data, repaired.loaded
    wrong: dict[int, list[tuple[str, int]]] = {}
    sizes: dict[int, int] = {}
    for name in data.roles.grouped:
        split = data.test[name]
        failed = predict(repaired.base, loaded.test_images[name]).argmax(1).cpu().numpy() != split.y
        for k in np.unique(split.g).tolist():
            inside = split.g == k
            sizes[k] = sizes.get(k, 0) + int(inside.sum())
            wrong.setdefault(k, []).extend((name, int(at)) for at in np.flatnonzero(inside & failed))
    worst = max(sizes, key=lambda k: (len(wrong[k]) / sizes[k], -k))
    held = wrong[worst]
    rendering = held[0][0] if held else data.roles.headline  # one rendering, so that one strip is one kind of picture
    places = np.array([at for name, at in held if name == rendering], dtype=np.int64)
    return Failures(
        rendering, places[spread_evenly(len(places), count)], data.group_names[worst], len(held), sizes[worst]
    )


def _failures(repaired: Repaired, found: Failures, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not len(found.positions):
        return []
    data, loaded = repaired.loaded.data, repaired.loaded
    split = data.test[found.rendering]
    images = loaded.test_images[found.rendering]
    images = images[torch.from_numpy(found.positions).to(images.device)]
    y = torch.from_numpy(split.y[found.positions]).to(images.device)
    mistaken = predict(repaired.base, images).argmax(1)  # the wrong answer is what asks for an explanation
    pixels = images.cpu().numpy()
    truth = None if split.masks is None else torch.from_numpy(split.masks[found.positions])
    items: list[dict[str, Any]] = [
        {
            "id": int(split.ids[at]),
            "label": data.class_names[int(split.y[at])],
            "picture": data_uri(enlarged(to_rgb(pixels[n]))),
        }
        for n, at in enumerate(found.positions)
    ]
    for when, model in (("before", repaired.base), ("after", repaired.model)):
        said = predict(model, images).softmax(1).cpu()
        maps, segments = explain(repaired.run, loaded, model, images, mistaken, settings)
        verdicts = None if truth is None else segment_truth(segments, maps, truth.to(maps.device)).cpu().numpy()
        for n, item in enumerate(items):
            top = int(said[n].argmax())
            item[when] = {
                "said": data.class_names[top],
                "p": round(float(said[n, top]), 4),
                "right": bool(top == int(y[n])),
                "attribution": data_uri(enlarged(heat(pixels[n], maps[n].cpu().numpy()))),
                "segments": data_uri(
                    enlarged(
                        judged(pixels[n], segments.labels[n].cpu().numpy(), None if verdicts is None else verdicts[n])
                    )
                ),
            }
    return items


def _verdicts(repaired: Repaired, count: int) -> list[dict[str, Any]]:
    run, loaded = repaired.run, repaired.loaded
    if run.mask_info is None or not run.mask_info.verdicts:
        return []
    view = run.task(loaded, Supervision.LABELS, "the gallery").train
    alignment = run.stages.alignment(run.cell, loaded, view, repaired.base, run.context)
    verdicts = run.judge(alignment, loaded)
    if verdicts is None:
        return []
    train, items = loaded.splits["train"], []
    for n in spread_evenly(len(alignment.index), count).tolist():
        at = int(alignment.index[n])
        image = train.images[at].cpu().numpy()
        labels, answers = alignment.segments.labels[n].cpu().numpy(), verdicts[n].cpu().numpy()
        there = alignment.segments.nonempty[n].cpu().numpy()
        items.append(
            {
                "id": at,
                "label": loaded.data.class_names[int(train.y[at])],
                "picture": data_uri(enlarged(to_rgb(image))),
                "segments": data_uri(enlarged(judged(image, labels, answers))),
                "spurious": int((answers[there] == SPURIOUS).sum()),
                "core": int((answers[there] == RELEVANT).sum()),
                "silent": int(((answers[there] != SPURIOUS) & (answers[there] != RELEVANT)).sum()),
            }
        )
    return items


# --- drawing ----------------------------------------------------------------------------------------------------------


def to_rgb(image: npt.NDArray[np.uint8]) -> RGB:
    """uint8 [H, W, 3] of an image uint8 [C, H, W], C = 1 or 3."""
    return np.ascontiguousarray(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)))


def enlarged(pixels: RGB) -> RGB:
    """The smallest whole multiple with a side of at least `SIDE`: a browser would blur it."""
    times = max(1, -(-SIDE // max(pixels.shape[:2])))
    return pixels.repeat(times, 0).repeat(times, 1)


def heat(image: npt.NDArray[np.uint8], attribution: npt.NDArray[Any]) -> RGB:
    """Positive attribution [H, W] over the image in grey: opacity 0 at nothing, 1 at the largest value."""
    grey = np.rint(to_rgb(image).mean(2, keepdims=True))
    positive = np.clip(np.nan_to_num(np.asarray(attribution, dtype=np.float64)), 0, None)
    share = (positive / positive.max() if positive.max() > 0 else positive)[..., None]
    found: RGB = np.rint((1 - share) * grey + share * np.array(HEAT)).astype(np.uint8)
    return found


def judged(image: npt.NDArray[np.uint8], labels: npt.NDArray[Any], verdicts: npt.NDArray[Any] | None) -> RGB:
    """Segments [H, W] over the image: spurious red, core blue, no verdict grey, with a line around each."""
    rgb = to_rgb(image).astype(np.float64)
    colours = np.array([SILENT, *(_colour(verdicts, j) for j in range(int(labels.max(initial=-1)) + 1))], dtype=float)
    paint, inside = colours[labels + 1], (labels >= 0)[..., None]
    padded = np.pad(labels, 1, constant_values=-1)
    near = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = inside & np.any([other != labels for other in near], axis=0)[..., None]
    found: RGB = np.rint(np.where(edge, paint, np.where(inside, OPACITY * paint + (1 - OPACITY) * rgb, rgb))).astype(
        np.uint8
    )
    return found


def _colour(verdicts: npt.NDArray[Any] | None, j: int) -> tuple[int, int, int]:
    if verdicts is None or j >= len(verdicts):
        return SILENT
    return {SPURIOUS: FLAGGED, RELEVANT: CLEARED}.get(int(verdicts[j]), SILENT)
