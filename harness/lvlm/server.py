"""An OpenAI-compatible endpoint as a client: bounded concurrency, total time-outs, retries, every attempt counted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from harness.lvlm.attempt import Endpoint
from harness.lvlm.client import Client, Meter, OnReply, Query, Reply
from harness.lvlm.conversation import Conversation
from harness.lvlm_info import SERVER

Event = tuple[str, Any]


class Server(Client):
    """Any server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, hosted ones.

    A schema is sent as `response_format`, but servers may ignore it: every answer is checked here. A failed attempt
    (connection, time-out, 408, 409, 425, 429, 5xx, a reply that is no completion) is tried again up to `retries` times
    with growing, jittered pauses; `Retry-After` holds back every question, and one that asks for more than `patience`
    seconds is not waited for. Each attempt is admitted by the meter and counted.

    Args:
        url: base address, e.g. http://127.0.0.1:8000/v1. model: the server's name for the model.
        revision: your name for its version; a new one makes recorded answers of the old one unused.
        concurrency: questions in flight. timeout: seconds for one attempt from its start to its last byte.
        retries: further attempts after the first. patience: longest `Retry-After` that is waited for, seconds.
        key_env: environment variable that holds the key ('' = send none).
        price_in, price_out: price of a million prompt and completion tokens.
        extra: fields for the request's body, null removes one; e.g. {max_tokens: null, max_completion_tokens: 900}.
    """

    info = SERVER

    def __init__(
        self,
        url: str,
        model: str,
        revision: str = "",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
        patience: float = 300.0,
        key_env: str = "OPENAI_API_KEY",
        price_in: float = 0.0,
        price_out: float = 0.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        _check_address(url)
        if concurrency < 1 or retries < 0 or timeout <= 0 or patience < 0 or price_in < 0 or price_out < 0:
            raise ValueError("concurrency is at least 1, timeout above 0, retries, patience and prices at least 0")
        self.url = url.rstrip("/")
        self.model = str(model)
        self.revision = str(revision)
        self.concurrency = int(concurrency)
        self.timeout = float(timeout)
        self.retries = int(retries)
        self.patience = float(patience)
        self.key_env = key_env
        self.prices = (float(price_in), float(price_out))
        self.extra = dict(extra or {})
        self.pause = 0.5  # seconds before the first retry; doubles with each

    @property
    def params(self) -> dict[str, Any]:
        """Model, revision and extra fields; neither address nor key nor time-outs."""
        return self.identity

    @property
    def identity(self) -> dict[str, Any]:
        """`model` and, where given, `revision` and `extra`: the weights behind a name cannot be seen from here."""
        named = {"model": self.model, "revision": self.revision, "extra": self.extra}
        return {name: value for name, value in named.items() if value}

    def ask(self, queries: Sequence[Query], meter: Meter, on_reply: OnReply | None = None) -> list[Reply]:
        """Ask with up to `concurrency` questions in flight, from any thread, inside a running event loop too.

        When a cap is reached or the server turns out to be of no use, no question is sent any more, those in flight are
        waited for and handed to `on_reply`, and then the error is raised.

        Raises:
            CapReached: a cap of the meter.
            VabenchError: never reached or gone for good, key refused, or no such model or address.
        """
        if not queries:
            return []
        replies: dict[int, Reply] = {}
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        conversation = Conversation(
            self._endpoint(), queries, meter, lambda k, reply: events.put(("reply", (k, reply)))
        )
        with _LoopThread(conversation, events):
            while True:
                kind, value = events.get()
                if kind == "end":
                    break
                k, reply = value
                replies[k] = reply
                if on_reply is not None:
                    on_reply(k, reply)
        error = value if value is not None else conversation.fatal
        if error is not None:
            raise error
        return [replies[k] for k in range(len(queries))]

    def _endpoint(self) -> Endpoint:
        """The key is read here, at the last moment, and lives no longer than the call."""
        return Endpoint(
            url=self.url,
            model=self.model,
            key=os.environ.get(self.key_env, "").strip() if self.key_env else "",
            key_env=self.key_env,
            timeout=self.timeout,
            concurrency=self.concurrency,
            retries=self.retries,
            patience=self.patience,
            pause=self.pause,
            prices=self.prices,
            extra=self.extra,
        )


class _LoopThread:
    """Runs a conversation in an event loop of its own thread; leaving early (Ctrl-C, an error) cancels it."""

    def __init__(self, conversation: Conversation, events: queue.SimpleQueue[Event]):
        self.conversation = conversation
        self.events = events
        self.cancel: Callable[[], object] | None = None
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, name="vabench-server", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.ready.wait()
            if self.cancel is not None:
                self.cancel()
        self.thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            self.events.put(("end", None))
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.events.put(("end", error))
        else:
            self.events.put(("end", None))
        finally:
            self.ready.set()

    async def _main(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)

        self.cancel = cancel
        self.ready.set()
        await self.conversation.run()


def _check_address(url: str) -> None:
    """An address is written to logs and errors, so it holds no secret."""
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url is a base address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("url holds no user, password or query; the key comes from the variable that key_env names")
