"""Optimisers without the compiler: equal steps bit for bit, and the compiler stays out of a process that trains."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness import optimizers

KINDS: dict[type[torch.optim.Optimizer], dict[str, Any]] = {
    torch.optim.AdamW: {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    torch.optim.Adam: {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    torch.optim.SGD: {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "fused": True},
}


def trained(make: Any, settings: dict[str, Any]) -> tuple[list[Tensor], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    optimizer = make(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=20)
    for _ in range(20):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(8, 5, generator=generator)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return [weight.detach() for weight in model.parameters()], optimizer


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_equal_to_torchs_own_bit_for_bit(kind: type[torch.optim.Optimizer]) -> None:
    theirs, reference = trained(kind, KINDS[kind])
    ours, optimizer = trained(getattr(optimizers, kind.__name__), KINDS[kind])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert type(optimizer).__name__ == kind.__name__
    assert isinstance(optimizer, kind)
    again = pickle.loads(pickle.dumps(optimizer))  # as torch.save(optimizer) does
    assert type(again) is type(optimizer)
    held, wanted = optimizer.state_dict(), reference.state_dict()
    assert held["param_groups"] == wanted["param_groups"]
    for key, state in wanted["state"].items():
        assert {name: value.tolist() for name, value in held["state"][key].items()} == {
            name: value.tolist() for name, value in state.items()
        }


def test_hooks_see_every_step_and_a_closure_is_called_with_gradients() -> None:
    weight, steps = nn.Parameter(torch.ones(2)), list[str]()
    optimizer = optimizers.SGD([weight], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: steps.append(type(optimizer).__name__))
    try:
        assert optimizer.step(closure).item() == 2.0
    finally:
        handle.remove()
    assert steps == ["SGD"]
    assert weight.tolist() == [0.0, 0.0]


TRAINS = """
import sys
import harness
frame = harness.run("quickstart", methods=[{rows}], seeds=1, results={root!r}, **{{"recipes.base.epochs": 1}})
assert len(frame), frame
print("torch._dynamo" in sys.modules)
"""


def said(rows: str, root: Any) -> str:
    code = TRAINS.format(rows=rows, root=str(root))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_process_that_runs_cells_never_imports_the_compiler(tmp_path: Any) -> None:
    assert said("'erm', 'rrr', 'dfr'", tmp_path / "r") == "False"
