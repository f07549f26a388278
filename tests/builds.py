"""Installs a small package for a test without network: build its wheel, unpack it, put the folder on the path."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path


def install(source: Path, target: Path) -> dict[str, str]:
    """Build the package in `source` and return an environment in which its entry points are found."""
    wheels = target / "wheels"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "site")
    return {**os.environ, "PYTHONPATH": str(target / "site"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def vabench(
    *words: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *words],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=300,
        check=False,
    )
