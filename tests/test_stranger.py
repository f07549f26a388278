"""A third party's installed package: found, checked, run and shown like a built-in."""

import os
import shutil
from pathlib import Path

import fake_slurm
import pytest
from builds import install, vabench

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(HERE / "stranger", folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    return install(folder / "source", folder)


def test_list_finds_it_and_reports_what_is_broken(env: dict[str, str]) -> None:
    done = vabench("list", env=env)
    assert done.returncode == 0
    assert "head_only" in done.stdout
    assert "striped_digits" in done.stdout
    assert "broken_method" in done.stderr
    assert "stranger" in done.stderr
    assert vabench("list", "methods", "--check", env=env).returncode == 1


def test_list_check_names_metadata_that_imports_torch(tmp_path: Path) -> None:
    """Two of them: neither hides the other."""
    for name, heavy in (("slow_one", "import torch"), ("slow_two", "import torch.nn"), ("light", "")):
        info = f"INFO = ComponentInfo({name!r}, 'a sampler', '{name}:INFO')"
        code = f"from harness.registry import ComponentInfo\n{heavy}\n{info}\n"
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        installed = tmp_path / f"{name}-1.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n", encoding="utf-8")
        (installed / "entry_points.txt").write_text(f"[vabench.samplers]\n{name} = {name}:INFO\n", encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = vabench("list", "samplers", "--check", env=env)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "imports torch" in line]
    assert [line.split(":")[1].strip() for line in said] == ["slow_one", "slow_two"]
    assert "imports torch" not in vabench("list", "samplers", env=env).stderr


@pytest.mark.parametrize("target", ["stranger.head_only:HeadOnly", "stranger.striped_digits:StripedDigits"])
def test_check_passes(env: dict[str, str], target: str) -> None:
    done = vabench("check", target, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout


def test_it_runs_and_stands_in_the_table(env: dict[str, str], tmp_path: Path) -> None:
    words = ["run", "methods=[erm,head_only(lr=0.02),rrr@oracle]", "suites=[striped_digits(rho=0.95)]", "seeds=2"]
    words += ["workers=1", f"results={tmp_path / 'r'}", "recipes.base.epochs=4", "recipes.finetune.steps=20"]
    done = vabench(*words, "alignment.n=32", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "striped_digits-rho0.95" in done.stdout
    assert "head_only(lr=0.02)" in done.stdout
    (table,) = (tmp_path / "r" / "report").glob("*/*-preregistered.csv")
    assert "head_only(lr=0.02)" in table.read_text(encoding="utf-8")


def test_a_method_that_kills_its_process_fails_alone(env: dict[str, str], tmp_path: Path) -> None:
    words = ["run", "methods=[erm,crash,erm_decorrelated]", "seeds=2", "workers=2", f"results={tmp_path / 'r'}"]
    done = vabench(*words, "recipes.base.epochs=2", env=env)
    assert done.returncode == 1
    assert "died 2 times (last exit code 9)" in done.stderr
    assert "2 failed" in done.stdout
    assert "4 done" in done.stdout
    status = vabench("status", *words[1:], "recipes.base.epochs=2", env=env)
    assert "4 done, 2 missing" in status.stdout
    assert "failed last time" in status.stdout


def test_in_a_slurm_task_too(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pack holds the cell that kills its process and others; Slurm is simulated (tests/fake_slurm.py)."""
    pytest.importorskip("submitit")
    held = fake_slurm.install(tmp_path / "slurm", monkeypatch)
    env = {**env, **{name: os.environ[name] for name in ("PATH", "FAKE_SLURM")}}
    words = ["run", "methods=[erm,crash,erm_decorrelated]", "seeds=1", "executor=slurm(cells=3)"]
    done = vabench(*words, "recipes.base.epochs=2", f"results={tmp_path / 'r'}", env=env)
    held.end()
    assert done.returncode == 1
    assert "died 2 times (last exit code 9)" in done.stderr
    assert "1 failed" in done.stdout
    assert "2 done" in done.stdout
    assert held.starts("1") == 1  # the task itself lived on
