from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from captum.attr import DeepLift
from captum.attr import DeepLiftShap as CaptumDeepLiftShap
from torch import Tensor, nn
from torch.nn import functional as F

from harness.chain import chain_of
from harness.deeplift import DeepLiftShap
from harness.errors import ConfigError, NotApplicable
from harness.explain import (
    Explainer,
    InputXGradient,
    Occlusion,
    as_float,
    completeness_gap,
    draw_baselines,
    target_score,
)
from harness.models import Classifier, build_model
from harness.registry import registry
from harness.spec import parse_spec

CASES = [  # model, image shape, images, baselines
    ("mlp", (1, 28, 28), 48, 20),
    ("mlp(hidden=[48, 24])", (3, 12, 12), 32, 6),
    ("small_cnn", (1, 28, 28), 24, 6),
    ("small_cnn(pool=max)", (1, 28, 28), 24, 6),
    ("small_resnet", (3, 64, 64), 12, 4),
    ("resnet18", (3, 64, 64), 8, 3),
    ("densenet121", (1, 64, 64), 3, 2),
]


def pictures(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Smooth uint8 blobs on black, so that many inputs are equal in images and baselines."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, shape[0], 5, 5, generator=g)
    smooth = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=False)
    return ((smooth - 0.45).clamp(min=0) * 460).clamp(max=255).to(torch.uint8)


def network(text: str, shape: tuple[int, int, int]) -> Classifier:
    """Random weights and BatchNorm statistics, the head scaled so that logits spread by 5 over images."""
    model = build_model(parse_spec(text), shape, 10, seed=0).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=g)
                module.running_var.uniform_(0.3, 1.5, generator=g)
                module.bias.normal_(0, 0.2, generator=g)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.uniform_(-0.3, 0.3, generator=g)
        spread = model(as_float(pictures(32, shape, 7), torch.float32)).std(0).mean()
        model.head.weight.mul_(5 / spread)
    return model


