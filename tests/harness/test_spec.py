import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import parse_row, parse_rows
from harness.errors import ConfigError
from harness.spec import Spec, parse_spec, parse_specs


def test_nested_spec_round_trips() -> None:
    text = "shuffled(of=noisy_oracle(fnr=0,fpr=0.13))"
    spec = parse_spec(text)
    assert spec.params["of"] == Spec("noisy_oracle", {"fpr": 0.13, "fnr": 0})
    assert str(spec) == text
    assert parse_spec(spec.canonical()) == spec


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True),
        st.one_of(st.integers(-1000, 1000), st.booleans(), st.sampled_from(["alignment", "all", "noise"])),
        max_size=4,
    )
)
def test_text_and_canonical_form_agree(params: dict[str, object]) -> None:
    spec = Spec("name", params)
    assert parse_spec(str(spec)).canonical() == spec.canonical()


@pytest.mark.parametrize("text", ["", "a b", "rrr(lam)", "rrr(lam=1", "rrr(lam=1,lam=2)", "rrr)lam(", "(x=1)"])
def test_malformed_specs_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_spec(text)


def test_order_and_number_type_make_no_difference() -> None:
    one, other = parse_spec("noisy_oracle(fpr=1.0,fnr=0)"), parse_spec("noisy_oracle(fnr=0.0,fpr=1)")
    assert one.canonical() == other.canonical()
    assert str(one) == str(other) == "noisy_oracle(fnr=0,fpr=1)"
    assert str(parse_spec("rrr(lam=0.12345678)")) == "rrr(lam=0.12345678)"


def test_lists_split_outside_brackets_only() -> None:
    assert [str(s) for s in parse_specs("[erm, rrr(lam=1,form=margin)]")] == ["erm", "rrr(form=margin,lam=1)"]


def test_scientific_numbers_are_numbers() -> None:
    assert parse_spec("rrr(lam=1e5)").params["lam"] == 1e5


def test_rows() -> None:
    row = parse_row("lvlm_va(lam=1)@random_verdicts(of=oracle)")
    assert (row.method.name, row.masks and row.masks.name) == ("lvlm_va", "random_verdicts")
    with pytest.raises(ConfigError, match="twice"):
        parse_rows("[erm,rrr,erm]")
    with pytest.raises(ConfigError, match="not a row"):
        parse_row("a@b@c")


@pytest.mark.parametrize("text", ["a(b=&a [*a])", "a(b=[1,&x [*x]],c=d(e=f))", "a(b=" + "[" * 40 + "]" * 40 + ")"])
def test_values_that_hold_themselves_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="holds itself"):
        parse_spec(text)
