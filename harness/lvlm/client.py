"""What a question to a vision-language model is, what comes back, and what it costs: the contract of every back end.

A back end never raises for one question's failure: it returns a `Failure`, and the others go on. It raises only where
no question can be answered (no such model, a cap reached, a key that the server refuses).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import VabenchError
from harness.lvlm_info import ClientInfo

RGB = npt.NDArray[np.uint8]
MAX_ANSWER = 65_536  # characters; a longer answer is a failure, whatever it says
FailureKind = Literal["unreachable", "timeout", "busy", "server", "refused", "truncated", "too long", "invalid"]


class CapReached(VabenchError):
    """A hard limit on calls, tokens or money. Every answer so far is recorded; a higher limit goes on from there."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded. temperature 0 is greedy. `attempt` tells a retry from the first try."""

    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    attempt: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values: part of a question's identity."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "attempt": self.attempt,
        }


@dataclass(frozen=True)
class Query:
    """One question.

    system: standing instruction ('' = none). prompt: the text of the user's turn. images: RGB uint8 [H, W, 3] each,
    shown before the text in this order. schema: JSON schema that the answer must satisfy; None = free text.
    """

    prompt: str
    images: tuple[RGB, ...] = ()
    system: str = ""
    schema: Mapping[str, Any] | None = None
    decoding: Decoding = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        for image in self.images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"an image of a query is RGB uint8 [H, W, 3], got {image.dtype} {image.shape}")

    @cached_property
    def content(self) -> dict[str, Any]:
        """Everything that the answer may depend on besides the model, images by their sha256."""
        pictures = [
            hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
            for image in self.images
        ]
        return {
            "system": self.system,
            "prompt": self.prompt,
            "images": pictures,
            "schema": self.schema,
            "decoding": self.decoding.as_dict(),
        }

    def key(self, model: Mapping[str, Any]) -> str:
        """Content address of this question to this model (`Client.identity`): sha256, hex."""
        text = json.dumps({"model": dict(model), **self.content}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Usage:
    """What one or more calls cost. calls counts every attempt that reached the model; seconds is busy time."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    price: float = 0.0  # in the currency of the client's prices; 0 where none were given

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.retries + other.retries,
            self.price + other.price,
        )

    def as_dict(self) -> dict[str, float]:
        """Plain values by field name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Answer:
    """A usable answer. value: the parsed and schema-checked JSON, or None for free text. replayed: no call was made."""

    text: str
    value: Any = None
    usage: Usage = field(default_factory=Usage)
    replayed: bool = False


@dataclass(frozen=True)
class Failure:
    """A question that got no usable answer, and why (for the ledger; never the server's raw text at length)."""

    kind: FailureKind
    message: str
    usage: Usage = field(default_factory=Usage)


Reply = Answer | Failure
OnReply = Callable[[int, Reply], None]


@dataclass
class Meter:
    """Counts usage against hard caps (None = no limit). One meter serves one mask source in one cell.

    `admit` before a call, `book` after it. Calls in flight count as admitted, so that a cap is never passed; tokens and
    money can be passed by the calls in flight only, whose size nobody knows before.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_price: float | None = None
    used: Usage = field(default_factory=Usage)
    admitted: int = 0

    def admit(self) -> None:
        """Let one more call through.

        Raises:
            CapReached: one of the caps is used up.
        """
        tokens = self.used.prompt_tokens + self.used.completion_tokens
        reached = (
            ("calls", self.max_calls, self.admitted),
            ("tokens", self.max_tokens, tokens),
            ("price", self.max_price, self.used.price),
        )
        for name, cap, now in reached:
            if cap is not None and now >= cap:
                raise CapReached(
                    f"the cap on {name} of the vision-language model is used up ({now:g} of {cap:g}); answers so far "
                    f"are recorded: raise max_{name} and run the same command again to go on from there"
                )
        self.admitted += 1

    def book(self, usage: Usage) -> None:
        """Count what a call cost, whether or not its answer was usable."""
        self.used = self.used + usage


class Client(ABC):
    """Base of the back ends. The constructor takes parameters by keyword and opens nothing: `ask` does."""

    info: ClassVar[ClientInfo]

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Parameters that can change an answer, JSON-serialisable; no key, no host, no time-out."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Model and revision (weights' hash where they are at hand): part of every question's content address."""

    @abstractmethod
    def ask(self, queries: Sequence[Query], meter: Meter, on_reply: OnReply | None = None) -> list[Reply]:
        """Ask all questions; one reply each, in their order.

        Args:
            queries: questions. meter: counts and caps. on_reply: called with (position, reply) as soon as one arrives,
                from the caller's thread, so that it can be written down before the next.

        Raises:
            CapReached: a cap was used up; replies that had arrived were handed to `on_reply`.
            VabenchError: no question can be answered at all.
        """

    def close(self) -> None:  # noqa: B027  (a back end that holds nothing open has nothing to close)
        """Free connections and memory. `ask` may be called again afterwards."""


def parse(query: Query, text: str) -> Answer | Failure:
    """Turn a model's text into an answer: parsed and checked against the query's schema, where it has one.

    The text may be wrapped in a Markdown code fence; nothing else is repaired and nothing is guessed.
    """
    if len(text) > MAX_ANSWER:
        return Failure("too long", f"an answer of {len(text)} characters, more than {MAX_ANSWER}")
    if query.schema is None:
        return Answer(text)
    body = text.strip()
    if body.startswith("```") and body.endswith("```"):
        body = body.strip("`").removeprefix("json").strip()
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return Failure("invalid", f"not JSON: {str(error)[:120]}")
    from jsonschema.exceptions import best_match

    fault = best_match(_validator(json.dumps(query.schema)).iter_errors(value))
    if fault is not None:
        return Failure("invalid", f"does not fit the schema at {fault.json_path}: {fault.message[:120]}")
    return Answer(text, value)


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    """The validator of a schema as JSON: to check the schema itself takes longer than thirty answers."""
    from jsonschema.validators import validator_for

    read = json.loads(schema)
    kind = validator_for(read)
    kind.check_schema(read)
    return kind(read)


def ask_twice(client: Client, queries: Sequence[Query], meter: Meter) -> tuple[list[Reply], int]:
    """Ask, and ask once more where the answer was invalid or cut off.

    Returns the replies and how many questions were asked again.

    The second question differs in `attempt` and seed only, so that a recording holds both apart.
    """
    replies = client.ask(queries, meter)
    again = [k for k, reply in enumerate(replies) if isinstance(reply, Failure) and _worth_asking_again(reply)]
    if again:
        retried = [_second(queries[k]) for k in again]
        for k, reply in zip(again, client.ask(retried, meter), strict=True):
            replies[k] = reply
    return replies, len(again)


def _worth_asking_again(reply: Failure) -> bool:
    return reply.kind in ("invalid", "truncated", "too long")


def _second(query: Query) -> Query:
    old = query.decoding
    decoding = Decoding(old.max_tokens, old.temperature, old.seed + 1, old.attempt + 1)
    return Query(query.prompt, query.images, query.system, query.schema, decoding)
