"""One table per suite, model and track: a frame of full-precision numbers from which every format is rendered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.diagnosis import diagnose, returns_base
from harness.metrics.groups import MIN_DECIDING
from harness.record import Candidate, Record
from harness.store import slug
from leaderboard.beside import each
from leaderboard.collect import TRACKS, Entry, same_test
from leaderboard.compare import (
    BLOCKS,
    LOWER_IS_BETTER,
    RANKED,
    Estimate,
    Family,
    Rated,
    Row,
    against_base,
    against_control,
    estimate,
    gather,
    rank_rows,
)
from leaderboard.trace import cell_frame, sources

TEST_SELECTED = "test_selected"
# Metrics with an interval over seeds, then those that are given as a mean alone.
INTERVALS = ("headline", "wga", "aga", "accuracy")
MEANS = (
    *("wga_deciding", "train_weighted", "balanced_accuracy", "worst_class", "macro_f1", "auroc", "ece", "gap"),
    *("flip_insert", "flip_remove", "flip_placebo", "flip_effect", "mu_align", "mu_lift", "rcs"),
)
CODES = {
    "labels": "L",
    "train_groups": "G",
    "val_groups": "V",
    "masks": "M",
    "decorrelated": "D",
    "text": "T",
    "lvlm": "C",
    "person": "P",
}
_REASON = 2000  # characters of a failure's reason that a table repeats; the record holds all


@dataclass(frozen=True)
class Board:
    """A table: `frame` has one row per row, fractions in 0..1 and seconds at full precision; notes are sentences.

    cells: one line per cell behind the frame, with its record, commit and scores (`leaderboard.trace`). rows: what the
    frame's lines were computed from, in their order.
    """

    frame: pd.DataFrame
    suite: str
    source: str
    model: str
    track: str
    notes: tuple[str, ...]
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    rows: tuple[Row, ...] = field(default=(), repr=False)
    texts: dict[bool, Any] = field(default_factory=dict, repr=False, compare=False)  # `leaderboard.render.cells`

    @property
    def title(self) -> str:
        """Suite, track and model; says so where the data are a stand-in."""
        named = TRACKS.get(self.track, "chosen on test: no result, stands apart")
        stand_in = " · STAND-IN data, not the real thing" if self.source == "stand-in" else ""
        return f"{self.suite} · {named} · {self.model}{stand_in}"


def boards(
    entries: Iterable[Entry],
    tracks: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    metric: str = "wga",
) -> list[Board]:
    """All tables of some records: suites, sources (a stand-in stands alone), models and tracks never mix.

    Args:
        tracks: `preregistered`, `tuned`; None: those that have results. seeds: planned ones; None: unknown.
        metric: ranks the rows.
    """
    wanted = []
    for table in same_test(entries):
        held = {track for entry in table for track in entry.record.tracks}
        if not held:  # nothing but failures: they are shown all the same
            held = {track for entry in table for track in entry.record.config.get("tracks", ["preregistered"])}
        for track in TRACKS:
            if track in held and (tracks is None or track in tracks):
                wanted.append((table, track, gather(table, track)))
    judged = each(len(wanted), lambda k: _judge(wanted[k][2], metric), sum(len(table) for table, _, _ in wanted))
    return [_board(*parts, verdict, seeds, metric) for parts, verdict in zip(wanted, judged, strict=True)]


def leaderboard(
    entries: Sequence[Entry], track: str, *, seeds: Sequence[int] | None = None, metric: str = "wga"
) -> Board:
    """One track of records that share suite, data and model (`same_test`).

    The frame's columns: block, rank, row, label, method, mask_source, status, reason, n, planned; the metrics, some
    with `_low` and `_high`; `delta*` (WGA against the base model) and `gain*` (against the best control, `control`),
    each with interval, p, Holm-adjusted p and effect size; supervision, ledger, cost_s; n_worst, one_image, detectable;
    record_seeds, record_ids and commits, which lead to the records (`leaderboard.trace.sources`).
    """
    rows = gather(entries, track)
    return _board(entries, track, rows, _judge(rows, metric), seeds, metric)


@dataclass(frozen=True)
class _Judged:
    """What a table's numbers say of its rows: all that takes time to work out."""

    rated: Rated
    base: Family
    gains: Family
    controls: dict[str, str]
    metrics: dict[str, dict[str, float]]


def _judge(rows: Sequence[Row], metric: str) -> _Judged:
    gains, controls = against_control(rows)
    return _Judged(
        rank_rows(rows, metric), against_base(rows), gains, controls, {row.key: _metrics(row) for row in rows}
    )


