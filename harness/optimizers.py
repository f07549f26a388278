"""torch's optimisers without torch's compiler, which their first use would import for one to two seconds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def _eager(optimizer: type[Optimizer]) -> Any:
    """The optimiser class, for eager training only: equal steps bit for bit, same name, hooks and state.

    torch wraps three methods of every optimiser to tell its compiler not to trace them; calling one of the wrappers
    imports the compiler, as long as a whole cell on digits takes. Without a wrapper a method runs as it is written.
    """
    written = inspect.unwrap(optimizer.step)

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        with torch.no_grad():  # the wrapper's other purpose
            return written(self) if closure is None else written(self, closure)

    bare = {name: inspect.unwrap(getattr(optimizer, name)) for name in ("add_param_group", "zero_grad")}
    body = {"__doc__": optimizer.__doc__, "__module__": __name__, "step": step, **bare}
    return type(optimizer.__name__, (optimizer,), body)


# Names of the module, so that a pickle finds them again.
AdamW = _eager(torch.optim.AdamW)
Adam = _eager(torch.optim.Adam)
SGD = _eager(torch.optim.SGD)


def import_compiler() -> None:
    """Import what torch's own optimisers import at their first use: before a component that may hold one is timed."""
    import torch._dynamo  # noqa: F401
