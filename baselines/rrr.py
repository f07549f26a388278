"""RRR: right for the right reasons (Ross, Hughes, Doshi-Velez 2017), as a repair of a trained model or from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.alignment_batches import alignment_batches, check_finite, row_lookup
from baselines.double_backward import CheapDoubleBackward
from baselines.mask_info import RRR as RRR_INFO
from baselines.overrides import Overrides
from baselines.penalty_forms import FORMS, scalar, scalar_gradient
from harness.errors import ConfigError
from harness.method import Method
from harness.training import Augmentation, TrainRecipe, cross_entropy, default_batches, fit, predict

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.supervision import SplitView, Task

LAM_GRID = (0.01, 0.1, 1.0)
WARMUP_FLOOR = 1e-3  # a warm-up runs from this fraction of lambda up to lambda, evenly in its logarithm


def mlp_layers(model: nn.Module, x: Tensor) -> list[nn.Module] | None:
    """The layers of an MLP that is `head(backbone(x))` with only Flatten, Linear and ReLU inside, else None."""
    backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
    if not isinstance(backbone, nn.Sequential) or not isinstance(head, nn.Linear):
        return None
    layers = [layer for layer in (*backbone, head) if not isinstance(layer, nn.Flatten)]
    if not all(isinstance(layer, nn.Linear | nn.ReLU) for layer in layers) or isinstance(layers[0], nn.ReLU):
        return None
    with torch.no_grad():  # a forward pass that does more than its layers say is left to autograd
        same = torch.equal(_mlp_forward(layers, x[:1])[0], model(x[:1]))
    return layers if same else None


def _mlp_forward(layers: list[nn.Module], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and, for every ReLU, which units are on."""
    hidden, gates = x.flatten(1), []
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            gates.append(hidden > 0)
            hidden = F.relu(hidden)
        else:
            hidden = layer(hidden)
    return hidden, gates


def _mlp_signal(layers: list[nn.Module], gates: list[Tensor], upstream: Tensor) -> Tensor:
    """dS/d(output of the first layer), by the chain rule: plain autograd then differentiates it once more."""
    signal, gates = upstream, list(gates)
    for layer in reversed(layers[1:]):
        signal = signal @ layer.weight if isinstance(layer, nn.Linear) else signal * gates.pop()
    return signal


class _MaskedSquares(torch.autograd.Function):
    """|mask * (signal @ weight)|^2 per row, [B], for signal [B, H], weight [H, D] and mask bool [B, D / C].

    Its derivative needs the masked product alone, so that both passes go over [B, D] as seldom as they can.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        product = signal @ weight
        factor = mask.view(torch.uint8)[:, None]  # torch multiplies floats by bytes several times faster than by bools
        product.view(len(signal), product.shape[1] // max(1, mask.shape[1]), mask.shape[1]).mul_(factor)
        ctx.save_for_backward(signal, weight, product)
        return torch.linalg.vecdot(product, product)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        signal, weight, product = ctx.saved_tensors
        scale = 2 * grads[0][:, None]
        return (product @ weight.T) * scale, (signal * scale).T @ product, None


def input_gradient(
    model: nn.Module,
    x: Tensor,
    form: str = "sum_log_p",
    *,
    y: Tensor | None = None,
    create_graph: bool = True,
    layers: list[nn.Module] | Literal["find"] | None = "find",
) -> Tensor:
    """dS/dx, float32 [B, C, H, W], differentiable in the weights where `create_graph`.

    layers: what `mlp_layers` says of the model; finding it waits for the device. MLPs take a closed form without a
    second backward pass, every other model autograd. Always in float32; BatchNorm uses its running statistics, so that
    samples do not mix.
    """
    with torch.autocast(x.device.type, enabled=False), _running_statistics(model):
        x = x.detach().float()
        found = mlp_layers(model, x) if layers == "find" else layers
        if found is None:
            return _autograd(model, x, y, form, create_graph)[1]
        with torch.set_grad_enabled(create_graph):
            logits, gates = _mlp_forward(found, x)
            signal = _mlp_signal(found, gates, scalar_gradient(logits, y, form))
            return (signal @ found[0].weight).view_as(x)


def _autograd(
    model: nn.Module, x: Tensor, y: Tensor | None, form: str, create_graph: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and dS/dx [B, C, H, W] of any model; both can be differentiated in the weights."""
    x, mode = x.detach().requires_grad_(True), CheapDoubleBackward()
    with torch.enable_grad(), mode if create_graph else nullcontext():
        logits = model(x)
        (gradient,) = torch.autograd.grad(scalar(logits, y, form).sum(), x, create_graph=create_graph)
    mode.inputs_only = False
    return logits, gradient


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    return (gradient * mask[:, None].to(gradient.dtype)).square().flatten(1).sum(1)