def _board(
    entries: Sequence[Entry], track: str, rows: list[Row], judged: _Judged, seeds: Sequence[int] | None, metric: str
) -> Board:
    expected = sorted(seeds) if seeds is not None else sorted({entry.record.seed for entry in entries})
    rated, base, gains, controls = judged.rated, judged.base, judged.gains, judged.controls
    places = {rank.row: rank for rank in rated.ranking.rows} if rated.ranking else {}
    labels = _labels(rows)
    lines = []
    for row in rows:
        place = places.get(row.key)
        line: dict[str, object] = {
            **_head(row, labels[row.key]),
            **_state(row, expected),
            "rank": place.rank if place else None,
            **judged.metrics[row.key],
            **_compared("delta", base, row.key),
            **_compared("gain", gains, row.key),
            "control": labels[controls[row.key]] if row.key in controls else "",
            **_consumed(row),
            "detectable": place.detectable if place else math.nan,
            **sources([entry.record for entry in row.entries.values()]),
            "_order": place.mean if place else row.mean(metric),
        }
        lines.append(line)
    sign = 1 if metric in LOWER_IS_BETTER else -1
    lines.sort(key=lambda line: _order(line, sign))
    frame = pd.DataFrame(lines).drop(columns="_order")
    frame["rank"] = frame["rank"].astype("Int64")
    head = rows[0].head
    notes = (
        *_diagnosis_notes(entries),
        *_rank_notes(rated, metric, frame),
        *_family_notes(base, gains, controls, labels, rows, track),
        *_reliance_notes(rows),
        *_block_notes(rows),
        *_submission_notes(entries),
    )
    place = {row.key: row for row in rows}
    held = tuple(place[key] for key in frame["row"])
    return Board(frame, head.suite, head.suite_source, head.model, track, notes, cell_frame(entries, track), held)


def _order(line: dict[str, object], sign: int) -> tuple[int, bool, float]:
    score = float(line["_order"])  # type: ignore[arg-type]
    block = str(line["block"])
    place = BLOCKS.index(block) if block in BLOCKS else len(BLOCKS)
    return place, math.isnan(score), 0.0 if math.isnan(score) else sign * score


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """What the table calls each row: its label if it has one of its own, else its key."""
    named = {row.key: row.head.label or row.key for row in rows}
    twice = {label for label in named.values() if list(named.values()).count(label) > 1}
    return {key: key if label in twice else label for key, label in named.items()}


def _head(row: Row, label: str) -> dict[str, object]:
    head = row.head
    return {
        "block": head.block,
        "rank": None,
        "row": row.key,
        "label": label,
        "method": head.method,
        "mask_source": head.mask_source or "",
        "simulated": head.simulated,
    }


def _state(row: Row, expected: Sequence[int]) -> dict[str, object]:
    """How the row's cells ended: seeds done of planned, a status, and the reasons in words."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for seed, record in sorted(row.without.items()):
        why = " ".join(record.reason.split()) or "no reason given"
        why = why if len(why) <= _REASON else f"{why[:_REASON]} … (the record holds the rest)"
        reasons.setdefault((record.status.value, why), []).append(seed)
    unrun = [seed for seed in expected if seed not in row.results and seed not in row.without]
    if unrun:
        reasons[("not run", "no record")] = unrun
    counts: dict[str, int] = {"done": len(row.results)} if row.results else {}
    for (status, _), held in reasons.items():
        counts[status] = counts.get(status, 0) + len(held)
    alone = len(counts) == 1
    status = next(iter(counts)) if alone else ", ".join(f"{n} {status}" for status, n in counts.items())
    parts = [
        f"{status}{'' if alone and len(reasons) == 1 else f' (seed {_numbers(held)})'}: {why}"
        for (status, why), held in reasons.items()
    ]
    planned = len({*expected, *row.results, *row.without})
    return {"status": status, "reason": "; ".join(parts), "n": len(row.results), "planned": planned}


def _numbers(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _metrics(row: Row) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in INTERVALS:
        found |= _spread(metric, _within_unit(estimate(row.values(metric).values())))
    found |= {metric: row.mean(metric) for metric in MEANS}
    worst = list(row.values("n_worst").values())
    smallest = min(worst) if worst else math.nan
    return {**found, "n_worst": smallest, "one_image": 1 / smallest if smallest > 0 else math.nan}


def _within_unit(value: Estimate) -> Estimate:
    """An accuracy's interval ends where accuracies end; with few seeds the t stretch reaches beyond."""
    return Estimate(value.mean, max(0.0, value.low), min(1.0, value.high)) if not math.isnan(value.low) else value


