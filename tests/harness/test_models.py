from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from harness.errors import ConfigError, DataError
from harness.models import Classifier, build_model
from harness.registry import registry
from harness.residual import Normalise
from harness.spec import Spec, parse_spec

NAMES = ("mlp", "small_cnn", "small_resnet", "resnet18", "resnet50", "densenet121")
NONLINEAR = (nn.ReLU, nn.MaxPool2d)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def test_every_registered_model_is_named_here() -> None:
    assert set(NAMES) <= set(registry("models").names())


@pytest.mark.parametrize(
    ("text", "shape", "width"),
    [
        ("mlp", (1, 28, 28), 64),
        ("mlp(hidden=32)", (3, 8, 8), 32),
        ("mlp(hidden=[40, 20])", (1, 28, 28), 20),
        ("mlp(hidden=[])", (1, 4, 4), 16),
        ("small_cnn", (1, 28, 28), 32),
        ("small_cnn(pool=max, widths=[4, 6])", (3, 27, 31), 6),
        ("small_resnet", (3, 64, 64), 64),
        ("small_resnet(widths=[8, 12, 20])", (1, 64, 64), 20),
        ("resnet18", (1, 64, 64), 512),
        ("resnet50", (3, 64, 64), 2048),
        ("densenet121", (1, 64, 64), 1024),
    ],
)
def test_forward_is_the_head_of_the_features(text: str, shape: tuple[int, int, int], width: int) -> None:
    model = build_model(parse_spec(text), shape, 5, seed=0).eval()
    x = images(2, *shape)
    with torch.no_grad():
        features, logits = model.features(x), model(x)
    assert features.shape == (2, width)
    assert logits.shape == (2, 5)
    assert isinstance(model.head, nn.Linear)
    assert torch.equal(logits, model.head(features))


@pytest.mark.parametrize("name", NAMES)
def test_every_nonlinearity_is_used_once_and_not_in_place(name: str) -> None:
    model = build_model(Spec(name), (3, 64, 64), 3, seed=0).eval()
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: object, output: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, NONLINEAR)]
    with torch.no_grad():
        model(images(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert len(calls) == len(handles) > 0
    assert set(calls.values()) == {1}
    assert not any(m.inplace for m in calls if isinstance(m, nn.ReLU))


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("resnet50", "fc"), ("densenet121", "classifier")])
def test_outputs_equal_torchvisions_with_the_same_weights(name: str, head: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    stock = getattr(torchvision.models, name)(weights=None).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # running statistics that are not 0 and 1
        for module in stock.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.save(stock.state_dict(), tmp_path / "w.pth")
    save_file(stock.state_dict(), tmp_path / "w.safetensors")
    setattr(stock, head, nn.Identity())
    x = images(2, 3, 64, 64)
    for file in ("w.pth", "w.safetensors"):
        spec = Spec(name, {"weights": str(tmp_path / file), "normalise": "none"})
        ours = build_model(spec, (3, 64, 64), 4, seed=1).eval()
        with torch.no_grad():
            assert torch.equal(ours.features(x), stock(x))
    grey = build_model(spec, (1, 64, 64), 4, seed=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(grey.features(x[:, :1]), stock(x[:, :1].repeat(1, 3, 1, 1)))


def test_normalisation_inside_the_model() -> None:
    plain = build_model(parse_spec("resnet18"), (3, 32, 32), 4, seed=1).eval()
    inside = build_model(parse_spec("resnet18(normalise=imagenet)"), (3, 32, 32), 4, seed=1).eval()
    x = images(2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(inside(x), plain((x - mean) / std))
    assert sum(isinstance(m, Normalise) for m in inside.modules()) == 1


@pytest.mark.parametrize("name", ["mlp", "small_resnet"])
def test_equal_seeds_give_equal_weights_and_leave_the_global_stream_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, two, other = (build_model(Spec(name), (1, 28, 28), 10, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    first, second, third = (list(m.state_dict().values()) for m in (one, two, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True))


def test_old_densenet_checkpoints_are_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    state = torchvision.models.densenet121(weights=None).state_dict()
    dotted = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for key, value in state.items()}
    assert dotted.keys() != state.keys()
    torch.save(dotted, tmp_path / "old.pth")
    spec = Spec("densenet121", {"weights": str(tmp_path / "old.pth")})
    model = build_model(spec, (3, 32, 32), 2, seed=0)
    loaded = [v for k, v in model.state_dict().items() if k.endswith("denselayer1.conv2.weight")]
    assert torch.equal(loaded[0], state["features.denseblock1.denselayer1.conv2.weight"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp(hiden=3)", "did you mean 'hidden'"),
        ("mlp(hidden=0)", "positive whole numbers"),
        ("mlp(hidden=wide)", "positive whole numbers"),
        ("small_cnn(pool=avg)", "'stride' or 'max'"),
        ("small_cnn(widths=[])", "positive whole numbers"),
        ("resnet18(normalise=mean)", "'none' or 'imagenet'"),
        ("mlp(num_classes=3)", "come from the suite"),
    ],
)
def test_wrong_parameters_are_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(parse_spec(text), (1, 8, 8), 2, seed=0)


def test_wrong_shapes_and_files_are_explained(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        build_model(Spec("resnet18"), (4, 32, 32), 2, seed=0)
    with pytest.raises(ConfigError, match="no model for images"):
        build_model(Spec("mlp"), (1, 8, 8), 1, seed=0)
    with pytest.raises(DataError, match="do not exist"):
        build_model(Spec("resnet18", {"weights": str(tmp_path / "none.pth")}), (3, 32, 32), 2, seed=0)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match="do not fit"):
        build_model(Spec("resnet18", {"weights": str(tmp_path / "bad.pth")}), (3, 32, 32), 2, seed=0)


def test_a_classifier_takes_any_backbone() -> None:
    model = Classifier(nn.Flatten(), nn.Linear(4, 2))
    assert model(images(3, 1, 2, 2)).shape == (3, 2)


def test_a_network_on_raw_images_trains_as_one_whose_inputs_are_multiplied() -> None:
    """The parametrized weight sees the very updates of a network that is given 255 times the input."""
    model = build_model(parse_spec("mlp(hidden=[12],input_scale=255,init_std=0.1)"), (1, 6, 6), 3, seed=4)
    raw = nn.Sequential(nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
    source = [model.backbone[1].parametrizations.weight.original, model.backbone[1].bias, model.head.weight]  # type: ignore[union-attr, index]
    with torch.no_grad():
        for target, value in zip(
            (raw[0].weight, raw[0].bias, raw[2].weight, raw[2].bias), (*source, model.head.bias), strict=True
        ):
            target.copy_(value)
    x, y = images(40, 1, 6, 6), torch.arange(40) % 3
    for net, inputs in ((model, x), (raw, 255 * x.flatten(1))):
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), y).backward()
            optimizer.step()
    torch.testing.assert_close(model(x), raw(255 * x.flatten(1)), rtol=1e-4, atol=1e-4)
    plain = build_model(parse_spec("mlp(hidden=[12],init_std=0.1)"), (1, 6, 6), 3, seed=4)
    assert not torch.allclose(model(x), plain(x))


@pytest.mark.parametrize("text", ["mlp(input_scale=0)", "mlp(init_std=-1)", "mlp(input_scale=abc)"])
def test_scale_and_spread_must_be_positive(text: str) -> None:
    with pytest.raises(ConfigError, match=r"positive|must be a number"):
        build_model(parse_spec(text), (1, 6, 6), 3, seed=0)
