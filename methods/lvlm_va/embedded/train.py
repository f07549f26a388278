"""Training of the embedded critic: first its vision tower with plain heads, then the whole model on true answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.context import derive_seed
from harness.suite import Int64
from methods.lvlm_va.embedded.items import ABSENT, Items
from methods.lvlm_va.embedded.network import PATCH, SIDE, build_network, build_processor, layout
from methods.lvlm_va.embedded.question import VERDICTS
from methods.lvlm_va.embedded.questions import Asked, ask, colour_order
from methods.lvlm_va.overlay import PALETTE, render_stacked

GRID = SIDE // PATCH
KINDS = 3  # neither, object, digit
Log = Callable[[dict[str, float | int | str]], None]


@dataclass(frozen=True)
class Plan:
    """How long and how fast. Equal plans, seeds and data give equal weights on one machine with one thread.

    vision_steps, steps: optimiser steps of the two stages. vision_batch, batch: pictures per step; the second stage
    asks two questions on each, one in either direction. false_alarm: weight of a verdict whose truth is `relevant`.
    """

    vision_steps: int = 6000
    steps: int = 900
    vision_batch: int = 32
    batch: int = 16
    vision_lr: float = 2e-3
    lr: float = 2e-3
    weight_decay: float = 0.01
    false_alarm: float = 1.0

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for the card."""
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """Pictures and what their segments lie on.

    pixels: float [B, 3, 3, 32, 32] (image, map, overlay) as the processor gives them. present: float [B, 8, 8, 7],
    whether a patch holds a colour. kinds: float [B, 8, 8, 3], whether it holds a segment on the background, on the
    object, on the digit. table: int64 [B, 7], what the segment of a colour lies on, 0 = no such segment, else kind + 1.
    index, order: int64 [B] into the items and [B, 6] palette indices.
    """

    pixels: Tensor
    present: Tensor
    kinds: Tensor
    table: Tensor
    index: Int64
    order: Int64


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] to float [..., 3, H, W] in [-1, 1]: what the processor does to pictures of this size."""
    return torch.from_numpy(pictures).movedim(-1, -3).to(torch.float32).div_(255).sub_(0.5).div_(0.5).contiguous()


def make_batch(items: Items, index: Int64, rng: np.random.Generator, *, augment: bool = True) -> Batch:
    """Draw the pictures `index` with random colours; `augment` mirrors and turns some of them."""
    images, labels, kind = items.images[index], items.labels[index], items.kind[index]
    if augment:
        images, labels = _turn(images, labels, rng)
    order = colour_order(len(index), rng)
    pictures = np.stack(render_stacked(images[:, None], labels, size=SIDE, order=order), 1)
    table = np.zeros((len(index), len(PALETTE)), dtype=np.int64)
    np.put_along_axis(table, order, kind.astype(np.int64) + 1, 1)
    margin = (SIDE - labels.shape[1]) // 2
    slots = np.pad(labels, ((0, 0), (margin, margin), (margin, margin)), constant_values=-1)
    at = (np.arange(kind.shape[1]) == slots[..., None]).reshape(len(index), GRID, PATCH, GRID, PATCH, -1).any((2, 4))
    colours = np.zeros((len(index), GRID, GRID, len(PALETTE)), dtype=np.float32)
    np.put_along_axis(colours, np.broadcast_to(order[:, None, None], at.shape), at.astype(np.float32), 3)
    which = kind[:, :, None] == np.arange(KINDS)
    kinds = np.einsum("bhwj,bjk->bhwk", at, which).astype(bool).astype(np.float32)
    return Batch(
        to_pixels(pictures), torch.from_numpy(colours), torch.from_numpy(kinds), torch.from_numpy(table), index, order
    )


def _turn(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One of the eight symmetries of the square for three pictures in ten: digits of no alphabet are digits, too."""
    images, labels = images.copy(), labels.copy()
    chosen = rng.random(len(images)) < 0.3
    times, mirror = rng.integers(0, 4, len(images)), rng.random(len(images)) < 0.5
    for part in (images, labels):
        for k in np.flatnonzero(chosen):
            turned = np.rot90(part[k], times[k])
            part[k] = turned[:, ::-1] if mirror[k] else turned
    return images, labels


