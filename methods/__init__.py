"""The method under test, its critics' stand-ins and the presets: metadata only, so that listing imports no torch."""

from __future__ import annotations

from harness.masks import MaskSourceInfo
from harness.method import MethodInfo
from harness.registry import ComponentInfo
from harness.supervision import Supervision

__all__ = [
    "DECOYS",
    "DISTILLED",
    "DISTILLED_PRESET",
    "HIGH_ENTROPY",
    "LOW_ENTROPY",
    "LVLM_VA",
    "NOISY_ORACLE",
    "ORACLE",
    "PERMUTED",
    "QUICKSTART",
    "RANDOM",
    "REPEATED_ORACLE",
    "SYSTEMATIC_ORACLE",
]

_PAPER = "Koebler et al. 2025, LVLM-aided alignment of task-specific vision models (arXiv 2512.21985)"

LVLM_VA = MethodInfo(
    name="lvlm_va",
    summary="Fine-tune with RRR on the segments of low-entropy images that a critic and a judge call spurious.",
    factory="methods.lvlm_va.alignment:LVLMVA",
    citation=_PAPER,
    supervision=Supervision.LABELS,
    block="method",
    selection="masked_val",
    uses_masks=True,
    default_masks="oracle",
    deviations=(
        "Written from the paper's public text: the authors' code was not available, so nothing is checked against it.",
        "The paper does not state the size of the alignment set, the number of segments, the batch mix, the optimiser, "
        "the learning rate, the number of steps or early stopping: all come from the preset.",
        "lambda is not the paper's (1e5 on its decoys): the loss terms are means and inputs lie in [0, 1], and fine-"
        "tuning is SGD with clipped gradients, because Adam at this scale collapses to the uniform prediction.",
        "Only pixels with positive attribution belong to a segment; the paper's hard assignment labels every pixel.",
        "Alignment images are drawn with a quota per class; the paper takes the lowest entropies overall.",
        "Attribution is of the label's logit minus the mean logit; the paper does not state its target.",
        "The default mask source is a simulated oracle, not a language model: the row's mask source says which.",
    ),
)

ORACLE = MaskSourceInfo(
    name="oracle",
    summary="Simulated perfect critic: a segment is spurious if half its attribution lies in the ground-truth mask.",
    factory="methods.lvlm_va.verdicts:Oracle",
    supervision=Supervision.MASKS,
    block="oracle",
    simulated=True,
    citation="none: a simulated critic of this benchmark",
)
NOISY_ORACLE = MaskSourceInfo(
    name="noisy_oracle",
    summary="Simulated critic with errors: the oracle flipped at a false-positive and a false-negative rate.",
    factory="methods.lvlm_va.verdicts:NoisyOracle",
    supervision=Supervision.MASKS,
    block="oracle",
    simulated=True,
    citation="none: a simulated critic of this benchmark",
)
REPEATED_ORACLE = MaskSourceInfo(
    name="repeated_oracle",
    summary="Simulated critic asked several times: the majority of noisy oracles whose errors are correlated.",
    factory="methods.lvlm_va.verdicts:RepeatedOracle",
    supervision=Supervision.MASKS,
    block="oracle",
    simulated=True,
    citation="none: a simulated critic of this benchmark",
)
SYSTEMATIC_ORACLE = MaskSourceInfo(
    name="systematic_oracle",
    summary="Simulated critic whose errors depend on the class or on how bright a segment is.",
    factory="methods.lvlm_va.verdicts:SystematicOracle",
    supervision=Supervision.MASKS | Supervision.LABELS,
    block="oracle",
    simulated=True,
    citation="none: a simulated critic of this benchmark",
)
DISTILLED = MaskSourceInfo(
    name="distilled",
    summary="Another source's verdicts, smoothed over segments that look alike; abstains where they know nothing.",
    factory="methods.lvlm_va.distilled:Distilled",
    supervision=Supervision.NONE,
    block="oracle",  # alone it is `of` the oracle
    simulated=True,
    stands_with_source=True,
    citation="none: a construction of this benchmark (docs/distilled.md)",
    file_params=("confirmed",),
)
PERMUTED = MaskSourceInfo(
    name="permuted",
    summary="Another source's verdicts in random order over all segments: its exact rate, no information.",
    factory="methods.lvlm_va.distilled:Permuted",
    supervision=Supervision.NONE,
    block="control",
    citation="none: a control of this benchmark",
)

LOW_ENTROPY = ComponentInfo(
    name="low_entropy",
    summary="The training images with the lowest predictive entropy, the same number of every class.",
    factory="methods.lvlm_va.sampling:LowEntropy",
    citation=_PAPER,
)
HIGH_ENTROPY = ComponentInfo(
    name="high_entropy",
    summary="The training images with the highest predictive entropy, the same number of every class.",
    factory="methods.lvlm_va.sampling:HighEntropy",
    citation=_PAPER,
)
RANDOM = ComponentInfo(
    name="random",
    summary="Random training images, the same number of every class.",
    factory="methods.lvlm_va.sampling:Random",
    citation=_PAPER,
)

QUICKSTART = ComponentInfo(
    name="quickstart",
    summary="A few rows on decoy digits: offline, on a CPU, within minutes.",
    factory="methods:presets/quickstart.yaml",
)
DECOYS = ComponentInfo(
    name="decoys",
    summary="All methods, mask sources and controls on the decoy suites.",
    factory="methods:presets/decoys.yaml",
)
DISTILLED_PRESET = ComponentInfo(
    name="distilled",
    summary="Critics with simulated errors, raw and distilled, on decoy MNIST: what smoothing their verdicts repairs.",
    factory="methods:presets/distilled.yaml",
)
ISIC_PATCHES_PRESET = ComponentInfo(
    name="isic_patches",
    summary="References, baselines, mask methods and controls on skin lesions with transplanted patches.",
    factory="methods:presets/isic_patches.yaml",
)
KERMANY_MARKERS_PRESET = ComponentInfo(
    name="kermany_markers",
    summary="References, baselines, mask methods and controls on children's chest X-rays with inserted letters.",
    factory="methods:presets/kermany_markers.yaml",
)
KERMANY_NATURAL_PRESET = ComponentInfo(
    name="kermany_natural",
    summary="Children's chest X-rays with their natural markers, which no model uses: the diagnosis gate's case.",
    factory="methods:presets/kermany_natural.yaml",
)
TIMING_RESNET18 = ComponentInfo(
    name="timing_resnet18",
    summary="For `vabench throughput`: six methods, ResNet-18 at 64 px, random pixels.",
    factory="methods:presets/timing_resnet18.yaml",
)
TIMING_RESNET50 = ComponentInfo(
    name="timing_resnet50",
    summary="For `vabench throughput`: six methods, ResNet-50 at 224 px, random pixels.",
    factory="methods:presets/timing_resnet50.yaml",
)
KNEE_PRESET = ComponentInfo(
    name="knee",
    summary="References, baselines, mask methods and controls on knee X-rays with inserted letters.",
    factory="methods:presets/knee.yaml",
)
