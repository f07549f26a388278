"""Segmented pictures for the embedded critic: attribution of trained models as in a cell, and invented attribution.

Nothing here reads a split of a suite: images come from `critic_pool()`, which no split holds, or are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from harness.context import RunContext, Seeds, derive_seed
from harness.errors import DataError
from harness.explain import draw_baselines
from harness.masks import segment_truth
from harness.models import build_model
from harness.registry import registry
from harness.segment import Segments, segment
from harness.spec import parse_spec
from harness.suite import Int64, UInt8
from harness.training import TrainRecipe, fit
from methods.lvlm_va.embedded.scenes import STYLES, Picture, compose, glyphs
from suites.decoy import CLASSES, SIDE, correlated, grey_of, other_class

SEGMENTS = 6
ABSENT, NEITHER, THING, CORE = -1, 0, 1, 2  # what a segment lies on
HELD_OUT = {"decoy_mnist": 1000, "decoy_digits": 60}  # images of the critic pools that training never sees


@dataclass(frozen=True)
class Items:
    """Segmented pictures.

    images: uint8 [N, 28, 28]. labels: int8 [N, 28, 28] in -1..5. kind: int8 [N, 6], what at least half of a segment's
    positive attribution lies on. y, grey, shape: int64 [N]; grey is the one that the description of the class names.
    """

    images: UInt8
    labels: np.ndarray
    kind: np.ndarray
    y: Int64
    grey: Int64
    shape: Int64

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Int64 | slice) -> Items:
        return Items(*(getattr(self, field.name)[index] for field in fields(self)))


def join(parts: Sequence[Items]) -> Items:
    """All parts behind each other."""
    return Items(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Items)))


def pools(held_out: bool, suites: Sequence[str] = tuple(HELD_OUT)) -> dict[str, tuple[UInt8, Int64]]:
    """Images uint8 [N, 28, 28] and labels of the critic pools, by suite: those for training, or those kept from it.

    A suite is left out where its files are not at hand and cannot be downloaded.
    """
    found = {}
    for name in suites:
        kept = HELD_OUT[name]
        try:
            pool = registry("suites").create(parse_spec(name)).critic_pool()
        except DataError:
            continue
        order = np.random.default_rng(derive_seed(0, "embedded critic", name)).permutation(len(pool.y))
        chosen = order[:kept] if held_out else order[kept:]
        found[name] = (pool.images[chosen, 0], pool.y[chosen])
    return found


def explained(
    base: tuple[UInt8, Int64],
    shown: tuple[UInt8, Int64],
    rho: float,
    seed: int,
    *,
    repeats: int = 1,
    plain: bool = True,
) -> Items:
    """Segments of the attribution of a model that learned the shortcut, of images that it never saw.

    Args:
        base: images without object and labels on which the model (784-64-10) is trained. shown: those to explain.
        rho: fraction of training images whose object's grey tells the class. repeats: renderings of every image.
        plain: the suites' square, aligned; otherwise a shape and size drawn for this model, and some images with
            another grey, without object, or with a placebo.
    """
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "explained"))
    shape, side = (0, 4) if plain else (int(rng.choice(3, p=[0.5, 0.25, 0.25])), int(rng.integers(3, 7)))
    images, y = (np.repeat(part, max(1, 4000 // len(base[1])), axis=0) for part in base)

    def scene(images: UInt8, y: Int64, a: Int64, absent: float, placebo: float) -> Picture:
        full = (np.full(len(y), value, dtype=np.int64) for value in (shape, side))
        return compose(images, y, grey_of(a), rng, shape=next(full), side=next(full), absent=absent, placebo=placebo)

    train = scene(images, y, correlated(y, rho, rng), 0.0, 0.0)
    recipe = TrainRecipe(epochs=10)
    context = RunContext(torch.device("cpu"), Seeds.all(seed), recipe, recipe)
    model = build_model(parse_spec("mlp(hidden=64)"), (1, SIDE, SIDE), CLASSES, seed)
    pixels = torch.from_numpy(train.images)[:, None]
    fit(model, pixels, torch.from_numpy(train.y), recipe, context)
    images, y = (np.repeat(part, repeats, axis=0) for part in shown)
    a = y if plain else np.where(rng.random(len(y)) < 0.8, y, other_class(y, rng))
    picture = scene(images, y, a, 0.0 if plain else 0.06, 0.0 if plain else 0.15)
    explain = registry("explainers").create(parse_spec("deeplift_shap"))
    generator = torch.Generator().manual_seed(derive_seed(seed, "segments"))
    baselines = draw_baselines(pixels, 20, generator)
    maps = explain(model, torch.from_numpy(picture.images)[:, None], torch.from_numpy(y), baselines).maps
    return judged(picture, segment(maps, SEGMENTS, generator=generator), maps)


def invented(base: tuple[UInt8, Int64], seed: int) -> Items:
    """Random Gaussian blobs of attribution on digit, object and background, in segments of any number up to six."""
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "invented"))
    images, y = base
    n = len(y)
    shape, side = rng.choice(3, n, p=[0.5, 0.25, 0.25]), rng.integers(3, 7, n)
    gain = np.where(rng.random(n) < 0.3, rng.uniform(0.4, 1.0, n), 1.0)
    images = np.rint(images * gain[:, None, None]).astype(np.uint8)
    grey = grey_of(rng.integers(0, CLASSES, n))
    picture = compose(images, y, grey, rng, shape=shape, side=side, loose=True, absent=0.06, placebo=0.15)
    parts = [_blobs(picture, part, rng) for part in np.array_split(np.arange(n), max(1, n // 500))]
    maps, labels = (torch.from_numpy(np.concatenate(kind)) for kind in zip(*parts, strict=True))
    empty = torch.zeros(n, SEGMENTS)
    return judged(picture, Segments(labels, empty, empty[:, 0]), maps)


def _blobs(picture: Picture, part: Int64, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 and labels int8, [n, 28, 28], of the pictures `part`."""
    n, ink = len(part), picture.images[part].astype(np.float32) / 255
    on = rng.choice(3, (n, SEGMENTS), p=[0.3, 0.3, 0.4])  # background, object, digit
    where = np.stack([~(picture.thing[part] | picture.core[part]), picture.thing[part], picture.core[part]], 1)
    chance = np.take_along_axis(where, on[:, :, None, None], 1).reshape(n, SEGMENTS, -1) * rng.random(
        (n, SEGMENTS, SIDE * SIDE)
    )
    row, column = np.divmod(chance.argmax(2), SIDE)
    wide = np.where(on == 1, rng.uniform(1.0, 2.2, on.shape), rng.uniform(1.0, 4.5, on.shape))
    long, angle = wide * rng.uniform(0.6, 1.0, on.shape), rng.uniform(0, np.pi, on.shape)
    grid = np.arange(SIDE, dtype=np.float32)
    dy, dx = grid[:, None] - row[..., None, None], grid - column[..., None, None]
    sine, cosine = np.sin(angle)[..., None, None], np.cos(angle)[..., None, None]
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    heat = np.exp(-0.5 * ((u / wide[..., None, None]) ** 2 + (v / long[..., None, None]) ** 2))
    heat *= (rng.random(on.shape) < rng.uniform(0.3, 1.0, (n, 1)))[..., None, None]
    noise = rng.normal(rng.uniform(0, 1, (n, 1, 1)), 1, ink.shape).clip(0)
    weight = heat.sum(1) * noise * (rng.uniform(0.0, 1.0, (n, 1, 1)) + ink)
    held = weight > rng.uniform(0.03, 0.15, (n, 1, 1)) * weight.max((1, 2), keepdims=True).clip(1e-6)
    return weight.astype(np.float32), np.where(held, heat.argmax(1), -1).astype(np.int8)


