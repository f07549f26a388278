"""A table's frame as text for the terminal, Markdown, LaTeX and CSV. All formats show the same cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from leaderboard.tables import CODES, Board

EMPTY = "–"
NARROWEST = 20  # characters that a row's name gets at least, before columns are dropped
AT_EASE = 30  # ... before intervals, which stand beside their means, move below them
HEADINGS = {
    "reference": "references",
    "baseline": "baselines",
    "method": "methods",
    "oracle": "oracle (simulated)",
    "control": "controls",
}
LEGEND = (
    "headline: accuracy on the suite's headline rendering (decoys: where the shortcut misleads). WGA, AGA: worst-group "
    "and average group accuracy. All are means over seeds; [low, high] is the 95 % interval over seeds, which need not "
    "lie symmetrically.",
    "flip: predictions changed by inserting the spurious object minus those changed by a placebo. lift: share of "
    "attribution on the object over its area.",
    "supervision: " + ", ".join(f"{code} {name.replace('_', ' ')}" for name, code in CODES.items()) + ", v verdicts; "
    "the number behind it says how many were consumed. cost: seconds of one seed if it ran alone, base model included.",
)


Line = Mapping[Any, Any]  # a row of a board's frame by column


@dataclass(frozen=True)
class Column:
    """A column: its key in the frame, its heading, how a value is written, and whether the terminal shows it."""

    key: str
    head: str
    write: Callable[[Line, str, bool], str]
    terminal: bool = True
    optional: bool = True  # left out where no row has a value


def _number(value: Any, digits: int, terse: bool, signed: bool = False) -> str:
    if value is None or value is pd.NA or math.isnan(value):
        return EMPTY
    rounded = round(float(value), digits) + 0.0  # + 0.0: no negative zero
    text = f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text) if terse and digits else text


def _share(line: Line, key: str, terse: bool, signed: bool = False) -> str:
    mean = _number(line[key], 3, terse, signed)
    low, high = line.get(f"{key}_low", math.nan), line.get(f"{key}_high", math.nan)
    if mean == EMPTY or math.isnan(low):
        return mean
    ends = ("," if terse else ", ").join(_number(end, 3, terse, signed) for end in (low, high))
    return f"{mean} [{ends}]"


def _difference(line: Line, key: str, terse: bool) -> str:
    mean, space, interval = _share(line, key, terse, signed=True).partition(" ")
    star = "*" if line.get(f"{key}_p_holm", math.nan) < 0.05 else ""
    return f"{mean}{star}{space}{interval}"


def _fraction(line: Line, key: str, terse: bool) -> str:
    return _number(line[key], 3, terse)


def _factor(line: Line, key: str, terse: bool) -> str:
    return _number(line[key], 2, False)


def _whole(line: Line, key: str, terse: bool) -> str:
    return _number(line[key], 0, terse)


def _seconds(line: Line, key: str, terse: bool) -> str:
    value = line[key]
    return _number(value, 0 if value >= 100 else 1, False)


def _seeds(line: Line, key: str, terse: bool) -> str:
    return f"{line['n']}/{line['planned']}"


def _text(line: Line, key: str, terse: bool) -> str:
    return str(line["codes"] if terse and key == "supervision" else line[key]) or EMPTY


COLUMNS = (
    Column("rank", "rank", _whole),
    Column("label", "row", _text, optional=False),
    Column("n", "seeds", _seeds, optional=False),
    Column("headline", "headline", _share, optional=False),
    Column("wga", "WGA", _share, optional=False),
    Column("delta", "ΔWGA", _difference),
    Column("gain", "gain", _difference),
    Column("aga", "AGA", _share, terminal=False),
    Column("accuracy", "accuracy", _share, terminal=False),
    Column("flip_effect", "flip", _fraction),
    Column("mu_lift", "lift", _factor),
    Column("n_worst", "n worst", _whole, terminal=False),
    Column("supervision", "supervision", _text),
    Column("cost_s", "cost s", _seconds),
    Column("tried", "tried", _whole),
)
DROPPED_FIRST = ("cost s", "lift", "flip", "supervision", "headline")


@dataclass(frozen=True)
class Cells:
    """A table as text: `cells` by heading, the block of every line, and footnotes by mark."""

    cells: pd.DataFrame
    blocks: list[str]
    notes: dict[str, str]


def cells(board: Board, *, terse: bool) -> Cells:
    """Every value as text: rounded, typed outcomes in words, reasons as footnotes.

    Args:
        terse: for the terminal: main columns, no leading zeros, codes.
    """
    if terse in board.texts:  # several formats ask; none of them changes it
        held: Cells = board.texts[terse]
        return held
    frame = board.frame
    marks = {why: _mark(k) for k, why in enumerate(dict.fromkeys(w for w in frame["reason"] if w))}
    shown = [c for c in COLUMNS if c.key in frame and (c.terminal or not terse)]
    shown = [c for c in shown if not c.optional or _known(frame[c.key])]
    lines = []
    for line in frame.to_dict("records"):
        mark = f" ({marks[line['reason']]})" if line["reason"] else ""
        text = {c.head: c.write(line, c.key, terse) for c in shown}
        if not line["n"]:
            text = {head: value if head in ("row", "seeds") else EMPTY for head, value in text.items()}
            text["headline"] = EMPTY if terse else f"{line['status']}{mark}"
            mark = f": {line['status']}{mark}"
        if terse:  # beside the name, which may wrap; the number columns stay narrow
            text["row"] += mark
        elif line["n"]:
            text["seeds"] += mark
        lines.append(text)
    table = pd.DataFrame(lines, columns=[c.head for c in shown])
    return board.texts.setdefault(terse, Cells(table, list(frame["block"]), {mark: why for why, mark in marks.items()}))


def _mark(k: int) -> str:
    return chr(97 + k % 26) * (1 + k // 26)


def _known(values: pd.Series[Any]) -> bool:
    return bool((values.notna() & (values.astype(object) != "")).any())


def heading(block: str) -> str:
    """Heading of a block of rows."""
    return HEADINGS.get(block, block)


# --- terminal ---------------------------------------------------------------------------------------------------------


def to_terminal(board: Board, width: int = 120) -> Table:
    """Main columns as a rich table at most `width` characters wide; its caption names columns that do not fit.

    Where intervals do not fit beside their means they stand below them, and columns move together.
    """
    found = cells(board, terse=True)
    table, gap = _arrange(found.cells, width)
    hidden: list[str] = []
    for name in DROPPED_FIRST:
        if name in table and _room(table, width, gap) < NARROWEST:
            table = table.drop(columns=[name])
            hidden.append(name)
    room = max(_room(table, width, gap), NARROWEST)
    caption = f"not shown at this width: {', '.join(hidden)} (see the files)" if hidden else None
    rich = Table(title=board.title, title_justify="left", caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    rich.title_style, rich.padding, rich.collapse_padding = "bold", (0, gap - 1, 0, 0), True
    for head in table:
        left = head in ("row", "supervision")
        rich.add_column(Text(str(head)), justify="left" if left else "right", no_wrap=head != "row", overflow="fold")
    before = None
    for block, values in zip(found.blocks, table.itertuples(index=False), strict=True):
        if block != before:
            rich.add_section()
            rich.add_row(*(Text(heading(block), style="italic") if head == "row" else "" for head in table))
            before = block
        rich.add_row(*(Text(fold(v, room) if h == "row" else v) for h, v in zip(table, values, strict=True)))
    return rich


def _arrange(table: pd.DataFrame, width: int) -> tuple[pd.DataFrame, int]:
    """The airiest form that leaves room for names: intervals beside or below means, 2 or 1 spaces between columns."""
    stacked = table.map(lambda text: re.sub(r"^([+-]?[.\d]+\*?) \[", r"\1\n[", text))
    wanted = min(AT_EASE, table["row"].str.len().max())
    for form, gap, least in ((table, 2, wanted), (table, 1, wanted), (stacked, 2, NARROWEST)):
        if _room(form, width, gap) >= least:
            return form, gap
    return stacked, 1


def _room(table: pd.DataFrame, width: int, gap: int) -> int:
    """Characters that are left for the rows' names, with `gap` spaces between columns."""
    others = [max(len(str(head)), *map(_widest, table[head])) for head in table if head != "row"]
    longest = max(table["row"].str.len().max(), NARROWEST)
    return int(min(longest, width - sum(others) - gap * len(others) - 1 - gap))


