"""Models that are a plain chain of linear layers, which explainers can take apart: multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from harness.models import Classifier

_LINEAR = (nn.Flatten, nn.Identity, nn.Dropout, nn.Linear)
_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU)


@dataclass
class Layer:
    """A linear layer. activation: applied to its output, None for none."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module | None = None


def chain_of(model: nn.Module) -> list[Layer] | None:
    """The layers of a model that is a plain chain (Flatten, Linear, pointwise activations) in eval mode, else None."""
    anywhere = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    if anywhere or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    layers: list[Layer] = []
    for position, module in enumerate(_unrolled(model)):
        if not _as_written(module) or (isinstance(module, nn.Dropout) and module.training):
            return None
        if isinstance(module, nn.Flatten) != (position == 0):
            return None
        if isinstance(module, nn.Linear):
            layers.append(Layer(module.weight.detach(), None if module.bias is None else module.bias.detach()))
        elif isinstance(module, _POINTWISE):
            if not layers or layers[-1].activation is not None or getattr(module, "inplace", False):
                return None
            layers[-1].activation = module
    return layers or None


def _as_written(module: nn.Module) -> bool:
    """Whether it is one of the known kinds, and no forward of a subclass or of its own says otherwise."""
    return "forward" not in vars(module) and any(type(module).forward is k.forward for k in (*_LINEAR, *_POINTWISE))


def logits_above(layers: Sequence[Layer], before: Tensor) -> Tensor:
    """Logits [..., K] from the first layer's output before its activation, [..., H]."""
    hidden = before if layers[0].activation is None else layers[0].activation(before)
    for layer in layers[1:]:
        hidden = F.linear(hidden, layer.weight, layer.bias)
        hidden = hidden if layer.activation is None else layer.activation(hidden)
    return hidden


def _unrolled(model: nn.Module) -> list[nn.Module]:
    """Children in order of execution, as far as this is known without running the model."""
    if isinstance(model, Classifier) and type(model).forward is Classifier.forward:
        return [*_unrolled(model.backbone), *_unrolled(model.head)]
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return [leaf for child in model for leaf in _unrolled(child)]
    return [model]
