"""Figures of studies: curves, response surfaces, bars and power laws, as SVG and PNG. Colour-blind safe, no torch.

Every function takes a `harness.study_table.Result` and options from the study's YAML file and returns file contents by
ending. Options in common: title; x_title, y_title; names (measure -> words), column (the axis that tells panels apart),
column_names (its value -> words).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.statistics import bootstrap_interval
from leaderboard.house_style import COLOURS, DASHES, FAINT, INK, SCALE, styled

if TYPE_CHECKING:
    from harness.study_table import Result

TRACKS = {"preregistered": "pre-registered λ", "tuned": "λ tuned at each point"}
FRACTIONS = ("accuracy", "headline", "wga", "aga")  # their intervals end at 0 and 1


def curve(
    result: Result,
    *,
    x: str,
    y: str | Sequence[str],
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    names: Mapping[str, str] | None = None,
    column: str = "",
    column_names: Mapping[str, str] | None = None,
    log_x: bool = True,
) -> dict[str, bytes]:
    """Means of one or more measures against an axis: line, 95 % band, a dot per seed; reference rows as dashed lines.

    Colour tells measures apart or, with one measure, rows.
    """
    import altair as alt

    measures = _listed(y)
    means, dots = _long(result.means, measures, names, intervals=True), _long(result.frame, measures, names)
    key = "measure" if len(measures) > 1 else "label"
    for frame in (means, dots):
        frame["panel"] = _panel(frame, column, column_names)
    own = means[means["role"] == "row"]
    order = list(dict.fromkeys(own[key]))
    references = _levels(means[means["role"] == "reference"])
    lowest, highest = float(own[x].min()), float(own[x].max())
    scale = alt.Scale(type="log", nice=False) if log_x else alt.Scale(zero=False)
    across = alt.X(f"{x}:Q", title=x_title or x, scale=scale, axis=_powers() if log_x else alt.Axis())
    up = alt.Y("value:Q", title=y_title or "value", scale=alt.Scale(zero=False, nice=True))
    colour = alt.Color(f"{key}:N", title=None, sort=order, scale=_palette(order), legend=_legend(order))
    base = alt.Chart().encode(x=across, color=colour)
    layers = [
        base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=y_title or "value"), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=up),
        base.mark_circle(size=18, opacity=0.55).encode(y=up),
    ]
    data = [own.dropna(subset=["low", "high"]), own, dots[dots["role"] == "row"]]
    if len(references):
        tints = (key == "measure") and set(references[key]) <= set(order)
        references["from"], references["to"] = lowest, highest
        paint = {"color": alt.Color(f"{key}:N", sort=order, scale=_palette(order))} if tints else {}
        dash = alt.StrokeDash(
            "label:N",
            title="reference",
            sort=list(dict.fromkeys(references["label"])),
            scale=alt.Scale(range=[list(d) for d in DASHES]),
            legend=alt.Legend(symbolStrokeColor=INK),
        )
        rule = alt.Chart().mark_rule(strokeWidth=1.3, color=FAINT)
        layers.append(rule.encode(x="from:Q", x2="to:Q", y=alt.Y("value:Q"), strokeDash=dash, **paint))
        data.append(references)
    return _finish(_panels(layers, data, width=480, height=300), title, result)


def surface(
    result: Result,
    *,
    x: str,
    y: str,
    z: str | Sequence[str],
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    names: Mapping[str, str] | None = None,
    beats: Sequence[str] = (),
) -> dict[str, bytes]:
    """Heat maps of measures over two axes, one panel per measure and track; reference rows as tiles of the same scale.

    beats: rows without a critic. A cell is framed where its mean paired difference to each of them, at equal seeds, is
    better by an interval that excludes 0 (lower is better for lift).
    """
    import altair as alt

    rows = []
    tracks = list(dict.fromkeys(result.means["track"]))
    several = result.frame["suite"].nunique() > 1
    for suite in dict.fromkeys(result.means["suite"]):
        for measure in _listed(z):
            own = result.means[result.means["suite"] == suite]
            scale = alt.Scale(scheme="cividis", domain=_domain(own[measure]), reverse=_lower_is_better(measure))
            panels = []
            for track in tracks:
                part = own[own["track"] == track].rename(columns={measure: "value"})
                part = part.assign(wins=_wins(result.frame, part, measure, track, suite, [x, y], beats))
                dark = _dark(part["value"], scale, measure)
                panels.append(_tiles(part.assign(dark=dark), x, y, x_title or x, y_title or y, scale, track))
            words = (names or {}).get(measure, measure) + (f" · {suite}" if several else "")
            head = alt.TitleParams(words, anchor="start", fontSize=13, fontWeight="normal", color=INK, dy=-2)
            rows.append(alt.hconcat(*panels, spacing=30).properties(title=head))
    note = (
        [f"framed: better than {' and '.join(beats)} at equal seeds (95 % interval of the difference)"] if beats else []
    )
    return _finish(alt.vconcat(*rows, spacing=26).resolve_scale(color="independent"), title, result, note)


def bars(
    result: Result,
    *,
    x: str,
    y: str,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    names: Mapping[str, str] | None = None,
    x_names: Mapping[str, str] | None = None,
    column: str = "",
    column_names: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """A measure by category and row: mean, 95 % interval, a dot per seed; reference rows as dashed lines.

    The bars are dots with intervals: a mean of accuracies has no meaningful zero.
    """
    import altair as alt

    means, dots = _long(result.means, [y], names, intervals=True), _long(result.frame, [y], names)
    for frame in (means, dots):
        frame["panel"] = _panel(frame, column, column_names)
        frame["category"] = [_word(value, x_names) for value in frame[x]]
    own = means[means["role"] == "row"]
    order, categories = list(dict.fromkeys(own["label"])), list(dict.fromkeys(own["category"]))
    across = alt.X(
        "category:N",
        title=x_title or x,
        sort=categories,
        axis=alt.Axis(labelAngle=0),
        scale=alt.Scale(paddingInner=0.15),
    )
    offset = alt.XOffset("label:N", sort=order, scale=alt.Scale(paddingInner=0.2, paddingOuter=0.3))
    up = alt.Y("value:Q", title=y_title or y, scale=alt.Scale(zero=False, nice=True))
    colour = alt.Color("label:N", title=None, sort=order, scale=_palette(order), legend=_legend(order))
    base = alt.Chart().encode(x=across, xOffset=offset, color=colour)
    layers = [
        base.mark_rule(strokeWidth=5, opacity=0.3).encode(y=alt.Y("low:Q", title=y_title or y), y2="high:Q"),
        base.mark_circle(size=16, opacity=0.6).encode(y=up),
        base.mark_point(size=75, filled=True, shape="diamond", opacity=1).encode(y=up),
    ]
    data = [own.dropna(subset=["low", "high"]), dots[dots["role"] == "row"], own]
    references = _levels(means[means["role"] == "reference"])
    if len(references):
        line = alt.Chart().mark_rule(color=FAINT, strokeWidth=1.3, strokeDash=[6, 3]).encode(y=alt.Y("value:Q"))
        text = alt.Chart().mark_text(align="right", dy=-6, dx=-2, color=FAINT, fontSize=10)
        layers += [line, text.encode(x=alt.value("width"), y=alt.Y("value:Q"), text="label:N")]
        data += [references, references]
    step = max(34, 17 * len(order), 7 * max(map(len, categories)))
    return _finish(_panels(layers, data, width=step, height=260, per="category"), title, result)


def loglog(
    result: Result,
    *,
    x: str,
    y: str | Sequence[str],
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    names: Mapping[str, str] | None = None,
    column: str = "",
    column_names: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """Measures against an axis in logarithms, a dot per seed, with the study's fitted power laws and exponents.

    Panels are told apart by `column` alone, for the suite may change along the axis.
    """
    import altair as alt

    measures = _listed(y)
    dots = _long(result.frame[result.frame["role"] == "row"], measures, names)
    dots = dots[dots["value"] > 0]
    order = list(dict.fromkeys(dots["measure"]))
    dots["panel"] = [_word(value, column_names) for value in dots[column]] if column else ""
    fitted = _fitted(result, dots, x, measures, names, column)
    colour = alt.Color("measure:N", title=None, sort=order, scale=_palette(order), legend=_legend(order))
    panels: list[Any] = []
    for panel in dict.fromkeys(dots["panel"]):
        held, laws = dots[dots["panel"] == panel], fitted[fitted["panel"] == panel]
        ticks = sorted({float(value) for value in held[x]})
        across = alt.X(
            f"{x}:Q", title=x_title or None, scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(values=ticks, format="~s", grid=False),
        )  # fmt: skip
        limits = _decades(dots["value"])
        up = alt.Y(
            "value:Q", title=y_title if not panels else None, scale=alt.Scale(type="log", domain=limits, clamp=True),
            axis=alt.Axis(values=_powers_of_ten(limits), format="~g"),
        )  # fmt: skip
        layers = [
            alt.Chart(held).mark_circle(size=26, opacity=0.7).encode(x=across, y=up, color=colour),
            alt.Chart(laws).mark_line(strokeWidth=1.4).encode(x=across, y=up, color=colour, detail="measure:N"),
        ]
        words = laws.drop_duplicates("measure")["text"].dropna().tolist()
        size: dict[str, Any] = {"fontSize": 12, "subtitleFontSize": 10, "subtitleColor": INK}
        head = alt.TitleParams(panel or " ", subtitle=words, anchor="start", **size)
        panels.append(alt.layer(*layers).properties(width=230, height=260, title=head))
    note = ["lines: c · x^b fitted to the medians over seeds; 95 % interval of b"] if len(result.fits) else []
    return _finish(alt.hconcat(*panels, spacing=28).resolve_scale(x="independent"), title, result, note)


# --- data -------------------------------------------------------------------------------------------------------------


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _long(
    frame: pd.DataFrame, measures: Sequence[str], names: Mapping[str, str] | None, intervals: bool = False
) -> pd.DataFrame:
    """One line per measure, in columns measure, value (and low, high). Other columns stay."""
    lacking = [measure for measure in measures if measure not in frame]
    if lacking:
        raise ValueError(f"'{lacking[0]}' is not among the study's measures")
    parts = []
    for measure in measures:
        part = frame.assign(measure=(names or {}).get(measure, measure), value=frame[measure].astype(float))
        if intervals:
            ends = frame[[f"{measure}_low", f"{measure}_high"]]
            ends = ends.clip(0, 1) if measure.partition(".")[0] in FRACTIONS else ends
            part = part.assign(low=ends.iloc[:, 0], high=ends.iloc[:, 1])
        parts.append(part)
    keep = [c for c in parts[0].columns if "." not in c]  # a dot in a field name means nesting to Vega
    return pd.concat(parts, ignore_index=True)[keep].dropna(subset=["value"])


def _panel(frame: pd.DataFrame, column: str, names: Mapping[str, str] | None) -> pd.Series[str]:
    """Words above a panel: the column's value, the suite and the track, each only where there are several.

    A reference row that belongs to no single value of the column gets the panel "", which means every panel.
    """
    if column and column not in frame:
        raise ValueError(f"column: there is no axis '{column}'")
    words = pd.Series("", index=frame.index)
    if column:
        words = frame[column].map(lambda v: "*" if pd.isna(v) else _word(v, names))
    for key, known in (("suite", {}), ("track", TRACKS)):
        if frame[key].nunique() > 1:
            words = words + " · " + frame[key].map(lambda v, known=known: known.get(v, v))
    return words.str.removeprefix(" · ")


def _word(value: Any, names: Mapping[str, str] | None) -> str:
    """What a figure calls the value of an axis; `true` and `false` as YAML writes them."""
    if isinstance(value, bool | np.bool_):
        text = str(value).lower()
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return (names or {}).get(text, text)


def _levels(references: pd.DataFrame) -> pd.DataFrame:
    """One level per reference row, measure and panel."""
    keys = ["panel", "label", "measure"]
    return references.groupby(keys, sort=False)["value"].mean().reset_index()


def _wins(
    frame: pd.DataFrame, part: pd.DataFrame, measure: str, track: str, suite: str, axes: list[str], beats: Sequence[str]
) -> list[bool]:
    """Whether a cell is better than every row of `beats`, by intervals of differences paired by seed."""
    held = frame[(frame["track"] == track) & (frame["suite"] == suite)]
    sign = -1 if _lower_is_better(measure) else 1
    rivals = [held[(held["role"] == "reference") & (held["row"] == row)].set_index("seed")[measure] for row in beats]
    rows, found = held[held["role"] == "row"], []
    for _, cell in part.iterrows():
        wins = bool(rivals) and cell["role"] == "row"
        if wins:
            own = rows[(rows[axes] == cell[axes].tolist()).all(axis=1)].set_index("seed")[measure]
            gains = [(sign * (own - rival)).dropna().to_numpy(dtype=float) for rival in rivals]
            wins = all(bootstrap_interval(gain)[0] > 0 for gain in gains)
        found.append(wins)
    return found


def _fitted(
    result: Result, dots: pd.DataFrame, x: str, measures: Sequence[str], names: Mapping[str, str] | None, column: str
) -> pd.DataFrame:
    """Two ends of every fitted line and its words, by panel and measure."""
    found: list[dict[str, Any]] = []
    for law in result.fits.to_dict("records"):
        if law["measure"] not in measures or not np.isfinite(law["exponent"]):
            continue
        measure = (names or {}).get(law["measure"], law["measure"])
        own = dots[(dots["measure"] == measure) & ((dots[column] == law[column]) if column in law else True)]
        text = f"{measure}: b = {law['exponent']:.2f} [{law['low']:.2f}, {law['high']:.2f}]"
        for panel in dict.fromkeys(own["panel"]):
            for end in (own[x].min(), own[x].max()):
                value = law["scale"] * float(end) ** law["exponent"]
                found.append({"panel": panel, "measure": measure, x: float(end), "value": value, "text": text})
    return pd.DataFrame(found, columns=["panel", "measure", x, "value", "text"])


def _lower_is_better(measure: str) -> bool:
    from leaderboard.compare import LOWER_IS_BETTER

    return measure in LOWER_IS_BETTER


def _domain(values: pd.Series[float]) -> list[float]:
    low, high = float(values.min()), float(values.max())
    return [low, high] if high > low else [low - 0.5, high + 0.5]


def _decades(values: pd.Series[float]) -> list[float]:
    return [float(values.min()) / 1.6, float(values.max()) * 1.6]


def _powers_of_ten(limits: Sequence[float]) -> list[float]:
    first, last = int(np.floor(np.log10(limits[0]))), int(np.ceil(np.log10(limits[1])))
    return [10.0**k for k in range(first, last + 1) if limits[0] <= 10.0**k <= limits[1]]


# --- drawing ----------------------------------------------------------------------------------------------------------


def _dark(values: pd.Series[float], scale: Any, measure: str) -> pd.Series[bool]:
    """Where a tile is so dark that its number must be white."""
    low, high = scale.domain
    share = (values - low) / (high - low)
    dark: pd.Series[bool] = (share > 0.55) if _lower_is_better(measure) else (share < 0.45)
    return dark


def _tiles(part: pd.DataFrame, x: str, y: str, x_title: str, y_title: str, scale: Any, track: str) -> Any:
    """A heat map of the rows' cells and, beside it, a column of reference tiles."""
    import altair as alt

    side = 46
    ink = alt.condition("datum.dark", alt.value("white"), alt.value("#111111"))  # on a tile: not the page's ink
    frame = alt.condition("datum.wins", alt.value("#D55E00"), alt.value("white"))
    width = alt.condition("datum.wins", alt.value(2.5), alt.value(0.5))
    shade = alt.Color("value:Q", scale=scale, legend=None)
    own, references = part[part["role"] == "row"], part[part["role"] == "reference"]
    columns = [c for c in part.columns if "." not in c]
    values = sorted(own[y].unique(), reverse=True)
    heat = alt.Chart(own[columns]).encode(
        x=alt.X(f"{x}:O", title=x_title, axis=alt.Axis(labelAngle=0)), y=alt.Y(f"{y}:O", title=y_title, sort=values)
    )
    text = alt.Text("value:Q", format=".3f" if part["value"].max() <= 1 else ".2f")
    size = {"width": side * own[x].nunique(), "height": 0.8 * side * len(values)}
    tiles = heat.mark_rect(strokeWidth=1).encode(color=shade, stroke=frame, strokeWidth=width)
    chart = alt.layer(tiles, heat.mark_text(fontSize=11).encode(text=text, color=ink))
    head = alt.TitleParams(TRACKS.get(track, track), anchor="start", fontSize=11, fontWeight="normal", color=FAINT)
    chart = chart.properties(**size, title=head)
    if references.empty:
        return chart
    order = list(dict.fromkeys(references["label"]))
    strip = alt.Chart(references[columns]).encode(
        y=alt.Y("label:N", title=None, sort=order, axis=alt.Axis(orient="right", domain=False, ticks=False))
    )
    column = alt.layer(
        strip.mark_rect(stroke="white").encode(color=shade), strip.mark_text(fontSize=11).encode(text=text, color=ink)
    ).properties(width=side, height=0.8 * side * len(order))
    return alt.hconcat(chart, column, spacing=10)


