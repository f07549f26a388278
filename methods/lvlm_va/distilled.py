"""A critic that may be wrong: its verdicts distilled into a forest over what segments look like (docs/distilled.md).

Source: robust.md's trial. The forest never sees an image whose verdicts it predicts, so a verdict survives only where
segments of other images that look like this one got the same. The ground truth is read by no line of this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

import methods
from baselines.controls import _Imitation
from harness.errors import ConfigError, NotApplicable, VabenchError
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, MaskSet, mask_from_verdicts
from harness.supervision import Supervision
from methods.lvlm_va import audit
from methods.lvlm_va.segment_features import segment_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.spec import Spec
    from harness.supervision import Task

Float, Int = npt.NDArray[np.float64], npt.NDArray[np.int64]
TOP = 0.02  # share of the segments whose mean prediction estimates 1 - FNR


@dataclass(frozen=True)
class Distillation:
    """What the forest made of verdicts on M segments.

    raw: out-of-fold P(verdict 1), float64 [M], NaN where nothing was fitted. p: the same after the anchors, in [0, 1].
    auc: mean of the folds' areas under the curve against the given verdicts; z: `gate_z`; low, high: the anchors.
    abstained: why the critic is not used, or "".
    """

    raw: Float
    p: Float
    auc: float = math.nan
    z: float = math.nan
    low: float = math.nan
    high: float = math.nan
    abstained: str = ""


def distil(
    features: Float,
    verdicts: Int,
    images: Int,
    *,
    trees: int = 80,
    leaf: int = 20,
    folds: int = 5,
    gate: float = 4.0,
    seed: int = 0,
) -> Distillation:
    """Fit a random forest to noisy verdicts, out of fold by image, and correct what it predicts by two anchors.

    Args:
        features: float64 [M, F]. verdicts: int [M], 1, 0 or -1 (predicted, not fitted). images: int [M], the image of
            each segment: all segments of an image lie in one fold. trees, leaf: the forest's size and smallest leaf.
        gate: smallest z (`gate_z`) at which the critic counts as informative.
    """
    nothing = np.full(len(verdicts), np.nan)
    rng = np.random.default_rng(seed)
    names, image = np.unique(images, return_inverse=True)
    known = verdicts != NO_VERDICT
    rarer = min(int((verdicts == SPURIOUS).sum()), int((verdicts == RELEVANT).sum()))
    if rarer < leaf:
        few = f"{rarer} verdicts of the rarer kind are fewer than a leaf's {leaf}"
        what = "all verdicts are equal" if rarer == 0 else few
        return Distillation(nothing, nothing, abstained=f"critic uninformative: {what}")
    if len(names) < 2 * folds:
        return Distillation(nothing, nothing, abstained=f"{len(names)} images are too few for {folds} folds")
    fold = rng.permutation(np.arange(len(names)) % folds)[image]
    raw = np.zeros(len(verdicts))
    for k in range(folds):
        fitted = known & (fold != k)
        forest = RandomForestClassifier(trees, min_samples_leaf=leaf, n_jobs=1, random_state=int(rng.integers(2**31)))
        forest.fit(features[fitted], verdicts[fitted])
        position = list(forest.classes_).index(SPURIOUS) if SPURIOUS in forest.classes_ else None
        if position is not None:
            raw[fold == k] = forest.predict_proba(features[fold == k])[:, position]
    auc, z = gate_z(raw[known], verdicts[known], image[known], fold[known])
    low = float(np.median(raw))
    high = float(np.sort(raw)[-max(1, math.ceil(TOP * len(raw))) :].mean())
    reason = ""
    if not z >= gate:
        reason = f"critic uninformative: z = {z:.2f} of its out-of-fold AUC is below {gate:g}"
    elif high <= low:
        reason = "critic uninformative: the anchors coincide"
    p = np.clip((raw - low) / (high - low), 0, 1) if high > low else nothing
    return Distillation(raw, p, auc, z, low, high, reason)


def gate_z(scores: Float, verdicts: Int, images: Int, folds: Int) -> tuple[float, float]:
    """Does a score predict the verdicts of held-out images? Area under the curve, and its z by image.

    Per fold the scores become mid-ranks, and an image contributes sum (rank - mean)(verdict - mean). Where the verdicts
    know nothing, contributions have mean 0 and are independent between images whatever holds within one, so mean over
    standard error is the z of a Mann-Whitney test clustered by image. Ranks within folds, because a fold whose held-out
    verdicts are many by chance was predicted by a forest that saw few. What remains is the dependence between folds
    (each one's verdicts train the others' forest): it at most doubles the variance, so that the default gate of 4
    is at least 2.8 standard errors; the simulation of docs/distilled.md measures it.

    Returns:
        AUC averaged over folds by their number of pairs (nan if there are none), z (nan with fewer than two images).
    """
    contribution = np.zeros(int(images.max()) + 1 if len(images) else 0)
    seen = np.zeros(len(contribution), dtype=bool)
    seen[images] = True
    wins, pairs = 0.0, 0.0
    for k in np.unique(folds):
        rows = folds == k
        rank, hit = midrank(scores[rows]), verdicts[rows] == SPURIOUS
        positive, negative = int(hit.sum()), int((~hit).sum())
        wins += float(rank[hit].sum()) - positive * (positive + 1) / 2
        pairs += positive * negative
        part = (rank - rank.mean()) / len(rank) * (hit - hit.mean())
        np.add.at(contribution, images[rows], part)
    values = contribution[seen]
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    centre = float(values.mean()) if len(values) else math.nan
    z = centre / error if error > 0 else math.nan
    return (wins / pairs if pairs else math.nan), z


def midrank(values: Float) -> Float:
    """Ranks 1..N, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


