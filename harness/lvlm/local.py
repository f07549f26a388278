"""A vision-language model in this process: padded batches, constrained JSON, greedy or seeded decoding."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.lvlm.client import CapReached, Client, Failure, Meter, OnReply, Query, Reply, Usage
from harness.lvlm.reading import read_answer
from harness.lvlm_info import LOCAL

if TYPE_CHECKING:
    from torch import Tensor

    from harness.lvlm.local_model import Loaded

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Local(Client):
    """Any `AutoModelForImageTextToText` with an `AutoProcessor` and a chat template, from a folder or by its hub id.

    Code from a checkpoint is never run and only safetensors weights are read. The checkpoint's own sampling settings
    are not used: temperature 0 is plain greedy decoding, otherwise a draw from the plain softmax whose random numbers
    hang on the question alone.

    Batched answers are those of asking one by one, up to floating point: padding and batch size change the last digits
    of the logits, and where two tokens tie within them the choice can differ. Batches are formed from sorted questions,
    so that the same set of questions gives the same batches in whatever order it comes.

    Args:
        path: a folder made by `save_pretrained`, or a hub id. revision: branch, tag or commit of a hub id.
        batch: questions per `generate` call; halved by itself where memory runs out.
        device: auto, cpu, cuda or cuda:N. dtype: auto (as saved), float32, bfloat16 or float16.
    """

    info = LOCAL

    def __init__(
        self, path: str, revision: str = "main", batch: int = 8, device: str = "auto", dtype: str = "auto"
    ) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch is a whole number of at least 1, got {batch!r}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
        if device not in ("auto", "cpu") and not device.startswith("cuda"):
            raise ValueError(f"device is auto, cpu or cuda, got {device!r}")
        self.path = str(path)
        self.revision = str(revision)
        self.batch = batch
        self.device = device
        self.dtype = dtype

    @property
    def params(self) -> dict[str, Any]:
        """The weights' place and precision; batch and device change an answer only where two tokens tie."""
        return {"path": self.path, "revision": self.revision, "dtype": self.dtype}

    @property
    def identity(self) -> dict[str, Any]:
        """`model` (sha256 of a folder's content, or hub id with its commit as `revision`) and `dtype`.

        Raises:
            Skipped: there is no such model here.
        """
        from harness.lvlm.local_model import weights_identity

        return {**weights_identity(self.path, self.revision), "dtype": self.dtype}

    def ask(self, queries: Sequence[Query], meter: Meter, on_reply: OnReply | None = None) -> list[Reply]:
        """Ask in batches; `on_reply` gets a batch's replies when the batch is done.

        Raises:
            CapReached: after the questions that the cap still admitted.
            Skipped: the model or the device is missing. ConfigError: the checkpoint is of another kind.
        """
        replies: dict[int, Reply] = {}
        if not queries:
            return []
        from harness.lvlm.local_model import load

        loaded = load(self.path, self.revision, self.device, self.dtype)
        for batch in self._batches(queries):
            admitted, reached = _admit(batch, meter)
            for k, reply in zip(admitted, self._answer(loaded, [queries[k] for k in admitted]), strict=True):
                meter.book(reply.usage)
                replies[k] = reply
                if on_reply is not None:
                    on_reply(k, reply)
            if reached is not None:
                raise reached
        return [replies[k] for k in range(len(queries))]

    def close(self) -> None:
        """Give the memory of this process's loaded models back; the next `ask` loads again."""
        from harness.lvlm.local_model import unload

        unload()

    def _batches(self, queries: Sequence[Query]) -> Iterator[list[int]]:
        """Positions, grouped by token limit and number of images, similar lengths together."""

        def group(k: int) -> tuple[int, int]:
            return queries[k].decoding.max_tokens, len(queries[k].images)

        def order(k: int) -> tuple[Any, ...]:
            query = queries[k]
            area = sum(image.shape[0] * image.shape[1] for image in query.images)
            return (*group(k), area, len(query.system) + len(query.prompt), json.dumps(query.content, sort_keys=True))

        for _, members in groupby(sorted(range(len(queries)), key=order), key=group):
            alike = list(members)
            for start in range(0, len(alike), self.batch):
                yield alike[start : start + self.batch]

    def _answer(self, loaded: Loaded, queries: Sequence[Query]) -> list[Reply]:
        """Compile the schemas and generate; a question whose schema has no grammar is refused alone."""
        grammars: dict[int, Any] = {}
        replies: dict[int, Reply] = {}
        for k, query in enumerate(queries):
            try:
                grammars[k] = _grammar(loaded, query)
            except (RuntimeError, ValueError) as error:
                message = f"the schema cannot be made a grammar: {str(error)[:150]}"
                replies[k] = Failure("refused", message, Usage(calls=1))
        rows = list(grammars)
        if rows:
            answers = _generate(loaded, [queries[k] for k in rows], list(grammars.values()))
            replies.update(zip(rows, answers, strict=True))
        return [replies[k] for k in range(len(queries))]


