"""What records repeat, written once: JSON values in which a hash stands for a part that occurs more than once.

A published board repeats itself: seeds share a config, cells share the hashes of the code, and every record names the
same metrics. Here such parts become lines of their own, `{"$": HASH, "value": ...}`, and where they stood is written

- `{"$": HASH}` for an object or list that occurs more than once, and
- `{"$": [HASH, value, ...]}` for an object whose keys, in this order, are the list HASH.

Nothing else changes: numbers, texts and the order of keys come back as they were. A part refers only to parts above it,
so there are no circles. What is read back is a stranger's: sizes are added up before anything is put together.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "$"
SHORTEST = 40  # characters of JSON: shorter parts are not worth a reference
FEWEST_KEYS = 4
HASH = 12  # hex digits: enough for the parts of one board; two that clash are not shared
MAX_ADDED = 2_000_000  # characters that references may add to one value
MAX_GROWTH = 50  # times what was read that all values of a board may come to (ours: 4)
SPARE = 1_000_000  # characters that a board may grow by in any case
MAX_DEPTH = 100  # of lists and objects within each other, references included (ours: 8)


def compact(value: Any) -> str:
    """A JSON value in one line without spaces, letters of all scripts as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def name_of(text: str) -> str:
    """The name of a shared part: the first hex digits of the sha256 over its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH]


def share(values: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Lines of the shared parts, each after those that it refers to, and one line per value. The same values give the
    same lines.

    Args:
        values: JSON values (dict, list, str, int, float, bool, None).
    """
    held = list(values)
    writer = _Writer(held)
    lines = [compact(writer.body(value)) for value in held]
    return list(writer.parts.values()), lines


class _Writer:
    def __init__(self, values: Iterable[Any]):
        self.parts: dict[str, str] = {}  # hash -> line
        self._texts: dict[str, str] = {}  # hash -> the part as it was
        self._names: dict[str, str] = {}  # the part as it was -> hash
        self._seen: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        for value in values:
            self._count(value)

    def _count(self, value: Any) -> None:
        if isinstance(value, dict):
            self._keys[compact(list(value))] += 1
        for item in _items(value):
            if isinstance(item, dict | list):
                self._seen[compact(item)] += 1
                self._count(item)

    def _write(self, value: Any) -> Any:
        if not isinstance(value, dict | list):
            return value
        text = compact(value)
        if len(text) < SHORTEST or self._seen[text] < 2:
            return self.body(value)
        if text in self._names:
            return {MARK: self._names[text]}
        body = self.body(value)
        name = self._share(text, body)
        return {MARK: name} if name else body

    def body(self, value: Any) -> Any:
        """The value itself, with its parts shared."""
        if isinstance(value, list):
            return [self._write(item) for item in value]
        if not isinstance(value, dict):
            return value
        keys = compact(list(value))
        name = None
        if MARK in value or (len(value) >= FEWEST_KEYS and self._keys[keys] > 1):
            name = self._share(keys, list(value))
        items = [self._write(item) for item in value.values()]
        if name is None:
            if MARK in value:
                raise ValueError(f"a part with the key '{MARK}' cannot be written: two parts have one hash")
            return dict(zip(value, items, strict=True))
        return {MARK: [name, *items]}

    def _share(self, text: str, body: Any) -> str | None:
        """The part's hash; None where another part has it."""
        name = name_of(compact(body))
        if self._texts.setdefault(name, text) != text:
            return None
        self._names[text] = name
        self.parts.setdefault(name, compact({MARK: name, "value": body}))
        return name


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


class Shared:
    """Parts that were read, and what values with references to them are in full.

    Raises ValueError throughout, with what is wrong, before anything large is put together.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._depths: dict[str, int] = {}
        self._left = SPARE

    def add(self, values: Mapping[str, Any], length: int) -> None:
        """Take in one part. values: its line as JSON. length: of the line, in characters."""
        name = values.get(MARK)
        if set(values) != {MARK, "value"} or not isinstance(name, str):
            raise ValueError("it is neither a record nor a shared part")
        body = values["value"]
        if name_of(compact(body)) != name:
            raise ValueError(f"the shared part '{name[:20]}' is not what its hash says: it was damaged, or edited")
        if name in self._parts:
            raise ValueError(f"the shared part '{name}' stands there twice")
        self._left += MAX_GROWTH * length
        added, depth = self._weigh(body)
        if length + added > MAX_ADDED:
            raise ValueError(f"the shared part '{name}' comes to more than {MAX_ADDED:,} characters")
        self._parts[name], self._sizes[name], self._depths[name] = self._whole(body), length + added, depth

    def whole(self, value: Any, length: int) -> Any:
        """The value in full. It holds parts by reference: write it as text before changing any. length: of its line."""
        added, _ = self._weigh(value)
        if added > MAX_ADDED:
            raise ValueError(f"its references come to more than {MAX_ADDED:,} characters")
        self._left += MAX_GROWTH * length - (length + added)
        if self._left < 0:
            raise ValueError(f"the board comes to more than {MAX_GROWTH} times what its files hold")
        return self._whole(value)

    def _weigh(self, value: Any) -> tuple[int, int]:
        """Characters that references add, and how deep the whole is; refuses what refers to no part."""
        if isinstance(value, dict) and MARK in value:
            return self._weigh_reference(value)
        found = [self._weigh(item) for item in _items(value) if isinstance(item, dict | list)]
        depth = 1 + max((depth for _, depth in found), default=0)
        if depth > MAX_DEPTH:
            raise ValueError(f"its references come to parts within parts, more than {MAX_DEPTH} deep")
        return sum(size for size, _ in found), depth

    def _weigh_reference(self, value: dict[str, Any]) -> tuple[int, int]:
        target = value[MARK]
        if len(value) == 1 and isinstance(target, str):
            self._known(target)
            return self._sizes[target], self._depths[target]
        if len(value) != 1 or not isinstance(target, list) or not target or not isinstance(target[0], str):
            raise ValueError(f"a reference is written {{'{MARK}': HASH}} or {{'{MARK}': [HASH, value, ...]}}")
        keys = self._known(target[0])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise ValueError(f"the shared part '{target[0]}' is no list of keys")
        if len(keys) != len(target) - 1:
            raise ValueError(f"the shared part '{target[0]}' has {len(keys)} keys, for {len(target) - 1} values")
        added, depth = self._weigh(target[1:])
        return added + self._sizes[target[0]], depth

    def _known(self, name: str) -> Any:
        if name not in self._parts:
            raise ValueError(f"it refers to the shared part '{name[:20]}', which stands nowhere above it")
        return self._parts[name]

    def _whole(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        if MARK not in value:
            return {key: self._whole(item) for key, item in value.items()}
        target = value[MARK]
        if isinstance(target, str):
            return self._parts[target]
        return dict(zip(self._parts[target[0]], map(self._whole, target[1:]), strict=True))
