"""One attempt at one question against an OpenAI-compatible server: request, bounded reading, what went wrong."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.lvlm.client import RGB, Failure, FailureKind, Query, Reply, Usage
from harness.lvlm.reading import plain_text, read_answer

MAX_BODY = 2 * 2**20  # bytes of one HTTP answer; an answer of MAX_ANSWER characters fits however it is escaped
MAX_ERROR = 4096  # bytes of an error page that are read at all
MOST_TOKENS = 10**12  # that a server may claim; more is no count
SECRET = 8  # characters; a shorter "key" (none, EMPTY) is a placeholder and hides nothing
RETRIED = (408, 409, 425, 429)


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. The key is in no representation."""

    url: str
    model: str
    timeout: float
    concurrency: int
    retries: int
    patience: float
    pause: float
    prices: tuple[float, float]
    extra: Mapping[str, Any]
    key_env: str = ""
    key: str = field(default="", repr=False)

    def scrub(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "***") if len(self.key) >= SECRET else text

    def brief(self, text: str) -> str:
        """The start of a server's message, on one line, without the key."""
        return " ".join(plain_text(self.scrub(text)).split())[:160]

    def open(self) -> Any:
        """An `openai.AsyncOpenAI` that retries nothing itself, follows no redirect and reads no long error page."""
        import openai

        limits = {"event_hooks": {"response": [_refuse_errors]}, "follow_redirects": False}
        return openai.AsyncOpenAI(
            api_key=self.key or "none",
            base_url=self.url,
            max_retries=0,
            timeout=self.timeout,
            http_client=openai.DefaultAsyncHttpxClient(**limits),  # type: ignore[arg-type]
            default_headers={"Accept-Encoding": "identity"},  # what is read is what was sent: no zip bombs
        )

    def price(self, prompt: int, completion: int) -> float:
        """Price of one attempt."""
        return (prompt * self.prices[0] + completion * self.prices[1]) / 1e6


class StatusError(Exception):
    """An HTTP status other than 2xx, with the start of its page."""

    def __init__(self, status: int, page: str, retry_after: float | None):
        super().__init__(f"HTTP {status}")
        self.status = status
        self.page = page
        self.retry_after = retry_after


class TooLong(Exception):
    """The body passed MAX_BODY; the rest was not read."""


class NoCompletion(Exception):
    """HTTP 200, but the body is no chat completion."""


async def _refuse_errors(response: Any) -> None:
    """Turn an error status into `StatusError` after at most MAX_ERROR bytes of its page."""
    if response.is_success:
        return
    page = b""
    async for chunk in response.aiter_raw():
        page += chunk
        if len(page) >= MAX_ERROR:
            break
    await response.aclose()
    wait = retry_after(response.headers.get("retry-after"), time.time())
    raise StatusError(response.status_code, page[:MAX_ERROR].decode(errors="replace"), wait)


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header (seconds or an HTTP date); None where none can be read."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds and seconds < float("inf") else None


async def post(client: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request and read its answer, at most MAX_BODY bytes of it.

    Raises:
        StatusError, TooLong, NoCompletion: see there; errors of the connection as the library has them.
    """
    body = dict(body)
    messages, model = body.pop("messages"), body.pop("model")
    call = client.chat.completions.with_streaming_response.create(messages=messages, model=model, extra_body=body)
    async with call as response:
        content = bytearray()
        async for chunk in response.iter_bytes(65_536):
            content += chunk
            if len(content) > MAX_BODY:
                raise TooLong
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise NoCompletion("not JSON") from None
    if not isinstance(answer, dict):
        raise NoCompletion("no JSON object")
    return answer


def request_body(endpoint: Endpoint, query: Query) -> dict[str, Any]:
    """The JSON of a question."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in query.images]
    content = [*pictures, {"type": "text", "text": query.prompt}] if pictures else query.prompt
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if query.system:
        messages.insert(0, {"role": "system", "content": query.system})
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "max_tokens": query.decoding.max_tokens,
        "temperature": query.decoding.temperature,
        "seed": query.decoding.seed,
    }
    if query.schema is not None:
        schema = dict(query.schema)
        form = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    body.update(endpoint.extra)
    return {name: value for name, value in body.items() if value is not None}


def data_url(image: RGB) -> str:
    """A PNG as a data URL: lossless, so that the server sees the pixels that the question's key was made of."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def is_strict(schema: Any) -> bool:
    """True if every object of the schema is closed and requires all its properties: what `strict` needs elsewhere."""
    if isinstance(schema, list):
        return all(is_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(schema.get("properties", {})):
            return False
    return all(is_strict(part) for part in schema.values())


def read_completion(endpoint: Endpoint, query: Query, answer: Mapping[str, Any], seconds: float) -> Reply:
    """The reply in a chat completion.

    Raises:
        NoCompletion: it is none.
    """
    usage = _usage(endpoint, answer, seconds)
    try:
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text = message.get("content")
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoCompletion("no choices[0].message") from None
    if reason == "length":
        return Failure("truncated", f"no end within {query.decoding.max_tokens} tokens", usage)
    if reason == "content_filter" or refusal:
        said = endpoint.brief(str(refusal or "its content filter"))
        return Failure("refused", f"the model refused: {said}", usage)
    if not isinstance(text, str):
        return Failure("invalid", "an answer without text", usage)
    return read_answer(query, endpoint.scrub(text), usage)


def _usage(endpoint: Endpoint, answer: Mapping[str, Any], seconds: float) -> Usage:
    """Tokens as the server counts them, 0 where it does not say."""
    told = answer.get("usage")
    numbers = [told.get(name) if isinstance(told, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (
        n if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MOST_TOKENS else 0 for n in numbers
    )
    return Usage(1, prompt, completion, seconds, 0, endpoint.price(prompt, completion))


def status_kind(status: int) -> tuple[FailureKind, bool]:
    """Kind of failure of an HTTP status, and whether to try again."""
    if status == 429:
        return "busy", True
    if status >= 500:
        return "server", True
    return ("server", True) if status in RETRIED else ("refused", False)
