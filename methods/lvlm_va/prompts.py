"""The wording of critic and judge: templates and examples in files that a domain expert edits, with their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, DataError, first_line

VERDICTS = ("relevant", "spurious")
TEMPLATES = ("critic", "critic_paraphrase", "judge", "one_call")


@dataclass(frozen=True)
class Specification:
    """What the expert says of one class: what makes it (core), what must not count (spurious); either may be absent."""

    core: str | None
    spurious: str | None

    def swapped(self) -> Specification:
        """The opposite specification: what mattered must not count now, and the other way round."""
        return Specification(self.spurious, self.core)


@dataclass(frozen=True)
class Wording:
    """One set of templates (Jinja2) and few-shot examples.

    hash: sha256 over all of them, for the record.
    """

    templates: Mapping[str, str]
    examples: tuple[Mapping[str, Any], ...]
    hash: str

    def critic(
        self, class_name: str, specification: Specification, colours: Sequence[str], name: str = "critic"
    ) -> str:
        """The critic's prompt (six steps), or that of `one_call` or `critic_paraphrase`."""
        return self._render(
            name,
            class_name=class_name,
            core=specification.core,
            spurious=specification.spurious,
            colours=list(colours),
        )

    def judge(self, critique: str, colours: Sequence[str]) -> str:
        """The judge's prompt on one critique, with all examples before it."""
        return self._render("judge", critique=critique, colours=list(colours), examples=self.examples)

    def _render(self, name: str, **values: Any) -> str:
        return _template(self.templates[name]).render(**values).strip()


@cache
def _template(text: str) -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(text)


@cache
def load_wording(folder: str | None = None) -> Wording:
    """Read the wording from a folder of the user's, or the built-in one; a file that is absent there is the built-in.

    Raises:
        ConfigError: there is no such folder. DataError: a file that cannot be read or is no template.
    """
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"prompts: there is no folder '{folder}'; it holds any of {_names()}")
    texts = {name: _read(folder, f"{name}.md") for name in TEMPLATES}
    shots = _read(folder, "few_shots.yaml")
    digest = hashlib.sha256(json.dumps([texts, shots], sort_keys=True).encode()).hexdigest()
    wording = Wording(texts, _examples(shots), digest)
    for name in TEMPLATES:
        try:
            wording.judge("text", ["orange"]) if name == "judge" else wording.critic(
                "class", Specification("core", "spurious"), ["orange"], name
            )
        except Exception as error:  # a template of the user's may raise anything
            raise DataError(f"the prompt template {name}.md cannot be used: {error}") from error
    return wording


def _names() -> str:
    return ", ".join([*(f"{name}.md" for name in TEMPLATES), "few_shots.yaml"])


def _read(folder: str | None, name: str) -> str:
    if folder is not None and (Path(folder) / name).exists():
        try:
            return (Path(folder) / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the prompt file {Path(folder) / name}: {error}") from error
    return (files("methods.lvlm_va") / "wording" / name).read_text(encoding="utf-8")


def _examples(text: str) -> tuple[Mapping[str, Any], ...]:
    import yaml

    try:
        found = yaml.safe_load(text) or []
    except yaml.YAMLError as error:
        raise DataError(f"few_shots.yaml is not valid YAML: {first_line(error)}") from error
    for k, example in enumerate(found, 1):
        good = isinstance(example, dict) and isinstance(example.get("critique"), str)
        verdicts = example.get("verdicts") if good else None
        if not isinstance(verdicts, dict) or not all(value in VERDICTS for value in verdicts.values()):
            raise DataError(
                f"few_shots.yaml: example {k} needs a critique (text) and verdicts (colour: relevant or spurious)"
            )
    return tuple(found)


def verdict_schema(colours: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer: exactly one verdict for each of these colours."""
    return {
        "type": "object",
        "properties": {colour: {"enum": list(VERDICTS)} for colour in colours},
        "required": list(colours),
        "additionalProperties": False,
    }