class Centred(nn.Module):
    """Logits minus their mean: what our explainers explain, for captum."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits - logits.mean(1, keepdim=True)


def captum_maps(model: nn.Module, x: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = CaptumDeepLiftShap(Centred(model)).attribute(
            as_float(x, torch.float32), baselines=as_float(baselines, torch.float32), target=target
        )
    return found.detach().sum(1)


@pytest.mark.parametrize(("text", "shape", "n", "b"), CASES)
def test_completeness_bounds_of_the_protocol(text: str, shape: tuple[int, int, int], n: int, b: int) -> None:
    model, x, base = network(text, shape), pictures(n, shape, 0), pictures(b, shape, 9)
    target = torch.arange(n) % 10
    found = DeepLiftShap(baselines=b)(model, x, target, base)
    with torch.no_grad():
        score = target_score(model(as_float(x, torch.float32)), target)
        logits = model(as_float(base, torch.float32))
        reference = torch.stack([target_score(logits, t.expand(b)).mean() for t in target])
    delta = score - reference
    assert delta.abs().median() > 0.5  # the bound would be empty on scores that hardly move
    by_hand = (found.maps.flatten(1).sum(1) - delta).abs() / delta.abs().clamp(min=0.1)
    assert by_hand.quantile(0.95) <= 1e-3
    assert found.gap.quantile(0.95) <= 1e-3
    # The reported gap is the true one, up to the rounding of float32 scores that spread by 5 (summed in another order).
    scale = delta.abs().clamp(min=0.1)
    torch.testing.assert_close(found.gap * scale, by_hand * scale, atol=1e-4, rtol=0.0)

    explainer, double = DeepLiftShap(baselines=b), model.double()
    state = explainer._prepare(double, as_float(base, torch.float64), 64)
    phi, exact = explainer._attribute(double, as_float(x, torch.float64), target, state)
    assert (phi.flatten(1).sum(1) - exact).abs().max() <= 1e-6
    torch.testing.assert_close(exact.float(), delta, atol=1e-3, rtol=1e-3)


def test_mlp_equals_captum() -> None:
    model, x, base = network("mlp", (1, 28, 28)), pictures(32, (1, 28, 28), 0), pictures(20, (1, 28, 28), 5)
    target = torch.arange(32) % 10
    ours = DeepLiftShap(baselines=20)(model, x, target, base).maps
    theirs = captum_maps(model, x, target, base)
    assert theirs.abs().max() > 0.01
    assert (ours - theirs).abs().max() <= 1e-5


def test_general_path_equals_the_closed_form() -> None:
    class Opaque(nn.Module):  # not a chain that the closed form recognises
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x)
            return out

    model = network("mlp(hidden=[30, 20])", (1, 12, 12))
    assert chain_of(model) is not None
    assert chain_of(Opaque(model)) is None
    x, base, target = pictures(16, (1, 12, 12), 0), pictures(5, (1, 12, 12), 5), torch.arange(16) % 10
    closed, general = (DeepLiftShap()(m, x, target, base) for m in (model, Opaque(model)))
    torch.testing.assert_close(closed.maps, general.maps, atol=1e-5, rtol=1e-4)


def test_a_layer_with_a_forward_of_its_own_is_no_part_of_a_chain() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Doubled(36, 9), nn.ReLU(), nn.Linear(9, 3))
    assert chain_of(model) is None
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 3))
    with torch.no_grad():
        for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True):
            ours.copy_(2 * theirs if ours.shape[0] == 9 else theirs)
    assert chain_of(plain) is not None
    x, base, target = pictures(6, (1, 6, 6), 0), pictures(3, (1, 6, 6), 4), torch.arange(6) % 3
    for explainer in (DeepLiftShap(), Occlusion(window=3)):
        one, other = (explainer(m, x, target, base).maps for m in (model, plain))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_what_is_hooked_patched_or_drops_is_no_chain() -> None:
    class Soft(nn.Sigmoid):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(dim=1)

    def chain(activation: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), activation, nn.Dropout(), nn.Linear(4, 3)).eval()

    assert chain_of(chain(nn.Sigmoid())) is not None
    assert chain_of(chain(Soft())) is None
    assert chain_of(chain(nn.Sigmoid()).train()) is None
    patched, hooked = chain(nn.Sigmoid()), chain(nn.Sigmoid())
    patched[1].forward = lambda x: x  # type: ignore[method-assign]
    assert chain_of(patched) is None
    hooked[1].register_forward_hook(lambda *a: None)
    assert chain_of(hooked) is None
    everywhere = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert chain_of(chain(nn.Sigmoid())) is None
    finally:
        everywhere.remove()


def test_large_windows_of_wide_layers_run_the_model() -> None:
    few, many = torch.zeros(4, 3, 64, 64), torch.zeros(256, 1, 28, 28)
    first = chain_of(build_model(parse_spec("mlp(hidden=512)"), (3, 64, 64), 10, 0).eval())
    small = chain_of(build_model(parse_spec("mlp"), (1, 28, 28), 10, 0).eval())
    assert first is not None
    assert small is not None
    assert Occlusion()._closed_pays(small[0], many)
    assert Occlusion()._closed_pays(first[0], few)
    assert not Occlusion(window=32, stride=8)._closed_pays(first[0], few)


@pytest.mark.parametrize("text", ["small_cnn", "small_resnet"])
def test_networks_without_max_pool_equal_captum(text: str) -> None:
    model, x, base = network(text, (3, 32, 32)), pictures(6, (3, 32, 32), 0), pictures(4, (3, 32, 32), 5)
    target = torch.arange(6)
    ours, theirs = DeepLiftShap()(model, x, target, base).maps, captum_maps(model, x, target, base)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_zero_baseline_through_max_pool_equals_captums_deeplift() -> None:
    """A black image and no biases: every window of the baseline is all zeros, so the image's winner wins in both."""
    model = build_model(parse_spec("small_cnn(pool=max)"), (1, 28, 28), 10, seed=0).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                module.bias.zero_()
    x, target = pictures(8, (1, 28, 28), 0), torch.arange(8)
    black = draw_baselines(x, 1, torch.Generator(), "zeros")
    ours = DeepLiftShap(baselines=1)(model, x, target, black).maps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DeepLift(Centred(model)).attribute(as_float(x, torch.float32), target=target).detach().sum(1)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-7


