"""A repository in which a lab runs a board of its own on GitHub Pages."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from harness.errors import ConfigError
from harness.store import write_bytes

# Template -> where it goes.
FILES = {
    "board/verify.yml": ".github/workflows/verify.yml",
    "board/publish.yml": ".github/workflows/publish.yml",
    "board/pull_request.md": ".github/pull_request_template.md",
    "board/readme.md": "README.md",
    "board/keep.md": "submissions/README.md",
}


def init_board(folder: Path) -> list[Path]:
    """Write the repository's files; returns them. Its workflows install this version of vabench and no other.

    Raises:
        ConfigError: one of them exists already (nothing is written then).
    """
    there = [place for place in FILES.values() if (folder / place).exists()]
    if there:
        raise ConfigError(f"{folder / there[0]} exists already; choose an empty folder")
    for template, place in FILES.items():
        text = files("leaderboard").joinpath("templates", template).read_text(encoding="utf-8")
        write_bytes(folder / place, text.replace("@VERSION@", version("vabench")).encode())
    return [folder / place for place in FILES.values()]