class Heads(nn.Module):
    """Linear read-outs, for training only.

    patch: of the overlay's patches, which colours and which kinds of segment they hold. table: of the overlay's tokens,
    one for each colour (the first seven), what the segment of that colour lies on; place: which of the seven it is, so
    that the language model finds it where it looks for the colour. kind: of the language model's first layer at a
    colour's name in the answer, what its segment lies on. direction: of its second layer where a verdict is due, which
    way the specification points. The verdict is the combination of the two; neither tells anything by itself, so
    learning it from verdicts alone takes far longer.
    """

    def __init__(self, vision: int, text: int):
        super().__init__()
        self.patch = nn.Linear(vision, len(PALETTE) + KINDS)
        self.table = nn.Linear(text, KINDS + 1)
        self.place = nn.Linear(text, len(PALETTE))
        self.kind = nn.Linear(text, KINDS)
        self.direction = nn.Linear(text, 2)

    def seen(self, hidden: Tensor, tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss, and the share of present colours whose segment is read right.

        hidden [B, P, 64, D] of the tower, tokens [B, P, 16, E] of the connector; the overlay comes last.
        """
        dense = self.patch(hidden[:, -1]).float()
        wanted = torch.cat([batch.present, batch.kinds], -1).flatten(1, 2)
        table = self.table(tokens[:, -1, : len(PALETTE)]).float()
        loss = F.binary_cross_entropy_with_logits(dense, wanted)
        loss = loss + F.cross_entropy(table.flatten(0, 1), batch.table.flatten())
        place = self.place(tokens[:, -1, : len(PALETTE)]).float()
        loss = loss + 0.1 * F.cross_entropy(place.flatten(0, 1), torch.arange(len(PALETTE)).repeat(len(place)))
        return loss, (table.argmax(-1) == batch.table)[batch.table > 0].float().mean()

    def understood(self, first: Tensor, second: Tensor, asked: list[Asked]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and how often kind and direction are read right; first, second [V, E], a row per verdict, in order."""
        kind = torch.tensor([kind for one in asked for kind in one.kinds])
        direction = torch.tensor([int(one.swapped) for one in asked for _ in one.kinds])
        kinds, directions = self.kind(first).float(), self.direction(second).float()
        loss = F.cross_entropy(kinds, kind) + F.cross_entropy(directions, direction)
        right = [(a.argmax(1) == b).float().mean() for a, b in ((kinds, kind), (directions, direction))]
        return loss, right[0], right[1]


def see(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of the vision tower [B, P, 64, D] and picture tokens [B, P, 16, E] of pixels [B, P, 3, 32, 32]."""
    b, p = pixels.shape[:2]
    mask = torch.ones(p * b, GRID, GRID, dtype=torch.bool)
    hidden = model.model.vision_model(pixel_values=pixels.flatten(0, 1), patch_attention_mask=mask).last_hidden_state
    tokens = model.model.connector(hidden)
    return hidden.unflatten(0, (b, p)), tokens.unflatten(0, (b, p))


class Writer:
    """Turns questions into token batches and gives the loss of their answers."""

    def __init__(self, model: Any, tokenizer: Any, false_alarm: float):
        self.model, self.tokenizer, self.false_alarm = model, tokenizer, false_alarm
        ids = [tokenizer(word, add_special_tokens=False).input_ids for word in VERDICTS]
        if any(len(word) != 1 for word in ids):
            raise ValueError(f"the tokenizer splits the verdicts {VERDICTS}: {ids}")
        self.relevant, self.spurious = ids[0][0], ids[1][0]

    def encode(self, asked: list[Asked]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [R, T] padded on the right, their attention mask, and the weight of each token in the loss."""
        rows, weights = [], []
        for one in asked:
            prompt = self.tokenizer(layout(one.prompt), add_special_tokens=False).input_ids
            reply = [*self.tokenizer(one.answer, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
            rows.append(prompt + reply)
            weights.append([0.0] * len(prompt) + [self._weight(token) for token in reply])
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        weight = torch.zeros(len(rows), longest)
        for k, (row, values) in enumerate(zip(rows, weights, strict=True)):
            ids[k, : len(row)], weight[k, : len(row)] = torch.tensor(row), torch.tensor(values)
        return ids, (torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]).long(), weight

    def _weight(self, token: int) -> float:
        return self.false_alarm if token == self.relevant else 1.0 if token == self.spurious else 0.1

    def loss(self, asked: list[Asked], tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss of the answers, share of right verdicts, and [V, E] of both layers that `Heads.understood` wants.

        tokens [R, 3, 16, E], one row per question.
        """
        ids, mask, weight = self.encode(asked)
        inner = self.model.model
        embedded = inner.text_model.get_input_embeddings()(ids)
        slots = (ids == self.model.config.image_token_id).unsqueeze(-1).expand_as(embedded)
        embedded = embedded.masked_scatter(slots, tokens.to(embedded.dtype))
        output = inner.text_model(
            inputs_embeds=embedded, attention_mask=mask, use_cache=False, output_hidden_states=True
        )
        rows, columns = (weight[:, 1:] > 0).nonzero(as_tuple=True)
        logits = self.model.lm_head(output.last_hidden_state[rows, columns]).float()
        target, w = ids[rows, columns + 1], weight[rows, columns + 1]
        due = (target == self.relevant) | (target == self.spurious)
        right = logits[due][:, [self.relevant, self.spurious]].argmax(1) == (target[due] == self.spurious).long()
        loss = (F.cross_entropy(logits, target, reduction="none") * w).sum() / w.sum()
        rows, columns, layers = rows[due], columns[due], output.hidden_states
        return loss, right.float().mean(), layers[1][rows, columns - 1], layers[2][rows, columns]


def endless(count: int, batch: int, rng: np.random.Generator) -> Iterator[Int64]:
    """Batches of a fresh permutation each epoch."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


def corpus(items: Items, seed: int, count: int = 8000) -> Iterator[str]:
    """Prompts and answers from which the tokenizer is learned."""
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "corpus"))
    for k in rng.integers(0, len(items), count):
        asked = ask(items, int(k), colour_order(1, rng)[0], rng, swapped=bool(rng.random() < 0.5))
        yield asked.prompt
        yield asked.answer


def train(items: Items, plan: Plan, seed: int, log: Log | None = None) -> tuple[Any, Any]:
    """Train from nothing; returns the model in eval mode and its processor. Segmentless pictures are not allowed."""
    if bool((items.kind == ABSENT).all(1).any()):
        raise ValueError("a picture without any segment cannot be asked about")
    processor = build_processor(corpus(items, seed))
    model = build_network(processor.tokenizer, derive_seed(seed, "embedded critic", "weights") % 2**32)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        heads = Heads(model.config.vision_config.hidden_size, model.config.text_config.hidden_size)
    model.set_attn_implementation("eager")  # twice as fast here as the fused kernel, whose bfloat16 backward is slow
    model.train()
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "batches"))
    batches = endless(len(items), min(plan.vision_batch, len(items)), rng)
    _vision_stage(model, heads, items, batches, plan, rng, log)
    rng = np.random.default_rng(derive_seed(seed, "embedded critic", "answers"))
    batches = endless(len(items), min(plan.batch, len(items)), rng)
    _answer_stage(model, processor.tokenizer, heads, items, batches, plan, rng, log)
    return model.eval(), processor


