"""The tutorials' code is executed as it stands."""

import importlib.metadata
import re
import shlex
import sys
import sysconfig
from pathlib import Path

import pytest
from builds import install, vabench

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_add_a_method(tmp_path: Path) -> None:
    text = (DOCS / "add_a_method.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    init, method = blocks("add_a_method.md", "python")
    (points,) = blocks("add_a_method.md", "toml")
    package = tmp_path / "source" / "my_methods"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(init, encoding="utf-8")
    (package / "smooth.py").write_text(method, encoding="utf-8")
    project = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    project += '[project]\nname = "my_methods"\nversion = "0.1"\n'
    (tmp_path / "source" / "pyproject.toml").write_text(project + points, encoding="utf-8")
    env = install(tmp_path / "source", tmp_path)
    commands = re.findall(r"`(vabench [^`]+)`", text)
    checked = vabench("check", commands[-2].split()[-1], env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rows = commands[-1].split('"')[1]
    done = vabench("run", rows, "seeds=1", "workers=1", f"results={tmp_path / 'results'}", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smooth(smoothing=0.2)" in done.stdout


def test_add_a_suite(tmp_path: Path) -> None:
    """A suite that is one file, packaged as the page says."""
    (suite,) = blocks("add_a_suite.md", "python")
    (project,) = blocks("add_a_suite.md", "toml")
    source = tmp_path / "source"
    source.mkdir()
    (source / "two_bars.py").write_text(suite, encoding="utf-8")
    (source / "pyproject.toml").write_text(project, encoding="utf-8")
    env = install(source, tmp_path)
    assert (tmp_path / "site" / "two_bars.py").is_file()
    lines = blocks("add_a_suite.md", "sh")[0].splitlines()[1:]
    for words in (shlex.split(line, comments=True)[1:] for line in lines):
        here = ["workers=1", "recipes.base.epochs=3", "recipes.finetune.steps=5", "alignment.n=32"]
        extra = [*here, f"results={tmp_path / 'results'}"] if words[0] == "run" else []
        done = vabench(*words, *extra, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "two_bars" in done.stdout or words[0] == "check"


def test_quick_start_names_blocks_and_columns_as_the_table_does() -> None:
    from leaderboard.render import COLUMNS, HEADINGS

    text = (DOCS / "quick_start.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (.+?) \|", text, flags=re.MULTILINE)[1:]
    printed = [column.head for column in COLUMNS if column.terminal and column.key not in ("label", "tried")]
    assert table == printed
    flat = " ".join(text.split())
    assert all(f"`{heading}`" in flat for heading in HEADINGS.values())


def test_add_a_study(tmp_path: Path) -> None:
    (study,) = blocks("add_a_study.md", "yaml")
    (tmp_path / "steps.yaml").write_text(study, encoding="utf-8")
    words = ["axes.steps=[5,10]", "seeds=1", "workers=1", "recipes.base.epochs=3", "alignment.n=32"]
    done = vabench("study", "steps.yaml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {re.sub("-[0-9a-f]{8}", "", path.name) for path in (tmp_path / "results" / "studies").iterdir()}
    assert names == {"steps.csv", "steps-summary.csv", "steps.svg", "steps.png"}


def test_publish_a_board(tmp_path: Path) -> None:
    """Every command of the page, in order; the run is cut short."""
    commands = [line for block in blocks("publish.md", "sh") for line in block.splitlines()]
    assert len(commands) == 14
    (study,) = blocks("add_a_study.md", "yaml")
    (tmp_path / "steps.yaml").write_text(study, encoding="utf-8")
    short = ["workers=1", "recipes.base.epochs=3", "recipes.finetune.steps=10", "metrics.attribution_images=10"]
    for words in (shlex.split(line)[1:] for line in commands):
        done = vabench(*words, *(short if words[0] in ("run", "gallery") else []), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "my-board/site/index.html").read_text(encoding="utf-8")
    assert "rrr@oracle [my-lab]" in page
    assert "rerun (here / there)" in page
    templates = DOCS.parent / "leaderboard" / "templates" / "board"
    written = (tmp_path / "my-board/.github/workflows/verify.yml").read_text(encoding="utf-8")
    assert blocks("publish.md", "yaml") == [written]
    assert blocks("publish.md", "md") == [(templates / "pull_request.md").read_text(encoding="utf-8")]


def test_the_readme_says_how_large_an_installation_is() -> None:
    """To a fifth, which leaves room for a new version of a dependency."""
    cuda = [part for part in importlib.metadata.distributions() if (part.metadata["Name"] or "").startswith("nvidia-")]
    if sys.platform != "linux" or len(cuda) < 5:
        pytest.skip("another build of PyTorch, of another size, is installed here")
    packages = Path(sysconfig.get_paths()["purelib"])
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"installation takes (\d+) GB of disk", " ".join(readme.split()))
    assert size / 1e9 == pytest.approx(float(said), rel=0.2)
