from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision

from harness import weights
from harness.errors import DataError
from harness.models import build_model
from harness.spec import Spec

ASKED = Spec("resnet18", {"weights": "imagenet"})


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A loopback server in place of torchvision's, and an empty torch.hub folder. The weights are random ones."""
    shop = tmp_path / "shop"
    shop.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shop)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(weights, "BASE", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    weights.fetch.cache_clear()
    yield shop
    server.shutdown()
    server.server_close()
    weights.fetch.cache_clear()


def offer(shop: Path, monkeypatch: pytest.MonkeyPatch, honest: bool = True) -> dict[str, torch.Tensor]:
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, shop / "file")
    start = hashlib.sha256((shop / "file").read_bytes()).hexdigest()[:8] if honest else "00000000"
    monkeypatch.setitem(weights.FILES, "resnet18", f"resnet18-{start}.pth")
    (shop / "file").rename(shop / weights.FILES["resnet18"])
    return state


def test_weights_are_downloaded_once_checked_and_loaded(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = offer(mirror, monkeypatch)
    name = weights.FILES["resnet18"]
    assert weights.identity(ASKED) == {"resnet18.weights": name}
    (mirror / name).unlink()
    weights.fetch.cache_clear()
    assert weights.identity(ASKED) == {"resnet18.weights": name}
    model = build_model(ASKED, (3, 32, 32), 2, seed=0)
    assert model.initial_weights == name
    assert torch.equal(dict(model.named_parameters())["backbone.1.conv1.weight"], state["conv1.weight"])


def test_a_file_of_another_hash_is_refused_and_not_kept(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(mirror, monkeypatch, honest=False)
    assert "sha256" in weights.fetch("resnet18")
    assert weights.present("resnet18") is None
    assert not list(weights.folder().glob("*")) if weights.folder().exists() else True


def test_without_weights_a_model_starts_from_scratch_and_says_so(mirror: Path) -> None:
    assert weights.identity(ASKED) == {"resnet18.weights": "from scratch"}
    model = build_model(ASKED, (3, 32, 32), 2, seed=0)
    assert model.initial_weights.startswith("from scratch (weights=imagenet: cannot have http://127.0.0.1")
    plain = build_model(Spec("resnet18"), (3, 32, 32), 2, seed=0)
    assert plain.initial_weights == "from scratch"
    assert torch.equal(model.head.weight, plain.head.weight)


def test_a_local_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"one")
    spec = Spec("resnet18", {"weights": str(path)})
    first = weights.identity(spec)
    path.write_bytes(b"another")
    assert weights.identity(spec) != first
    with pytest.raises(DataError, match=r"mine\.pth"):
        build_model(spec, (3, 32, 32), 2, seed=0)
