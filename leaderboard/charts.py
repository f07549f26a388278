"""Figures of a table: what a repair costs, how seeds and groups differ. Vector, colour-blind safe, no torch.

Each takes a `Board` (or a table of `Speeds`) and returns None where the records lack what it would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.spec import parse_spec
from leaderboard.compare import RANKED, Row
from leaderboard.house_style import COLOURS, FAINT, INK, SCALE, styled
from leaderboard.render import HEADINGS as BLOCK_WORDS
from leaderboard.tables import Board
from leaderboard.throughput import Speeds

# One colour and one shape per block: either alone tells them apart.
BLOCK_COLOURS = {"reference": "#6b6b6b", "baseline": "#0072B2", "method": "#D55E00", "oracle": "#009E73"}
BLOCK_COLOURS["control"] = "#CC79A7"
SHAPES = {"reference": "cross", "baseline": "circle", "method": "diamond", "oracle": "triangle-up", "control": "square"}
FEW_GROUPS = 6  # as many have a colour each; more are grey, with the worst apart
WIDTH, LINE = 430, 17  # width of a panel, height of a row in it


def cost_front(board: Board) -> Any:
    """WGA against standalone seconds of a repaired model; the line is the Pareto front of what can be ranked."""
    import altair as alt

    frame = board.frame.dropna(subset=["wga", "cost_s"])
    frame = frame[frame["cost_s"] > 0]
    if len(frame) < 2:
        return None
    data = pd.DataFrame({"row": frame["label"], "block": _words(frame["block"]), "cost": frame["cost_s"]})
    data["wga"], data["low"], data["high"] = frame["wga"], frame["wga_low"], frame["wga_high"]
    front = data[frame["block"].isin(RANKED) & pareto(data["cost"].to_numpy(), data["wga"].to_numpy(), frame)]
    x = alt.X("cost:Q", title="seconds of one seed, base model included", scale=alt.Scale(type="log", nice=False))
    y = alt.Y("wga:Q", title="WGA", scale=alt.Scale(zero=False))
    layers = [
        alt.Chart(front).mark_line(interpolate="step-after", color=FAINT, strokeDash=[4, 3]).encode(x=x, y=y),
        alt.Chart(data.dropna(subset=["low"])).mark_rule(opacity=0.35).encode(x=x, y="low:Q", y2="high:Q"),
        alt.Chart(data)
        .mark_point(filled=True, size=70, opacity=0.9)
        .encode(x=x, y=y, color=_colour(data), shape=_shape(data)),
    ]
    width, height = WIDTH + 60, 300
    for k, (align, dy) in enumerate(_label_places(front, data, width, height)):
        mark = {"align": align, "dx": 7 if align == "left" else -7, "dy": dy, "fontSize": 10, "color": INK}
        layers.append(alt.Chart(front.iloc[[k]]).mark_text(**mark).encode(x=x, y=y, text="row:N"))
    return alt.layer(*layers).properties(width=width, height=height)


def _label_places(front: pd.DataFrame, data: pd.DataFrame, width: float, height: float) -> list[tuple[str, float]]:
    """Alignment and vertical shift in pixels of each label: inside the panel, and not over a label placed before."""

    def place(values: pd.Series[float], among: pd.Series[float], length: float) -> list[float]:
        low, high = float(among.min()), float(among.max())
        return [length * (float(value) - low) / max(high - low, 1e-9) for value in values]

    across = place(np.log10(front["cost"]), np.log10(data["cost"]), width)
    down = [height - at for at in place(front["wga"], pd.concat([data["wga"], data["low"], data["high"]]), height)]
    found: list[tuple[str, float]] = []
    taken: list[tuple[float, float, float]] = []  # left, right, middle
    for x, y, text in zip(across, down, front["row"], strict=True):
        long = 5.6 * len(str(text)) + 7
        align = "left" if x + long <= width else "right"
        left, right = (x, x + long) if align == "left" else (x - long, x)
        free = (dy for dy in (-7, 9, -20, 22, -33, 35, -46) if all(
            right < start or left > end or abs(y + dy - middle) > 11 for start, end, middle in taken
        ))  # fmt: skip
        dy = next(free, -7)
        taken.append((left, right, y + dy))
        found.append((align, dy))
    return found


def pareto(cost: Any, score: Any, frame: pd.DataFrame | None = None) -> Any:
    """Which points no other beats on both (lower cost, higher score), bool [n]; only ranked rows of `frame` compete."""
    cost, score = np.asarray(cost, dtype=float), np.asarray(score, dtype=float)
    able = np.ones(len(cost), dtype=bool) if frame is None else frame["block"].isin(RANKED).to_numpy()
    beaten = (cost[None] <= cost[:, None]) & (score[None] >= score[:, None])
    beaten &= (cost[None] < cost[:, None]) | (score[None] > score[:, None])
    return able & ~(beaten & able[None]).any(axis=1)


def seed_dots(board: Board) -> Any:
    """WGA of every seed, a dot each, and the mean as a bar: what an interval of few seeds hides."""
    import altair as alt

    data = _per_seed(board, "wga")
    if data is None:
        return None
    order = list(dict.fromkeys(data["row"]))
    y = alt.Y("row:N", sort=order, title=None, axis=_names())
    x = alt.X("value:Q", title="WGA", scale=alt.Scale(domain=[0, 1]))
    dots = alt.Chart(data).mark_circle(size=34, opacity=0.6).encode(x=x, y=y, color=_colour(data))
    means = data.groupby("row", sort=False, as_index=False)["value"].mean()
    bars = alt.Chart(means).mark_tick(thickness=2, size=13, color=INK).encode(x=x, y=y)
    return alt.layer(dots, bars).properties(width=WIDTH, height=LINE * len(order))


def group_accuracy(board: Board) -> Any:
    """Accuracy per group, mean over seeds; the worst stands out, and few groups have a colour and a name each."""
    import altair as alt

    lines: list[dict[str, Any]] = []
    for row, label in zip(board.rows, board.frame["label"], strict=True):
        means, names = group_means(row)
        worst = int(np.nanargmin(means)) if len(means) and not np.isnan(means).all() else -1
        for k, (value, name) in enumerate(zip(means, names, strict=True)):
            lines.append({"row": label, "group": name, "value": value, "kind": "worst" if k == worst else "other"})
    data = pd.DataFrame(lines, columns=["row", "group", "value", "kind"]).dropna(subset=["value"])
    if data.empty:
        return None
    order, groups = list(dict.fromkeys(data["row"])), list(dict.fromkeys(data["group"]))
    y = alt.Y("row:N", sort=order, title=None, axis=_names())
    x = alt.X("value:Q", title="accuracy per group", scale=alt.Scale(domain=[0, 1]))
    if len(groups) <= FEW_GROUPS:
        scale = alt.Scale(domain=groups, range=list(COLOURS[: len(groups)]))
        paint: Any = alt.Color("group:N", scale=scale, title=None, legend=alt.Legend(orient="bottom", columns=2))
    else:
        scale = alt.Scale(domain=["worst", "other"], range=[COLOURS[1], FAINT])
        paint = alt.Color("kind:N", scale=scale, title="group", legend=alt.Legend(orient="bottom"))
    marks = alt.Chart(data).mark_tick(thickness=3, size=13).encode(x=x, y=y, color=paint)
    return marks.properties(width=WIDTH, height=LINE * len(order))


def slopes(board: Board) -> Any:
    """Accuracy where the shortcut helps and where it misleads, a line per row: flat means that it is not used."""
    import altair as alt

    lines: list[dict[str, Any]] = []
    for row, label in zip(board.rows, board.frame["label"], strict=True):
        ends = {name: row.mean(f"accuracy.{name}") for name in ("aligned", "conflicting")}
        if not any(np.isnan(value) for value in ends.values()):
            lines += [{"row": label, "block": row.head.block, "where": k, "value": v} for k, v in ends.items()]
    data = pd.DataFrame(lines, columns=["row", "block", "where", "value"])
    if data.empty:
        return None
    data["block"] = _words(data["block"])
    x = alt.X("where:N", title=None, axis=alt.Axis(labelAngle=0), scale=alt.Scale(padding=0.15))
    y = alt.Y("value:Q", title="accuracy", scale=alt.Scale(zero=False))
    line = alt.Chart(data).mark_line(point=True, opacity=0.75).encode(x=x, y=y, detail="row:N", color=_colour(data))
    return line.properties(width=260, height=300)


def verdict_surface(board: Board) -> Any:
    """WGA over the false-positive and false-negative rates of simulated verdicts, where a method was run on a grid."""
    import altair as alt

    lines = []
    for row in board.rows:
        source = row.head.mask_source
        spec = parse_spec(source) if source else None
        if spec is None or spec.name != "noisy_oracle" or np.isnan(row.mean("wga")):
            continue
        rates = {"fpr": 0.0, "fnr": 0.0, **{k: float(v) for k, v in spec.params.items() if k in ("fpr", "fnr")}}
        lines.append({"method": row.head.method, **rates, "wga": row.mean("wga")})
    data = pd.DataFrame(lines, columns=["method", "fpr", "fnr", "wga"])
    grids = [part for _, part in data.groupby("method") if part["fpr"].nunique() > 1 and part["fnr"].nunique() > 1]
    if not grids:
        return None
    panels = []
    scale = alt.Scale(scheme="cividis", domain=[float(data["wga"].min()), float(data["wga"].max())])
    middle = (float(data["wga"].min()) + float(data["wga"].max())) / 2
    for part in grids:
        tiles = alt.Chart(part).encode(
            x=alt.X("fpr:O", title="false-positive rate of the verdicts", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("fnr:O", title="false-negative rate", sort=sorted(part["fnr"].unique(), reverse=True)),
        )
        ink = alt.condition(alt.datum.wga < middle, alt.value("white"), alt.value("#1a1a1a"))
        shade = tiles.mark_rect(stroke="white").encode(color=alt.Color("wga:Q", scale=scale, legend=None))
        words = tiles.mark_text(fontSize=11).encode(text=alt.Text("wga:Q", format=".3f"), color=ink)
        size = {"width": 52 * part["fpr"].nunique(), "height": 38 * part["fnr"].nunique()}
        panels.append(alt.layer(shade, words).properties(title=part["method"].iloc[0], **size))
    return alt.hconcat(*panels)


def throughput_bars(table: Speeds) -> str | None:
    """Images per second by row, a panel per phase and device, with the interval over rounds, as SVG."""
    import altair as alt
    import vl_convert

    data = table.frame[table.frame["valid"] > 0] if len(table.frame) else table.frame
    if data.empty:
        return None
    data = data.assign(panel=data["phase"] + " · " + data["device"])
    order = list(dict.fromkeys(data["row"]))
    panels = []
    for name, part in data.groupby("panel", sort=False):
        y = alt.Y("row:N", sort=order, title=None, axis=_names())
        bars = alt.Chart(part).mark_bar(color=COLOURS[0], height=9).encode(x=alt.X("median:Q", title=None), y=y)
        ends = alt.Chart(part).mark_rule(color=INK, strokeWidth=1.5).encode(x="low:Q", x2="high:Q", y=y)
        panels.append(alt.layer(bars, ends).properties(width=WIDTH // 2, height=LINE * len(part), title=str(name)))
    return str(vl_convert.vegalite_to_svg(styled(alt.concat(*panels, columns=2), "Images per second", [table.title])))


CHARTS: dict[str, tuple[str, Callable[[Board], Any]]] = {
    "cost": ("WGA against cost", cost_front),
    "seeds": ("WGA of every seed", seed_dots),
    "groups": ("Accuracy per group", group_accuracy),
    "surface": ("WGA under a critic that errs", verdict_surface),
    "slopes": ("Where the shortcut helps, and where it misleads", slopes),
}


def draw(board: Board) -> dict[str, str]:
    """Charts of a table as SVG by name, without those that its records cannot fill."""
    import vl_convert

    found: dict[str, str] = {}
    for name, (title, make) in CHARTS.items():
        chart = make(board)
        if chart is not None:
            found[name] = vl_convert.vegalite_to_svg(styled(chart, title, [board.title]))
    return found


def png(svg: str) -> bytes:
    """A drawn chart as pixels, for slides."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=SCALE))