def test_max_pool_shares_a_change_between_the_two_winners() -> None:
    """One window of two pixels, worked by hand."""
    model = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))  # score of class 0 = the window's maximum
    x, b = torch.tensor([[[[5.0, 2.0]]]]).double(), torch.tensor([[[[1.0, 4.0]]]]).double()
    target = torch.zeros(1, dtype=torch.long)
    explainer = DeepLiftShap(baselines=1)

    def phi(image: Tensor, baseline: Tensor) -> list[float]:
        values = explainer._attribute(model, image, target, explainer._prepare(model, baseline, 1))[0]
        return [round(v, 9) for v in values.flatten().tolist()]

    # Player 0 alone lifts the maximum from 4 to 5; after player 1 fell to 2, from 2 to 5: mean (1 + 3) / 2 = 2.
    # Player 1 alone lowers it from 4 to 2; after player 0 rose to 5, not at all: mean (-2 + 0) / 2 = -1.
    assert phi(x, b) == [2.0, -1.0]
    assert phi(b, x) == [-2.0, 1.0]
    same = torch.tensor([[[[3.0, 0.5]]]]).double()  # one winner throughout: all of the change is its own
    assert phi(x, same) == [2.0, 0.0]
    flat = torch.tensor([[[[4.0, 4.0]]]]).double()  # a tie: whoever also wins in the other image
    assert phi(x, flat) == [1.0, 0.0]
    assert phi(b, flat) == [0.0, 0.0]
    assert phi(flat, b) == [0.0, 0.0]
    assert phi(flat, x) == [-1.0, 0.0]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveMaxPool2d(3)])
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish],
)
def test_complete_for_every_activation_and_pool(activation: Callable[[], nn.Module], pool: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), activation(), pool, nn.BatchNorm2d(4), nn.Conv2d(4, 3, 2), activation()),
        *(nn.Flatten(), nn.LazyLinear(4)),
    )
    model.eval()(torch.zeros(1, 2, 11, 11))
    with torch.no_grad():
        model[-1].weight.mul_(30)
    x, base, target = pictures(6, (2, 11, 11), 0), pictures(3, (2, 11, 11), 4), torch.arange(6) % 4
    assert DeepLiftShap()(model, x, target, base).gap.max() <= 1e-3
    explainer, double = DeepLiftShap(), model.double()
    state = explainer._prepare(double, as_float(base, torch.float64), 64)
    phi, delta = explainer._attribute(double, as_float(x, torch.float64), target, state)
    assert (phi.flatten(1).sum(1) - delta).abs().max() <= 1e-6


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU])
def test_closed_form_is_complete_for_other_activations(activation: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), activation(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    assert chain_of(model) is not None
    x, target = pictures(6, (1, 6, 6), 0), torch.arange(6) % 3
    found = DeepLiftShap()(model, x, target, torch.cat([x[:1], pictures(3, (1, 6, 6), 4)]))  # x[0] is also a baseline
    assert torch.isfinite(found.maps).all()
    assert found.gap.max() <= 1e-4


def test_a_shared_relu_and_a_functional_one_are_attributed_correctly() -> None:
    """Stock torchvision ResNets use one in-place ReLU module several times: captum refuses them, we need not."""
    model = network("resnet18", (3, 64, 64))
    stock = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    state = {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}
    stock.load_state_dict({key.replace("head.", "fc."): value for key, value in state.items()})
    x, base, target = pictures(4, (3, 64, 64), 0), pictures(2, (3, 64, 64), 5), torch.arange(4)
    ours, theirs = DeepLiftShap()(model, x, target, base), DeepLiftShap()(stock, x, target, base)
    torch.testing.assert_close(ours.maps, theirs.maps)
    assert theirs.gap.max() <= 1e-3


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1)), "softmax"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4)), "layer_norm"),
        (lambda: Squared(), "product of two activations"),
        (lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()), "batch_norm"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(build: Callable[[], nn.Module], named: str) -> None:
    x = pictures(3, (1, 4, 4), 0)
    with pytest.raises(NotApplicable, match=named):
        DeepLiftShap()(build(), x, torch.zeros(3, dtype=torch.long), x[:2])


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(x.flatten(1))
        return z * z