def judged(picture: Picture, segments: Segments, maps: torch.Tensor) -> Items:
    """The items of a picture; a segment's kind follows the rule of `harness.masks.segment_truth`."""
    thing, core = (segment_truth(segments, maps, torch.from_numpy(part)).numpy() for part in picture[1:3])
    kind = np.where(thing < 0, ABSENT, np.where(thing == 1, THING, np.where(core == 1, CORE, NEITHER)))
    grey = grey_of(picture.y).astype(np.int64)
    return Items(picture.images, segments.labels.numpy(), kind.astype(np.int8), picture.y, grey, picture.shape)


def training_items(seed: int, scale: float = 1.0) -> Items:
    """Everything that the critic is trained on; `scale` shrinks the number of models and images."""
    pool, rng = pools(held_out=False), np.random.default_rng(derive_seed(seed, "embedded critic", "items"))
    parts = [part for k, given in enumerate(_bases(pool, rng, scale)) for part in _both(given, k, seed)]
    for k, (images, y) in enumerate(_sources(pool, rng, scale)):
        parts.append(invented((images, y), seed * 1000 + 500 + k))
    return _present(join(parts))


def held_out_items(suite: str, seed: int, models: int = 4) -> Items | None:
    """Images of a critic pool kept from training, explained by models of their own; None without the suite's files."""
    train, kept = pools(False, [suite]), pools(True, [suite])
    if suite not in kept:
        return None
    parts = []
    for k in range(models):
        part = np.array_split(np.arange(len(kept[suite][1])), models)[k]
        base = tuple(values[: min(4000, len(values))] for values in train[suite])
        shown = (kept[suite][0][part], kept[suite][1][part])
        repeats = 1 if suite == "decoy_mnist" else 4
        parts.append(explained(base, shown, (1.0, 0.97)[k % 2], 10_000 + seed * 100 + k, repeats=repeats))
    return _present(join(parts))


