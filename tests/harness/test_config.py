from pathlib import Path

import pytest

from harness.api import remember
from harness.config import load_config, validate
from harness.errors import ComponentError, ConfigError
from harness.plan import check_components, plan, resolve_row


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


def test_preset_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("suites: [unclosed", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(str(file))
    with pytest.raises(ConfigError, match="no preset file"):
        load_config(str(tmp_path / "absent.yaml"))


def test_a_remembered_config_reads_back() -> None:
    config = load_config("quickstart", ["methods=[erm,rrr@inverted(of=oracle)]"])
    again = validate(remember(config), "last run")
    assert [cell.id for cell in plan(again)] == [cell.id for cell in plan(config)]


def test_default_mask_sources_are_filled_in() -> None:
    rows = check_components(load_config("quickstart", ["methods=[rrr,lvlm_va,erm_continue]"]))
    assert [str(resolved.masks) for _, resolved in rows] == ["ground_truth", "oracle", "all_ones"]
    assert resolve_row(rows[0][0]).masks is not None
