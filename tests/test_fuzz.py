"""A short, seeded run of tests/fuzz.py: readers of outside files take their input, or refuse it as they say."""

import itertools

import pytest
from fuzz import Target, check, inputs, targets

TARGETS = {target.name: target for target in targets()}
TRIES = 150


@pytest.mark.parametrize("name", TARGETS)
def test_readers_refuse_what_they_do_not_take(name: str) -> None:
    target = TARGETS[name]
    for content in itertools.islice(inputs(target, 1), TRIES):
        found = check(target, content)
        assert not found, f"{content[:300]!r}\n{found}"


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"submission manifest", "timing record", "settings"}))
def test_what_fuzzing_starts_from_is_taken(name: str) -> None:
    """A seed that its reader refuses would be fuzzing of the first check alone."""
    for content in TARGETS[name].seeds[:1]:
        TARGETS[name].read(content)


def test_a_reader_that_breaks_is_noticed() -> None:
    broken = Target("broken", lambda content: content.index(b"no such"), (b"x",), (KeyError,))
    assert "ValueError" in check(broken, b"x")
    assert not check(Target("fine", lambda content: content.decode(), (b"x",), (UnicodeDecodeError,)), b"\xff")