def _bases(
    pool: dict[str, tuple[UInt8, Int64]], rng: np.random.Generator, scale: float
) -> Iterator[tuple[tuple[UInt8, Int64], tuple[UInt8, Int64], int]]:
    """(training images, other images to explain, renderings) of every base model."""
    models = {"decoy_mnist": 16, "decoy_digits": 10}
    for name, (images, y) in pool.items():
        train, shown = (4000, 900) if name == "decoy_mnist" else (160, 80)
        for _ in range(max(1, round(models[name] * scale))):
            order = rng.permutation(len(y))
            first, second = order[:train], order[train : train + max(40, round(shown * min(1.0, scale * 4)))]
            yield (images[first], y[first]), (images[second], y[second]), 1 if name == "decoy_mnist" else 5
    for style in STYLES:
        images, y = glyphs(max(400, round(2000 * scale)), style, rng)
        cut = len(y) * 2 // 5
        yield (images[:-cut], y[:-cut]), (images[-cut:], y[-cut:]), 1


def _both(given: tuple[tuple[UInt8, Int64], tuple[UInt8, Int64], int], k: int, seed: int) -> Iterator[Items]:
    base, shown, repeats = given
    yield explained(base, shown, (1.0, 0.97)[k % 2], seed * 1000 + k, repeats=repeats, plain=k % 2 == 0 or k % 5 == 0)


def _sources(
    pool: dict[str, tuple[UInt8, Int64]], rng: np.random.Generator, scale: float
) -> Iterator[tuple[UInt8, Int64]]:
    """Images for invented segments."""
    wanted = max(60, round(4000 * scale))
    for images, y in pool.values():
        chosen = rng.integers(0, len(y), wanted)
        yield images[chosen], y[chosen]
    for style in STYLES:
        yield glyphs(max(60, round(1500 * scale)), style, rng)


def _present(items: Items) -> Items:
    """Without pictures that have no segment."""
    return items[(items.kind != ABSENT).any(1)]