def _widest(text: str) -> int:
    return max(map(len, text.split("\n")))


def fold(label: str, width: int) -> str:
    """Break a row's name where it reads well (before @, after a bracket, comma or space), indented by one."""
    lines = [""]
    for part in re.split(r"(?=@)|(?<=[, ])|(?<=\()(?![a-z]{1,2}\)$)", label):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append(" ")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


# --- files ------------------------------------------------------------------------------------------------------------


def to_markdown(board: Board) -> str:
    """A Markdown page: title, table, footnotes, notes, legend."""
    found = cells(board, terse=False)
    escaped = found.cells.map(markdown)
    lines = _with_headings(escaped, found.blocks, lambda text: f"**{text}**")
    align = ["left" if head in ("row", "supervision") else "right" for head in lines]
    table = lines.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=align)
    notes = [*(f"({mark}) {markdown(why)}" for mark, why in found.notes.items()), *map(markdown, board.notes)]
    body = "\n".join(f"- {note}" for note in [*notes, *map(markdown, LEGEND)])
    return f"# {markdown(board.title)}\n\n{table}\n\n{body}\n"


def short_table(board: Board, heads: Sequence[str]) -> str:
    """A Markdown table of some columns, without rows that have no numbers: for a page that has room for no more."""
    found = cells(board, terse=False)
    kept = [k for k, (_, line) in enumerate(board.frame.iterrows()) if line["n"]]
    table = found.cells.iloc[kept][["row", *heads]].map(markdown)
    lines = _with_headings(table, [found.blocks[k] for k in kept], lambda text: f"**{text}**")
    align = ["left" if head in ("row", "supervision") else "right" for head in lines]
    return str(lines.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=align))


