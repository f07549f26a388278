"""What a repaired model costs, by part, beside what it gains: seconds of one seed alone, calls, tokens, money."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from harness.record import Record, TrackResult
from leaderboard.compare import Row
from leaderboard.tables import Board

PARTS = ("base_s", "masks_s", "fit_s")
CONSUMED = {"calls": "lvlm_calls", "tokens": ("lvlm_prompt_tokens", "lvlm_completion_tokens"), "price": "lvlm_price"}


def costs(board: Board) -> pd.DataFrame:
    """A line per row with numbers, means over seeds.

    Columns: block, row, label, base_s (the base model; 0 for methods that train from scratch), masks_s (selecting,
    explaining, segmenting, asking the critic), fit_s (all configurations that the track tried), cost_s (their sum:
    one seed alone), calls, tokens and price of a language model (in the price's own currency; empty without one),
    delta (gain in WGA over the base model), and on_front (no ranked row gains more for less).
    """
    from leaderboard.charts import pareto

    lines: list[dict[str, Any]] = []
    for row, (_, line) in zip(board.rows, board.frame.iterrows(), strict=True):
        if not row.results:
            continue
        held = [parts(row.entries[seed].record, result, board.track) for seed, result in row.results.items()]
        lines.append(
            {
                "block": line["block"],
                "row": line["row"],
                "label": line["label"],
                **{name: sum(part[name] for part in held) / len(held) for name in PARTS},
                "cost_s": line["cost_s"],
                **{name: _consumed(row, kinds) for name, kinds in CONSUMED.items()},
                "delta": line["delta"],
                "wga": line["wga"],
            }
        )
    found = pd.DataFrame(lines)
    if found.empty:
        return found
    known = found["cost_s"].notna() & found["wga"].notna()
    found["on_front"] = False
    some = found[known]
    found.loc[known, "on_front"] = pareto(some["cost_s"].to_numpy(), some["wga"].to_numpy(), some)
    return found


def parts(record: Record, result: TrackResult, track: str) -> dict[str, float]:
    """A cell's standalone seconds on a track, in three parts that sum to its `cost_s`."""
    tried = record.candidates[1:] if track == "tuned" and len(record.candidates) > 1 else record.candidates[:1]
    fit = math.fsum(candidate.seconds for candidate in tried) if record.candidates else 0.0
    fit = min(fit, result.cost_s)
    rest = result.cost_s - fit
    base = min(rest, record.standalone.get("base", 0.0))
    return {"base_s": base, "masks_s": rest - base, "fit_s": fit}


def _consumed(row: Row, kinds: str | tuple[str, ...]) -> float:
    """Mean over seeds of a ledger's entries of some kinds, over all splits; NaN where there are none."""
    wanted = (kinds,) if isinstance(kinds, str) else kinds
    totals = [
        [amount for key, amount in result.ledger.items() if key.partition("/")[0] in wanted]
        for result in row.results.values()
    ]
    return sum(map(sum, totals)) / len(totals) if any(totals) else math.nan