def _panels(layers: list[Any], data: list[pd.DataFrame], width: float, height: float, per: str = "") -> Any:
    """The layers once per panel, side by side on one y scale; a line with panel "*" stands in each.

    width: of a panel, or of each value of the column `per`.
    """
    import altair as alt

    panels: list[Any] = []
    for name in (name for name in dict.fromkeys(data[1]["panel"]) if "*" not in name):
        parts, count = [], 1
        for layer, frame in zip(layers, data, strict=True):
            everywhere = frame["panel"].str.replace("*", name.partition(" · ")[0], regex=False) == name
            drawn = layer.copy()
            drawn.data = frame[everywhere]
            if panels:
                drawn.encoding.y.title = None
            count = max(count, drawn.data[per].nunique()) if per in drawn.data else count
            parts.append(drawn)
        head = alt.TitleParams(name, anchor="start", fontSize=12, fontWeight="normal")
        panels.append(alt.layer(*parts).properties(width=width * count, height=height, title=head))
    if len(panels) == 1:
        return panels[0]
    return alt.hconcat(*panels, spacing=20).resolve_scale(y="shared", x="independent")


def _powers() -> Any:
    import altair as alt

    return alt.Axis(format=".0e", grid=False, labelOverlap=True)


def _palette(names: Sequence[str]) -> Any:
    import altair as alt

    return alt.Scale(domain=list(names), range=[COLOURS[k % len(COLOURS)] for k in range(len(names))])


def _legend(names: Sequence[str]) -> Any:
    import altair as alt

    return alt.Legend(symbolOpacity=1, symbolType="circle") if len(names) > 1 else None


def _finish(chart: Any, title: str, result: Result, note: Sequence[str] = ()) -> dict[str, bytes]:
    """Title, where the numbers are from, and both file formats."""
    import vl_convert

    seeds = result.frame.groupby(["row", "suite"])["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    suites = list(dict.fromkeys(result.frame["suite"]))
    interval = "; bands and bars: 95 % interval over seeds" if seeds.max() > 1 and not note else ""
    named = ", ".join(suites) if len(suites) < 3 else f"{suites[0]} and {len(suites) - 1} more suites"
    where = f"{named} · {count} seed{'s' if count != '1' else ''}{interval}"
    drawn = styled(chart, title or result.summary, [where, *note])
    svg = vl_convert.vegalite_to_svg(drawn)
    return {"svg": svg.encode(), "png": bytes(vl_convert.svg_to_png(svg, scale=SCALE))}
