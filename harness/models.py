"""Small vision models by name. Each is a backbone that gives features and a linear head, and no ReLU is used twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from harness.errors import ComponentError, ConfigError
from harness.registry import check_parameters, registry
from harness.spec import Spec
from harness.weights import FROM_SCRATCH

ImageShape = tuple[int, int, int]  # channels, height, width
_FROM_SUITE = ("image_shape", "num_classes")


class Classifier(nn.Module):
    """A backbone and a linear head: logits [B, K] of images x, float [B, C, H, W] in [0, 1].

    Every nonlinearity is a module of its own, never in place and called once per forward pass, so that attribution
    methods can tell the uses apart. `initial_weights` says what training starts from, for the record.
    """

    initial_weights: str = FROM_SCRATCH

    def __init__(self, backbone: nn.Module, head: nn.Linear):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features, float [B, D]."""
        out: Tensor = self.backbone(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float [B, K]."""
        out: Tensor = self.head(self.backbone(x))
        return out


class Scale(nn.Module):
    """A constant factor, as a parametrization of a weight: the optimiser sees the weight before it."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        """factor * weight."""
        return self.factor * weight


def mlp(
    *,
    image_shape: ImageShape,
    num_classes: int,
    hidden: int | Sequence[int] = (64,),
    input_scale: float = 1.0,
    init_std: float | None = None,
) -> Classifier:
    """Fully connected ReLU network on the flattened image.

    hidden: width of the hidden layer, or one width per layer; an empty list is logistic regression.
    input_scale: train as if inputs were multiplied by this; 255 is a network on raw 0..255 images. The functions that
        it can compute stay the same, but an optimiser's step on its first layer is that much larger.
    init_std: draw all weights and biases from N(0, init_std^2) instead of torch's default (Ross et al. 2017: 0.1).
    """
    widths = check_widths("hidden", [hidden] if isinstance(hidden, int) else hidden)
    for name, value in (("input_scale", input_scale), ("init_std", init_std)):
        if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise ConfigError(f"{name} must be a positive number, got {value}")
    size = image_shape[0] * image_shape[1] * image_shape[2]
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    model = Classifier(nn.Sequential(*layers), nn.Linear(size, num_classes))
    if init_std is not None:
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0, init_std)
    if input_scale != 1.0:
        first = layers[1] if widths else model.head
        parametrize.register_parametrization(first, "weight", Scale(input_scale))
    return model


def small_cnn(
    *,
    image_shape: ImageShape,
    num_classes: int,
    widths: Sequence[int] = (8, 16, 32),
    pool: Literal["stride", "max"] = "stride",
) -> Classifier:
    """3x3 convolutions with ReLU and no normalisation, then global average pooling.

    pool: each layer halves the image, by a stride of 2 (`stride`) or by a 2x2 max-pool after the ReLU (`max`).
    """
    if pool not in ("stride", "max"):
        raise ConfigError(f"model 'small_cnn': pool is 'stride' or 'max', got '{pool}'")
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for width in check_widths("widths", widths):
        layers += [nn.Conv2d(channels, width, 3, stride=2 if pool == "stride" else 1, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if pool == "max" else []
        channels = width
    return Classifier(nn.Sequential(*layers, *global_average()), nn.Linear(channels, num_classes))


def build_model(spec: Spec, image_shape: ImageShape, num_classes: int, seed: int) -> Classifier:
    """Build a model on the CPU with its own initialisation: equal seeds give equal weights.

    Args:
        spec: name and parameters of a model of the registry. image_shape: channels, height, width.
        num_classes: K. seed: of the initialisation; the global random state is left as it was.

    Raises:
        ConfigError: a parameter that the model does not take, or a value that it refuses.
        ComponentError: an unknown model, or one that is not a `Classifier`. DataError: unreadable weights.
    """
    factory = registry("models").load(spec.name)
    given = [name for name in _FROM_SUITE if name in spec.params]
    if given:
        raise ConfigError(f"model '{spec}': {' and '.join(given)} come from the suite; leave them out")
    check_parameters(f"model '{spec.name}'", factory, spec.params, _FROM_SUITE)
    if len(image_shape) != 3 or min(image_shape) < 1 or num_classes < 2:
        raise ConfigError(f"model '{spec.name}': no model for images {tuple(image_shape)} and {num_classes} classes")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        try:
            model = factory(image_shape=tuple(image_shape), num_classes=num_classes, **spec.params)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model '{spec}': {error}") from error
    if not isinstance(model, Classifier):
        raise ComponentError(f"model '{spec.name}' gives a {type(model).__name__}, not a harness.models.Classifier")
    return model


def place(model: Classifier, device: torch.device) -> Classifier:
    """The model on a device; on a GPU its convolutions in channels_last, for which cuDNN's faster kernels are made."""
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def global_average() -> list[nn.Module]:
    """Layers from feature maps [B, D, h, w] to their means [B, D]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def check_widths(name: str, values: Sequence[int]) -> list[int]:
    """The widths as a list, or a ConfigError that names the parameter."""
    widths = list(values)
    if any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths) or (name == "widths" and not widths):
        raise ConfigError(f"{name} must be positive whole numbers, got {values}")
    return widths
