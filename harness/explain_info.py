"""Metadata of the built-in explainers; importing it loads no torch."""

from __future__ import annotations

from harness.registry import ComponentInfo

DEEPLIFT_SHAP = ComponentInfo(
    "deeplift_shap",
    "DeepLIFT rescale rule averaged over training baselines, complete through max-pooling",
    "harness.deeplift:DeepLiftShap",
    "Shrikumar et al., ICML 2017; Lundberg and Lee, NeurIPS 2017",
)
OCCLUSION = ComponentInfo(
    "occlusion",
    "drop of the score when a window shows the mean baseline",
    "harness.explain:Occlusion",
    "Zeiler and Fergus, ECCV 2014",
)
INPUT_X_GRADIENT = ComponentInfo(
    "input_x_gradient",
    "input times gradient",
    "harness.explain:InputXGradient",
    "Shrikumar et al., arXiv:1605.01713",
)
