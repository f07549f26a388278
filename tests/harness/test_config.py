import re
from pathlib import Path

import pytest

from harness.api import remember
from harness.config import load_config, validate
from harness.errors import ComponentError, ConfigError
from harness.plan import check_components, plan, resolve_row, try_parameters


def test_every_preset_loads_and_plans() -> None:
    config = load_config("quickstart")
    cells = plan(config)
    assert len({cell.row_name for cell in cells}) >= 14
    assert len(cells) == len(config.methods) * 3
    assert len({cell.id for cell in cells}) == len(cells)
    assert load_config("decoys").tracks == ("preregistered", "tuned")


def test_overrides_reach_their_place() -> None:
    config = load_config("quickstart", ["methods=[erm,rrr(lam=0.1)@oracle]", "seeds=[4,7]", "recipes.base.lr=0.01"])
    assert [str(row) for row in config.methods] == ["erm", "rrr(lam=0.1)@oracle"]
    assert config.seeds == (4, 7)
    assert config.recipes.base.lr == 0.01
    assert load_config("quickstart", ["seeds=2"]).seeds == (0, 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sedes=3", "did you mean 'seeds'"),
        ("recipes.base.lrr=3", "did you mean 'lr'"),
        ("seeds=0", "positive"),
        ("seeds=many", "seeds"),
        ("recipes.base.lr=-1", "greater than 0"),
        ("alignment.segments.support=everything", "phi_pos"),
        ("tracks=[tuned,other]", "tracks"),
        ("methods=[]", "methods"),
        ("seeds", "key=value"),
        ("seeds=[1,", "seeds"),
    ],
)
def test_wrong_overrides_get_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r".+") as caught:
        load_config("quickstart", [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeds=abc", "seeds: must be a count, such as 3, or a list of seeds, such as [0,4], got 'abc'"),
        ("seeds=[a]", "seeds.0: must be a whole number, got 'a'"),
        ("recipes.base.lr=fast", "recipes.base.lr: must be a number, got 'fast'"),
        ("recipes.base.lr=-1", "recipes.base.lr: must be greater than 0, got '-1'"),
        ("recipes.base=3", "recipes.base: must be a section of key: value, got '3'"),
        ("recipes.base.steps=1.5", "recipes.base.steps: must be a whole number, got '1.5'"),
        ("alignment.segments.count=0", "alignment.segments.count: must be at least 1, got '0'"),
        ("tracks=[other]", "tracks.0: must be 'preregistered' or 'tuned', got 'other'"),
        ("methods=[]", "methods: must not be empty, got '()'"),
        ("results=3", "results: must be text, got '3'"),
    ],
)
def test_a_wrong_value_is_told_in_our_words(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'quickstart: {sentence}')}$"):
        load_config("quickstart", [override])


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ComponentError, match="did you mean quickstart"):
        load_config("quickstrat")
    with pytest.raises(ComponentError, match="did you mean group_dro"):
        plan(load_config("quickstart", ["methods=[grop_dro]"]))
    with pytest.raises(ComponentError, match="did you mean oracle"):
        plan(load_config("quickstart", ["methods=[rrr@orcale]"]))
    with pytest.raises(ComponentError, match="did you mean oracle"):
        plan(load_config("quickstart", ["methods=[rrr@inverted(of=orcale)]"]))
    with pytest.raises(ConfigError, match="takes no masks"):
        plan(load_config("quickstart", ["methods=[erm@oracle]"]))
    with pytest.raises(ConfigError, match="no parameter 'roh'; did you mean 'rho'"):
        plan(load_config("quickstart", ["suites=[decoy_digits(roh=1)]"]))


@pytest.mark.parametrize("row", ["rrr@noisy_oracle(fpr=a,fnr=0)", "rrr(lam=0.1x)", "dfr(c=small)"])
def test_a_text_in_place_of_a_number_is_told_in_our_words(row: str) -> None:
    with pytest.raises(ConfigError, match=r"^(mask|the method).*: \w+ must be a number, got '.*'$"):
        try_parameters(plan(load_config("quickstart", [f"methods=[{row}]"])))


def test_preset_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("suites: [unclosed", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(str(file))
    with pytest.raises(ConfigError, match=r"no preset file .*absent.yaml$"):
        load_config(str(tmp_path / "absent.yaml"))
    with pytest.raises(ConfigError, match=r"no preset file .*mine.yml; did you mean '.*mine.yaml'"):
        load_config(str(tmp_path / "mine.yml"))


def test_a_remembered_config_reads_back() -> None:
    config = load_config("quickstart", ["methods=[erm,rrr@inverted(of=oracle)]"])
    again = validate(remember(config), "last run")
    assert [cell.id for cell in plan(again)] == [cell.id for cell in plan(config)]


def test_default_mask_sources_are_filled_in() -> None:
    rows = check_components(load_config("quickstart", ["methods=[rrr,lvlm_va,erm_continue]"]))
    assert [str(resolved.masks) for _, resolved in rows] == ["ground_truth", "oracle", "all_ones"]
    assert resolve_row(rows[0][0]).masks is not None
