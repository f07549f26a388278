"""torch's optimisers without torch's compiler, which their first use would import for one to two seconds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


@functools.cache
def eager(optimizer: type[Optimizer]) -> Callable[..., Optimizer]:
    """The optimiser class, for eager training only: equal steps bit for bit, same name, hooks and state.

    torch wraps three methods of every optimiser to tell its compiler not to trace them; calling one of the wrappers
    imports the compiler, as long as a whole cell on digits takes. Without a wrapper a method runs as it is written.
    """
    written = inspect.unwrap(optimizer.step)

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        with torch.no_grad():  # the wrapper's other purpose
            return written(self) if closure is None else written(self, closure)

    bare = {name: inspect.unwrap(getattr(optimizer, name)) for name in ("add_param_group", "zero_grad")}
    return type(optimizer.__name__, (optimizer,), {"__doc__": optimizer.__doc__, "step": step, **bare})


def import_compiler() -> None:
    """Import what torch's own optimisers import at their first use: before a component that may hold one is timed."""
    import torch._dynamo  # noqa: F401
