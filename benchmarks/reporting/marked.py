"""Places in README.md and the pages of docs/ that are written from the results, between markers:

<!-- report:speed begin -->
<!-- report:speed end -->

speed       hotloop beside the fastest peer, one row for each model and precision, on the processor measured last
processors  every table of the report, one section for each processor, the newest first
runs        what was run, where, when, with which commands and versions, at which ceilings
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import cells
from .contents import sections
from .goals import GOALS, judge
from .groups import by, said
from .results import ROOT, Line
from .section import Section, commands, span
from .tables import Cell, Table, as_markdown, figures, ratio, seconds, texts

__all__ = ["MarkerError", "filled", "parts"]

_BEGIN = re.compile(r"<!-- report:(?P<name>[\w-]+) begin -->\n")
_MODELS = {"built-in": "the built-in model", "sd15-random": "SD 1.5's shape, random weights"}

_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "-")
_LONG = 40  # rows: of a longer table a page shows hotloop's


class MarkerError(ValueError):
    """A marker that no part answers to, or that is not closed."""


def filled(text: str, parts: Mapping[str, str]) -> tuple[str, list[str]]:
    """(the text with every marked place as the parts say, names of the places that changed)."""
    made, changed, at = [], [], 0
    for begin in _BEGIN.finditer(text):
        name, end = begin["name"], f"<!-- report:{begin['name']} end -->"
        line = text.count("\n", 0, begin.start()) + 1
        if name not in parts:
            raise MarkerError(f"line {line}: report:{name} must be one of {', '.join(sorted(parts))}")
        close = text.find(end, begin.end())
        if close < 0 or _BEGIN.search(text, begin.end(), close):
            raise MarkerError(f"line {line}: report:{name} must be closed by {end}")
        if text[begin.end() : close] != parts[name] + "\n":
            changed.append(name)
        made += [text[at : begin.end()], parts[name] + "\n"]
        at = close
    return "".join([*made, text[at:]]), changed


def parts(lines: Sequence[Line], folder: Path = ROOT) -> dict[str, str]:
    """Markdown by a place's name. folder: where the file lies that it is for, because links to records are relative."""
    newest = _newest_first(lines)
    return {
        "speed": _speed(lines, folder),
        "processors": "\n\n".join(_processor(where, of_machine) for where, of_machine in newest),
        "runs": _runs(sections(lines)[0]),
    }


def _newest_first(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    groups = [(where, group) for (where,), group in by(lines, "machine").items()]
    return sorted(groups, key=lambda pair: max(_date(line) for line in pair[1]), reverse=True)


def _date(line: Line) -> str:
    return str(line["environment"]["date"])


def _speed(lines: Sequence[Line], folder: Path) -> str:
    """Of every model the processor it was measured on last, one picture after another; a row for each precision.

    A floating-point precision stands beside the fastest peer in the same precision; int8, which no peer has at a
    quality that agrees, beside the fastest peer in floating point.
    """
    single = [line for line in lines if line["benchmark"] == "txt2img" and line["scenario"] == "SingleStream"]
    rows: list[tuple[Cell, ...]] = []
    places: dict[str, list[Line]] = {}
    differ: dict[str, None] = {}
    of_model = by(single, "model")
    for (model,) in sorted(of_model, key=lambda key: [*_MODELS, key[0]].index(key[0])):
        where, group = _newest_first(of_model[model,])[0]
        name = f"{_MODELS.get(model, model)} ({said(group, ('size', 'steps'))})"
        for one in sorted(judge(group), key=lambda one: _PRECISIONS.index(one.precision)):
            goal = GOALS[2] if one.precision == "int8" else GOALS[0]
            if one.goal is not goal or one.ratio is None or one.seconds is None:
                continue
            sides = (
                f"{case}, {seconds(time).text}" for case, time in zip((one.ours, one.peer), one.seconds, strict=True)
            )
            rows.append((Cell(name), Cell(one.precision), *map(Cell, sides), ratio(one.ratio)))
            places.setdefault(where, []).extend(group)
            if one.precision == "int8":
                differ |= {
                    f"{cells.output(line).text} ({_MODELS.get(model, model)})": None
                    for line in group
                    if line["case"] == one.ours
                }
    if not rows:
        return "Nothing was measured beside a peer."
    columns = (*texts("model", "precision", "hotloop", "fastest peer"), *figures("times as fast"))
    used = [line for group in places.values() for line in group]
    links = ", ".join(f"[{path.stem}]({_relative(path, folder)})" for path in dict.fromkeys(line.path for line in used))
    told = [f"{'; '.join(places)}; {span([_date(line)[:10] for line in used])}; records: {links}."]
    if differ:
        told += [
            f"int8, beside the fastest peer in floating point, draws close but other pictures: {', '.join(differ)}."
        ]
    return "\n\n".join([as_markdown(Table("Speed", columns, tuple(rows))), " ".join(told)])


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _processor(where: str, lines: Sequence[Line]) -> str:
    """Every section of one machine, with the columns that fit a page."""
    told = [f"### {where}", f"Measured {span([_date(line)[:10] for line in lines])}."]
    for section in sections(lines)[1:]:  # the first says what was run
        told += [
            f"#### {section.title}",
            *section.text,
            *(as_markdown(_short(table.brief)) for table in section.tables),
        ]
    return "\n\n".join(told)


def _short(table: Table) -> Table:
    if len(table.rows) <= _LONG:
        return table
    ours = tuple(row for row in table.rows if any(cell.mark == "ours" for cell in row))
    return Table(table.caption, table.columns, ours, f"{table.note} The baseline's own rows are in the record.".strip())


def _runs(section: Section) -> str:
    what, *rest = section.tables
    given = "\n".join(commands(section.lines))
    told = [as_markdown(what), "The commands, as they were given:", f"```text\n{given}\n```"]
    for table in rest:
        told += [f"{table.caption}:", as_markdown(table)]
    return "\n\n".join(told)
