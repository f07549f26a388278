"""A small run, packed as an honest submission: once per file of tests."""

from pathlib import Path

import pytest
from submission_toys import RUN, SUITE, Files

import harness
from leaderboard.collect import everything
from leaderboard.submissions.pack import pack
from leaderboard.submissions.verify import Suites


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "results"
    harness.run("quickstart", "methods=[erm,rwg,rrr@oracle]", *RUN, seeds=2, workers=1, results=str(root))
    return root


@pytest.fixture(scope="module")
def suites() -> Suites:
    return Suites([SUITE])


@pytest.fixture(scope="module")
def honest(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    out = tmp_path_factory.mktemp("packed") / "lab"
    pack(everything(results).entries, "lab", out)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
