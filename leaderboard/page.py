"""The leaderboard as one HTML file that opens from disk and loads nothing: tables, figures, what is behind each row.

Text from records is data: the template escapes it, and the page's own policy allows no script but its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.friedman import AverageRanks, average_ranks
from harness.record import Record
from leaderboard.charts import CHARTS, draw, group_means, throughput_bars
from leaderboard.collect import TRACKS
from leaderboard.compare import BLOCKS, RANKED, Row
from leaderboard.costs import costs
from leaderboard.curves import Drawn, curves
from leaderboard.gallery import Gallery
from leaderboard.house_style import FAINT, INK
from leaderboard.render import COLUMNS, EMPTY, LEGEND, Column, heading
from leaderboard.tables import CODES, Board
from leaderboard.throughput import Speeds

if TYPE_CHECKING:
    from leaderboard.study_board import Shown

NUMBERS = ("rank", "n", "headline", "wga", "delta", "gain", "aga", "accuracy", "flip_effect", "mu_lift", "n_worst")
NUMBERS += ("detectable", "cost_s", "throughput")
EXTRA = (
    Column("detectable", "detectable", lambda line, key, _: EMPTY if math.isnan(line[key]) else f"{line[key]:.3f}"),
)
COST_HEADS = ("row", "base model s", "masks s", "fit s", "in all s", "calls", "tokens", "price", "ΔWGA")
HINTS = {
    "rank": "shared unless the data tell rows apart",
    "WGA": "worst-group accuracy, mean over seeds with its 95 % interval",
    "ΔWGA": "to the base model of the same seed; * adjusted p < .05",
    "gain": "WGA over the best control, for methods with masks",
    "AGA": "average group accuracy",
    "flip": "predictions changed by the spurious object, minus those changed by a placebo",
    "lift": "share of attribution on the spurious object over its area",
    "n worst": "test images of the smallest worst group",
    "detectable": "difference to the best that these seeds and images would find with 80 % power",
    "cost s": "seconds of one seed if it ran alone, base model included",
}


@dataclass(frozen=True)
class Cell:
    """One cell of a table: text for people, `sort` at full precision (empty: no number), and an interval to draw."""

    text: str
    sort: str = ""
    interval: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One row of a table and the section behind it."""

    block: str
    name: str
    cells: tuple[Cell, ...]
    consumed: str
    status: str
    reason: str
    section: str
    details: Mapping[str, str]
    groups: tuple[tuple[str, str, int], ...]
    searched: str
    tried: tuple[tuple[str, ...], ...] = ()  # configuration, its score under the track's rule, WGA, seconds, chosen
    galleries: tuple[Gallery, ...] = ()
    curves: tuple[Drawn, ...] = ()


@dataclass(frozen=True)
class Part:
    """One table on the page, its figures (name -> title, SVG) and its sentences."""

    key: str
    title: str
    suite: str
    track: str
    stand_in: bool
    heads: tuple[str, ...]
    blocks: tuple[tuple[str, str, tuple[Line, ...]], ...]
    figures: Mapping[str, tuple[str, str]]
    costs: tuple[tuple[str, ...], ...]  # of `COST_HEADS`
    notes: tuple[str, ...]


def to_html(
    found: Sequence[Board],
    *,
    title: str = "vabench leaderboard",
    warnings: Sequence[str] = (),
    timings: Sequence[Speeds] = (),
    galleries: Mapping[str, Gallery] | None = None,
    studies: Sequence[Shown] = (),
) -> str:
    """The page of some tables; real and synthetic suites first, stand-ins last and under a heading of their own.

    Args:
        galleries: by record id; they hold images of the suites, and stand on the pre-registered track, whose models
            they show.
    """
    import jinja2

    parts = [_part(board, k, galleries or {}) for k, board in enumerate(found)]
    parts.sort(key=lambda part: part.stand_in)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leaderboard", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    content = {
        "title": title,
        "parts": parts,
        "overall": [held for held in (_overall(found, track) for track in TRACKS) if held],
        "codes": {code: name.replace("_", " ") for name, code in CODES.items()},
        "blocks": {block: heading(block) for block in BLOCKS},
        "timings": [
            (table, inline(svg, f"s{k}") if svg is not None else "")
            for k, (table, svg) in enumerate((held, throughput_bars(held)) for held in timings)
        ],
        "studies": [(held, inline(held.svg, f"g{k}") if held.svg else "") for k, held in enumerate(studies)],
        "legend": LEGEND,
        "hints": HINTS,
        "cost_heads": COST_HEADS,
        "warnings": list(warnings),
    }
    digest = hashlib.sha256(repr([(p.title, p.blocks) for p in parts]).encode()).hexdigest()
    return environment.get_template("page.html.jinja").render(**content, nonce=digest[:24])  # same records, same file


