"""Metadata of the reference rows and of the group- and reweighting-based baselines; imports no torch."""

from __future__ import annotations

from harness.method import MethodInfo
from harness.supervision import Supervision

LABELS = Supervision.LABELS
GROUPS = Supervision.LABELS | Supervision.TRAIN_GROUPS
_IDRISSI = "Idrissi et al. 2022, Simple data balancing achieves competitive worst-group-accuracy (CLeaR)"
_LENGTH = "Trains as many steps as the base model and keeps the last, instead of stopping by worst-group accuracy."
_EMPTY = "Empty groups are left out of the balance and listed in the record."

ERM = MethodInfo(
    name="erm",
    summary="The base model itself, trained by empirical risk minimisation: the reference of every pair.",
    factory="baselines.erm:Erm",
    citation="Vapnik 1991, Principles of risk minimization for learning theory (NIPS)",
    supervision=LABELS,
    block="reference",
    returns_base=True,
)
ERM_CONTINUE = MethodInfo(
    name="erm_continue",
    summary="Control: the repair's own steps and batches without its penalty.",
    factory="baselines.erm:ErmContinue",
    citation="none: a control of this benchmark",
    supervision=LABELS,
    block="control",
    uses_masks=True,
    default_masks="all_ones",
    deviations=("Uses the indices of the alignment set alone; the masks that come with it are ignored.",),
)
ERM_DECORRELATED = MethodInfo(
    name="erm_decorrelated",
    summary="A fresh model under the base recipe, trained on data without the shortcut: a reference, no upper bound.",
    factory="baselines.erm:ErmDecorrelated",
    citation="none: a reference of this benchmark",
    supervision=LABELS | Supervision.DECORRELATED,
    block="reference",
)
SUBG = MethodInfo(
    name="subg",
    summary="Train from scratch on a fixed random subset in which every group is equally large.",
    factory="baselines.group_balancing:SubG",
    citation=_IDRISSI,
    supervision=GROUPS,
    selection="val_groups",
    deviations=(_LENGTH, _EMPTY),
)
SUBY = MethodInfo(
    name="suby",
    summary="Train from scratch on a fixed random subset in which every class is equally large.",
    factory="baselines.group_balancing:SubY",
    citation=_IDRISSI,
    supervision=LABELS,
    selection="val_groups",
    deviations=(_LENGTH,),
)
RWG = MethodInfo(
    name="rwg",
    summary="Train from scratch, drawing images with probability 1/(group size), with replacement.",
    factory="baselines.group_balancing:RwG",
    citation=_IDRISSI,
    supervision=GROUPS,
    selection="val_groups",
    deviations=(_LENGTH, _EMPTY),
)
RWY = MethodInfo(
    name="rwy",
    summary="Train from scratch, drawing images with probability 1/(class size), with replacement.",
    factory="baselines.group_balancing:RwY",
    citation=_IDRISSI,
    supervision=LABELS,
    selection="val_groups",
    deviations=(_LENGTH,),
)
GROUP_DRO = MethodInfo(
    name="group_dro",
    summary="Train from scratch on the worst mixture of group losses (exponentiated-gradient group weights).",
    factory="baselines.group_dro:GroupDro",
    citation="Sagawa et al. 2020, Distributionally robust neural networks for group shifts (ICLR)",
    supervision=GROUPS,
    selection="val_groups",
    deviations=(
        _LENGTH,
        _EMPTY,
        "The size adjustment C/sqrt(n) steers the group weights and is not added to the loss that is reported.",
    ),
)
JTT = MethodInfo(
    name="jtt",
    summary="Train briefly, then train a fresh model with the first one's training errors up-weighted.",
    factory="baselines.jtt:Jtt",
    citation="Liu et al. 2021, Just train twice (ICML)",
    supervision=LABELS,
    selection="val_groups",
    deviations=(
        _LENGTH,
        "The error set is predicted in eval mode after stage 1 (errors='logged' gives the published one, collected in "
        "train mode during the last epoch of stage 1).",
        "Stage 1 runs the base recipe's whole learning-rate schedule within its few epochs.",
    ),
)
DFR = MethodInfo(
    name="dfr",
    summary="Retrain the last layer of the base model on group-balanced validation images (l1 logistic regression).",
    factory="baselines.dfr:Dfr",
    citation="Kirichenko et al. 2023, Last layer re-training is sufficient for robustness (ICLR)",
    supervision=LABELS | Supervision.VAL_GROUPS,
    selection="val_groups",
    deviations=(
        "Features are standardised by training-set statistics both for tuning and for the final head.",
        "The half of val_groups on which C is tuned is drawn within each group.",
        "On the tuned track C is chosen on val_groups, the images that also train the head.",
        _EMPTY,
    ),
)
