"""From a model's text to a reply: what every back end does alike."""

from __future__ import annotations

import dataclasses
import json
import unicodedata

from harness.lvlm.client import Failure, Query, Reply, Usage, parse


def read_answer(query: Query, text: str, usage: Usage) -> Reply:
    """Parse and check an answer. Free text loses control characters and lone surrogates; strings in JSON are data.

    Returns:
        An `Answer`, or a `Failure` "invalid" or "too long", with `usage`.
    """
    if query.schema is None:
        text = plain_text(text)
        if not text.strip():
            return Failure("invalid", "an empty answer", usage)
    reply = parse(query, text)
    if query.schema is not None and not isinstance(reply, Failure):
        try:
            json.dumps(reply.value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Failure("invalid", "half of a surrogate pair in a string, which no file can hold", usage)
    return dataclasses.replace(reply, usage=usage)


def plain_text(text: str) -> str:
    """The text without control characters (new line and tab stay) and without lone surrogates."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"))
