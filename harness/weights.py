"""Pretrained torchvision weights (`weights=imagenet`): where they lie, how they are fetched, and what a record says
where they cannot be had. Imports no torch: planning asks too, because a cell's identity holds the answer."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path

from harness.assets import path_hash
from harness.spec import Spec

FROM_SCRATCH = "from scratch"
IMAGENET = "imagenet"
BASE = "https://download.pytorch.org/models/"
TIMEOUT_S = 20
# torchvision's IMAGENET1K_V1 files; the eight digits in a name are the start of the file's sha256.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "densenet121": "densenet121-a639ec97.pth",
}


def folder() -> Path:
    """Where torch.hub keeps checkpoints: below $TORCH_HOME, $XDG_CACHE_HOME/torch or ~/.cache/torch."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))).expanduser() / "hub" / "checkpoints"


def present(model: str) -> Path | None:
    """The ImageNet weights of a model on this machine, or None."""
    path = folder() / FILES[model]
    return path if path.is_file() else None


@cache
def fetch(model: str) -> str:
    """Make the ImageNet weights of a model present where that is possible; the reason where it is not, else ''."""
    if present(model) is not None:
        return ""
    name = FILES[model]
    try:
        with urllib.request.urlopen(BASE + name, timeout=TIMEOUT_S) as answer:
            content = answer.read()
        expected = name.rpartition("-")[2].partition(".")[0]
        if not hashlib.sha256(content).hexdigest().startswith(expected):
            return f"{BASE + name} is not the file that its name promises (sha256)"
        folder().mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder())
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(part, folder() / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    except (OSError, urllib.error.URLError, ValueError) as error:
        return f"cannot have {BASE + name}: {getattr(error, 'reason', error)}"
    return ""


def identity(model: Spec) -> dict[str, str]:
    """What a model's `weights` stand for on this machine, for a cell's identity: label -> file or sha256.

    `weights=imagenet` is downloaded here if it is not present; a model that cannot have it starts from scratch, under
    an identity of its own.
    """
    value = model.params.get("weights")
    if value == IMAGENET and model.name in FILES:
        fetch(model.name)
        return {f"{model.name}.weights": FILES[model.name] if present(model.name) else FROM_SCRATCH}
    if isinstance(value, str) and Path(value).is_file():
        return {f"{model.name}.weights": path_hash(value)}
    return {}
