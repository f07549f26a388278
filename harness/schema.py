"""Records as they stand on disk: sealed by a checksum, and brought up from older schema versions when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from harness.record import SCHEMA_VERSION, Record

Values = dict[str, Any]
SEALED_SINCE = 2  # a record of version 1 has nothing to check


def _first_to_second(values: Values) -> Values:
    """Version 2 added the seal; a record of version 1 has none to check."""
    return {**values, "schema_version": 2, "seal": None}


def _second_to_third(values: Values) -> Values:
    """Version 3 added the curves of the training loss; before, they were not recorded."""
    tracks = values.get("tracks")
    if isinstance(tracks, dict):
        tracks = {
            name: {**track, "curve": None} if isinstance(track, dict) else track for name, track in tracks.items()
        }
        values = {**values, "tracks": tracks}
    return {**values, "schema_version": 3, "base_curve": None}


# Version -> what makes its values those of the next one. A step, once released, is never edited.
STEPS: dict[int, Callable[[Values], Values]] = {1: _first_to_second, 2: _second_to_third}


def seal(record: Record) -> Record:
    """The record with the sha256 over all of its other fields."""
    unsealed = record.model_copy(update={"schema_version": SCHEMA_VERSION, "seal": None})
    return unsealed.model_copy(update={"seal": _digest(from_json(unsealed.model_dump_json()))})


def read_record(text: bytes | str) -> Record:
    """A record from its JSON text, of this or an older schema version.

    Raises:
        ValueError: no JSON, another schema, a later version, or content that differs from its seal.
    """
    values = from_json(text)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    version = values.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError("it has no schema version")
    if version > SCHEMA_VERSION:
        raise ValueError(f"it is of schema {version}, and this vabench reads up to {SCHEMA_VERSION}: update vabench")
    if version >= SEALED_SINCE and values.get("seal") != _digest(values):
        raise ValueError("its content is not what its seal says: it was damaged, or edited by hand")
    while version < SCHEMA_VERSION:
        values = STEPS[version](values)
        version += 1
    return Record.model_validate(values)


def _digest(values: Values) -> str:
    """sha256 of the values as written, whatever their schema version: sorted keys, no spaces, without the seal."""
    held = {key: value for key, value in values.items() if key != "seal"}
    return hashlib.sha256(json.dumps(held, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
