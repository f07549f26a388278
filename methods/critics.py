"""Mask sources on a vision-language model or a person: metadata only."""

from __future__ import annotations

from harness.masks import MaskSourceInfo
from harness.supervision import Supervision

_PAPER = "Koebler et al. 2025, LVLM-aided alignment of task-specific vision models (arXiv 2512.21985)"

CRITIC = MaskSourceInfo(
    name="critic",
    summary="Critic and judge of LVLM-VA: a vision-language model's verdict on every segment, from class descriptions.",
    factory="methods.lvlm_va.critic:Critic",
    supervision=Supervision.LABELS | Supervision.TEXT | Supervision.LVLM,
    block="method",
    citation=_PAPER,
    files=("methods:lvlm_va/wording",),
    file_params=("prompts", "descriptions"),
)
EMBEDDED = MaskSourceInfo(
    name="embedded",
    summary="The shipped critic (1 M parameters, in-domain: trained with masks on the decoy suites' critic pools).",
    factory="methods.lvlm_va.embedded_critic:EmbeddedCritic",
    supervision=Supervision.LABELS | Supervision.TEXT | Supervision.LVLM,
    block="method",
    citation="none: a critic of this benchmark",
    files=("methods:lvlm_va/embedded/weights",),
)
PERSON = MaskSourceInfo(
    name="person",
    summary="A person's verdicts on every segment, saved by the review page.",
    factory="methods.lvlm_va.person:Person",
    supervision=Supervision.LABELS | Supervision.PERSON,
    block="method",
    verdicts=True,
    file_params=("file",),
)
