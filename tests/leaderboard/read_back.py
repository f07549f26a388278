"""Reads every format of a report back and compares their numbers, interval ends included."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from leaderboard.render import to_csv, to_latex, to_markdown, to_parquet
from leaderboard.tables import Board

NAMES = {"headline": "headline", "WGA": "wga", "ΔWGA": "delta", "gain": "gain", "AGA": "aga", "flip": "flip_effect"}
NAMES |= {"cost s": "cost_s", "lift": "mu_lift", "n worst": "n_worst"}
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*")


class Tables(HTMLParser):
    """The board tables of a page: per table the headings, and per row its name and (text, data-value) cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[tuple[list[str], dict[str, list[tuple[str, str | None]]]]] = []
        self.tags: set[str] = set()
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.tags.add(tag)
        if tag == "table" and held.get("class") == "board":
            self.tables.append(([], {}))
        elif tag == "tr" and held.get("class") == "line":
            self._row = self.tables[-1][1].setdefault(held["data-row"] or "", [])
        elif tag == "td" and self.tables and held.keys() <= {"data-value", "class"}:
            self._into, self._value = [], held.get("data-value")
        elif tag == "button" and "type" in held and "id" not in held:
            self._into, self._value = [], "head"

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.__dict__.pop("_row", None)
        if self._into is None:
            return
        if tag == "button":
            self.tables[-1][0].append("".join(self._into).strip())
        elif tag == "td" and hasattr(self, "_row"):
            self._row.append(("".join(self._into).strip(), self._value))
        if tag in ("button", "td"):
            self._into = None


def markdown_rows(text: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table in a Markdown file, without the headings of its blocks."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [
        [re.sub(r"\\(.)", r"\1", html.unescape(part.strip())) for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    return cells[0], [row for row in cells[2:] if sum(map(bool, row)) > 1]


def numbers(text: str) -> list[float]:
    """Numbers of a cell, in order: the value, then the ends of its interval."""
    return [float(part.replace(",", "")) for part in NUMBER.findall(text)]


def compare(page: str, boards: Sequence[Board]) -> int:
    """Check page, Markdown, LaTeX, CSV and Parquet of tables against each other; returns how many cells held a number.

    Full precision: page, CSV, Parquet. As printed: page, Markdown, LaTeX, and interval ends to half of the last digit.
    """
    tables = Tables(page).tables
    assert len(tables) == len(boards)
    ordered = [b for b in boards if b.source != "stand-in"] + [b for b in boards if b.source == "stand-in"]
    compared = 0
    for board, (heads, rows) in zip(ordered, tables, strict=True):
        csv = pd.read_csv(io.StringIO(to_csv(board))).set_index("label")
        parquet = pd.read_parquet(io.BytesIO(to_parquet(board))).set_index("label")
        assert list(rows) == list(csv.index) == list(parquet.index)
        columns, markdown = markdown_rows(to_markdown(board))
        latex = to_latex(board)
        for (label, cells), printed in zip(rows.items(), markdown, strict=True):
            assert len(cells) == len(heads) - 1
            for head, column in NAMES.items():
                if head not in heads:
                    continue
                text, value = cells[heads.index(head) - 1]
                exact = parquet.loc[label, column]
                if np.isnan(exact):
                    assert value is None
                    continue
                assert float(value or "nan") == pytest.approx(exact, rel=1e-12)
                assert csv.loc[label, column] == pytest.approx(exact, rel=1e-12)
                if head in columns:
                    assert printed[columns.index(head)].split() == text.split()
                if head == "WGA":
                    assert f"{exact:.3f}" in latex
                shown = numbers(text)
                digits = max((len(part.partition(".")[2]) for part in NUMBER.findall(text)), default=0)
                assert shown[0] == pytest.approx(exact, abs=0.5001 * 10.0**-digits)
                if len(shown) > 1:
                    ends = [parquet.loc[label, f"{column}_{end}"] for end in ("low", "high")]
                    assert shown[1:3] == pytest.approx(ends, abs=0.5001 * 10.0**-digits)
                compared += 1
    return compared