def penalty(
    model: nn.Module,
    x: Tensor,
    mask: Tensor,
    form: str = "sum_log_p",
    *,
    y: Tensor | None = None,
    create_graph: bool = True,
) -> Tensor:
    """Sum over pixels and channels of (mask * dS/dx)^2, per sample (Ross 2017, second term).

    Args:
        x: float [B, C, H, W] in [0, 1]. mask: bool or float [B, H, W], 1 = penalise. y: int64 [B], for `margin` with
            more than two classes and for `cross_entropy`.

    Returns:
        float32 [B].
    """
    gradient = input_gradient(model, x, form, y=y, create_graph=create_graph)
    return _masked(gradient, mask)


def _training_norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]


@contextmanager
def _running_statistics(model: nn.Module) -> Iterator[None]:
    training = _training_norms(model)
    for norm in training:
        norm.eval()
    try:
        yield
    finally:
        for norm in training:
            norm.train()


class PenalisedLoss:
    """Cross-entropy of the batch + lambda * mean over its alignment samples of the penalty.

    lookup: int64 [N], row of `masks` (bool [M, H, W]) for every training image or -1. Samples without a row carry no
    penalty and do not enter the mean. `normalise="initial"` divides by the first penalty that is not 0. Where the
    recipe moves the images, `augment` (with a generator of the same stream) moves their masks along with them.
    """

    full_precision = True  # the penalty squares input gradients, which bfloat16 keeps to two digits

    def __init__(
        self,
        lookup: Tensor,
        masks: Tensor,
        lam: float,
        form: str,
        normalise: str,
        warmup: int,
        augment: Augmentation | None = None,
    ):
        self.lookup, self.masks = lookup, masks
        self.lam, self.form, self.normalise, self.warmup, self.augment = lam, form, normalise, warmup, augment
        self.initial: float | None = None
        seen = masks.flatten(1).view(torch.uint8)  # torch reduces bytes far faster than bools
        self._marked = seen.any(1).bool()
        pixels = seen.any(0).nonzero().flatten()
        few = augment is None and 2 * len(pixels) < masks[0].numel()
        self._pixels = pixels if few else None  # where few pixels are marked, an MLP's gradient is needed there alone
        self._layers: list[nn.Module] | Literal["find"] | None = "find"
        self._steps = 0
        self._penalised = self._carry_penalty().cpu()  # bool [N]
        self._looked: tuple[Tensor, Tensor] | None = None

    def _carry_penalty(self) -> Tensor:
        """Training images that add to the penalty, bool [N]: an empty mask adds exactly 0."""
        return (self.lookup >= 0) & self._marked[self.lookup]

    def look(self, index: Tensor) -> None:
        """Find the penalised images of the next batch by its indices, int64 [B] on the CPU."""
        self._looked = index, self._penalised[index].nonzero().flatten()

    def _chosen(self, index: Tensor) -> Tensor:
        """Positions in the batch of the images that add to the penalty, on the batch's device."""
        looked, self._looked = self._looked, None
        # Nobody looked, or at others. On a GPU the length must do: comparing the indices would wait for it.
        if looked is None or not (looked[0] is index or (index.device.type != "cpu" and len(looked[0]) == len(index))):
            looked = (index, self._penalised[index.cpu()].nonzero().flatten())
        return looked[1].to(index.device, non_blocking=True)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The loss of one step, a scalar."""
        lam, chosen = self._next_lam(), self._chosen(index)
        if lam == 0:
            return cross_entropy(model, x, y, index)
        layers = self._mlp(model, x)
        rows = self.lookup[index]
        aligned = rows >= 0
        masks, labels = self._masks(rows, chosen), y[chosen]
        if layers is not None:
            error, values = self._closed_form(layers, x, y, chosen, masks)
        elif len(chosen) == 0:
            error, values = cross_entropy(model, x, y, index), x.new_zeros(0)
        elif torch.is_autocast_enabled(x.device.type) or _training_norms(model):
            error = cross_entropy(model, x, y, index)
            values = penalty(model, x[chosen], masks, self.form, y=labels)
        else:
            error, values = self._one_pass(model, x, y, chosen, masks)
        mean = values.sum() / aligned.sum().clamp(min=1)
        return (
            error + lam * (self._scale(mean) if len(chosen) else 1.0) * mean
        )  # without images it is 0: nothing to ask

    def _mlp(self, model: nn.Module, x: Tensor) -> list[nn.Module] | None:
        """`mlp_layers` of the one model that is trained, looked for once: that waits for the device."""
        if self._layers == "find":
            self._layers = mlp_layers(model, x)
        return self._layers

    def _masks(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Masks bool [len(chosen), H, W] of the chosen samples, moved as `fit` has moved their images."""
        if self.augment is None:
            return self.masks.index_select(0, rows[chosen])
        batch = self.masks[rows.clamp(min=0)][:, None].float()  # the whole batch keeps the two streams in step
        return self.augment(batch)[chosen, 0] > 0

    def _one_pass(self, model: nn.Module, x: Tensor, y: Tensor, chosen: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and penalty where samples do not mix: the penalised images run forward and backward once."""
        logits, gradient = _autograd(model, x[chosen], y[chosen], self.form)
        if len(chosen) == len(y):
            return F.cross_entropy(logits, y), _masked(gradient, masks)
        member = torch.zeros_like(y).index_fill_(0, chosen, 1)
        others = member.argsort(stable=True)[: len(y) - len(chosen)]  # the rest in its order, without asking the device
        logits = torch.cat([logits, model(x[others])])
        return F.cross_entropy(logits, y[torch.cat([chosen, others])]), _masked(gradient, masks)

    def _closed_form(
        self, layers: list[nn.Module], x: Tensor, y: Tensor, chosen: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and penalty of an MLP from one forward pass."""
        logits, gates = _mlp_forward(layers, x)
        own, labels = logits, y
        if len(chosen) < len(y):  # selecting every row would cost as much as a layer
            own, labels = logits.index_select(0, chosen), y[chosen]
            gates = [gate.index_select(0, chosen) for gate in gates]
        upstream = scalar_gradient(own, labels, self.form)
        inside, weight = masks.flatten(1), layers[0].weight
        if self._pixels is not None:
            inside = inside[:, self._pixels]
            weight = weight[:, torch.cat([self._pixels + c * self.masks[0].numel() for c in range(x.shape[1])])]
        signal = _mlp_signal(layers, gates, upstream)
        return F.cross_entropy(logits, y), _MaskedSquares.apply(signal, weight, inside)

    def _next_lam(self) -> float:
        self._steps += 1
        if self._steps > self.warmup:
            return self.lam
        return self.lam * math.pow(WARMUP_FLOOR, 1 - self._steps / self.warmup)

    def _scale(self, mean: Tensor) -> float:
        if self.initial is None:
            value = float(mean.detach())
            self.initial = value if value > 0 else None
        return 1.0 / self.initial if self.normalise == "initial" and self.initial else 1.0


@dataclass(frozen=True)
class RRRConfig(Overrides):
    """None takes the preset's value.

    lam: penalty weight >= 0. start: repair the base model or train a fresh one under the base recipe. form, normalise:
    see `scalar` and `PenalisedLoss`. ratio: share of the batch from the alignment set. warmup: steps in which lambda
    rises. early_stopping: `val` keeps the weights with the best validation accuracy. batchnorm: overrides the recipe's
    `freeze_batchnorm`.
    """

    lam: float | None = None
    start: Literal["base", "scratch"] = "base"
    form: str | None = None
    normalise: str | None = None
    ratio: float = 0.5
    warmup: int = 0
    early_stopping: Literal["none", "val"] = "none"
    batchnorm: Literal["recipe", "frozen", "train"] = "recipe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam is not None and not (self.lam >= 0 and math.isfinite(self.lam)):
            raise ConfigError(f"lam must be a finite number that is not negative, got {self.lam}")
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio must lie in [0, 1], got {self.ratio}")
        if self.warmup < 0:
            raise ConfigError(f"warmup must not be negative, got {self.warmup}")
        _check("form", self.form, (None, *FORMS))
        _check("normalise", self.normalise, (None, "none", "initial"))
        _check("start", self.start, ("base", "scratch"))
        _check("early_stopping", self.early_stopping, ("none", "val"))
        _check("batchnorm", self.batchnorm, ("recipe", "frozen", "train"))

    def apply(self, recipe: TrainRecipe) -> TrainRecipe:
        """The recipe with these settings."""
        recipe = super().apply(recipe)
        return recipe if self.batchnorm == "recipe" else recipe.with_(freeze_batchnorm=self.batchnorm == "frozen")


def _check(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} '{value}' is not one of {', '.join(str(k) for k in known if k is not None)}")


class RRR(Method):
    """Penalise the input gradient inside the correction masks. Empty masks return the base model unchanged."""

    info = RRR_INFO
    Config = RRRConfig
    grid = tuple({"lam": lam} for lam in LAM_GRID)

    @classmethod
    def tuned(cls, params: dict[str, Any], settings: dict[str, Any], budget_steps: int) -> list[dict[str, Any]]:
        """One candidate per lambda of the preset's `lam_grid`; a row that trains from scratch gets the whole budget."""
        steps = {"steps": budget_steps} if params.get("start") == "scratch" else {}
        return [{**params, **steps, "lam": float(lam)} for lam in settings.get("lam_grid", LAM_GRID)]

    @classmethod
    def settled(cls, params: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Config with the preset's lambda in it; a preset with a `lam_all` decides when the masks are known."""
        values = super().settled(params, settings)
        if values["lam"] is None and settings.get("lam_all") is None:
            values["lam"] = float(settings.get("lam", 1.0))
        return values

    def fit(self, task: Task, base: nn.Module, context: RunContext) -> nn.Module:
        """Return the repaired model, or `base` where no pixel is marked.

        Raises:
            VabenchError: training diverged.
        """
        config: RRRConfig = self.config
        corrections = task.corrections
        context.note(abstained=corrections.empty())
        if corrections.empty():
            return base
        from_scratch = config.start == "scratch"
        settings = dict(context.settings.get("penalty") or {})
        if from_scratch:  # an untrained model's first penalty is near 0 and would make lambda explode
            settings["normalise"] = "none"
        context.note(start=config.start)
        return finetune(
            context.fresh_model().to(context.device) if from_scratch else base,
            task,
            context,
            index=corrections.index,
            masks=corrections.masks,
            lam=choose_lam(config, context.settings, everything=len(corrections.index) == len(task.train)),
            form=config.form or settings.get("form", "sum_log_p"),
            normalise=config.normalise or settings.get("normalise", "none"),
            ratio=None if from_scratch else config.ratio,
            warmup=config.warmup,
            recipe=config.apply(context.base_recipe if from_scratch else context.finetune_recipe),
            early_stopping=config.early_stopping,
            stream="scratch" if from_scratch else "finetune",
        )


def choose_lam(config: RRRConfig, settings: dict[str, Any], *, everything: bool) -> float:
    """lambda of the config, else the preset's `lam` (or its `lam_all`, if any, with masks on all training images)."""
    if config.lam is not None:
        return config.lam
    lam = settings.get("lam_all") if everything else None
    return float(settings.get("lam", 1.0) if lam is None else lam)


def finetune(
    model: nn.Module,
    task: Task,
    context: RunContext,
    *,
    index: Tensor,
    masks: Tensor,
    lam: float,
    form: str = "sum_log_p",
    normalise: str = "none",
    ratio: float | None = 0.5,
    warmup: int = 0,
    recipe: TrainRecipe | None = None,
    early_stopping: str = "none",
    stream: str = "finetune",
) -> nn.Module:
    """Train `model` in place with the penalty and return it in eval mode; what was done goes to the record.

    Args:
        index: int64 [M] training images. masks: bool [M, H, W]. lam: weight of the penalty, >= 0.
        ratio: share of alignment images in a batch; None leaves the recipe's sampling alone (training from scratch).
        recipe: default `context.finetune_recipe`.

    Raises:
        VabenchError: training diverged.
    """
    train, recipe = task.train, recipe or context.finetune_recipe
    images, y = train.images, train.y
    index, masks = index.to(y.device), masks.to(y.device)
    augment = recipe.augmentation(context.generator(f"{stream}/shift"))
    loss = PenalisedLoss(row_lookup(index, len(y), y.device), masks, lam, form, normalise, warmup, augment)
    if ratio is None:
        batches = default_batches(y, recipe, context.generator(stream))
    else:
        batches = alignment_batches(y, index, recipe, ratio, context, stream)
    keeper = _BestOnVal(task.val, recipe.total_steps(len(y))) if early_stopping == "val" else None
    fit(model, images, y, recipe, context, loss=loss, batches=batches, stream=stream, on_step=keeper)
    check_finite(model, f"RRR at lambda {lam:g}")
    if keeper is not None:
        keeper.restore(model)
    logits = predict(model, images[index])
    context.note(
        ratio=ratio,
        steps=recipe.total_steps(len(y)),
        **_scale_facts(loss, logits.shape[1]),
        **_collapse(logits, y[index]),
    )
    return model


def _scale_facts(loss: PenalisedLoss, classes: int) -> dict[str, Any]:
    """What a lambda means: it is not portable without these.

    lam_scale_free: the penalty term on the first batch against log K, the cross-entropy of a chance prediction.
    """
    first = 1.0 if loss.normalise == "initial" else loss.initial
    return {
        "lam": loss.lam,
        "form": loss.form,
        "normalise": loss.normalise,
        "reduction": "mean over the batch's alignment samples of the sum over pixels and channels",
        "input_range": [0, 1],
        "alignment_images": len(loss.masks),
        "images_with_mask": int(loss._marked.sum()),
        "mask_fraction": int(torch.count_nonzero(loss.masks)) / max(1, loss.masks.numel()),
        "penalty_initial": loss.initial,
        "lam_scale_free": None if first is None else loss.lam * first / math.log(classes),
    }


def _collapse(logits: Tensor, y: Tensor) -> dict[str, Any]:
    """Whether the model has bought a small penalty with a constant answer on the alignment images, uniform or not.

    alignment_entropy: mean predictive entropy / log K, near 1 at the uniform prediction.
    """
    log_p = logits.double().log_softmax(1)
    entropy = float(-(log_p.exp() * log_p).sum(1).mean() / math.log(log_p.shape[1]))
    predicted = len(logits.argmax(1).unique())
    collapsed = entropy > 0.9 or (predicted == 1 and len(y.unique()) > 1)
    return {"alignment_entropy": entropy, "alignment_classes_predicted": predicted, "collapsed": collapsed}


class _BestOnVal:
    """Keeps the weights with the best validation accuracy, looked at ten times in a training; ties go to the latest."""

    def __init__(self, val: SplitView, steps: int):
        self.val, self.every = val, max(1, steps // 10)
        self.best = -1.0
        self.state: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, step: int) -> None:
        if step % self.every:
            return
        modes = [(module, module.training) for module in model.modules()]
        accuracy = float((predict(model, self.val.images).argmax(1) == self.val.y).double().mean())
        for module, mode in modes:  # frozen BatchNorm stays in eval mode
            module.training = mode
        if accuracy >= self.best:
            self.best = accuracy
            self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        model.load_state_dict(self.state)
