"""Many questions to one server: who may send when, what is tried again, and when to give up altogether."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import ConfigError, VabenchError
from harness.lvlm.attempt import (
    MAX_BODY,
    Endpoint,
    NoCompletion,
    StatusError,
    TooLong,
    post,
    read_completion,
    request_body,
    status_kind,
)
from harness.lvlm.client import CapReached, Failure, FailureKind, Meter, Query, Reply, Usage

LONGEST_PAUSE = 30.0  # seconds between two attempts, unless the server asks for more


@dataclass(frozen=True)
class Outcome:
    """What one attempt gave: a reply, whether to try again, and how long the server asks to wait (seconds)."""

    reply: Reply
    again: bool = False
    wait: float | None = None


class Conversation:
    """Asks `queries` once and hands every reply to `deliver`; `fatal` says why it ended early.

    Lives in one event loop. `deliver` is called in that loop's thread and must not block.
    """

    def __init__(
        self, endpoint: Endpoint, queries: Sequence[Query], meter: Meter, deliver: Callable[[int, Reply], None]
    ):
        self.endpoint = endpoint
        self.queries = queries
        self.meter = meter
        self.deliver = deliver
        self.fatal: VabenchError | None = None
        self.answered = 0
        self.contacted = False
        self.silent = 0  # questions in a row that exhausted their attempts without a word from the server
        self.not_before = 0.0  # monotonic time before which no attempt is sent (Retry-After)
        self.jitter = random.Random()  # spreads load only; no answer depends on it

    async def run(self) -> None:
        """Ask all questions, `concurrency` at a time. Ends early once `fatal` is set, when those in flight are done."""
        self.stop = asyncio.Event()
        waiting = iter(range(len(self.queries)))
        count = min(self.endpoint.concurrency, len(self.queries))
        client = self.endpoint.open()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._work(client, waiting))
        finally:
            with contextlib.suppress(Exception):
                await client.close()

    async def _work(self, client: Any, waiting: Iterator[int]) -> None:
        for k in waiting:
            reply = await self._one(client, self.queries[k])
            if reply is not None:
                self.answered += not isinstance(reply, Failure)
                self.deliver(k, reply)
            if self.stop.is_set():
                return

    async def _one(self, client: Any, query: Query) -> Reply | None:
        """A question with its retries; None if the conversation ended before it had a reply."""
        body = await asyncio.to_thread(request_body, self.endpoint, query)
        spent = Usage()
        for attempt in range(self.endpoint.retries + 1):
            if not await self._may_send():
                return None
            outcome = await self._attempt(client, query, body)
            cost = replace(outcome.reply.usage, retries=int(attempt > 0))
            self.meter.book(cost)
            spent = spent + cost
            final = not outcome.again or attempt == self.endpoint.retries
            if final or not await self._pause(attempt, outcome.wait):
                reply = replace(outcome.reply, usage=spent)
                self._judge(reply)
                return None if self._is_of_the_run(reply) else reply
        return None

    async def _may_send(self) -> bool:
        """Wait for a `Retry-After` that holds all back, then ask the meter."""
        while (left := self.not_before - time.monotonic()) > 0 and not self.stop.is_set():
            await self._sleep(left)
        if self.stop.is_set():
            return False
        try:
            self.meter.admit()
        except CapReached as error:
            self._end(error)
            return False
        return True

    async def _pause(self, attempt: int, wait: float | None) -> bool:
        """Wait before the next attempt; False if there should be none."""
        if wait is not None and wait > self.endpoint.patience:
            return False
        pause = min(LONGEST_PAUSE, self.endpoint.pause * 2**attempt) * self.jitter.uniform(0.75, 1.25)
        if wait is not None:
            self.not_before = max(self.not_before, time.monotonic() + wait)
        await self._sleep(max(pause, wait or 0.0))
        return not self.stop.is_set()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()

    async def _attempt(self, client: Any, query: Query, body: dict[str, Any]) -> Outcome:
        """Send once. The time-out is one for the whole attempt, so that a slow drip meets it too."""
        import openai

        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                answer = await post(client, body)
            self._heard()
            return Outcome(read_completion(self.endpoint, query, answer, time.perf_counter() - start))
        except (TimeoutError, openai.APITimeoutError):
            failure = Failure("timeout", f"no whole answer within {self.endpoint.timeout:g} s")
            outcome = Outcome(failure, again=True)
        except StatusError as error:
            self._heard()
            outcome = self._refused(error)
        except TooLong:
            self._heard()
            outcome = Outcome(Failure("too long", f"more than {MAX_BODY} bytes; the rest was not read"))
        except NoCompletion as error:
            self._heard()
            outcome = Outcome(Failure("server", f"the answer is no chat completion: {error}"), again=True)
        except Exception as error:  # the connection's errors differ by library and carry the request with its key
            kind = _connection_failure(error)
            if kind is None:
                raise
            text = self.endpoint.brief(f"{type(error).__name__}: {error.__cause__ or error}")
            outcome = Outcome(Failure(kind, text), again=True)
        usage = Usage(calls=1, seconds=time.perf_counter() - start)
        return replace(outcome, reply=replace(outcome.reply, usage=usage))

    def _refused(self, error: StatusError) -> Outcome:
        """An HTTP error status. Of the key and of the model's name it says something about every question."""
        page = self.endpoint.brief(error.page)
        kind, again = status_kind(error.status)
        place = f"model '{self.endpoint.model}' at {self.endpoint.url}"
        if error.status in (401, 403):
            given = f"the key in ${self.endpoint.key_env}" if self.endpoint.key else "a request without a key"
            hint = f"; set ${self.endpoint.key_env}" if self.endpoint.key_env and not self.endpoint.key else ""
            self._end(ConfigError(f"{place}: the server refuses {given} (HTTP {error.status}){hint}: {page}"))
        elif error.status == 404:
            self._end(ConfigError(f"{place}: the server knows no such model or address (HTTP 404): {page}"))
        elif error.retry_after is not None and error.retry_after > self.endpoint.patience:
            self._end(
                VabenchError(
                    f"{place}: the server asks to wait {error.retry_after:.0f} s (HTTP {error.status}), more than "
                    f"patience={self.endpoint.patience:g}; {self.answered} answers of this call had arrived: run the "
                    f"same command again later"
                )
            )
        return Outcome(Failure(kind, f"HTTP {error.status}: {page}"), again, error.retry_after)

    def _heard(self) -> None:
        self.contacted = True
        self.silent = 0

    def _judge(self, reply: Reply) -> None:
        """Give up where the server was never reached, or is silent to one question after the other."""
        if not isinstance(reply, Failure) or reply.kind not in ("unreachable", "timeout"):
            return
        self.silent += 1
        place = f"the server at {self.endpoint.url}"
        if not self.contacted and reply.kind == "unreachable":
            self._end(
                VabenchError(
                    f"{place} cannot be reached ({self.endpoint.retries + 1} attempts; {reply.message}); start it, or "
                    f"correct url=..."
                )
            )
        elif self.silent >= max(3, self.endpoint.concurrency):
            self._end(
                VabenchError(
                    f"{place} no longer answers ({self.silent} questions in a row, the last: {reply.message}); "
                    f"{self.answered} answers of this call had arrived: run the same command again when it is back"
                )
            )

    def _is_of_the_run(self, reply: Reply) -> bool:
        """True for a failure that says nothing about its own question: the run's error stands for it."""
        return self.fatal is not None and isinstance(reply, Failure) and reply.kind in ("unreachable", "refused")

    def _end(self, error: VabenchError) -> None:
        if self.fatal is None:
            self.fatal = error
        self.stop.set()


def _connection_failure(error: Exception) -> FailureKind | None:
    """Kind of an error of the connection: the SDK's, its HTTP library's while a body is read, the system's."""
    import openai

    names = {kind.__name__ for kind in type(error).__mro__}
    if "TimeoutException" in names:
        return "timeout"
    known = isinstance(error, openai.APIConnectionError | OSError) or bool(names & {"TransportError", "HTTPError"})
    return "unreachable" if known else None
