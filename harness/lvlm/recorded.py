"""Answers written down as they arrive: nothing is asked for twice, and a recording alone replays offline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, DataError
from harness.lvlm.client import Answer, Client, Meter, OnReply, Query, Reply, Usage
from harness.lvlm.reading import read_answer
from harness.lvlm.shelf import Entry, shelf_of
from harness.lvlm_info import RECORDED
from harness.registry import registry
from harness.spec import Spec, parse_spec


class Recorded(Client):
    """A client whose answers are kept in `folder`, addressed by question and model identity.

    An answer is on disk before it is used, so that a killed process loses only what was in flight. Answers alone are
    kept; failures are asked again. Of equal questions in one call one is asked. Replayed answers say so and are booked
    to no meter. Processes share a folder and see each other's answers; two that ask the same question at the same
    moment both ask it.

    Args:
        of: the client to ask, as a spec or an instance; None = replay only. folder: where the recording is.
        model: which model to replay where `of` is None and the folder holds several: a value of its identity, or the
            start of one.
    """

    info = RECORDED

    def __init__(
        self,
        folder: str | Path,
        of: str | Mapping[str, Any] | Spec | Client | None = None,
        model: str | None = None,
    ) -> None:
        if of is not None and model is not None:
            raise ValueError("model=... chooses among recorded models where there is no of=...; give one of the two")
        self.folder = Path(folder).expanduser()
        self.of: Client | None = of if isinstance(of, Client | None) else registry("clients").create(parse_spec(of))
        self.model = model

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the client behind, or the model that is replayed; the folder changes no answer."""
        if self.of is None:
            return {"model": self.model}
        return {"of": {"name": self.of.info.name, "params": self.of.params}}

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the client behind, or of the model whose answers the folder holds.

        Raises:
            DataError: no `of`, and the folder holds no recording. ConfigError: no `of`, and `model` does not say which.
        """
        if self.of is not None:
            return self.of.identity
        found = shelf_of(self.folder).refresh().identities
        if not found:
            raise DataError(f"there is no recording in {self.folder}; give of=... to ask a model and to record it")
        chosen = [one for one in found if self.model is None or _is_called(one, self.model)]
        if len(chosen) != 1:
            names = " | ".join(sorted(", ".join(f"{k}={v}" for k, v in one.items()) for one in found))
            wish = "model=... has to say which" if self.model is None else f"model={self.model} fits {len(chosen)}"
            raise ConfigError(f"the recording in {self.folder} holds {len(found)} model(s) and {wish}: {names}")
        return dict(chosen[0])

    @property
    def damaged(self) -> int:
        """Lines in the folder that were ignored because they are torn, altered or not ours."""
        return shelf_of(self.folder).refresh().damaged

    def missing(self, queries: Sequence[Query]) -> int:
        """How many different questions of these would have to be asked."""
        identity, shelf = self.identity, shelf_of(self.folder).refresh()
        return len({query.key(identity) for query in queries if _replay(query, shelf.get(query.key(identity))) is None})

    def ask(self, queries: Sequence[Query], meter: Meter, on_reply: OnReply | None = None) -> list[Reply]:
        """Replay what is recorded, ask and record the rest.

        Raises:
            DataError: no `of` and an answer is missing, or the folder cannot be written.
            CapReached, VabenchError: from the client behind; what had arrived is recorded.
        """
        replies: dict[int, Reply] = {}

        def give(k: int, reply: Reply) -> None:
            replies[k] = reply
            if on_reply is not None:
                on_reply(k, reply)

        if not queries:
            return []
        identity, shelf = self.identity, shelf_of(self.folder).refresh()
        open_places: dict[str, list[int]] = {}  # key of a question without an answer -> where it stands
        for k, query in enumerate(queries):
            key = query.key(identity)
            known = _replay(query, shelf.get(key))
            if known is None:
                open_places.setdefault(key, []).append(k)
            else:
                give(k, known)
        if open_places:
            self._ask_rest(queries, open_places, identity, meter, give)
        return [replies[k] for k in range(len(queries))]

    def _ask_rest(
        self,
        queries: Sequence[Query],
        places: Mapping[str, Sequence[int]],
        identity: Mapping[str, Any],
        meter: Meter,
        give: OnReply,
    ) -> None:
        if self.of is None:
            raise DataError(
                f"{len(places)} of {len(queries)} questions have no recorded answer in {self.folder}; give of=... to "
                f"ask a model, or replay with the settings that were recorded"
            )
        shelf, keys = shelf_of(self.folder), list(places)

        def arrived(k: int, reply: Reply) -> None:
            if isinstance(reply, Answer):
                shelf.put(identity, Entry(keys[k], reply.text, reply.usage))
            first, *others = places[keys[k]]
            give(first, reply)
            for other in others:  # no call of its own
                again = (
                    dataclasses.replace(reply, replayed=True)
                    if isinstance(reply, Answer)
                    else dataclasses.replace(reply, usage=Usage())
                )
                give(other, again)

        self.of.ask([queries[places[key][0]] for key in keys], meter, arrived)

    def close(self) -> None:
        """Close the client behind."""
        if self.of is not None:
            self.of.close()


def _replay(query: Query, entry: Entry | None) -> Answer | None:
    """A recorded answer, checked like a fresh one."""
    if entry is None:
        return None
    reply = read_answer(query, entry.text, entry.usage)
    return dataclasses.replace(reply, replayed=True) if isinstance(reply, Answer) else None


def _is_called(identity: Mapping[str, Any], model: str) -> bool:
    return any(
        isinstance(value, str) and value.removeprefix("sha256:").startswith(model) for value in identity.values()
    )
