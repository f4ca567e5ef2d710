"""The report's tables in another file, between markers, each with the date, machine, command and record behind it.

<!-- report:txt2img-built-in begin -->
<!-- report:txt2img-built-in end -->

The name is a section's: its anchor in the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .section import Section, provenance
from .tables import as_markdown

__all__ = ["ReadmeError", "filled"]

_BEGIN = re.compile(r"<!-- report:(?P<name>[\w-]+) begin -->\n")


class ReadmeError(ValueError):
    """A marker that no section answers to, or that is not closed."""


def filled(text: str, sections: Sequence[Section]) -> tuple[str, list[str]]:
    """(the text with every marked place as the sections give it, names of the places that changed)."""
    known = {section.slug: section for section in sections}
    parts, changed, at = [], [], 0
    for begin in _BEGIN.finditer(text):
        name, end = begin["name"], f"<!-- report:{begin['name']} end -->"
        line = text.count("\n", 0, begin.start()) + 1
        if name not in known:
            raise ReadmeError(f"line {line}: report:{name} must be one of {', '.join(sorted(known))}")
        close = text.find(end, begin.end())
        if close < 0 or _BEGIN.search(text, begin.end(), close):
            raise ReadmeError(f"line {line}: report:{name} must be closed by {end}")
        told = _told(known[name])
        if text[begin.end() : close] != told:
            changed.append(name)
        parts += [text[at : begin.end()], told]
        at = close
    return "".join([*parts, text[at:]]), changed


def _told(section: Section) -> str:
    where, commands, records = provenance(section.lines)
    said = "; ".join([where, *(f"`{one}`" for one in commands), *(f"[record]({one})" for one in records)])
    tables = [as_markdown(table.brief) for table in section.tables]
    return "\n\n".join([f"{said}:", *tables]) + "\n"
