"""Tables as data, and how figures are written: one table becomes Markdown for files and HTML for the page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "NONE", "Cell", "Column", "Table", "as_html", "as_markdown", "figures", "memory", "number", "percent", "quantity",
    "ratio", "scale", "seconds", "spread", "texts",
]  # fmt: skip

UNITS = (("s", 1.0), ("ms", 1e3), ("us", 1e6))
LONG = 48  # characters from which a cell may be broken on the page


@dataclass(frozen=True)
class Column:
    """brief: also on the page of docs/, which is narrower than the report."""

    title: str
    numeric: bool = True
    brief: bool = True


def texts(*titles: str, brief: bool = True) -> tuple[Column, ...]:
    return tuple(Column(title, False, brief) for title in titles)


def figures(*titles: str, brief: bool = True) -> tuple[Column, ...]:
    return tuple(Column(title, True, brief) for title in titles)


@dataclass(frozen=True)
class Cell:
    """text as it is shown; sort: what the column is ordered by, the text by default; mark: "good", "bad", "ours"."""

    text: str
    sort: float | None = None
    mark: str = ""


NONE = Cell("-")


@dataclass(frozen=True)
class Table:
    """The first cell of a row names it. note: said below the table."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"[tables] a row of {self.caption!r} has another length than its head")

    @property
    def brief(self) -> Table:
        """The columns that fit a page of docs/."""
        kept = [i for i, column in enumerate(self.columns) if column.brief]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.caption, tuple(self.columns[i] for i in kept), rows, self.note)

    def without_empty(self) -> Table:
        """Without the columns in which no row has anything to say."""
        kept = [i for i in range(len(self.columns)) if i == 0 or any(row[i].text not in ("", "-") for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.caption, tuple(self.columns[i] for i in kept), rows, self.note)


def as_markdown(table: Table) -> str:
    """GitHub's tables; marked cells are bold, because colours are not to be had."""
    head = " | ".join(_escaped(column.title) for column in table.columns)
    rule = "|".join("--:" if column.numeric else "---" for column in table.columns)
    rows = [" | ".join(_bold(cell) for cell in row) for row in table.rows]
    lines = [f"| {head} |", f"|{rule}|", *(f"| {row} |" for row in rows)]
    return "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")


def as_html(table: Table) -> str:
    """With a caption and heads that say their scope; data-sort carries the number behind a cell."""
    head = "".join(
        f'<th scope="col"{_class("number" if column.numeric else "")}>{html.escape(column.title)}</th>'
        for column in table.columns
    )
    body = "\n".join(f"<tr{_class(_row_mark(row))}>{_cells(row, table.columns)}</tr>" for row in table.rows)
    note = f"<p class=note>{html.escape(table.note)}</p>" if table.note else ""
    caption = html.escape(table.caption)
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{caption}">\n<table>\n<caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>{note}"
    )


def _cells(row: Sequence[Cell], columns: Sequence[Column]) -> str:
    made = []
    for i, (cell, column) in enumerate(zip(row, columns, strict=True)):
        kinds = {"number": column.numeric, "long": len(cell.text) > LONG, cell.mark: cell.mark not in ("", "ours")}
        attributes = _class(" ".join(kind for kind, holds in kinds.items() if holds))
        if cell.sort is not None:
            attributes += f' data-sort="{cell.sort:.9g}"'
        text = html.escape(cell.text)
        made.append(f"<td{attributes}>{text}</td>" if i else f'<th scope="row"{attributes}>{text}</th>')
    return "".join(made)


def _row_mark(row: Sequence[Cell]) -> str:
    return "ours" if any(cell.mark == "ours" for cell in row) else ""


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _bold(cell: Cell) -> str:
    text = _escaped(cell.text)
    return f"**{text}**" if cell.mark and cell.text not in ("", "-") else text


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


# How figures are written.


def scale(value: float) -> tuple[str, float]:
    """The unit in which seconds have digits before the point."""
    return next(((unit, by) for unit, by in UNITS if abs(value) * by >= 1), UNITS[-1])


def number(value: float) -> str:
    """Three digits that mean something, never an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def quantity(value: float, unit: str) -> str:
    """A figure with its unit; seconds in ms or us where that reads better."""
    if unit == "s":
        unit, by = scale(value)
        value *= by
    return f"{number(value)} {unit}".rstrip()


def seconds(value: float | None) -> Cell:
    return NONE if value is None else Cell(quantity(value, "s"), value)


def spread(block: Mapping[str, Any] | None, names: Sequence[str] = ("p5", "p95", "p99")) -> Cell:
    """p50 [p5, p95, p99] in the unit of the first."""
    if block is None:
        return NONE
    unit, by = scale(block["p50"]) if block["unit"] == "s" else (block["unit"], 1.0)
    rest = ", ".join(number(block[name] * by) for name in names)
    return Cell(f"{number(block['p50'] * by)} {unit} [{rest}]", block["p50"])


def ratio(value: Mapping[str, float] | None) -> Cell:
    """1.73 [1.69, 1.85]."""
    if value is None:
        return NONE
    return Cell("{median:.2f} [{low:.2f}, {high:.2f}]".format(**value), value["median"])


def percent(value: float | None) -> Cell:
    return NONE if value is None else Cell(f"{value:.1%}" if value < 0.1 else f"{value:.0%}", value)


def memory(size: int | None) -> Cell:
    if size is None:
        return NONE
    return Cell(f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB", float(size))
