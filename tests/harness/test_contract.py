"""`vabench check`: what it says of code that cannot be imported, and of a `fit` that returns no model."""

from pathlib import Path

import numpy as np
import pytest

from harness.contract import _suite_checks, check_target
from harness.errors import ComponentError
from harness.suite import SuiteData
from suites.decoy import DecoyDigits

HEAD = """
from harness.method import Method, MethodInfo
from harness.supervision import Supervision
class Mine(Method):
    info = MethodInfo("mine", "a test", "mine:Mine", citation="none", supervision=Supervision.LABELS)
    def fit(self, task, base, context):
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a module on the path for one test."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")

    return put


def refusal(target: str) -> str:
    with pytest.raises(ComponentError) as caught:
        check_target(target)
    return str(caught.value)


def test_each_half_of_a_name_has_its_own_sentence(write) -> None:
    write("contract_fine", "class Here:\n    pass\n")
    assert "is not package.module:Class" in refusal("contract_fine")
    assert "there is no module 'contract_absent'" in refusal("contract_absent.part:Mine")
    said = refusal("contract_fine:Hree")
    assert "has no 'Hree'" in said
    assert "Here" in said


def test_a_module_that_raises_is_not_called_a_wrong_name(write) -> None:
    write("contract_raises", "x = 1\nraise RuntimeError('no licence')\n")
    said = refusal("contract_raises:Mine")
    assert "raises while it is imported: RuntimeError: no licence" in said
    assert "contract_raises.py, line 2)" in said
    assert "package.module:Class" not in said
    write("contract_needs", "import a_package_that_is_absent\n")
    said = refusal("contract_needs:Mine")
    assert "raises while it is imported: ModuleNotFoundError: No module named 'a_package_that_is_absent'" in said
    assert "there is no module" not in said


@pytest.mark.parametrize(("end", "what"), [("pass", "None"), ("return 3", "a int")])
def test_fit_without_a_model_is_told_what_to_return(write, end: str, what: str) -> None:
    write(f"contract_{what[-3:].lower()}", HEAD + f"        {end}\n")
    checks = check_target(f"contract_{what[-3:].lower()}:Mine")
    (fits,) = [check for check in checks if check.name.startswith("fits")]
    assert not fits.passed
    assert fits.detail.startswith(f"fit returned {what}, not a model")
    assert "`return model`" in fits.detail


def test_a_suite_that_seeds_the_global_generator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(DecoyDigits):
        pass

    def private() -> bool:
        (found,) = (check for check in _suite_checks(Here) if "global random" in check.name)
        return found.passed

    assert private()
    original = Here.load

    def seeding(self: Here, seed: int) -> SuiteData:
        np.random.seed(seed)  # noqa: NPY002 - what is to be found out
        return original(self, seed)

    monkeypatch.setattr(Here, "load", seeding)
    assert not private()
