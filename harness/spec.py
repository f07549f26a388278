"""Component specs: `name(key=value, of=other(...))` as people write them, parsed to one canonical form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import ConfigError

DEEPEST = 20  # lists within lists in a parameter


@dataclass(frozen=True)
class Spec:
    """A component's name and parameters. Parameters are JSON values or nested specs."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def canonical(self) -> dict[str, Any]:
        """JSON-serialisable form: neither the order of parameters nor 1 against 1.0 makes a difference."""
        return {"name": self.name, "params": {k: _plain(self.params[k]) for k in sorted(self.params)}}

    def __str__(self) -> str:
        inside = ",".join(f"{k}={_show(self.params[k])}" for k in sorted(self.params))
        return f"{self.name}({inside})" if inside else self.name


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.canonical()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _show(value: Any) -> str:
    if isinstance(value, Spec | str):
        return str(value)
    return json.dumps(_plain(value), separators=(",", ":"))


def split_top(text: str, separator: str = ",") -> list[str]:
    """Split at separators that stand outside every bracket and quote; empty parts are dropped."""
    parts, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                raise ConfigError(f"'{text}': a closing bracket without its opening one")
        if char == separator and depth == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += char
    if depth or quote:
        raise ConfigError(f"'{text}': a bracket or quote is not closed")
    return [part.strip() for part in [*parts, current] if part.strip()]


def parse_spec(text: str | Mapping[str, Any] | Spec) -> Spec:
    """Parse `name`, `name(key=value, ...)` or `{name: ..., params: {...}}`.

    Raises:
        ConfigError: the text is none of these.
    """
    if isinstance(text, Spec):
        return text
    if isinstance(text, Mapping):
        if "name" not in text or set(text) - {"name", "params"}:
            raise ConfigError(
                f"{dict(text)}: a component is written as 'name(key=value)' or as {{name: ..., params: ...}}"
            )
        return Spec(str(text["name"]), {k: _nested(v) for k, v in dict(text.get("params") or {}).items()})
    text = str(text).strip()
    head, opened, rest = text.partition("(")
    name = head.strip()
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"'{text}': '{name}' is not a component name (letters, digits and _)")
    if not opened:
        return Spec(name)
    if not rest.rstrip().endswith(")"):
        raise ConfigError(f"'{text}': expected the closing ')' at the end")
    params: dict[str, Any] = {}
    for item in split_top(rest.rstrip()[:-1]):
        key, equals, value = item.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(f"'{text}': '{item}' is not key=value")
        if key.strip() in params:
            raise ConfigError(f"'{text}': '{key.strip()}' is given twice")
        params[key.strip()] = _value(value.strip())
    return Spec(name, params)


def parse_specs(value: str | Iterable[Any]) -> list[Spec]:
    """Parse a list of specs, or one text such as `[erm, rrr(lam=0.1)]` or `erm,rrr`."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1]
        return [parse_spec(part.strip("\"' ")) for part in split_top(text)]
    if not isinstance(value, Iterable):
        raise ConfigError(f"'{value}' must be a list of names, such as [erm, rrr(lam=0.1)]")
    return [parse_spec(part) for part in value]


def _nested(value: Any) -> Any:
    return parse_spec(value) if isinstance(value, Mapping) and "name" in value else value


def _value(text: str) -> Any:
    if "(" in text and text[0] not in "\"'[{":
        return parse_spec(text)
    import yaml  # a tenth of the start of `vabench list`, which parses nothing

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{text}' is not a value") from error
    if _depth(value) > DEEPEST:
        raise ConfigError(f"'{text[:80]}' is nested too deep, or holds itself")
    if isinstance(value, str):  # YAML 1.1 reads 1e5 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _depth(value: Any, above: int = 0) -> int:
    """How deep a value is nested, as far as it matters: YAML's anchors can make a list that holds itself."""
    if above > DEEPEST or not isinstance(value, list | dict):
        return above
    held = value.values() if isinstance(value, dict) else value
    return max((_depth(item, above + 1) for item in held), default=above + 1)