def _part(board: Board, k: int, galleries: Mapping[str, Gallery]) -> Part:
    shown = [c for c in (*COLUMNS, *EXTRA) if c.key in board.frame and c.key != "label"]
    shown = [c for c in shown if not c.optional or board.frame[c.key].notna().any()]
    blocks: dict[str, list[Line]] = {}
    for place, (row, (_, line)) in enumerate(zip(board.rows, board.frame.iterrows(), strict=True)):
        blocks.setdefault(str(line["block"]), []).append(
            _line(row, line, shown, f"t{k}r{place}", board.track, galleries)
        )
    figures = {name: (CHARTS[name][0], inline(svg, f"t{k}{name}")) for name, svg in draw(board).items()}
    return Part(
        f"t{k}",
        board.title,
        board.suite,
        board.track,
        board.source == "stand-in",
        tuple(c.head for c in shown),
        tuple((block, heading(block), tuple(lines)) for block, lines in blocks.items()),
        figures,
        _costs(board),
        board.notes,
    )


def _costs(board: Board) -> tuple[tuple[str, ...], ...]:
    """Cost by part as text; * marks what no ranked row beats at its price."""

    def number(value: float, digits: int) -> str:
        return EMPTY if pd.isna(value) else f"{value:,.{digits}f}"

    return tuple(
        (
            f"{line['label']}{' *' if line['on_front'] else ''}",
            *(number(line[name], 1) for name in ("base_s", "masks_s", "fit_s", "cost_s")),
            *(number(line[name], 0) for name in ("calls", "tokens")),
            number(line["price"], 2),
            EMPTY if pd.isna(line["delta"]) else f"{line['delta']:+.3f}",
        )
        for _, line in costs(board).iterrows()
    )


def _line(row: Row, line: Any, shown: Sequence[Column], key: str, track: str, galleries: Mapping[str, Gallery]) -> Line:
    cells = tuple(_cell(line, column) for column in shown)
    record = row.head
    means, names = group_means(row)
    counts = next((r.metrics.get("group_counts") or [] for r in row.results.values()), [])
    counts = counts if len(counts) == len(names) else [0] * len(names)
    groups = tuple(
        (name, EMPTY if math.isnan(value) else f"{value:.3f}", int(count))
        for name, value, count in zip(names, means, counts, strict=True)
    )
    return Line(
        str(line["block"]),
        str(line["label"]),
        cells,
        " ".join(re.findall(r"[A-Z]", str(line["codes"]))),
        str(line["status"]),
        str(line["reason"]),
        key,
        _details(row, line, record, track),
        groups,
        f"{line['label']} {line['row']} {line['method']} {line['mask_source']} {line['supervision']}".lower(),
        _tried(row) if track == "tuned" else (),
        tuple(
            galleries[entry.record.id]
            for _, entry in sorted(row.entries.items())
            if track == "preregistered" and entry.record.id in galleries
        ),
        curves(row),
    )


def _cell(line: Any, column: Column) -> Cell:
    text = column.write(line, column.key, False) if line["n"] or column.key in ("n", "rank") else EMPTY
    if column.key not in NUMBERS:
        return Cell(text)
    value = line[column.key]
    known = not pd.isna(value)
    ends = [line.get(f"{column.key}_{end}", math.nan) for end in ("low", "high")]
    drawn = column.key == "wga" and known and not any(math.isnan(end) for end in ends)
    return Cell(
        text, repr(float(value)) if known else "", (float(ends[0]), float(value), float(ends[1])) if drawn else None
    )


def _details(row: Row, line: Any, record: Record, track: str) -> dict[str, str]:
    """What stands in a row's section, as text."""
    held = list(row.entries.values())
    newest = held[0].record if held else record
    seeds = [f"{seed}: {value:.4f}" for seed, value in row.values("wga").items()]
    chosen = [
        f"seed {seed}: {json.dumps(entry.record.candidates[row.results[seed].candidate].config, sort_keys=True)}"
        for seed, entry in row.entries.items()
        if entry.record.candidates
    ]
    facts = {
        "method": str(line["method"]),
        "masks": str(line["mask_source"]) or "none",
        "simulated": "yes: its verdicts come from the ground truth, no language model was asked" * record.simulated,
        "supervision": str(line["supervision"]),
        "consumed (mean over seeds)": str(line["ledger"]),
        "selected by": str(line["rule"]),
        "WGA by seed": "; ".join(seeds),
        f"configuration on the {TRACKS.get(track, track)}": "\n".join(chosen) if track == "tuned" else "",
        "candidates tried": str(max((len(entry.record.candidates) for entry in held), default=0)),
        "checked": _checked(newest, track),
        "ended without numbers": str(line["reason"]),
        "records": "\n".join(f"seed {s}: {e.record.id}" for s, e in row.entries.items()),
        "commits": "\n".join(dict.fromkeys(str(line["commits"]).split(";"))),
        "hardware": json.dumps(newest.provenance.get("hardware", {}), sort_keys=True),
        "device": str(newest.provenance.get("device", "")),
        "packages": json.dumps(newest.provenance.get("packages", {}), sort_keys=True),
        "initial weights": str(newest.provenance.get("initial_weights", "")),
        "data": str(newest.identity.get("data", "")),
        "config": json.dumps(newest.config, sort_keys=True, ensure_ascii=False),
    }
    return {name: text for name, text in facts.items() if text}


