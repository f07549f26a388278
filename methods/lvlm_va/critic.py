"""Stages 4 and 5: a vision-language model criticises the segments of an image, a judge turns that into verdicts.

The critic sees the image, the map of its segments and the overlay, with the class and an expert's description of it. A
segment without a usable answer gets no verdict (-1): no penalty, counted, nothing guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.descriptions import read_descriptions
from harness.errors import ConfigError
from harness.lvlm.client import RGB, Answer, Client, Decoding, Failure, Meter, Query, Reply, Usage, ask_twice
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, MaskSet, MaskSource, mask_from_verdicts
from harness.registry import registry
from harness.spec import Spec, parse_spec
from methods import critics
from methods.lvlm_va.overlay import PALETTE, colour_names, render
from methods.lvlm_va.prompts import Specification, load_wording, verdict_schema

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.segment import Segments
    from harness.supervision import Task

Style = Literal["critique_and_judge", "one_call", "short"]
STYLES = ("critique_and_judge", "one_call", "short")
DESCRIBES = ("core", "spurious", "both")
PROBES = (
    "none",
    "image_free",  # black pictures: answers from the text alone
    "swapped_image",  # another image's pictures
    "swapped_specification",  # what mattered must not count, and the other way round
    "mirror",  # the pictures mirrored left to right
    "colours",  # another assignment of colours to segments
    "order",  # the colours named in the opposite order
    "paraphrase",  # the same question in other words
    "repeat",  # the same question asked again
)
CHUNK_BYTES = 128 * 2**20  # pictures that are held at once


@dataclass(frozen=True)
class Critique:
    """What was answered about one image.

    position: into the alignment set. colours: palette index of every segment, -1 for an empty one. text: the critique
    (or the one call's answer). verdicts: segment -> 1 spurious, 0 relevant. failure: why there are none, else ''.
    """

    position: int
    colours: tuple[int, ...]
    text: str = ""
    verdicts: Mapping[int, int] = field(default_factory=dict)
    failure: str = ""


class Critic(MaskSource):
    """Critic and judge through any client of the registry kind `clients`.

    client: e.g. `local(path=...)` or `server(url=...,model=...)`. describes: which of the suite's class descriptions
    the question holds. style: `critique_and_judge` (two calls an image), `one_call`, or `short` (one call in the
    wording of the embedded critic). size: side of the pictures in pixels. prompts: folder with the user's own wording.
    descriptions: file with the user's own class descriptions (harness/descriptions.py) in place of the suite's.
    max_calls, max_tokens, max_price: hard caps for each split of a cell. record: keep answers, so that a run replays
    without calls. probe: one of PROBES, for `vabench fidelity`; `none` in every benchmark row.
    """

    info = critics.CRITIC

    def __init__(
        self,
        client: str | Mapping[str, Any] | Spec,
        describes: str = "both",
        style: str = "critique_and_judge",
        size: int = 336,
        max_answer: int = 700,
        temperature: float = 0.0,
        prompts: str | None = None,
        descriptions: str | None = None,
        max_calls: int | None = None,
        max_tokens: int | None = None,
        max_price: float | None = None,
        record: bool = True,
        probe: str = "none",
    ):
        for name, value, known in (
            ("describes", describes, DESCRIBES),
            ("style", style, STYLES),
            ("probe", probe, PROBES),
        ):
            if value not in known:
                raise ConfigError(f"{self.info.name}: {name} is one of {', '.join(known)}, not {value!r}")
        if isinstance(size, bool) or not isinstance(size, int) or not 16 <= size <= 4096:
            raise ConfigError(f"{self.info.name}: size is a number of pixels in 16..4096, not {size!r}")
        self.client: Client = registry("clients").create(parse_spec(client))
        self.describes, self.style, self.size, self.probe = describes, style, size, probe
        self.max_answer, self.temperature = int(max_answer), float(temperature)
        self.prompts, self.descriptions, self.record = prompts, descriptions, bool(record)
        self.caps = {"max_calls": max_calls, "max_tokens": max_tokens, "max_price": max_price}
        self.wording = load_wording(prompts)

    @property
    def params(self) -> dict[str, Any]:
        """All that can change a verdict: the client's parameters, what the question says, decoding."""
        return {
            "client": {"name": self.client.info.name, "params": self.client.params},
            "describes": self.describes,
            "style": self.style,
            "size": self.size,
            "max_answer": self.max_answer,
            "temperature": self.temperature,
            "prompts": self.wording.hash,
            "probe": self.probe,
        }

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Ask about every image that has a segment; verdicts and what they cost go to the record."""
        segments = alignment.segments
        verdicts = torch.full((len(alignment), segments.count), NO_VERDICT, dtype=torch.int8)
        for critique in self.examine(alignment, task, context):
            for j, verdict in critique.verdicts.items():
                verdicts[critique.position, j] = verdict
        verdicts = verdicts.to(segments.labels.device)
        return MaskSet(alignment.index, mask_from_verdicts(segments, verdicts), verdicts)

    def examine(self, alignment: AlignmentSet, task: Task, context: RunContext) -> list[Critique]:
        """Critiques of all images of the alignment set, in order; those without a segment are not asked about."""
        specifications = self.specifications(task)
        labels = alignment.split.y[alignment.index].tolist()
        session = _Session(self, context, Meter(**self.caps))
        critiques: list[Critique] = []
        for chunk in self._questions(alignment, context):
            names = [task.class_names[labels[q.position]] for q in chunk]
            critiques += session.answer(chunk, names, [specifications[name] for name in names])
        session.close(task, alignment.split.name, critiques)
        return critiques

    def specifications(self, task: Task) -> dict[str, Specification]:
        """What the question says of every class. Reads the suite's class descriptions, which needs TEXT."""
        found: dict[str, dict[str, str]] = {}
        for kind in ("core", "spurious"):
            if self.describes in (kind, "both"):
                found[kind] = self._describe(kind, task)
        every = {
            name: Specification(found.get("core", {}).get(name), found.get("spurious", {}).get(name))
            for name in task.class_names
        }
        if self.probe == "swapped_specification":
            every = {name: given.swapped() for name, given in every.items()}
        return every

    def _describe(self, kind: str, task: Task) -> dict[str, str]:
        if self.descriptions is None:
            return dict(task.descriptions(kind))
        given = read_descriptions(self.descriptions, task.class_names)
        if kind not in given:
            raise ConfigError(f"'{self.descriptions}' has no section '{kind}'; write one, or choose describes=...")
        task.ledger.charge("sentences", kind, len(task.class_names))
        return given[kind]

    def _questions(self, alignment: AlignmentSet, context: RunContext) -> Iterator[list[_Pictures]]:
        """Pictures of the images that have a segment, in chunks that fit the memory."""
        segments = alignment.segments
        asked = segments.nonempty.any(1).nonzero().flatten().cpu()
        colours = assign_colours(
            segments, context, "critic/colours again" if self.probe == "colours" else "critic/colours"
        )
        shown = asked
        if self.probe == "swapped_image" and len(asked) > 1:
            shown = asked.roll(1)
        per_chunk = max(1, CHUNK_BYTES // (9 * self.size * self.size))
        marks = self.size >= 128
        for part, source in zip(asked.split(per_chunk), shown.split(per_chunk), strict=True):
            images = alignment.images[source.to(alignment.index.device)].cpu().numpy()
            regions = segments.labels[source.to(segments.labels.device)].cpu().numpy()
            if self.probe == "mirror":
                images, regions = np.flip(images, -1), np.flip(regions, -1)
            pictures = render(images, regions, size=self.size, order=colours[source].numpy(), marks=marks)
            if self.probe == "image_free":
                pictures = [tuple(np.zeros_like(p) for p in three) for three in pictures]  # type: ignore[misc]
            present = segments.nonempty.cpu()[part]
            yield [
                _Pictures(
                    int(position),
                    three,
                    tuple(int(c) if there else -1 for c, there in zip(row, seen, strict=True)),
                )
                for position, three, row, seen in zip(
                    part.tolist(), pictures, colours[part].tolist(), present.tolist(), strict=True
                )
            ]

    def query(self, pictures: _Pictures, class_name: str, specification: Specification) -> Query:
        """The first question about one image."""
        colours = pictures.names(reverse=self.probe == "order")
        decoding = Decoding(self.max_answer, self.temperature, seed=1 if self.probe == "repeat" else 0)
        if self.style == "short":
            from methods.lvlm_va.embedded.question import build

            core, spurious = specification.core, specification.spurious
            prompt, schema = build(class_name, core, spurious, colours)
            return Query(
                prompt, pictures.images, schema=schema, decoding=replace(decoding, max_tokens=12 * len(colours) + 8)
            )
        name = "critic_paraphrase" if self.probe == "paraphrase" else "critic"
        if self.style == "critique_and_judge":
            return Query(
                self.wording.critic(class_name, specification, colours, name), pictures.images, decoding=decoding
            )
        prompt = self.wording.critic(class_name, specification, colours, "one_call")
        return Query(prompt, pictures.images, schema=verdict_schema(colours), decoding=decoding)


@dataclass(frozen=True)
class _Pictures:
    """One image to ask about: position in the alignment set, its three pictures, the palette index of every segment."""

    position: int
    images: tuple[RGB, RGB, RGB]
    colours: tuple[int, ...]

    def names(self, reverse: bool = False) -> list[str]:
        """Names of the colours that are present, in the palette's order."""
        known = colour_names(len(PALETTE) if max(self.colours) < len(PALETTE) else max(self.colours) + 1)
        present = sorted((c for c in self.colours if c >= 0), reverse=reverse)
        return [known[c] for c in present]

    def by_segment(self, answer: Mapping[str, str]) -> dict[int, int]:
        """Segment -> verdict from colour -> word."""
        known = colour_names(max(max(self.colours) + 1, len(PALETTE)))
        return {
            j: SPURIOUS if answer[known[c]] == "spurious" else RELEVANT for j, c in enumerate(self.colours) if c >= 0
        }


class _Session:
    """All questions of one source about one split: client, meter and counts."""

    def __init__(self, source: Critic, context: RunContext, meter: Meter):
        self.source, self.context, self.meter = source, context, meter
        self.client = source.client
        if source.record and context.recordings is not None and source.client.info.name != "recorded":
            from harness.lvlm.recorded import Recorded

            self.client = Recorded(of=source.client, folder=str(context.recordings))
        self.asked_again = 0
        self.replayed = Usage()
        self.failures: dict[str, int] = {}

    def answer(
        self, chunk: Sequence[_Pictures], names: Sequence[str], given: Sequence[Specification]
    ) -> list[Critique]:
        """Critiques of one chunk of images."""
        source = self.source
        queries = [source.query(p, name, spec) for p, name, spec in zip(chunk, names, given, strict=True)]
        first = self._ask(queries)
        if source.style != "critique_and_judge":
            return [self._critique(p, r, r) for p, r in zip(chunk, first, strict=True)]
        heard = [k for k, reply in enumerate(first) if isinstance(reply, Answer)]
        judging = [
            Query(
                source.wording.judge(first[k].text, chunk[k].names()),  # type: ignore[union-attr]
                schema=verdict_schema(chunk[k].names()),
                decoding=Decoding(12 * len(chunk[k].colours) + 32),
            )
            for k in heard
        ]
        second = dict(zip(heard, self._ask(judging), strict=True))
        return [
            self._critique(p, reply, second.get(k, reply))
            for k, (p, reply) in enumerate(zip(chunk, first, strict=True))
        ]

    def _ask(self, queries: Sequence[Query]) -> list[Reply]:
        replies, again = ask_twice(self.client, queries, self.meter)
        self.asked_again += again
        for reply in replies:
            if isinstance(reply, Answer) and reply.replayed:
                self.replayed = self.replayed + reply.usage
        return replies

    def _critique(self, pictures: _Pictures, critic: Reply, judge: Reply) -> Critique:
        text = critic.text if isinstance(critic, Answer) else ""
        if isinstance(judge, Failure):
            self.failures[judge.kind] = self.failures.get(judge.kind, 0) + 1
            return Critique(pictures.position, pictures.colours, text, {}, f"{judge.kind}: {judge.message}")
        return Critique(pictures.position, pictures.colours, text, pictures.by_segment(judge.value))

    def close(self, task: Task, split: str, critiques: Sequence[Critique]) -> None:
        """Charge what was consumed, replayed answers too: a replay saves calls now, not the knowledge."""
        total = self.meter.used + self.replayed
        for name, amount in total.as_dict().items():
            if name not in ("seconds", "retries") and amount:
                task.ledger.add(f"lvlm_{name}/{split}", amount)
        self.context.clock.charge_stage("critique", f"lvlm/{split}", self.replayed.seconds)
        notes = {
            "model": self.client.identity,
            "describes": self.source.describes,
            "style": self.source.style,
            "prompts": self.source.wording.hash,
            "asked": len(critiques),
            "asked_again": self.asked_again,
            "failures": self.failures,
            "usage": total.as_dict(),
            "calls_made_now": self.meter.used.calls,
        }
        self.context.note(**{f"lvlm_{split}": notes})


def assign_colours(segments: Segments, context: RunContext, stream: str) -> Tensor:
    """Palette index of every segment, int64 [N, J]: a random choice for each image, so that no colour means a rank."""
    palette = max(len(PALETTE), segments.count)
    draws = torch.rand(len(segments.labels), palette, generator=context.generator(stream))
    return draws.argsort(1)[:, : segments.count]
