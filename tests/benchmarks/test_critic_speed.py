"""The embedded critic through the local back end: many questions in a batch against one by one, at equal answers."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.questions import questions
from benchmarks.ratios import compare

from harness.lvlm.client import Answer, Meter, Query
from harness.lvlm.local import Local
from methods.lvlm_va.embedded_critic import EmbeddedCritic


@pytest.fixture(scope="module")
def asked_of_it(tmp_path_factory: pytest.TempPathFactory) -> list[Query]:
    """What the embedded critic is asked about the alignment set of the quick start."""
    results = tmp_path_factory.mktemp("results")
    return questions("lvlm_va@embedded", ["recipes.base.epochs=5", f"results={results}"])


def answers(batch: int, asked: list[Query]) -> list[str]:
    client = EmbeddedCritic(batch=batch).client
    assert isinstance(client, Local)
    replies = client.ask(asked, Meter())
    assert all(isinstance(reply, Answer) for reply in replies)
    return [reply.text for reply in replies if isinstance(reply, Answer)]


def test_a_batch_answers_as_one_by_one(asked_of_it: list[Query]) -> None:
    one_by_one = answers(1, asked_of_it[:12])
    assert answers(64, asked_of_it[:12]) == one_by_one
    assert len(set(one_by_one)) > 3


def test_critic_speed(benchmark: Any, asked_of_it: list[Query]) -> None:
    asked = asked_of_it[:96]
    assert answers(64, asked) == answers(1, asked)
    ratio = compare(
        benchmark, lambda: answers(64, asked), lambda: answers(1, asked[:24]), images=96, reference_images=24, rounds=5
    )
    assert ratio >= 3.0
