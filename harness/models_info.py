"""Metadata of the built-in vision models; importing it loads no torch."""

from __future__ import annotations

from harness.registry import ComponentInfo

_RESNET = "He et al., Deep residual learning for image recognition, CVPR 2016"

MLP = ComponentInfo("mlp", "fully connected ReLU network, one hidden layer of 64 by default", "harness.models:mlp")
SMALL_CNN = ComponentInfo(
    "small_cnn", "three convolutions (stride 2 or max-pool), global average pooling", "harness.models:small_cnn"
)
SMALL_RESNET = ComponentInfo(
    "small_resnet", "strided stem and three basic blocks, for 64 px images", "harness.residual:small_resnet", _RESNET
)
RESNET18 = ComponentInfo("resnet18", "torchvision ResNet-18", "harness.residual:resnet18", _RESNET)
RESNET50 = ComponentInfo("resnet50", "torchvision ResNet-50", "harness.residual:resnet50", _RESNET)
DENSENET121 = ComponentInfo(
    "densenet121",
    "torchvision DenseNet-121",
    "harness.residual:densenet121",
    "Huang et al., Densely connected convolutional networks, CVPR 2017",
)