@pytest.mark.parametrize("explainer", [DeepLiftShap(baselines=3), Occlusion(window=8, stride=8), InputXGradient()])
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(explainer: Explainer, broken: bool) -> None:
    model = build_model(parse_spec("small_resnet"), (3, 32, 32), 4, seed=0)
    model.backbone[1].eval()  # a mixed state: modes must be restored one by one
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    target = torch.tensor([0, 1, 7 if broken else 2])  # class 7 does not exist: fails half-way through
    x = pictures(3, (3, 32, 32), 0)
    if broken:
        with pytest.raises((RuntimeError, IndexError)):
            explainer(model, x, target, pictures(3, (3, 32, 32), 1))
    else:
        explainer(model, x, target, pictures(3, (3, 32, 32), 1))
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert F.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("explainer", [DeepLiftShap(baselines=4), Occlusion(), InputXGradient()])
@pytest.mark.parametrize("text", ["mlp", "small_cnn(pool=max)"])
def test_maps_do_not_depend_on_the_batch_and_repeat_exactly(explainer: Explainer, text: str) -> None:
    model, x, base = network(text, (1, 28, 28)), pictures(9, (1, 28, 28), 0), pictures(4, (1, 28, 28), 5)
    target = torch.arange(9)
    whole = explainer(model, x, target, base)
    again = explainer(model, x, target, base)
    assert torch.equal(whole.maps, again.maps)
    assert torch.equal(whole.gap, again.gap)
    tolerance = float(whole.maps.abs().max()) * 1e-4
    for part in (explainer(model, x, target, base, batch_size=2), explainer(model, x[4:6], target[4:6], base)):
        rows = slice(None) if len(part.maps) == 9 else slice(4, 6)
        torch.testing.assert_close(part.maps, whole.maps[rows], atol=tolerance, rtol=1e-4)
    assert whole.maps.dtype == torch.float32
    assert whole.maps.shape == (9, 28, 28)
    assert whole.gap.shape == (9,)


def test_float_and_uint8_baselines_agree() -> None:
    model, x, base = network("mlp", (1, 28, 28)), pictures(4, (1, 28, 28), 0), pictures(3, (1, 28, 28), 5)
    target = torch.arange(4)
    one, two = (DeepLiftShap()(model, x, target, b) for b in (base, base.float() / 255))
    torch.testing.assert_close(one.maps, two.maps)


@pytest.mark.parametrize("text", ["small_cnn", "mlp(hidden=[9, 7])", "mlp(hidden=[])"])
@pytest.mark.parametrize(
    ("window", "stride", "size"), [(4, 2, (11, 9)), (3, 3, (9, 9)), (5, 4, (10, 12)), (20, 3, (8, 8))]
)
def test_occlusion_equals_a_loop_over_images_and_windows(
    window: int, stride: int, size: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained = []
    fill_chain = Occlusion._filled_chain
    monkeypatch.setattr(Occlusion, "_closed_pays", lambda *a: True)
    monkeypatch.setattr(Occlusion, "_filled_chain", lambda *a: chained.append(1) or fill_chain(*a))  # type: ignore[func-returns-value]
    shape = (2, *size)
    model, x, base = network(text, shape), pictures(3, shape, 0), pictures(4, shape, 5)
    target = torch.tensor([1, 0, 3])
    found = Occlusion(window=window, stride=stride)(model, x, target, base).maps
    assert bool(chained) == text.startswith("mlp")
    fill = as_float(base, torch.float32).mean(0)
    height, width = size

    def starts(length: int) -> list[int]:
        return sorted({*range(0, max(length - window, 0) + 1, stride), max(length - window, 0)})

    @torch.no_grad()
    def score(image: Tensor, k: int) -> float:
        logits = model(image[None])[0]
        return float(logits[k] - logits.mean())

    for i in range(3):
        image, k = as_float(x[i], torch.float32), int(target[i])
        drops: list[list[list[float]]] = [[[] for _ in range(width)] for _ in range(height)]
        for top in starts(height):
            for left in starts(width):
                covered = image.clone()
                covered[:, top : top + window, left : left + window] = fill[:, top : top + window, left : left + window]
                drop = score(image, k) - score(covered, k)
                for row in range(top, min(top + window, height)):
                    for column in range(left, min(left + window, width)):
                        drops[row][column].append(drop)
        area = min(window, height) * min(window, width)
        expected = torch.tensor([[sum(d) / len(d) / area for d in row] for row in drops])
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4)


