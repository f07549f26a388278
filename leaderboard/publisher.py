"""The tables at the end of `vabench run`, with all that they import: loaded while the workers start."""

import leaderboard.collect
import leaderboard.costs
import leaderboard.render
import leaderboard.tables  # noqa: F401
from leaderboard.command import publish

__all__ = ["publish"]
