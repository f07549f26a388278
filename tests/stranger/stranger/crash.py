"""A method that kills its process."""

import os
from typing import Any

from harness.context import RunContext
from harness.method import Method
from harness.supervision import Task
from stranger import CRASH


class Crash(Method):
    """Never returns."""

    info = CRASH

    def fit(self, task: Task, base: Any, context: RunContext) -> Any:
        """End the process without a word."""
        os._exit(9)
