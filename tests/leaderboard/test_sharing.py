"""Parts of records that are written once: nothing is lost, and a stranger's references cannot cost much."""

import json
import math
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard import sharing
from leaderboard.sharing import MARK, Shared, compact, name_of, share

TEXTS = st.text(max_size=6) | st.sampled_from([MARK, "value", "a line\u2028of its own", "Δ"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=6))
LONG = {"recipe": {"optimizer": "adamw", "lr": 0.001, "steps": 300, "precision": "float32"}, "metrics": [1, 2, 3]}


def read(shared: list[str], lines: list[str]) -> list[Any]:
    parts = Shared()
    for line in shared:
        parts.add(json.loads(line), len(line))
    return [json.loads(json.dumps(parts.whole(json.loads(line), len(line)))) for line in lines]


def part(body: Any) -> str:
    """A line of a shared part with a right hash."""
    return compact({MARK: name_of(compact(body)), "value": body})


def ref(body: Any) -> dict[str, str]:
    return {MARK: name_of(compact(body))}


@given(st.lists(JSON, max_size=6), st.booleans())
def test_any_values_come_back_as_they_were(values: list[Any], twice: bool) -> None:
    values = values * 2 if twice else values
    shared, lines = share(values)
    back = read(shared, lines)
    assert compact(back) == compact(values)  # as text: the order of keys, 1 and 1.0, 0.0 and -0.0
    assert all("\n" not in line for line in [*shared, *lines])
    assert share(values) == (shared, lines)


def test_what_repeats_is_written_once() -> None:
    values = [{"id": k, "config": LONG, "identity": {"config": LONG, "seed": k}} for k in range(50)]
    shared, lines = share(values)
    assert sum(line.count("adamw") for line in [*shared, *lines]) == 1
    assert sum(map(len, [*shared, *lines])) < 0.4 * len(compact(values))
    assert read(shared, lines) == values


def test_key_names_are_written_once() -> None:
    values = [{"accuracy": k / 7, "worst_group": k, "calibration": [k], "seconds": -0.0} for k in range(9)]
    shared, lines = share(values)
    assert sum(line.count("worst_group") for line in [*shared, *lines]) == 1
    back = read(shared, lines)
    assert back == values
    assert math.copysign(1, back[0]["seconds"]) == -1


def test_parts_whose_hashes_clash_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "name_of", lambda text: "0" * 12)
    values = [{"first": [f"{k % 3}" * 50], "second": [f"{k % 2}" * 50]} for k in range(6)]
    shared, lines = share(values)
    assert len(shared) == 1
    assert read(shared, lines) == values


DEEP: list[Any] = []
for _ in range(90):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("shared", "line", "said"),
    [
        ([], {"a": {MARK: "0123456789ab"}}, "stands nowhere above it"),
        ([], {"a": {MARK: ["0123456789ab", 1]}}, "stands nowhere above it"),
        ([part([{MARK: "0123456789ab"}])], {}, "stands nowhere above it"),  # nothing before it: no circle either
        ([part("text"), part([1, 2])], {MARK: [name_of('"text"'), 1]}, "no list of keys"),
        ([part([1, 2])], {MARK: [name_of("[1,2]"), 1, 2]}, "no list of keys"),
        ([part(["a", "a"])], {MARK: [name_of('["a","a"]'), 1, 2]}, "no list of keys"),
        ([part(["a", "b"])], {MARK: [name_of('["a","b"]'), 1]}, "2 keys, for 1 values"),
        ([], {MARK: 3}, "a reference is written"),
        ([], {MARK: []}, "a reference is written"),
        ([], {MARK: [[], 1]}, "a reference is written"),
        ([], {MARK: "0123456789ab", "more": 1}, "a reference is written"),
        ([compact({MARK: "0123456789ab", "value": [1]})], {}, "not what its hash says"),
        ([part([1]), part([1])], {}, "stands there twice"),
        ([compact({MARK: 3, "value": [1]})], {}, "neither a record nor a shared part"),
        ([compact({MARK: "0123456789ab"})], {}, "neither a record nor a shared part"),
        (["{}"], {}, "neither a record nor a shared part"),
        ([part(DEEP), part([[ref(DEEP)]] * 2), part([[[[[[[[[[ref(DEEP)]]]]]]]]]])], {}, "deep"),
    ],
)
def test_references_to_nothing_are_refused(shared: list[str], line: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(shared, [compact(line)])


def doubling(times: int) -> tuple[list[str], Any]:
    """Parts that each hold the one before twice: a few lines that come to 2 ** times the first one."""
    body: Any = ["x" * 100]
    lines = [part(body)]
    for _ in range(times):
        body = [ref(body), ref(body)]
        lines.append(part(body))
    return lines, ref(body)


def many(parts: int) -> tuple[list[str], Any]:
    body = ["x" * 200_000]
    return [part(body)], [ref(body)] * parts


@pytest.mark.parametrize("bomb", [doubling(30), doubling(60), many(20), many(30_000)])
def test_one_line_that_comes_to_much_is_refused_before_it_is_put_together(bomb: tuple[list[str], Any]) -> None:
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ValueError, match="come"):
        read(bomb[0], [compact(bomb[1])])
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()
    assert time.monotonic() - start < 5


def test_many_lines_that_come_to_much_together_are_refused() -> None:
    shared, line = many(9)  # each of them is allowed
    parts = Shared()
    parts.add(json.loads(shared[0]), len(shared[0]))
    text = compact(line)
    allowed = sharing.SPARE + sharing.MAX_GROWTH * len(shared[0])
    for _ in range(allowed // (9 * len(shared[0]))):
        parts.whole(json.loads(text), len(text))
    with pytest.raises(ValueError, match="times what its files hold"):
        parts.whole(json.loads(text), len(text))
