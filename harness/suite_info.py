"""Metadata of a suite, apart from its arrays: `vabench list` reads it without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["real", "synthetic", "stand-in"]


@dataclass(frozen=True)
class SuiteInfo:
    """Metadata of a suite, readable without loading it. `source` 'stand-in' never shares a table with others."""

    name: str
    summary: str
    factory: str  # "package.module:Class"
    source: Source
    version: str
    licence: str
    citation: str
    parameters: Mapping[str, str] = field(default_factory=dict)  # parameter -> one-line meaning with default
    descriptions: str = ""  # "package:file.yaml" of the class descriptions, where the suite ships them
