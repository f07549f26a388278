"""Clients that answer by rule, for tests of everything behind the client contract. Simulated: no model anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from harness.lvlm.client import Client, Failure, Meter, OnReply, Query, Reply, Usage, parse
from harness.lvlm_info import ClientInfo
from harness.registry import registry
from methods.lvlm_va.overlay import PALETTE


class RuleClient(Client):
    """Calls a colour spurious where most of its pixels on the map lie in the outer ring of the picture.

    style of the answers: a query with a schema gets JSON, one without gets six lines of text. `broken` questions (by
    number, counted over the life of the object) get no JSON.
    """

    info = ClientInfo("rule", "answers by rule (simulated)", "critic_toys:RuleClient")
    asked: list[Query]

    def __init__(self, broken: str = "none", ring: float = 0.3):
        self.broken, self.ring = broken, ring
        self.asked = []
        LAST.append(self)

    @property
    def params(self) -> dict[str, Any]:
        return {"broken": self.broken, "ring": self.ring}

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": "rule", "ring": self.ring}

    def ask(self, queries: Sequence[Query], meter: Meter, on_reply: OnReply | None = None) -> list[Reply]:
        replies: list[Reply] = []
        for k, query in enumerate(queries):
            meter.admit()
            usage = Usage(calls=1, prompt_tokens=10, completion_tokens=5, seconds=0.01)
            meter.book(usage)
            self.asked.append(query)
            reply = self._reply(query)
            replies.append(reply if isinstance(reply, Failure) else type(reply)(reply.text, reply.value, usage))
            if on_reply is not None:
                on_reply(k, replies[-1])
        return replies

    def _reply(self, query: Query) -> Reply:
        first = query.decoding.attempt == 0
        if self.broken == "always" or (self.broken == "once" and first):
            return parse(query, "I cannot tell.") if query.schema else Failure("timeout", "no answer in time")
        if not query.images:  # the judge's question repeats the critique's last line
            verdicts = json.loads(query.prompt[query.prompt.rindex("{") : query.prompt.rindex("}") + 1])
            return parse(query, json.dumps(verdicts))
        verdicts = {name: self._verdict(query.images[1], rgb) for name, rgb in PALETTE}
        present = {name: word for name, word in verdicts.items() if word}
        if query.schema is None:
            return parse(query, f"1. A picture. 6. {json.dumps(present)}")
        return parse(query, json.dumps({name: present.get(name, "relevant") for name in query.schema["required"]}))

    def _verdict(self, picture: np.ndarray[Any, Any], rgb: tuple[int, int, int]) -> str:
        rows, columns = np.nonzero((picture == np.array(rgb, dtype=np.uint8)).all(-1))
        if len(rows) == 0:
            return ""
        side = len(picture)
        width = self.ring * side
        distance = np.minimum.reduce([rows, columns, side - 1 - rows, side - 1 - columns])
        return "spurious" if (distance < width).mean() > 0.5 else "relevant"


LAST: list[RuleClient] = []  # clients in the order of their making


@pytest.fixture
def rule_client(monkeypatch: pytest.MonkeyPatch) -> list[RuleClient]:
    """Register the client `rule`; gives the list of all that were made."""
    LAST.clear()
    monkeypatch.setitem(registry("clients")._extra, "rule", RuleClient.info)
    return LAST