def group_means(row: Row) -> tuple[Any, list[str]]:
    """Accuracy per group [G], mean over seeds (NaN for an empty group), and the groups' names."""
    values = [result.metrics.get("group_accuracy") for result in row.results.values()]
    held = [[np.nan if v is None else v for v in value] for value in values if value]
    if not held or len({len(value) for value in held}) > 1:
        return np.empty(0), []
    table = np.array(held, dtype=float)
    counts = (~np.isnan(table)).sum(axis=0)
    means = np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    named = list(next(iter(row.entries.values())).record.groups.get("train", {}))
    return means, named if len(named) == len(means) else [f"group {k}" for k in range(len(means))]


def _per_seed(board: Board, metric: str) -> pd.DataFrame | None:
    lines = [
        {"row": label, "block": row.head.block, "seed": seed, "value": value}
        for row, label in zip(board.rows, board.frame["label"], strict=True)
        for seed, value in row.values(metric).items()
    ]
    if not lines:
        return None
    data = pd.DataFrame(lines)
    return data.assign(block=_words(data["block"]))


def _words(blocks: pd.Series[str]) -> pd.Series[str]:
    return blocks.map(lambda block: BLOCK_WORDS.get(block, block))


def _scale(data: pd.DataFrame, values: Mapping[str, str]) -> Any:
    import altair as alt

    here = [block for block in values if BLOCK_WORDS[block] in set(data["block"])]
    return alt.Scale(domain=[BLOCK_WORDS[block] for block in here], range=[values[block] for block in here])


def _colour(data: pd.DataFrame) -> Any:
    import altair as alt

    legend = alt.Legend(orient="bottom", symbolOpacity=1, columns=3)
    return alt.Color("block:N", title=None, scale=_scale(data, BLOCK_COLOURS), legend=legend)


def _shape(data: pd.DataFrame) -> Any:
    import altair as alt

    return alt.Shape("block:N", title=None, scale=_scale(data, SHAPES), legend=alt.Legend(orient="bottom", columns=3))


def _names() -> Any:
    import altair as alt

    return alt.Axis(labelLimit=260, ticks=False, domain=False, grid=True)
