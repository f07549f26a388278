"""How all figures look: colours that the colour-blind tell apart, one font, quiet axes."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette without its yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ([6, 3], [2, 2], [8, 3, 2, 3], [1, 2])
INK, FAINT = "#222222", "#6b6b6b"
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
SCALE = 2  # pixels of the PNG per point


def styled(chart: Any, title: str, lines: list[str]) -> str:
    """An altair chart with its title and the lines below it, as the JSON that vl-convert draws."""
    import altair as alt

    head = alt.TitleParams(
        title,
        color=INK,
        subtitle=lines,
        anchor="start",
        fontSize=15,
        subtitleFontSize=11,
        subtitleColor=FAINT,
        offset=14,
    )
    whole = alt.vconcat(chart).properties(title=head)
    dressed = (
        whole.configure(font=FONT, padding=14, background="white")
        .configure_view(stroke=None)
        .configure_axis(
            **{"gridColor": "#e6e6e6", "domainColor": FAINT, "tickColor": FAINT, "labelColor": INK, "titleColor": INK},
            **{"titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12},
        )
        .configure_legend(
            **{"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelLimit": 260},
            **{"labelColor": INK, "titleColor": INK},
        )
        .configure_header(labelColor=INK, titleColor=INK)
    )
    return str(dressed.to_json())
