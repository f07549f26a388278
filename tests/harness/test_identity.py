"""Properties of plans, identities, settings and the store, over whatever settings a person may write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.api import remember
from harness.config import load_config, validate
from harness.errors import VabenchError
from harness.plan import digest, inspect, plan
from harness.record import Record, Status
from harness.schema import read_record, seal
from harness.store import Store, slug

ROWS = ["erm", "rwg", "dfr", "rrr@oracle", "rrr(lam=0.5)@ground_truth", "lvlm_va@noisy_oracle(fpr=0.1,fnr=0)", "jtt"]
ROWS += ["caipi@inverted(of=oracle)", "erm_continue", "group_dro(eta=0.1)"]
SUITES = ["decoy_digits(rho=0.9)", "decoy_digits(rho=1.0)", "decoy_digits(rho=0.97,n_test=100)"]

plans = st.fixed_dictionaries(
    {
        "suites": st.lists(st.sampled_from(SUITES), min_size=1, max_size=2, unique=True),
        "methods": st.lists(st.sampled_from(ROWS), min_size=1, max_size=4, unique=True),
        "seeds": st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
        "epochs": st.integers(1, 30),
        "n": st.integers(8, 64),
    }
)


def words(values: dict[str, Any], root: str = "results") -> list[str]:
    return [
        "suites=" + json.dumps(values["suites"]),
        "methods=" + json.dumps(values["methods"]),
        "seeds=" + json.dumps(values["seeds"]),
        f"recipes.base.epochs={values['epochs']}",
        f"alignment.n={values['n']}",
        f"results={root}",
    ]


def ids(values: dict[str, Any], *more: str) -> dict[tuple[str, str, int], str]:
    cells = plan(load_config("quickstart", [*words(values), *more]))
    return {(cell.suite_name, cell.row_name, cell.seed): cell.id for cell in cells}


@settings(max_examples=25, deadline=None)
@given(plans)
def test_a_plan_is_the_product_and_no_two_cells_share_an_id(values: dict[str, Any]) -> None:
    found = ids(values)
    assert len(found) == len(values["suites"]) * len(values["methods"]) * len(values["seeds"])
    assert len(set(found.values())) == len(found)


@settings(max_examples=25, deadline=None)
@given(plans, st.randoms(use_true_random=False))
def test_order_and_where_it_runs_change_no_id(values: dict[str, Any], rng: Any) -> None:
    shuffled = {k: rng.sample(v, len(v)) if isinstance(v, list) else v for k, v in values.items()}
    elsewhere = ("results=/tmp/elsewhere", "workers=7", "device=cpu", "executor=ray(cpus=2)", "diagnosis=true")
    assert ids(values) == ids(shuffled, *elsewhere)


@settings(max_examples=25, deadline=None)
@given(plans, st.data())
def test_a_cell_keeps_its_id_whatever_else_is_planned(values: dict[str, Any], data: st.DataObject) -> None:
    part = {k: [data.draw(st.sampled_from(v))] if isinstance(v, list) else v for k, v in values.items()}
    whole, alone = ids(values), ids(part)
    assert len(alone) == 1
    assert alone.items() <= whole.items()


@settings(max_examples=15, deadline=None)
@given(plans)
def test_what_changes_numbers_changes_every_id(values: dict[str, Any]) -> None:
    before, after = ids(values), ids({**values, "epochs": values["epochs"] + 1})
    assert before.keys() == after.keys()
    assert set(before.values()).isdisjoint(after.values())


@settings(max_examples=25, deadline=None)
@given(plans)
def test_settings_survive_a_file(values: dict[str, Any]) -> None:
    config = load_config("quickstart", words(values))
    again = validate(json.loads(json.dumps(remember(config))), "file")
    assert again == config
    assert [cell.id for cell in plan(again)] == [cell.id for cell in plan(config)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=12,
    )
)
def test_digests_do_not_depend_on_order(value: Any) -> None:
    def turned(held: Any) -> Any:
        if isinstance(held, dict):
            return {k: turned(held[k]) for k in reversed(list(held))}
        return [turned(item) for item in held] if isinstance(held, list) else held

    assert digest(value) == digest(turned(value))


@given(st.text(min_size=1, max_size=60))
def test_any_name_makes_a_folder_that_stays_inside(name: str) -> None:
    held = slug(name)
    assert held
    assert "/" not in held
    assert held not in (".", "..")
    assert len(held.encode()) <= 255


names = st.from_regex(r"test/[a-z]{1,8}/[0-9]", fullmatch=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(names, st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9), max_size=3),
    st.integers(0, 2**31),
    st.text(max_size=40),
)
def test_the_store_gives_back_what_it_was_given(
    tmp_path: Path, arrays: dict[str, list[float]], seed: int, reason: str
) -> None:
    store = Store(tmp_path)
    record = Record(
        id=digest([arrays, seed, reason]), status=Status.DONE, reason=reason, suite="s", suite_source="synthetic",
        row="erm", method="erm", mask_source=None, block="baseline", model="m", seed=seed, config={}, identity={},
    )  # fmt: skip
    given_arrays = {name: np.array(values, dtype=np.float32) for name, values in arrays.items()}
    store.write(record, given_arrays)
    folder = store.folder("s", "erm", seed, record.id)
    held, why = store.intact(folder)
    assert held is not None, why
    assert (held.reason, held.seed, held.id) == (reason, seed, record.id)
    back = store.predictions(folder, held) if arrays else {}
    assert back.keys() == given_arrays.keys()
    assert all(back[name].tobytes() == given_arrays[name].tobytes() for name in back)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_single_byte_of_a_record_can_change_unnoticed(data: st.DataObject) -> None:
    record = Record(
        id="ab" * 32, status=Status.DONE, suite="s", suite_source="synthetic", row="erm", method="erm",
        mask_source=None, block="baseline", model="m", seed=3, config={"lam": 0.125}, identity={"data": "x"},
    )  # fmt: skip
    text = bytearray(seal(record).model_dump_json().encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda value: value != text[at]))
    try:
        found = read_record(bytes(text))
    except ValueError:
        return
    assert found == seal(record)  # a byte that says the same: white space, or another spelling of a number


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["seeds", "tracks", "model", "suites", "methods", "workers", "executor"]), st.text(max_size=12))
def test_any_override_is_taken_or_refused_in_words(name: str, value: str) -> None:
    said = "taken"
    try:
        config = load_config("quickstart", [f"{name}={value}"])
    except VabenchError as error:
        said = str(error)
    else:
        assert config.name == "quickstart"
    assert said.strip()


def test_a_missing_cell_is_missing(tmp_path: Path) -> None:
    (cell,) = plan(load_config("quickstart", ["methods=[erm]", "seeds=1", f"results={tmp_path}"]))
    assert inspect(cell, Store(tmp_path)).state == "missing"
    with pytest.raises(VabenchError):
        Store(tmp_path).read(tmp_path / "cells")
