from __future__ import annotations

from pathlib import Path

import pytest

from harness.assets import component_files, path_hash
from harness.config import load_config
from harness.descriptions import read_descriptions
from harness.errors import ConfigError, DataError
from harness.plan import plan
from harness.spec import parse_spec


def test_both_is_the_two_sentences_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("core: {a: A., b: B.}\nspurious: {a: X., b: Y.}\n")
    assert read_descriptions(path, ["a", "b"])["both"] == {"a": "A. X.", "b": "B. Y."}
    path.write_text("core: {a: A., b: B.}\nspurious: {a: X., b: Y.}\nboth: {a: one, b: two}\n")
    assert read_descriptions(path, ["a", "b"])["both"]["a"] == "one"
    path.write_text("core: {a: A., b: B.}\n")
    assert set(read_descriptions(path, ["a", "b"])) == {"core"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core: {a: A.}", "no sentence for b"),
        ("core: {a: A., b: B., c: C.}", "unknown classes c"),
        ("kern: {a: A., b: B.}", "sections core, spurious, both"),
        ("core: [a, b]", "must map"),
        ("core: {a: A., b: ''}", "no sentence for b"),
        ("[", "cannot read"),
        ("", "sections"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_descriptions(path, ["a", "b"])
    with pytest.raises(DataError, match="cannot read"):
        read_descriptions(tmp_path / "absent.yaml", ["a", "b"])


def test_a_hash_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    first = path_hash(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert path_hash(tmp_path) == first
    (tmp_path / "a.txt").write_text("22")
    second = path_hash(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert len({first, second, path_hash(tmp_path)}) == 3
    with pytest.raises(ConfigError, match="no file or folder"):
        path_hash(tmp_path / "absent")


def test_files_of_nested_components_enter_the_identity(tmp_path: Path) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "w").write_text("1")
    spec = parse_spec(f"random_verdicts(of=critic(client=local(path={weights})))")
    first = component_files("mask_sources", spec)
    assert {"local.path", "methods:lvlm_va/wording"} <= set(first)
    behind = parse_spec(f"critic(client=recorded(of=local(path={weights}),folder={tmp_path / 'answers'}))")
    assert component_files("mask_sources", behind) == first
    (weights / "w").write_text("23")
    assert component_files("mask_sources", spec) != first


def test_only_rows_that_read_descriptions_hold_their_hash() -> None:
    config = load_config("quickstart", ["methods=[erm,lvlm_va@oracle,lvlm_va@embedded]", "seeds=1"])
    files = {cell.row_name: cell.identity.get("files", {}) for cell in plan(config)}
    assert files["erm"] == {}
    assert files["lvlm_va@oracle"] == {}
    assert set(files["lvlm_va@embedded"]) == {"suites:descriptions/digits.yaml", "methods:lvlm_va/embedded/weights"}