@dataclass(frozen=True)
class Findings:
    """An alignment set after distillation: what an audit shows.

    where: int64 [M, 2] (row of the set, segment) of every non-empty segment; features: float64 [M, F] of each.
    verdicts: int8 [N, J], before any person looked at them.
    """

    where: Tensor
    features: Float
    verdicts: Tensor
    distillation: Distillation
    facts: dict[str, Any] = field(default_factory=dict)


class Distilled(_Imitation):
    """Another source's verdicts, smoothed over segments that look alike; all 0 where they carry no information.

    of: the source. trees, leaf, folds, gate: `distil`. keep: smallest corrected p that counts as spurious.
    confirmed: a file that the audit page saved, or a folder of them; segments of rejected clusters become relevant.
    """

    info = methods.DISTILLED

    def __init__(
        self,
        of: str | Mapping[str, Any] | Spec = "oracle",
        trees: int = 80,
        leaf: int = 20,
        folds: int = 5,
        keep: float = 0.7,
        gate: float = 4.0,
        confirmed: str | None = None,
    ):
        super().__init__(of)
        _needs_verdicts("distilled", self.of)
        for name, value, least in (("trees", trees, 1), ("leaf", leaf, 1), ("folds", folds, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"distilled: {name} is a whole number of at least {least}, not {value!r}")
        if not 0 < keep <= 1:
            raise ConfigError(f"distilled: keep is a probability in (0, 1], got {keep}")
        self.trees, self.leaf, self.folds = trees, leaf, folds
        self.keep, self.gate, self.confirmed = float(keep), float(gate), confirmed
        if confirmed is not None:
            audit.confirmation_files(confirmed)  # a wrong path costs no run

    @property
    def supervision(self) -> Supervision:
        """What the source reads, and a person's word where clusters were confirmed."""
        person = Supervision.PERSON if self.confirmed is not None else Supervision.NONE
        return super().supervision | person

    @property
    def params(self) -> dict[str, Any]:
        """The source and all settings."""
        own = {name: getattr(self, name) for name in ("trees", "leaf", "folds", "keep", "gate", "confirmed")}
        return {**super().params, **own}

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Distil, gate, correct; empty masks where the gate stays shut.

        Raises:
            NotApplicable: the source gave no verdicts on segments.
            ConfigError: none of the confirmations belongs to these verdicts.
        """
        found = self.examine(alignment, task, context)
        verdicts, facts = found.verdicts, dict(found.facts)
        if self.confirmed is not None:
            verdicts, facts["confirmed"] = self._confirm(found, alignment, task, context)
        context.note(distilled=facts)
        return MaskSet(alignment.index, mask_from_verdicts(alignment.segments, verdicts), verdicts)

    def examine(self, alignment: AlignmentSet, task: Task, context: RunContext) -> Findings:
        """Distil without a person's word. Each split is distilled by itself, from the source's verdicts on it."""
        segments = alignment.segments
        given = _given(self.of, alignment, task, context)
        features, where = segment_features(alignment.images, alignment.maps, segments)
        rows, columns = where.unbind(1)
        noisy = given[rows, columns].cpu().numpy().astype(np.int64)
        result = distil(
            features,
            noisy,
            rows.cpu().numpy(),
            trees=self.trees,
            leaf=self.leaf,
            folds=self.folds,
            gate=self.gate,
            seed=context.seed(f"distilled/{alignment.split.name}"),
        )
        flagged = np.zeros(len(noisy), dtype=bool) if result.abstained else result.p >= self.keep
        verdicts = torch.full(segments.nonempty.shape, NO_VERDICT, dtype=torch.int8, device=segments.labels.device)
        verdicts[rows, columns] = torch.from_numpy(flagged.astype(np.int8)).to(verdicts.device)
        judged = noisy[noisy != NO_VERDICT]
        facts = {
            "abstained": bool(result.abstained),
            "reason": result.abstained,
            "auc": result.auc,
            "z": result.z,
            "gate": self.gate,
            "anchor_low": result.low,
            "anchor_high": result.high,
            "segments": len(noisy),
            "null_verdicts": int((noisy == NO_VERDICT).sum()),
            "rate_before": float((judged == SPURIOUS).mean()) if len(judged) else math.nan,
            "rate_after": float(flagged.mean()) if len(flagged) else math.nan,
        }
        return Findings(where, features, verdicts, result, facts)

    def _confirm(
        self, found: Findings, alignment: AlignmentSet, task: Task, context: RunContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """Verdicts without the rejected clusters, and facts. Nobody audits validation: it keeps its verdicts."""
        if alignment.split.name != "train":
            return found.verdicts, {"note": f"split '{alignment.split.name}' is not audited"}
        rate = found.facts["rate_after"]
        grouped = audit.group(found, context)
        answer = audit.find_confirmation(str(self.confirmed), audit.identity(alignment.index, found, grouped))
        verdicts = found.verdicts.clone()
        for cluster in answer["rejected"]:
            rows, columns = found.where[torch.from_numpy(grouped.members[cluster]).to(found.where.device)].unbind(1)
            verdicts[rows, columns] = RELEVANT
        task.ledger.add("person_looks", grouped.looks)
        held = len(found.where)
        return verdicts, {
            "clusters": len(grouped.members),
            "rejected": answer["rejected"],
            "rate_without": rate,
            "rate_with": float((verdicts == SPURIOUS).sum()) / held if held else math.nan,
        }


class Permuted(_Imitation):
    """Another source's verdicts in random order over all non-empty segments: its exact rate, and no information."""

    info = methods.PERMUTED

    def __init__(self, of: str | Mapping[str, Any] | Spec = "oracle"):
        super().__init__(of)
        _needs_verdicts("permuted", self.of)

    def masks(self, alignment: AlignmentSet, task: Task, context: RunContext) -> MaskSet:
        """Permute; missing verdicts travel too."""
        verdicts, nonempty = _given(self.of, alignment, task, context).clone(), alignment.segments.nonempty
        held = verdicts[nonempty]
        order = torch.randperm(len(held), generator=context.generator(f"permuted/{alignment.split.name}"))
        verdicts[nonempty] = held[order.to(held.device)]
        return MaskSet(alignment.index, mask_from_verdicts(alignment.segments, verdicts), verdicts)


def _needs_verdicts(name: str, source: Any) -> None:
    if not source.info.verdicts:
        raise ConfigError(
            f"{name} needs a source that judges segments, but '{source.info.name}' gives masks only; "
            f"name a critic, for example {name}(of=oracle)"
        )


def _given(source: Any, alignment: AlignmentSet, task: Task, context: RunContext) -> Tensor:
    """The source's verdicts, int8 [N, J], -1 for empty segments."""
    found = source.masks(alignment, task, context)
    if found.verdicts is None:
        raise NotApplicable(f"the mask source '{source.info.name}' gave no verdicts on segments")
    nonempty = alignment.segments.nonempty
    if found.verdicts.shape != nonempty.shape or not torch.equal(found.index, alignment.index):
        raise VabenchError(f"the mask source '{source.info.name}' judged other images than the alignment set's")
    return found.verdicts.to(torch.int8).masked_fill(~nonempty, NO_VERDICT)
