"""LVLM-VA is verdicts x RRR: it equals RRR on the verdicts' masks and refuses sources that judge nothing."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from mask_toys import toy_alignment, toy_context, toy_task, trained, true_masks

import baselines
import methods
from baselines.controls import AllSegments
from baselines.rrr import RRR, RRRConfig
from harness.errors import NotApplicable
from harness.masks import MaskSet
from harness.supervision import Supervision
from methods.lvlm_va.alignment import LVLMVA
from methods.lvlm_va.verdicts import Oracle


def verdict_masks() -> MaskSet:
    alignment, task = toy_alignment()
    return Oracle().masks(alignment, task, toy_context())


def test_it_is_rrr_on_the_masks_of_the_verdicts() -> None:
    base, given, context = trained(), verdict_masks(), toy_context()
    ours = LVLMVA(RRRConfig(lam=0.5)).fit(toy_task(given), copy.deepcopy(base), context)
    theirs = RRR(RRRConfig(lam=0.5)).fit(toy_task(given), copy.deepcopy(base), toy_context())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours.parameters(), base.parameters(), strict=True))
    assert context.notes["verdicts_spurious"] == 60
    assert context.notes["verdicts_relevant"] == 120
    assert LVLMVA.tuned({}, {"lam_grid": (2, 3)}, 1) == [{"lam": 2.0}, {"lam": 3.0}]


def test_a_source_without_verdicts_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="verdicts"):
        LVLMVA().fit(toy_task(true_masks()), trained(), toy_context())


def test_a_critic_that_abstains_returns_the_base_model() -> None:
    base = trained()
    alignment, task = toy_alignment()
    given = AllSegments().masks(alignment, task, toy_context())
    silent = MaskSet(given.index, torch.zeros_like(given.masks), torch.full_like(given.verdicts, -1))
    context = toy_context()
    model = LVLMVA().fit(toy_task(silent), copy.deepcopy(base), context)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert context.notes == {"verdicts_spurious": 0, "verdicts_relevant": 0, "abstained": True}


def test_metadata_names_classes_that_hold_it_and_imports_no_torch() -> None:
    from baselines import caipi, controls, rrr
    from methods.lvlm_va import alignment, sampling, verdicts

    modules = {m.__name__: m for m in (caipi, controls, rrr, alignment, sampling, verdicts)}
    named = [getattr(methods, n) for n in methods.__all__] + [
        getattr(baselines, n) for n in baselines.__all__ if getattr(baselines, n).factory.partition(":")[0] in modules
    ]
    loaded = 0
    for info in named:
        module, _, attribute = info.factory.partition(":")
        if module in modules:
            found = getattr(modules[module], attribute)
            assert getattr(found, "info", info) is info
            loaded += 1
    assert loaded == 19
    for info in (methods.LVLM_VA, baselines.RRR, baselines.CAIPI):
        assert info.supervision == Supervision.LABELS
        assert info.uses_masks
        assert info.deviations
        assert info.selection == "masked_val"
    code = "import methods, baselines, sys; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