def test_linear_models_are_explained_exactly_by_every_explainer() -> None:
    model = build_model(parse_spec("mlp(hidden=[])"), (1, 8, 8), 3, seed=0)
    x, base, target = pictures(5, (1, 8, 8), 0), pictures(4, (1, 8, 8), 5), torch.arange(5) % 3
    weight = (model.head.weight[target] - model.head.weight.mean(0)).detach().view(5, 8, 8)
    values, mean = as_float(x, torch.float32)[:, 0], as_float(base, torch.float32).mean(0)[0]
    for explainer, expected in (
        (DeepLiftShap(), weight * (values - mean)),
        (InputXGradient(), weight * values),
        (Occlusion(window=1, stride=1), weight * (values - mean)),
    ):
        found = explainer(model, x, target, base)
        torch.testing.assert_close(found.maps, expected, atol=1e-5, rtol=1e-4)
        assert found.gap.max() < 1e-4


def test_incomplete_maps_say_so() -> None:
    """Input x gradient on a saturated network is far from complete: the gap must show it."""
    model, x = network("mlp", (1, 28, 28)), pictures(16, (1, 28, 28), 0)
    assert InputXGradient()(model, x, torch.arange(16) % 10, x[:0]).gap.median() > 1e-2
    phi, delta = torch.tensor([[1.0, 1.0], [0.01, 0.0]]), torch.tensor([4.0, 0.0])
    assert completeness_gap(phi, delta).tolist() == pytest.approx([0.5, 0.1])


def test_draw_baselines() -> None:
    x = pictures(30, (3, 16, 16), 0)

    def draw(count: int, kind: str = "train", seed: int = 0) -> Tensor:
        return draw_baselines(x, count, torch.Generator().manual_seed(seed), kind)  # type: ignore[arg-type]

    drawn = draw(10)
    assert torch.equal(drawn, draw(10))
    assert not torch.equal(drawn, draw(10, seed=1))
    rows = [next(i for i in range(30) if torch.equal(x[i], image)) for image in drawn]
    assert len(set(rows)) == 10
    assert torch.equal(draw(5, "zeros"), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    blurred = draw(10, "blur")
    assert blurred.dtype == torch.uint8
    assert blurred.shape == drawn.shape
    assert blurred.float().std((2, 3)).mean() < 0.7 * drawn.float().std((2, 3)).mean()
    torch.testing.assert_close(blurred.float().mean(), drawn.float().mean(), atol=6.0, rtol=0.1)
    flat = torch.full((2, 1, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(draw_baselines(flat, 2, torch.Generator(), "blur"), flat)
    assert len(draw(0)) == 0
    for count, kind in ((31, "train"), (-1, "train"), (3, "noise")):
        with pytest.raises(ConfigError):
            draw(count, kind)


def test_explainers_come_from_the_registry_with_their_parameters() -> None:
    for text, params in (
        ("deeplift_shap(baselines=8)", {"baselines": 8}),
        ("occlusion(window=6)", {"window": 6, "stride": 2, "baselines": 20}),
        ("input_x_gradient", {}),
    ):
        explainer = registry("explainers").create(parse_spec(text))
        assert explainer.params == params
        assert explainer.info.name == parse_spec(text).name
    with pytest.raises(ConfigError, match="did you mean 'stride'"):
        registry("explainers").create(parse_spec("occlusion(strid=2)"))
    with pytest.raises(ConfigError, match="positive whole number"):
        registry("explainers").create(parse_spec("deeplift_shap(baselines=0)"))


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, x = network("mlp", (1, 28, 28)), pictures(4, (1, 28, 28), 0)
    with pytest.raises(ValueError, match="target"):
        DeepLiftShap()(model, x, torch.zeros(3, dtype=torch.long), x)
    with pytest.raises(ValueError, match="baselines"):
        DeepLiftShap()(model, x, torch.zeros(4, dtype=torch.long), x[:, :, :8])
    with pytest.raises(ValueError, match="at least one baseline"):
        DeepLiftShap()(model, x, torch.zeros(4, dtype=torch.long), x[:0])