def _tried(row: Row) -> tuple[tuple[str, ...], ...]:
    """What the tuned track chose among, means over seeds: the curve of a method over its configurations."""
    held: dict[str, list[tuple[float, float, float, bool]]] = {}
    for seed, entry in row.entries.items():
        result = row.results[seed]
        for k, candidate in enumerate(entry.record.candidates):
            score, wga = candidate.selection.get(result.rule), candidate.test.get("wga")
            numbers = [math.nan if value is None else float(value) for value in (score, wga)]
            name = json.dumps(candidate.config, sort_keys=True) if candidate.config else "as pre-registered"
            held.setdefault(name, []).append((*numbers, candidate.seconds, k == result.candidate))  # type: ignore[arg-type]
    if len(held) < 2:
        return ()
    lines = []
    for name, values in held.items():
        means = [sum(value[k] for value in values) / len(values) for k in range(3)]
        text = [EMPTY if math.isnan(means[k]) else f"{means[k]:.3f}" for k in range(2)]
        lines.append((name, *text, f"{means[2]:.1f}", f"{sum(value[3] for value in values)} of {len(values)}"))
    return tuple(lines)


def _checked(record: Record, track: str) -> str:
    """Of a submitted row: which numbers were recomputed, which are reported, and a rerun's beside them."""
    found = record.audit.get("submission", {}).get(track)
    if not found:
        return ""
    metrics = record.tracks[track].metrics if track in record.tracks else {}  # type: ignore[index]
    again = [f"{k} {metrics.get(k)} / {v}" for k, v in found["external"].items() if k in ("wga", "aga", "mu_lift")]
    lines = [f"recomputed here: {', '.join(found['recomputed'])}", f"reported: {', '.join(found['reported'])}"]
    return "\n".join([*lines, f"rerun (here / there): {'; '.join(again)}" if again else "rerun: none"])


# --- over suites ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overall:
    """Average ranks on one track over the suites that are no stand-ins."""

    track: str
    found: AverageRanks
    lines: tuple[tuple[str, str, tuple[str, ...]], ...]
    sentence: str
    marks: tuple[tuple[str, float], ...]
    difference: float


def _overall(found: Sequence[Board], track: str) -> Overall | None:
    """Ranks of the ranked rows that every suite of the track has; None with fewer than two of either."""
    chosen = [board for board in found if board.track == track and board.source != "stand-in"]
    if len({(board.suite, board.model) for board in chosen}) != len(chosen) or len(chosen) < 2:
        return None
    scores = {}
    for board in chosen:
        frame = board.frame[board.frame["block"].isin(RANKED)].dropna(subset=["wga"])
        scores[board.suite] = {str(row): float(value) for row, value in zip(frame["row"], frame["wga"], strict=True)}
    ranks = average_ranks(scores)
    if len(ranks.rows) < 2:
        return None
    place = {row: k for k, row in enumerate(ranks.rows)}
    lines = tuple(
        (row, f"{mean:.2f}", tuple(f"{ranks.ranks[k, place[row]]:g}" for k in range(len(ranks.suites))))
        for row, mean in ranks.mean.items()
    )
    worst = len(ranks.rows)
    marks = tuple((row, (mean - 1) / max(worst - 1, 1)) for row, mean in ranks.mean.items())
    return Overall(
        TRACKS[track], ranks, lines, ranks.limits(), marks, min(1.0, ranks.critical_difference() / max(worst - 1, 1))
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def inline(svg: str, prefix: str) -> str:
    """A drawn chart for the page: no white sheet, ink in the page's colours, ids of its own, silent inside.

    The figure around it is what a screen reader hears; the numbers stand in the table.
    """
    svg = re.sub(r'<rect width="[\d.]+" height="[\d.]+" fill="white"/>', "", svg, count=1)
    svg = re.sub(r'\s(?:role|aria-[a-z]+|xmlns(?::xlink)?|version|class)="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'"(?:black|#000|#000000)"', '"currentColor"', svg)
    for colour, name in ((INK, "currentColor"), (FAINT, "var(--soft)"), ("#e6e6e6", "var(--line)")):
        svg = svg.replace(f'"{colour}"', f'"{name}"')
    svg = re.sub(r'<svg width="([\d.]+)" height="([\d.]+)"', r'<svg aria-hidden="true" width="\1" height="\2"', svg)
    return re.sub(r"<title>.*?</title>|<desc>.*?</desc>", "", svg, flags=re.DOTALL)