def to_latex(board: Board) -> str:
    """A LaTeX table (packages booktabs, graphicx) as wide as the text, with the notes in its caption."""
    found = cells(board, terse=False)
    lines = _with_headings(found.cells.map(latex), found.blocks, lambda text: f"\\textit{{{text}}}")
    columns = "".join("l" if head in ("row", "supervision") else "r" for head in lines)
    lines.columns = pd.Index([latex(str(head)) for head in lines])
    notes = [f"({mark}) {why}." for mark, why in found.notes.items()]
    caption = " ".join([f"{board.title}.", *notes, *board.notes, *LEGEND])
    text = lines.style.hide(axis="index").to_latex(
        hrules=True,
        column_format=columns,
        caption=latex(caption),
        environment="table*",
        position="t",
        position_float="centering",
    )
    text = text.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}", 1)
    text = text.replace(r"\end{tabular}", r"\end{tabular}}", 1)
    return f"% needs \\usepackage{{booktabs}} and \\usepackage{{graphicx}}\n{text}"


def to_csv(board: Board) -> str:
    """The frame itself at full precision, with suite, source, model and track in front."""
    return str(_whole_frame(board).to_csv(index=False, lineterminator="\n"))


def to_parquet(board: Board) -> bytes:
    """The same frame with its types, for analyses."""
    return bytes(_whole_frame(board).to_parquet(index=False))


def _whole_frame(board: Board) -> pd.DataFrame:
    frame = board.frame.drop(columns="codes", errors="ignore")
    front = {"suite": board.suite, "source": board.source, "model": board.model, "track": board.track}
    for place, (name, value) in enumerate(front.items()):
        frame.insert(place, name, value)
    return frame


FORMATS: dict[str, Callable[[Board], bytes]] = {
    "md": lambda board: to_markdown(board).encode(),
    "tex": lambda board: to_latex(board).encode(),
    "csv": lambda board: to_csv(board).encode(),
    "parquet": to_parquet,
}


def _with_headings(table: pd.DataFrame, blocks: Sequence[str], style: Callable[[str], str]) -> pd.DataFrame:
    lines: list[dict[str, str]] = []
    for k, (_, line) in enumerate(table.iterrows()):
        if k == 0 or blocks[k] != blocks[k - 1]:
            lines.append({str(head): style(heading(blocks[k])) if head == "row" else "" for head in table})
        lines.append({str(head): str(value) for head, value in line.items()})
    return pd.DataFrame(lines, columns=list(table.columns))


def markdown(text: str) -> str:
    """Text that Markdown shows as it is; underscores inside words and lone brackets need no escape."""
    return re.sub(r"([\\`*<|#~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^>)", r"\\\1", " ".join(text.split()))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "–": "--",
        "·": r"\textperiodcentered{}",
        "±": r"\textpm{}",
        "Δ": r"$\Delta$",
        "…": r"\dots{}",
        **{c: f"\\{c}" for c in "&%$#_{}"},
    }
)


def latex(text: str) -> str:
    """Text that LaTeX shows as it is; a minus before a number becomes a true one."""
    return re.sub(r"(^|(?<=[\s\[(]))-(?=[\d.])", r"$-$", " ".join(text.split()).translate(_LATEX))
