"""Which scalar of a model's logits RRR penalises the input gradient of, and that scalar's derivative in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import ConfigError

FORMS = ("sum_log_p", "margin", "cross_entropy")


def scalar(logits: Tensor, y: Tensor | None, form: str) -> Tensor:
    """The scalar S [B] whose input gradient is penalised.

    sum_log_p: sum over classes of log p_k (Ross 2017). margin: z_1 - z_0 for two classes, else the label's logit minus
    the mean logit. cross_entropy: -log p_y, nearly silent on confident samples (its factor is 1 - p_y).
    """
    if form == "sum_log_p":
        return F.log_softmax(logits, 1).sum(1)
    if form == "margin" and logits.shape[1] == 2:
        return logits[:, 1] - logits[:, 0]
    labels = _labels(y, form)
    if form == "margin":
        return logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)
    return F.cross_entropy(logits, labels, reduction="none")


def scalar_gradient(logits: Tensor, y: Tensor | None, form: str) -> Tensor:
    """dS/dz [B, K], differentiable: the closed form behind `scalar`."""
    k = logits.shape[1]
    if form == "sum_log_p":
        return 1 - k * logits.softmax(1)
    if form == "margin" and k == 2:
        return (2 * torch.arange(2, device=logits.device).to(logits.dtype) - 1).expand_as(logits)
    one_hot = (_labels(y, form)[:, None] == torch.arange(k, device=logits.device)).to(logits.dtype)  # asks nobody
    return one_hot - 1 / k if form == "margin" else logits.softmax(1) - one_hot


def _labels(y: Tensor | None, form: str) -> Tensor:
    if form not in FORMS:
        raise ConfigError(f"there is no penalty form '{form}'; known: {', '.join(FORMS)}")
    if y is None:
        raise ValueError(f"the penalty form '{form}' needs the labels y")
    return y