def _spread(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def _compared(name: str, held: Family, key: str) -> dict[str, float]:
    found = held.by_row.get(key)
    spread = _spread(name, found.difference if found else Estimate(math.nan, math.nan, math.nan))
    tail = {"p": found.p if found else math.nan, "p_holm": held.adjusted.get(key, math.nan)}
    tail["effect"] = found.effect if found else math.nan
    return {**spread, **{f"{name}_{what}": value for what, value in tail.items()}}


def _consumed(row: Row) -> dict[str, object]:
    """Supervision in words and codes with the counts that were charged (means over seeds), and standalone seconds."""
    results = list(row.results.values())
    if not results:
        return {"supervision": "", "codes": "", "rule": "", "ledger": "", "cost_s": math.nan}
    kinds = sorted({kind for result in results for kind in result.ledger})
    ledger = {kind: float(np.mean([result.ledger.get(kind, 0.0) for result in results])) for kind in kinds}
    flags = [flag for flag in CODES if any(flag in result.supervision for result in results)]
    flags += sorted({flag for result in results for flag in result.supervision} - set(CODES))
    words, codes = [], []
    for flag in flags:
        amount = _amount(flag, ledger)
        words.append(flag.replace("_", " ") + (f" {amount:.0f}" if amount else ""))
        codes.append(CODES.get(flag, flag) + (f"{amount:.0f}" if amount else ""))
    verdicts = _total(ledger, "verdicts")
    if verdicts:
        words.append(f"verdicts {verdicts:.0f}")
        codes.append(f"v{verdicts:.0f}")
    return {
        "supervision": ", ".join(words) or "none",
        "codes": " ".join(codes) or "none",
        "rule": ", ".join(sorted({result.rule for result in results})),
        "ledger": "; ".join(f"{kind} {amount:g}" for kind, amount in ledger.items()),
        "cost_s": float(np.mean([result.cost_s for result in results])),
    }


def _total(ledger: dict[str, float], kind: str, *splits: str) -> float:
    held = (key.partition("/") for key in ledger)
    return sum(ledger["".join(p)] for p in held if p[0] == kind and (not splits or p[2] in splits))


def _amount(flag: str, ledger: dict[str, float]) -> float:
    """Items of a kind of supervision; 0 for labels, which every row reads in full."""
    if flag == "train_groups":
        return _total(ledger, "groups", "train")
    if flag == "val_groups":
        return _total(ledger, "val_groups") or _total(ledger, "groups", "val", "val_groups")
    return _total(ledger, "sentences" if flag == "text" else flag) if flag != "labels" else 0.0


# --- sentences below the table ----------------------------------------------------------------------------------------


def _rank_notes(rated: Rated, metric: str, frame: pd.DataFrame) -> list[str]:
    if rated.ranking is None:
        return [rated.how] if rated.how else []
    name = {"wga": f"WGA over groups with at least {MIN_DECIDING} test images"}.get(metric, metric)
    notes = [
        f"Ranks by {name}, shared unless the interval of a paired difference to the best of the rank excludes 0 at a "
        f"family-wise 5 % ({rated.how})."
    ]
    reach = rated.ranking.detectable
    if reach >= 1:
        notes[0] += " So few seeds find no difference to the best with 80 % power."
    elif not math.isnan(reach):
        notes[0] += f" A difference of {reach:.3f} to the best would be found with 80 % power."
    if any(rank.rank is None for rank in rated.ranking.rows):
        notes.append("A row with one seed has no rank.")
    smallest = frame.loc[frame["block"].isin(RANKED), "n_worst"].min()
    if smallest > 0:
        notes.append(f"The smallest worst group has {smallest:.0f} test images: one is {1 / smallest:.3f} of WGA.")
    if metric == "wga" and (frame["wga"] < frame["wga_deciding"]).any():
        notes.append(f"A group below {MIN_DECIDING} test images is in the WGA column, but decides no rank.")
    return notes


def _family_notes(
    base: Family, gains: Family, controls: dict[str, str], labels: dict[str, str], rows: Sequence[Row], track: str
) -> list[str]:
    notes = []
    if base.size:
        what = f"ΔWGA: to the base model of the same seed; * = adjusted p < .05 (Holm over {_rows(base.size)})."
        notes.append(f"{what} {base.limits()}".strip())
    if gains.by_row:
        names = sorted({labels[key] for key in controls.values()})
        what = f"gain, of methods with masks only: WGA minus that of the best control with masks, {', '.join(names)}, "
        what += f"which is picked by its own test WGA (Holm over {_rows(gains.size)})."
        if track != "tuned":
            what += " Here all keep the preset's lambda; the tuned track compares each at its own."
        notes.append(f"{what} {gains.limits()}".strip())
    elif any(row.corrects for row in rows):
        notes.append(
            "gain: empty, as no control with masks has results; a mask method is credited over its best control only."
        )
    return notes


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _diagnosis_notes(entries: Sequence[Entry]) -> list[str]:
    """Whether these records can show a repair at all: the gate's figures, whether or not it was asked to stop cells."""
    bases = {method for method in {entry.record.method for entry in entries} if returns_base(method)}
    found = diagnose(entry.record for entry in entries if entry.record.method in bases)
    return [f"{found.sentence()}."] if found else []


def _reliance_notes(rows: Sequence[Row]) -> list[str]:
    uniform = [value for row in rows for value in row.values("mu_uniform").values()]
    lifts = {entry.record.seed: entry.record.base.get("mu_lift") for row in rows for entry in row.entries.values()}
    known = [value for value in lifts.values() if value is not None]
    if not uniform:
        return []
    base = f"the base model's lift is {np.mean(known):.2f}, " if known else ""
    return [f"lift: {base}a uniform map's 1; the uniform level of mu_Align is {np.mean(uniform):.3f}."]


def _block_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    if any(row.head.simulated for row in rows):
        notes.append(
            "oracle: simulated critics; they ask no language model, their verdicts come from the ground-truth masks."
        )
    if any(row.head.block == "control" for row in rows):
        notes.append("controls: what a method with masks must beat; one named (of=source) imitates that source.")
    return notes


def _submission_notes(entries: Sequence[Entry]) -> list[str]:
    """Where rows come from elsewhere: what was checked, and what is their authors' word."""
    held = [found for entry in entries if (found := entry.record.audit.get("submission"))]
    if not held:
        return []
    again = sum(any(track["external"] for track in found.values()) for found in held)
    confirmed = f"{again} of {len(held)} cells were" if again else "no cell was"
    return [
        "rows in [brackets] were submitted: accuracies (WGA, AGA) and flips are recomputed from their predictions; "
        f"lift, cost and the base model's scores are as reported; {confirmed} confirmed by somebody else's rerun."
    ]


# --- test_selected ----------------------------------------------------------------------------------------------------


def best_on_test(record: Record, metric: str = "wga") -> Candidate | None:
    """The candidate that is best on test: what selecting on test would have reported. Never a result."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    known = [candidate for candidate in record.candidates if candidate.test.get(metric) is not None]
    return max(known, key=lambda candidate: sign * float(candidate.test[metric] or 0.0), default=None)


def best_on_test_board(entries: Sequence[Entry], *, metric: str = "wga") -> Board | None:
    """What every row would show had its configuration been chosen on test, seed by seed; None without choices."""
    rows: dict[str, list[tuple[Record, Candidate]]] = {}
    for entry in entries:
        best = best_on_test(entry.record, metric)
        if best is not None and len(entry.record.candidates) > 1:
            key = f"{entry.record.row} #{entry.variant}" if entry.variant else entry.record.row
            rows.setdefault(key, []).append((entry.record, best))
    lines = []
    for key, held in rows.items():
        head = held[0][0]
        line: dict[str, object] = {"block": head.block, "row": key, "label": head.label or key, "status": "done"}
        line |= {"reason": "", "n": len(held), "planned": len(held)}
        for name in INTERVALS:
            scores = [candidate.test.get(name) for _, candidate in held]
            line |= _spread(name, _within_unit(estimate(score for score in scores if score is not None)))
        line["tried"] = max(len(record.candidates) for record, _ in held)
        line |= sources([record for record, _ in held])
        line["_order"] = float(line["wga"])  # type: ignore[arg-type]
        lines.append(line)
    if not lines:
        return None
    lines.sort(key=lambda line: _order(line, -1))
    head = next(iter(rows.values()))[0][0]
    note = f"Every cell shows its candidate with the best test {metric}: optimistic by construction, no result."
    frame = pd.DataFrame(lines).drop(columns="_order")
    return Board(frame, head.suite, head.suite_source, head.model, TEST_SELECTED, (note,))


def stems(found: Sequence[Board]) -> list[str]:
    """A file name for each table, without ending: suite and track, and what else is needed to tell them apart."""
    names: list[str] = []
    for board in found:
        models = {other.model for other in found if other.suite == board.suite}
        parts = [board.suite, *([board.model] if len(models) > 1 else []), board.track]
        name = slug("-".join([*parts, *(["stand-in"] if board.source == "stand-in" else [])]))
        again = sum(other == name or other.startswith(f"{name}-again") for other in names)
        names.append(f"{name}-again{again}" if again else name)
    return names