def _vision_stage(
    model: Any, heads: Heads, items: Items, batches: Iterator[Int64], plan: Plan, rng: np.random.Generator, log: Any
) -> None:
    inner = model.model
    weights = [*inner.vision_model.parameters(), *inner.connector.parameters(), *heads.parameters()]
    step = _stepper(weights, plan.vision_lr, plan.weight_decay, plan.vision_steps)
    for k in range(plan.vision_steps):
        batch = make_batch(items, next(batches), rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, right = heads.seen(*see(model, batch.pixels[:, 2:]), batch)
        step(loss)
        _tell(log, "vision", k, plan.vision_steps, loss=loss.item(), right=right.item())


def _answer_stage(
    model: Any,
    tokenizer: Any,
    heads: Heads,
    items: Items,
    batches: Iterator[Int64],
    plan: Plan,
    rng: np.random.Generator,
    log: Any,
) -> None:
    """The tower stays as it is: what it has learned of segments would suffer from the noise of the first answers."""
    writer = Writer(model, tokenizer, plan.false_alarm)
    weights = [*model.model.text_model.parameters(), *model.lm_head.parameters(), *heads.parameters()]
    step = _stepper(weights, plan.lr, plan.weight_decay, plan.steps)
    for k in range(plan.steps):
        batch = make_batch(items, next(batches), rng)
        asked = [
            ask(items, int(item), order, rng, swapped=swapped)
            for item, order in zip(batch.index, batch.order, strict=True)
            for swapped in (False, True)
        ]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                hidden, tokens = see(model, batch.pixels)
                _, table = heads.seen(hidden, tokens, batch)
            loss, right, first, second = writer.loss(asked, tokens.repeat_interleave(2, 0))
            understood, kind, direction = heads.understood(first, second, asked)
        step(loss + 0.5 * understood)
        shares = {"right": right, "table": table, "kind": kind, "direction": direction}
        _tell(log, "answers", k, plan.steps, loss=loss.item(), **{name: s.item() for name, s in shares.items()})


def _stepper(weights: list[Tensor], lr: float, decay: float, steps: int) -> Callable[[Tensor], None]:
    unique = list({id(w): w for w in weights}.values())
    optimizer = torch.optim.AdamW(unique, lr=lr, weight_decay=decay, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(2, steps), pct_start=0.15)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unique, 1.0)
        optimizer.step()
        schedule.step()

    return step


def _tell(log: Log | None, stage: str, k: int, total: int, **values: float) -> None:
    if log is not None and (k % 20 == 0 or k == total - 1):
        rounded = {name: round(value, 5) if math.isfinite(value) else value for name, value in values.items()}
        log({"stage": stage, "step": k, **rounded, "cpu_seconds": round(time.process_time(), 1)})
