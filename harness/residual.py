"""Residual and dense networks on torchvision's blocks, apart from `harness.models`: importing torchvision takes seconds
that an MLP need not wait for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import densenet121 as torchvision_densenet121
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from harness.errors import ConfigError, DataError
from harness.models import Classifier, ImageShape, check_widths, global_average
from harness.weights import FROM_SCRATCH, IMAGENET, fetch, present

Normalisation = Literal["none", "imagenet"]


class Normalise(nn.Module):
    """(x - mean) / std per channel, fixed, so that models take images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, same shape."""
        return (x - self.mean) / self.std


class RepeatChannel(nn.Module):
    """One grey channel shown three times: [B, 1, H, W] to [B, 3, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Images with three channels."""
        return x.expand(-1, 3, -1, -1)


class UnsharedBasicBlock(BasicBlock):  # type: ignore[misc]
    """torchvision's BasicBlock with one ReLU module per use; parameters and outputs are the same."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()
        self.relu_out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """conv-BN-ReLU-conv-BN, plus the shortcut, ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu_out(self.bn2(self.conv2(inner)) + shortcut)
        return out


class UnsharedBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's Bottleneck with one ReLU module per use; parameters and outputs are the same."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()
        self.relu_mid = nn.ReLU()
        self.relu_out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """1x1, 3x3 and 1x1 convolutions with BN, plus the shortcut, ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.relu_mid(self.bn2(self.conv2(inner)))
        out: Tensor = self.relu_out(self.bn3(self.conv3(inner)) + shortcut)
        return out


def small_resnet(*, image_shape: ImageShape, num_classes: int, widths: Sequence[int] = (16, 32, 64)) -> Classifier:
    """conv-BN-ReLU of stride 2, one basic block of stride 2 per width, global average pooling."""
    sizes = check_widths("widths", widths)
    channels = sizes[0]
    layers: list[nn.Module] = [
        nn.Conv2d(image_shape[0], channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    for width in sizes:
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
        layers.append(UnsharedBasicBlock(channels, width, stride=2, downsample=shortcut))
        channels = width
    model = Classifier(nn.Sequential(*layers, *global_average()), nn.Linear(channels, num_classes))
    # A training step takes 0.77 of the time on a CPU (RRR's an equal one); ResNet-18's gains nothing there.
    return model.to(memory_format=torch.channels_last)


def resnet18(
    *,
    image_shape: ImageShape,
    num_classes: int,
    weights: str | None = None,
    normalise: Normalisation | None = None,
) -> Classifier:
    """torchvision ResNet-18; see `_wrap` for `weights` and `normalise`."""
    net = ResNet(UnsharedBasicBlock, [2, 2, 2, 2])
    net.relu = nn.ReLU()
    net.fc = nn.Identity()
    return _wrap("resnet18", net, net, 512, image_shape, num_classes, weights, normalise)


def resnet50(
    *,
    image_shape: ImageShape,
    num_classes: int,
    weights: str | None = None,
    normalise: Normalisation | None = None,
) -> Classifier:
    """torchvision ResNet-50; see `_wrap` for `weights` and `normalise`."""
    net = ResNet(UnsharedBottleneck, [3, 4, 6, 3])
    net.relu = nn.ReLU()
    net.fc = nn.Identity()
    return _wrap("resnet50", net, net, 2048, image_shape, num_classes, weights, normalise)


def densenet121(
    *,
    image_shape: ImageShape,
    num_classes: int,
    weights: str | None = None,
    normalise: Normalisation | None = None,
) -> Classifier:
    """torchvision DenseNet-121; its last, functional ReLU is a module here. See `_wrap` for the parameters."""
    net = torchvision_densenet121(weights=None)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    width = net.classifier.in_features
    net.classifier = nn.Identity()
    trunk = nn.Sequential(net.features, nn.ReLU(), *global_average())
    return _wrap("densenet121", net, trunk, width, image_shape, num_classes, weights, normalise)


def _wrap(
    name: str,
    net: nn.Module,
    trunk: nn.Module,
    width: int,
    image_shape: ImageShape,
    num_classes: int,
    weights: str | None,
    normalise: Normalisation | None,
) -> Classifier:
    """A torchvision network as a `Classifier`.

    weights: None; `imagenet`, torchvision's own, where they are present or can be downloaded, else from scratch, as
    `initial_weights` then says; or a local file (.safetensors, or a state dict saved by torch). The classification
    layer is left out. normalise: `imagenet` or `none`; None means `imagenet` where weights are asked for. A grey image
    is repeated on three channels.
    """
    file = present(name) if weights == IMAGENET else Path(weights) if weights is not None else None
    if file is not None:
        _load(net, file)
    if normalise not in (None, "none", "imagenet"):
        raise ConfigError(f"normalise is 'none' or 'imagenet', got '{normalise}'")
    if image_shape[0] not in (1, 3):
        raise ConfigError(f"this model takes images of 1 or 3 channels, got {image_shape[0]}")
    stages: list[nn.Module] = [RepeatChannel()] if image_shape[0] == 1 else []
    if normalise == "imagenet" or (normalise is None and weights is not None):
        stages.append(Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model = Classifier(nn.Sequential(*stages, trunk) if stages else trunk, nn.Linear(width, num_classes))
    if file is not None:
        model.initial_weights = file.name
    elif weights == IMAGENET:
        model.initial_weights = f"{FROM_SCRATCH} (weights=imagenet: {fetch(name) or 'not present'})"
    return model


def _load(net: nn.Module, path: Path) -> None:
    """Load a local state dict into `net`, without its classification layer."""
    if not path.is_file():
        raise DataError(f"the model weights {path} do not exist; give a local .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Mapping[str, Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        # Checkpoints of torchvision's early DenseNets write `norm.1` for what is `norm1` today.
        renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): v for key, v in state.items()}
        kept = {key: v for key, v in renamed.items() if not key.startswith(("fc.", "classifier."))}
        net.load_state_dict(kept)
    except Exception as error:  # a wrong file can fail in many ways inside the readers
        raise DataError(f"the model weights {path} do not fit this model: {error}") from error
