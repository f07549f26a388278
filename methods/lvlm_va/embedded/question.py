"""The question that the embedded critic was trained on: one call per image, all its segments at once.

It goes with three pictures, in this order: the image, its segment map, the overlay (`methods.lvlm_va.overlay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.errors import ConfigError

VERDICTS = ("relevant", "spurious")


def build(
    class_name: str, core: str | None, spurious: str | None, colours: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Prompt and JSON schema of one question.

    Args:
        class_name: name of the labelled class. core: what matters for it. spurious: what must not matter; either
            sentence may be missing, not both. colours: names of the segments that hold at least one pixel.

    Returns:
        the prompt, and the schema of its answer, one entry per colour: `{"orange": "relevant", "red": "spurious"}`.

    Raises:
        ConfigError: neither sentence, no colour, or a colour twice.
    """
    if not core and not spurious:
        raise ConfigError(f"class '{class_name}': a critic needs a sentence on what matters or on what must not matter")
    if not colours or len(set(colours)) != len(colours):
        raise ConfigError(f"a critic's question names every present segment once, got {list(colours)}")
    parts = [f"Class {class_name}."]
    parts += [f"Relevant: {_sentence(core)}"] if core else []
    parts += [f"Spurious: {_sentence(spurious)}"] if spurious else []
    parts.append(f"Judge {', '.join(colours)}.")
    schema = {
        "type": "object",
        "properties": {colour: {"type": "string", "enum": list(VERDICTS)} for colour in colours},
        "required": list(colours),
        "additionalProperties": False,
    }
    return " ".join(parts), schema


def answer(colours: Sequence[str], spurious: Sequence[bool]) -> str:
    """The answer as the critic is taught to write it: strict JSON in the order of `colours`."""
    return "{" + ", ".join(f'"{c}": "{VERDICTS[bool(s)]}"' for c, s in zip(colours, spurious, strict=True)) + "}"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith(".") else f"{text}."
