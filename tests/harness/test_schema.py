"""Records on disk: the seal, and records of older schema versions."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import schema
from harness.record import SCHEMA_VERSION, Record, Status
from harness.schema import STEPS, read_record, seal

VALUES: dict[str, Any] = {
    "id": "ab" * 32,
    "status": "done",
    "suite": "suite-rho1",
    "suite_source": "synthetic",
    "row": "erm",
    "method": "erm",
    "mask_source": None,
    "block": "baseline",
    "model": "mlp",
    "seed": 0,
    "config": {},
    "identity": {"schema_version": 1},
}


def record(**changes: Any) -> Record:
    return Record.model_validate({**VALUES, "status": Status.DONE, **changes})


def test_a_sealed_record_comes_back_as_it_was() -> None:
    held = seal(record(wall_s=0.1 + 0.2, reason="Ä\u2028é"))
    assert read_record(held.model_dump_json()) == held
    assert read_record(held.model_dump_json(indent=1)) == held  # layout is not content
    assert seal(held) == held


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20))
def test_any_number_and_any_text_survive_the_seal(number: float, text: str) -> None:
    held = seal(record(wall_s=number, reason=text, config={text: [number, text]}))
    back = read_record(held.model_dump_json())
    assert back == held
    assert math.copysign(1, back.wall_s) == math.copysign(1, number)


@pytest.mark.parametrize("change", [{"seed": 1}, {"seal": None}, {"seal": "0" * 64}, {"wall_s": 1.0}, {"reason": " "}])
def test_any_edit_breaks_the_seal(change: dict[str, Any]) -> None:
    values = json.loads(seal(record()).model_dump_json())
    with pytest.raises(ValueError, match="seal"):
        read_record(json.dumps({**values, **change}))


def test_a_record_of_the_first_schema_is_read_and_can_be_sealed() -> None:
    held = read_record(json.dumps({**VALUES, "schema_version": 1}))
    assert (held.schema_version, held.seal) == (SCHEMA_VERSION, None)
    assert held == record()
    assert read_record(seal(held).model_dump_json()).seal


def test_every_step_leads_to_this_version_and_a_later_one_keeps_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))
    written = seal(record()).model_dump_json()
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setitem(STEPS, SCHEMA_VERSION, lambda values: {**values, "schema_version": SCHEMA_VERSION + 1})
    assert read_record(written).schema_version == SCHEMA_VERSION + 1
    with pytest.raises(ValueError, match="seal"):
        read_record(written.replace('"seed":0', '"seed":1'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no JSON object"),
        ("{}", "no schema version"),
        ('{"schema_version": true}', "no schema version"),
        ('{"schema_version": 0}', "no schema version"),
        (f'{{"schema_version": {SCHEMA_VERSION + 1}}}', "update vabench"),
    ],
)
def test_what_is_no_record_says_why(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_record(text)
