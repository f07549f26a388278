"""Follows a run from another terminal: what is done, who runs, how fast, until it ends."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator

from harness.api import survey
from harness.config import RunConfig
from harness.drivers import running
from harness.progress import count

EVERY_S = 2.0
PATIENCE_S = 10.0  # a run that was just started imports and plans before it can be seen
PACE_OVER = 30  # looks: the pace is that of the last minute


def follow(config: RunConfig, every_s: float = EVERY_S, patience_s: float = PATIENCE_S) -> Iterator[str]:
    """A line whenever something changed; ends when all cells are done, or nobody runs any more.

    Looking costs a read of every record, so the pause grows with the time that a look takes.
    """
    seen: deque[tuple[float, int]] = deque(maxlen=PACE_OVER)
    told, ran, begun = "", False, time.monotonic()
    while True:
        start = time.monotonic()
        drivers = len(running(config.results))
        states = survey(config)
        totals = Counter(state.state for state in states)
        failed = sum(state.record is not None and state.record.status == "failed" for state in states)
        seen.append((start, totals["done"]))
        line = f"{totals['done']} of {count(len(states), 'cell')} done"
        line += "".join(f", {totals[kind]} {kind}" for kind in ("missing", "stale", "damaged") if totals[kind])
        line += f", {failed} without numbers after a failure" if failed else ""
        line += f"; {count(drivers, 'run')} at work"
        if line != told:
            told = line
            yield line + _left(seen, len(states))
        ran = ran or drivers > 0
        if totals["done"] == len(states):
            return
        if not drivers and (ran or start - begun >= patience_s):
            yield "the run has ended before all cells were done" if ran else "nobody runs in this folder: `vabench run`"
            return
        time.sleep(max(every_s if drivers else min(every_s, 0.5), 3 * (time.monotonic() - start)))


def _left(seen: deque[tuple[float, int]], total: int) -> str:
    (first, had), (last, has) = seen[0], seen[-1]
    if has <= had or last <= first or has == total:
        return ""
    seconds = (total - has) * (last - first) / (has - had)
    return f"; about {seconds / 60:.0f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"