def _admit(batch: Sequence[int], meter: Meter) -> tuple[list[int], CapReached | None]:
    admitted: list[int] = []
    for k in batch:
        try:
            meter.admit()
        except CapReached as error:
            return admitted, error
        admitted.append(k)
    return admitted, None


def _grammar(loaded: Loaded, query: Query) -> Any:
    """Grammar of a query's schema without free white space, in which a small model can lose itself."""
    if query.schema is None:
        return None
    return loaded.compiler.compile_json_schema(json.dumps(dict(query.schema)), any_whitespace=False)


def _generate(loaded: Loaded, queries: Sequence[Query], grammars: Sequence[Any]) -> list[Reply]:
    """One padded `generate`; where memory runs out, two of half the size."""
    import torch

    try:
        return _generate_once(loaded, queries, grammars)
    except torch.OutOfMemoryError:
        if len(queries) == 1:
            return [Failure("server", "no memory on the device for this question alone", Usage(calls=1))]
    torch.cuda.empty_cache()
    half = len(queries) // 2
    return [
        *_generate(loaded, queries[:half], grammars[:half]),
        *_generate(loaded, queries[half:], grammars[half:]),
    ]


def _generate_once(loaded: Loaded, queries: Sequence[Query], grammars: Sequence[Any]) -> list[Reply]:
    import torch
    from transformers import LogitsProcessorList

    from harness.lvlm.constrained import RowwiseDecoding

    start = time.perf_counter()
    inputs = encode(loaded, queries)
    limit = queries[0].decoding.max_tokens
    decoding = RowwiseDecoding(grammars, queries, loaded.vocabulary, loaded.words)
    with torch.inference_mode():
        output = loaded.model.generate(
            **inputs,
            max_new_tokens=limit,
            do_sample=False,
            logits_processor=LogitsProcessorList([decoding]),
        )
    prompt = inputs["input_ids"].shape[1]
    lengths = inputs["attention_mask"].sum(1).tolist()
    seconds = (time.perf_counter() - start) / len(queries)
    return [
        _read(loaded, query, row, Usage(1, int(length), 0, seconds))
        for query, row, length in zip(queries, output[:, prompt:], lengths, strict=True)
    ]


def _read(loaded: Loaded, query: Query, row: Tensor, usage: Usage) -> Reply:
    """The tokens before the first stop token are the answer; without one it was cut off."""
    tokens = row.tolist()
    end = next((k for k, token in enumerate(tokens) if token in loaded.stops), None)
    usage = usage + Usage(completion_tokens=len(tokens) if end is None else end + 1)
    if end is None:
        return Failure("truncated", f"no end within {query.decoding.max_tokens} tokens", usage)
    decode = loaded.processor.tokenizer.decode
    text = decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return read_answer(query, text, usage)


def encode(loaded: Loaded, queries: Sequence[Query]) -> Any:
    """Chat template, images and padding of a batch: the model's inputs on its device.

    Raises:
        ConfigError: the checkpoint's template or processor refuses such a question.
    """
    import jinja2

    try:
        inputs = loaded.processor.apply_chat_template(
            [_conversation(query) for query in queries],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        shape = f"{len(queries[0].images)} image(s), {'a' if queries[0].system else 'no'} system turn"
        raise ConfigError(f"this checkpoint's chat template cannot take a question ({shape}): {error}") from error
    inputs = inputs.to(loaded.device)
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(loaded.model.dtype)
    return inputs


def _conversation(query: Query) -> list[dict[str, Any]]:
    from PIL import Image

    pictures = [{"type": "image", "image": Image.fromarray(image)} for image in query.images]
    turns: list[dict[str, Any]] = [{"role": "user", "content": [*pictures, {"type": "text", "text": query.prompt}]}]
    if query.system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": query.system}]})
    return turns
